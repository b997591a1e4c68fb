//! Between the wire's types and this crate's.
//!
//! Owns the conversions, both ways, and nothing else.

use std::collections::BTreeMap;

use rowen_api::v1;

use crate::{
    core::{Desired, Epoch, Ordinal, Phase, StopAt, Task, TaskKey, Wanted},
    spec::{OwnerKind, OwnerSpec, ProbeSpec, Spec},
};

/// Between two tries where a probe names no period.
const PROBE_PERIOD_MS: u64 = 500;

/// Names the task.
pub fn key(task: &v1::DesiredTask) -> TaskKey {
    let epoch = task.epoch.unwrap_or_default();
    let epoch = Epoch { incarnation: epoch.incarnation, index: epoch.index };
    TaskKey { allocation: task.allocation, rank: task.rank, epoch }
}

/// What `core` needs of a desired state that arrived at `now`.
pub fn desired(message: &v1::Desired, now: u64) -> Desired {
    let tasks: BTreeMap<TaskKey, Wanted> =
        message.tasks.iter().map(|task| (key(task), wanted(task, now))).collect();
    Desired { generation: message.generation, term: message.term, tasks }
}

fn wanted(task: &v1::DesiredTask, now: u64) -> Wanted {
    let stop = task.stop.as_ref().map(|stop| StopAt {
        term_at_ms: now + stop.withdraw_ms.min(stop.remaining_ms),
        kill_at_ms: now + stop.remaining_ms,
        reason: stop.reason.clone(),
    });
    let gpus = task.gpus.iter().copied().map(Ordinal).collect();
    Wanted { gpus, notice_ms: task.notice_ms, stop }
}

pub(crate) fn owner(owner: Option<&v1::Owner>) -> OwnerSpec {
    let owner = owner.cloned().unwrap_or_default();
    let kind = match owner.kind() {
        v1::OwnerKind::Filler => OwnerKind::Filler,
        _ => OwnerKind::Job,
    };
    OwnerSpec { kind, id: owner.id, name: owner.name, part: owner.part }
}

pub(crate) fn probe(task: &v1::DesiredTask) -> Option<ProbeSpec> {
    task.has_probe.then(|| ProbeSpec {
        path: task.probe_path.clone(),
        port: u16::try_from(task.probe_port).unwrap_or(0),
        period_ms: match task.probe_period_ms {
            0 => PROBE_PERIOD_MS,
            period_ms => period_ms,
        },
        exec: task.probe_exec.clone(),
    })
}

pub(crate) fn key_of(spec: &Spec) -> TaskKey {
    let epoch = Epoch { incarnation: spec.incarnation, index: spec.index };
    TaskKey { allocation: spec.allocation, rank: spec.rank, epoch }
}

/// What the leader is told of a task.
pub fn report(key: &TaskKey, task: &Task) -> v1::TaskReport {
    let (phase, exit_code, message) = match &task.phase {
        Phase::Starting => (v1::TaskPhase::Unspecified, 0, String::new()),
        Phase::Running => (v1::TaskPhase::Running, 0, String::new()),
        Phase::Ready => (v1::TaskPhase::Ready, 0, String::new()),
        Phase::Lost { message } => (v1::TaskPhase::Lost, 0, message.clone()),
        Phase::Exited { code, message } => (v1::TaskPhase::Exited, *code, message.clone()),
    };
    v1::TaskReport {
        allocation: key.allocation,
        rank: key.rank,
        epoch: Some(v1::Epoch { incarnation: key.epoch.incarnation, index: key.epoch.index }),
        phase: phase.into(),
        exit_code,
        message,
        port: u32::from(task.port),
    }
}
