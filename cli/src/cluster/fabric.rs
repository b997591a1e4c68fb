//! The fabrics that a local cluster can have: the example, a file, or one made to size.
//!
//! Always through an inventory and its checks, so that a local cluster accepts what a real one
//! does. Never says that the GPUs are real.

use anyhow::{Context, Result};
use rowen_api::v1;
use rowen_server::convert::fabric_to_proto;
use rowen_topology::{GpuKind, Inventory, LeafGroup, NodeGroup};

use crate::files::{Source, read_fabric};

/// `examples/fabric.yaml`: 4 racks × 4 nodes × 8 GPUs, two blocks of 8 nodes.
const EXAMPLE: &str = include_str!("../../../examples/fabric.yaml");

/// Nodes that share their leafs.
const BLOCK_NODES: u32 = 8;
/// Nodes that share a rack.
const RACK_NODES: u32 = 4;

/// The example fabric that the demo runs on.
pub(crate) fn example() -> Result<v1::Fabric> {
    let inventory: Inventory =
        serde_saphyr::from_str(EXAMPLE).context("examples/fabric.yaml does not parse")?;
    Ok(fabric_to_proto(&inventory.expand()?))
}

/// A fabric of as many nodes as asked, wired like the example.
pub(crate) fn of_size(nodes: u32, gpus: u16) -> Result<v1::Fabric> {
    Ok(fabric_to_proto(&sized(nodes, gpus).expand()?))
}

/// The fabric of the operator's own file.
pub(crate) fn from_file(path: &str) -> Result<v1::Fabric> {
    Ok(fabric_to_proto(&read_fabric(&Source::read(path, None)?)?))
}

fn sized(nodes: u32, gpus: u16) -> Inventory {
    let mut inventory = Inventory { spines: Some("spine[1-4]".into()), ..Default::default() };
    let width = nodes.to_string().len();
    for first in (1..=nodes).step_by(BLOCK_NODES as usize) {
        let block = first / BLOCK_NODES + 1;
        let leafs = format!("b{block}-leaf[1-{gpus}]");
        inventory.leafs.push(LeafGroup {
            names: leafs.clone(),
            rail: None,
            spines: Some("spine[1-4]".into()),
        });
        let end = (first + BLOCK_NODES).min(nodes + 1);
        for from in (first..end).step_by(RACK_NODES as usize) {
            let to = (from + RACK_NODES).min(end) - 1;
            inventory.nodes.push(node_group(from, to, width, &leafs, gpus));
        }
    }
    inventory
}

fn node_group(from: u32, to: u32, width: usize, leafs: &str, gpus: u16) -> NodeGroup {
    let rack = from / RACK_NODES + 1;
    NodeGroup {
        names: format!("node[{from:0width$}-{to:0width$}]"),
        site: None,
        rack: Some(format!("r{rack}")),
        leafs: Some(leafs.to_string()),
        nvlink_domain: None,
        gpu: GpuKind { model: "H100".into(), count: gpus, memory_mib: 81_559 },
        nic: None,
        cpus: 192,
        memory_mib: 2_097_152,
        addr: None,
        failure_domains: Default::default(),
        labels: Default::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_size_expands() {
        for nodes in [1, 2, 4, 5, 8, 9, 16, 33, 100] {
            let record = sized(nodes, 8).expand().unwrap();
            assert_eq!(record.nodes.len(), nodes as usize);
            let racks: std::collections::BTreeSet<_> =
                record.nodes.iter().map(|n| &n.rack).collect();
            assert_eq!(racks.len(), nodes.div_ceil(RACK_NODES) as usize);
        }
        assert_eq!(sized(3, 2).expand().unwrap().nodes[2].gpu_count, 2);
    }
}
