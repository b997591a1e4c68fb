//! `rowen bench …`: measurements of the real thing, each beside what bounds it.

mod bounds;
pub(crate) mod figures;
mod submit;

use std::process::ExitCode;

use anyhow::Result;

/// Arguments of `rowen bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// From `rowen submit` to the task's first instruction, one job after the other.
    Submit(submit::Args),
}

/// Measures.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    match args.what {
        What::Submit(args) => submit::run(args).await,
    }
}
