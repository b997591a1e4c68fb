//! A draft: the view with the moves of this cycle on top, and a way back.
//!
//! Nodes are loaded when first looked at, so a cycle pays for what it touches. A draft never
//! decides; passes do, and roll back what did not work out.

use std::cell::OnceCell;

use rowen_state::{AllocationId, Cluster, GpuMask, Place};
use rowen_topology::{DomainId, FlatIndex, Level, NodePos};

use crate::{
    demand::Claim,
    node::{DraftNode, Fate},
};

/// The view with moves on top.
pub(crate) struct Draft<'a> {
    pub(crate) view: &'a Cluster,
    /// Free and reclaimable counts with the moves.
    index: FlatIndex,
    nodes: Vec<OnceCell<DraftNode>>,
    /// Nodes as they were before each move.
    journal: Vec<(NodePos, DraftNode)>,
}

/// A point to roll back to.
#[derive(Clone, Copy)]
pub(crate) struct Checkpoint(usize);

impl<'a> Draft<'a> {
    pub(crate) fn new(view: &'a Cluster) -> Self {
        let nodes = (0..view.index().node_count()).map(|_| OnceCell::new()).collect();
        Draft { view, index: view.index().clone(), nodes, journal: Vec::new() }
    }

    pub(crate) fn index(&self) -> &FlatIndex {
        &self.index
    }

    pub(crate) fn node(&self, pos: NodePos) -> &DraftNode {
        self.nodes[pos.0 as usize]
            .get_or_init(|| DraftNode::load(self.view, self.view.node_at(pos)))
    }

    /// All positions.
    pub(crate) fn positions(&self) -> impl Iterator<Item = NodePos> + use<> {
        (0..self.index.node_count()).map(NodePos)
    }

    /// Positions of a domain's nodes.
    pub(crate) fn nodes_of(&self, domain: DomainId) -> impl Iterator<Item = NodePos> + use<> {
        self.index.domain(domain).nodes.clone().map(NodePos)
    }

    pub(crate) fn checkpoint(&self) -> Checkpoint {
        Checkpoint(self.journal.len())
    }

    /// Undoes every move since the checkpoint, newest first.
    pub(crate) fn rollback(&mut self, Checkpoint(length): Checkpoint) {
        while self.journal.len() > length {
            let (pos, node) = self.journal.pop().expect("it is longer than the checkpoint");
            self.nodes[pos.0 as usize] = OnceCell::from(node);
            self.recount(pos);
        }
    }

    /// Gives a worker or instance GPUs that are free but for `victims`, which leave for it.
    /// False, and nothing is changed, when they are not to be had or the node lacks cores or memory.
    pub(crate) fn take(
        &mut self,
        Place { node, gpus }: Place,
        claim: &Claim,
        victims: &[AllocationId],
    ) -> bool {
        let Some(pos) = self.view.pos_of(node) else { return false };
        let node = self.node(pos);
        let leaving = node.tenants.iter().filter(|tenant| victims.contains(&tenant.allocation));
        let usable = leaving.fold(node.free, |mask, tenant| mask.or(tenant.gpus));
        let fits = gpus.without(usable).is_empty() && node.slots_without(claim, victims) > 0;
        if fits {
            self.change(pos, |node| node.take(gpus, claim, 1));
        }
        fits
    }

    /// Keeps GPUs for workers of a gang that has to wait for some of them.
    pub(crate) fn earmark(&mut self, pos: NodePos, gpus: GpuMask, claim: &Claim, workers: u32) {
        self.change(pos, |node| {
            node.take(gpus, claim, workers);
            node.kept += gpus.count();
        });
    }

    pub(crate) fn evict(&mut self, pos: NodePos, victim: AllocationId) {
        self.change(pos, |node| node.evict(victim));
    }

    /// The tightest domain that holds all of these nodes; `None` when they span sites.
    pub(crate) fn span(&self, nodes: impl Iterator<Item = NodePos> + Clone) -> Option<DomainId> {
        let first = nodes.clone().next()?;
        Level::ALL.into_iter().rev().map(|level| self.index.domain_of(first, level)).find(
            |domain| {
                let range = &self.index.domain(*domain).nodes;
                nodes.clone().all(|pos| range.contains(&pos.0))
            },
        )
    }

    fn change(&mut self, pos: NodePos, how: impl FnOnce(&mut DraftNode)) {
        let old = self.node(pos).clone();
        self.journal.push((pos, old));
        how(self.nodes[pos.0 as usize].get_mut().expect("loaded just above"));
        self.recount(pos);
    }

    fn recount(&mut self, pos: NodePos) {
        let node = self.node(pos);
        let evictable = node.gpus_of(|fate| fate == Fate::Evictable);
        let (free, evictable) = (node.free.count() as u16, evictable.count() as u16);
        self.index.set_node(pos, free, evictable);
    }
}
