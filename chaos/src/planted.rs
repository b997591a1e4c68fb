//! The checkers checked: every planted bug must be caught, and named by the
//! invariant that it breaks.
//!
//! Owns what each bug breaks and how many seeds it may take. The bugs themselves
//! are where somebody could have made them (`rowen_planted::planted`).

use std::{collections::BTreeMap, fmt, time::Duration};

use rowen_planted::Bug;
use rowen_sim::{Figure, Report, percentile};

use crate::{cpu_time, invariant::Invariant, run, workers};

/// Seeds that a bug may take from each starting point.
pub(crate) const WITHIN: u64 = 200;
/// Seeds are counted from several places: one lucky seed shows little.
const STARTS: [u64; 5] = [1, 10_001, 20_001, 30_001, 40_001];

/// What a bug breaks; any of these names it.
fn breaks(bug: Bug) -> &'static [Invariant] {
    use Invariant as I;
    match bug {
        Bug::SkipRecheck | Bug::HoldIgnored => &[I::OneAllocation],
        Bug::LaunchOnBusy => &[I::OneOwner, I::LastOwnerGone],
        Bug::DropEpochCheck => &[I::EpochsRise],
        Bug::NoMargin => &[I::NotTooEarly],
        Bug::AnyEpochReports | Bug::RenewWithoutQuorum => &[I::NotTooEarly, I::OneOwner],
        Bug::PartialGang | Bug::GangLeftRunning => &[I::AllOrNone],
        Bug::CancelForgotten | Bug::LostIsFailed => &[I::NothingLost],
        Bug::DrainForgotten | Bug::RefusedButDone | Bug::StaleRead => &[I::Linearizable],
        Bug::DedupForgets => &[I::Once],
        Bug::RestartForgetsExits | Bug::EndedRunsAgain | Bug::RebootIgnored => &[I::EndedStays],
        Bug::EvictionWithoutNotice => &[I::Notice],
        Bug::ExitToldEarly => &[I::NotTooEarly, I::LastOwnerGone],
        Bug::UsageTwice | Bug::MeterGap => &[I::TimeAddsUp],
        Bug::HashOrder => &[I::SameHash],
        Bug::SnapshotMissesTable | Bug::ArchiveLoses => &[I::SnapshotReplays],
        Bug::SnapshotMissesRequests => &[I::SnapshotReplays, I::Once],
        Bug::ExitsPileUp | Bug::UnboundedQueue => &[I::Bounded],
        Bug::WatchSkips => &[I::StreamsOrdered],
        Bug::CorruptionTruncated => &[I::NothingTruncated],
        Bug::AckBeforeSync | Bug::VoteNotSynced => &[I::OnQuorum],
        Bug::LostReportsDropped => &[I::Converges],
    }
}

/// How a bug fared.
#[derive(Debug)]
pub(crate) struct Row {
    bug: Bug,
    searches: Vec<Search>,
    took: Duration,
}

/// From one starting point on.
#[derive(Debug, Default)]
struct Search {
    /// Seeds that were run.
    seeds: u64,
    /// By which seed, and under which name.
    caught: Option<(u64, Invariant)>,
    /// What else seeds failed by before, and how many.
    otherwise: BTreeMap<Invariant, u64>,
}

/// All bugs that were run.
#[derive(Debug)]
pub(crate) struct Planted {
    rows: Vec<Row>,
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

/// Runs each bug, `starts` times from another seed on and on `jobs` threads, until it is caught.
pub(crate) fn hunt(
    bugs: &[Bug],
    within: u64,
    starts: usize,
    jobs: usize,
    mut show: impl FnMut(&Row),
) -> Planted {
    let starts = &STARTS[..starts.clamp(1, STARTS.len())];
    let mut planted = Planted { rows: Vec::new(), within };
    for bug in bugs.iter().copied() {
        choose(bug);
        let began = cpu_time();
        let mut searches = Vec::new();
        let one = |at| search(starts[at as usize], within, breaks(bug));
        workers::run(0..starts.len() as u64, jobs, one, |search| searches.push(search));
        let row = Row { bug, searches, took: cpu_time().saturating_sub(began) };
        show(&row);
        planted.rows.push(row);
    }
    planted
}

fn search(start: u64, within: u64, expected: &[Invariant]) -> Search {
    let mut search = Search::default();
    for seed in start..start + within {
        search.seeds += 1;
        let findings = run(seed).findings;
        let mut names = findings.iter().map(|finding| finding.invariant);
        if let Some(invariant) = names.find(|name| expected.contains(name)) {
            search.caught = Some((seed, invariant));
            return search;
        }
        if let Some(finding) = findings.first() {
            *search.otherwise.entry(finding.invariant).or_default() += 1;
        }
    }
    search
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

impl Row {
    fn is_caught(&self) -> bool {
        self.searches.iter().all(|search| search.caught.is_some())
    }

    /// Of the seeds that it took; of a search that missed, those that it was given.
    fn median(&self) -> u64 {
        let mut sorted: Vec<u64> = self.searches.iter().map(|search| search.seeds).collect();
        sorted.sort_unstable();
        percentile(&sorted, 50)
    }

    /// Names it was found by: it may break more than one thing.
    fn names(&self) -> String {
        let caught = self.searches.iter().filter_map(|search| search.caught);
        let mut names: Vec<u8> = caught.map(|(_, invariant)| invariant.number()).collect();
        names.sort_unstable();
        names.dedup();
        if names.is_empty() { "-".into() } else { join(names.iter(), "|") }
    }

    /// Seeds that failed by something else before.
    fn otherwise(&self) -> BTreeMap<Invariant, u64> {
        let mut otherwise = BTreeMap::new();
        for (invariant, seeds) in self.searches.iter().flat_map(|search| &search.otherwise) {
            *otherwise.entry(*invariant).or_default() += seeds;
        }
        otherwise
    }

    /// What went wrong: it was not found, or never under its name.
    fn failure(&self, within: u64) -> Option<String> {
        if self.is_caught() {
            return None;
        }
        let name = self.bug.name();
        let wanted = join(breaks(self.bug).iter().map(|invariant| invariant.number()), "|");
        Some(match self.otherwise().is_empty() {
            true => format!("{name}: missed within {within} seeds"),
            false => {
                let as_what = self.otherwise().into_keys().map(Invariant::number);
                let as_what = join(as_what, ", ");
                format!("{name}: not named {wanted} within {within} seeds, but {as_what}")
            }
        })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let needed = join(self.searches.iter().map(|search| search.seeds), " ");
        let by = self.searches.iter().find_map(|search| search.caught);
        let by = by.map_or("-".into(), |(seed, _)| seed.to_string());
        let (name, names, median) = (self.bug.name(), self.names(), self.median());
        let seconds = self.took.as_secs_f64();
        write!(f, "{name:<26} {names:>9} {median:>12} {seconds:>9.1} {by:>8}  {needed}")?;
        if !self.is_caught() {
            write!(f, "  MISSED")?;
        }
        for (invariant, seeds) in self.otherwise() {
            write!(f, "; {seeds} failed by {}", invariant.number())?;
        }
        writeln!(f)
    }
}

fn join<T: ToString>(items: impl Iterator<Item = T>, between: &str) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(between)
}

impl Planted {
    pub(crate) fn is_good(&self) -> bool {
        self.rows.iter().all(Row::is_caught)
    }

    fn failures(&self) -> Vec<String> {
        self.rows.iter().filter_map(|row| row.failure(self.within)).collect()
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "{:<26} {:>9} {:>12} {:>9} {:>8}  {}\n",
            "planted bug", "invariant", "median seeds", "CPU s", "by seed", "seeds needed"
        );
        self.rows.iter().for_each(|row| text += &row.to_string());
        let failures = self.failures();
        failures.iter().for_each(|failure| text += &format!("{failure}\n"));
        text += &format!("{} planted, {} missed\n", self.rows.len(), failures.len());
        text
    }

    /// DESIGN.md, "Figures".
    pub(crate) fn figures(&self, command: &str) -> Report {
        let failures = self.failures();
        let missed = failures.len() as f64;
        let seconds = self.rows.iter().map(|row| row.took.as_secs_f64()).sum::<f64>();
        let case = format!("within={}", self.within);
        let mut report = Report::begin(command, &case, 0, failures)
            .figure("planted", self.rows.len() as f64, "bugs")
            .figure("missed", missed, "bugs")
            .figure("cpu_time", (seconds * 10.0).round() / 10.0, "s")
            .finish();
        for row in &self.rows {
            let numbers = join(breaks(row.bug).iter().map(|invariant| invariant.number()), "|");
            report.figures.push(Figure {
                name: "seeds_to_catch",
                case: format!("bug={} invariant={numbers}", row.bug.name()),
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
            Bug::ALL.iter().flat_map(|bug| breaks(*bug)).copied().collect();
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

    fn row(caught: [Option<(u64, Invariant)>; 2], otherwise: &[(Invariant, u64)]) -> Row {
        let otherwise: BTreeMap<Invariant, u64> = otherwise.iter().copied().collect();
        let searches = caught.map(|caught| {
            let seeds = caught.map_or(200, |(seed, _)| seed % 10_000);
            Search { seeds, caught, otherwise: otherwise.clone() }
        });
        Row { bug: Bug::ExitToldEarly, searches: searches.into(), took: Duration::from_secs(3) }
    }

    #[test]
    fn a_bug_counts_as_caught_by_its_own_name_alone() {
        let caught = [Some((4, Invariant::LastOwnerGone)), Some((10_002, Invariant::NotTooEarly))];
        let good = row(caught, &[(Invariant::AllOrNone, 1)]);
        assert_eq!((good.median(), good.names().as_str(), good.failure(200)), (2, "4|10", None));
        let missed = row([caught[0], None], &[]);
        assert_eq!(missed.failure(200).unwrap(), "exit_told_early: missed within 200 seeds");
        let misnamed = row([None, None], &[(Invariant::AllOrNone, 3)]);
        let why = "exit_told_early: not named 4|10 within 200 seeds, but 5";
        assert_eq!(misnamed.failure(200).unwrap(), why);
        let planted = Planted { rows: vec![good, missed, misnamed], within: 200 };
        let figures = planted.figures("chaos planted");
        assert_eq!((figures.value("planted"), figures.value("missed")), (Some(3.0), Some(2.0)));
        assert!(!figures.ok && planted.table().contains("3 planted, 2 missed"));
    }
}
