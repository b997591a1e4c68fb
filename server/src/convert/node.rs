//! Nodes, and who has each of their GPUs.

use rowen_api::v1;
use rowen_state::{Cluster, Duty, Liveness, Node};
use rowen_topology::Level;

use super::{holder_to_proto, owner_to_proto};

/// For the wire, without its hardware.
pub fn node_to_proto(cluster: &Cluster, node: &Node) -> v1::Node {
    let pos = cluster.pos_of(node.id);
    let block = pos.map(|pos| {
        let index = cluster.index();
        index.domain(index.domain_of(pos, Level::Block)).name.clone()
    });
    let record = pos.map(|pos| &cluster.fabric().nodes[cluster.index().node_record(pos)]);
    v1::Node {
        name: node.name.clone(),
        rack: record.map(|record| record.rack.clone()).unwrap_or_default(),
        block: block.unwrap_or_default(),
        state: match node.liveness {
            Liveness::Unknown => "unknown",
            Liveness::Up => "up",
            Liveness::Silent => "silent",
            Liveness::Lost => "down",
        }
        .into(),
        duty: match node.duty {
            Duty::InService => "in service",
            Duty::Cordoned => "cordoned",
            Duty::Draining if node.owners().is_empty() => "drained",
            Duty::Draining => "draining",
        }
        .into(),
        gpu_model: node.gpu_model.clone(),
        gpus: (0..node.gpus.len()).map(|ordinal| slot_to_proto(cluster, node, ordinal)).collect(),
        hardware: Vec::new(),
        boot_id: node.boot_id.clone(),
        agent_version: node.version.clone(),
        simulated: node.simulated,
        reason: node.reason.clone(),
        cpus: node.cpus,
        memory_mib: node.memory_mib,
    }
}

fn slot_to_proto(cluster: &Cluster, node: &Node, ordinal: usize) -> v1::GpuSlot {
    let slot = &node.gpus[ordinal];
    let owner = slot.owner.and_then(|id| cluster.allocations().get(id));
    let up = node.liveness == Liveness::Up && slot.healthy;
    let state = match owner {
        Some(allocation) if allocation.stop.is_some() => "draining",
        Some(_) => "allocated",
        None if !up => "down",
        None if slot.held.is_some() => "held",
        None => "idle",
    };
    v1::GpuSlot {
        ordinal: ordinal as u32,
        state: state.into(),
        owner: owner.map(|allocation| owner_to_proto(cluster, allocation)),
        held_for: slot.held.map(|job| holder_to_proto(cluster, job)),
    }
}

/// The whole cluster, in the fabric's order.
pub fn occupancy(cluster: &Cluster) -> v1::Occupancy {
    let nodes = cluster.fabric().nodes.iter().filter_map(|record| cluster.node_named(&record.name));
    v1::Occupancy {
        index: cluster.applied(),
        now_ms: cluster.now_ms(),
        nodes: nodes.map(|node| node_to_proto(cluster, node)).collect(),
    }
}
