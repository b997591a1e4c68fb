//! `whatif` on the screen: who would start, move, wait or end.

use rowen_api::v1::{WhatIfFiller, WhatIfJob, WhatIfResponse};
use serde::Serialize;

use super::table::{Value, columns, number, paragraphs, word};
use super::words::{self, count, host_list, shortened, some_text, span};

/// Longest reason in a narrow table.
const REASON: usize = 70;

/// `whatif -o json`.
#[derive(Debug, Serialize)]
pub(crate) struct WhatIfView {
    /// Jobs of which something changes.
    jobs: Vec<JobView>,
    /// Fillers likewise.
    fillers: Vec<FillerView>,
    /// Nodes.
    drained: Vec<String>,
    idle_before_gpus: u32,
    idle_after_gpus: u32,
    /// Log index of the state that was copied.
    index: u64,
    /// There was more to decide than was looked at.
    open: bool,
}

#[derive(Debug, Serialize)]
struct JobView {
    id: u64,
    name: String,
    /// One of the changes submits it.
    new: bool,
    /// starts, moves, requeues, waits, ends.
    becomes: String,
    reason: Option<String>,
    nodes: Vec<String>,
    /// The tightest domain that holds it: `block b1`.
    span: Option<String>,
    /// From now, at the latest; null where it has no GPUs in the end.
    after_ms: Option<u64>,
    gpus: u32,
}

#[derive(Debug, Serialize)]
struct FillerView {
    name: String,
    instances_before: u32,
    instances_after: u32,
    /// Instances that get their notice.
    evicted: u32,
}

impl WhatIfView {
    pub(crate) fn new(answer: &WhatIfResponse) -> WhatIfView {
        WhatIfView {
            jobs: answer.jobs.iter().map(JobView::new).collect(),
            fillers: answer.fillers.iter().map(FillerView::new).collect(),
            drained: answer.drained.clone(),
            idle_before_gpus: answer.idle_before_gpus,
            idle_after_gpus: answer.idle_after_gpus,
            index: answer.index,
            open: answer.open,
        }
    }
}

impl JobView {
    fn new(job: &WhatIfJob) -> JobView {
        JobView {
            id: job.id,
            name: job.name.clone(),
            new: job.new,
            becomes: job.becomes.clone(),
            reason: some_text(&job.reason),
            nodes: job.nodes.clone(),
            span: some_text(&job.span),
            after_ms: (!job.nodes.is_empty()).then_some(job.after_ms),
            gpus: job.gpus,
        }
    }

    fn row(&self, wide: bool) -> Vec<Value> {
        let id = if self.new { "new".to_owned() } else { self.id.to_string() };
        let reason = self.reason.as_deref().unwrap_or_default();
        vec![
            number(id),
            word(&self.name),
            number(self.gpus),
            word(&self.becomes),
            number(self.after_ms.map_or_else(|| "-".to_owned(), span)),
            word(host_list(self.nodes.iter().map(String::as_str))),
            word(self.span.as_deref().unwrap_or("-")),
            word(if wide { reason.to_owned() } else { shortened(reason, REASON) }),
        ]
    }
}

impl FillerView {
    fn new(filler: &WhatIfFiller) -> FillerView {
        FillerView {
            name: filler.name.clone(),
            instances_before: filler.instances_before,
            instances_after: filler.instances_after,
            evicted: filler.evicted,
        }
    }
}

/// `whatif`.
pub(crate) fn show(view: &WhatIfView, wide: bool, colour: bool) -> String {
    let jobs = match view.jobs.is_empty() {
        true => "No job starts, moves, waits or ends for it.".to_owned(),
        false => {
            let header = ["ID", "NAME", "GPUS", "BECOMES", "AFTER", "NODES", "IN", "REASON"];
            columns(&header, view.jobs.iter().map(|job| job.row(wide)).collect(), colour)
        }
    };
    let row = |filler: &FillerView| {
        vec![
            word(&filler.name),
            number(filler.instances_before),
            number(filler.instances_after),
            number(filler.evicted),
        ]
    };
    let fillers = match view.fillers.is_empty() {
        true => String::new(),
        false => {
            let rows = view.fillers.iter().map(row).collect();
            columns(&["FILLER", "BEFORE", "AFTER", "EVICTED"], rows, colour)
        }
    };
    let mut last = format!(
        "Idle: {} before, {} after. Of the state at index {}; nothing was changed.",
        count(view.idle_before_gpus.into(), "GPU"),
        count(view.idle_after_gpus.into(), "GPU"),
        view.index
    );
    if !view.drained.is_empty() {
        let nodes = words::host_list(view.drained.iter().map(String::as_str));
        last = format!("Drained: {nodes}.\n{last}");
    }
    if view.open {
        last += "\nThere is more to decide than was looked at.";
    }
    paragraphs([jobs, fillers, last])
}
