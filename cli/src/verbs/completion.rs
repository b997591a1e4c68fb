//! `completion`: the script that a shell sources.

use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::{Shell, generate};

use crate::args::RowenArgs;
use crate::exit::{DONE, Outcome};
use crate::output::line;

/// Prints the completion script of a shell.
pub(super) fn print(shell: Shell) -> Outcome {
    // Into memory first: clap_complete panics where its writer fails (`… | head`).
    let mut script = Vec::new();
    generate(shell, &mut RowenArgs::command(), "rowen", &mut script);
    line(&String::from_utf8(script)?)?;
    Ok(ExitCode::from(DONE))
}
