//! The matrix of `nvidia-smi topo -m`: how each GPU and NIC of one machine reaches each.
//!
//! Takes the whole output, its legend and terminal colours included. Knows no models: the matrix
//! does not name them.

use std::collections::{BTreeMap, BTreeSet};

use super::inside::{Device, Inside, Path};
use super::{ImportError, Imported, Options};

const FIX: &str = "give the unchanged output of nvidia-smi topo -m";
/// Columns of one matrix.
const MAX_COLUMNS: usize = 128;
/// CPUs have smaller numbers.
const MAX_CPU: u32 = 65_536;

pub(super) fn import(text: &str, options: &Options) -> Result<Imported, ImportError> {
    let plain = without_escapes(text);
    let mut lines = (1..).zip(plain.lines());
    let (_, header) = lines
        .by_ref()
        .find(|(_, line)| line.split_whitespace().next().is_some_and(|word| word == "GPU0"))
        .ok_or_else(|| ImportError::whole("no header line that begins with GPU0", FIX))?;
    let columns: Vec<&str> = header.split_whitespace().take_while(|word| *word != "CPU").collect();
    if columns.len() > MAX_COLUMNS {
        return Err(ImportError::whole(format!("{} columns", columns.len()), FIX));
    }
    let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
    let mut legend: BTreeMap<&str, &str> = BTreeMap::new();
    for (line, text) in lines {
        let words: Vec<&str> = text.split_whitespace().collect();
        match words.as_slice() {
            [nic, name] if nic.starts_with("NIC") && nic.ends_with(':') => {
                legend.insert(nic.trim_end_matches(':'), name);
            }
            [first, cells @ ..] if columns.contains(first) => {
                let row = Row::read(line, first, cells, columns.len())?;
                if rows.insert(first, row).is_some() {
                    return Err(ImportError::at(line, *first, "a row twice", FIX));
                }
            }
            _ => {}
        }
    }
    if let Some(missing) = columns.iter().find(|column| !rows.contains_key(*column)) {
        return Err(ImportError::whole(format!("no row for {missing}"), FIX));
    }
    inside(&columns, &rows, &legend).into_imported(options, Vec::new())
}

/// One device's row.
struct Row {
    paths: Vec<Path>,
    cpus: BTreeSet<u32>,
    numa: Option<u32>,
}

impl Row {
    fn read(line: u64, name: &str, cells: &[&str], columns: usize) -> Result<Row, ImportError> {
        if cells.len() < columns {
            let problem = format!("{} cells for {columns} columns", cells.len());
            return Err(ImportError::at(line, name, problem, FIX));
        }
        let (cells, rest) = cells.split_at(columns);
        let read = |cell: &&str| {
            Path::read(cell).ok_or_else(|| {
                let problem = format!("{cell:?} is no kind of path");
                ImportError::at(line, name, problem, "write X, NV#, PIX, PXB, PHB, NODE or SYS")
            })
        };
        let paths = cells.iter().map(read).collect::<Result<_, _>>()?;
        // NICs' rows have neither; N/A stands where a GPU has none.
        let cpus = rest.first().map(|list| cpu_list(list)).unwrap_or_default();
        let numa = rest.get(1).and_then(|word| word.split(['-', ',']).next()?.parse().ok());
        Ok(Row { paths, cpus, numa })
    }
}

fn inside(columns: &[&str], rows: &BTreeMap<&str, Row>, legend: &BTreeMap<&str, &str>) -> Inside {
    let is_gpu = |at: &usize| columns[*at].starts_with("GPU");
    let (gpus, nics): (Vec<usize>, Vec<usize>) = (0..columns.len()).partition(is_gpu);
    let device = |at: &usize| Device {
        name: (*legend.get(columns[*at]).unwrap_or(&columns[*at])).to_owned(),
        numa: rows[columns[*at]].numa,
        ..Device::default()
    };
    let paths = |to: &[usize]| -> Vec<Vec<Path>> {
        let row = |at: &usize| to.iter().map(|other| rows[columns[*at]].paths[*other]).collect();
        gpus.iter().map(row).collect()
    };
    let cpus: BTreeSet<u32> = rows.values().flat_map(|row| row.cpus.iter().copied()).collect();
    Inside {
        gpu_paths: paths(&gpus),
        nic_paths: paths(&nics),
        cpus: Some(cpus.len() as u32).filter(|count| *count > 0),
        gpus: gpus.iter().map(device).collect(),
        nics: nics.iter().map(device).collect(),
    }
}

/// `0-31,64-95`; empty where it is something else.
fn cpu_list(text: &str) -> BTreeSet<u32> {
    let mut cpus = BTreeSet::new();
    for range in text.split(',') {
        let (low, high) = range.split_once('-').unwrap_or((range, range));
        if let (Ok(low), Ok(high)) = (low.parse::<u32>(), high.parse::<u32>())
            && high < MAX_CPU
        {
            cpus.extend(low..=high);
        }
    }
    cpus
}

/// `nvidia-smi` underlines its header even into a file.
fn without_escapes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        out.push_str(before);
        // `[4m`: up to the first letter.
        let end = after.find(|c: char| c.is_ascii_alphabetic()).map_or(after.len(), |at| at + 1);
        rest = &after[end..];
    }
    out.push_str(rest);
    out
}
