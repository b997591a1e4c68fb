//! What a machine has, as far as somebody said; the rest is assumed, and said to be.
//!
//! Network dumps know switches and cables but no GPU. Never assumes in silence.

use std::collections::BTreeMap;

use crate::NodeRecord;

/// Where nothing tells a model, nothing is made up.
const UNKNOWN_MODEL: &str = "unknown";
const GPUS: u16 = 8;
const GPU_MEMORY_MIB: u64 = 80 << 10;
const CPUS_PER_GPU: u32 = 16;
const MEMORY_PER_GPU_MIB: u64 = 128 << 10;

/// What each machine has; `None`: not said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hardware {
    /// For example `H100`.
    pub gpu_model: Option<String>,
    /// GPUs a node.
    pub gpu_count: Option<u16>,
    /// Memory of one GPU.
    pub gpu_memory_mib: Option<u64>,
    /// For example `ConnectX-7`.
    pub nic_model: Option<String>,
    /// Hardware threads a node.
    pub cpus: Option<u32>,
    /// Main memory a node.
    pub memory_mib: Option<u64>,
}

impl Hardware {
    /// This where it says something, else `other`.
    pub fn or(self, other: Hardware) -> Hardware {
        Hardware {
            gpu_model: self.gpu_model.or(other.gpu_model),
            gpu_count: self.gpu_count.or(other.gpu_count),
            gpu_memory_mib: self.gpu_memory_mib.or(other.gpu_memory_mib),
            nic_model: self.nic_model.or(other.nic_model),
            cpus: self.cpus.or(other.cpus),
            memory_mib: self.memory_mib.or(other.memory_mib),
        }
    }

    /// What nobody said and `node` therefore assumes, in words.
    pub(super) fn assumed(&self) -> Vec<String> {
        let node = self.node(String::new(), String::new());
        let mut assumed = Vec::new();
        if self.gpu_model.is_none() {
            assumed.push(format!("GPU model {}", node.gpu_model));
        }
        if self.gpu_count.is_none() {
            assumed.push(format!("{} GPUs a node", node.gpu_count));
        }
        if self.gpu_memory_mib.is_none() {
            assumed.push(format!("{} MiB of memory a GPU", node.gpu_memory_mib));
        }
        if self.cpus.is_none() {
            assumed.push(format!("{} CPUs a node", node.cpus));
        }
        if self.memory_mib.is_none() {
            assumed.push(format!("{} MiB of main memory a node", node.memory_mib));
        }
        assumed
    }

    /// A machine with this hardware that stands nowhere yet.
    pub(super) fn node(&self, name: String, site: String) -> NodeRecord {
        let gpu_count = self.gpu_count.unwrap_or(GPUS);
        NodeRecord {
            name,
            site,
            rack: String::new(),
            nvlink_domain: None,
            leafs: Vec::new(),
            gpu_model: self.gpu_model.clone().unwrap_or_else(|| UNKNOWN_MODEL.to_owned()),
            gpu_count,
            gpu_memory_mib: self.gpu_memory_mib.unwrap_or(GPU_MEMORY_MIB),
            nic_model: self.nic_model.clone().unwrap_or_default(),
            cpus: self.cpus.unwrap_or(CPUS_PER_GPU * u32::from(gpu_count)),
            memory_mib: self.memory_mib.unwrap_or(MEMORY_PER_GPU_MIB * u64::from(gpu_count)),
            addr: None,
            failure_domains: BTreeMap::new(),
            labels: BTreeMap::new(),
        }
    }
}
