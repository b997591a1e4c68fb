//! NVIDIA topograph's node labels, understood where the inventory's own fields are left out.
//!
//! Keys as of topograph 0.x (`network.topology.nvidia.com/…`, four fixed tiers) and 1.x
//! (`fabric.topograph.run/tier-N`, tier 0 next to the node), see
//! <https://docs.nvidia.com/topograph/reference/node-labels-and-annotations>. Never fetches labels.

use std::collections::{BTreeMap, BTreeSet};

use crate::check::check_name;
use crate::{FabricRecord, InventoryError, LeafRecord, NodeGroup};

/// The older key first; the GPU operator's own clique label replaces topograph's where it is set.
const ACCELERATOR: [&str; 3] = [
    "network.topology.nvidia.com/accelerator",
    "accelerator.topograph.run/domain",
    "nvidia.com/gpu.clique",
];
const LEAF: [&str; 2] = ["network.topology.nvidia.com/leaf", "fabric.topograph.run/tier-0"];
const SPINE: [&str; 2] = ["network.topology.nvidia.com/spine", "fabric.topograph.run/tier-1"];
const CORE: [&str; 2] = ["network.topology.nvidia.com/core", "fabric.topograph.run/tier-2"];

/// What a node group's labels say.
#[derive(Clone, Copy, Default)]
pub(crate) struct Topograph<'a> {
    pub(crate) accelerator: Option<&'a str>,
    pub(crate) leaf: Option<&'a str>,
    pub(crate) spine: Option<&'a str>,
    pub(crate) core: Option<&'a str>,
}

impl<'a> Topograph<'a> {
    /// Reads the labels of the inventory's node group number `at`; their values are plain names.
    pub(crate) fn read(at: usize, group: &'a NodeGroup) -> Result<Topograph<'a>, InventoryError> {
        let value = |keys: &[&str]| {
            let found = keys.iter().find_map(|key| group.labels.get_key_value(*key));
            let Some((key, value)) = found else { return Ok(None) };
            let field = format!("labels.{key}");
            check_name(&field, value).map_err(|fault| fault.at("nodes", at).spelled(at, &field))?;
            Ok(Some(value.as_str()))
        };
        Ok(Topograph {
            accelerator: value(&ACCELERATOR)?,
            leaf: value(&LEAF)?,
            spine: value(&SPINE)?,
            core: value(&CORE)?,
        })
    }
}

/// Topograph labels nodes and lists no switches: a leaf or spine that only labels name is added,
/// with the uplinks they tell of. A declared leaf keeps what was declared.
pub(crate) fn imply_switches(
    record: &mut FabricRecord,
    groups: &[NodeGroup],
) -> Result<(), InventoryError> {
    let mut place_of: BTreeMap<String, Option<usize>> =
        record.leafs.iter().map(|leaf| (leaf.name.clone(), None)).collect();
    let mut spines: BTreeSet<String> = record.spines.iter().cloned().collect();
    for (at, group) in groups.iter().enumerate().filter(|(_, group)| group.leafs.is_none()) {
        let Topograph { leaf: Some(leaf), spine, .. } = Topograph::read(at, group)? else {
            continue;
        };
        let place = *place_of.entry(leaf.to_owned()).or_insert_with(|| {
            let leaf = LeafRecord { name: leaf.to_owned(), rail: None, spines: Vec::new() };
            record.leafs.push(leaf);
            Some(record.leafs.len() - 1)
        });
        let (Some(place), Some(spine)) = (place, spine) else { continue };
        if !record.leafs[place].spines.iter().any(|known| known == spine) {
            record.leafs[place].spines.push(spine.to_owned());
        }
        if spines.insert(spine.to_owned()) {
            record.spines.push(spine.to_owned());
        }
    }
    Ok(())
}
