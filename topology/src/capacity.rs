//! What a fabric with faulty links can still offer: GPUs at full speed, by domain.
//!
//! A pure function of the fabric and of the faults: the index keeps its ranges, only what its
//! domains can offer sinks. Faults of things that no longer exist count for nothing. Never decides
//! what is faulty: whoever watches links says so.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{DomainId, FabricRecord, FlatIndex, Health, Level, NodePos, NodeRecord};

/// All of a link, in thousandths.
const WHOLE: u32 = 1_000;
/// What a slow or flapping link is worth where nobody measured it.
const DEGRADED: u16 = 500;

/// A link that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkFault {
    /// Which link.
    pub link: FaultyLink,
    /// What is left of its bandwidth, in thousandths: 0 is down.
    pub left_milli: u16,
}

/// Which link is faulty. Stored by the replicated state: variants are only appended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FaultyLink {
    /// A GPU's way into its NVLink domain.
    NvLink {
        /// The node.
        node: String,
        /// The GPU's number in it.
        gpu: u16,
    },
    /// A node's way to a leaf.
    Rail {
        /// The node.
        node: String,
        /// The leaf.
        leaf: String,
    },
    /// A leaf's way to a spine.
    Uplink {
        /// The leaf.
        leaf: String,
        /// The spine.
        spine: String,
    },
}

impl Health {
    /// What is left of a link of this health, in thousandths, where nobody measured it.
    pub fn left_milli(self) -> u16 {
        match self {
            Health::Up => WHOLE as u16,
            Health::Degraded => DEGRADED,
            Health::Down => 0,
        }
    }
}

/// A node whose GPUs do not reach all others at full speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Impaired {
    /// Which.
    pub pos: NodePos,
    /// By level, coarse to fine: what is left of its GPUs' ways to the others of its domain there,
    /// in thousandths.
    pub left_milli: [u16; 5],
}

impl Impaired {
    /// What is left of its ways within its domain of a level, in thousandths.
    pub fn left_milli(&self, level: Level) -> u16 {
        self.left_milli[level as usize]
    }
}

/// Every node that some fault slows down on some level, by position. Ways as in [`offers`].
pub fn impaired(record: &FabricRecord, index: &FlatIndex, faults: &[LinkFault]) -> Vec<Impaired> {
    let left = Left::of(record, faults);
    if left.nothing() {
        return Vec::new();
    }
    let positions = (0..index.node_count()).map(NodePos);
    let of = |pos: NodePos| {
        let node = &record.nodes[index.node_record(pos)];
        if !left.touches(node) {
            return None;
        }
        let whole = u64::from(node.gpu_count.max(1));
        let left_milli = left.ways(node).map(|way| (way / whole) as u16);
        let slowed = left_milli.iter().any(|left| u32::from(*left) < WHOLE);
        slowed.then_some(Impaired { pos, left_milli })
    };
    positions.filter_map(of).collect()
}

/// GPUs that can talk at full speed, by domain of each level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offers {
    levels: [Vec<u32>; 5],
}

impl Offers {
    /// GPUs of the domain that together reach each other at full speed.
    pub fn gpus(&self, domain: DomainId) -> u32 {
        self.levels[domain.level as usize][domain.ordinal as usize]
    }
}

/// What each domain can offer. A GPU's way up is its NVLink, the rail of its NIC (the GPUs of a
/// node share the NICs out evenly, in order) and that leaf's uplinks; a domain offers the sum of
/// what is left of its GPUs' ways, rounded down. Within a node nothing of this counts.
pub fn offers(record: &FabricRecord, index: &FlatIndex, faults: &[LinkFault]) -> Offers {
    let left = Left::of(record, faults);
    let mut milli = Level::ALL.map(|level| vec![0_u64; index.domains(level).len()]);
    for pos in (0..index.node_count()).map(crate::NodePos) {
        let node = &record.nodes[index.node_record(pos)];
        let ways = left.ways(node);
        for level in Level::ALL {
            let domain = index.domain_of(pos, level);
            milli[level as usize][domain.ordinal as usize] += ways[level as usize];
        }
    }
    let whole = |sums: Vec<u64>| {
        sums.into_iter().map(|sum| (sum / u64::from(WHOLE)) as u32).collect::<Vec<u32>>()
    };
    Offers { levels: milli.map(whole) }
}

/// What is left, of what is not whole.
struct Left<'a> {
    nvlinks: BTreeMap<(&'a str, u16), u32>,
    rails: BTreeMap<(&'a str, &'a str), u32>,
    /// By leaf: of all its uplinks together.
    uplinks: BTreeMap<&'a str, u32>,
}

impl<'a> Left<'a> {
    fn of(record: &'a FabricRecord, faults: &'a [LinkFault]) -> Left<'a> {
        let mut left =
            Left { nvlinks: BTreeMap::new(), rails: BTreeMap::new(), uplinks: BTreeMap::new() };
        let mut spines: BTreeMap<(&str, &str), u32> = BTreeMap::new();
        for fault in faults {
            let milli = u32::from(fault.left_milli).min(WHOLE);
            // Two faults of one link are one: the worse.
            let worse = |known: &mut u32| *known = milli.min(*known);
            match &fault.link {
                FaultyLink::NvLink { node, gpu } => {
                    worse(left.nvlinks.entry((node, *gpu)).or_insert(WHOLE));
                }
                FaultyLink::Rail { node, leaf } => {
                    worse(left.rails.entry((node, leaf)).or_insert(WHOLE));
                }
                FaultyLink::Uplink { leaf, spine } => {
                    worse(spines.entry((leaf, spine)).or_insert(WHOLE));
                }
            }
        }
        if spines.is_empty() {
            return left;
        }
        for leaf in record.leafs.iter().filter(|leaf| !leaf.spines.is_empty()) {
            let of = |spine: &String| {
                spines.get(&(leaf.name.as_str(), spine.as_str())).copied().unwrap_or(WHOLE)
            };
            let sum: u32 = leaf.spines.iter().map(of).sum();
            let share = sum / leaf.spines.len() as u32;
            if share < WHOLE {
                left.uplinks.insert(&leaf.name, share);
            }
        }
        left
    }

    fn nothing(&self) -> bool {
        self.nvlinks.is_empty() && self.rails.is_empty() && self.uplinks.is_empty()
    }

    /// Whether any of it may concern the node: one look-up a map, for most nodes it does not.
    fn touches(&self, node: &NodeRecord) -> bool {
        let name = node.name.as_str();
        let first = self.nvlinks.range((name, 0)..).next();
        let nvlink = first.is_some_and(|((other, _), _)| *other == name);
        let first = self.rails.range((name, "")..).next();
        let rail = first.is_some_and(|((other, _), _)| *other == name);
        let uplink = || node.leafs.iter().any(|leaf| self.uplinks.contains_key(leaf.as_str()));
        nvlink || rail || (!self.uplinks.is_empty() && uplink())
    }

    /// By level: what is left of the ways of all GPUs of the node, in thousandths of a GPU.
    fn ways(&self, node: &NodeRecord) -> [u64; 5] {
        let whole = u64::from(node.gpu_count) * u64::from(WHOLE);
        let mut ways = [whole; 5];
        if self.nothing() {
            return ways;
        }
        let (mut nvlink, mut block, mut pod) = (0, 0, 0);
        for gpu in 0..node.gpu_count {
            let own = self.nvlinks.get(&(node.name.as_str(), gpu)).copied().unwrap_or(WHOLE);
            let nic = usize::from(gpu) * node.leafs.len() / usize::from(node.gpu_count);
            let leaf = node.leafs.get(nic).map_or("", String::as_str);
            let rail = self.rails.get(&(node.name.as_str(), leaf)).copied().unwrap_or(WHOLE);
            let uplink = self.uplinks.get(leaf).copied().unwrap_or(WHOLE);
            nvlink += u64::from(own);
            block += u64::from(own.min(rail));
            pod += u64::from(own.min(rail).min(uplink));
        }
        ways[Level::Nvlink as usize] = nvlink;
        ways[Level::Block as usize] = block;
        ways[Level::Pod as usize] = pod;
        ways[Level::Site as usize] = pod;
        ways
    }
}
