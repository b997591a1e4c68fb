//! `fabric import`: another system's account of a fabric as a file of Rowen's own.
//!
//! What was found, what looks wrong and what had to be assumed stands at the head of the file as
//! comments, so that it is not lost with the screen. Never talks to a cluster.

use std::fs;
use std::process::ExitCode;

use anyhow::Context as _;
use rowen_topology::Inventory;
use rowen_topology::import::{self, Hardware, Imported, Options, import};
use serde::Serialize;

use crate::args::{ImportArgs, ImportFormat};
use crate::exit::{DONE, Outcome, UsageError};
use crate::files::{FileError, Problem, read_text};
use crate::output::fabric::FoundView;
use crate::output::{Output, line, note};

/// `fabric import -o json`.
#[derive(Serialize)]
struct ImportView<'a> {
    found: FoundView,
    /// What looks wrong in the text or was left out.
    remarks: Vec<String>,
    /// What the text does not tell and nobody said.
    assumed: &'a [String],
    inventory: &'a Inventory,
}

/// `fabric import`.
pub(super) fn run(out: Output, args: &ImportArgs) -> Outcome {
    let options =
        Options { site: args.site.clone(), hardware: hardware(args)?, nodes: args.nodes.clone() };
    let imported = read(args.from, &args.file, &options)?;
    let found = FoundView::new(&imported.inventory).context("an imported inventory is sound")?;
    let remarks = imported.remarks.iter().map(ToString::to_string).collect();
    let (assumed, inventory) = (imported.assumed.as_slice(), &imported.inventory);
    let view = ImportView { found, remarks, assumed, inventory };
    let lines = view.lines(&imported);
    let yaml = serde_saphyr::to_string(inventory)?;
    let file = format!("{}{yaml}", comments(args, &lines));
    if let Some(path) = &args.to {
        fs::write(path, &file).with_context(|| format!("cannot write {path}"))?;
    }
    match (&args.to, out.is_text()) {
        (Some(_), _) | (None, false) => out.emit(&view, |_| lines.join("\n"))?,
        (None, true) => {
            line(&file)?;
            for text in &lines {
                note(text);
            }
        }
    }
    Ok(ExitCode::from(DONE))
}

impl ImportView<'_> {
    /// What was found, for people.
    fn lines(&self, imported: &Imported) -> Vec<String> {
        let mut lines = self.found.picture();
        if let Some(inside) = &imported.inside {
            lines.extend(inside.drawing().lines().map(str::to_owned));
        }
        let irregular = self.found.irregularities().iter();
        lines.extend(irregular.map(|text| format!("irregular: {text}")));
        lines.extend(self.remarks.iter().map(|text| format!("noted: {text}")));
        lines.extend(self.assumed.iter().map(|text| format!("assumed: {text}")));
        lines
    }
}

fn comments(args: &ImportArgs, lines: &[String]) -> String {
    let from = format!("# From {}, read as {}.\n", args.file, format(args.from).as_str());
    let lines: String = lines.iter().map(|text| format!("# {text}\n")).collect();
    from.replace(|c: char| c.is_control() && c != '\n', " ") + &lines
}

/// What the flags say of each node, and beyond that the file of its inside.
fn hardware(args: &ImportArgs) -> anyhow::Result<Hardware> {
    let said = Hardware {
        gpu_model: args.gpu_model.clone(),
        gpu_count: args.gpus,
        gpu_memory_mib: args.gpu_memory_mib,
        nic_model: args.nic.clone(),
        cpus: args.cpus,
        memory_mib: args.memory_mib,
    };
    let Some(inside) = &args.inside else { return Ok(said) };
    let (from, path) = match inside.split_once(':') {
        Some(("nccl", path)) => (ImportFormat::Nccl, path),
        Some(("nvidia-smi", path)) => (ImportFormat::NvidiaSmi, path),
        _ => {
            let text = format!("--inside {inside}: write nccl:FILE or nvidia-smi:FILE");
            return Err(UsageError(text).into());
        }
    };
    let imported = read(from, path, &Options::default())?;
    Ok(said.or(imported.inside.map(|inside| inside.hardware()).unwrap_or_default()))
}

fn read(from: ImportFormat, path: &str, options: &Options) -> anyhow::Result<Imported> {
    let text = read_text(path, import::MAX_BYTES as u64)?;
    Ok(import(format(from), &text, options).map_err(|error| {
        let problem = Problem::new("", error.to_string());
        FileError { file: path.to_owned(), problems: vec![problem] }
    })?)
}

fn format(from: ImportFormat) -> import::Format {
    match from {
        ImportFormat::Slurm => import::Format::Slurm,
        ImportFormat::Ibnetdiscover => import::Format::Ibnetdiscover,
        ImportFormat::Topograph => import::Format::Topograph,
        ImportFormat::Nccl => import::Format::Nccl,
        ImportFormat::NvidiaSmi => import::Format::NvidiaSmi,
    }
}
