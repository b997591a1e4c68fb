//! `fabric health list` on the screen.

use rowen_api::v1::{DomainHealth, ListHealthResponse, PartHealth, part::Kind};
use serde::Serialize;

use super::table::{Value, columns, number, paragraphs, state, word};
use super::words::{self, some_text, span};

/// `fabric health list -o json`.
#[derive(Debug, Serialize)]
pub(crate) struct HealthView {
    /// Log index of the state that was read.
    index: u64,
    /// The state's clock.
    unix_ms: u64,
    parts: Vec<PartView>,
    /// Those that offer less than they have.
    domains: Vec<DomainView>,
}

#[derive(Debug, Serialize)]
struct PartView {
    /// As `fabric health set` takes it.
    part: String,
    /// down, slow, mending.
    state: &'static str,
    /// What counts.
    left_milli: u32,
    said_milli: u32,
    said_unix_ms: u64,
    since_unix_ms: u64,
    relapses: u32,
    /// agent or operator.
    seen_by: &'static str,
    reason: Option<String>,
    trusted_unix_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
struct DomainView {
    level: String,
    name: String,
    gpus: u32,
    offers_gpus: u32,
}

impl HealthView {
    pub(crate) fn new(answer: &ListHealthResponse) -> HealthView {
        HealthView {
            index: answer.index,
            unix_ms: answer.now_ms,
            parts: answer.parts.iter().map(PartView::new).collect(),
            domains: answer.domains.iter().map(DomainView::new).collect(),
        }
    }
}

impl PartView {
    fn new(health: &PartHealth) -> PartView {
        let part = match health.part.as_ref().and_then(|part| part.kind.as_ref()) {
            Some(Kind::Gpu(gpu)) => format!("gpu:{}/{}", gpu.node, gpu.gpu),
            Some(Kind::Nvlink(gpu)) => format!("nvlink:{}/{}", gpu.node, gpu.gpu),
            Some(Kind::Rail(rail)) => format!("rail:{}/{}", rail.node, rail.leaf),
            Some(Kind::Uplink(uplink)) => format!("uplink:{}/{}", uplink.leaf, uplink.spine),
            None => String::new(),
        };
        let state = match (health.left_milli, health.said_milli) {
            (left, said) if said > left => "mending",
            (0, _) => "down",
            _ => "slow",
        };
        PartView {
            part,
            state,
            left_milli: health.left_milli,
            said_milli: health.said_milli,
            said_unix_ms: health.said_ms,
            since_unix_ms: health.since_ms,
            relapses: health.relapses,
            seen_by: if health.by_agent { "agent" } else { "operator" },
            reason: some_text(&health.reason),
            trusted_unix_ms: words::some(health.trusted_ms),
        }
    }

    fn row(&self, now_ms: u64) -> Vec<Value> {
        let ago = |at_ms: u64| span(now_ms.saturating_sub(at_ms));
        let trusted = self
            .trusted_unix_ms
            .map_or_else(String::new, |at_ms| format!("in {}", span(at_ms.saturating_sub(now_ms))));
        vec![
            word(&self.part),
            state(self.state),
            number(format!("{}%", self.left_milli / 10)),
            number(ago(self.since_unix_ms)),
            number(self.relapses),
            word(trusted),
            word(self.seen_by),
            word(self.reason.as_deref().unwrap_or_default()),
        ]
    }
}

impl DomainView {
    fn new(domain: &DomainHealth) -> DomainView {
        DomainView {
            level: domain.level.clone(),
            name: domain.name.clone(),
            gpus: domain.gpus,
            offers_gpus: domain.offers_gpus,
        }
    }
}

/// `fabric health list`.
pub(crate) fn show(view: &HealthView, colour: bool) -> String {
    if view.parts.is_empty() {
        return "Nothing is known to be faulty.".to_owned();
    }
    let rows = view.parts.iter().map(|part| part.row(view.unix_ms)).collect();
    let header = ["PART", "STATE", "LEFT", "SINCE", "RELAPSES", "TRUSTED", "SEEN BY", "REASON"];
    let parts = columns(&header, rows, colour);
    let row = |domain: &DomainView| {
        vec![
            word(&domain.level),
            word(&domain.name),
            number(domain.gpus),
            number(domain.offers_gpus),
        ]
    };
    let domains = match view.domains.is_empty() {
        true => String::new(),
        false => {
            let rows = view.domains.iter().map(row).collect();
            columns(&["LEVEL", "DOMAIN", "GPUS", "AT FULL SPEED"], rows, colour)
        }
    };
    paragraphs([parts, domains])
}
