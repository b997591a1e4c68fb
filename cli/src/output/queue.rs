//! Queues on the screen: the list and its JSON.

use std::collections::BTreeMap;

use rowen_api::v1::{Queue, Quota};
use serde::Serialize;

use super::table::{columns, number, word};
use super::words;
use crate::files::duration_text;

/// `queue list -o json`.
#[derive(Debug, Serialize)]
pub(crate) struct QueueListView {
    pub(crate) queues: Vec<QueueView>,
    /// Half of what a queue has had is forgotten after so long.
    pub(crate) half_life_ms: u64,
    /// Log index of the state that was read.
    pub(crate) index: u64,
}

/// One queue.
#[derive(Debug, Serialize)]
pub(crate) struct QueueView {
    name: String,
    parent: Option<String>,
    used_gpus: u64,
    used_by_model: BTreeMap<String, u64>,
    guarantee_gpus: u64,
    /// Null: none.
    limit_gpus: Option<u64>,
    by_model: Vec<QuotaView>,
    /// Null: all of an unused guarantee.
    lend_gpus: Option<u64>,
    weight: u32,
    /// Higher priority evicts lower priority.
    preempts: bool,
    min_run_ms: u64,
    /// A limit was set below what it has.
    over: bool,
    /// Decayed.
    spent_gpu_ms: u64,
    jobs_queued: u32,
    jobs_running: u32,
}

#[derive(Debug, Serialize)]
struct QuotaView {
    gpu_model: String,
    guarantee_gpus: u64,
    limit_gpus: Option<u64>,
}

impl QueueView {
    pub(crate) fn new(queue: &Queue) -> QueueView {
        let spec = queue.spec.clone().unwrap_or_default();
        let Quota { guarantee_gpus, limit_gpus, .. } = spec.quota.unwrap_or_default();
        let by_model = spec.by_model.into_iter().map(|quota| QuotaView {
            gpu_model: quota.gpu_model,
            guarantee_gpus: quota.guarantee_gpus,
            limit_gpus: quota.limit_gpus,
        });
        QueueView {
            name: spec.name,
            parent: words::some_text(&spec.parent),
            used_gpus: queue.used_gpus,
            used_by_model: queue.used_by_model.clone(),
            guarantee_gpus,
            limit_gpus,
            by_model: by_model.collect(),
            lend_gpus: spec.lend_gpus,
            weight: spec.weight,
            preempts: spec.preempts,
            min_run_ms: spec.min_run_ms,
            over: queue.over,
            spent_gpu_ms: queue.spent_gpu_ms,
            jobs_queued: queue.jobs_queued,
            jobs_running: queue.jobs_running,
        }
    }

    /// `H100 64:128, H200 0:8`.
    fn models(&self) -> String {
        let model = |quota: &QuotaView| {
            format!("{} {}:{}", quota.gpu_model, quota.guarantee_gpus, or_dash(quota.limit_gpus))
        };
        self.by_model.iter().map(model).collect::<Vec<_>>().join(", ")
    }
}

fn or_dash(gpus: Option<u64>) -> String {
    gpus.map_or_else(|| "-".to_owned(), |gpus| gpus.to_string())
}

/// `queue list`.
pub(crate) fn list(view: &QueueListView, wide: bool, colour: bool) -> String {
    if view.queues.is_empty() {
        return "No queues: any name is one, without limits. Add one with `rowen queue set NAME`."
            .to_owned();
    }
    let mut header =
        vec!["NAME", "PARENT", "USED", "GUARANTEE", "LIMIT", "WEIGHT", "HAD", "RUNNING", "WAITING"];
    if wide {
        header.extend(["LENDS", "PREEMPTS", "MIN-RUN", "BY MODEL"]);
    }
    let row = |queue: &QueueView| {
        let mut row = vec![
            word(&queue.name),
            word(queue.parent.as_deref().unwrap_or("-")),
            number(queue.used_gpus),
            number(queue.guarantee_gpus),
            number(or_dash(queue.limit_gpus)),
            number(queue.weight),
            number(words::gpu_time(queue.spent_gpu_ms)),
            number(queue.jobs_running),
            number(queue.jobs_queued),
        ];
        if wide {
            row.extend([
                number(queue.lend_gpus.map_or_else(|| "all".to_owned(), |gpus| gpus.to_string())),
                word(if queue.preempts { "yes" } else { "no" }),
                number(duration_text(queue.min_run_ms)),
                word(queue.models()),
            ]);
        }
        row
    };
    columns(&header, view.queues.iter().map(row).collect(), colour)
}
