//! The re-check of a gang's shape: groups, spread, nodes. Owns no rule of its own beyond
//! [`crate::Shape`]; never looks for a better place.

use std::collections::BTreeMap;

use rowen_topology::{DomainId, Level};

use super::places::Misfit;
use crate::{AllocationId, Cluster, Group, Node, Owner, Place, Shape, Spread};

impl Cluster {
    /// Whether the places, which are free for the gang otherwise, have the shape it asks for.
    /// What is only preferred is not asked.
    pub(super) fn check_shape(
        &self,
        shape: &Shape,
        places: &[Place],
        victims: &[AllocationId],
    ) -> Result<(), Misfit> {
        for Group { workers, level, .. } in shape.groups.iter().filter(|group| !group.preferred) {
            for group in places.chunks(*workers as usize) {
                self.check_level(*level, group)?;
            }
        }
        for spread in &shape.spread {
            self.check_spread(*spread, places)?;
        }
        for place in places {
            let node = self.nodes.get(place.node).ok_or("a node is gone")?;
            if !self.admits(shape, node) {
                return Err(format!("{} is not a node that the job asks for", node.name));
            }
            if shape.nodes.exclusive && !self.is_empty_but_for(node, victims) {
                return Err(format!("{} is not the gang's alone", node.name));
            }
        }
        Ok(())
    }

    fn check_spread(
        &self,
        Spread { workers, level }: Spread,
        places: &[Place],
    ) -> Result<(), Misfit> {
        let mut counts: BTreeMap<Option<DomainId>, u32> = BTreeMap::new();
        for place in places {
            *counts.entry(self.domain_of(place, level)).or_default() += 1;
        }
        match counts.values().max() {
            Some(most) if *most > workers => Err(format!("{most} workers in one {level}")),
            _ => Ok(()),
        }
    }

    pub(super) fn domain_of(&self, place: &Place, level: Level) -> Option<DomainId> {
        self.pos_of(place.node).map(|pos| self.derived.index.domain_of(pos, level))
    }

    /// Whether the node's model and labels will do.
    fn admits(&self, shape: &Shape, node: &Node) -> bool {
        let Some(pos) = self.pos_of(node.id) else { return false };
        let record = &self.fabric.nodes[self.derived.index.node_record(pos)];
        shape.nodes.admits(&node.gpu_model, &record.labels)
    }

    fn is_empty_but_for(&self, node: &Node, victims: &[AllocationId]) -> bool {
        let owners = node.owners();
        node.holders().is_empty() && owners.iter().all(|owner| victims.binary_search(owner).is_ok())
    }

    /// Whether a gang has the node, or is about to, that wants it for itself: nothing of the node
    /// is free then, but for who is among `leaving`, sorted.
    pub(crate) fn is_taken_whole(&self, node: &Node, leaving: &[AllocationId]) -> bool {
        if self.derived.exclusive.is_empty() {
            return false;
        }
        let exclusive = |job| self.derived.exclusive.contains(&job);
        let owns = |id| match self.allocations.get(id).map(|allocation| allocation.owner) {
            Some(Owner::Gang { job, .. }) => exclusive(job) && leaving.binary_search(&id).is_err(),
            _ => false,
        };
        node.owners().into_iter().any(owns) || node.holders().into_iter().any(exclusive)
    }
}
