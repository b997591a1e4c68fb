//! What a job asks of the fabric beyond a level, in words and as JSON. Only shows.

use rowen_api::v1::{JobSpec, LabelRule};
use serde::Serialize;

use super::words;
use crate::files::duration_text;

/// What a job asks of the fabric; left out where it asks nothing.
#[derive(Debug, Serialize)]
pub(crate) struct ShapeView {
    /// Outer to inner.
    groups: Vec<GroupView>,
    balanced: bool,
    spread: Vec<SpreadView>,
    locality_wait_ms: Option<u64>,
    gpu_models: Vec<String>,
    labels: Vec<LabelView>,
    exclusive: bool,
    min_workers: Option<u32>,
    grow_after_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
struct GroupView {
    workers: u32,
    level: String,
    preferred: bool,
}

#[derive(Debug, Serialize)]
struct SpreadView {
    workers: u32,
    level: String,
}

#[derive(Debug, Serialize)]
struct LabelView {
    key: String,
    test: String,
    values: Vec<String>,
}

impl ShapeView {
    pub(crate) fn new(spec: &JobSpec) -> Option<ShapeView> {
        let plain = JobSpec {
            groups: Vec::new(),
            balanced: false,
            spread: Vec::new(),
            locality_wait_ms: 0,
            gpu_models: Vec::new(),
            node_labels: Vec::new(),
            exclusive: false,
            min_workers: 0,
            grow_after_ms: 0,
            ..spec.clone()
        };
        if plain == *spec {
            return None;
        }
        let group = |group: &rowen_api::v1::Group| GroupView {
            workers: group.workers,
            level: group.level.clone(),
            preferred: group.preferred,
        };
        let spread = |spread: &rowen_api::v1::Spread| SpreadView {
            workers: spread.workers,
            level: spread.level.clone(),
        };
        let label = |rule: &LabelRule| LabelView {
            key: rule.key.clone(),
            test: rule.test.clone(),
            values: rule.values.clone(),
        };
        Some(ShapeView {
            groups: spec.groups.iter().map(group).collect(),
            balanced: spec.balanced,
            spread: spec.spread.iter().map(spread).collect(),
            locality_wait_ms: words::some(spec.locality_wait_ms),
            gpu_models: spec.gpu_models.clone(),
            labels: spec.node_labels.iter().map(label).collect(),
            exclusive: spec.exclusive,
            min_workers: (spec.min_workers > 0).then_some(spec.min_workers),
            grow_after_ms: words::some(spec.grow_after_ms),
        })
    }

    /// `, in groups of 8 inside one block of 2 inside one nvlink, at most 2 in one node`.
    pub(crate) fn words(&self) -> String {
        let mut text = String::new();
        for (at, GroupView { workers, level, preferred }) in self.groups.iter().enumerate() {
            let of = if at == 0 { ", in groups of" } else { " of" };
            let may = if *preferred { " if possible" } else { "" };
            text += &format!("{of} {workers} inside one {level}{may}");
        }
        if self.balanced {
            text += ", balanced";
        }
        for SpreadView { workers, level } in &self.spread {
            text += &format!(", at most {workers} in one {level}");
        }
        if let Some(wait_ms) = self.locality_wait_ms {
            text += &format!(", waits {} for what it prefers", duration_text(wait_ms));
        }
        if !self.gpu_models.is_empty() {
            text += &format!(", on {}", self.gpu_models.join(" or "));
        }
        for LabelView { key, test, values } in &self.labels {
            text += &match test.as_str() {
                "in" => format!(", with {key} {}", values.join(" or ")),
                "not-in" => format!(", without {key} {}", values.join(" or ")),
                "missing" => format!(", without a label {key}"),
                _ => format!(", with a label {key}"),
            };
        }
        if self.exclusive {
            text += ", alone on its nodes";
        }
        match (self.min_workers, self.grow_after_ms) {
            (Some(least), Some(after_ms)) => {
                text += &format!(
                    ", or {least} workers at least, grows after {}",
                    duration_text(after_ms)
                );
            }
            (Some(least), None) => text += &format!(", or {least} workers at least"),
            _ => {}
        }
        text
    }
}
