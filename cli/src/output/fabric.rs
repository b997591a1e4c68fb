//! The fabric on the screen: the racks with who has each GPU; what a fabric file holds.

use std::collections::BTreeSet;

use rowen_api::v1::Occupancy;
use rowen_topology::{FlatIndex, Inventory, InventoryError, Level, rack_rows};
use serde::Serialize;

use super::cells::{legend_lines, rack_lines};
use super::node::NodeView;
use super::words;

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

/// What a fabric file holds: `fabric check -o json`, and a part of `fabric import -o json`.
#[derive(Debug, Serialize)]
pub(crate) struct FoundView {
    nodes: usize,
    gpus: u64,
    leafs: usize,
    spines: usize,
    /// Allowed, but placement will be the worse for it.
    irregularities: Vec<String>,
    racks: usize,
    rails: usize,
    levels: Vec<LevelView>,
    #[serde(skip)]
    rows: Vec<String>,
}

/// The domains of one level.
#[derive(Debug, Serialize)]
struct LevelView {
    level: Level,
    domains: usize,
    smallest_nodes: u32,
    largest_nodes: u32,
}

impl FoundView {
    pub(crate) fn new(inventory: &Inventory) -> Result<FoundView, InventoryError> {
        let record = inventory.expand()?;
        let fabric = inventory.fabric()?;
        let index = FlatIndex::build(&record)?;
        let found = fabric.irregularities();
        let odd: BTreeSet<String> = found.iter().flat_map(|found| found.nodes()).collect();
        let rows = rack_rows(&record);
        let width = rows.iter().map(|row| row.rack.chars().count()).max().unwrap_or(0);
        let cell = |at: &usize| if odd.contains(&record.nodes[*at].name) { '!' } else { '.' };
        let line = |row: &rowen_topology::RackRow| {
            let cells: String = row.nodes.iter().take(MAX_CELLS).map(cell).collect();
            let more = match row.nodes.len().saturating_sub(MAX_CELLS) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!("{:<width$}  {cells}{more}", row.rack)
        };
        Ok(FoundView {
            nodes: record.nodes.len(),
            gpus: record.nodes.iter().map(|node| u64::from(node.gpu_count)).sum(),
            leafs: record.leafs.len(),
            spines: record.spines.len(),
            irregularities: found.iter().map(ToString::to_string).collect(),
            racks: record
                .nodes
                .iter()
                .filter(|node| !node.rack.is_empty())
                .map(|node| (&node.site, &node.rack))
                .collect::<BTreeSet<_>>()
                .len(),
            rails: fabric.rail_count(),
            levels: Level::ALL.iter().map(|level| LevelView::new(&index, *level)).collect(),
            rows: rows.iter().map(line).collect(),
        })
    }

    /// `fabric check`: one line, one a thing that is irregular, and with `wide` the picture.
    pub(crate) fn checked(&self, file: &str, wide: bool) -> String {
        let mut text = format!(
            "{file}: ok: {}, {}, {}, {}",
            words::count(self.nodes as u64, "node"),
            words::count(self.gpus, "GPU"),
            words::count(self.leafs as u64, "leaf"),
            words::count(self.spines as u64, "spine")
        );
        for irregularity in &self.irregularities {
            text += &format!("\n{file}: irregular: {irregularity}");
        }
        if wide {
            text += &format!("\n{}", self.picture().join("\n"));
        }
        text
    }

    /// Counts, levels, and the racks with a cell a node: `!` where it is irregular.
    pub(crate) fn picture(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{}, {}, {}, {}, {}, {}",
            words::count(self.nodes as u64, "node"),
            words::count(self.gpus, "GPU"),
            words::count(self.racks as u64, "rack"),
            words::count(self.leafs as u64, "leaf"),
            words::count(self.spines as u64, "spine"),
            words::count(self.rails as u64, "rail"),
        )];
        for level in &self.levels {
            let size = match (level.smallest_nodes, level.largest_nodes) {
                (least, most) if least == most => words::count(u64::from(most), "node"),
                (least, most) => format!("{least} to {most} nodes"),
            };
            let (word, domains) = (level.level.as_str(), level.domains);
            lines.push(format!("{word:<7}{domains:>7}  of {size}"));
        }
        // A picture of hundreds of racks is none.
        let shown = self.rows.len().min(MAX_ROWS);
        lines.extend(self.rows[..shown].iter().cloned());
        if shown < self.rows.len() {
            lines.push(format!("and {} racks more", self.rows.len() - shown));
        }
        lines
    }

    /// What is irregular in the fabric itself.
    pub(crate) fn irregularities(&self) -> &[String] {
        &self.irregularities
    }
}

/// Racks in one picture.
const MAX_ROWS: usize = 64;
/// Nodes in one row of it.
const MAX_CELLS: usize = 80;

impl LevelView {
    fn new(index: &FlatIndex, level: Level) -> LevelView {
        let domains = index.domains(level);
        let sizes = || domains.iter().map(|domain| domain.nodes.end - domain.nodes.start);
        LevelView {
            level,
            domains: domains.len(),
            smallest_nodes: sizes().min().unwrap_or(0),
            largest_nodes: sizes().max().unwrap_or(0),
        }
    }
}
