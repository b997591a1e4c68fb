//! Figures in the one form that every command that shows a claim prints (DESIGN.md, "Figures").
//!
//! A table for people, or one JSON object on the last line. Never measures anything itself.

use std::fs;
use std::io::{Write, stdout};
use std::process::ExitCode;

use comfy_table::{Table, presets};
use serde::Serialize;

/// One number, what it is of, and what it stands beside.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) case: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) peer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) peer_value: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bar: Option<f64>,
    pub(crate) ok: bool,
}

impl Figure {
    pub(crate) fn new(
        name: &'static str,
        case: impl Into<String>,
        value: f64,
        unit: &'static str,
    ) -> Figure {
        Figure {
            name,
            case: case.into(),
            value: rounded(value),
            unit,
            ok: true,
            ..Default::default()
        }
    }

    /// Beside something that does the same or bounds it.
    pub(crate) fn beside(mut self, peer: impl Into<String>, value: f64) -> Figure {
        self.peer = Some(peer.into());
        self.peer_value = Some(rounded(value));
        // A ratio to nothing is no number, and JSON has no infinity.
        self.ratio = (value != 0.0).then(|| rounded(self.value / value));
        self
    }

    /// It should not pass this.
    pub(crate) fn at_most(mut self, bar: f64) -> Figure {
        self.bar = Some(bar);
        self.ok = self.value <= bar;
        self
    }

    /// It should reach this.
    pub(crate) fn at_least(mut self, bar: f64) -> Figure {
        self.bar = Some(bar);
        self.ok = self.value >= bar;
        self
    }

    /// So many times what it stands beside.
    pub(crate) fn ratio_at_least(mut self, bar: f64) -> Figure {
        self.bar = Some(bar);
        self.ok = self.ratio.is_some_and(|ratio| ratio >= bar);
        self
    }
}

/// Something that must hold.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) ok: bool,
    /// What was seen.
    pub(crate) detail: String,
}

/// All that a run has to say.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) command: String,
    pub(crate) version: &'static str,
    pub(crate) seed: u64,
    pub(crate) machine: String,
    pub(crate) figures: Vec<Figure>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) checks: Vec<Check>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) state_hash: Option<String>,
    /// Every check held.
    pub(crate) ok: bool,
}

impl Report {
    pub(crate) fn new(
        command: &str,
        seed: u64,
        figures: Vec<Figure>,
        checks: Vec<Check>,
    ) -> Report {
        Report {
            command: command.to_string(),
            version: env!("CARGO_PKG_VERSION"),
            seed,
            machine: machine(),
            figures,
            ok: checks.iter().all(|check| check.ok),
            checks,
            state_hash: None,
        }
    }

    /// Prints it and says how the command should end: a failed check always fails it, a missed
    /// bar only where that is asked for.
    pub(crate) fn finish(&self, json: bool, enforce: bool) -> ExitCode {
        let text = match json {
            true => serde_json::to_string(self).expect("plain numbers and strings serialise"),
            false => self.table(),
        };
        // Nobody may be reading any more; the exit code still tells.
        let _ = writeln!(stdout(), "{text}");
        match self.ok && !(enforce && self.figures.iter().any(|figure| !figure.ok)) {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        }
    }

    fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["FIGURE", "CASE", "VALUE", "UNIT", "BESIDE", "BAR"]);
        for figure in &self.figures {
            let beside = match (&figure.peer, figure.peer_value) {
                (Some(peer), Some(value)) => format!("{peer}: {value}"),
                _ => String::new(),
            };
            let missed = if figure.ok { "" } else { " missed" };
            let bar = figure.bar.map(|bar| format!("{bar}{missed}")).unwrap_or_default();
            let (value, unit) = (figure.value.to_string(), figure.unit.to_string());
            table.add_row([figure.name.to_string(), figure.case.clone(), value, unit, beside, bar]);
        }
        let mut text = format!("{}\n", table);
        // What held was told as it happened.
        for check in self.checks.iter().filter(|check| !check.ok) {
            text.push_str(&format!("\nFAILED {}: {}", check.name, check.detail));
        }
        let held = self.checks.iter().filter(|check| check.ok).count();
        if !self.checks.is_empty() {
            text.push_str(&format!("\n{held} of {} checks held", self.checks.len()));
        }
        if let Some(hash) = &self.state_hash {
            text.push_str(&format!("\nstate hash {hash}"));
        }
        text.push_str(&format!("\n{}, rowen {}", self.machine, self.version));
        text
    }
}

/// The value below which a share of the samples lies (nearest rank).
pub(crate) fn percentile(samples: &[f64], percent: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}

// Four digits that mean something.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let digits = (3.0 - value.abs().log10().floor()).max(0.0);
    let scale = 10f64.powf(digits);
    (value * scale).round() / scale
}

fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let model = model.trim_start_matches(['\t', ' ', ':']);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let build = if cfg!(debug_assertions) { ", debug build" } else { "" };
    format!("{cores} × {model}{build}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_samples() {
        let samples: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(&samples, 50.0), 100.0);
        assert_eq!(percentile(&samples, 99.0), 198.0);
        assert_eq!(percentile(&[7.0], 99.0), 7.0);
    }

    #[test]
    fn a_report_has_the_agreed_form() {
        let figure = Figure::new("delay", "gpus=64", 1234.567, "ms").beside("notice", 2000.0);
        let check = Check { name: "it holds".into(), ok: true, detail: "seen".into() };
        let report = Report::new("demo", 3, vec![figure.at_most(1000.0)], vec![check]);
        let json: serde_json::Value =
            serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        assert_eq!(json["figures"][0]["value"], 1235.0);
        assert_eq!(json["figures"][0]["ratio"], 0.6175);
        assert_eq!(json["figures"][0]["ok"], false);
        assert_eq!(json["ok"], true, "a missed bar is no failed check");
        assert_eq!(json["seed"], 3);
        assert!(json.get("state_hash").is_none());
        assert!(report.table().contains("1000 missed"));
    }
}
