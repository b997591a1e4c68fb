//! What a run shows, in the form of DESIGN.md, "Figures". Never measures anything.

use serde::Serialize;

/// One number and what it is of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// What it is.
    pub name: &'static str,
    /// Under which conditions, as `key=value` words.
    pub case: String,
    /// The number.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// Within its bar; true where there is none.
    pub ok: bool,
}

/// All that a run has to say.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The words after `rowen`.
    pub command: String,
    /// Of Rowen.
    pub version: &'static str,
    /// 0 where nothing is drawn.
    pub seed: u64,
    /// On which machine: for who prints it to fill in, since a simulated result does
    /// not depend on it.
    pub machine: String,
    /// The numbers.
    pub figures: Vec<Figure>,
    /// Hash of the final state, in hexadecimal.
    pub state_hash: String,
    /// What did not hold; empty is good.
    pub failures: Vec<String>,
    /// Nothing failed.
    pub ok: bool,
}

impl Report {
    /// Begins a report; it is good when nothing failed.
    pub fn begin(
        command: &str,
        case: &str,
        state_hash: u128,
        failures: Vec<String>,
    ) -> ReportMaker {
        let report = Report {
            command: command.to_owned(),
            version: env!("CARGO_PKG_VERSION"),
            seed: 0,
            machine: String::new(),
            figures: Vec::new(),
            state_hash: format!("{state_hash:032x}"),
            ok: failures.is_empty(),
            failures,
        };
        ReportMaker { report, case: case.to_owned() }
    }

    /// One JSON object on one line.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("plain numbers and strings serialise")
    }

    /// The figure of that name.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.figures.iter().find(|figure| figure.name == name).map(|figure| figure.value)
    }
}

/// A report being filled: its figures share one case.
#[derive(Debug)]
pub struct ReportMaker {
    report: Report,
    case: String,
}

impl ReportMaker {
    /// Adds a figure.
    #[must_use]
    pub fn figure(mut self, name: &'static str, value: f64, unit: &'static str) -> ReportMaker {
        self.report.figures.push(Figure { name, case: self.case.clone(), value, unit, ok: true });
        self
    }

    /// The report.
    pub fn finish(self) -> Report {
        self.report
    }
}

/// The value at or below which `percent` of the sorted samples lie (nearest rank); 0 of none.
pub fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.max(1) - 1).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let samples: Vec<u64> = (1..=200).collect();
        assert_eq!((percentile(&samples, 50), percentile(&samples, 99)), (100, 198));
        assert_eq!((percentile(&[7], 99), percentile(&[], 99)), (7, 0));
    }

    #[test]
    fn a_failure_makes_a_report_bad() {
        let good = Report::begin("sim jobs", "gpus=8", 1, Vec::new()).figure("jobs", 2.0, "jobs");
        let good = good.finish();
        assert_eq!((good.ok, good.value("jobs")), (true, Some(2.0)));
        assert!(good.json().contains(r#""figures":[{"name":"jobs","case":"gpus=8","value":2.0"#));
        assert!(!Report::begin("sim jobs", "", 1, vec!["lost".into()]).finish().ok);
    }
}
