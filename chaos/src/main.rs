//! The chaos world: the production cores under faults that a seed draws, and the
//! checks that nothing was lost.
//!
//! Owns simulated machines, their network and the journal of their devices. It
//! is never imported, and never decides anything that Rowen decides. Run it as
//! `cargo xtask chaos sim --seeds 1..200`.

mod checks;
mod clients;
mod context;
mod control;
mod coverage;
mod draws;
mod faults;
mod group;
mod history;
mod inbox;
mod invariant;
mod journal;
mod machine;
mod message;
mod net;
mod operators;
mod report;
mod rng;
mod setup;
mod streams;
mod truth;
mod world;

use std::{io::Write as _, ops::Range, process::ExitCode, time::Instant};

use anyhow::ensure;
use clap::{Parser, Subcommand};

use crate::{
    invariant::{Finding, Invariant},
    report::Summary,
    world::{Options, Outcome},
};

#[derive(Debug, Parser)]
#[command(name = "chaos", about = "Breaks Rowen on purpose, from a seed.")]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// One thread, virtual time: machines, network and leaders are simulated.
    Sim {
        /// Replays one seed and prints the end of its trace.
        #[arg(long, conflicts_with = "seeds", required_unless_present = "seeds")]
        seed: Option<u64>,
        /// From A to B, B not included: `1..200`.
        #[arg(long, value_parser = range)]
        seeds: Option<Range<u64>>,
        /// Runs each seed twice and compares the traces.
        #[arg(long)]
        twice: bool,
        /// Prints one JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    // Without it openraft spawns past the simulated processes, and no seed repeats.
    ensure!(cfg!(tokio_unstable), "this build cannot simulate; run cargo xtask chaos");
    let What::Sim { seed, seeds, twice, json } = Args::parse().what;
    let range = seeds.unwrap_or_else(|| seed.map_or(0..0, |seed| seed..seed + 1));
    let began = Instant::now();
    let mut summary = Summary::default();
    let mut out = std::io::stdout().lock();
    for seed in range.clone() {
        let outcome = if twice { run_twice(seed) } else { run(seed) };
        if !json && range.end - range.start == 1 {
            for line in &outcome.tail {
                writeln!(out, "{line}")?;
            }
            writeln!(out, "state {:032x}, trace {:016x}\n", outcome.state_hash, outcome.digest)?;
        }
        summary.add(outcome);
    }
    let wall = began.elapsed();
    let command = format!("chaos sim --seeds {}..{}", range.start, range.end);
    if json {
        writeln!(std::io::stderr(), "{}", summary.failures())?;
        writeln!(out, "{}", summary.figures(&command, wall).json())?;
    } else {
        write!(out, "{}{}", summary.table(wall), summary.failures())?;
    }
    Ok(if summary.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// An assertion of the code under test is a finding like any other: the next seeds still run.
fn run(seed: u64) -> Outcome {
    let options = Options { seed, ..Options::default() };
    std::panic::catch_unwind(|| world::run(&options)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let what = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        let finding = Finding::new(Invariant::of_panic(what), format!("panicked: {what}"));
        Outcome { seed, findings: vec![finding], ..Outcome::default() }
    })
}

/// A run that depends on anything but its seed is itself a finding.
fn run_twice(seed: u64) -> Outcome {
    let mut first = run(seed);
    let second = run(seed);
    if (first.digest, first.state_hash) != (second.digest, second.state_hash) {
        let what =
            format!("not repeatable: trace {:016x} and {:016x}", first.digest, second.digest);
        first.findings.push(Finding::new(Invariant::Repeatable, what));
    }
    first
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let parsed = text.split_once("..").and_then(|(from, to)| {
        let range = from.trim().parse().ok()?..to.trim().parse().ok()?;
        (range.start < range.end).then_some(range)
    });
    parsed.ok_or_else(|| format!("{text:?} is no range; write 1..200"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(tokio_unstable)]
    #[test]
    fn seeds_hold_and_repeat() {
        for seed in 0..6 {
            let outcome = run_twice(seed);
            assert_eq!(outcome.findings, [], "seed {seed}: {:#?}", outcome.tail);
            assert!(outcome.entries > 50 && outcome.launches > 0, "{outcome:?}");
        }
    }

    #[cfg(tokio_unstable)]
    #[test]
    fn seeds_differ() {
        assert_ne!(run(1).digest, run(2).digest);
    }

    #[test]
    fn a_range_goes_up() {
        assert_eq!(range("1..200"), Ok(1..200));
        assert_eq!(range("7"), Err("\"7\" is no range; write 1..200".into()));
        assert!(range("9..3").is_err());
    }
}
