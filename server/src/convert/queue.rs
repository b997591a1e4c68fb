//! Queues between the wire and the domain.

use rowen_api::v1;
use rowen_state::{Cluster, FieldError, JobState, Queue, QueueSpec, Quota};

/// A queue as a client describes it.
pub fn queue_spec_from_proto(spec: v1::QueueSpec) -> Result<QueueSpec, FieldError> {
    let mut by_model = std::collections::BTreeMap::new();
    for quota in spec.by_model {
        let of_model = quota_from_proto(&quota);
        if by_model.insert(quota.gpu_model.clone(), of_model).is_some() {
            let problem = format!("names {} twice", quota.gpu_model);
            return Err(FieldError::new("by_model", problem, "name each model once"));
        }
    }
    Ok(QueueSpec {
        name: spec.name,
        parent: spec.parent,
        quota: quota_from_proto(&spec.quota.unwrap_or_default()),
        by_model,
        lend_gpus: spec.lend_gpus,
        weight: spec.weight.max(1),
        preempts: spec.preempts,
        min_run_ms: spec.min_run_ms,
    })
}

fn quota_from_proto(quota: &v1::Quota) -> Quota {
    Quota { guarantee_gpus: quota.guarantee_gpus, limit_gpus: quota.limit_gpus }
}

fn quota_to_proto((model, quota): (&str, Quota)) -> v1::Quota {
    v1::Quota {
        gpu_model: model.to_owned(),
        guarantee_gpus: quota.guarantee_gpus,
        limit_gpus: quota.limit_gpus,
    }
}

/// A queue as clients see it.
pub fn queue_to_proto(view: &Cluster, queue: &Queue) -> v1::Queue {
    let spec = &queue.spec;
    let mut quotas = spec.quotas().map(quota_to_proto);
    let jobs = |wanted: fn(JobState) -> bool| {
        let jobs = view.jobs().values().filter(|job| job.spec.queue == spec.name);
        jobs.filter(|job| wanted(job.state)).count() as u32
    };
    v1::Queue {
        used_gpus: queue.used_of(""),
        used_by_model: queue.used.clone(),
        over: queue.over,
        spent_gpu_ms: queue.spent_at(view.now_ms()),
        jobs_queued: jobs(|state| matches!(state, JobState::Queued | JobState::Holding)),
        jobs_running: jobs(|state| {
            matches!(state, JobState::Starting | JobState::Running | JobState::Stopping)
        }),
        spec: Some(v1::QueueSpec {
            name: spec.name.clone(),
            parent: spec.parent.clone(),
            quota: quotas.next(),
            by_model: quotas.collect(),
            lend_gpus: spec.lend_gpus,
            weight: spec.weight,
            preempts: spec.preempts,
            min_run_ms: spec.min_run_ms,
        }),
    }
}
