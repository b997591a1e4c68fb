//! Importers: what other systems say of a fabric, as Rowen's own inventory.
//!
//! One file a format. Each takes text and gives an inventory that expands, the links it could
//! measure, and remarks on what looks wrong or was left out; a file it cannot read is refused with
//! line, field and fix. Never opens a file, never guesses in silence: what a format does not tell
//! (GPUs, CPUs, memory) is listed as assumed.

mod hardware;
mod ib;
pub mod inside;
mod names;
mod nccl;
mod nvidia_smi;
mod slurm;
mod topograph;
mod tree;

use std::fmt;

pub use hardware::Hardware;

use crate::inventory::DEFAULT_SITE;
use crate::{FabricRecord, Inventory, InventoryError, hostlist};

/// No text may be larger: an ibnetdiscover dump of 16,384 nodes with 8 HCAs each is about 60 MiB.
pub const MAX_BYTES: usize = 128 << 20;

/// What a text is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Slurm's `topology.conf`: the tree or the block plugin.
    Slurm,
    /// The output of `ibnetdiscover`.
    Ibnetdiscover,
    /// A model of NVIDIA topograph.
    Topograph,
    /// NCCL's topology of one machine (`NCCL_TOPO_DUMP_FILE`).
    Nccl,
    /// The matrix of `nvidia-smi topo -m` of one machine.
    NvidiaSmi,
}

impl Format {
    /// All of them.
    pub const ALL: [Format; 5] =
        [Format::Slurm, Format::Ibnetdiscover, Format::Topograph, Format::Nccl, Format::NvidiaSmi];

    /// The word on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Slurm => "slurm",
            Format::Ibnetdiscover => "ibnetdiscover",
            Format::Topograph => "topograph",
            Format::Nccl => "nccl",
            Format::NvidiaSmi => "nvidia-smi",
        }
    }
}

/// What the caller knows and the text does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The site of all nodes, where the text tells none.
    pub site: Option<String>,
    /// The machines' GPUs, CPUs and memory.
    pub hardware: Hardware,
    /// The nodes, as a host list. For a fabric: all others are left out. For the inside of a
    /// machine: the machines that are like it.
    pub nodes: Option<String>,
}

/// What an importer made of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Expands without an error.
    pub inventory: Inventory,
    /// What looks wrong in the text or was left out. What looks wrong in the fabric itself is
    /// found by [`Fabric::irregularities`](crate::Fabric::irregularities).
    pub remarks: Vec<Remark>,
    /// What the text does not tell and nobody said: `8 GPUs a node`.
    pub assumed: Vec<String>,
    /// The inside of the machine, of those formats that tell it.
    pub inside: Option<inside::Inside>,
}

/// One thing that an importer noticed, about one member.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Remark {
    /// The member's name.
    pub member: String,
    /// What about it.
    pub text: String,
}

impl Remark {
    pub(crate) fn new(member: impl Into<String>, text: impl Into<String>) -> Remark {
        Remark { member: member.into(), text: text.into() }
    }
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.member, self.text)
    }
}

/// Why a text is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportError {
    /// From 1; `None`: the text as a whole.
    pub line: Option<u64>,
    /// The word in the text that is at fault, for example `Switches`; may be empty.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to write or do instead.
    pub fix: String,
}

impl ImportError {
    pub(crate) fn at(
        line: u64,
        field: impl Into<String>,
        problem: impl Into<String>,
        fix: impl Into<String>,
    ) -> ImportError {
        let line = Some(line);
        ImportError { line, field: field.into(), problem: problem.into(), fix: fix.into() }
    }

    pub(crate) fn whole(problem: impl Into<String>, fix: impl Into<String>) -> ImportError {
        let (problem, fix) = (problem.into(), fix.into());
        ImportError { line: None, field: String::new(), problem, fix }
    }
}

impl std::error::Error for ImportError {}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        // Whatever stood in the text, an error is one line.
        let text = format!("{}; {}", self.problem, self.fix);
        f.write_str(&text.replace(|c: char| c.is_control(), " "))
    }
}

impl From<InventoryError> for ImportError {
    fn from(error: InventoryError) -> ImportError {
        let InventoryError { field, problem, fix } = error;
        ImportError { line: None, field, problem, fix }
    }
}

/// Reads `text` as `format`.
pub fn import(format: Format, text: &str, options: &Options) -> Result<Imported, ImportError> {
    if text.len() > MAX_BYTES {
        let problem = format!("larger than {} MiB", MAX_BYTES >> 20);
        return Err(ImportError::whole(problem, "split it"));
    }
    let mut imported = match format {
        Format::Slurm => slurm::import(text, options),
        Format::Ibnetdiscover => ib::import(text, options),
        Format::Topograph => topograph::import(text, options),
        Format::Nccl => nccl::import(text, options),
        Format::NvidiaSmi => nvidia_smi::import(text, options),
    }?;
    imported.remarks.sort();
    imported.remarks.dedup();
    // Names and limits are checked in one place, and links against what they connect.
    imported.inventory.fabric()?;
    Ok(imported)
}

/// The nodes that the caller named; `None`: all.
fn wanted_nodes(options: &Options) -> Result<Option<Vec<String>>, ImportError> {
    let expand = |list: &String| {
        hostlist::expand(list).map_err(|error| ImportError {
            line: None,
            field: "nodes".to_owned(),
            problem: error.to_string(),
            fix: "write names like node[1-8,12]".to_owned(),
        })
    };
    options.nodes.as_ref().map(expand).transpose()
}

/// Takes out every node that the caller did not name; one that the text lacks is an error.
fn keep_wanted(record: &mut FabricRecord, options: &Options) -> Result<(), ImportError> {
    let Some(wanted) = wanted_nodes(options)? else { return Ok(()) };
    let wanted: std::collections::BTreeSet<String> = wanted.into_iter().collect();
    record.nodes.retain(|node| wanted.contains(&node.name));
    let found: std::collections::BTreeSet<&str> =
        record.nodes.iter().map(|node| node.name.as_str()).collect();
    match wanted.iter().find(|name| !found.contains(name.as_str())) {
        Some(missing) => Err(ImportError {
            line: None,
            field: "nodes".to_owned(),
            problem: format!("no node is called {missing:?} in this text"),
            fix: "correct the name or leave it out".to_owned(),
        }),
        None => Ok(()),
    }
}

/// The caller's site, else the usual one.
fn site_of(options: &Options) -> String {
    options.site.clone().unwrap_or_else(|| DEFAULT_SITE.to_owned())
}
