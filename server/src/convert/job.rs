//! Jobs.

use rowen_api::v1;
use rowen_state::{
    Cluster, FieldError, Group, Job, JobSpec, JobState, LabelRule, LabelTest, NodeFilter, Shape,
    Spread, Task, TaskPhase,
};
use rowen_topology::Level;

use super::{or_default, ordinals, resources_from_proto, resources_to_proto};

/// A gang may write a last checkpoint in this time.
const DEFAULT_NOTICE_MS: u64 = 120_000;

/// From the wire, with the defaults filled in; limits are checked by
/// [`JobSpec::validate`].
pub fn job_spec_from_proto(spec: v1::JobSpec) -> Result<JobSpec, FieldError> {
    Ok(JobSpec {
        name: spec.name,
        tenant: or_default(spec.tenant, "default"),
        queue: or_default(spec.queue, "default"),
        priority: spec.priority,
        workers: spec.workers,
        processes_per_worker: spec.processes_per_worker.max(1),
        resources: resources_from_proto(spec.resources),
        required: level("topology.required", &spec.required_level)?,
        preferred: level("topology.preferred", &spec.preferred_level)?,
        command: spec.command,
        env: spec.env,
        working_dir: spec.working_dir,
        time_limit_ms: spec.time_limit_ms,
        notice_ms: spec.notice_ms.unwrap_or(DEFAULT_NOTICE_MS),
        restarts: spec.restarts,
        checkpoint_interval_ms: spec.checkpoint_interval_ms,
        shape: Shape {
            groups: spec.groups.iter().map(group_from_proto).collect::<Result<_, _>>()?,
            balanced: spec.balanced,
            spread: spec.spread.iter().map(spread_from_proto).collect::<Result<_, _>>()?,
            locality_wait_ms: spec.locality_wait_ms,
            nodes: NodeFilter {
                gpu_models: spec.gpu_models,
                labels: spec
                    .node_labels
                    .into_iter()
                    .map(rule_from_proto)
                    .collect::<Result<_, _>>()?,
                exclusive: spec.exclusive,
            },
            min_workers: spec.min_workers,
            grow_after_ms: spec.grow_after_ms,
        },
    })
}

/// For the wire.
pub fn job_spec_to_proto(spec: &JobSpec) -> v1::JobSpec {
    let word = |level: Option<Level>| level.map(|level| level.to_string()).unwrap_or_default();
    v1::JobSpec {
        name: spec.name.clone(),
        tenant: spec.tenant.clone(),
        queue: spec.queue.clone(),
        priority: spec.priority,
        workers: spec.workers,
        processes_per_worker: spec.processes_per_worker,
        resources: Some(resources_to_proto(&spec.resources)),
        required_level: word(spec.required),
        preferred_level: word(spec.preferred),
        command: spec.command.clone(),
        env: spec.env.clone(),
        working_dir: spec.working_dir.clone(),
        time_limit_ms: spec.time_limit_ms,
        notice_ms: Some(spec.notice_ms),
        restarts: spec.restarts,
        checkpoint_interval_ms: spec.checkpoint_interval_ms,
        groups: spec.shape.groups.iter().map(group_to_proto).collect(),
        balanced: spec.shape.balanced,
        spread: spec.shape.spread.iter().map(spread_to_proto).collect(),
        locality_wait_ms: spec.shape.locality_wait_ms,
        gpu_models: spec.shape.nodes.gpu_models.clone(),
        node_labels: spec.shape.nodes.labels.iter().map(rule_to_proto).collect(),
        exclusive: spec.shape.nodes.exclusive,
        min_workers: spec.shape.min_workers,
        grow_after_ms: spec.shape.grow_after_ms,
    }
}

/// For the wire, without its story.
pub fn job_to_proto(cluster: &Cluster, job: &Job) -> v1::Job {
    let allocation = job.allocation.and_then(|id| cluster.allocations().get(id));
    let tasks = allocation.map_or(&job.last_tasks, |allocation| &allocation.tasks);
    let running_gpu_ms: u64 = allocation.map_or(0, |allocation| {
        let held = allocation.tasks.iter().filter(|task| !task.released);
        let gpus: u64 = held.map(|task| u64::from(task.gpus.count())).sum();
        gpus * (cluster.now_ms() - allocation.bound_ms)
    });
    v1::Job {
        id: job.id.0,
        spec: Some(job_spec_to_proto(&job.spec)),
        state: job_state_to_proto(job.state).into(),
        reason: job.reason.clone(),
        attempt: job.attempt,
        tasks: (0..).zip(tasks).map(|(rank, task)| task_to_proto(cluster, rank, task)).collect(),
        submitted_ms: job.submitted_ms,
        held_ms: job.hold.as_ref().map_or(job.held_ms, |hold| hold.since_ms),
        bound_ms: job.bound_ms,
        running_ms: job.running_ms,
        ended_ms: job.ended_ms,
        exit_code: job.exit_code,
        failures: job.failures,
        gpu_ms: job.gpu_ms + running_gpu_ms,
        events: Vec::new(),
        index: cluster.applied(),
    }
}

/// For the wire.
pub fn job_state_to_proto(state: JobState) -> v1::JobState {
    match state {
        JobState::Queued => v1::JobState::Queued,
        JobState::Holding => v1::JobState::Holding,
        JobState::Starting => v1::JobState::Starting,
        JobState::Running => v1::JobState::Running,
        JobState::Stopping => v1::JobState::Stopping,
        JobState::Completed => v1::JobState::Completed,
        JobState::Failed => v1::JobState::Failed,
        JobState::Cancelled => v1::JobState::Cancelled,
    }
}

fn task_to_proto(cluster: &Cluster, rank: u32, task: &Task) -> v1::Task {
    let (phase, exit_code) = match task.phase {
        TaskPhase::Bound => ("bound", 0),
        TaskPhase::Running | TaskPhase::Ready => ("running", 0),
        TaskPhase::Exited { code } => ("exited", code),
        TaskPhase::Lost => ("lost", 0),
    };
    v1::Task {
        rank,
        node: cluster.nodes().get(task.node).map(|node| node.name.clone()).unwrap_or_default(),
        gpus: ordinals(task.gpus),
        phase: phase.into(),
        exit_code,
    }
}

fn group_from_proto(group: &v1::Group) -> Result<Group, FieldError> {
    let level = needed_level("topology.groups", &group.level)?;
    Ok(Group { workers: group.workers, level, preferred: group.preferred })
}

fn group_to_proto(group: &Group) -> v1::Group {
    let level = group.level.to_string();
    v1::Group { workers: group.workers, level, preferred: group.preferred }
}

fn spread_from_proto(spread: &v1::Spread) -> Result<Spread, FieldError> {
    let level = needed_level("topology.spread", &spread.level)?;
    Ok(Spread { workers: spread.workers, level })
}

fn spread_to_proto(spread: &Spread) -> v1::Spread {
    v1::Spread { workers: spread.workers, level: spread.level.to_string() }
}

fn rule_from_proto(rule: v1::LabelRule) -> Result<LabelRule, FieldError> {
    let test = match rule.test.as_str() {
        "in" => LabelTest::In(rule.values),
        "not-in" => LabelTest::NotIn(rule.values),
        "exists" => LabelTest::Exists,
        "missing" => LabelTest::Missing,
        other => {
            let problem = format!("{other:?} is no test");
            return Err(FieldError::new(
                "nodes.labels",
                problem,
                "use in, not-in, exists or missing",
            ));
        }
    };
    Ok(LabelRule { key: rule.key, test })
}

fn rule_to_proto(rule: &LabelRule) -> v1::LabelRule {
    let (test, values) = match &rule.test {
        LabelTest::In(values) => ("in", values.clone()),
        LabelTest::NotIn(values) => ("not-in", values.clone()),
        LabelTest::Exists => ("exists", Vec::new()),
        LabelTest::Missing => ("missing", Vec::new()),
    };
    v1::LabelRule { key: rule.key.clone(), test: test.into(), values }
}

fn needed_level(field: &str, word: &str) -> Result<Level, FieldError> {
    let missing =
        || FieldError::new(field, "names no level", "choose site, pod, block, nvlink or node");
    level(field, word)?.ok_or_else(missing)
}

fn level(field: &str, word: &str) -> Result<Option<Level>, FieldError> {
    if word.is_empty() {
        return Ok(None);
    }
    let unknown = |_| {
        FieldError::new(
            field,
            format!("{word:?} is no level"),
            "choose site, pod, block, nvlink or node",
        )
    };
    word.parse().map(Some).map_err(unknown)
}
