//! `sim`: traces replayed in virtual time through the core that also serves.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use rowen_sim::{Options, Report, filler, read_jobs, run_jobs};

use crate::exit::{DONE, FAILED, Outcome};
use crate::output::line;

/// Verbs of `sim`.
#[derive(Debug, Subcommand)]
pub(crate) enum SimVerb {
    /// Replay a trace of gang jobs: waits, completion times, utilisation.
    Jobs(JobsArgs),
}

/// Arguments of `sim jobs`.
#[derive(Debug, Args)]
pub(crate) struct JobsArgs {
    /// CSV with the columns `job_id, submission_time, duration, num_gpu`; times in seconds.
    trace: PathBuf,
    /// Nodes of the simulated cluster, in blocks of 32.
    #[arg(long, default_value_t = 8)]
    nodes: u32,
    /// GPUs of each.
    #[arg(long, default_value_t = 8)]
    gpus: u32,
    /// Fill what the jobs leave with one-GPU fillers that get this notice.
    #[arg(long, value_name = "SECONDS")]
    filler_notice: Option<u64>,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// `sim`. Fails where a check of the simulated cluster does not hold.
pub(super) fn run(verb: SimVerb) -> Outcome {
    let SimVerb::Jobs(args) = verb;
    let text = std::fs::read_to_string(&args.trace)
        .with_context(|| format!("cannot read {}", args.trace.display()))?;
    let trace = read_jobs(&text).with_context(|| args.trace.display().to_string())?;
    let mut options = Options::new(args.nodes, args.gpus)?;
    options.filler = args.filler_notice.map(|seconds| filler(seconds * 1_000));
    let report = run_jobs(&trace, &options);
    line(&if args.json { report.json() } else { table(&report) })?;
    Ok(ExitCode::from(if report.ok { DONE } else { FAILED }))
}

fn table(report: &Report) -> String {
    let figures = report.figures.iter().map(|figure| {
        format!("{:<24} {:>14.3} {:<6} {}", figure.name, figure.value, figure.unit, figure.case)
    });
    let hash = std::iter::once(format!("state hash {}", report.state_hash));
    figures.chain(hash).collect::<Vec<_>>().join("\n")
}
