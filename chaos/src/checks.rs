//! What must hold when the faults are over: everything converges, every job that
//! fits has run, nothing acknowledged is lost, and the log gives the same state again.

use std::collections::BTreeSet;

use rowen_server::{Core, desired_tasks};
use rowen_state::{AllocationId, Cluster, Command, Entry, FillerState, JobSpec, JobState};
use rowen_topology::Level;

use crate::{
    clients::Operation,
    control::job_of,
    invariant::{Finding, Invariant},
    linear::{self, Verdict},
    message::Killed,
    setup,
    world::World,
};

/// Whether there is nothing left to do.
pub(crate) fn at_rest(world: &World) -> bool {
    let cluster = world.control.core.cluster();
    world.healed
        && world.operations.iter().all(Operation::is_over)
        && world.group.converged().is_ok()
        && world.unended().all(|(id, state)| {
            state == JobState::Queued
                && !fits(cluster, &cluster.jobs().get(id).expect("listed").spec)
        })
        && unfilled(cluster).is_none()
}

/// It took too long: what is not at rest.
pub(crate) fn unrest(world: &mut World) {
    let cluster = world.control.core.cluster();
    let mut what = vec![];
    for (id, state) in world.unended() {
        let job = cluster.jobs().get(id).expect("listed");
        if fits(cluster, &job.spec) {
            what.push(format!("job {id} is {state:?}: {}", job.reason));
        }
    }
    what.extend(unfilled(cluster));
    what.extend(world.operations.iter().filter(|o| !o.is_over()).map(|o| format!("{:?}", o.want)));
    what.extend(world.group.converged().err());
    world.context.finding(Invariant::Converges, format!("no rest: {}", what.join("; ")));
}

/// Everything that can be said of a world at rest.
pub(crate) fn at_end(world: &mut World) {
    let mut findings: Vec<Finding> =
        diverging(world).into_iter().map(|what| Finding::new(Invariant::Converges, what)).collect();
    world.context.checked.add(Invariant::Converges, 1);
    jobs_are_as_they_should_be(world, &mut findings);
    nothing_acknowledged_is_lost(world, &mut findings);
    replay(world, &mut findings);
    linearizable(world, &mut findings);
    bounded(world, &mut findings);
    let found = findings.into_iter();
    found.for_each(|found| world.context.finding(found.invariant, found.what));
}

/// Machines on which not exactly that runs which should run there.
pub(crate) fn diverging(world: &World) -> Vec<String> {
    let mut findings = Vec::new();
    let cluster = world.control.core.cluster();
    for machine in &world.machines {
        let wanted = desired_tasks(cluster, machine.node).into_iter();
        let wanted: BTreeSet<(u64, u32)> =
            wanted.map(|(allocation, rank)| (allocation.id.0, rank as u32)).collect();
        let runs: BTreeSet<(u64, u32)> =
            machine.living().into_iter().map(|key| (key.allocation, key.rank)).collect();
        if wanted != runs {
            findings.push(format!("machine {}: runs {runs:?}, should run {wanted:?}", machine.at));
        }
    }
    findings
}

/// A job fails only if its own program does or its time is over.
fn jobs_are_as_they_should_be(world: &World, findings: &mut Vec<Finding>) {
    for (id, job) in world.control.core.cluster().jobs().iter() {
        let own_fault = setup::fails(id.0) || job.spec.time_limit_ms > 0;
        if job.state == JobState::Failed && !own_fault {
            let what = format!("failed without a fault of its own: job {id}: {}", job.reason);
            findings.push(Finding::new(Invariant::NothingLost, what));
        }
        if job.state == JobState::Completed && setup::fails(id.0) {
            let what = format!("completed although its program fails: job {id}");
            findings.push(Finding::new(Invariant::AllOrNone, what));
        }
        if job.state == JobState::Queued && job.reason.is_empty() {
            let what = format!("job {id} waits without a reason");
            findings.push(Finding::new(Invariant::Converges, what));
        }
    }
}

/// Every acknowledged submission is there once, every acknowledged cancel holds.
fn nothing_acknowledged_is_lost(world: &mut World, findings: &mut Vec<Finding>) {
    let cluster = world.control.core.cluster();
    let mut names = BTreeSet::new();
    world.context.checked.add(Invariant::Once, cluster.jobs().len() as u64);
    for (id, job) in cluster.jobs().iter() {
        if !names.insert(job.spec.name.clone()) {
            let what = format!("submitted twice: job {id} is {} again", job.spec.name);
            findings.push(Finding::new(Invariant::Once, what));
        }
    }
    for operation in &world.operations {
        let Some(answer) = operation.answer.as_ref().filter(|_| !operation.lost) else { continue };
        world.context.checked.add(Invariant::NothingLost, 1);
        let Some(command) = operation.command() else { continue };
        match command {
            Command::SubmitJob(spec) => {
                let job = job_of(answer).and_then(|id| cluster.jobs().get(id));
                if spec.validate().is_err() && answer.is_err() {
                    continue;
                }
                if job.is_none_or(|job| job.spec.name != spec.name) {
                    let what = format!("lost: {} was answered {answer:?}", spec.name);
                    findings.push(Finding::new(Invariant::NothingLost, what));
                }
            }
            Command::CancelJob(id) if answer.is_ok() => {
                let state = cluster.jobs().get(*id).map(|job| job.state);
                if state != Some(JobState::Cancelled) {
                    let what = format!("job {id} was cancelled and is {state:?}");
                    findings.push(Finding::new(Invariant::NothingLost, what));
                }
            }
            _ => {}
        }
    }
}

/// Whoever is killed had its notice, from the moment its end was decided or its machine's lease over.
pub(crate) fn notice(world: &mut World, killed: Killed) {
    let Killed { machine, key, had_notice } = killed;
    let allocation = world.control.core.cluster().allocations().get(AllocationId(key.allocation));
    let since_stop = allocation.and_then(|allocation| {
        let stop = allocation.stop?;
        // In true time: the state's clock is the leaders' word.
        let since_ms = world.control.stopped_ms.get(&allocation.id)?;
        let now_ms = world.context.now_ms;
        let (notice_ms, slack_ms) = (allocation.notice_ms, 200 + allocation.notice_ms / 500);
        Some((now_ms + slack_ms >= since_ms + notice_ms, stop.reason, notice_ms))
    });
    let fine = had_notice || since_stop.is_some_and(|(fine, ..)| fine);
    let what = format!("killed without its notice: {key:?} on machine {machine}: {since_stop:?}");
    world.context.check(Invariant::Notice, (!fine).then_some(what));
}

/// Agents forget what is over and known.
fn bounded(world: &mut World, findings: &mut Vec<Finding>) {
    for machine in &world.machines {
        world.context.checked.add(Invariant::Bounded, 1);
        let leftovers = machine.leftovers();
        if leftovers > 0 {
            let what = format!("machine {}: its agent keeps {leftovers} ended tasks", machine.at);
            findings.push(Finding::new(Invariant::Bounded, what));
        }
    }
}

/// What clients asked and were answered has an order that explains it.
fn linearizable(world: &mut World, findings: &mut Vec<Finding>) {
    let (verdict, stats) = linear::check(&world.history, linear::BUDGET);
    world.context.checked.add(Invariant::Linearizable, stats.parts);
    let what = match verdict {
        Verdict::Ok => return,
        Verdict::Violation(violation) => violation.to_string(),
        Verdict::Unknown { part, operations } => {
            format!("unknown: {part} with {operations} operations takes too long")
        }
    };
    findings.push(Finding::new(Invariant::Linearizable, what));
}

/// The log from the beginning, and from the last snapshot on, gives this very state.
fn replay(world: &mut World, findings: &mut Vec<Finding>) {
    let hash = world.control.core.cluster().state_hash();
    world.context.checked.add(Invariant::SameHash, 1);
    let mut replayed = world.control.began.clone();
    for (index, entry) in &world.control.entries {
        replayed.apply_entry(*index, entry);
    }
    if replayed.cluster().state_hash() != hash {
        let what = "the log replayed gives another state";
        findings.push(Finding::new(Invariant::SameHash, what));
    }
    world.context.checked.add(Invariant::SnapshotReplays, 1);
    let bytes = world.control.core.cluster().to_snapshot().expect("a small state");
    let mut restored = Core::default();
    match restored.restore(&bytes) {
        Ok(()) if restored.cluster().state_hash() == hash => {
            let again = asked_again(&world.control.entries, replayed, restored);
            findings.extend(again.map(|what| Finding::new(Invariant::SnapshotReplays, what)));
        }
        Ok(()) => {
            let what = "a snapshot gives another state";
            findings.push(Finding::new(Invariant::SnapshotReplays, what));
        }
        Err(error) => {
            let what = format!("a snapshot cannot be read: {error}");
            findings.push(Finding::new(Invariant::SnapshotReplays, what));
        }
    }
}

/// Every request of the log is asked once more: who began with a snapshot must know it as well.
fn asked_again(log: &[(u64, Entry)], mut whole: Core, mut restored: Core) -> Option<String> {
    let mut index = whole.cluster().applied();
    for (first, entry) in log.iter().filter(|(_, entry)| entry.request.is_some()) {
        index += 1;
        let entry = Entry { at_ms: whole.cluster().now_ms(), ..entry.clone() };
        let known = whole.apply_entry(index, &entry).answer;
        let answer = restored.apply_entry(index, &entry).answer;
        if answer != known {
            return Some(format!(
                "#{first} asked again is answered {known:?}, after a snapshot {answer:?}"
            ));
        }
    }
    None
}

/// Whether the empty fabric, all in service, could hold the gang.
fn fits(cluster: &Cluster, spec: &JobSpec) -> bool {
    let index = cluster.index();
    let level = spec.required.unwrap_or(Level::Site);
    let least = if spec.shape.min_workers > 0 { spec.shape.min_workers } else { spec.workers };
    index.domains(level).iter().any(|domain| {
        let nodes = domain.nodes.clone().map(rowen_topology::NodePos);
        let workers = nodes.filter(|pos| {
            let model = index.model_name(index.model(*pos));
            spec.resources.gpu_model.as_ref().is_none_or(|wanted| wanted == model)
        });
        let gpus = spec.resources.gpus;
        workers.map(|pos| u32::from(index.gpu_count(pos)) / gpus).sum::<u32>() >= least
    })
}

/// A filler that has room and does not use it.
fn unfilled(cluster: &Cluster) -> Option<String> {
    let active = cluster.fillers().values().filter(|filler| filler.state == FillerState::Active);
    let mut lacking = active.filter(|filler| {
        filler.instances.len() < filler.spec.max_instances as usize
            && filler.backoff_until_ms <= cluster.now_ms()
    });
    lacking.find_map(|filler| {
        let wanted = &filler.spec.resources;
        let node = cluster.nodes().values().find(|node| {
            node.free().count() >= wanted.gpus
                && wanted.gpu_model.as_ref().is_none_or(|model| *model == node.gpu_model)
        })?;
        Some(format!("{} could have an instance on {}", filler.spec.name, node.name))
    })
}
