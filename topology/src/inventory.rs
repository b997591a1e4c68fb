//! The inventory file: how people write a fabric down, and how that expands to a record.
//!
//! One schema for YAML, TOML and JSON; the cli reads the file and suggests spellings. Wherever a
//! name is expected a host list may stand (`node[1101-1118]`). Checks live in `check`; here only
//! what the expansion itself can get wrong is reported.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::check::{
    Fault, InventoryError, MAX_LEAFS_A_NODE, MAX_SPINES_A_LEAF, MAX_SWITCHES, check_name,
};
use crate::hostlist::{self, MAX_NAMES};
use crate::links::LinkGroup;
use crate::topograph::{Topograph, imply_switches};
use crate::{Fabric, FabricRecord, LeafRecord, NodeRecord};

/// The site of nodes for which nothing names one.
pub(crate) const DEFAULT_SITE: &str = "default";

/// A fabric as written in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Inventory {
    /// The site of every node group that names none of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// Second-tier switches, as a host list: `spine[1-4]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spines: Option<String>,
    /// First-tier switches.
    #[serde(default)]
    pub leafs: Vec<LeafGroup>,
    /// The machines with GPUs.
    pub nodes: Vec<NodeGroup>,
    /// Bandwidth and health of links. Shown and checked; not stored by the cluster yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<LinkGroup>,
}

/// Leafs that are alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LeafGroup {
    /// Host list: `leaf[1-4]`.
    pub names: String,
    /// The rail that all of them serve. Left out: each one's place in the nodes' `leafs` says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rail: Option<u8>,
    /// The spines that all of them reach, as a host list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spines: Option<String>,
}

/// Nodes that are alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeGroup {
    /// Host list: `node[1101-1118]`.
    pub names: String,
    /// The site; left out: the inventory's `site`, else topograph's core label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// The rack. A host list of several racks shares the nodes out evenly, in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    /// The leafs that each of these nodes hangs on, one a rail in rail order, as a host list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leafs: Option<String>,
    /// The NVLink domain; left out: each node is its own (HGX). Several share the nodes out evenly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nvlink_domain: Option<String>,
    /// The GPUs of each node.
    pub gpu: GpuKind,
    /// The NIC model, for example `ConnectX-7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nic: Option<String>,
    /// Hardware threads of each node.
    pub cpus: u32,
    /// Main memory of each node.
    pub memory_mib: u64,
    /// Where the agents answer: a host list with one address a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addr: Option<String>,
    /// What fails together, by kind: `power: feed-a`. Rack and site count by themselves. Several
    /// values (`feed[1-2]`) share the nodes out evenly.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failure_domains: BTreeMap<String, String>,
    /// Free-form. Topograph's keys `network.topology.nvidia.com/accelerator`, `leaf`, `spine` and
    /// `core` (and those of topograph 1.x) stand for NVLink domain, leaf, spine and site where
    /// those fields are left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// The GPUs of a node, all alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GpuKind {
    /// For example `H100`.
    pub model: String,
    /// 1 to 64.
    pub count: u16,
    /// Memory of one GPU.
    pub memory_mib: u64,
}

impl Inventory {
    /// The record of this inventory, every limit and reference checked.
    pub fn expand(&self) -> Result<FabricRecord, InventoryError> {
        let mut out = Expansion::default();
        if let Some(site) = &self.site {
            check_name("site", site).map_err(Fault::alone)?;
        }
        if let Some(spines) = &self.spines {
            out.record.spines = names("spines", spines)?;
            bounded("spines", out.record.spines.len(), MAX_SWITCHES)?;
        }
        for (at, group) in self.leafs.iter().enumerate() {
            out.add_leafs(at, group)?;
        }
        for (at, group) in self.nodes.iter().enumerate() {
            out.add_nodes(at, group, self.site.as_deref())?;
        }
        imply_switches(&mut out.record, &self.nodes)?;
        out.record.first_fault().map_err(|fault| out.spell(fault))?;
        Ok(out.record)
    }

    /// The graph of this inventory, with what it says of links.
    pub fn fabric(&self) -> Result<Fabric, InventoryError> {
        let mut fabric = Fabric::from_record(&self.expand()?)?;
        crate::links::apply(&mut fabric, &self.links)?;
        Ok(fabric)
    }

    /// The shortest inventory that expands to `record`: neighbours that are alike become a group.
    /// (A node whose labels name a leaf that its list of leafs does not have cannot be told so.)
    pub fn from_record(record: &FabricRecord) -> Inventory {
        let spines = Some(hostlist::compress(&record.spines)).filter(|list| !list.is_empty());
        let leafs = record.leafs.chunk_by(|a, b| a.rail == b.rail && a.spines == b.spines);
        let nodes = record.nodes.chunk_by(alike);
        Inventory {
            site: None,
            spines,
            leafs: leafs.map(leaf_group).collect(),
            nodes: nodes.map(node_group).collect(),
            links: Vec::new(),
        }
    }
}

/// Two nodes that one group describes.
fn alike(a: &NodeRecord, b: &NodeRecord) -> bool {
    a.site == b.site
        && a.rack == b.rack
        && a.nvlink_domain == b.nvlink_domain
        && a.leafs == b.leafs
        && a.gpu_model == b.gpu_model
        && (a.gpu_count, a.gpu_memory_mib) == (b.gpu_count, b.gpu_memory_mib)
        && a.nic_model == b.nic_model
        && (a.cpus, a.memory_mib) == (b.cpus, b.memory_mib)
        && a.addr.is_some() == b.addr.is_some()
        && a.failure_domains == b.failure_domains
        && a.labels == b.labels
}

fn leaf_group(leafs: &[LeafRecord]) -> LeafGroup {
    let names: Vec<String> = leafs.iter().map(|leaf| leaf.name.clone()).collect();
    let first = &leafs[0];
    let spines = Some(hostlist::compress(&first.spines)).filter(|list| !list.is_empty());
    LeafGroup { names: hostlist::compress(&names), rail: first.rail, spines }
}

fn node_group(nodes: &[NodeRecord]) -> NodeGroup {
    let names: Vec<String> = nodes.iter().map(|node| node.name.clone()).collect();
    let addrs: Vec<String> = nodes.iter().filter_map(|node| node.addr.clone()).collect();
    let first = &nodes[0];
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    NodeGroup {
        names: hostlist::compress(&names),
        site: some(&first.site),
        rack: some(&first.rack),
        leafs: some(&hostlist::compress(&first.leafs)),
        nvlink_domain: first.nvlink_domain.clone(),
        gpu: GpuKind {
            model: first.gpu_model.clone(),
            count: first.gpu_count,
            memory_mib: first.gpu_memory_mib,
        },
        nic: some(&first.nic_model),
        cpus: first.cpus,
        memory_mib: first.memory_mib,
        addr: some(&hostlist::compress(&addrs)),
        failure_domains: first.failure_domains.clone(),
        labels: first.labels.clone(),
    }
}

/// The record as it grows, and which group each member came from.
#[derive(Default)]
struct Expansion {
    record: FabricRecord,
    leaf_groups: Vec<usize>,
    node_groups: Vec<usize>,
}

impl Expansion {
    fn add_leafs(&mut self, at: usize, group: &LeafGroup) -> Result<(), InventoryError> {
        let spines = group.spines.as_deref();
        let spines = links(&format!("leafs[{at}].spines"), spines, MAX_SPINES_A_LEAF)?;
        let field = format!("leafs[{at}].names");
        let leaf_names = names(&field, &group.names)?;
        bounded(&field, self.record.leafs.len() + leaf_names.len(), MAX_SWITCHES)?;
        for name in leaf_names {
            let spines = spines.clone();
            self.record.leafs.push(LeafRecord { name, rail: group.rail, spines });
            self.leaf_groups.push(at);
        }
        Ok(())
    }

    fn add_nodes(
        &mut self,
        at: usize,
        group: &NodeGroup,
        default_site: Option<&str>,
    ) -> Result<(), InventoryError> {
        let field = |name: &str| format!("nodes[{at}].{name}");
        let node_names = names(&field("names"), &group.names)?;
        bounded(&field("names"), self.record.nodes.len() + node_names.len(), MAX_NAMES)?;
        let count = node_names.len();
        let label = Topograph::read(at, group)?;

        let site = group.site.as_deref().or(default_site).or(label.core);
        let leafs = group.leafs.as_deref().or(label.leaf);
        let leafs = links(&field("leafs"), leafs, MAX_LEAFS_A_NODE)?;
        let rack = shared_out(&field("rack"), group.rack.as_deref(), count)?;
        let nvlink = group.nvlink_domain.as_deref().or(label.accelerator);
        let nvlink = shared_out(&field("nvlink_domain"), nvlink, count)?;
        let addr = one_each(&field("addr"), group.addr.as_deref(), count)?;
        let mut failure = Vec::new();
        for (kind, list) in &group.failure_domains {
            let path = field(&format!("failure_domains.{kind}"));
            failure.push((kind, shared_out(&path, Some(list), count)?));
        }

        for (i, name) in node_names.into_iter().enumerate() {
            self.node_groups.push(at);
            self.record.nodes.push(NodeRecord {
                name,
                site: site.unwrap_or(DEFAULT_SITE).to_owned(),
                rack: rack.get(i).cloned().unwrap_or_default(),
                nvlink_domain: nvlink.get(i).cloned(),
                leafs: leafs.clone(),
                gpu_model: group.gpu.model.clone(),
                gpu_count: group.gpu.count,
                gpu_memory_mib: group.gpu.memory_mib,
                nic_model: group.nic.clone().unwrap_or_default(),
                cpus: group.cpus,
                memory_mib: group.memory_mib,
                addr: addr.get(i).cloned(),
                failure_domains: failure
                    .iter()
                    .map(|(kind, values)| ((*kind).clone(), values[i].clone()))
                    .collect(),
                labels: group.labels.clone(),
            });
        }
        Ok(())
    }

    /// Spells a fault of the record in the inventory's own fields.
    fn spell(&self, fault: Fault) -> InventoryError {
        let field = match fault.field.as_str() {
            "gpu_model" => "gpu.model".to_owned(),
            "gpu_count" => "gpu.count".to_owned(),
            "gpu_memory_mib" => "gpu.memory_mib".to_owned(),
            "nic_model" => "nic".to_owned(),
            "name" => "names".to_owned(),
            other => other.to_owned(),
        };
        match fault.list {
            "nodes" if fault.index < self.node_groups.len() => {
                let group = self.node_groups[fault.index];
                fault.spelled(group, &field)
            }
            // What labels imply is beyond the groups, and its names were checked as it was read.
            "leafs" if fault.index < self.leaf_groups.len() => {
                let group = self.leaf_groups[fault.index];
                fault.spelled(group, &field)
            }
            // The spines are one host list, an empty inventory has no group to point at.
            list => {
                InventoryError { field: list.to_owned(), problem: fault.problem, fix: fault.fix }
            }
        }
    }
}

pub(crate) fn names(field: &str, list: &str) -> Result<Vec<String>, InventoryError> {
    hostlist::expand(list).map_err(|error| InventoryError {
        field: field.to_owned(),
        problem: error.to_string(),
        fix: "write names like node[1-8,12]".to_owned(),
    })
}

/// Refuses before anything is copied for each of the names.
fn bounded(field: &str, len: usize, most: usize) -> Result<(), InventoryError> {
    if len <= most {
        return Ok(());
    }
    Err(InventoryError {
        field: field.to_owned(),
        problem: format!("{len} names up to here"),
        fix: format!("at most {most} are possible"),
    })
}

/// The switches that each member of a group is linked to. Empty where there is no list.
fn links(field: &str, list: Option<&str>, most: usize) -> Result<Vec<String>, InventoryError> {
    let Some(list) = list else { return Ok(Vec::new()) };
    let links = names(field, list)?;
    bounded(field, links.len(), most)?;
    Ok(links)
}

/// `list`'s names, each repeated so that `count` nodes are shared out evenly, in order. Empty
/// where there is no list.
fn shared_out(
    field: &str,
    list: Option<&str>,
    count: usize,
) -> Result<Vec<String>, InventoryError> {
    let Some(list) = list else { return Ok(Vec::new()) };
    let values = names(field, list)?;
    if !count.is_multiple_of(values.len()) {
        return Err(InventoryError {
            field: field.to_owned(),
            problem: format!("{count} nodes cannot be shared out evenly over {}", values.len()),
            fix: "name as many as divide the nodes, or split the group".to_owned(),
        });
    }
    let each = count / values.len();
    Ok(values.into_iter().flat_map(|value| std::iter::repeat_n(value, each)).collect())
}

/// `list`'s names, exactly one a node. Empty where there is no list.
fn one_each(field: &str, list: Option<&str>, count: usize) -> Result<Vec<String>, InventoryError> {
    let Some(list) = list else { return Ok(Vec::new()) };
    let values = names(field, list)?;
    if values.len() != count {
        return Err(InventoryError {
            field: field.to_owned(),
            problem: format!("{} addresses for {count} nodes", values.len()),
            fix: "write one a node, for example 10.0.0.[1-8]".to_owned(),
        });
    }
    Ok(values)
}
