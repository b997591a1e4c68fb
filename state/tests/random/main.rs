//! Random sequences of commands keep every invariant; replay and snapshots give the same state.
//!
//! A failure prints its seed; `ROWEN_SEED=n cargo test -p rowen-state --test random` runs it alone.

mod checks;
mod coverage;
mod generator;
mod old_log;
mod plans;
mod rng;
mod specs;

use checks::Memory;
use coverage::Coverage;
use generator::{Generator, Step};
use rowen_state::{Cluster, Outcome};

const SEQUENCES: u64 = 10_000;
/// One sequence in so many is verified after each command, the others after each tenth.
const CLOSELY: u64 = 25;

/// What must have been reached at least once.
const WANTED: &[&str] = &[
    // How jobs live.
    "job: Queued -> Starting",
    "job: Queued -> Holding",
    "job: Queued -> Cancelled",
    "job: Holding -> Starting",
    "job: Holding -> Queued",
    "job: Holding -> Cancelled",
    "job: Starting -> Running",
    "job: Starting -> Completed",
    "job: Starting -> Stopping",
    "job: Running -> Completed",
    "job: Running -> Failed",
    "job: Running -> Queued",
    "job: Running -> Stopping",
    // How stopping ends.
    "after Cancelled: Cancelled",
    "after NodeDrained: Queued",
    "after NodeLost: Queued",
    "after Requeued: Queued",
    "after TaskFailed: Failed",
    "after TaskFailed: Queued",
    "after TimeLimit: Failed",
    "gang that lost a task waits for the others",
    // How fillers live.
    "instance over after: Evicted",
    "instance over after: NodeDrained",
    "instance over after: Redeployed",
    "instance over after: Withdrawn",
    "instance over after: itself",
    "filler backs off further",
    "filler gone",
    // Plans that fit, in part or not at all.
    "plan: some accepted",
    "plan: some accepted, with holds",
    "plan: some accepted, some rejected",
    "plan: none accepted, some rejected",
    "step: overlapping places",
    "step: places in two domains",
    "step: wrong count of places",
    "step: wrong size of a place",
    "step: GPUs that do not exist",
    "step: GPUs that are taken",
    "step: a node that does not exist",
    "step: a job that does not wait",
    "step: a hold without victims",
    "step: a victim that may not be evicted",
    "step: a victim on another node",
    "step: a victim named twice",
    "step: an instance that may not start",
    "step: growth that may not be",
    "step: a shape in an old version",
    "step: submit a shape",
    "gang stopped: Resized",
    "gang over after: Resized",
    "step: plan of an older state",
    "step: plan made twice",
    // Reports that are late or wrong.
    "step: report from another node",
    "step: report of a loss",
    "step: report of an old epoch",
    "step: report of no task",
    "step: report of what is over",
    "step: report out of order",
    // Nodes and replicas.
    "step: forget node",
    "step: forget a node that is heard",
    "step: admit replica",
    "step: remove replica",
    "step: raise version",
    "step: first timing",
    "step: set timing",
    "step: the same timing",
    "step: settle timing",
    "step: settle another timing",
    "step: invalid timing",
    "step: timing in an old version",
    "step: set queue",
    "step: remove queue",
    "step: remove no queue",
    "step: invalid queue",
    "step: a queue below itself",
    "step: queue in an old version",
    "step: plan blind to limits",
    "step: take a gang back",
    "step: raise without asking a replica",
    "step: raise to a version that is not next",
    "step: raise to a version of before",
    "fabric grown",
    "fabric shrunk",
    "step: fabric without a busy node",
    "step: invalid fabric",
    // Requests and refusals.
    "step: duplicate request",
    "step: expired request",
    "step: a clock in the future",
    "refused: Invalid",
    "refused: NotFound",
    "refused: Conflict",
    "refused: Exhausted",
    "refused: Expired",
];

/// What a sequence leaves behind.
struct Log {
    steps: Vec<(Step, Outcome)>,
    /// A snapshot, and how many steps it holds.
    snapshot: (usize, Vec<u8>),
    hash: u128,
}

fn run(seed: u64, coverage: &mut Coverage) -> Result<(), String> {
    let log = record(seed, coverage)?;
    let mut replayed = Cluster::new(1);
    replay(&mut replayed, &log.steps)?;
    same_hash("replay", replayed.state_hash(), log.hash)?;
    let (held, bytes) = log.snapshot;
    let mut restored = Cluster::from_snapshot(&bytes).map_err(|error| error.to_string())?;
    replay(&mut restored, &log.steps[held..])?;
    same_hash("snapshot and suffix", restored.state_hash(), log.hash)?;
    verified(&restored)
}

/// Runs a new sequence, checking each step.
fn record(seed: u64, coverage: &mut Coverage) -> Result<Log, String> {
    let mut generator = Generator::new(seed);
    let mut cluster = Cluster::new(1);
    let mut memory = Memory::default();
    let mut steps: Vec<(Step, Outcome)> = Vec::new();
    let mut first = generator.first_steps();
    let length = first.len() + generator.length();
    let snapshot_at = generator.rng().below(length as u64) as usize;
    let mut snapshot = (0, Vec::new());
    first.reverse();
    for number in 0..length {
        if number == snapshot_at {
            snapshot = (number, cluster.to_snapshot().map_err(|error| error.to_string())?);
        }
        let step = first.pop().unwrap_or_else(|| generator.next(&cluster, number));
        let before = cluster.clone();
        let outcome = cluster.apply(step.index, &step.entry);
        let mut checked = memory.check(&before, &step, &outcome, &cluster, coverage);
        if seed.is_multiple_of(CLOSELY) || number.is_multiple_of(10) || number + 1 == length {
            checked = checked.and_then(|()| verified(&cluster));
        }
        checked.map_err(|error| {
            let (answer, effects) = (&outcome.answer, &outcome.effects);
            format!("{error}\nstep {number}: {step:?}\nanswer {answer:?}, effects {effects:?}")
        })?;
        generator.hear(&step, &outcome, &cluster);
        steps.push((step, outcome));
    }
    Ok(Log { steps, snapshot, hash: cluster.state_hash() })
}

fn replay(cluster: &mut Cluster, steps: &[(Step, Outcome)]) -> Result<(), String> {
    for (step, outcome) in steps {
        if cluster.apply(step.index, &step.entry) != *outcome {
            return Err(format!("replay of {step:?} gave something else than {outcome:?}"));
        }
    }
    Ok(())
}

fn same_hash(what: &str, found: u128, expected: u128) -> Result<(), String> {
    if found == expected {
        Ok(())
    } else {
        Err(format!("{what}: {found:032x}, not {expected:032x}"))
    }
}

fn verified(cluster: &Cluster) -> Result<(), String> {
    cluster.verify().first().map_or(Ok(()), |violation| Err(violation.to_string()))
}

#[test]
fn ten_thousand_sequences_keep_every_invariant() {
    let one =
        std::env::var("ROWEN_SEED").ok().map(|seed| seed.parse().expect("ROWEN_SEED: a number"));
    let seeds = one.map_or(0..SEQUENCES, |seed: u64| seed..seed + 1);
    let mut coverage = Coverage::default();
    for seed in seeds {
        if let Err(error) = run(seed, &mut coverage) {
            panic!(
                "seed {seed}: {error}\nagain: ROWEN_SEED={seed} cargo test -p rowen-state --test random"
            );
        }
    }
    println!("{coverage}");
    if one.is_none() {
        assert_eq!(coverage.missing(WANTED), [""; 0], "never reached");
    }
}
