//! What a range of seeds showed: a table for people, figures for machines, and
//! the command that replays a seed that failed.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use rowen_sim::{Figure, Report};

use crate::{
    coverage,
    invariant::{Checked, Invariant},
    world::{Coverage, Outcome},
};

/// Sums over seeds.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    seeds: u64,
    simulated_ms: u64,
    entries: u64,
    launches: u64,
    digest: u64,
    faults: Coverage,
    operations: BTreeMap<&'static str, u64>,
    checked: Checked,
    failed: Vec<Outcome>,
}

impl Summary {
    pub(crate) fn add(&mut self, outcome: Outcome) {
        self.seeds += 1;
        self.simulated_ms += outcome.simulated_ms;
        self.entries += outcome.entries;
        self.launches += outcome.launches;
        self.digest = self.digest.rotate_left(5) ^ outcome.digest;
        self.checked.merge(&outcome.checked);
        for (fault, count) in &outcome.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
        for operation in &outcome.history.operations {
            *self.operations.entry(operation.op.word()).or_default() += 1;
        }
        if !outcome.findings.is_empty() {
            self.failed.push(outcome);
        }
    }

    pub(crate) fn is_good(&self) -> bool {
        self.failed.is_empty()
    }

    /// DESIGN.md, "Figures".
    pub(crate) fn figures(&self, command: &str, wall: Duration) -> Report {
        let failures = self.failed.iter().flat_map(|outcome| {
            outcome.findings.iter().map(move |what| format!("seed {}: {what}", outcome.seed))
        });
        let hours = self.simulated_ms as f64 / 3_600_000.0;
        let case = format!("digest={:016x}", self.digest);
        let failures: Vec<String> = failures.collect();
        let violations = failures.len() as f64;
        let mut report = Report::begin(command, &case, u128::from(self.digest), failures)
            .figure("seeds", self.seeds as f64, "seeds")
            .figure("simulated_hours", (hours * 1_000.0).round() / 1_000.0, "h")
            .figure("violations", violations, "violations")
            .figure("speedup", self.speedup(wall), "simulated s/s")
            .figure("operations", self.operations.values().sum::<u64>() as f64, "operations")
            .figure("entries", self.entries as f64, "entries")
            .figure("launches", self.launches as f64, "tasks")
            .figure("faults", self.faults.values().sum::<u64>() as f64, "faults")
            .finish();
        let mut more = |name, case: String, count: u64, unit| {
            let value = count as f64;
            report.figures.push(Figure { name, case, value, unit, ok: true });
        };
        for ((fault, phase), count) in &self.faults {
            let case = format!("fault={} phase={phase}", fault.replace(' ', "-"));
            more("faults_of_kind", case, *count, "faults");
        }
        for (word, count) in &self.operations {
            let case = format!("op={}", word.replace(' ', "-"));
            more("operations_of_kind", case, *count, "operations");
        }
        for (invariant, times) in &self.checked.0 {
            more("checked", format!("invariant={}", invariant.number()), *times, "checks");
        }
        report
    }

    fn speedup(&self, wall: Duration) -> f64 {
        (self.simulated_ms as f64 / 1_000.0 / wall.as_secs_f64().max(0.001)).round()
    }

    /// For people.
    pub(crate) fn table(&self, wall: Duration) -> String {
        let mut text = String::new();
        let rows = [
            ("seeds", self.seeds),
            ("simulated minutes", self.simulated_ms / 60_000),
            ("entries applied and verified", self.entries),
            ("tasks launched", self.launches),
        ];
        for (name, count) in rows {
            let _ = writeln!(text, "{count:>10}  {name}");
        }
        let _ =
            writeln!(text, "{:>10}  simulated seconds a second of one core", self.speedup(wall));
        let _ = writeln!(text, "{:>10}  seeds failed\n", self.failed.len());
        let kinds = self.operations.iter().map(|(word, count)| format!("{count} {word}"));
        let _ = writeln!(text, "operations: {}\n", kinds.collect::<Vec<_>>().join(", "));
        text += &coverage::table(&self.faults);
        let _ = writeln!(text, "\n{:>10}  invariant", "checks");
        for invariant in Invariant::ALL {
            let times = self.checked.0.get(&invariant).copied().unwrap_or(0);
            let _ = writeln!(text, "{times:>10}  {invariant}");
        }
        let _ = writeln!(text, "digest {:016x}", self.digest);
        text
    }

    /// Each failed seed: what, how it came to it, and how to see it again.
    pub(crate) fn failures(&self) -> String {
        let mut text = String::new();
        for outcome in &self.failed {
            let _ = writeln!(text, "\nseed {}:", outcome.seed);
            for finding in &outcome.findings {
                let _ = writeln!(text, "  {finding}");
            }
            let run = outcome.arguments();
            let _ = writeln!(text, "  replay: cargo xtask chaos sim {run} --minimise");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        history::{History, Op},
        invariant::Finding,
    };

    #[test]
    fn a_summary_counts_what_was_done_and_names_what_failed() {
        let mut history = History::default();
        history.called(1, Op::Submit { name: "a".into() }, 5);
        let mut checked = Checked::default();
        checked.add(Invariant::Once, 3);
        let findings = vec![Finding::new(Invariant::Once, "job 2 is job 1 again")];
        let outcome = Outcome { seed: 9, history, checked, findings, ..Outcome::default() };
        let mut summary = Summary::default();
        summary.add(outcome);
        assert!(!summary.is_good());
        assert!(summary.failures().contains("invariant 7 (a retried request happens once): job 2"));
        let table = summary.table(Duration::from_secs(1));
        assert!(table.contains("operations: 1 submit") && table.contains("3  invariant 7"));
        let report = summary.figures("chaos sim", Duration::from_secs(1));
        assert_eq!(report.value("violations"), Some(1.0));
        let checked = report.figures.iter().find(|figure| figure.name == "checked").unwrap();
        assert_eq!((checked.case.as_str(), checked.value), ("invariant=7", 3.0));
    }
}
