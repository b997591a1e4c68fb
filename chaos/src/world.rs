//! One world: its seed draws the cluster, the workload and the faults; then
//! faults end, and everything must come to rest.
//!
//! One thread, one tokio runtime with paused time. Replicas run in it as in production; all else
//! is events of the one loop here, which sleeps until the next of them or until a replica left word.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rowen_state::{Command, NodeId, Part};
use tokio::time::{Instant, sleep_until};

use crate::{
    checks,
    clients::Operation,
    context::Context,
    control::Control,
    coverage,
    draws::{Draw, Draws},
    group::Group,
    history::History,
    inbox::{Arrived, Inbox},
    invariant::{Checked, Finding},
    logs::Readers,
    machine::Machine,
    message::{Event, MachineAt, ReplicaAt},
    net::Net,
    restore::Restores,
    rng::Rng,
    setup::{self, Timing},
    streams::Streams,
    timeline::{Lane, Timeline},
    truth::Truth,
    watches::Watches,
};

/// A world that has not come to rest this long after the faults ended never will.
const REST_WITHIN_MS: u64 = 2 * 3_600_000;
/// It must stay at rest this long.
const REST_MS: u64 = 30_000;
/// How often it is looked whether it is at rest.
const LOOK_MS: u64 = 1_000;
/// An archive that is not whole this long after the faults ended never will be.
const FETCHED_WITHIN_MS: u64 = 600_000;
/// How often streams are looked at, and every how manieth time an archive is.
const LOOK_AROUND_MS: u64 = 1_000;
const ARCHIVE_LOOKS: u64 = 15;
/// A cluster that has no fabric this long after its start never will.
const FOUND_WITHIN_MS: u64 = 600_000;

/// See the module.
pub(crate) struct World {
    pub(crate) context: Context,
    pub(crate) timing: Timing,
    pub(crate) machines: Vec<Machine>,
    /// Of the machines' nodes.
    pub(crate) names: Vec<String>,
    pub(crate) group: Group,
    pub(crate) streams: Streams,
    pub(crate) truth: Truth,
    pub(crate) inbox: Inbox,
    pub(crate) control: Control,
    pub(crate) operations: Vec<Operation>,
    pub(crate) history: History,
    pub(crate) draws: Draws,
    pub(crate) faults: Coverage,
    /// Faults are over.
    pub(crate) healed: bool,
    pub(crate) jobs: usize,
    /// The replica whose disk is corrupt, until that is found out and mended.
    pub(crate) weakened: Option<ReplicaAt>,
    /// Splits of the network so far.
    pub(crate) splits: u64,
    /// New replicas that were asked for, by address, and whom each stands in for.
    pub(crate) replacing: BTreeMap<String, Option<ReplicaAt>>,
    pub(crate) restores: Restores,
    pub(crate) watches: Watches,
    pub(crate) readers: Readers,
    healed_ms: u64,
    /// How often it was looked around.
    looks: u64,
    began: Instant,
}

/// What to run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    /// Draws to leave out.
    pub(crate) drop: BTreeSet<Draw>,
    /// For how long faults are on; drawn where it is not said.
    pub(crate) minutes: Option<u64>,
    /// How many lines of the trace are kept.
    pub(crate) tail: usize,
}

/// How often which fault fell into which phase.
pub(crate) type Coverage = BTreeMap<(&'static str, &'static str), u64>;

/// What a run gave.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) seed: u64,
    /// As the options had it.
    pub(crate) minutes: Option<u64>,
    pub(crate) simulated_ms: u64,
    pub(crate) digest: u64,
    pub(crate) state_hash: u128,
    pub(crate) findings: Vec<Finding>,
    pub(crate) checked: Checked,
    /// The last lines of the trace before the first finding, or of all.
    pub(crate) tail: Vec<String>,
    pub(crate) faults: Coverage,
    pub(crate) history: History,
    pub(crate) timeline: Timeline,
    /// Draws that happened.
    pub(crate) draws: Vec<Draw>,
    pub(crate) entries: u64,
    pub(crate) launches: u64,
}

impl Outcome {
    /// What names the run, on the command line.
    pub(crate) fn arguments(&self) -> String {
        let minutes = self.minutes.map(|minutes| format!(" --minutes {minutes}"));
        format!("--seed {}{}", self.seed, minutes.unwrap_or_default())
    }
}

/// Runs the world of a seed to its end, or to its first finding.
pub(crate) fn run(options: &Options) -> Outcome {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true);
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&options.seed.to_le_bytes()));
    let runtime = builder.build().expect("a runtime without IO");
    runtime.block_on(live(options))
}

async fn live(options: &Options) -> Outcome {
    let mut world = World::new(options);
    let began_ms = world.context.now_ms;
    while world.machines.is_empty() && world.context.findings.is_empty() {
        world.step().await;
        if !world.control.core.cluster().nodes().is_empty() {
            world.people();
        } else if world.context.now_ms > began_ms + FOUND_WITHIN_MS {
            checks::unrest(&mut world);
        }
    }
    let drawn_ms = world.context.rng.between(120_000, 600_000);
    let faults_ms = options.minutes.map_or(drawn_ms, |minutes| minutes * 60_000);
    world.context.later(faults_ms, Event::Heal);
    world.may_restore(faults_ms);
    world.until_rest(began_ms + faults_ms + REST_WITHIN_MS).await;
    if world.context.findings.is_empty() {
        checks::at_end(&mut world);
        world.look_at_last();
    }
    Outcome { minutes: options.minutes, ..world.outcome(options.seed, began_ms) }
}

impl World {
    fn new(options: &Options) -> World {
        let mut context = Context::new(options.seed, options.tail);
        let timing = Timing::draw(&mut context.rng);
        let fabric = setup::fabric(&mut context.rng);
        let inbox = Inbox::default();
        let net = Net::new(Rng::new(context.rng.next()), inbox.clone());
        let truth = Truth::new(inbox.clone());
        let group = Group::new(net, inbox.clone(), truth.clone(), timing);
        let mut world = World {
            context,
            timing,
            machines: Vec::new(),
            names: fabric.nodes.iter().map(|node| node.name.clone()).collect(),
            group,
            streams: Streams::default(),
            truth,
            inbox,
            control: Control::default(),
            operations: Vec::new(),
            history: History::default(),
            draws: Draws::new(options.seed, options.drop.clone()),
            faults: Coverage::new(),
            healed: false,
            jobs: 0,
            weakened: None,
            splits: 0,
            replacing: BTreeMap::new(),
            restores: Restores::default(),
            watches: Watches::default(),
            readers: Readers::default(),
            healed_ms: 0,
            looks: 0,
            began: Instant::now(),
        };
        world.found();
        world.begin(Command::SetFabric(fabric));
        world.context.later(2_000, Event::Tend);
        world
    }

    /// The cluster has its fabric: its machines come, and then clients and faults.
    fn people(&mut self) {
        let half_ppm = self.timing.drift_ppm * 9 / 20;
        let cluster = self.control.core.cluster();
        let nodes = self.names.iter().map(|name| {
            let node = cluster.node_named(name).expect("the fabric has it");
            (node.id, node.gpus.len() as u32)
        });
        let nodes: Vec<(NodeId, u32)> = nodes.collect();
        for (at, (node, gpus)) in nodes.into_iter().enumerate() {
            let drift_ppm = self.context.rng.between(0, 2 * half_ppm) as i64 - half_ppm as i64;
            let mut machine = Machine::new(at, node, gpus, drift_ppm);
            machine.booted(&self.context);
            self.machines.push(machine);
            self.context.later(10, Event::StartAgent { machine: at });
        }
        self.context.later(200, Event::Operate);
        self.context.later(5_000, Event::Fault);
        self.context.later(1_000, Event::LookAround);
    }

    /// Now and then: what lasts, and no single event shows.
    fn look_around(&mut self) {
        self.context.later(LOOK_AROUND_MS, Event::LookAround);
        self.looks += 1;
        self.look_at_watches();
        if self.looks.is_multiple_of(ARCHIVE_LOOKS) {
            let at = (self.looks / ARCHIVE_LOOKS) as usize % self.group.seats.len();
            self.check_archive(at, false);
        }
    }

    /// At rest: streams have said all, and every archive is whole.
    fn look_at_last(&mut self) {
        self.verify_now();
        self.check_watches();
        for at in self.group.active() {
            self.check_archive(at, true);
        }
    }

    async fn until_rest(&mut self, until_ms: u64) {
        let mut rest_ms = None;
        let mut looked_ms = 0;
        while self.context.findings.is_empty() {
            self.step().await;
            let now_ms = self.context.now_ms;
            if !self.healed || now_ms < looked_ms + LOOK_MS {
                continue;
            }
            looked_ms = now_ms;
            let fetching =
                now_ms < self.healed_ms + FETCHED_WITHIN_MS && !self.archives_are_whole();
            rest_ms = (checks::at_rest(self) && !fetching).then(|| rest_ms.unwrap_or(now_ms));
            let rested_ms = rest_ms.map_or(0, |since_ms| now_ms - since_ms);
            // An instance may have ended just now, and the leader has not heard of it.
            let settled = || rested_ms > 2 * REST_MS || checks::diverging(self).is_empty();
            if rested_ms >= REST_MS && settled() {
                return;
            }
            if now_ms > until_ms {
                checks::unrest(self);
            }
        }
    }

    fn outcome(self, seed: u64, began_ms: u64) -> Outcome {
        let mut faults = self.faults;
        let (lost, doubled) = self.group.net().counts();
        faults.insert(("message lost", "running"), lost);
        faults.insert(("message doubled", "running"), doubled);
        Outcome {
            seed,
            minutes: None,
            simulated_ms: self.context.now_ms - began_ms,
            digest: self.context.digest(),
            state_hash: self.control.core.cluster().state_hash(),
            tail: self.context.tail.iter().cloned().collect(),
            findings: self.context.findings,
            checked: self.context.checked,
            faults,
            history: self.history,
            timeline: self.context.timeline.closed(self.context.now_ms),
            draws: self.draws.happened(),
            entries: self.control.entries.len() as u64,
            launches: self.context.journal.launches,
        }
    }

    /// Until the next event, or until a replica has left word.
    async fn step(&mut self) {
        let start_ms = self.context.start_ms;
        let next_ms = self.context.events.next_ms().unwrap_or(self.context.now_ms + LOOK_MS);
        let at = self.began + Duration::from_millis(next_ms - start_ms);
        tokio::select! {
            biased;
            () = self.inbox.came() => {}
            () = sleep_until(at) => {}
        }
        self.context.now_ms = start_ms + self.began.elapsed().as_millis() as u64;
        while let Some(arrived) = self.inbox.take() {
            self.arrived(arrived);
        }
        self.check_waiting();
        while let Some(event) = self.context.events.take_due(self.context.now_ms) {
            self.happen(event);
        }
    }

    fn arrived(&mut self, arrived: Arrived) {
        match arrived {
            Arrived::Applied => self.applied(),
            Arrived::Said { session, message } => self.said(session, message),
            Arrived::HungUp { session } => self.hung_up(session),
            Arrived::Answered { operation, replica, told } => {
                self.answers(operation, replica, told);
            }
            Arrived::Voted { voter, term, candidate } => self.check_vote(voter, term, candidate),
            Arrived::BackedUp { bytes } => self.backed_up(bytes),
            Arrived::Made { replica, life, made } => self.made(replica, life, made),
            Arrived::Watched { watch, stream, shown } => self.watch_says(watch, stream, shown),
            Arrived::LogLine { reader, stream, line } => self.log_line(reader, stream, line),
            Arrived::Opened { replica, life, shell } => self.opened(replica, life, shell),
            Arrived::Refused { replica, life, why } => self.refused(replica, life, &why),
            Arrived::Ended { replica, life, why } => self.ended(replica, life, &why),
        }
    }

    fn happen(&mut self, event: Event) {
        if let Some(thaw_ms) = self.put_off(&event) {
            return self.context.events.add(thaw_ms, event);
        }
        self.carry_out(event);
        for killed in std::mem::take(&mut self.context.killed) {
            checks::notice(self, killed);
        }
    }

    fn carry_out(&mut self, event: Event) {
        let World { machines, context, timing, .. } = self;
        match event {
            Event::PowerOn { machine } => {
                machines[machine].power_on(context);
                context.later(500, Event::StartAgent { machine });
            }
            Event::StartAgent { machine } => machines[machine].start_agent(context),
            Event::Crash { machine } => {
                if !self.healed && machines[machine].agent.is_some() {
                    let mut rng = self.context.rng.clone();
                    self.kill_agent(machine, "agent died at an exit", &mut rng);
                    self.context.rng = rng;
                }
            }
            Event::Connect { machine, life } => {
                if lives(&machines[machine], life) {
                    self.connect(machine);
                }
            }
            Event::Turn { machine, life } => {
                if lives(&machines[machine], life) {
                    machines[machine].turn(timing, context);
                    context.later(500, Event::Turn { machine, life });
                }
            }
            Event::Shim { machine, key } => machines[machine].shim(key, timing, context),
            Event::News { machine, life, key } => {
                if lives(&machines[machine], life) {
                    machines[machine].news(key, timing, context);
                }
            }
            Event::LinkUp { part } => self.link_is(part, 1_000, self.healed),
            Event::Repaired { machine } => {
                machines[machine].sick = rowen_state::GpuMask::default();
                machines[machine].say_health(context);
                self.rediscover(machine);
            }
            Event::Up { machine, session, message } => self.goes_up(machine, session, message),
            Event::Down { machine, session, message } => {
                if machines[machine].link.down {
                    machines[machine].hear(session, message, timing, context);
                }
            }
            Event::Flush { session } => self.flush(session),
            Event::Loop { machine, left } => self.next_loop(machine, left),
            Event::Hangup { machine, session } => machines[machine].hangup(session, context),
            Event::Closed { session } => self.closed(session),
            Event::Mend { machine } => {
                (machines[machine].link.up, machines[machine].link.down) = (true, true);
            }
            Event::StartReplica { replica } => self.start_replica(replica),
            Event::KillReplica { replica, life, power_cut } => {
                if self.group.seats[replica].life == life {
                    self.dies(replica, power_cut);
                }
            }
            Event::Thaw { replica, life } => self.thaw(replica, life),
            Event::MendDisk { replica } => self.mend_disk(replica),
            Event::BackUp => self.back_up(),
            Event::Restore => self.restore(),
            Event::Upgrade { replica } => self.upgrade(replica),
            Event::Uncut { from, to } => self.group.net().cut(from, to, false),
            Event::Unsplit { number } => {
                if number == self.splits {
                    self.group.net().split(None);
                }
            }
            Event::Tend => self.tend(),
            Event::Operate => self.operate(),
            Event::Ask { operation, replica } => self.asked(operation, replica),
            Event::Told { operation, replica, told } => self.told(operation, replica, told),
            Event::Retry { operation } => self.ask(operation),
            Event::Watch { watch } => self.open_watch(watch),
            Event::WatchAsked { watch, replica } => self.watch_asked(watch, replica),
            Event::Shown { watch, stream, shown } => self.shown(watch, stream, shown),
            Event::WatchBroke { watch, stream } => self.watch_broke(watch, stream),
            Event::ReadLog { reader } => self.read_log(reader),
            Event::LookAround => self.look_around(),
            Event::Fault => self.fault(),
            Event::Heal => self.heal(),
        }
    }

    /// What a frozen agent would do or hear waits until it is thawed; of a frozen machine likewise
    /// what its shims would.
    fn put_off(&self, event: &Event) -> Option<u64> {
        if let Event::StartAgent { machine } | Event::Shim { machine, .. } = event {
            let thaw_ms = self.machines[*machine].frozen_ms;
            return (thaw_ms > self.context.now_ms).then_some(thaw_ms);
        }
        let (Event::Connect { machine, .. }
        | Event::Turn { machine, .. }
        | Event::News { machine, .. }
        | Event::Down { machine, .. }
        | Event::Hangup { machine, .. }) = event
        else {
            return None;
        };
        let machine = &self.machines[*machine];
        let thaw_ms = machine.frozen_until_ms.max(machine.frozen_ms);
        (thaw_ms > self.context.now_ms).then_some(thaw_ms)
    }

    /// No more faults: what was broken is mended, and clients undrain what was drained.
    fn heal(&mut self) {
        self.context.note(format_args!("faults end"));
        self.healed = true;
        self.healed_ms = self.context.now_ms;
        self.context.timeline.mark(Lane::Control, "faults end".into(), self.context.now_ms);
        for machine in 0..self.machines.len() {
            self.context.later(1, Event::Mend { machine });
            self.machines[machine].frozen_until_ms = 0;
            self.context.later(1, Event::Repaired { machine });
        }
        self.mend_replicas();
        let nodes: Vec<NodeId> = self.machines.iter().map(|machine| machine.node).collect();
        for node in nodes {
            self.begin(Command::UndrainNode(node));
        }
        let faulty = self.control.core.cluster().health();
        let faulty: Vec<Part> = faulty.map(|(part, _)| part.clone()).collect();
        faulty.into_iter().for_each(|part| self.link_is(part, 1_000, true));
    }

    /// A fault falls into a phase: what its machine is at, or the control plane.
    pub(crate) fn count(&mut self, fault: &'static str, machine: Option<MachineAt>) {
        let node = machine.map(|machine| self.machines[machine].node);
        let phase = coverage::phase(self.control.core.cluster(), node);
        let lane = machine.map_or(Lane::Control, Lane::Agent);
        self.context.timeline.mark(lane, fault.into(), self.context.now_ms);
        *self.faults.entry((fault, phase)).or_default() += 1;
    }
}

fn lives(machine: &Machine, life: u64) -> bool {
    machine.agent.as_ref().is_some_and(|agent| agent.life == life)
}
