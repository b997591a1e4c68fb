//! What must hold of the log: a state of its own is built from it, and looked at after each entry.

use std::collections::BTreeMap;

use rowen_server::Core;
use rowen_state::{AllocationId, Cluster, Command, Entry, JobId, JobState, Reply, RequestId};

use crate::{
    group::WALL_MS,
    invariant::Invariant,
    truth::{Fresh, News},
    watches::Look,
    world::World,
};

/// What an agent says of a task whose shim ended it because no leader was heard.
pub(crate) const LEASE_RAN_OUT: &str = "the node lease ran out";
/// What `Cluster::verify` looks at after each entry, and the checks beside it.
const VERIFIED: [Invariant; 7] = [
    Invariant::OneAllocation,
    Invariant::NotTooEarly,
    Invariant::AllOrNone,
    Invariant::EndedStays,
    Invariant::Notice,
    Invariant::TimeAddsUp,
    Invariant::SnapshotReplays,
];

/// With fewer rows the state is verified after each entry, with twice as many after every second.
const VERIFY_ROWS: u64 = 300;

/// The log so far, and what follows from it.
#[derive(Debug, Default)]
pub(crate) struct Control {
    pub(crate) core: Core,
    /// Every entry, so that the state can be built again from what it began with.
    pub(crate) entries: Vec<(u64, Entry)>,
    /// What that was, if not nothing.
    pub(crate) began: Core,
    /// Where each client's request is in the log, the first time.
    requests: BTreeMap<RequestId, u64>,
    ended: BTreeMap<JobId, JobState>,
    /// What each job looked like to its watchers, and from which index on.
    looks: BTreeMap<JobId, Vec<(u64, Look)>>,
    /// What was given away for keeping: by key, with the index of the entry that wrote it.
    pub(crate) kept: BTreeMap<Vec<u8>, (u64, Vec<u8>)>,
    /// When, in true time, the log first said that an allocation is to end.
    pub(crate) stopped_ms: BTreeMap<AllocationId, u64>,
}

impl Control {
    /// Where a request is in the log.
    pub(crate) fn index_of(&self, request: &RequestId) -> Option<u64> {
        self.requests.get(request).copied()
    }

    /// What a job looked like after the entry at `index`.
    pub(crate) fn look(&self, job: JobId, index: u64) -> Option<&Look> {
        let looks = self.looks.get(&job)?;
        looks.iter().rfind(|(from, _)| *from <= index).map(|(_, look)| look)
    }

    /// All goes on from this state, and with this archive.
    pub(crate) fn go_back(&mut self, cluster: &Cluster, kept: BTreeMap<Vec<u8>, (u64, Vec<u8>)>) {
        let index = cluster.applied();
        let snapshot = cluster.to_snapshot().expect("a small state");
        self.began = Core::default();
        self.began.restore(&snapshot).expect("it was just written");
        self.core = self.began.clone();
        self.entries.clear();
        self.kept = kept;
        self.requests.retain(|_, at| *at <= index);
        for looks in self.looks.values_mut() {
            looks.retain(|(from, _)| *from <= index);
        }
        self.looks.retain(|_, looks| !looks.is_empty());
        let ended = cluster.jobs().values().filter(|job| job.state.ended());
        self.ended = ended.map(|job| (job.id, job.state)).collect();
        let stops = |id| cluster.allocations().get(id).is_some_and(|a| a.stop.is_some());
        self.stopped_ms.retain(|id, _| stops(*id));
    }

    fn note_looks(&mut self, index: u64) {
        let Control { core, ended, looks, .. } = self;
        for (id, job) in core.cluster().jobs().iter().filter(|(id, _)| !ended.contains_key(id)) {
            let looks = looks.entry(id).or_default();
            if looks.last().is_none_or(|(_, last)| !last.is_of(job)) {
                looks.push((index, Look::of(job)));
            }
        }
    }
}

impl World {
    /// Replicas have applied something.
    pub(crate) fn applied(&mut self) {
        let News { fresh, wrong, compared, restored } = self.truth.news();
        self.context.checked.add(Invariant::SameHash, compared);
        self.context.checked.add(Invariant::SnapshotReplays, restored);
        for finding in wrong {
            self.context.finding(finding.invariant, finding.what);
        }
        for Fresh { index, entry, state_hash } in fresh {
            let step = self.control.core.apply_entry(index, &entry);
            // How far the leader's stamp is from true time: what it says was decided then.
            let off_ms = entry.at_ms as i64 - (WALL_MS + self.context.now_ms) as i64;
            let (word, answer) = (word(&entry.command), &step.answer);
            self.context.note(format_args!("#{index} {off_ms:+} ms {word}: {answer:?}"));
            if self.control.core.cluster().state_hash() != state_hash {
                let what = format!("the log replayed gives another state at #{index}");
                self.context.finding(Invariant::SameHash, what);
            }
            if let Some(request) = &entry.request {
                self.control.requests.entry(request.clone()).or_insert(index);
            }
            self.control.entries.push((index, entry));
            for record in step.records {
                self.control.kept.insert(record.key, (index, record.value));
            }
            self.control.note_looks(index);
            self.note_stops();
            self.check_commit(index);
        }
    }

    fn note_stops(&mut self) {
        let Control { core, stopped_ms, .. } = &mut self.control;
        for allocation in core.cluster().allocations().values().filter(|a| a.stop.is_some()) {
            stopped_ms.entry(allocation.id).or_insert(self.context.now_ms);
        }
    }

    /// A state of many rows is looked at after every few entries: what is wrong in it stays so.
    fn verify(&mut self, index: u64) {
        let rows = self.operations.len() + self.control.core.cluster().jobs().len();
        if index.is_multiple_of(1 + rows as u64 / VERIFY_ROWS) {
            self.verify_now();
        }
    }

    /// What must hold of the whole state.
    pub(crate) fn verify_now(&mut self) {
        for invariant in VERIFIED {
            self.context.checked.add(invariant, 1);
        }
        for violation in self.control.core.cluster().verify() {
            let invariant = Invariant::of_verify(violation.invariant);
            self.context.finding(invariant, format!("verify: {violation}"));
        }
    }

    /// What must hold after each entry.
    fn check_commit(&mut self, index: u64) {
        self.verify(index);
        let World { control, context, machines, .. } = self;
        let cluster = control.core.cluster();
        for allocation in cluster.allocations().values().filter(|a| a.epoch.index == index) {
            for task in &allocation.tasks {
                let machine = machines.iter().position(|machine| machine.node == task.node);
                let machine = machine.expect("the fabric stays");
                let node = cluster.nodes().get(task.node).expect("the fabric stays");
                let sick = task.gpus.without(node.mask(|slot| slot.healthy));
                if !node.schedulable() || !sick.is_empty() {
                    let what = format!(
                        "bound where nothing may go: allocation {} at #{index} on {} ({:?}, {:?}, sick {sick:?})",
                        allocation.id, node.name, node.liveness, node.duty
                    );
                    context.finding(Invariant::NothingLost, what);
                }
                if let Some(other) = context.journal.living_on(machine, task.gpus) {
                    let what = format!(
                        "bound too early: allocation {} at #{index} has GPUs of machine {machine} where {other:?} still runs",
                        allocation.id
                    );
                    context.finding(Invariant::NotTooEarly, what);
                }
            }
        }
        for (machine, key) in context.journal.all_living() {
            let allocation = cluster.allocations().get(AllocationId(key.allocation));
            let task = allocation.and_then(|allocation| allocation.tasks.get(key.rank as usize));
            if !task.is_some_and(|task| task.phase.live()) {
                let what = format!(
                    "let go too early at #{index}: {key:?} still runs on machine {machine}"
                );
                context.finding(Invariant::NotTooEarly, what);
            }
        }
        for (id, job) in cluster.jobs().iter() {
            let ended = control.ended.get(&id).copied();
            if ended.is_some_and(|ended| ended != job.state) {
                let what =
                    format!("ended is not ended: job {id} was {ended:?}, now {:?}", job.state);
                context.finding(Invariant::EndedStays, what);
            }
            if job.state.ended() && ended.is_none() {
                control.ended.insert(id, job.state);
                let ran = context.journal.done(id, job.attempt);
                let whole = job.spec.shape.admits_size(job.spec.workers, ran);
                if job.state == JobState::Completed && !whole {
                    let what = format!(
                        "completed unfinished: job {id}: {ran} of {} workers ran to their end",
                        job.spec.workers
                    );
                    context.finding(Invariant::AllOrNone, what);
                }
            }
        }
    }
}

/// A command in a word or two, for the trace.
fn word(command: &Command) -> String {
    match command {
        Command::Report(reports) => {
            let told = reports.iter().map(|r| format!("{}/{} {:?}", r.allocation, r.rank, r.phase));
            format!("report {}", told.collect::<Vec<_>>().join(", "))
        }
        Command::CommitPlan(plan) => {
            format!("plan of {} decisions on #{}", plan.decisions.len(), plan.based_on)
        }
        Command::SubmitJob(spec) => {
            format!("submit {} {} × {}", spec.name, spec.workers, spec.resources.gpus)
        }
        Command::SetFabric(_) => "fabric".into(),
        Command::DeployFiller(spec) => format!("deploy {}", spec.name),
        Command::NodeUp(report) => format!("node {} up, boot {}", report.node, report.boot_id),
        other => format!("{other:?}"),
    }
}

/// The job that an answer speaks of.
pub(crate) fn job_of(answer: &Result<Reply, rowen_state::Code>) -> Option<JobId> {
    match answer {
        Ok(Reply::Job(id)) => Some(*id),
        _ => None,
    }
}
