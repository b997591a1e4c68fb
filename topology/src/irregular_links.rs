//! What looks wrong in the wiring of rails, uplinks and their health: reported, never repaired.
//!
//! Reads links where `irregular` reads who hangs on whom.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Fabric, Health, Irregularity, LinkKind, VertexId, VertexKind};

impl Fabric {
    pub(crate) fn rails(&self, found: &mut Vec<Irregularity>) {
        self.swapped_nics(found);
        self.racks_without_a_leaf(found);
    }

    /// How many different rails nodes hang on.
    pub fn rail_count(&self) -> usize {
        let kinds = self.graph().edge_weights().map(|link| link.kind);
        kinds.filter(|kind| matches!(kind, LinkKind::Rail(_))).collect::<BTreeSet<_>>().len()
    }

    pub(crate) fn links_that_differ(&self, found: &mut Vec<Irregularity>) {
        let leafs: Vec<VertexId> = self.leaf_ids().collect();
        let mut usual: BTreeMap<u32, usize> = BTreeMap::new();
        for (_, link) in leafs.iter().flat_map(|leaf| self.links(*leaf)) {
            if let (LinkKind::Uplink, Some(gbps)) = (link.kind, link.bandwidth_gbps) {
                *usual.entry(gbps).or_default() += 1;
            }
        }
        let most_gbps = usual.into_iter().max_by_key(|(_, count)| *count).map(|(gbps, _)| gbps);
        for leaf in leafs {
            let mut thin: BTreeMap<u32, BTreeSet<VertexId>> = BTreeMap::new();
            let mut ill: BTreeMap<Health, BTreeSet<VertexId>> = BTreeMap::new();
            for (other, link) in self.links(leaf) {
                if link.health != Health::Up {
                    ill.entry(link.health).or_default().insert(other);
                }
                if let (LinkKind::Uplink, Some(gbps)) = (link.kind, link.bandwidth_gbps)
                    && Some(gbps) < most_gbps
                {
                    thin.entry(gbps).or_default().insert(other);
                }
            }
            for (gbps, spines) in thin {
                let (leaf, spines) = (self.name(leaf).to_owned(), self.names(&spines));
                let most_gbps = most_gbps.unwrap_or(gbps);
                found.push(Irregularity::ThinUplink { leaf, spines, gbps, most_gbps });
            }
            for (health, others) in ill {
                let (leaf, others) = (self.name(leaf).to_owned(), self.names(&others));
                found.push(Irregularity::Unhealthy { leaf, others, health });
            }
        }
    }

    fn leaf_ids(&self) -> impl Iterator<Item = VertexId> {
        self.vertices().filter(|v| matches!(v.kind, VertexKind::Leaf(_))).map(|v| v.id)
    }

    /// The rail of each NIC, in the order of the NICs.
    fn rails_by_nic(&self, node: VertexId) -> Vec<u8> {
        let mut rails: Vec<(Option<u8>, u8)> = self
            .links(node)
            .filter_map(|(_, link)| match link.kind {
                LinkKind::Rail(rail) => Some((link.nic, rail)),
                _ => None,
            })
            .collect();
        rails.sort_unstable();
        rails.into_iter().map(|(_, rail)| rail).collect()
    }

    fn swapped_nics(&self, found: &mut Vec<Irregularity>) {
        let mut swapped: BTreeMap<Vec<u8>, Vec<VertexId>> = BTreeMap::new();
        for node in self.vertices().filter(|v| matches!(v.kind, VertexKind::Node { .. })) {
            let rails = self.rails_by_nic(node.id);
            if !rails.is_sorted() {
                swapped.entry(rails).or_default().push(node.id);
            }
        }
        for (rails, nodes) in swapped {
            found.push(Irregularity::NicsSwapped { nodes: self.names(&nodes), rails });
        }
    }

    /// Racks are compared with those whose nodes have as many GPUs.
    fn racks_without_a_leaf(&self, found: &mut Vec<Irregularity>) {
        let mut kinds: BTreeMap<usize, Vec<RackOfRails>> = BTreeMap::new();
        for rack in self.vertices().filter(|v| matches!(v.kind, VertexKind::Rack(_))) {
            let mut leafs = BTreeMap::new();
            let mut gpus = 0;
            let below = |id, kind| kind == LinkKind::Contains && id > rack.id;
            for (node, _) in self.links(rack.id).filter(|(id, link)| below(*id, link.kind)) {
                for (other, link) in self.links(node) {
                    match link.kind {
                        LinkKind::Rail(rail) => _ = leafs.entry(rail).or_insert(other),
                        LinkKind::Contains if other > node => gpus += 1,
                        _ => {}
                    }
                }
            }
            let nodes = self.links(rack.id).filter(|(id, link)| below(*id, link.kind)).count();
            if !leafs.is_empty() {
                let rack = RackOfRails { rack: rack.id, leafs };
                kinds.entry(gpus / nodes.max(1)).or_default().push(rack);
            }
        }
        for racks in kinds.values() {
            let mut having: BTreeMap<u8, usize> = BTreeMap::new();
            for rail in racks.iter().flat_map(|rack| rack.leafs.keys()) {
                *having.entry(*rail).or_default() += 1;
            }
            having.retain(|_, count| *count * 2 > racks.len());
            for rack in racks {
                for &rail in having.keys().filter(|rail| !rack.leafs.contains_key(rail)) {
                    let leaf = self.likely_name(rack, rail, racks);
                    let rack = self.name(rack.rack).to_owned();
                    found.push(Irregularity::RackLacksLeaf { rack, rail, leaf });
                }
            }
        }
    }

    /// What the missing leaf would be called: another rack tells how names change from one rail to
    /// the next, and a sibling here undergoes the same change. All that can tell must agree.
    fn likely_name(
        &self,
        lacking: &RackOfRails,
        rail: u8,
        racks: &[RackOfRails],
    ) -> Option<String> {
        let (sibling_rail, sibling) = lacking.leafs.first_key_value()?;
        let mut guesses = BTreeSet::new();
        for other in racks {
            let (Some(there), Some(here)) = (other.leafs.get(&rail), other.leafs.get(sibling_rail))
            else {
                continue;
            };
            let change = (self.name(*here), self.name(*there));
            guesses.extend(changed_alike(self.name(*sibling), change));
        }
        let guess = guesses.pop_first().filter(|_| guesses.is_empty())?;
        let taken = self.leaf_ids().any(|leaf| self.name(leaf) == guess);
        Some(guess).filter(|_| !taken)
    }
}

/// A rack and the leaf that its nodes have on each rail.
struct RackOfRails {
    rack: VertexId,
    leafs: BTreeMap<u8, VertexId>,
}

/// `name` with the one change that makes `from` to `to`: `L-02-07`, `L-02-01` to `L-03-01` is
/// `L-03-07`. `None` where more than one run of digits changes, or stands elsewhere.
fn changed_alike(name: &str, (from, to): (&str, &str)) -> Option<String> {
    let (mut name, from, to) = (runs(name), runs(from), runs(to));
    if from.len() != to.len() || name.len() != from.len() {
        return None;
    }
    let mut changes = (0..from.len()).filter(|at| from[*at] != to[*at]);
    let (at, None) = (changes.next()?, changes.next()) else { return None };
    if name[at] != from[at] {
        return None;
    }
    name[at] = to[at];
    Some(name.concat())
}

/// Runs of digits, and what stands between them.
fn runs(name: &str) -> Vec<&str> {
    let mut runs = Vec::new();
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let digit = first.is_ascii_digit();
        let end = rest.find(|c: char| c.is_ascii_digit() != digit).unwrap_or(rest.len());
        let (run, tail) = rest.split_at(end);
        runs.push(run);
        rest = tail;
    }
    runs
}
