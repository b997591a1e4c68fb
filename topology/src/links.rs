//! What an inventory says of its links: bandwidth, cables side by side, health.
//!
//! The record that the cluster stores cannot hold any of it yet, so it lives in the inventory and
//! in the graph. Never makes or removes a link: those follow from the nodes' and leafs' own lists.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::inventory::names;
use crate::{Fabric, Health, InventoryError, Link, LinkKind, VertexId, VertexKind};

/// Links that are alike: all those between any of the leafs and any of the nodes, or spines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LinkGroup {
    /// The leafs at one end, as a host list.
    pub leafs: String,
    /// The nodes at the other end, as a host list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<String>,
    /// Or the spines, as a host list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spines: Option<String>,
    /// One direction, all cables together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gbps: Option<u32>,
    /// Cables side by side; left out: one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cables: Option<u16>,
    /// `up`, `degraded` (slow or flapping) or `down`; left out: up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
}

impl LinkGroup {
    fn write(&self, link: &mut Link) {
        link.bandwidth_gbps = self.gbps.or(link.bandwidth_gbps);
        link.cables = self.cables.unwrap_or(link.cables);
        link.health = self.health.unwrap_or(link.health);
    }
}

/// Writes the groups onto the links of `fabric`, later ones over earlier ones.
pub(crate) fn apply(fabric: &mut Fabric, groups: &[LinkGroup]) -> Result<(), InventoryError> {
    if groups.is_empty() {
        return Ok(());
    }
    let known = Known::of(fabric);
    for (at, group) in groups.iter().enumerate() {
        let path = |name: &str| format!("links[{at}].{name}");
        let leafs = known.find(&path("leafs"), &group.leafs, &known.leafs, "leaf")?;
        let (kind, others, field) = match (&group.nodes, &group.spines) {
            (Some(nodes), None) => {
                ("node", known.find(&path("nodes"), nodes, &known.nodes, "node")?, "nodes")
            }
            (None, Some(spines)) => {
                ("spine", known.find(&path("spines"), spines, &known.spines, "spine")?, "spines")
            }
            _ => {
                let problem = "exactly one of nodes and spines is the other end".to_owned();
                let fix = "write nodes: or spines:".to_owned();
                return Err(InventoryError { field: path("nodes"), problem, fix });
            }
        };
        let others: BTreeSet<VertexId> = others.into_iter().collect();
        let mut touched = 0;
        for leaf in leafs {
            fabric.change_links(leaf, |other, link| {
                if link.kind != LinkKind::Contains && others.contains(&other) {
                    group.write(link);
                    touched += 1;
                }
            });
        }
        if touched == 0 {
            let problem = format!("no {kind} of them hangs on any of these leafs");
            let fix = "name leafs and what hangs on them".to_owned();
            return Err(InventoryError { field: path(field), problem, fix });
        }
    }
    Ok(())
}

/// Everything that can be an end of a link, by name.
#[derive(Default)]
struct Known {
    nodes: BTreeMap<String, VertexId>,
    leafs: BTreeMap<String, VertexId>,
    spines: BTreeMap<String, VertexId>,
}

impl Known {
    fn of(fabric: &Fabric) -> Known {
        let mut known = Known::default();
        for vertex in fabric.vertices() {
            let (map, name) = match &vertex.kind {
                VertexKind::Node { name, .. } => (&mut known.nodes, name),
                VertexKind::Leaf(name) => (&mut known.leafs, name),
                VertexKind::Spine(name) => (&mut known.spines, name),
                _ => continue,
            };
            map.insert(name.clone(), vertex.id);
        }
        known
    }

    fn find(
        &self,
        field: &str,
        list: &str,
        map: &BTreeMap<String, VertexId>,
        what: &str,
    ) -> Result<Vec<VertexId>, InventoryError> {
        let unknown = |name: &String| InventoryError {
            field: field.to_owned(),
            problem: format!("unknown {what} {name:?}"),
            fix: format!("name a {what} of this inventory"),
        };
        let list = names(field, list)?;
        list.iter().map(|name| map.get(name).copied().ok_or_else(|| unknown(name))).collect()
    }
}
