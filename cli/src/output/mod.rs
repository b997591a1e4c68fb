//! Results on the screen: tables for people, JSON and YAML for programs.
//!
//! Each noun has a *view*, a struct of its own that is the JSON users script against: states as
//! words, units last in the names, times as unix milliseconds, `null` where something has not
//! happened. Views change only by addition. Never talks to a server.

pub(crate) mod cells;
pub(crate) mod cluster;
pub(crate) mod fabric;
pub(crate) mod filler;
pub(crate) mod health;
pub(crate) mod job;
pub(crate) mod node;
pub(crate) mod plan;
pub(crate) mod queue;
#[cfg(test)]
pub(crate) mod samples;
mod shape;
#[cfg(test)]
mod snapshots;
pub(crate) mod status;
mod table;
pub(crate) mod whatif;
pub(crate) mod words;

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

use crate::args::OutputFormat;

/// Where and how results go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    format: OutputFormat,
    /// Colours: on a terminal, unless NO_COLOR is set.
    pub(crate) colour: bool,
    /// Standard output is a terminal, which can be redrawn.
    terminal: bool,
}

impl Output {
    /// What the flags, the terminal and NO_COLOR ask for.
    pub(crate) fn new(format: OutputFormat) -> Output {
        let terminal = io::stdout().is_terminal();
        Output { format, colour: terminal && may_colour(), terminal }
    }

    /// More columns are wanted.
    pub(crate) fn wide(self) -> bool {
        self.format == OutputFormat::Wide
    }

    /// The result is for people, not for a program.
    pub(crate) fn is_text(self) -> bool {
        matches!(self.format, OutputFormat::Table | OutputFormat::Wide)
    }

    /// Prints `view`, as `text` draws it where it is for people.
    pub(crate) fn emit<V: Serialize>(
        self,
        view: &V,
        text: impl FnOnce(&V) -> String,
    ) -> anyhow::Result<()> {
        let out = match self.format {
            OutputFormat::Json => serde_json::to_string_pretty(view)?,
            _ => self.rendered(view, text)?,
        };
        line(&out)
    }

    /// One picture of many (`--watch`): redrawn in place on a terminal, one after the other
    /// otherwise, JSON on one line each.
    pub(crate) fn redraw<V: Serialize>(
        self,
        view: &V,
        text: impl FnOnce(&V) -> String,
    ) -> anyhow::Result<()> {
        let out = self.rendered(view, text)?;
        if !self.terminal || !self.is_text() {
            return line(&out);
        }
        // Overwriting line by line and clearing only what is left over does not flicker.
        let body = out.trim_end().replace('\n', "\x1b[K\n");
        write(&format!("\x1b[H{body}\x1b[K\n\x1b[J"))
    }

    fn rendered<V: Serialize>(
        self,
        view: &V,
        text: impl FnOnce(&V) -> String,
    ) -> anyhow::Result<String> {
        Ok(match self.format {
            OutputFormat::Table | OutputFormat::Wide => text(view),
            OutputFormat::Json => serde_json::to_string(view)?,
            OutputFormat::Yaml => format!("---\n{}", serde_saphyr::to_string(view)?),
        })
    }
}

/// Whether colours are welcome at all: <https://no-color.org>.
pub(crate) fn may_colour() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|value| value != "dumb")
}

/// Prints `text` and ends its last line.
pub(crate) fn line(text: &str) -> anyhow::Result<()> {
    write(&format!("{}\n", text.trim_end_matches('\n')))
}

fn write(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// A remark for the person at the terminal; never part of a result.
pub(crate) fn note(text: &str) {
    // Nothing is left to do where even standard error is gone.
    let _ = writeln!(io::stderr().lock(), "{text}");
}
