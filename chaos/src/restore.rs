//! A cluster that goes on from a backup: every replica is gone for good, one with an empty disk is
//! made of the newest backup as `rowen cluster restore` makes it, and others join it.
//!
//! What was acknowledged after the backup is lost, and only that: the truth goes back to the
//! backup's index. What the lost allocations left running is still fenced by the devices' journal.

use std::collections::BTreeSet;

use rowen_agent::core::{Epoch, TaskKey};
use rowen_raft::sim::Process;
use rowen_server::{Shell, backup};
use rowen_state::{Allocation, Cluster, Code, Command, Owner};

use crate::{
    clients::request_id,
    group::{WALL_MS, raft_config, server_config},
    history::History,
    inbox::Arrived,
    invariant::Invariant,
    message::{Event, ReplicaAt},
    setup::LONGEST_LEASE_MS,
    world::World,
};

/// Worlds in which it happens, of a hundred.
const RESTORED_PERCENT: u64 = 12;
/// As many replicas as a restored cluster gets again.
const REPLICAS: usize = 3;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Restores {
    backup: Option<Vec<u8>>,
    /// Who is being made of it.
    making: Option<(ReplicaAt, Vec<u8>)>,
    /// Places before this one are of a cluster that is no more.
    pub(crate) first_seat: ReplicaAt,
    /// The cluster is not yet as large again as it should be.
    pub(crate) small: bool,
}

impl World {
    /// Draws whether and when.
    pub(crate) fn may_restore(&mut self, faults_ms: u64) {
        if !self.context.rng.chance(RESTORED_PERCENT) {
            return;
        }
        let restore_ms = self.context.rng.between(60_000, faults_ms * 9 / 10);
        let before_ms = self.context.rng.between(2_000, 40_000);
        self.context.later(restore_ms - before_ms, Event::BackUp);
        self.context.later(restore_ms, Event::Restore);
    }

    /// Somebody asks a replica for a backup, and asks again until there is one.
    pub(crate) fn back_up(&mut self) {
        if self.restores.backup.is_some() || self.healed {
            return;
        }
        self.context.later(1_500, Event::BackUp);
        let at = self.context.rng.pick(&self.group.active()).expect("a group is never empty");
        let seat = &self.group.seats[at];
        let (Some(shell), Some(process)) = (&seat.shell, &seat.process) else { return };
        let (shell, inbox) = (shell.clone(), self.inbox.clone());
        process.spawn(async move {
            if let Ok(bytes) = shell.backup().await {
                drop(shell);
                inbox.push(Arrived::BackedUp { bytes });
            }
        });
    }

    /// It holds what was so at its index.
    pub(crate) fn backed_up(&mut self, bytes: Vec<u8>) {
        if self.restores.backup.is_some() || self.restores.first_seat > 0 {
            return;
        }
        let read = match backup::read(&bytes) {
            Ok(read) => read,
            Err(error) => {
                let what = format!("a backup cannot be read: {error}");
                return self.context.finding(Invariant::SnapshotReplays, what);
            }
        };
        let index = read.cluster.applied();
        let same = self.truth.hash_at(index) == Some(read.cluster.state_hash());
        let kept = &self.control.kept;
        let strange = read
            .records
            .iter()
            .find(|record| kept.get(&record.key).is_none_or(|(_, value)| *value != record.value));
        let found = (!same || strange.is_some()).then(|| {
            format!("a backup of #{index} is not of that index: same state {same}, {strange:?}")
        });
        self.context.check(Invariant::SnapshotReplays, found);
        self.context.note(format_args!("a backup of #{index}, {} bytes", bytes.len()));
        self.restores.backup = Some(bytes);
    }

    /// Whether there is a backup that the cluster will go back to: until then nothing is done that
    /// a restore cannot know of and that agents go by for long.
    pub(crate) fn will_restore(&self) -> bool {
        self.restores.backup.is_some()
    }

    /// Every replica is gone; one begins with the backup.
    pub(crate) fn restore(&mut self) {
        if self.healed {
            return;
        }
        let Some(bytes) = self.restores.backup.take() else { return };
        self.applied();
        self.count("restored from a backup", None);
        for at in 0..self.group.seats.len() {
            self.group.kill(at, false);
            self.streams_end(at);
            self.watches_end(at);
            self.readers_end(at);
            let seat = &mut self.group.seats[at];
            // Damaged: nobody ever starts it again.
            (seat.retired, seat.damaged, seat.dying) = (true, true, None);
        }
        self.replacing.clear();
        self.weakened = None;
        let mut rng = self.own_rng();
        let at = self.group.seat(0, self.context.now_ms, &mut rng);
        self.restores.making = Some((at, bytes));
        (self.restores.first_seat, self.restores.small) = (at, true);
        self.make();
    }

    /// Makes the empty disk into the first replica's.
    pub(crate) fn make(&mut self) {
        let Some((at, bytes)) = self.restores.making.clone() else { return };
        let mut rng = self.own_rng();
        self.group.empty(at, rng.next());
        let seat = &mut self.group.seats[at];
        seat.life += 1;
        let process = Process::new(rng.next(), seat.clock.clone());
        seat.process = Some(process.clone());
        let unix_s = (WALL_MS + self.context.now_ms) / 1_000;
        self.go_back(&bytes, unix_s, at);
        let seat = &self.group.seats[at];
        let mut raft = raft_config(1, &self.timing);
        let (disk, life) = (seat.disk.clone(), seat.life);
        let config = server_config(1, &seat.addr, &self.timing);
        let inbox = self.inbox.clone();
        process.spawn(async move {
            let times = (unix_s, LONGEST_LEASE_MS);
            let made = Shell::restore_simulated(disk, &mut raft, &bytes, &config, times).await;
            inbox.push(Arrived::Made { replica: at, life, made: made.map(|()| raft.id.0) });
        });
    }

    /// It is made, and starts.
    pub(crate) fn made(&mut self, at: ReplicaAt, life: u64, made: Result<u64, String>) {
        if self.group.seats[at].life != life || self.group.seats[at].process.is_none() {
            return;
        }
        self.group.kill(at, false);
        match made {
            Ok(id) => {
                self.context.note(format_args!("r{at}: made of a backup, as replica {id}"));
                self.group.seats[at].id = id;
                self.restores.making = None;
                self.start_replica(at);
            }
            // A disk that is full, say: tried again.
            Err(why) => {
                self.context.note(format_args!("r{at}: cannot be made of a backup: {why}"));
                self.mend_disk(at);
                self.context.later(500, Event::StartReplica { replica: at });
            }
        }
    }

    /// One more joins, until there are enough again.
    pub(crate) fn grow_again(&mut self) {
        if !self.restores.small {
            return;
        }
        let voters = self.group.members().iter().filter(|status| status.voter).count();
        self.restores.small = voters < REPLICAS;
        if voters > 0 && self.group.active().len() < REPLICAS {
            self.replace(None);
        }
    }

    /// The truth is the backup's again.
    fn go_back(&mut self, bytes: &[u8], unix_s: u64, at: ReplicaAt) {
        let read = backup::read(bytes).expect("it was read before");
        let addr = self.group.seats[at].addr.clone();
        let timing = self.timing.initial();
        let (cluster, _) = read.cluster.reincarnate(&addr, unix_s, timing, LONGEST_LEASE_MS);
        let index = cluster.applied();
        self.context.note(format_args!("all goes back to #{index}"));
        self.truth.go_back(index, cluster.state_hash());
        self.void_operations(index);
        let records = read.records.into_iter().map(|record| (record.key, (index, record.value)));
        self.control.go_back(&cluster, records.collect());
        let jobs = cluster.allocations().values().filter_map(|allocation| match allocation.owner {
            Owner::Gang { job, attempt } => Some((job, attempt)),
            Owner::Instance { .. } => None,
        });
        let incarnation = cluster.meta().incarnation;
        self.context.journal.go_back(incarnation, &known(&cluster), &jobs.collect());
        self.roll_back_watches(index);
        self.readers.close();
    }

    /// What was acknowledged after the backup is lost, as a restore says.
    fn void_operations(&mut self, index: u64) {
        let mut kept = History::default();
        for (number, operation) in self.operations.iter_mut().enumerate() {
            let row = operation.call.map(|call| &self.history.operations[call]);
            let known = operation.command().is_some() || operation.is_timing();
            let at = match known {
                true => self.control.index_of(&request_id(number)),
                false => row.and_then(|row| row.index),
            };
            let over = operation.answer.is_some() || row.is_some_and(|row| row.return_ms.is_some());
            operation.lost |= over && at.is_none_or(|at| at > index);
            match row {
                Some(row) if !operation.lost => {
                    kept.operations.push(row.clone());
                    operation.call = Some(kept.operations.len() - 1);
                }
                _ => operation.call = None,
            }
            // Whom they speak of is no more.
            let of_members = matches!(
                operation.command(),
                Some(Command::AdmitReplica { .. } | Command::RemoveReplica(_))
            );
            if of_members && operation.answer.is_none() {
                (operation.answer, operation.lost) = (Some(Err(Code::Conflict)), true);
            }
        }
        self.history = kept;
    }
}

/// The tasks that a state has on machines.
fn known(cluster: &Cluster) -> BTreeSet<TaskKey> {
    let key = |allocation: &Allocation, rank: usize| {
        let Allocation { id, epoch, .. } = allocation;
        let epoch = Epoch { incarnation: epoch.incarnation, index: epoch.index };
        TaskKey { allocation: id.0, rank: rank as u32, epoch }
    };
    let allocations = cluster.allocations().values();
    let keys = allocations
        .flat_map(|allocation| (0..allocation.tasks.len()).map(move |rank| key(allocation, rank)));
    keys.collect()
}
