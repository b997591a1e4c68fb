//! `rowen bench …`: measurements of the real thing, each beside what bounds it.

mod bounds;
mod commit;
mod cpu;
mod disk;
mod etcd;
mod failover;
pub(crate) mod figures;
mod jobs;
mod placement;
mod proc;
mod soak;
mod submit;
mod wire;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::cluster;

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
    /// How long the planner takes for a decision, from 1,024 to 131,072 GPUs.
    Placement(placement::Args),
    /// Jobs submitted, placed and running a second, with 1,000 simulated agents; then the leader is
    /// killed under them.
    Jobs(jobs::Args),
    /// What a replica takes on disk over millions of entries, and how long it takes to open again.
    Disk(disk::Args),
    /// Steady load on three replicas: whether memory, disk and latency stay what they are.
    Soak(soak::Args),
}

/// What every measurement takes.
#[derive(Debug, clap::Args)]
struct Common {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Fail when a bar is missed.
    #[arg(long)]
    enforce: bool,
    /// Where all files go, to measure on a certain disk. Left out: a temporary folder.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

/// Measures.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    match args.what {
        What::Submit(args) => {
            report(&args.common, async |at| submit::measure(&args, at).await).await
        }
        What::Commit(args) => {
            report(&args.common, async |at| commit::measure(&args, at).await).await
        }
        What::Failover(args) => {
            report(&args.common, async |at| failover::measure(&args, at).await).await
        }
        What::Placement(args) => report(&args.common, async |_| placement::measure(&args)).await,
        What::Jobs(args) => report(&args.common, async |at| jobs::measure(&args, at).await).await,
        What::Disk(args) => report(&args.common, async |at| disk::measure(&args, at).await).await,
        What::Soak(args) => report(&args.common, async |at| soak::measure(&args, at).await).await,
    }
}

/// Measures in a folder of its own and prints what came out; Ctrl-C ends it.
async fn report(
    common: &Common,
    measure: impl AsyncFnOnce(&Path) -> Result<figures::Report>,
) -> Result<ExitCode> {
    let folder = folder(common.data.as_deref())?;
    tokio::select! {
        report = measure(folder.path()) => Ok(report?.finish(common.json, common.enforce)),
        () = cluster::interrupted() => Ok(ExitCode::from(130)),
    }
}

/// What a folder takes on the disk: blocks, not lengths.
fn disk_bytes(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        // Segments and periods come and go meanwhile.
        let Ok(entry) = entry else { continue };
        let Ok(found) = entry.metadata() else { continue };
        bytes += match found.is_dir() {
            true => disk_bytes(&entry.path()).unwrap_or(0),
            false => found.blocks() * 512,
        };
    }
    Ok(bytes)
}

/// A folder that goes with the run, on the disk that was asked for.
fn folder(parent: Option<&Path>) -> std::io::Result<tempfile::TempDir> {
    match parent {
        Some(parent) => tempfile::Builder::new().prefix("bench-").tempdir_in(parent),
        None => tempfile::Builder::new().prefix("rowen-bench-").tempdir(),
    }
}
