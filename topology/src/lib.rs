//! The fabric: what GPUs there are and how they hang together.
//!
//! Values in, values out. An [`Inventory`] is what people write; it expands to a [`FabricRecord`],
//! which the replicated state stores; a [`Fabric`] (the graph) is made of a record for people and
//! importers; a [`FlatIndex`] is derived from the graph and is all that the hot path sees.
//! Never: IO, clocks, threads, hash maps.

mod capacity;
mod check;
pub mod draw;
pub mod drawing;
mod graph;
pub mod hostlist;
pub mod import;
mod index;
mod inventory;
mod irregular;
mod irregular_links;
mod level;
mod links;
mod record;
mod shape;
mod topograph;

pub use capacity::{FaultyLink, Impaired, LinkFault, Offers, impaired, offers};
pub use check::InventoryError;
pub use draw::{RackRow, draw, outline, rack_rows};
pub use graph::{Fabric, FabricGraph, Health, Link, LinkKind, Vertex, VertexId, VertexKind};
pub use index::{Counts, FlatIndex};
pub use inventory::{GpuKind, Inventory, LeafGroup, NodeGroup};
pub use irregular::Irregularity;
pub use level::{DomainId, Level, ModelId, NodePos, UnknownLevel};
pub use links::LinkGroup;
pub use record::{FabricRecord, LeafRecord, NodeRecord};
pub use shape::Domain;
