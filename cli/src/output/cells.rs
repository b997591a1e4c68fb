//! The racks drawn as text: a line a rack, one cell a GPU, coloured by owner.
//!
//! A drawing is a function of one `Occupancy`; nothing here asks a server, reads a clock or knows
//! whether it writes to a terminal. `fabric show`, `demo` and `dev` all draw with it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anstyle::{Ansi256Color, AnsiColor, Color, Style};
use rowen_api::v1::{GpuSlot, Node, Occupancy, Owner, OwnerKind};

/// A line of a rack breaks when its cells would pass this column.
const MAX_CELLS: usize = 80;

/// Warm colours for jobs and cool ones for fillers, far apart within each list, so that who has
/// what shows before any name is read.
const JOB_COLOURS: [u8; 8] = [208, 205, 220, 203, 177, 215, 197, 229];
const FILLER_COLOURS: [u8; 6] = [37, 71, 67, 109, 29, 110];

/// One line a rack (more where a rack is wide): block, rack, cells, nodes.
pub(crate) fn rack_lines(occupancy: &Occupancy, colour: bool) -> Vec<String> {
    let racks = racks(&occupancy.nodes);
    let label = racks.iter().map(|rack| rack.label.chars().count()).max().unwrap_or(0);
    let rows: Vec<Row> = racks.iter().flat_map(|rack| rack.rows(colour)).collect();
    let cells = rows.iter().map(|row| row.width).max().unwrap_or(0);
    rows.iter().map(|row| row.line(label, cells)).collect()
}

/// What the cells mean: a line an owner, then one for the marks that are no owner's.
pub(crate) fn legend_lines(occupancy: &Occupancy, colour: bool) -> Vec<String> {
    let mut gpus: BTreeMap<(i32, u64), (&Owner, u32)> = BTreeMap::new();
    for owner in occupancy.nodes.iter().flat_map(|n| &n.gpus).filter_map(|slot| slot.owner.as_ref())
    {
        gpus.entry((owner.kind, owner.id)).or_insert((owner, 0)).1 += 1;
    }
    let mut lines: Vec<String> =
        gpus.values().map(|&(owner, gpus)| legend_line(owner, gpus, colour)).collect();
    lines.push(marks_line(&occupancy.nodes, colour));
    lines
}

/// The colour of an owner, the same on every screen that names it.
pub(crate) fn owner_style(owner: &Owner) -> Style {
    let palette: &[u8] = match owner.kind() {
        OwnerKind::Filler => &FILLER_COLOURS,
        _ => &JOB_COLOURS,
    };
    let pick = palette[(owner.id.saturating_sub(1) % palette.len() as u64) as usize];
    Style::new().fg_color(Some(Color::Ansi256(Ansi256Color(pick))))
}

/// Neighbouring nodes of one rack.
struct Rack<'a> {
    label: String,
    nodes: Vec<&'a Node>,
}

/// One printed line: its cells are already coloured, so their width is kept beside them.
struct Row {
    label: String,
    cells: String,
    width: usize,
    names: String,
}

impl Row {
    fn line(&self, label: usize, cells: usize) -> String {
        let pad = cells - self.width;
        format!("{:label$}  {}{:pad$}  {}", self.label, self.cells, "", self.names)
            .trim_end()
            .to_owned()
    }
}

impl Rack<'_> {
    fn rows(&self, colour: bool) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        let mut names: Vec<Vec<String>> = Vec::new();
        for node in &self.nodes {
            let width = node.gpus.len() + 1;
            if rows.last().is_none_or(|row| row.width + width > MAX_CELLS) {
                let label = if rows.is_empty() { self.label.clone() } else { String::new() };
                rows.push(Row { label, cells: String::new(), width: 0, names: String::new() });
                names.push(Vec::new());
            }
            let row = rows.last_mut().expect("one was pushed above");
            if row.width > 0 {
                row.cells.push(' ');
                row.width += 1;
            }
            draw_node(&mut row.cells, node, colour);
            row.width += node.gpus.len();
            names.last_mut().expect("one list a row").push(node.name.clone());
        }
        for (row, names) in rows.iter_mut().zip(names) {
            row.names = rowen_topology::hostlist::compress(&names);
        }
        rows
    }
}

/// Racks in the order of their first node, which is the order of the hierarchy.
fn racks(nodes: &[Node]) -> Vec<Rack<'_>> {
    let mut racks: Vec<Rack<'_>> = Vec::new();
    let mut place: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for node in nodes {
        let at = *place.entry((&node.block, &node.rack)).or_insert_with(|| {
            let label = [&node.block, &node.rack].map(String::as_str);
            let label = label.into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join("  ");
            racks.push(Rack { label, nodes: Vec::new() });
            racks.len() - 1
        });
        racks[at].nodes.push(node);
    }
    racks
}

/// Neighbours of one style share one escape sequence: 131,072 cells are redrawn each second.
fn draw_node(out: &mut String, node: &Node, colour: bool) {
    let mut current = Style::new();
    for slot in &node.gpus {
        let (mark, style) = if colour { drawn(slot) } else { (plain(slot), Style::new()) };
        if style != current {
            let _ = write!(out, "{}{style}", current.render_reset());
            current = style;
        }
        out.push(mark);
    }
    let _ = write!(out, "{}", current.render_reset());
}

fn drawn(slot: &GpuSlot) -> (char, Style) {
    let style = |owner: &Option<Owner>| owner.as_ref().map(owner_style).unwrap_or_default();
    match slot.state.as_str() {
        "allocated" if is_filler(slot) => ('▪', style(&slot.owner)),
        "allocated" => ('■', style(&slot.owner)),
        "draining" => ('▾', style(&slot.owner)),
        "held" => ('□', style(&slot.held_for)),
        "down" => ('×', AnsiColor::Red.on_default()),
        _ => ('·', Style::new().dimmed()),
    }
}

/// Without colour the owner is a letter: capitals are jobs, small ones fillers.
fn plain(slot: &GpuSlot) -> char {
    match (slot.state.as_str(), &slot.owner) {
        ("allocated", Some(owner)) => letter(owner),
        ("allocated", None) => '?',
        ("draining", _) => '-',
        ("held", _) => '+',
        ("down", _) => '#',
        _ => '.',
    }
}

fn letter(owner: &Owner) -> char {
    let first = if owner.kind() == OwnerKind::Filler { b'a' } else { b'A' };
    char::from(first + (owner.id.saturating_sub(1) % 26) as u8)
}

fn is_filler(slot: &GpuSlot) -> bool {
    slot.owner.as_ref().is_some_and(|owner| owner.kind() == OwnerKind::Filler)
}

fn legend_line(owner: &Owner, gpus: u32, colour: bool) -> String {
    let filler = owner.kind() == OwnerKind::Filler;
    let style = if colour { owner_style(owner) } else { Style::new() };
    let mark = match (colour, filler) {
        (false, _) => letter(owner),
        (true, true) => '▪',
        (true, false) => '■',
    };
    let who = match filler {
        true => format!("filler {}", owner.name),
        false => format!("job {} {}", owner.id, owner.name),
    };
    format!("{style}{mark}{style:#} {who}: {}", count(gpus))
}

/// The marks that occur, each with how many there are.
fn marks_line(nodes: &[Node], colour: bool) -> String {
    let marks = match colour {
        true => [("idle", '·'), ("draining", '▾'), ("held", '□'), ("down", '×')],
        false => [("idle", '.'), ("draining", '-'), ("held", '+'), ("down", '#')],
    };
    let counted = marks.into_iter().map(|(state, mark)| {
        let slots = nodes.iter().flat_map(|n| &n.gpus).filter(|slot| slot.state == state).count();
        (state, mark, slots)
    });
    let shown: Vec<String> = counted
        .filter(|&(state, _, slots)| slots > 0 || state == "idle")
        .map(|(state, mark, slots)| format!("{mark} {state}: {slots}"))
        .collect();
    shown.join("   ")
}

fn count(gpus: u32) -> String {
    if gpus == 1 { "1 GPU".to_owned() } else { format!("{gpus} GPUs") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples;
    use expect_test::{Expect, expect};

    fn check(occupancy: &Occupancy, colour: bool, expect: Expect) {
        let mut lines = rack_lines(occupancy, colour);
        lines.extend(legend_lines(occupancy, colour));
        expect.assert_eq(&(lines.join("\n").replace('\x1b', "^") + "\n"));
    }

    #[test]
    fn plain_drawing() {
        check(
            &samples::occupancy(),
            false,
            expect![[r#"
            b1  r1  GGGG GGGG       node[1-2]
            b1  r2  --++            node3
            b2  r3  bb.. .... ####  node[4-6]
            G job 7 train: 8 GPUs
            b filler chat: 4 GPUs
            . idle: 6   - draining: 2   + held: 2   # down: 4
        "#]],
        );
    }

    #[test]
    fn coloured_drawing() {
        check(
            &samples::occupancy(),
            true,
            expect![[r#"
                b1  r1  ^[38;5;197m■■■■^[0m ^[38;5;197m■■■■^[0m       node[1-2]
                b1  r2  ^[38;5;71m▾▾^[0m^[38;5;197m□□^[0m            node3
                b2  r3  ^[38;5;71m▪▪^[0m^[2m··^[0m ^[2m····^[0m ^[31m××××^[0m  node[4-6]
                ^[38;5;197m■^[0m job 7 train: 8 GPUs
                ^[38;5;71m▪^[0m filler chat: 4 GPUs
                · idle: 6   ▾ draining: 2   □ held: 2   × down: 4
            "#]],
        );
    }

    #[test]
    fn a_wide_rack_breaks() {
        let mut occupancy = samples::occupancy();
        let node = occupancy.nodes[0].clone();
        occupancy.nodes =
            (0..12).map(|i| Node { name: format!("wide{i}"), ..node.clone() }).collect();
        check(
            &occupancy,
            false,
            expect![[r#"
            b1  r1  GGGG GGGG GGGG GGGG GGGG GGGG GGGG GGGG GGGG GGGG GGGG GGGG  wide[0-11]
            G job 7 train: 48 GPUs
            . idle: 0
        "#]],
        );
    }

    #[test]
    fn an_empty_cluster_draws_nothing() {
        assert_eq!(rack_lines(&Occupancy::default(), true), Vec::<String>::new());
    }
}
