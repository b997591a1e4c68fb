//! A tree of switches with nodes at its leafs, as a record.
//!
//! A tree may be of any height: the switches with nodes become leafs, those above them spines, and
//! each tier above a kind of failure domain (`tier-3`). The trees' roots are the sites where there
//! are several, since nothing leads from one tree to another, and where there is a third tier,
//! since that is how topograph's labels are read too. Knows nothing of how the tree was written.

use std::collections::{BTreeMap, BTreeSet};

use super::{ImportError, Options, Remark, site_of};
use crate::{FabricRecord, LeafRecord, NodeRecord};

/// More switches than this are no cluster of ours.
pub(super) const MAX_SWITCHES: usize = 32_768;
/// Children listed in one file: each is a name of its own.
pub(super) const MAX_CHILDREN: usize = 1 << 20;
/// Tiers of a tree; beyond, it is taken for a circle.
const MAX_TIERS: usize = 16;

/// A switch, or a block, and what hangs on it.
pub(super) struct Switch {
    pub(super) line: u64,
    pub(super) name: String,
    pub(super) switches: Vec<String>,
    pub(super) nodes: Vec<String>,
}

/// How the format calls the children, for its errors.
pub(super) struct Fields {
    pub(super) switches: &'static str,
    pub(super) nodes: &'static str,
}

/// The record of the tree. `decorate` may add to each node; it gets the way from the node's leaf
/// to its root, as places in `switches`.
pub(super) fn record(
    switches: &[Switch],
    fields: &Fields,
    options: &Options,
    remarks: &mut Vec<Remark>,
    decorate: impl Fn(&mut NodeRecord, &[usize]),
) -> Result<FabricRecord, ImportError> {
    let tree = Tree::grow(switches, fields)?;
    tree.remark(switches, remarks);
    let ways: Vec<Vec<usize>> = (0..switches.len()).map(|at| tree.way_up(at)).collect();
    let leafs = || (0..switches.len()).filter(|at| !switches[*at].nodes.is_empty());
    let roots: BTreeSet<usize> = leafs().filter_map(|at| ways[at].last().copied()).collect();
    let highest = leafs().map(|at| ways[at].len()).max().unwrap_or(0);

    // Without a third tier a single root is a spine like any other.
    let roots_are_sites = options.site.is_none() && (roots.len() > 1 || highest > 2);
    let mut record = FabricRecord::default();
    let mut spines = BTreeSet::new();
    let mut place_of: BTreeMap<&str, usize> = BTreeMap::new();
    for at in leafs() {
        let switch = &switches[at];
        let above: Vec<String> =
            tree.parents[at].iter().map(|parent| switches[*parent].name.clone()).collect();
        for spine in &above {
            if spines.insert(spine.clone()) {
                record.spines.push(spine.clone());
            }
        }
        record.leafs.push(LeafRecord { name: switch.name.clone(), rail: None, spines: above });
        let way = &ways[at];
        let name_at = |place: usize| switches[way[place]].name.clone();
        for name in &switch.nodes {
            if let Some(&known) = place_of.get(name.as_str()) {
                if record.nodes[known].leafs.last() == Some(&switch.name) {
                    let problem = format!("{name:?} is named twice");
                    return Err(ImportError::at(switch.line, fields.nodes, problem, "keep one"));
                }
                record.nodes[known].leafs.push(switch.name.clone());
                continue;
            }
            place_of.insert(name, record.nodes.len());
            let mut node = options.hardware.node(name.clone(), site_of(options));
            node.leafs.push(switch.name.clone());
            if roots_are_sites {
                node.site = name_at(way.len() - 1);
            }
            // Between spine and root: who hangs below one of these fails with it.
            for place in 2..way.len().saturating_sub(1) {
                node.failure_domains.insert(format!("tier-{}", place + 1), name_at(place));
            }
            decorate(&mut node, way);
            record.nodes.push(node);
        }
    }
    if record.nodes.is_empty() {
        let fix = format!("add {} to the switches at the bottom", fields.nodes);
        return Err(ImportError::whole("no switch has nodes", fix));
    }
    Ok(record)
}

/// Who hangs under whom.
struct Tree {
    parents: Vec<Vec<usize>>,
}

impl Tree {
    fn grow(switches: &[Switch], fields: &Fields) -> Result<Tree, ImportError> {
        let at_of: BTreeMap<&str, usize> =
            switches.iter().enumerate().map(|(at, switch)| (switch.name.as_str(), at)).collect();
        let mut parents = vec![Vec::new(); switches.len()];
        for (at, switch) in switches.iter().enumerate() {
            let line = switch.line;
            if !switch.nodes.is_empty() && !switch.switches.is_empty() {
                let problem = format!("switch {} has nodes and switches", switch.name);
                let fix = "give the nodes a leaf switch of their own below it";
                return Err(ImportError::at(line, fields.nodes, problem, fix));
            }
            for child in &switch.switches {
                let Some(&child_at) = at_of.get(child.as_str()) else {
                    let problem = format!("unknown switch {child:?}");
                    let fix = format!("describe {child} on a line of its own or correct the name");
                    return Err(ImportError::at(line, fields.switches, problem, fix));
                };
                if parents[child_at].last() == Some(&at) {
                    let problem = format!("{child:?} is named twice");
                    return Err(ImportError::at(line, fields.switches, problem, "keep one"));
                }
                parents[child_at].push(at);
            }
        }
        let tree = Tree { parents };
        for (at, switch) in switches.iter().enumerate() {
            if tree.way_up(at).len() > MAX_TIERS {
                let problem = format!(
                    "switch {} is above itself, or deeper than {MAX_TIERS} tiers",
                    switch.name
                );
                let fix = "take one entry of the circle out";
                return Err(ImportError::at(switch.line, fields.switches, problem, fix));
            }
        }
        Ok(tree)
    }

    fn remark(&self, switches: &[Switch], remarks: &mut Vec<Remark>) {
        for (at, switch) in switches.iter().enumerate() {
            if switch.nodes.is_empty() && switch.switches.is_empty() {
                remarks.push(Remark::new(&switch.name, "has neither nodes nor switches: left out"));
            }
            if self.parents[at].len() > 1 && switch.nodes.is_empty() {
                let first = &switches[self.parents[at][0]].name;
                let text =
                    format!("hangs under several switches; above it only {first} is followed");
                remarks.push(Remark::new(&switch.name, text));
            }
        }
    }

    /// The switch itself, its first parent, and so on to the root.
    fn way_up(&self, from: usize) -> Vec<usize> {
        let mut way = vec![from];
        let mut at = from;
        while let Some(&parent) = self.parents[at].first().filter(|_| way.len() <= MAX_TIERS) {
            way.push(parent);
            at = parent;
        }
        way
    }
}
