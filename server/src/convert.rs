//! Between the wire and the domain. The two have different types on purpose: the
//! wire may grow without the log's shapes moving, and the other way round.

mod agent;
mod fabric;
mod filler;
mod health;
mod job;
mod node;
mod queue;

pub use agent::{Wishes, node_report, task_report};
pub use fabric::{fabric_from_proto, fabric_to_proto};
pub use filler::{filler_spec_from_proto, filler_spec_to_proto, filler_to_proto};
pub use health::{gpu_reports, health_to_proto, part_reports};
pub use job::{job_spec_from_proto, job_spec_to_proto, job_state_to_proto, job_to_proto};
pub use node::{node_to_proto, occupancy};
pub use queue::{queue_spec_from_proto, queue_to_proto};

use rowen_api::v1;
use rowen_state::{Allocation, Cluster, Epoch, FieldError, GpuMask, Owner, RequestId, Resources};

/// Longest client id, in bytes.
const CLIENT_BYTES: usize = 64;

/// A request's id, checked. Absent: the client does not care to retry safely.
pub(crate) fn request_id(request: Option<v1::RequestId>) -> Result<Option<RequestId>, FieldError> {
    let Some(request) = request else { return Ok(None) };
    if request.client.is_empty() || request.client.len() > CLIENT_BYTES {
        return Err(FieldError::new(
            "request.client",
            format!("has {} bytes", request.client.len()),
            format!("use 1 to {CLIENT_BYTES}"),
        ));
    }
    if request.seq == 0 {
        return Err(FieldError::new("request.seq", "is 0", "number a client's requests from 1"));
    }
    Ok(Some(RequestId { client: request.client, seq: request.seq }))
}

fn ordinals(mask: GpuMask) -> Vec<u32> {
    mask.iter().collect()
}

fn resources_from_proto(resources: Option<v1::Resources>) -> Resources {
    let resources = resources.unwrap_or_default();
    Resources {
        gpus: resources.gpus,
        gpu_model: (!resources.gpu_model.is_empty()).then_some(resources.gpu_model),
        cpus: resources.cpus,
        memory_mib: resources.memory_mib,
    }
}

fn resources_to_proto(resources: &Resources) -> v1::Resources {
    v1::Resources {
        gpus: resources.gpus,
        gpu_model: resources.gpu_model.clone().unwrap_or_default(),
        cpus: resources.cpus,
        memory_mib: resources.memory_mib,
    }
}

fn epoch_to_proto(epoch: Epoch) -> v1::Epoch {
    v1::Epoch { incarnation: epoch.incarnation, index: epoch.index }
}

fn epoch_from_proto(epoch: Option<v1::Epoch>) -> Epoch {
    let epoch = epoch.unwrap_or_default();
    Epoch { incarnation: epoch.incarnation, index: epoch.index }
}

/// Who has an allocation, with the name people know it by.
pub(crate) fn owner_to_proto(cluster: &Cluster, allocation: &Allocation) -> v1::Owner {
    match allocation.owner {
        Owner::Gang { job, attempt } => v1::Owner {
            kind: v1::OwnerKind::Job.into(),
            id: job.0,
            name: cluster.jobs().get(job).map(|job| job.spec.name.clone()).unwrap_or_default(),
            part: attempt.into(),
        },
        Owner::Instance { filler, number } => v1::Owner {
            kind: v1::OwnerKind::Filler.into(),
            id: filler.0,
            name: cluster
                .fillers()
                .get(filler)
                .map(|filler| filler.spec.name.clone())
                .unwrap_or_default(),
            part: number,
        },
    }
}

/// The owner a job is while it holds GPUs that are not its own yet.
fn holder_to_proto(cluster: &Cluster, job: rowen_state::JobId) -> v1::Owner {
    let row = cluster.jobs().get(job);
    v1::Owner {
        kind: v1::OwnerKind::Job.into(),
        id: job.0,
        name: row.map(|job| job.spec.name.clone()).unwrap_or_default(),
        part: row.map_or(0, |job| u64::from(job.attempt) + 1),
    }
}

fn or_default(text: String, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text }
}
