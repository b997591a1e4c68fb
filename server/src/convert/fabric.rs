//! Fabrics.

use rowen_api::v1;
use rowen_state::FieldError;
use rowen_topology::{FabricRecord, LeafRecord, NodeRecord};

/// For the wire.
pub fn fabric_to_proto(record: &FabricRecord) -> v1::Fabric {
    v1::Fabric {
        nodes: record.nodes.iter().map(node_to_proto).collect(),
        leafs: record
            .leafs
            .iter()
            .map(|leaf| v1::FabricLeaf {
                name: leaf.name.clone(),
                rail: leaf.rail.map(Into::into),
                spines: leaf.spines.clone(),
            })
            .collect(),
        spines: record.spines.clone(),
    }
}

/// From the wire; the record's own limits are checked by the state.
pub fn fabric_from_proto(fabric: v1::Fabric) -> Result<FabricRecord, FieldError> {
    let nodes = fabric.nodes.into_iter().enumerate().map(|(at, node)| node_from_proto(at, node));
    let leafs = fabric.leafs.into_iter().enumerate().map(|(at, leaf)| {
        let rail =
            leaf.rail.map(|rail| narrow(rail, || format!("leafs[{at}].rail"))).transpose()?;
        Ok(LeafRecord { name: leaf.name, rail, spines: leaf.spines })
    });
    Ok(FabricRecord {
        nodes: nodes.collect::<Result<_, FieldError>>()?,
        leafs: leafs.collect::<Result<_, FieldError>>()?,
        spines: fabric.spines,
    })
}

fn node_to_proto(node: &NodeRecord) -> v1::FabricNode {
    v1::FabricNode {
        name: node.name.clone(),
        site: node.site.clone(),
        rack: node.rack.clone(),
        nvlink_domain: node.nvlink_domain.clone().unwrap_or_default(),
        leafs: node.leafs.clone(),
        gpu_model: node.gpu_model.clone(),
        gpu_count: node.gpu_count.into(),
        gpu_memory_mib: node.gpu_memory_mib,
        nic_model: node.nic_model.clone(),
        cpus: node.cpus,
        memory_mib: node.memory_mib,
        addr: node.addr.clone().unwrap_or_default(),
        failure_domains: node.failure_domains.clone(),
        labels: node.labels.clone(),
    }
}

fn node_from_proto(at: usize, node: v1::FabricNode) -> Result<NodeRecord, FieldError> {
    Ok(NodeRecord {
        gpu_count: narrow(node.gpu_count, || format!("nodes[{at}].gpu_count"))?,
        name: node.name,
        site: node.site,
        rack: node.rack,
        nvlink_domain: (!node.nvlink_domain.is_empty()).then_some(node.nvlink_domain),
        leafs: node.leafs,
        gpu_model: node.gpu_model,
        gpu_memory_mib: node.gpu_memory_mib,
        nic_model: node.nic_model,
        cpus: node.cpus,
        memory_mib: node.memory_mib,
        addr: (!node.addr.is_empty()).then_some(node.addr),
        failure_domains: node.failure_domains,
        labels: node.labels,
    })
}

pub(super) fn narrow<T: TryFrom<u32>>(
    value: u32,
    field: impl Fn() -> String,
) -> Result<T, FieldError> {
    T::try_from(value)
        .map_err(|_| FieldError::new(&field(), format!("is {value}"), "choose a smaller number"))
}
