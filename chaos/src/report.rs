//! What a range of seeds showed: a table for people, figures for machines, and
//! the command that replays a seed that failed.

use std::{fmt::Write as _, time::Duration};

use rowen_sim::Report;

use crate::world::{Coverage, Outcome};

/// Sums over seeds.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    seeds: u64,
    simulated_ms: u64,
    operations: u64,
    entries: u64,
    launches: u64,
    digest: u64,
    faults: Coverage,
    failed: Vec<Outcome>,
}

impl Summary {
    pub(crate) fn add(&mut self, outcome: Outcome) {
        self.seeds += 1;
        self.simulated_ms += outcome.simulated_ms;
        self.operations += outcome.history.operations.len() as u64;
        self.entries += outcome.entries;
        self.launches += outcome.launches;
        self.digest = self.digest.rotate_left(5) ^ outcome.digest;
        for (fault, count) in &outcome.faults {
            *self.faults.entry(*fault).or_default() += count;
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
        let speedup = self.simulated_ms as f64 / 1_000.0 / wall.as_secs_f64().max(0.001);
        let case = format!("digest={:016x}", self.digest);
        let failures: Vec<String> = failures.collect();
        let violations = failures.len() as f64;
        let faults: u64 = self.faults.values().sum();
        Report::begin(command, &case, u128::from(self.digest), failures)
            .figure("seeds", self.seeds as f64, "seeds")
            .figure("simulated_hours", (hours * 1_000.0).round() / 1_000.0, "h")
            .figure("violations", violations, "violations")
            .figure("speedup", speedup.round(), "simulated s/s")
            .figure("operations", self.operations as f64, "operations")
            .figure("entries", self.entries as f64, "entries")
            .figure("launches", self.launches as f64, "tasks")
            .figure("faults", faults as f64, "faults")
            .finish()
    }

    /// For people.
    pub(crate) fn table(&self, wall: Duration) -> String {
        let mut text = String::new();
        let rows = [
            ("seeds", self.seeds),
            ("simulated minutes", self.simulated_ms / 60_000),
            ("operations", self.operations),
            ("entries applied and verified", self.entries),
            ("tasks launched", self.launches),
        ];
        for (name, count) in rows {
            let _ = writeln!(text, "{count:>10}  {name}");
        }
        let speedup = self.simulated_ms as f64 / 1_000.0 / wall.as_secs_f64().max(0.001);
        let _ = writeln!(text, "{:>10}  simulated seconds a second", speedup.round());
        let _ = writeln!(text, "{:>10}  seeds failed", self.failed.len());
        text += &crate::coverage::table(&self.faults);
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
            let _ = writeln!(text, "  replay: cargo xtask chaos sim --seed {}", outcome.seed);
        }
        text
    }
}
