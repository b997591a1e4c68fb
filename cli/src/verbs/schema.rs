//! `schema`, `job schema`, `filler schema`, `fabric schema`.

use std::process::ExitCode;

use crate::exit::{DONE, Outcome};
use crate::files::{Kind, schema};
use crate::output::line;

/// Prints the JSON Schema of a kind of file.
pub(super) fn print(kind: Kind) -> Outcome {
    line(&serde_json::to_string_pretty(&schema(kind))?)?;
    Ok(ExitCode::from(DONE))
}
