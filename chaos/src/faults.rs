//! Which faults there are, how often each is drawn, and what it does.
//!
//! Of machines the shares follow Llama 3's training: 419 unexpected interruptions in 54 days on
//! 16,384 GPUs, of which 58.7 % were of GPUs and their memory, 8.4 % of the network and its cables,
//! the rest hosts, software and others (Grattafiori et al., "The Llama 3 Herd of Models", 2024,
//! section 3.3.4). Here they come about 10^5 times as fast: one every ten seconds on a dozen nodes.
//! Of replicas nobody has published rates: they are drawn so that every kind meets every phase.

use std::collections::BTreeSet;

use rowen_state::{Command, GpuMask, Part, PartReport, Seer};
use rowen_topology::FaultyLink;

use crate::{
    draws::Drawn,
    group::WALL_MS,
    message::{Event, MachineAt, ReplicaAt},
    net::Host,
    rng::Rng,
    timeline::Lane,
    world::World,
};

impl World {
    pub(crate) fn fault(&mut self) {
        if self.healed {
            return;
        }
        let (_, mut rng, on) = self.draws.next(Drawn::Fault);
        let in_ms = rng.between(500, 15_000);
        self.context.later(in_ms, Event::Fault);
        if !on {
            return;
        }
        match rng.between(0, 99) {
            0..=39 => self.machine_fault(&mut rng),
            40..=64 => self.network_fault(&mut rng),
            65..=89 => self.replica_fault(&mut rng),
            _ => self.disk_fault(&mut rng),
        }
    }

    fn machine_fault(&mut self, rng: &mut Rng) {
        let machine = rng.between(0, self.machines.len() as u64 - 1) as usize;
        match rng.between(0, 999) {
            // GPUs: XID, ECC, fallen off the bus; some of it is their NVLink.
            0..=349 => self.sicken(machine, rng),
            350..=399 => self.flap(machine, true, rng),
            // Software.
            400..=549 => self.kill_agent(machine, "killed agent", rng),
            550..=594 => self.freeze_agent(machine, rng),
            595..=609 => self.loop_agent(machine, rng),
            610..=679 => self.freeze_machine(machine, rng),
            680..=699 => {
                self.count("broken stream", Some(machine));
                let session = self.machines[machine].agent.as_ref().and_then(|a| a.session);
                if let Some(session) = session {
                    self.machines[machine].hangup(session, &mut self.context);
                }
            }
            // Cables and switches: as often as hosts here, for a cut is what fencing is about.
            700..=799 => self.cut_machine(machine, rng),
            // InfiniBand, which carries gangs and not us.
            800..=849 => self.flap(machine, false, rng),
            // Hosts, and now and then a whole rack.
            850..=969 => self.reboot(machine, rng),
            _ => {
                self.count("rack lost", None);
                for machine in 0..self.machines.len().div_ceil(2) {
                    self.reboot(machine, rng);
                }
            }
        }
    }

    fn sicken(&mut self, machine: MachineAt, rng: &mut Rng) {
        self.count("GPU lost", Some(machine));
        let row = &mut self.machines[machine];
        let gpu = rng.between(0, u64::from(row.gpus) - 1) as u32;
        row.sick = GpuMask::one(gpu);
        self.context.note(format_args!("m{machine}: GPU {gpu} is lost"));
        let in_ms = rng.between(5_000, 60_000);
        self.context.later(in_ms, Event::Repaired { machine });
        match rng.chance(50) {
            true => self.machines[machine].say_health(&mut self.context),
            false => self.rediscover(machine),
        }
    }

    /// The network's monitor sees a link of a machine slow or down for a while.
    fn flap(&mut self, machine: MachineAt, nvlink: bool, rng: &mut Rng) {
        let cluster = self.control.core.cluster();
        let node = self.names[machine].clone();
        let record = cluster.fabric().nodes.iter().find(|record| record.name == node);
        let Some(leaf) = record.and_then(|record| record.leafs.first().cloned()) else { return };
        let gpu = rng.between(0, u64::from(self.machines[machine].gpus) - 1) as u16;
        let part = Part::Link(match nvlink {
            true => FaultyLink::NvLink { node, gpu },
            false => FaultyLink::Rail { node, leaf },
        });
        self.count(if nvlink { "NVLink flap" } else { "InfiniBand flap" }, Some(machine));
        let left_milli = if rng.chance(50) { 0 } else { 500 };
        self.link_is(part.clone(), left_milli, false);
        let in_ms = rng.between(500, 30_000);
        self.context.later(in_ms, Event::LinkUp { part });
    }

    /// The monitor says that all links are in order again.
    pub(crate) fn mend_links(&mut self) {
        let faulty = self.control.core.cluster().health();
        let faulty: Vec<Part> = faulty.map(|(part, _)| part.clone()).collect();
        let links = faulty.into_iter().filter(|part| matches!(part, Part::Link(_)));
        links.for_each(|part| self.link_is(part, 1_000, true));
    }

    /// The monitor says so.
    pub(crate) fn link_is(&mut self, part: Part, left_milli: u16, mended: bool) {
        let reason = String::from("chaos");
        let report = PartReport { part, left_milli, mended, seer: Seer::Operator, reason };
        self.begin(Command::SetHealth(vec![report]));
    }

    /// An agent tells what GPUs it has when it comes.
    pub(crate) fn rediscover(&mut self, machine: MachineAt) {
        let row = &mut self.machines[machine];
        if row.powered && row.agent.is_some() {
            row.kill_agent(&mut self.context);
            self.context.later(200, Event::StartAgent { machine });
        }
    }

    pub(crate) fn kill_agent(&mut self, machine: MachineAt, fault: &'static str, rng: &mut Rng) {
        self.count(fault, Some(machine));
        self.context.note(format_args!("m{machine}: the agent is killed"));
        self.machines[machine].kill_agent(&mut self.context);
        let long = rng.chance(30);
        let in_ms = rng.between(50, if long { 90_000 } else { 2_000 });
        self.context.later(in_ms, Event::StartAgent { machine });
    }

    /// SIGSTOP: what it would have done comes later, all at once.
    fn freeze_agent(&mut self, machine: MachineAt, rng: &mut Rng) {
        self.count("frozen agent", Some(machine));
        let long = rng.chance(40);
        let for_ms = rng.between(200, if long { 90_000 } else { 5_000 });
        self.machines[machine].frozen_until_ms = self.context.now_ms + for_ms;
        self.context.note(format_args!("m{machine}: the agent is frozen for {for_ms} ms"));
    }

    /// SIGSTOP of everything, or a suspended virtual machine: its clock goes on.
    fn freeze_machine(&mut self, machine: MachineAt, rng: &mut Rng) {
        self.count("frozen machine", Some(machine));
        // Long ones outlast the node lease and all margins: then only the agent's fence is left.
        let for_ms =
            if rng.chance(60) { rng.between(10_000, 90_000) } else { rng.between(50, 5_000) };
        self.context.note(format_args!("m{machine} is frozen for {for_ms} ms"));
        let (now_ms, until_ms) = (self.context.now_ms, self.context.now_ms + for_ms);
        self.machines[machine].freeze(until_ms, &mut self.context);
        self.context.timeline.span(Lane::Frozen(machine), "frozen", now_ms, until_ms);
    }

    /// It dies as soon as it has come, and systemd starts it again, a hundred times.
    fn loop_agent(&mut self, machine: MachineAt, rng: &mut Rng) {
        self.count("agent in a loop", Some(machine));
        self.context.note(format_args!("m{machine}: the agent is in a loop"));
        let left = rng.between(30, 200) as u32;
        self.context.later(1, Event::Loop { machine, left });
    }

    /// Once around.
    pub(crate) fn next_loop(&mut self, machine: MachineAt, left: u32) {
        self.machines[machine].kill_agent(&mut self.context);
        self.context.later(2, Event::StartAgent { machine });
        if left > 0 && !self.healed {
            let in_ms = self.context.rng.between(20, 150);
            self.context.later(in_ms, Event::Loop { machine, left: left - 1 });
        }
    }

    fn reboot(&mut self, machine: MachineAt, rng: &mut Rng) {
        if !self.machines[machine].powered {
            return;
        }
        self.count("rebooted machine", Some(machine));
        self.context.note(format_args!("m{machine}: the power fails"));
        self.machines[machine].power_off(&mut self.context);
        self.lose_held(machine);
        let in_ms = rng.between(3_000, 60_000);
        self.context.later(in_ms, Event::PowerOn { machine });
    }

    fn cut_machine(&mut self, machine: MachineAt, rng: &mut Rng) {
        self.count("cut link", Some(machine));
        let link = &mut self.machines[machine].link;
        match rng.between(0, 2) {
            0 => link.up = false,
            1 => link.down = false,
            _ => (link.up, link.down) = (false, false),
        }
        self.context.note(format_args!("m{machine}: the link is cut"));
        let long = rng.chance(40);
        let in_ms = rng.between(100, if long { 90_000 } else { 8_000 });
        self.context.later(in_ms, Event::Mend { machine });
    }

    fn network_fault(&mut self, rng: &mut Rng) {
        let active = self.group.active();
        let hosts: Vec<Host> =
            active.iter().map(|at| Host::Replica(self.group.seats[*at].id)).collect();
        let long = rng.chance(30);
        let in_ms = rng.between(500, if long { 60_000 } else { 6_000 });
        match rng.between(0, 9) {
            0..=3 => {
                let (Some(from), Some(to)) = (rng.pick(&hosts), rng.pick(&hosts)) else { return };
                self.count("one-way cut", None);
                self.context.note(format_args!("{from:?} to {to:?} is cut for {in_ms} ms"));
                self.group.net().cut(from, to, true);
                self.context.later(in_ms, Event::Uncut { from, to });
            }
            4 => self.cut_leader_off(rng),
            5..=7 => {
                self.count("partition", None);
                let mut island: BTreeSet<Host> =
                    hosts.into_iter().filter(|_| rng.chance(40)).collect();
                let machines = (0..self.machines.len()).filter(|_| rng.chance(40));
                island.extend(machines.map(Host::Machine));
                self.context.note(format_args!("{island:?} are cut off for {in_ms} ms"));
                self.group.net().split(Some(island));
                self.splits += 1;
                self.context.later(in_ms, Event::Unsplit { number: self.splits });
            }
            _ => {
                self.count("links change", None);
                self.group.net().redraw();
            }
        }
    }

    /// The leader is alone with some of the machines, for longer than a node lease: the others
    /// elect another, and must not believe what only this one still says.
    fn cut_leader_off(&mut self, rng: &mut Rng) {
        let Some((_, leader)) = self.group.leader() else { return };
        self.count("leader cut off", None);
        let machines = (0..self.machines.len()).filter(|_| rng.chance(60)).map(Host::Machine);
        let mut island: BTreeSet<Host> = machines.collect();
        island.insert(Host::Replica(self.group.seats[leader].id));
        let in_ms = rng.between(5_000, 60_000);
        self.context.note(format_args!("{island:?} are cut off for {in_ms} ms"));
        self.group.net().split(Some(island));
        self.splits += 1;
        self.context.later(in_ms, Event::Unsplit { number: self.splits });
    }

    fn replica_fault(&mut self, rng: &mut Rng) {
        let Some(at) = rng.pick(&self.group.active()) else { return };
        // Half of them meet the leader.
        let leader = self.group.leader().map(|(_, at)| at);
        let at = leader.filter(|_| rng.chance(50)).unwrap_or(at);
        match rng.between(0, 19) {
            0..=4 => {
                self.count("killed replica", None);
                self.kill_replica(at, false, rng);
            }
            5..=7 => {
                self.count("power cut of a replica", None);
                self.kill_replica(at, true, rng);
            }
            8 => {
                self.count("power cut of all replicas", None);
                for at in self.group.active() {
                    self.kill_replica(at, true, rng);
                }
            }
            9..=12 => self.freeze_replica(at, rng),
            13..=15 => self.set_clock(at, rng),
            _ => self.die_in_a_write(at, rng),
        }
    }

    pub(crate) fn kill_replica(&mut self, at: ReplicaAt, power_cut: bool, rng: &mut Rng) {
        if self.group.seats[at].process.is_none() {
            return;
        }
        self.context.note(format_args!("r{at}: killed, power cut {power_cut}"));
        // One that is alone refuses a torn log: an operator's word is needed then.
        self.group.kill(at, power_cut && !self.restores.small);
        self.streams_end(at);
        self.watches_end(at);
        self.readers_end(at);
        let long = rng.chance(25);
        let in_ms = rng.between(200, if long { 60_000 } else { 5_000 });
        self.context.later(in_ms, Event::StartReplica { replica: at });
    }

    fn freeze_replica(&mut self, at: ReplicaAt, rng: &mut Rng) {
        let seat = &self.group.seats[at];
        let Some(process) = &seat.process else { return };
        let long = rng.chance(30);
        let for_ms = rng.between(200, if long { 90_000 } else { 8_000 });
        process.freeze();
        self.context.note(format_args!("r{at}: frozen for {for_ms} ms"));
        self.context.later(for_ms, Event::Thaw { replica: at, life: seat.life });
        self.count("frozen replica", None);
    }

    /// Somebody sets the wall clock, or time is served badly.
    fn set_clock(&mut self, at: ReplicaAt, rng: &mut Rng) {
        self.count("clock jump", None);
        let now_ms = WALL_MS + self.context.now_ms;
        let far_ms = [1_000, 60_000, 3_600_000, 40 * 86_400_000];
        let far_ms = rng.pick(&far_ms).expect("not empty");
        let by_ms = rng.between(1, far_ms);
        let wall_ms = if rng.chance(50) { now_ms + by_ms } else { now_ms - by_ms };
        self.context.note(format_args!("r{at}: the clock is set by {by_ms} ms"));
        self.group.seats[at].clock.set_wall_ms(wall_ms);
    }

    /// The process dies in the middle of one of its next writes: what is torn may have been
    /// acknowledged for all that the replica can tell, so as few as a group can do without.
    fn die_in_a_write(&mut self, at: ReplicaAt, rng: &mut Rng) {
        if self.group.seats[at].process.is_none() || !self.may_weaken() {
            return;
        }
        self.count("torn write", None);
        let seat = &self.group.seats[at];
        seat.disk.die_after(rng.between(1, 12));
        let power_cut = rng.chance(70);
        let in_ms = rng.between(500, 10_000);
        let event = Event::KillReplica { replica: at, life: seat.life, power_cut };
        self.group.seats[at].dying = Some(power_cut);
        self.context.later(in_ms, event);
    }

    /// Whether the group can do without one more.
    fn may_weaken(&self) -> bool {
        let (active, members) = (self.group.active().len(), self.group.members().len());
        let settled = active == members && active >= 3;
        settled
            && self.group.seats.iter().all(|seat| seat.dying.is_none())
            && self.weakened.is_none()
            && self.group.unreliable() == 0
    }

    fn disk_fault(&mut self, rng: &mut Rng) {
        let Some(at) = rng.pick(&self.group.active()) else { return };
        let for_ms = rng.between(500, 20_000);
        match rng.between(0, 9) {
            0 | 1 => {
                self.count("disk full", None);
                self.group.seats[at].disk.fill(true);
                self.context.later(for_ms, Event::MendDisk { replica: at });
            }
            2 | 3 => {
                self.count("EIO on sync", None);
                self.group.seats[at].disk.fail_syncs(true);
                self.context.later(for_ms, Event::MendDisk { replica: at });
            }
            4 | 5 => {
                self.count("slow disk", None);
                let most = std::time::Duration::from_millis(rng.between(20, 400));
                self.group.seats[at].disk.slow(most / 4, most);
                self.context.later(for_ms, Event::MendDisk { replica: at });
            }
            _ => self.corrupt(at, rng),
        }
        self.context.note(format_args!("r{at}: its disk fails for {for_ms} ms"));
    }

    /// Its disk no longer holds what was written to it; found out at the next start at the latest.
    fn corrupt(&mut self, at: ReplicaAt, rng: &mut Rng) {
        if !self.may_weaken() {
            return;
        }
        let disk = &self.group.seats[at].disk;
        if rng.chance(30) {
            disk.misdirect_next_write();
            self.count("misdirected write", None);
        } else {
            let Some(path) = rng.pick(&self.flippable(at)) else { return };
            let length = disk.contents(&path).map_or(0, |bytes| bytes.len());
            if length == 0 {
                return;
            }
            let offset = rng.between(0, length as u64 - 1) as usize;
            disk.flip(&path, offset, 1 << rng.between(0, 7));
            self.count("bit flip at rest", None);
        }
        self.weakened = Some(at);
        self.context.note(format_args!("r{at}: its disk is corrupt"));
    }

    /// Files that are checked when they are read: a simulated archive is not.
    fn flippable(&self, at: ReplicaAt) -> Vec<std::path::PathBuf> {
        let paths = self.group.seats[at].disk.paths().into_iter();
        paths.filter(|path| !path.starts_with("/rowen/archive")).collect()
    }
}
