//! What the agent decides, without IO and without a clock.
//!
//! Owns the words of a node (tasks, phases, fence, node lease) and [`Core`],
//! the state a node's decisions come from. It never launches, kills, writes or
//! reads the time: the shell (and chaos) feeds it events with a time and
//! performs the [`Action`]s it returns.

mod reconcile;

use std::collections::BTreeMap;

pub use reconcile::reconcile;
use rowen_planted::{Bug, planted};

/// When GPUs were bound to an allocation; orders allocations of one GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Epoch {
    /// Rises at every restore from backup.
    pub incarnation: u64,
    /// Log index that bound the allocation.
    pub index: u64,
}

/// A GPU of this node, by ordinal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ordinal(pub u32);

/// Names one run of one worker. An exit is final for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskKey {
    /// The allocation it runs under.
    pub allocation: u64,
    /// Of the worker in its gang.
    pub rank: u32,
    /// Of the allocation.
    pub epoch: Epoch,
}

/// A task the leader wants on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// GPUs it was given.
    pub gpus: Vec<Ordinal>,
    /// Between SIGTERM and SIGKILL when the agent itself must end it.
    pub notice_ms: u64,
    /// Set when it must end.
    pub stop: Option<StopAt>,
}

/// When a task ends, on CLOCK_BOOTTIME. Only ever moved forward in time by
/// nobody: of two, the earlier wins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopAt {
    /// SIGTERM.
    pub term_at_ms: u64,
    /// SIGKILL.
    pub kill_at_ms: u64,
    /// For the notice file and for people.
    pub reason: String,
}

/// Everything that should run here; what is not in it must end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// Of the node, rises with every change.
    pub generation: u64,
    /// Of the leader that sent it.
    pub term: u64,
    /// By key.
    pub tasks: BTreeMap<TaskKey, Wanted>,
}

/// How far a task is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Being launched; its GPUs count as used.
    Starting,
    /// Its processes are up.
    Running,
    /// Its readiness probe passed.
    Ready,
    /// No process of it lives.
    Exited {
        /// 128 + signal when killed, 125 when it could not be launched.
        code: i32,
        /// Why, when it was not its own doing.
        message: String,
    },
    /// No process of it lives, through no fault of its own: the node lease ran out, the machine
    /// restarted, its shim died. Never counted as a failure of its job.
    Lost {
        /// Which of these.
        message: String,
    },
}

impl Phase {
    /// Whether no process of the task lives.
    pub fn ended(&self) -> bool {
        matches!(self, Phase::Exited { .. } | Phase::Lost { .. })
    }
}

/// A task as it is on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// GPUs it uses.
    pub gpus: Vec<Ordinal>,
    /// Between SIGTERM and SIGKILL when the agent itself must end it.
    pub notice_ms: u64,
    /// How far it is.
    pub phase: Phase,
    /// The stop its shim was told, if any.
    pub stopping: Option<StopAt>,
    /// Where an instance serves, 0 for none.
    pub port: u16,
}

impl Task {
    /// Whether a process of it may live.
    pub fn lives(&self) -> bool {
        !self.phase.ended()
    }
}

/// What the node is, as far as decisions go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// Tasks that run, and exits that are not forgotten yet.
    pub tasks: BTreeMap<TaskKey, Task>,
    /// Highest epoch seen of each GPU.
    pub fence: BTreeMap<Ordinal, Epoch>,
    /// When the node lease runs out, on CLOCK_BOOTTIME; 0: never held.
    pub lease_expires_ms: u64,
}

/// What the shell has to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write term and epochs to disk and sync them, before any later action of
    /// the list is performed: a launch the fence does not know of could run
    /// beside a newer owner after a restart.
    Persist,
    /// Start the task.
    Launch(TaskKey),
    /// Tell its shim to end it (again, if the times moved).
    Stop(TaskKey, StopAt),
    /// It will never run here: reported as an exit.
    Refuse(TaskKey, String),
}

/// Exit code of a task that could not be launched.
pub const LAUNCH_FAILED: i32 = 125;

/// A message of an older leader, which the agent does not obey.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("term {got} is older than {highest}, which this node has seen")]
pub struct StaleTerm {
    /// Of the message.
    pub got: u64,
    /// Seen by this node.
    pub highest: u64,
}

/// What survives a restart of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fence {
    /// Highest term seen.
    pub term: u64,
    /// Highest epoch seen of each GPU.
    pub epochs: BTreeMap<Ordinal, Epoch>,
}

/// The state of a node's decisions.
#[derive(Debug, Clone)]
pub struct Core {
    term: u64,
    /// None until a leader has said what it wants: until then what runs goes on.
    desired: Option<Desired>,
    observed: Observed,
    node_lease_ms: u64,
    heartbeat_seq: u64,
    /// Sent and not acknowledged: when. The lease counts from there.
    heartbeats: BTreeMap<u64, u64>,
    report_seq: u64,
    /// Tasks of which something is not acknowledged, with the report that last
    /// carried it; 0: none yet.
    unacknowledged: BTreeMap<TaskKey, u64>,
    /// When the last report went out.
    reported_ms: u64,
    /// Wanted tasks whose GPUs are not free, since when.
    waiting: BTreeMap<TaskKey, u64>,
}

/// A task whose GPUs are not free so long after all notices is given up: its
/// gang holds other nodes meanwhile.
const WAIT_MS: u64 = 60_000;

/// Heartbeats remembered while a leader is silent; older ones cannot renew.
const HEARTBEATS_MAX: usize = 64;

impl Core {
    /// A node as it finds itself at the agent's start. `tasks` are those of
    /// this boot of the machine; after a reboot they are all exited and
    /// `lease_expires_ms` is 0.
    pub fn new(fence: Fence, mut tasks: BTreeMap<TaskKey, Task>, lease_expires_ms: u64) -> Self {
        tasks.retain(|_, task| task.lives() || !planted(Bug::RestartForgetsExits));
        let unacknowledged = tasks.keys().map(|key| (*key, 0)).collect();
        let observed = Observed { tasks, fence: fence.epochs, lease_expires_ms };
        Core {
            term: fence.term,
            desired: None,
            observed,
            node_lease_ms: 0,
            heartbeat_seq: 0,
            heartbeats: BTreeMap::new(),
            report_seq: 0,
            unacknowledged,
            reported_ms: 0,
            waiting: BTreeMap::new(),
        }
    }

    /// A leader took the agent in. Everything unacknowledged goes to it anew.
    pub fn welcome(&mut self, term: u64, node_lease_ms: u64) -> Result<(), StaleTerm> {
        self.see_term(term)?;
        self.node_lease_ms = node_lease_ms;
        // What an earlier stream was asked cannot be acknowledged on this one.
        self.heartbeats.clear();
        self.unacknowledged.values_mut().for_each(|sent| *sent = 0);
        // Nor can anything of it follow. A node that left the fabric and came back counts its
        // generations from 0 again, in the same term.
        if let Some(desired) = &mut self.desired {
            desired.generation = 0;
        }
        Ok(())
    }

    /// A heartbeat leaves now: its sequence number and the generation it tells.
    pub fn heartbeat(&mut self, now: u64) -> (u64, u64) {
        self.heartbeat_seq += 1;
        self.heartbeats.insert(self.heartbeat_seq, now);
        while self.heartbeats.len() > HEARTBEATS_MAX {
            self.heartbeats.pop_first();
        }
        (self.heartbeat_seq, self.generation())
    }

    /// A quorum confirmed the leader after it got heartbeat `seq`. Returns the
    /// new expiry of the node lease if it moved.
    pub fn heartbeat_ack(&mut self, seq: u64, term: u64) -> Result<Option<u64>, StaleTerm> {
        self.see_term(term)?;
        let Some(sent_ms) = self.heartbeats.get(&seq).copied() else { return Ok(None) };
        self.heartbeats.retain(|other, _| *other > seq);
        let expires_ms = sent_ms + self.node_lease_ms;
        if expires_ms <= self.observed.lease_expires_ms {
            return Ok(None);
        }
        self.observed.lease_expires_ms = expires_ms;
        Ok(Some(expires_ms))
    }

    /// A leader's wish. One of the same term and an older generation is late
    /// and ignored: returns whether it was taken over.
    pub fn desire(&mut self, desired: Desired) -> Result<bool, StaleTerm> {
        let known_term = self.desired.as_ref().map(|known| known.term);
        self.see_term(desired.term)?;
        let late = known_term == Some(desired.term) && desired.generation < self.generation();
        if late && !planted(Bug::DropEpochCheck) {
            return Ok(false);
        }
        // An exit is final: whoever still wants the task is told again.
        for (key, task) in &self.observed.tasks {
            if !task.lives() && desired.tasks.contains_key(key) {
                self.unacknowledged.entry(*key).or_insert(0);
            }
        }
        self.desired = Some(desired);
        self.forget();
        Ok(true)
    }

    /// What to do now. The tasks it launches, stops and refuses count as such
    /// from here on: asking again returns nothing new.
    pub fn reconcile(&mut self, now: u64) -> Vec<Action> {
        let actions = reconcile(self.desired.as_ref(), &self.observed, now);
        for action in &actions {
            self.note(action);
        }
        self.give_up(now);
        actions
    }

    /// What still waits for GPUs after [`WAIT_MS`] and the notices of what uses
    /// them is told as lost, so that it is tried elsewhere. Time without a node
    /// lease does not count: nothing would be launched anyway.
    fn give_up(&mut self, now: u64) {
        let wanted = self.desired.iter().flat_map(|desired| &desired.tasks);
        let new: BTreeMap<TaskKey, &Wanted> = wanted
            .filter(|(key, _)| !self.observed.tasks.contains_key(key))
            .map(|(key, wanted)| (*key, wanted))
            .collect();
        let held = now < self.observed.lease_expires_ms;
        self.waiting.retain(|key, _| held && new.contains_key(key));
        let mut late = Vec::new();
        for (key, wanted) in new.into_iter().filter(|_| held) {
            let since = *self.waiting.entry(key).or_insert(now);
            let users = self.observed.tasks.values().filter(|task| task.lives());
            let users = users.filter(|task| task.gpus.iter().any(|gpu| wanted.gpus.contains(gpu)));
            let notice_ms = users.map(|task| task.notice_ms).max().unwrap_or(0);
            if now >= since.saturating_add(WAIT_MS).saturating_add(notice_ms) {
                late.push(key);
            }
        }
        for key in late {
            let message = "an earlier task would not leave its GPUs".to_string();
            self.note_new(key, Phase::Lost { message });
            self.unacknowledged.insert(key, 0);
        }
    }

    fn note(&mut self, action: &Action) {
        match action {
            Action::Persist => self.raise_fence(),
            Action::Launch(key) => self.note_new(*key, Phase::Starting),
            Action::Refuse(key, why) => {
                let phase = Phase::Exited { code: LAUNCH_FAILED, message: why.clone() };
                self.note_new(*key, phase);
                self.unacknowledged.insert(*key, 0);
            }
            Action::Stop(key, stop) => {
                if let Some(task) = self.observed.tasks.get_mut(key) {
                    task.stopping = Some(stop.clone());
                    if planted(Bug::ExitToldEarly) {
                        task.phase = Phase::Exited { code: 143, message: String::new() };
                        self.unacknowledged.insert(*key, 0);
                    }
                }
            }
        }
    }

    fn note_new(&mut self, key: TaskKey, phase: Phase) {
        let wanted = self.desired.as_ref().and_then(|desired| desired.tasks.get(&key));
        let wanted = wanted.expect("only desired tasks are launched or refused");
        let task = Task {
            gpus: wanted.gpus.clone(),
            notice_ms: wanted.notice_ms,
            phase,
            stopping: None,
            port: 0,
        };
        self.observed.tasks.insert(key, task);
    }

    fn raise_fence(&mut self) {
        for (key, wanted) in self.desired.iter().flat_map(|desired| &desired.tasks) {
            for gpu in &wanted.gpus {
                let seen = self.observed.fence.entry(*gpu).or_default();
                *seen = (*seen).max(key.epoch);
            }
        }
    }

    /// A task changed. Nothing follows an exit.
    pub fn observe(&mut self, key: TaskKey, phase: Phase) {
        let Some(task) = self.observed.tasks.get_mut(&key) else { return };
        let back = matches!((&task.phase, &phase), (Phase::Ready, Phase::Running));
        if !task.lives() || task.phase == phase || back {
            return;
        }
        task.phase = phase;
        self.unacknowledged.insert(key, 0);
    }

    /// Where an instance serves, told with its reports.
    pub fn observe_port(&mut self, key: TaskKey, port: u16) {
        if let Some(task) = self.observed.tasks.get_mut(&key) {
            task.port = port;
        }
    }

    /// The next report, if something is unsaid: what was never sent, and, after
    /// `resend_ms` of silence, what was not acknowledged. Starting is no news.
    pub fn report(&mut self, now: u64, resend_ms: u64) -> Option<(u64, Vec<TaskKey>)> {
        let again = now >= self.reported_ms + resend_ms;
        let due = |key: &TaskKey, sent: u64| {
            let phase = self.observed.tasks.get(key).map(|task| &task.phase);
            (sent == 0 || again) && phase.is_some_and(|phase| *phase != Phase::Starting)
        };
        let unacknowledged = self.unacknowledged.iter();
        let keys: Vec<TaskKey> =
            unacknowledged.filter(|(key, sent)| due(key, **sent)).map(|(key, _)| *key).collect();
        if keys.is_empty() {
            return None;
        }
        self.report_seq += 1;
        // News must not put off what waits for its acknowledgement.
        if again || self.unacknowledged.values().all(|sent| *sent == 0) {
            self.reported_ms = now;
        }
        for key in &keys {
            self.unacknowledged.insert(*key, self.report_seq);
        }
        Some((self.report_seq, keys))
    }

    /// The leader has report `seq` in the log. Returns the exits it now knows.
    pub fn report_ack(&mut self, seq: u64) -> Vec<TaskKey> {
        let acked = |sent: &u64| *sent == seq && seq != 0;
        let keys: Vec<TaskKey> = self
            .unacknowledged
            .iter()
            .filter(|(_, sent)| acked(sent))
            .map(|(key, _)| *key)
            .collect();
        self.unacknowledged.retain(|_, sent| !acked(sent));
        let exited = keys
            .into_iter()
            .filter(|key| self.task(key).is_some_and(|task| !task.lives()))
            .collect();
        self.forget();
        exited
    }

    /// The leader had this exit before the agent restarted.
    pub fn acknowledged(&mut self, key: TaskKey) {
        self.unacknowledged.remove(&key);
    }

    /// An exit that is acknowledged and no longer desired is not needed.
    fn forget(&mut self) {
        let Some(desired) = &self.desired else { return };
        if planted(Bug::ExitsPileUp) {
            return;
        }
        let unacknowledged = &self.unacknowledged;
        self.observed.tasks.retain(|key, task| {
            task.lives() || unacknowledged.contains_key(key) || desired.tasks.contains_key(key)
        });
    }

    fn see_term(&mut self, term: u64) -> Result<(), StaleTerm> {
        if term < self.term {
            return Err(StaleTerm { got: term, highest: self.term });
        }
        self.term = term;
        Ok(())
    }

    /// Of the desired state in force.
    pub fn generation(&self) -> u64 {
        self.desired.as_ref().map_or(0, |desired| desired.generation)
    }

    /// Highest term seen.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// What [`Action::Persist`] writes.
    pub fn fence(&self) -> Fence {
        Fence { term: self.term, epochs: self.observed.fence.clone() }
    }

    /// When the node lease runs out, on CLOCK_BOOTTIME.
    pub fn lease_expires_ms(&self) -> u64 {
        self.observed.lease_expires_ms
    }

    /// A task as it is.
    pub fn task(&self, key: &TaskKey) -> Option<&Task> {
        self.observed.tasks.get(key)
    }

    /// All tasks as they are.
    pub fn tasks(&self) -> &BTreeMap<TaskKey, Task> {
        &self.observed.tasks
    }
}

#[cfg(test)]
mod tests;
