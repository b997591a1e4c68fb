//! What looks wrong in a fabric: reported in plain sentences, never hidden, never repaired.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::hostlist::{compress, expand};
use crate::{Fabric, Health, LinkKind, VertexId, VertexKind};

/// One thing that differs from its siblings, or that nothing uses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Irregularity {
    /// A leaf lacks spines that most leafs it shares a spine with have.
    LeafLacksSpines {
        /// The leaf.
        leaf: String,
        /// What it lacks, as a host list.
        spines: String,
    },
    /// A leaf reaches no spine, though others do.
    LeafWithoutSpines {
        /// The leaf.
        leaf: String,
    },
    /// Nodes lack rails that most of their rack mates have.
    NodesLackRails {
        /// The rack.
        rack: String,
        /// The nodes, as a host list.
        nodes: String,
        /// The rails they lack.
        rails: Vec<u8>,
    },
    /// Nodes of a rack hang on other leafs than most of their rack mates.
    RackMatesDiffer {
        /// The rack.
        rack: String,
        /// The fewer nodes, as a host list.
        nodes: String,
        /// Their leafs, as a host list.
        leafs: String,
        /// The leafs of the largest part of the rack.
        most: String,
    },
    /// An NVLink domain reaches over several sets of leafs, so it is cut at the blocks' borders.
    NvlinkAcrossBlocks {
        /// The NVLink domain.
        domain: String,
        /// The sets of leafs, each as a host list.
        leafs: Vec<String>,
    },
    /// A leaf has nodes in several sites, so its nodes are cut into a block a site.
    LeafAcrossSites {
        /// The leaf.
        leaf: String,
        /// The sites.
        sites: Vec<String>,
    },
    /// No node hangs on this leaf.
    UnusedLeaf {
        /// The leaf.
        leaf: String,
    },
    /// No leaf reaches this spine.
    UnusedSpine {
        /// The spine.
        spine: String,
    },
    /// A node's NICs hang on the right leafs in the wrong order: its rings leave their rails.
    NicsSwapped {
        /// The nodes, as a host list.
        nodes: String,
        /// The rails that their NICs hang on, NIC by NIC.
        rails: Vec<u8>,
    },
    /// No node of a rack hangs on a rail that nodes of most such racks have.
    RackLacksLeaf {
        /// The rack.
        rack: String,
        /// The rail.
        rail: u8,
        /// What the missing leaf would be called, by the names of its siblings.
        leaf: Option<String>,
    },
    /// A leaf reaches a spine over less bandwidth than most leafs do.
    ThinUplink {
        /// The leaf.
        leaf: String,
        /// The spines it reaches so, as a host list.
        spines: String,
        /// What it has.
        gbps: u32,
        /// What most have.
        most_gbps: u32,
    },
    /// A link is slow, flaps or carries nothing.
    Unhealthy {
        /// The leaf.
        leaf: String,
        /// What is at the other ends, as a host list.
        others: String,
        /// How it is.
        health: Health,
    },
}

impl Irregularity {
    /// The nodes that differ, where it is nodes that do.
    pub fn nodes(&self) -> Vec<String> {
        match self {
            Irregularity::NodesLackRails { nodes, .. }
            | Irregularity::RackMatesDiffer { nodes, .. }
            | Irregularity::NicsSwapped { nodes, .. } => expand(nodes).unwrap_or_default(),
            _ => Vec::new(),
        }
    }
}

impl fmt::Display for Irregularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Irregularity::LeafLacksSpines { leaf, spines } => {
                write!(f, "leaf {leaf} does not reach {spines}, which most of its siblings do")
            }
            Irregularity::LeafWithoutSpines { leaf } => {
                write!(f, "leaf {leaf} reaches no spine, though others do")
            }
            Irregularity::NodesLackRails { rack, nodes, rails } => {
                let rails: Vec<String> = rails.iter().map(u8::to_string).collect();
                let rails = rails.join(", ");
                write!(f, "in rack {rack}, {nodes} without rail {rails}, which most others have")
            }
            Irregularity::RackMatesDiffer { rack, nodes, leafs, most } => {
                write!(
                    f,
                    "in rack {rack}, the leafs of {nodes} are {leafs}, those of others {most}"
                )
            }
            Irregularity::NvlinkAcrossBlocks { domain, leafs } => {
                let leafs = leafs.join(" and ");
                write!(f, "NVLink domain {domain} reaches over several blocks: {leafs}")
            }
            Irregularity::LeafAcrossSites { leaf, sites } => {
                write!(f, "leaf {leaf} has nodes in several sites: {}", sites.join(", "))
            }
            Irregularity::UnusedLeaf { leaf } => write!(f, "no node hangs on leaf {leaf}"),
            Irregularity::UnusedSpine { spine } => write!(f, "no leaf reaches spine {spine}"),
            Irregularity::NicsSwapped { nodes, rails } => {
                let rails: Vec<String> = rails.iter().map(u8::to_string).collect();
                let rails = rails.join(", ");
                write!(f, "the NICs of {nodes} are swapped: one after the other on rails {rails}")
            }
            Irregularity::RackLacksLeaf { rack, rail, leaf } => {
                write!(f, "rack {rack} has no leaf for rail {rail}")?;
                match leaf {
                    Some(leaf) => write!(f, ", by its siblings' names {leaf}"),
                    None => Ok(()),
                }
            }
            Irregularity::ThinUplink { leaf, spines, gbps, most_gbps } => {
                write!(
                    f,
                    "leaf {leaf} reaches {spines} at {gbps} Gb/s, where most have {most_gbps}"
                )
            }
            Irregularity::Unhealthy { leaf, others, health } => {
                let health = match health {
                    Health::Down => "down",
                    Health::Up | Health::Degraded => "degraded",
                };
                write!(f, "the link of leaf {leaf} to {others} is {health}")
            }
        }
    }
}

impl Fabric {
    /// All irregularities, in a fixed order.
    pub fn irregularities(&self) -> Vec<Irregularity> {
        let mut found = Vec::new();
        self.lacking_spines(&mut found);
        self.differing_racks(&mut found);
        self.cut_domains(&mut found);
        self.unused_switches(&mut found);
        self.rails(&mut found);
        self.links_that_differ(&mut found);
        found.sort();
        found
    }

    fn lacking_spines(&self, found: &mut Vec<Irregularity>) {
        // Grouped by equal sets: a big fabric has thousands of leafs but few sets.
        let mut sets: BTreeMap<Vec<VertexId>, Vec<VertexId>> = BTreeMap::new();
        for leaf in self.vertices().filter(|v| matches!(v.kind, VertexKind::Leaf(_))) {
            sets.entry(self.spines_of(&[leaf.id])).or_default().push(leaf.id);
        }
        for leaf in sets.get(&Vec::new()).filter(|_| sets.len() > 1).into_iter().flatten() {
            found.push(Irregularity::LeafWithoutSpines { leaf: self.name(*leaf).to_owned() });
        }
        for (own, leafs) in &sets {
            let siblings: Vec<_> =
                sets.iter().filter(|(set, _)| set.iter().any(|s| own.contains(s))).collect();
            // A leaf is no sibling of its own.
            let count: usize = siblings.iter().map(|(_, leafs)| leafs.len()).sum();
            let others = count.saturating_sub(1);
            let mut having: BTreeMap<VertexId, usize> = BTreeMap::new();
            for (set, leafs) in siblings {
                for spine in set.iter().filter(|spine| !own.contains(spine)) {
                    *having.entry(*spine).or_default() += leafs.len();
                }
            }
            having.retain(|_, count| *count * 2 > others);
            if having.is_empty() {
                continue;
            }
            let spines = self.names(having.keys());
            for leaf in leafs {
                let leaf = self.name(*leaf).to_owned();
                found.push(Irregularity::LeafLacksSpines { leaf, spines: spines.clone() });
            }
        }
    }

    fn differing_racks(&self, found: &mut Vec<Irregularity>) {
        for rack in self.vertices().filter(|v| matches!(v.kind, VertexKind::Rack(_))) {
            let mut mates = self.neighbours(rack.id, |kind| kind == LinkKind::Contains);
            mates.retain(|id| self.is_node(*id));
            self.differing_mates(self.name(rack.id), &mates, found);
        }
    }

    fn differing_mates(&self, rack: &str, mates: &[VertexId], found: &mut Vec<Irregularity>) {
        let mut sets: BTreeMap<Vec<VertexId>, Vec<VertexId>> = BTreeMap::new();
        let mut having: BTreeMap<u8, usize> = BTreeMap::new();
        for node in mates {
            sets.entry(self.leafs(*node)).or_default().push(*node);
            for rail in self.rails_of(*node) {
                *having.entry(rail).or_default() += 1;
            }
        }
        // The most common set; of equally common ones the largest, then the first.
        let rank = |leafs: &Vec<VertexId>, nodes: &Vec<VertexId>| {
            (nodes.len(), leafs.len(), Reverse(leafs.clone()))
        };
        let Some((most, _)) = sets.iter().max_by_key(|(leafs, nodes)| rank(leafs, nodes)) else {
            return;
        };
        having.retain(|_, count| *count * 2 > mates.len() - 1);
        for (leafs, members) in sets.iter().filter(|(leafs, _)| *leafs != most) {
            let own = self.rails_of(members[0]);
            let lacks: Vec<u8> = having.keys().filter(|r| !own.contains(r)).copied().collect();
            let rack = rack.to_owned();
            let nodes = self.names(members);
            found.push(match lacks.is_empty() {
                true => {
                    let (leafs, most) = (self.names(leafs), self.names(most));
                    Irregularity::RackMatesDiffer { rack, nodes, leafs, most }
                }
                false => Irregularity::NodesLackRails { rack, nodes, rails: lacks },
            });
        }
    }

    fn cut_domains(&self, found: &mut Vec<Irregularity>) {
        let mut blocks: BTreeMap<VertexId, BTreeSet<Vec<VertexId>>> = BTreeMap::new();
        let mut sites: BTreeMap<VertexId, BTreeSet<VertexId>> = BTreeMap::new();
        for node in self.vertices().filter(|v| matches!(v.kind, VertexKind::Node { .. })) {
            let leafs = self.leafs(node.id);
            for leaf in &leafs {
                sites.entry(*leaf).or_default().extend(self.site(node.id));
            }
            if let Some(domain) = self.nvlink_domain(node.id) {
                blocks.entry(domain).or_default().insert(leafs);
            }
        }
        for (domain, sets) in blocks.iter().filter(|(_, sets)| sets.len() > 1) {
            let domain = self.name(*domain).to_owned();
            let leafs = sets.iter().map(|set| self.names(set)).collect();
            found.push(Irregularity::NvlinkAcrossBlocks { domain, leafs });
        }
        for (leaf, sites) in sites.iter().filter(|(_, sites)| sites.len() > 1) {
            let leaf = self.name(*leaf).to_owned();
            let sites = sites.iter().map(|site| self.name(*site).to_owned()).collect();
            found.push(Irregularity::LeafAcrossSites { leaf, sites });
        }
    }

    fn unused_switches(&self, found: &mut Vec<Irregularity>) {
        for vertex in self.vertices() {
            let lacks =
                |wanted: fn(LinkKind) -> bool| self.neighbours(vertex.id, wanted).is_empty();
            match &vertex.kind {
                VertexKind::Leaf(leaf) if lacks(|kind| matches!(kind, LinkKind::Rail(_))) => {
                    found.push(Irregularity::UnusedLeaf { leaf: leaf.clone() });
                }
                VertexKind::Spine(spine) if lacks(|kind| kind == LinkKind::Uplink) => {
                    found.push(Irregularity::UnusedSpine { spine: spine.clone() });
                }
                _ => {}
            }
        }
    }

    fn is_node(&self, id: VertexId) -> bool {
        self.vertex(id).is_some_and(|vertex| matches!(vertex.kind, VertexKind::Node { .. }))
    }

    pub(crate) fn rails_of(&self, node: VertexId) -> BTreeSet<u8> {
        let rail = |kind| if let LinkKind::Rail(rail) = kind { Some(rail) } else { None };
        self.link_kinds(node).filter_map(rail).collect()
    }

    pub(crate) fn names<'a>(&self, ids: impl IntoIterator<Item = &'a VertexId>) -> String {
        let names: Vec<String> = ids.into_iter().map(|id| self.name(*id).to_owned()).collect();
        if names.is_empty() { "no leafs".to_owned() } else { compress(&names) }
    }
}
