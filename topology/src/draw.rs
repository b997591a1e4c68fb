//! Text drawings of a fabric for people: cells by rack, and the hierarchy as an outline.
//!
//! Never chooses colours or symbols for owners: the caller says what stands in a cell.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::{Counts, DomainId, FabricRecord, FlatIndex, Level};

/// One line of a drawing: a rack and its nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RackRow {
    /// The rack's name, `site/rack` where there are several sites; the site's where racks are
    /// unknown.
    pub rack: String,
    /// Its nodes, as places in the record.
    pub nodes: Vec<usize>,
}

/// The racks in order of first appearance.
pub fn rack_rows(record: &FabricRecord) -> Vec<RackRow> {
    let one_site = record.nodes.windows(2).all(|pair| pair[0].site == pair[1].site);
    let mut rows: Vec<RackRow> = Vec::new();
    let mut row_of: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (at, node) in record.nodes.iter().enumerate() {
        let row = *row_of.entry(node.rack_key()).or_insert_with(|| {
            let rack = match (node.rack.is_empty(), one_site) {
                (true, _) => node.site.clone(),
                (false, true) => node.rack.clone(),
                (false, false) => format!("{}/{}", node.site, node.rack),
            };
            rows.push(RackRow { rack, nodes: Vec::new() });
            rows.len() - 1
        });
        rows[row].nodes.push(at);
    }
    rows
}

/// One line a rack, nodes separated by a space, one character a GPU; `cell` is asked with a node's
/// place in the record and a GPU's number.
pub fn draw(record: &FabricRecord, cell: impl Fn(usize, u16) -> char) -> String {
    let rows = rack_rows(record);
    let width = rows.iter().map(|row| row.rack.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for row in &rows {
        let _ = write!(out, "{:<width$} ", row.rack);
        for &node in &row.nodes {
            out.push(' ');
            out.extend((0..record.nodes[node].gpu_count).map(|gpu| cell(node, gpu)));
        }
        out.push('\n');
    }
    out
}

/// The hierarchy, one line a domain, indented by level, with its free, reclaimable and capacity
/// counts. An NVLink domain of one node is left out.
pub fn outline(index: &FlatIndex) -> String {
    let mut out = String::new();
    for ordinal in 0..index.domains(Level::Site).len() as u32 {
        outline_domain(&mut out, index, DomainId { level: Level::Site, ordinal }, 0);
    }
    out
}

fn outline_domain(out: &mut String, index: &FlatIndex, id: DomainId, depth: usize) {
    let domain = index.domain(id);
    let shown = id.level != Level::Nvlink || domain.nodes.len() > 1;
    if shown {
        let Counts { free, reclaimable, capacity } = index.counts(id, None);
        let (level, name) = (id.level, &domain.name);
        let _ = write!(out, "{:indent$}{level} {name}: {free} free", "", indent = 2 * depth);
        if reclaimable > 0 {
            let _ = write!(out, ", {reclaimable} reclaimable");
        }
        let _ = writeln!(out, " of {capacity}");
    }
    let Some(level) = id.level.finer() else { return };
    for ordinal in index.children(id) {
        outline_domain(out, index, DomainId { level, ordinal }, depth + usize::from(shown));
    }
}
