//! The checkers checked: every planted bug must be caught, and named by the
//! invariant that it breaks.
//!
//! Owns what each bug breaks and how many seeds it may take. The bugs themselves
//! are where somebody could have made them (`rowen_planted::planted`).

use std::fmt::Write as _;

use rowen_planted::Bug;
use rowen_sim::{Figure, Report, percentile};

use crate::{invariant::Invariant, run};

/// Seeds that a bug may take from each starting point.
pub(crate) const WITHIN: u64 = 200;
/// Seeds are counted from several places: one lucky seed shows little.
const STARTS: [u64; 5] = [1, 10_001, 20_001, 30_001, 40_001];

/// What a bug breaks; any of these names it. `false`: it needs openraft, disks or the wire in the
/// world, and cannot be caught before.
fn breaks(bug: Bug) -> (bool, &'static [Invariant]) {
    use Invariant as I;
    let (here, later) = (true, false);
    match bug {
        Bug::SkipRecheck | Bug::HoldIgnored => (here, &[I::OneAllocation]),
        Bug::LaunchOnBusy => (here, &[I::OneOwner, I::LastOwnerGone]),
        Bug::DropEpochCheck => (here, &[I::EpochsRise]),
        Bug::NoMargin => (here, &[I::NotTooEarly]),
        Bug::PartialGang | Bug::GangLeftRunning => (here, &[I::AllOrNone]),
        Bug::CancelForgotten | Bug::LostIsFailed => (here, &[I::NothingLost]),
        Bug::DrainForgotten | Bug::RefusedButDone => (here, &[I::Linearizable]),
        Bug::DedupForgets => (here, &[I::Once]),
        Bug::RestartForgetsExits | Bug::EndedRunsAgain | Bug::RebootIgnored => {
            (here, &[I::EndedStays])
        }
        Bug::EvictionWithoutNotice => (here, &[I::Notice]),
        Bug::ExitToldEarly => (here, &[I::NotTooEarly, I::LastOwnerGone]),
        Bug::UsageTwice | Bug::MeterGap => (here, &[I::TimeAddsUp]),
        Bug::HashOrder => (here, &[I::SameHash]),
        Bug::SnapshotMissesTable => (here, &[I::SnapshotReplays]),
        Bug::SnapshotMissesRequests => (here, &[I::SnapshotReplays, I::Once]),
        Bug::ExitsPileUp => (here, &[I::Bounded]),
        Bug::LostReportsDropped => (here, &[I::Converges]),
        // Ids of allocations come again only after a restore from a backup.
        Bug::AnyEpochReports => (later, &[I::NotTooEarly, I::OneOwner]),
        Bug::AckBeforeSync => (later, &[I::OnQuorum, I::NothingLost]),
        Bug::VoteNotSynced => (later, &[I::OnQuorum, I::SameHash]),
        Bug::CorruptionTruncated => (later, &[I::NothingTruncated]),
        Bug::StaleRead => (later, &[I::Linearizable]),
        Bug::RenewWithoutQuorum => (later, &[I::NotTooEarly, I::OneOwner]),
        Bug::ArchiveLoses => (later, &[I::SnapshotReplays]),
        Bug::UnboundedQueue => (later, &[I::Bounded]),
        Bug::WatchSkips => (later, &[I::StreamsOrdered]),
    }
}

/// How a bug fared.
#[derive(Debug)]
struct Row {
    bug: Bug,
    expected: &'static [Invariant],
    /// Seeds needed from each starting point that caught it in time.
    needed: Vec<u64>,
    /// The first seed that did, and what it said.
    caught: Option<(u64, Invariant)>,
    starts: usize,
}

impl Row {
    fn is_caught(&self) -> bool {
        self.needed.len() == self.starts
    }

    fn median(&self) -> u64 {
        let mut sorted = self.needed.clone();
        sorted.sort_unstable();
        percentile(&sorted, 50)
    }
}

/// All bugs that were run, and those that have to wait.
#[derive(Debug, Default)]
pub(crate) struct Planted {
    rows: Vec<Row>,
    waiting: Vec<Bug>,
    within: u64,
}

/// The bugs of these names; all without any.
pub(crate) fn named(names: &[String]) -> Result<Vec<Bug>, String> {
    let find = |name: &String| {
        let bug = Bug::ALL.iter().copied().find(|bug| bug.name() == name);
        bug.ok_or_else(|| {
            let all: Vec<&str> = Bug::ALL.iter().map(|bug| bug.name()).collect();
            format!("only: there is no planted bug {name:?}; there are {}", all.join(", "))
        })
    };
    if names.is_empty() { Ok(Bug::ALL.to_vec()) } else { names.iter().map(find).collect() }
}

/// Runs each bug, `starts` times from another seed on, until it is caught.
pub(crate) fn hunt(bugs: &[Bug], within: u64, starts: usize, later: bool) -> Planted {
    let mut planted = Planted { within, ..Planted::default() };
    for bug in bugs.iter().copied() {
        let (here, expected) = breaks(bug);
        if !here && !later {
            planted.waiting.push(bug);
            continue;
        }
        choose(bug);
        let starts = &STARTS[..starts.clamp(1, STARTS.len())];
        let mut row = Row { bug, expected, needed: Vec::new(), caught: None, starts: starts.len() };
        for start in starts {
            let caught = (*start..start + within).find_map(|seed| {
                let findings = run(seed).findings.into_iter();
                let mut named = findings.map(|finding| finding.invariant);
                Some((seed, named.find(|invariant| expected.contains(invariant))?))
            });
            let Some((seed, invariant)) = caught else { break };
            row.needed.push(seed - start + 1);
            row.caught.get_or_insert((seed, invariant));
        }
        planted.rows.push(row);
    }
    planted
}

/// For the whole process.
#[cfg(rowen_planted)]
pub(crate) fn choose(bug: Bug) {
    rowen_planted::choose(Some(bug));
}

/// Without the flag there is nothing to choose from; [`refuse`] has said so.
#[cfg(not(rowen_planted))]
pub(crate) fn choose(_bug: Bug) {}

/// Why this build cannot hunt, if it cannot.
pub(crate) fn refuse() -> Result<(), String> {
    if cfg!(rowen_planted) {
        return Ok(());
    }
    Err("no bug is planted in this build; run `cargo xtask chaos planted`".into())
}

impl Planted {
    pub(crate) fn is_good(&self) -> bool {
        self.rows.iter().all(Row::is_caught)
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "{:<26} {:>8} {:>9} {:>12}  {}\n",
            "planted bug", "by seed", "invariant", "median seeds", "seeds needed"
        );
        for row in &self.rows {
            let (seed, invariant) = match row.caught {
                Some((seed, invariant)) => (seed.to_string(), invariant.number().to_string()),
                None => ("-".into(), "-".into()),
            };
            let verdict = match row.is_caught() {
                true => format!("{:?}", row.needed),
                false => format!("MISSED within {} seeds, {:?} before", self.within, row.needed),
            };
            let name = row.bug.name();
            let median = row.median();
            let _ = writeln!(text, "{name:<26} {seed:>8} {invariant:>9} {median:>12}  {verdict}");
        }
        for bug in &self.waiting {
            let _ = writeln!(
                text,
                "{:<26} waits for openraft, disks and streams in the world",
                bug.name()
            );
        }
        let missed = self.rows.iter().filter(|row| !row.is_caught()).count();
        let _ = writeln!(text, "{} planted, {missed} missed", self.rows.len());
        text
    }

    /// DESIGN.md, "Figures".
    pub(crate) fn figures(&self, command: &str) -> Report {
        let missed: Vec<&Row> = self.rows.iter().filter(|row| !row.is_caught()).collect();
        let failures = missed
            .iter()
            .map(|row| format!("{}: not caught within {} seeds", row.bug.name(), self.within));
        let case = format!("within={}", self.within);
        let mut report = Report::begin(command, &case, 0, failures.collect())
            .figure("planted", self.rows.len() as f64, "bugs")
            .figure("missed", missed.len() as f64, "bugs")
            .figure("waiting", self.waiting.len() as f64, "bugs")
            .finish();
        for row in &self.rows {
            let numbers = row.expected.iter().map(|invariant| invariant.number().to_string());
            let numbers: Vec<String> = numbers.collect();
            report.figures.push(Figure {
                name: "seeds_to_catch",
                case: format!("bug={} invariant={}", row.bug.name(), numbers.join("|")),
                value: row.median() as f64,
                unit: "seeds",
                ok: row.is_caught(),
            });
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_invariant_has_a_bug_that_breaks_it() {
        let broken: BTreeSet<Invariant> =
            Bug::ALL.iter().flat_map(|bug| breaks(*bug).1).copied().collect();
        let unbroken: Vec<Invariant> =
            Invariant::ALL.into_iter().filter(|invariant| !broken.contains(invariant)).collect();
        assert_eq!(unbroken, [Invariant::Assertion, Invariant::Repeatable]);
    }

    #[test]
    fn a_bug_is_asked_for_by_name() {
        assert_eq!(named(&["meter_gap".into()]), Ok(vec![Bug::MeterGap]));
        assert_eq!(named(&[]).unwrap().len(), Bug::ALL.len());
        assert!(named(&["nothing".into()]).unwrap_err().starts_with("only: "));
    }
}
