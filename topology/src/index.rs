//! The flat index: the only view of the fabric that the hot path sees.
//!
//! Nodes stand in the order of the communication hierarchy, so every domain of every level is a
//! contiguous range. Names and ranges are shared behind an `Arc`; a clone copies only the counts.
//! Never decides anything, and never knows who owns a GPU: the state tells it how many are free.

use std::sync::Arc;

use crate::shape::Shape;
use crate::{Domain, DomainId, Fabric, FabricRecord, InventoryError, Level, ModelId, NodePos};

/// GPUs of a domain, by what can be done with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Owned by nobody.
    pub free: u32,
    /// Owned by somebody who can be sent away.
    pub reclaimable: u32,
    /// All, on nodes in service.
    pub capacity: u32,
}

/// The shape of a fabric and what is free in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlatIndex {
    shape: Arc<Shape>,
    /// One cell a domain and GPU model in it, all levels in one list; the shape knows which.
    cells: Vec<Counts>,
}

impl Default for FlatIndex {
    /// The index of a cluster that has no fabric yet.
    fn default() -> FlatIndex {
        let shape = Shape::derive(&FabricRecord::default(), &Fabric::default());
        FlatIndex { shape: Arc::new(shape), cells: Vec::new() }
    }
}

impl FlatIndex {
    /// Derives the index of a record. Every node starts in service with all its GPUs free.
    pub fn build(record: &FabricRecord) -> Result<FlatIndex, InventoryError> {
        let shape = Shape::derive(record, &Fabric::from_record(record)?);
        let cells = vec![Counts::default(); shape.cell_model.len()];
        let mut index = FlatIndex { shape: Arc::new(shape), cells };
        for pos in (0..index.node_count()).map(NodePos) {
            index.set_in_service(pos, true);
            index.set_node(pos, index.gpu_count(pos), 0);
        }
        Ok(index)
    }

    /// How many nodes there are.
    pub fn node_count(&self) -> u32 {
        self.shape.record_of.len() as u32
    }

    /// The node's place in the record's list of nodes.
    pub fn node_record(&self, pos: NodePos) -> usize {
        self.shape.record_of[pos.0 as usize] as usize
    }

    /// The position of the record's node number `record_index`.
    pub fn pos_of_record(&self, record_index: usize) -> NodePos {
        NodePos(self.shape.pos_of[record_index])
    }

    /// The node's name.
    pub fn node_name(&self, pos: NodePos) -> &str {
        &self.domains(Level::Node)[pos.0 as usize].name
    }

    /// How many GPU models there are; their ids run from 0.
    pub fn model_count(&self) -> u16 {
        self.shape.models.len() as u16
    }

    /// The node's GPU model.
    pub fn model(&self, pos: NodePos) -> ModelId {
        self.shape.model[pos.0 as usize]
    }

    /// The name of a GPU model.
    pub fn model_name(&self, model: ModelId) -> &str {
        &self.shape.models[usize::from(model.0)]
    }

    /// The GPU model of this name, spelled as in the record.
    pub fn model_id(&self, name: &str) -> Option<ModelId> {
        let place = self.shape.models.iter().position(|model| model == name)?;
        Some(ModelId(place as u16))
    }

    /// How many GPUs the node has, in service or not.
    pub fn gpu_count(&self, pos: NodePos) -> u16 {
        self.shape.gpu_count[pos.0 as usize]
    }

    /// The domains of a level, in hierarchy order.
    pub fn domains(&self, level: Level) -> &[Domain] {
        &self.shape.level(level).domains
    }

    /// One domain.
    pub fn domain(&self, id: DomainId) -> &Domain {
        &self.domains(id.level)[id.ordinal as usize]
    }

    /// The domain of a level that holds the node.
    pub fn domain_of(&self, pos: NodePos, level: Level) -> DomainId {
        DomainId { level, ordinal: self.shape.level(level).domain_of[pos.0 as usize] }
    }

    /// Ordinals of the domain's parts on the next finer level; empty for a node.
    pub fn children(&self, id: DomainId) -> std::ops::Range<u32> {
        self.domain(id).children.clone()
    }

    /// GPUs of the node that nobody owns.
    pub fn free(&self, pos: NodePos) -> u16 {
        self.node_cell(pos).free as u16
    }

    /// GPUs of the node whose owner can be sent away.
    pub fn reclaimable(&self, pos: NodePos) -> u16 {
        self.node_cell(pos).reclaimable as u16
    }

    /// Whether the node is in service: only then does it count.
    pub fn in_service(&self, pos: NodePos) -> bool {
        self.node_cell(pos).capacity > 0
    }

    /// The counts of a domain, of one GPU model or of all.
    pub fn counts(&self, id: DomainId, model: Option<ModelId>) -> Counts {
        let range = self.domain(id).cells.start as usize..self.domain(id).cells.end as usize;
        let mut sum = Counts::default();
        for (cell, of) in self.cells[range.clone()].iter().zip(&self.shape.cell_model[range]) {
            if model.is_none_or(|model| model == *of) {
                sum.free += cell.free;
                sum.reclaimable += cell.reclaimable;
                sum.capacity += cell.capacity;
            }
        }
        sum
    }

    /// Sets what is free and reclaimable on a node, in O(levels). A node out of service counts as
    /// 0 in all three, so this changes nothing there: call `set_in_service` first.
    pub fn set_node(&mut self, pos: NodePos, free: u16, reclaimable: u16) {
        let (free, reclaimable) = (u32::from(free), u32::from(reclaimable));
        let gpus = u32::from(self.gpu_count(pos));
        assert!(free + reclaimable <= gpus, "node {pos:?} has only {gpus} GPUs");
        let capacity = self.node_cell(pos).capacity;
        if capacity > 0 {
            self.replace(pos, Counts { free, reclaimable, capacity });
        }
    }

    /// Takes a node into or out of service, in O(levels). Either way nothing of it is free or
    /// reclaimable until the next `set_node`.
    pub fn set_in_service(&mut self, pos: NodePos, in_service: bool) {
        let capacity = if in_service { u32::from(self.gpu_count(pos)) } else { 0 };
        self.replace(pos, Counts { free: 0, reclaimable: 0, capacity });
    }

    /// The name of the failure domain of a kind (`rack`, `site`, or as written in the inventory)
    /// that the node is in.
    pub fn failure_domain(&self, pos: NodePos, kind: &str) -> Option<&str> {
        let kind = self.shape.failure.get(kind)?;
        kind.names.get(kind.of[pos.0 as usize] as usize).map(String::as_str)
    }

    /// The kinds of failure domains that occur.
    pub fn failure_kinds(&self) -> impl Iterator<Item = &str> {
        self.shape.failure.keys().map(String::as_str)
    }

    /// The values of a label, each with the positions of the nodes that have it, rising.
    pub fn labelled(&self, key: &str) -> impl Iterator<Item = (&str, &[u32])> {
        let values = self.shape.labels.get(key).into_iter().flatten();
        values.map(|(value, nodes)| (value.as_str(), nodes.as_slice()))
    }

    fn node_cell(&self, pos: NodePos) -> Counts {
        self.cells[self.shape.level(Level::Node).cell_of[pos.0 as usize] as usize]
    }

    /// Puts a node's new counts in the place of its old ones, on every level.
    fn replace(&mut self, pos: NodePos, new: Counts) {
        let old = self.node_cell(pos);
        for level in &self.shape.levels {
            let cell = &mut self.cells[level.cell_of[pos.0 as usize] as usize];
            cell.free = cell.free - old.free + new.free;
            cell.reclaimable = cell.reclaimable - old.reclaimable + new.reclaimable;
            cell.capacity = cell.capacity - old.capacity + new.capacity;
        }
    }
}
