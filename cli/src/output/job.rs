//! Jobs on the screen: the list, the page of one, and their JSON.

use std::collections::BTreeMap;

use rowen_api::v1::{Job, JobSpec, Task};
use serde::Serialize;

use super::shape::ShapeView;
use super::table::{Tint, columns, number, page, paragraphs, state, word};
use super::words::{self, count, has_ended, span};
use crate::files::duration_text;

/// A page lists this many tasks; more are summed up.
const MAX_TASK_LINES: usize = 64;

/// `job list -o json`.
#[derive(Debug, Serialize)]
pub(crate) struct JobListView {
    /// In the order of the queue, then by id.
    pub(crate) jobs: Vec<JobView>,
    /// Log index of the state that was read.
    pub(crate) index: u64,
}

/// `job show -o json`, and one of a list.
#[derive(Debug, Serialize)]
pub(crate) struct JobView {
    /// Decimal, never used again.
    pub(crate) id: u64,
    /// queued, holding, starting, running, stopping, completed, failed or cancelled.
    pub(crate) state: &'static str,
    /// What it waits for, or why it ended.
    pub(crate) reason: Option<String>,
    /// What was asked for.
    pub(crate) spec: JobSpecView,
    /// All workers together.
    pub(crate) gpus: u64,
    /// Starts of the gang so far.
    pub(crate) attempt: u32,
    /// Attempts that failed by themselves.
    pub(crate) failures: u32,
    /// By rank; empty where it has none.
    pub(crate) nodes: Vec<String>,
    /// Of the current attempt, by rank.
    pub(crate) tasks: Vec<TaskView>,
    /// When it was accepted.
    pub(crate) submitted_unix_ms: u64,
    /// When the current attempt began to hold GPUs that are being cleared.
    pub(crate) held_unix_ms: Option<u64>,
    /// When the current attempt got its GPUs.
    pub(crate) bound_unix_ms: Option<u64>,
    /// When all tasks of the current attempt were up.
    pub(crate) running_unix_ms: Option<u64>,
    /// When it ended for good.
    pub(crate) ended_unix_ms: Option<u64>,
    /// Of the first task that failed, once it has ended.
    pub(crate) exit_code: Option<i32>,
    /// Used so far, all attempts.
    pub(crate) gpu_ms: u64,
    /// Its story, oldest first; only where one job is shown.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) events: Vec<EventView>,
}

/// What a job asks for.
#[derive(Debug, Serialize)]
pub(crate) struct JobSpecView {
    name: String,
    tenant: String,
    queue: String,
    priority: u32,
    workers: u32,
    processes_per_worker: u32,
    resources: ResourcesView,
    required_level: Option<String>,
    preferred_level: Option<String>,
    command: Vec<String>,
    env: BTreeMap<String, String>,
    working_dir: Option<String>,
    time_limit_ms: Option<u64>,
    notice_ms: Option<u64>,
    restarts: u32,
    checkpoint_interval_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shape: Option<ShapeView>,
}

/// What a worker or an instance needs.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct ResourcesView {
    pub(crate) gpus: u32,
    pub(crate) gpu_model: Option<String>,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u64,
}

/// One worker of the current attempt.
#[derive(Debug, Serialize)]
pub(crate) struct TaskView {
    pub(crate) rank: u32,
    pub(crate) node: String,
    /// Ordinals.
    pub(crate) gpus: Vec<u32>,
    /// bound, running, exited or lost.
    pub(crate) phase: String,
    /// Once it has exited.
    pub(crate) exit_code: Option<i32>,
}

/// One line of a job's story.
#[derive(Debug, Serialize)]
pub(crate) struct EventView {
    index: u64,
    unix_ms: u64,
    what: String,
}

impl ResourcesView {
    pub(crate) fn new(resources: Option<&rowen_api::v1::Resources>) -> ResourcesView {
        resources.map_or_else(ResourcesView::default, |resources| ResourcesView {
            gpus: resources.gpus,
            gpu_model: words::some_text(&resources.gpu_model),
            cpus: resources.cpus,
            memory_mib: resources.memory_mib,
        })
    }

    /// What is asked for beside the number of GPUs: `H100`, `64 CPUs`, `512GiB`.
    pub(crate) fn details(&self, each: &str) -> Vec<String> {
        let cpus = (self.cpus > 0).then(|| count(self.cpus.into(), "CPU") + each);
        let memory = (self.memory_mib > 0).then(|| words::memory(self.memory_mib) + each);
        [self.gpu_model.clone(), cpus, memory].into_iter().flatten().collect()
    }
}

impl JobSpecView {
    pub(crate) fn new(spec: &JobSpec) -> JobSpecView {
        JobSpecView {
            name: spec.name.clone(),
            tenant: spec.tenant.clone(),
            queue: spec.queue.clone(),
            priority: spec.priority,
            workers: spec.workers,
            processes_per_worker: spec.processes_per_worker.max(1),
            resources: ResourcesView::new(spec.resources.as_ref()),
            required_level: words::some_text(&spec.required_level),
            preferred_level: words::some_text(&spec.preferred_level),
            command: spec.command.clone(),
            env: spec.env.clone(),
            working_dir: words::some_text(&spec.working_dir),
            time_limit_ms: words::some(spec.time_limit_ms),
            notice_ms: spec.notice_ms,
            restarts: spec.restarts,
            checkpoint_interval_ms: words::some(spec.checkpoint_interval_ms),
            shape: ShapeView::new(spec),
        }
    }

    fn gpus(&self) -> u64 {
        u64::from(self.workers) * u64::from(self.resources.gpus)
    }

    /// `8 workers × 8 GPUs = 64 GPUs (H100, 32 CPUs a worker), inside one block`.
    pub(crate) fn gang(&self) -> String {
        let gpus = count(self.resources.gpus.into(), "GPU");
        let mut text = format!("{} × {gpus}", count(self.workers.into(), "worker"));
        if self.workers > 1 {
            text += &format!(" = {}", count(self.gpus(), "GPU"));
        }
        let mut details = self.resources.details(" a worker");
        if self.processes_per_worker > 1 {
            details.push(format!("{} processes a worker", self.processes_per_worker));
        }
        if !details.is_empty() {
            text += &format!(" ({})", details.join(", "));
        }
        match (&self.required_level, &self.preferred_level) {
            (Some(required), None) => text += &format!(", inside one {required}"),
            (None, Some(preferred)) => text += &format!(", inside one {preferred} if possible"),
            (Some(required), Some(preferred)) => {
                text += &format!(", inside one {required}, one {preferred} if possible");
            }
            (None, None) => {}
        }
        text + &self.shape.as_ref().map_or_else(String::new, ShapeView::words)
    }
}

impl JobView {
    pub(crate) fn new(job: &Job) -> JobView {
        let spec = JobSpecView::new(job.spec.as_ref().unwrap_or(&JobSpec::default()));
        let ended = has_ended(job.state());
        JobView {
            id: job.id,
            state: words::job_state(job.state()),
            reason: words::some_text(&job.reason),
            gpus: spec.gpus(),
            spec,
            attempt: job.attempt,
            failures: job.failures,
            nodes: job.tasks.iter().map(|task| task.node.clone()).collect(),
            tasks: job.tasks.iter().map(TaskView::new).collect(),
            submitted_unix_ms: job.submitted_ms,
            held_unix_ms: words::some(job.held_ms),
            bound_unix_ms: words::some(job.bound_ms),
            running_unix_ms: words::some(job.running_ms),
            ended_unix_ms: words::some(job.ended_ms),
            exit_code: ended.then_some(job.exit_code),
            gpu_ms: job.gpu_ms,
            events: job
                .events
                .iter()
                .map(|e| EventView { index: e.index, unix_ms: e.at_ms, what: e.what.clone() })
                .collect(),
        }
    }

    /// How long it has been in what it is in: waiting, running, or ran.
    fn time_ms(&self, now_ms: u64) -> u64 {
        let (from, to) = match (self.ended_unix_ms, self.running_unix_ms) {
            (Some(ended), Some(running)) => (running, ended),
            (Some(ended), None) => (self.submitted_unix_ms, ended),
            (None, Some(running)) => (running, now_ms),
            (None, None) => (self.submitted_unix_ms, now_ms),
        };
        to.saturating_sub(from)
    }

    /// `8`, or `2/8` where an attempt runs with fewer than were asked for.
    fn workers(&self) -> String {
        let (all, now) = (self.spec.workers as usize, self.tasks.len());
        let runs = matches!(self.state, "starting" | "running" | "stopping");
        if runs && now < all { format!("{now}/{all}") } else { all.to_string() }
    }

    /// `node[1-8]`, or `(why it has none)`.
    fn where_or_why(&self, wide: bool) -> String {
        let waits = self.state == "queued" || self.ended_unix_ms.is_some();
        match (&self.reason, self.nodes.is_empty() || waits) {
            (Some(reason), true) if wide => format!("({reason})"),
            (Some(reason), true) => format!("({})", words::shortened(reason, 72)),
            _ => words::host_list(self.nodes.iter().map(String::as_str)),
        }
    }
}

impl TaskView {
    pub(crate) fn new(task: &Task) -> TaskView {
        TaskView {
            rank: task.rank,
            node: task.node.clone(),
            gpus: task.gpus.clone(),
            phase: task.phase.clone(),
            exit_code: (task.phase == "exited").then_some(task.exit_code),
        }
    }
}

/// `job list`, as squeue has it: where a job runs, or why it does not.
pub(crate) fn list(view: &JobListView, now_ms: u64, wide: bool, colour: bool) -> String {
    if view.jobs.is_empty() {
        return "No jobs.".to_owned();
    }
    let mut header = vec!["ID", "NAME", "QUEUE", "STATE", "GANG", "TIME", "NODES (REASON)"];
    if wide {
        header.splice(3..3, ["TENANT", "PRIO"]);
        header.splice(7..7, ["GPUS", "LEVEL", "ATTEMPT", "SUBMITTED", "USED"]);
    }
    let row = |job: &JobView| {
        let spec = &job.spec;
        let mut row = vec![
            number(job.id),
            word(&spec.name),
            word(&spec.queue),
            state(job.state),
            number(format!("{}×{}", job.workers(), spec.resources.gpus)),
            number(span(job.time_ms(now_ms))),
            word(job.where_or_why(wide)),
        ];
        if wide {
            row.splice(3..3, [word(&spec.tenant), number(spec.priority)]);
            let level = spec.required_level.as_deref().unwrap_or("-");
            row.splice(
                7..7,
                [
                    number(job.gpus),
                    word(level),
                    number(job.attempt),
                    word(words::utc(job.submitted_unix_ms)),
                    number(words::gpu_time(job.gpu_ms)),
                ],
            );
        }
        row
    };
    columns(&header, view.jobs.iter().map(row).collect(), colour)
}

/// `job show`.
pub(crate) fn show(job: &JobView, now_ms: u64, colour: bool) -> String {
    let spec = &job.spec;
    let title = format!("Job {}  {}", job.id, spec.name);
    let optional = |ms: Option<u64>| ms.map(duration_text).unwrap_or_default();
    let attempts = match (job.attempt, job.failures) {
        (0, _) => String::new(),
        (attempt, 0) => format!("{attempt}"),
        (attempt, failures) => format!("{attempt} ({failures} failed by itself)"),
    };
    let pairs = [
        ("State", state_line(job, now_ms, colour)),
        ("Reason", job.reason.clone().unwrap_or_default()),
        ("Gang", spec.gang()),
        ("Nodes", words::host_list(job.nodes.iter().map(String::as_str))),
        ("Queue", format!("{}, tenant {}, priority {}", spec.queue, spec.tenant, spec.priority)),
        ("Command", words::command(&spec.command)),
        ("Folder", spec.working_dir.clone().unwrap_or_default()),
        ("Submitted", words::utc(job.submitted_unix_ms)),
        ("Notice", optional(spec.notice_ms)),
        ("Time limit", optional(spec.time_limit_ms)),
        (
            "Checkpoint",
            spec.checkpoint_interval_ms
                .map(|ms| format!("every {}", duration_text(ms)))
                .unwrap_or_default(),
        ),
        (
            "Restarts",
            if spec.restarts > 0 { format!("up to {}", spec.restarts) } else { String::new() },
        ),
        ("Attempt", attempts),
        ("Used", words::gpu_time(job.gpu_ms)),
    ];
    paragraphs([page(&title, &pairs, colour), tasks(&job.tasks, colour), story(job)])
}

fn state_line(job: &JobView, now_ms: u64, colour: bool) -> String {
    let word = Tint::of_state(job.state).paint(job.state, colour);
    let time = span(job.time_ms(now_ms));
    match (job.state, job.exit_code, job.running_unix_ms) {
        ("failed", Some(code), Some(_)) if code != 0 => {
            format!("{word} with exit code {code}, ran {time}")
        }
        (_, Some(_), Some(_)) => format!("{word}, ran {time}"),
        (_, Some(_), None) => format!("{word}, never ran"),
        _ => format!("{word} for {time}"),
    }
}

fn tasks(tasks: &[TaskView], colour: bool) -> String {
    if tasks.is_empty() {
        return String::new();
    }
    let row = |task: &TaskView| {
        let code = task.exit_code.map_or_else(String::new, |code| code.to_string());
        let gpus = words::ordinals(&task.gpus);
        vec![number(task.rank), word(&task.node), word(gpus), state(&task.phase), number(code)]
    };
    let rows = tasks.iter().take(MAX_TASK_LINES).map(row).collect();
    let table = columns(&["RANK", "NODE", "GPUS", "PHASE", "EXIT"], rows, colour);
    match tasks.len().saturating_sub(MAX_TASK_LINES) {
        0 => table,
        more => format!("{table}\n… and {more} more (-o json has all)"),
    }
}

/// Offsets from the submission say more than times of day.
fn story(job: &JobView) -> String {
    let line = |event: &EventView| {
        let since = event.unix_ms.saturating_sub(job.submitted_unix_ms);
        let since = format!("+{}.{:03}s", since / 1_000, since % 1_000);
        format!("  {since:>12}  {}", event.what)
    };
    let lines: Vec<String> = job.events.iter().map(line).collect();
    if lines.is_empty() { String::new() } else { format!("Story\n{}", lines.join("\n")) }
}
