//! Slurm's `topology.conf`, of the tree and of the block plugin.
//!
//! What becomes of a tree stands in `tree`. A block becomes a leaf of its own. `BlockSizes` above the first tell how many neighbours are planned together,
//! not who hangs on what: they are remarked on and not imported. Never follows an `Include`.

use std::collections::{BTreeMap, BTreeSet};

use super::tree::{self, MAX_CHILDREN, MAX_SWITCHES, Switch};
use super::{ImportError, Imported, Options, Remark, keep_wanted, names, site_of};
use crate::hostlist::{self, MAX_NAMES};
use crate::{FabricRecord, Inventory, LeafRecord};

const EXAMPLE: &str = "write SwitchName=leaf1 Nodes=node[1-8] or BlockName=b1 Nodes=node[1-8]";

pub(super) fn import(text: &str, options: &Options) -> Result<Imported, ImportError> {
    let file = File::read(text)?;
    let mut remarks = Vec::new();
    let mut record = match (file.switches.is_empty(), file.blocks.is_empty()) {
        (false, true) => {
            let fields = tree::Fields { switches: "Switches", nodes: "Nodes" };
            tree::record(&file.switches, &fields, options, &mut remarks, |_, _| {})?
        }
        (true, false) => blocks(&file, options, &mut remarks)?,
        (true, true) => {
            return Err(ImportError::whole("no switch and no block is described", EXAMPLE));
        }
        (false, false) => {
            let line = file.blocks[0].line;
            let problem = "switches and blocks in one file";
            let fix = "a topology.conf is of one plugin: keep one kind";
            return Err(ImportError::at(line, "BlockName", problem, fix));
        }
    };
    keep_wanted(&mut record, options)?;
    let inventory = Inventory::from_record(&record);
    Ok(Imported { inventory, remarks, assumed: options.hardware.assumed(), inside: None })
}

/// The lines of a file.
#[derive(Default)]
struct File {
    switches: Vec<Switch>,
    blocks: Vec<Switch>,
    block_sizes: Option<(u64, Vec<usize>)>,
}

impl File {
    fn read(text: &str) -> Result<File, ImportError> {
        let mut file = File::default();
        let mut names = BTreeSet::new();
        let mut children = 0;
        for (line, words) in logical_lines(text) {
            let mut row = Row::read(line, &words)?;
            if let Some(sizes) = row.block_sizes.take() {
                if file.block_sizes.replace((line, sizes)).is_some() {
                    let fix = "keep one";
                    return Err(ImportError::at(line, "BlockSizes", "given twice", fix));
                }
                continue;
            }
            let Some((key, list)) = row.names.take() else {
                let problem = "neither SwitchName nor BlockName";
                return Err(ImportError::at(line, "", problem, EXAMPLE));
            };
            children += (row.switches.len() + row.nodes.len()) * list.len();
            // Before any is copied: one short line can stand for billions.
            if names.len() + list.len() > MAX_SWITCHES || children > MAX_CHILDREN {
                let problem = "too many switches or children up to here";
                let fix = format!("at most {MAX_SWITCHES} and {MAX_CHILDREN} are possible");
                return Err(ImportError::at(line, key, problem, fix));
            }
            let target = if key == "BlockName" { &mut file.blocks } else { &mut file.switches };
            for name in list {
                if !names.insert(name.clone()) {
                    let problem = format!("{name:?} is described twice");
                    return Err(ImportError::at(line, key, problem, "keep one line"));
                }
                let (switches, nodes) = (row.switches.clone(), row.nodes.clone());
                target.push(Switch { line, name, switches, nodes });
            }
        }
        Ok(file)
    }
}

/// One line, its values expanded.
#[derive(Default)]
struct Row {
    /// `SwitchName` or `BlockName`, and the names.
    names: Option<(&'static str, Vec<String>)>,
    switches: Vec<String>,
    nodes: Vec<String>,
    block_sizes: Option<Vec<usize>>,
}

impl Row {
    fn read(line: u64, words: &str) -> Result<Row, ImportError> {
        let mut row = Row::default();
        let mut seen = BTreeSet::new();
        for word in words.split_whitespace() {
            let Some((key, value)) = word.split_once('=') else {
                return Err(ImportError::at(line, word, "not of the form Key=value", EXAMPLE));
            };
            let key = key.to_ascii_lowercase();
            if !seen.insert(key.clone()) {
                return Err(ImportError::at(line, key, "given twice on one line", "keep one"));
            }
            match key.as_str() {
                "switchname" if row.names.is_none() => {
                    row.names = Some(("SwitchName", expand(line, "SwitchName", value)?));
                }
                "blockname" if row.names.is_none() => {
                    row.names = Some(("BlockName", expand(line, "BlockName", value)?));
                }
                "switches" => row.switches = expand(line, "Switches", value)?,
                "nodes" => row.nodes = expand(line, "Nodes", value)?,
                "blocksizes" => row.block_sizes = Some(block_sizes(line, value)?),
                // Slurm takes it and uses it for nothing.
                "linkspeed" => {}
                _ => return Err(unknown(line, word)),
            }
        }
        Ok(row)
    }
}

fn unknown(line: u64, word: &str) -> ImportError {
    let key = word.split('=').next().unwrap_or_default();
    let problem = "not a key of topology.conf here";
    let fix = "the keys are SwitchName, Switches, Nodes, LinkSpeed, BlockName, BlockSizes";
    ImportError::at(line, key, problem, fix)
}

fn expand(line: u64, field: &str, value: &str) -> Result<Vec<String>, ImportError> {
    let fix = "write names like node[1-8,12]";
    let list = hostlist::expand(value)
        .map_err(|error| ImportError::at(line, field, error.to_string(), fix))?;
    match list.iter().find(|name| !names::usable(name)) {
        Some(bad) => {
            let fix = "use letters, digits and - _ . / : @";
            Err(ImportError::at(line, field, format!("the name {bad:?} cannot be used"), fix))
        }
        None => Ok(list),
    }
}

/// Each a power of two times the first.
fn block_sizes(line: u64, value: &str) -> Result<Vec<usize>, ImportError> {
    let mut sizes: Vec<usize> = Vec::new();
    for size in value.split(',') {
        let bad = |problem: String| {
            let fix = "write the base block's nodes, then its multiples by powers of two: 8,16,32";
            ImportError::at(line, "BlockSizes", problem, fix)
        };
        let number = size.parse().ok().filter(|n| (1..=MAX_NAMES).contains(n));
        let number = number.ok_or_else(|| bad(format!("{size:?} is no number of nodes")))?;
        if let (Some(first), Some(last)) = (sizes.first(), sizes.last()) {
            let fits = number > *last && number % first == 0 && (number / first).is_power_of_two();
            if !fits {
                return Err(bad(format!("{number} does not follow {last}")));
            }
        }
        sizes.push(number);
    }
    Ok(sizes)
}

/// The lines without comments, those that end in a backslash joined to the next; the number is
/// that of the first.
fn logical_lines(text: &str) -> Vec<(u64, String)> {
    let mut lines: Vec<(u64, String)> = Vec::new();
    let mut open = false;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        let (line, goes_on) = line.strip_suffix('\\').map_or((line, false), |line| (line, true));
        match lines.last_mut().filter(|_| open) {
            Some((_, joined)) => {
                joined.push(' ');
                joined.push_str(line);
            }
            None => lines.push((number, line.to_owned())),
        }
        open = goes_on;
    }
    lines.retain(|(_, line)| !line.trim().is_empty());
    lines
}

/// A file of the block plugin.
fn blocks(
    file: &File,
    options: &Options,
    remarks: &mut Vec<Remark>,
) -> Result<FabricRecord, ImportError> {
    let mut record = FabricRecord::default();
    let mut place_of: BTreeMap<&str, &str> = BTreeMap::new();
    let base = file.block_sizes.as_ref().and_then(|(_, sizes)| sizes.first().copied());
    for block in &file.blocks {
        if !block.switches.is_empty() {
            let problem = "a block has no switches";
            return Err(ImportError::at(block.line, "Switches", problem, "write Nodes="));
        }
        if block.nodes.is_empty() {
            remarks.push(Remark::new(&block.name, "is a block without nodes: left out"));
            continue;
        }
        if let Some(base) = base.filter(|base| *base > block.nodes.len()) {
            let count = block.nodes.len();
            let text = format!("has {count} nodes, fewer than the base block size {base}");
            remarks.push(Remark::new(&block.name, text));
        }
        let leaf = LeafRecord { name: block.name.clone(), rail: None, spines: Vec::new() };
        record.leafs.push(leaf);
        for name in &block.nodes {
            if let Some(first) = place_of.insert(name, &block.name) {
                let problem = format!("{name:?} is in block {first} already");
                return Err(ImportError::at(block.line, "Nodes", problem, "keep it in one block"));
            }
            let mut node = options.hardware.node(name.clone(), site_of(options));
            node.leafs = vec![block.name.clone()];
            record.nodes.push(node);
        }
    }
    if let Some((_, [_, above @ ..])) = file.block_sizes.as_ref().map(|(l, s)| (l, s.as_slice()))
        && !above.is_empty()
    {
        let sizes: Vec<String> = above.iter().map(usize::to_string).collect();
        let text = format!(
            "{} are sizes to plan for, over neighbours in the file, not cabling: the blocks keep \
             their order and get no switch above",
            sizes.join(", ")
        );
        remarks.push(Remark::new("BlockSizes", text));
    }
    Ok(record)
}
