//! Fillers.

use rowen_api::v1;
use rowen_state::{
    Allocation, Cluster, FieldError, Filler, FillerSpec, FillerState, Owner, Probe, StopReason,
    TaskPhase,
};

use super::{or_default, ordinals, resources_from_proto, resources_to_proto};

const DEFAULT_PERIOD_MS: u64 = 1_000;

/// From the wire, with the defaults filled in; limits are checked by
/// [`FillerSpec::validate`].
pub fn filler_spec_from_proto(spec: v1::FillerSpec) -> Result<FillerSpec, FieldError> {
    Ok(FillerSpec {
        name: spec.name,
        tenant: or_default(spec.tenant, "default"),
        model: spec.model,
        resources: resources_from_proto(spec.resources),
        min_instances: spec.min_instances,
        max_instances: spec.max_instances,
        value_micros: spec.value_micros,
        warm_up_ms: spec.warm_up_ms,
        notice_ms: spec.notice_ms,
        withdraw_ms: spec.withdraw_ms,
        readiness: spec.readiness.map(probe_from_proto).transpose()?,
        command: spec.command,
        env: spec.env,
        working_dir: spec.working_dir,
    })
}

fn probe_from_proto(probe: v1::Probe) -> Result<Probe, FieldError> {
    let port = u16::try_from(probe.port).map_err(|_| {
        FieldError::new("readiness.port", format!("is {}", probe.port), "choose 0 to 65535")
    })?;
    let period_ms = if probe.period_ms == 0 { DEFAULT_PERIOD_MS } else { probe.period_ms };
    Ok(Probe { http_path: probe.http_path, port, period_ms, exec: probe.exec })
}

/// For the wire.
pub fn filler_spec_to_proto(spec: &FillerSpec) -> v1::FillerSpec {
    v1::FillerSpec {
        name: spec.name.clone(),
        tenant: spec.tenant.clone(),
        model: spec.model.clone(),
        resources: Some(resources_to_proto(&spec.resources)),
        min_instances: spec.min_instances,
        max_instances: spec.max_instances,
        value_micros: spec.value_micros,
        warm_up_ms: spec.warm_up_ms,
        notice_ms: spec.notice_ms,
        withdraw_ms: spec.withdraw_ms,
        readiness: spec.readiness.as_ref().map(|probe| v1::Probe {
            http_path: probe.http_path.clone(),
            port: probe.port.into(),
            period_ms: probe.period_ms,
            exec: probe.exec.clone(),
        }),
        command: spec.command.clone(),
        env: spec.env.clone(),
        working_dir: spec.working_dir.clone(),
    }
}

/// For the wire.
pub fn filler_to_proto(cluster: &Cluster, filler: &Filler) -> v1::Filler {
    let allocations: Vec<_> =
        filler.instances.iter().filter_map(|id| cluster.allocations().get(*id)).collect();
    let running_gpu_ms: u64 = allocations
        .iter()
        .map(|allocation| {
            u64::from(allocation.tasks[0].gpus.count()) * (cluster.now_ms() - allocation.bound_ms)
        })
        .sum();
    v1::Filler {
        id: filler.id.0,
        spec: Some(filler_spec_to_proto(&filler.spec)),
        state: match filler.state {
            FillerState::Active => "active",
            FillerState::Draining => "draining",
            FillerState::Removing => "removing",
        }
        .into(),
        instances: allocations.iter().map(|a| instance_to_proto(cluster, filler, a)).collect(),
        gpu_ms: filler.gpu_ms + running_gpu_ms,
        evictions: filler.evictions,
        reason: filler.reason.clone(),
    }
}

fn instance_to_proto(cluster: &Cluster, filler: &Filler, allocation: &Allocation) -> v1::Instance {
    let task = &allocation.tasks[0];
    let node = cluster.nodes().get(task.node);
    let ready = match task.phase {
        TaskPhase::Running => filler.spec.readiness.is_none(),
        TaskPhase::Ready => true,
        _ => false,
    };
    let state = match (allocation.stop.is_some(), task.phase) {
        (true, _) => "draining",
        (false, TaskPhase::Bound) => "pending",
        (false, _) if ready => "ready",
        (false, _) => "warming",
    };
    let address = match node {
        Some(node) if state == "ready" && task.port != 0 => format!("{}:{}", node.addr, task.port),
        _ => String::new(),
    };
    let number = match allocation.owner {
        Owner::Instance { number, .. } => number,
        Owner::Gang { .. } => 0,
    };
    v1::Instance {
        id: number,
        node: node.map(|node| node.name.clone()).unwrap_or_default(),
        gpus: ordinals(task.gpus),
        state: state.into(),
        since_ms: allocation.stop.map_or(task.since_ms, |stop| stop.since_ms),
        deadline_ms: allocation.stop.map_or(0, |stop| stop.deadline_ms),
        reason: allocation.stop.map(|stop| stop_reason(stop.reason)).unwrap_or_default(),
        address,
    }
}

/// A stop's reason in words.
pub(super) fn stop_reason(reason: StopReason) -> String {
    match reason {
        StopReason::Evicted { by } => format!("job {by} needs the GPUs"),
        StopReason::Cancelled => "cancelled".into(),
        StopReason::Requeued => "requeued by request".into(),
        StopReason::TaskFailed => "a worker failed".into(),
        StopReason::NodeLost => "a node of the gang was lost".into(),
        StopReason::NodeDrained => "the node is drained".into(),
        StopReason::TimeLimit => "the time limit is over".into(),
        StopReason::Withdrawn => "the filler is withdrawn".into(),
        StopReason::Redeployed => "the filler was deployed anew".into(),
        StopReason::Resized => "the gang grows: it starts again with more workers".into(),
        StopReason::GpuDown => "a GPU of it is down".into(),
    }
}
