//! The fabric as the replicated state stores it: plain structs and ordered collections.
//!
//! The derives carry no serde attributes, since these structs also go through bincode, which
//! cannot `flatten` or skip. Never holds anything derived: see [`FlatIndex`](crate::FlatIndex).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Every node, leaf and spine of a cluster. The order of the lists is the operator's own and is
/// kept: domains and nodes are numbered by first appearance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FabricRecord {
    /// The machines with GPUs.
    pub nodes: Vec<NodeRecord>,
    /// The first tier of switches.
    pub leafs: Vec<LeafRecord>,
    /// Names of the second tier of switches.
    pub spines: Vec<String>,
}

/// One machine with GPUs, all of one model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Unique in the cluster.
    pub name: String,
    /// The site it stands in.
    pub site: String,
    /// The rack within the site; empty where racks are unknown.
    pub rack: String,
    /// The NVLink domain it shares with others; `None`: the node is its own domain (HGX).
    pub nvlink_domain: Option<String>,
    /// Names of the leafs it hangs on, one a rail, in rail order; empty where unknown.
    pub leafs: Vec<String>,
    /// For example `H100`.
    pub gpu_model: String,
    /// 1 to 64: a node's GPUs are a u64 mask.
    pub gpu_count: u16,
    /// Memory of one GPU.
    pub gpu_memory_mib: u64,
    /// For example `ConnectX-7`; empty where unknown.
    pub nic_model: String,
    /// Hardware threads.
    pub cpus: u32,
    /// Main memory.
    pub memory_mib: u64,
    /// Where its agent answers, where that is fixed.
    pub addr: Option<String>,
    /// What fails together, by kind, for example `power` = `feed-a`. Rack and site are failure
    /// domains by themselves and are not repeated here.
    pub failure_domains: BTreeMap<String, String>,
    /// Free-form, for selection.
    pub labels: BTreeMap<String, String>,
}

/// One leaf switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafRecord {
    /// Unique among the leafs.
    pub name: String,
    /// The rail it serves; `None`: its place in the nodes' list of leafs says it.
    pub rail: Option<u8>,
    /// Names of the spines it reaches.
    pub spines: Vec<String>,
}

impl NodeRecord {
    /// The name that tells this rack from one of the same name in another site.
    pub(crate) fn rack_key(&self) -> (&str, &str) {
        (&self.site, &self.rack)
    }
}
