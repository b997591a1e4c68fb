//! Job, filler and fabric files: one schema a kind, read from YAML, TOML or JSON.
//!
//! Everything here works offline: a file is read, checked against every limit that can be known
//! without a cluster, and converted to the wire's messages. Never talks to a server.

mod check;
mod document;
mod explain;
mod fabric;
mod filler;
mod job;
mod resources;
mod schema;
mod shape;
mod values;

use std::fmt;

pub(crate) use document::{Format, Source, read_text};
pub(crate) use fabric::{read_fabric, read_inventory};
pub(crate) use filler::FillerFile;
pub(crate) use job::JobFile;
pub(crate) use schema::{Kind, schema};

/// A duration as files have it, for flags.
pub(crate) fn duration(text: &str) -> Result<std::time::Duration, String> {
    values::Millis::parse(text).map(|ms| std::time::Duration::from_millis(ms.0))
}

/// A duration as a file would have it.
pub(crate) fn duration_text(ms: u64) -> String {
    check::duration(values::Millis(ms))
}

/// One thing that is wrong with a file: which field, what, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Path of the field, `resources.gpus`; empty: the file as a whole.
    pub(crate) field: String,
    /// The rest of the line.
    pub(crate) text: String,
}

impl Problem {
    /// A problem of `field`.
    pub(crate) fn new(field: impl Into<String>, text: impl Into<String>) -> Problem {
        Problem { field: field.into(), text: text.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.is_empty() {
            true => f.write_str(&self.text),
            false => write!(f, "{}: {}", self.field, self.text),
        }
    }
}

/// All that is wrong with one file, a line each.
#[derive(Debug, thiserror::Error)]
pub(crate) struct FileError {
    /// As the user named it.
    pub(crate) file: String,
    /// At least one.
    pub(crate) problems: Vec<Problem>,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.problems.iter().enumerate() {
            let newline = if at == 0 { "" } else { "\n" };
            write!(f, "{newline}{}: {problem}", self.file)?;
        }
        Ok(())
    }
}
