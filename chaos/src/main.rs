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
mod kept;
mod linear;
mod logs;
mod machine;
mod message;
mod minimise;
mod net;
mod operators;
mod planted;
mod report;
mod restore;
mod rng;
mod setup;
mod streams;
mod timeline;
mod truth;
mod watches;
mod workers;
mod world;

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufReader, Write as _},
    ops::Range,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand};

use crate::{
    draws::Draw,
    history::History,
    invariant::{Finding, Invariant},
    linear::Verdict,
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
    Sim(Sim),
    /// Plants bugs one by one; each must be caught and named by the invariant it breaks.
    Planted(PlantedArgs),
    /// Checks a history of clients, one operation a line, for linearizability.
    Linear {
        /// As `sim --history` or a client of real processes wrote it.
        file: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct Sim {
    /// Replays one seed and prints the end of its trace.
    #[arg(long, conflicts_with = "seeds", required_unless_present = "seeds")]
    seed: Option<u64>,
    /// From A to B, B not included: `1..200`.
    #[arg(long, value_parser = range)]
    seeds: Option<Range<u64>>,
    /// Runs each seed twice and compares the traces.
    #[arg(long)]
    twice: bool,
    /// Leaves out faults and operations by number: `f3,o9-20`.
    #[arg(long, value_parser = parse_drop, default_value = "", hide_default_value = true)]
    drop: Dropped,
    /// Leaves out of a failing seed whatever it does not need to fail.
    #[arg(long, requires = "seed")]
    minimise: bool,
    /// For how many minutes of each run faults are on; 2 to 10 unless said.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    minutes: Option<u64>,
    /// With a bug planted on purpose, by name.
    #[arg(long)]
    plant: Option<String>,
    /// Writes what clients asked, as JSON lines.
    #[arg(long, requires = "seed")]
    history: Option<PathBuf>,
    /// Draws the run: an SVG file.
    #[arg(long, requires = "seed")]
    timeline: Option<PathBuf>,
    /// How many lines of the trace's end are printed.
    #[arg(long, requires = "seed", default_value_t = context::TAIL)]
    tail: usize,
    /// How much of the run's end is drawn.
    #[arg(long, default_value_t = 180)]
    timeline_s: u64,
    /// Seeds run side by side, each on a thread with a runtime of its own.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Prints one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct PlantedArgs {
    /// Only these, by name.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Seeds that a bug may take.
    #[arg(long, default_value_t = planted::WITHIN)]
    within: u64,
    /// From how many starting points each is looked for, at most 5.
    #[arg(long, default_value_t = 5)]
    starts: usize,
    /// Starting points side by side.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Prints one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

impl Sim {
    fn options(&self, seed: u64) -> Options {
        Options { seed, drop: self.drop.0.clone(), minutes: self.minutes, tail: self.tail }
    }
}

/// A set of draws, as an argument.
#[derive(Clone, Debug, Default)]
struct Dropped(BTreeSet<Draw>);

fn parse_drop(text: &str) -> Result<Dropped, String> {
    draws::parse(text).map(Dropped)
}

fn main() -> anyhow::Result<ExitCode> {
    // Without it openraft spawns past the simulated processes, and no seed repeats.
    ensure!(cfg!(tokio_unstable), "this build cannot simulate; run cargo xtask chaos");
    match Args::parse().what {
        What::Sim(args) => sim(&args),
        What::Planted(args) => hunt(&args),
        What::Linear { file } => linear(&file),
    }
}

fn sim(args: &Sim) -> anyhow::Result<ExitCode> {
    let range = args.seeds.clone().or(args.seed.map(|seed| seed..seed + 1)).unwrap_or_default();
    if let Some(name) = &args.plant {
        let ready = planted::refuse().and_then(|()| planted::named(std::slice::from_ref(name)));
        ready.map_err(anyhow::Error::msg)?.into_iter().for_each(planted::choose);
    }
    let began = cpu_time();
    let one = |seed| {
        let options = args.options(seed);
        if args.twice { run_twice(&options) } else { run_options(&options) }
    };
    let mut summary = Summary::default();
    if let Some(seed) = args.seed {
        let outcome = one(seed);
        show(args, &outcome)?;
        if args.minimise && !outcome.findings.is_empty() {
            let least = minimise::minimise(&args.options(seed), run_options);
            let least = least.context("it does not fail a second time")?;
            write!(std::io::stdout(), "{}", least.report())?;
        }
        summary.add(outcome);
    } else {
        workers::run(range.clone(), args.jobs, one, |outcome| summary.add(outcome));
    }
    let mut out = std::io::stdout().lock();
    let wall = cpu_time().saturating_sub(began);
    let minutes = args.minutes.map(|minutes| format!(" --minutes {minutes}")).unwrap_or_default();
    let command = format!("chaos sim --seeds {}..{}{minutes}", range.start, range.end);
    if args.json {
        writeln!(std::io::stderr(), "{}", summary.failures())?;
        writeln!(out, "{}", summary.figures(&command, wall).json())?;
    } else {
        write!(out, "{}{}", summary.table(wall), summary.failures())?;
    }
    Ok(exit(summary.is_good()))
}

/// What this process has used of a core: others may use it too, and a figure must not depend on them.
pub(crate) fn cpu_time() -> Duration {
    const TICK_MS: u64 = 10;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name in brackets, which may hold spaces: the 12th and 13th are user and system time.
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let ticks = after.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok());
    Duration::from_millis(ticks.sum::<u64>() * TICK_MS)
}

/// Of a single run: the end of its trace, and what else was asked for.
fn show(args: &Sim, outcome: &Outcome) -> anyhow::Result<()> {
    if !args.json && !args.minimise {
        let mut out = std::io::stdout().lock();
        for line in &outcome.tail {
            writeln!(out, "{line}")?;
        }
        writeln!(out, "state {:032x}, trace {:016x}\n", outcome.state_hash, outcome.digest)?;
    }
    if let Some(path) = &args.history {
        let file = File::create(path).with_context(|| format!("history: {}", path.display()))?;
        let mut out = std::io::BufWriter::new(file);
        outcome.history.write(&mut out)?;
        out.flush()?;
    }
    if let Some(path) = &args.timeline {
        let found = outcome.findings.first().map_or("holds".into(), ToString::to_string);
        let title = format!("seed {}: {found}", outcome.seed);
        let svg = outcome.timeline.svg(&title, args.timeline_s * 1_000);
        std::fs::write(path, svg).with_context(|| format!("timeline: {}", path.display()))?;
    }
    Ok(())
}

fn hunt(args: &PlantedArgs) -> anyhow::Result<ExitCode> {
    let ready = planted::refuse().and_then(|()| planted::named(&args.only));
    let bugs = ready.map_err(anyhow::Error::msg)?;
    // A planted bug may well break an assertion: that is what it is there for.
    std::panic::set_hook(Box::new(|_| {}));
    let planted = planted::hunt(&bugs, args.within, args.starts, args.jobs, |row| {
        // As they come: all of them take long.
        write!(std::io::stderr(), "{row}").ok();
    });
    let mut out = std::io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", planted.figures("chaos planted").json())?,
        false => write!(out, "{}", planted.table())?,
    }
    Ok(exit(planted.is_good()))
}

fn linear(path: &Path) -> anyhow::Result<ExitCode> {
    let file = File::open(path).with_context(|| format!("file: {}", path.display()))?;
    let history = History::read(BufReader::new(file)).context(path.display().to_string())?;
    let (verdict, stats) = linear::check(&history, linear::BUDGET);
    let mut out = std::io::stdout().lock();
    match &verdict {
        Verdict::Ok => writeln!(out, "linearizable: {stats:?}")?,
        Verdict::Violation(violation) => writeln!(out, "not linearizable: {violation}")?,
        Verdict::Unknown { part, operations } => {
            writeln!(out, "unknown: {part} with {operations} operations takes too long")?;
        }
    }
    Ok(exit(verdict == Verdict::Ok))
}

fn exit(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a seed as it is.
fn run(seed: u64) -> Outcome {
    run_options(&Options { seed, ..Options::default() })
}

/// An assertion of the code under test is a finding like any other: the next seeds still run.
fn run_options(options: &Options) -> Outcome {
    let seed = options.seed;
    std::panic::catch_unwind(|| world::run(options)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let what = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        let finding = Finding::new(Invariant::of_panic(what), format!("panicked: {what}"));
        Outcome { seed, minutes: options.minutes, findings: vec![finding], ..Outcome::default() }
    })
}

/// A run that depends on anything but its seed is itself a finding.
fn run_twice(options: &Options) -> Outcome {
    let mut first = run_options(options);
    let second = run_options(options);
    first.checked.add(Invariant::Repeatable, 1);
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
            let outcome = run_twice(&Options { seed, ..Options::default() });
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
