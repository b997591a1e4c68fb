//! The fabric on the screen: the racks with who has each GPU.

use rowen_api::v1::Occupancy;
use serde::Serialize;

use super::cells::{legend_lines, rack_lines};
use super::node::NodeView;

/// `fabric show -o json`.
#[derive(Debug, Serialize)]
pub(crate) struct OccupancyView {
    /// Log index of the state that was read.
    index: u64,
    /// The state's clock.
    unix_ms: u64,
    nodes: Vec<NodeView>,
}

impl OccupancyView {
    pub(crate) fn new(occupancy: &Occupancy) -> OccupancyView {
        OccupancyView {
            index: occupancy.index,
            unix_ms: occupancy.now_ms,
            nodes: occupancy.nodes.iter().map(NodeView::new).collect(),
        }
    }
}

/// `fabric show`.
pub(crate) fn show(occupancy: &Occupancy, colour: bool) -> String {
    if occupancy.nodes.is_empty() {
        return "No fabric yet; set one with `rowen fabric set FILE`.".to_owned();
    }
    let mut lines = rack_lines(occupancy, colour);
    lines.push(String::new());
    lines.extend(legend_lines(occupancy, colour));
    lines.join("\n")
}
