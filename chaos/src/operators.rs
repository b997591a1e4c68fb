//! Who looks after the replicas: founds the group, starts again what stopped, replaces what its
//! disk has failed, takes out what is to go. Does nothing that a person or systemd would not do.

use std::{collections::BTreeSet, sync::Arc};

use rowen_raft::{Member, ReplicaId};
use rowen_server::Shell;
use rowen_state::{Code, Command, Reply, codec::READS_VERSION};

use crate::{
    group::address,
    invariant::Invariant,
    message::{Event, ReplicaAt},
    rng::Rng,
    world::World,
};

/// As many as a group may have.
const REPLICAS_MAX: usize = 7;
/// How often the operator looks.
const TEND_MS: u64 = 2_000;
/// One acknowledgement in so many is held against the disks: reading whole logs takes its time.
const SAMPLED: u64 = 8;

impl World {
    /// The first replicas.
    pub(crate) fn found(&mut self) {
        let mut rng = self.own_rng();
        let count = rng.pick(&[3, 3, 3, 5, 5, 7]).expect("not empty");
        for id in 1..=count {
            self.group.seat(id, self.context.now_ms, &mut rng);
        }
        let members = self
            .group
            .seats
            .iter()
            .map(|seat| Member { id: ReplicaId(seat.id), addr: seat.addr.clone() });
        let members: Vec<Member> = members.collect();
        self.begin_old(&mut rng);
        for at in 0..self.group.seats.len() {
            let founders = (at == 0).then(|| members.clone());
            self.group.start(at, founders, &mut rng);
        }
    }

    /// Some clusters are of an older build at first, or partly, and are upgraded one by one.
    fn begin_old(&mut self, rng: &mut Rng) {
        if !rng.chance(40) {
            return;
        }
        for at in 0..self.group.seats.len() {
            if rng.chance(70) {
                self.group.seats[at].reads = READS_VERSION - 1;
                let in_ms = rng.between(10_000, 150_000);
                self.context.later(in_ms, Event::Upgrade { replica: at });
            }
        }
    }

    /// The operator stops a replica and starts it with the newer build.
    pub(crate) fn upgrade(&mut self, at: ReplicaAt) {
        if self.group.seats[at].reads == READS_VERSION {
            return;
        }
        self.count("replica upgraded", None);
        self.context.note(format_args!("r{at}: is upgraded"));
        let mut rng = self.own_rng();
        self.kill_replica(at, false, &mut rng);
        self.group.seats[at].reads = READS_VERSION;
    }

    pub(crate) fn own_rng(&mut self) -> Rng {
        Rng::new(self.context.rng.next())
    }

    pub(crate) fn start_replica(&mut self, at: ReplicaAt) {
        if self.group.seats[at].id == 0 && self.group.seats[at].process.is_none() {
            return self.make(); // if it is to be made of a backup
        }
        let seat = &self.group.seats[at];
        let unnamed = seat.id == 0; // it asked to join and has no id yet
        let gone = seat.retired && !self.is_member(at);
        if seat.process.is_some() || seat.damaged || unnamed || gone {
            return;
        }
        // What is misdirected from here on would be damage of the next life, when all of this one
        // is mended.
        seat.disk.steady();
        let mut rng = self.own_rng();
        // The first one founds the group at its first start that gets so far.
        let founding = at == 0 && self.control.entries.is_empty();
        let founders = (founding && self.restores.first_seat == 0).then(|| {
            let seats = self.group.seats.iter();
            seats.map(|seat| Member { id: ReplicaId(seat.id), addr: seat.addr.clone() }).collect()
        });
        self.group.start(at, founders, &mut rng);
    }

    fn is_member(&self, at: ReplicaAt) -> bool {
        let id = ReplicaId(self.group.seats[at].id);
        let members = self.group.members();
        members.is_empty() || members.iter().any(|status| status.member.id == id)
    }

    /// A replica is up.
    pub(crate) fn opened(&mut self, at: ReplicaAt, life: u64, shell: Arc<Shell>) {
        let seat = &mut self.group.seats[at];
        if seat.life != life || seat.process.is_none() {
            return;
        }
        let metrics = shell.replica().metrics();
        seat.shell = Some(shell);
        let (last, matched) = (metrics.last_log.unwrap_or(0), seat.matched);
        self.context.note(format_args!("r{at}: up, log to #{last}"));
        self.context.checked.add(Invariant::NothingTruncated, 1);
        if last < matched && !metrics.recovering {
            let what = format!("replica {at} had #{matched} on disk and is up with #{last}");
            self.context.finding(Invariant::NothingTruncated, what);
        }
        if self.weakened == Some(at) && life > 1 {
            self.weakened = None; // what was flipped is of no more use to anybody
        }
    }

    /// A replica does not start.
    pub(crate) fn refused(&mut self, at: ReplicaAt, life: u64, why: &str) {
        if self.group.seats[at].life != life {
            return;
        }
        self.context.note(format_args!("r{at}: refuses to start: {why}"));
        self.ends(at, why);
    }

    /// A replica stopped itself.
    pub(crate) fn ended(&mut self, at: ReplicaAt, life: u64, why: &str) {
        if self.group.seats[at].life != life || self.group.seats[at].process.is_none() {
            return;
        }
        self.context.note(format_args!("r{at}: stopped itself: {why}"));
        if why.contains("panicked") || why.contains("the majority's is") {
            self.context.finding(Invariant::of_panic(why), format!("replica {at}: {why}"));
        }
        self.ends(at, why);
    }

    fn ends(&mut self, at: ReplicaAt, why: &str) {
        let power_cut = self.group.seats[at].dying.take().unwrap_or(false);
        let mut rng = self.own_rng();
        self.kill_replica(at, power_cut, &mut rng);
        // A log, a torn end of one, a snapshot.
        let damage = ["corrupt", "accept_torn_tail", "restore this replica"];
        if damage.iter().any(|word| why.contains(word)) {
            // One that is to go anyway is not waited for: its corrupt disk no longer counts as weak.
            if self.weakened != Some(at) && !self.group.seats[at].retired {
                let what = format!("replica {at} refuses a disk that nobody touched: {why}");
                self.context.finding(Invariant::NothingTruncated, what);
            }
            self.group.seats[at].damaged = true;
            self.count("replica refused its disk", None);
        }
    }

    /// One that was to die in a write dies now at the latest.
    pub(crate) fn dies(&mut self, at: ReplicaAt, power_cut: bool) {
        let mut rng = self.own_rng();
        self.group.seats[at].dying = None;
        self.kill_replica(at, power_cut, &mut rng);
    }

    pub(crate) fn thaw(&mut self, at: ReplicaAt, life: u64) {
        let seat = &self.group.seats[at];
        if let Some(process) = seat.process.as_ref().filter(|_| seat.life == life) {
            process.thaw();
            self.context.note(format_args!("r{at}: thawed"));
        }
    }

    pub(crate) fn mend_disk(&mut self, at: ReplicaAt) {
        let disk = &self.group.seats[at].disk;
        disk.fill(false);
        disk.fail_syncs(false);
        let most = std::time::Duration::from_millis(2);
        disk.slow(most / 4, most);
    }

    /// Asks for one more replica, in the place of `old` if that is given.
    pub(crate) fn replace(&mut self, old: Option<ReplicaAt>) {
        if !self.replacing.is_empty() {
            return;
        }
        let addr = address(self.group.seats.len());
        let mut rng = self.own_rng();
        let at = self.group.seat(0, self.context.now_ms, &mut rng);
        self.group.seats[at].retired = true; // until it has an id
        self.count(if old.is_some() { "replica replaced" } else { "replica added" }, None);
        self.context.note(format_args!("{addr} is to join in the place of {old:?}"));
        self.replacing.insert(addr.clone(), old);
        self.begin(Command::AdmitReplica { id: None, addr });
    }

    /// The new one has its id, or cannot have one.
    pub(crate) fn admitted(&mut self, addr: &str, answer: Result<Reply, Code>) {
        let old = self.replacing.remove(addr).flatten();
        let Some(at) = self.group.at_addr(addr) else { return };
        if let Ok(Reply::Replica(id)) = answer {
            self.group.seats[at].id = id.0;
            self.group.seats[at].retired = false;
            self.start_replica(at);
            if let Some(old) = old.filter(|old| !self.group.seats[*old].retired) {
                self.retire(old);
            }
        }
    }

    /// The operator looks after the group.
    pub(crate) fn tend(&mut self) {
        self.context.later(TEND_MS, Event::Tend);
        self.grow_again();
        if self.healed {
            self.mend_links(); // what was said of one last may have been overtaken on its way
        }
        let damaged = self.group.active().into_iter().find(|at| self.group.seats[*at].damaged);
        match damaged {
            // No room for one more beside it: it goes first.
            Some(at) if self.group.active().len() >= REPLICAS_MAX => self.retire(at),
            Some(at) => self.replace(Some(at)),
            None => {}
        }
        if let Some(at) = self.weakened {
            let seat = &self.group.seats[at];
            if seat.retired {
                self.weakened = None;
            } else if seat.shell.is_some() && (self.healed || self.context.rng.chance(10)) {
                let mut rng = self.own_rng();
                self.kill_replica(at, false, &mut rng);
            }
        }
        if self.group.leader().is_some() {
            for at in 0..self.group.seats.len() {
                let seat = &self.group.seats[at];
                if seat.retired && seat.process.is_some() && !self.is_member(at) {
                    self.context.note(format_args!("r{at}: is turned off"));
                    self.group.kill(at, false);
                    self.streams_end(at);
                    self.watches_end(at);
                    self.readers_end(at);
                }
            }
        }
    }

    /// The faults are over.
    pub(crate) fn mend_replicas(&mut self) {
        self.group.net().calm();
        for at in 0..self.group.seats.len() {
            self.mend_disk(at);
            self.upgrade(at);
            let seat = &mut self.group.seats[at];
            if let Some(process) = &seat.process {
                process.thaw();
            }
            if seat.dying.take().is_some() {
                let mut rng = self.own_rng();
                self.kill_replica(at, true, &mut rng);
            }
            self.context.later(100, Event::StartReplica { replica: at });
        }
    }

    /// A vote is on its voter's disk before anybody hears of it.
    pub(crate) fn check_vote(&mut self, voter: u64, term: u64, candidate: u64) {
        let at = self.group.seats.iter().rposition(|seat| seat.id == voter);
        let at = at.expect("a replica that votes has a seat");
        if self.weakened == Some(at) || self.group.seats[at].damaged {
            return;
        }
        self.context.checked.add(Invariant::OnQuorum, 1);
        let on_disk = self.group.durable_vote(at);
        if on_disk.is_none_or(|(kept, whom)| kept < term || (kept == term && whom != candidate)) {
            let what = format!(
                "replica {at} voted for {candidate} in term {term}, and has {on_disk:?} on disk"
            );
            self.context.finding(Invariant::OnQuorum, what);
        }
    }

    /// What was acknowledged is on the disks of a majority.
    pub(crate) fn check_on_quorum(&mut self, index: u64) {
        let members = self.group.members();
        let active = self.group.active();
        let voters: BTreeSet<u64> =
            members.iter().filter(|status| status.voter).map(|status| status.member.id.0).collect();
        let wanted: BTreeSet<u64> = active.iter().map(|at| self.group.seats[*at].id).collect();
        let settled = voters == wanted && members.len() == voters.len();
        if !settled || self.weakened.is_some() || self.context.rng.between(1, SAMPLED) > 1 {
            return;
        }
        self.context.checked.add(Invariant::OnQuorum, 1);
        let has = |at: &&ReplicaAt| self.group.durable_last(**at) >= Some(index);
        let on = active.iter().filter(has).count();
        if on <= active.len() / 2 {
            let what =
                format!("#{index} was acknowledged and is on {on} of {} disks", active.len());
            self.context.finding(Invariant::OnQuorum, what);
        }
    }
}
