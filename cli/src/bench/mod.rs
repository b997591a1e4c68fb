//! `rowen bench …`: measurements of the real thing, each beside what bounds it.

mod bounds;
mod commit;
mod etcd;
mod failover;
pub(crate) mod figures;
mod submit;

use std::path::Path;
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
    /// Commands made durable a second and how long each takes, beside etcd where it is installed.
    Commit(commit::Args),
    /// The leader, or all replicas at once, killed under load: how long until work goes on, and
    /// whether anything acknowledged was lost.
    Failover(failover::Args),
}

/// Measures.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    match args.what {
        What::Submit(args) => submit::run(args).await,
        What::Commit(args) => commit::run(args).await,
        What::Failover(args) => failover::run(args).await,
    }
}

/// A folder that goes with the run, on the disk that was asked for.
fn folder(parent: Option<&Path>) -> std::io::Result<tempfile::TempDir> {
    match parent {
        Some(parent) => tempfile::Builder::new().prefix("bench-").tempdir_in(parent),
        None => tempfile::Builder::new().prefix("rowen-bench-").tempdir(),
    }
}
