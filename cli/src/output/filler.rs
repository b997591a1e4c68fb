//! Fillers on the screen: the list, the page of one, and their JSON.

use rowen_api::v1::{Filler, FillerSpec, Instance};
use serde::Serialize;

use super::job::ResourcesView;
use super::table::{Tint, columns, number, page, paragraphs, state, word};
use super::words::{self, span};
use crate::files::duration_text;

/// `filler list -o json`.
#[derive(Debug, Serialize)]
pub(crate) struct FillerListView {
    pub(crate) fillers: Vec<FillerView>,
    /// Log index of the state that was read.
    pub(crate) index: u64,
}

/// `filler show -o json`, and one of a list.
#[derive(Debug, Serialize)]
pub(crate) struct FillerView {
    id: u64,
    /// active, draining or removing.
    state: String,
    /// Why there are fewer instances than asked for.
    reason: Option<String>,
    spec: FillerSpecView,
    instances: Vec<InstanceView>,
    /// Used so far.
    gpu_ms: u64,
    evictions: u64,
}

/// What a filler asks for.
#[derive(Debug, Serialize)]
pub(crate) struct FillerSpecView {
    name: String,
    tenant: String,
    model: Option<String>,
    resources: ResourcesView,
    min_instances: u32,
    max_instances: u32,
    /// Micro-dollars.
    value_micros_per_gpu_hour: u64,
    warm_up_ms: u64,
    notice_ms: u64,
    withdraw_ms: u64,
    readiness: Option<ProbeView>,
    command: Vec<String>,
    env: std::collections::BTreeMap<String, String>,
    working_dir: Option<String>,
}

/// How an instance says that it serves.
#[derive(Debug, Serialize)]
struct ProbeView {
    http_path: Option<String>,
    /// Null: the one in ROWEN_PORT.
    port: Option<u64>,
    period_ms: u64,
    exec: Vec<String>,
}

/// One instance.
#[derive(Debug, Serialize)]
struct InstanceView {
    id: u64,
    node: Option<String>,
    /// Ordinals.
    gpus: Vec<u32>,
    /// pending, warming, ready or draining.
    state: String,
    since_unix_ms: u64,
    /// When a draining one is killed.
    deadline_unix_ms: Option<u64>,
    reason: Option<String>,
    /// host:port of a ready one.
    address: Option<String>,
}

impl FillerSpecView {
    pub(crate) fn new(spec: &FillerSpec) -> FillerSpecView {
        FillerSpecView {
            name: spec.name.clone(),
            tenant: spec.tenant.clone(),
            model: words::some_text(&spec.model),
            resources: ResourcesView::new(spec.resources.as_ref()),
            min_instances: spec.min_instances,
            max_instances: spec.max_instances,
            value_micros_per_gpu_hour: spec.value_micros,
            warm_up_ms: spec.warm_up_ms,
            notice_ms: spec.notice_ms,
            withdraw_ms: spec.withdraw_ms,
            readiness: spec.readiness.as_ref().map(|probe| ProbeView {
                http_path: words::some_text(&probe.http_path),
                port: words::some(probe.port.into()),
                period_ms: probe.period_ms,
                exec: probe.exec.clone(),
            }),
            command: spec.command.clone(),
            env: spec.env.clone(),
            working_dir: words::some_text(&spec.working_dir),
        }
    }

    /// `2 to 16 instances × 4 GPUs`.
    pub(crate) fn shape(&self) -> String {
        let many = match self.min_instances {
            0 => format!("up to {}", words::count(self.max_instances.into(), "instance")),
            min => format!("{min} to {}", words::count(self.max_instances.into(), "instance")),
        };
        let mut text = format!("{many} × {}", words::count(self.resources.gpus.into(), "GPU"));
        let details = self.resources.details(" an instance");
        if !details.is_empty() {
            text += &format!(" ({})", details.join(", "));
        }
        text
    }
}

impl FillerView {
    pub(crate) fn new(filler: &Filler) -> FillerView {
        FillerView {
            id: filler.id,
            state: filler.state.clone(),
            reason: words::some_text(&filler.reason),
            spec: FillerSpecView::new(filler.spec.as_ref().unwrap_or(&FillerSpec::default())),
            instances: filler.instances.iter().map(InstanceView::new).collect(),
            gpu_ms: filler.gpu_ms,
            evictions: filler.evictions,
        }
    }

    fn in_state(&self, state: &str) -> usize {
        self.instances.iter().filter(|instance| instance.state == state).count()
    }

    fn gpus(&self) -> usize {
        self.instances.iter().map(|instance| instance.gpus.len()).sum()
    }
}

impl InstanceView {
    fn new(instance: &Instance) -> InstanceView {
        InstanceView {
            id: instance.id,
            node: words::some_text(&instance.node),
            gpus: instance.gpus.clone(),
            state: instance.state.clone(),
            since_unix_ms: instance.since_ms,
            deadline_unix_ms: words::some(instance.deadline_ms),
            reason: words::some_text(&instance.reason),
            address: words::some_text(&instance.address),
        }
    }
}

/// `filler list`.
pub(crate) fn list(view: &FillerListView, wide: bool, colour: bool) -> String {
    if view.fillers.is_empty() {
        return "No fillers: deploy one with `rowen filler deploy FILE`.".to_owned();
    }
    let mut header =
        vec!["NAME", "MODEL", "STATE", "READY", "MAX", "GPUS", "$/GPU-H", "EVICTED", "USED"];
    if wide {
        header.extend(["TENANT", "WARMING", "DRAINING", "NOTICE", "WARM-UP", "REASON"]);
    }
    let row = |filler: &FillerView| {
        let spec = &filler.spec;
        let mut row = vec![
            word(&spec.name),
            word(spec.model.as_deref().unwrap_or("-")),
            state(&filler.state),
            number(filler.in_state("ready")),
            number(spec.max_instances),
            number(filler.gpus()),
            number(words::dollars(spec.value_micros_per_gpu_hour)),
            number(filler.evictions),
            number(words::gpu_time(filler.gpu_ms)),
        ];
        if wide {
            row.extend([
                word(&spec.tenant),
                number(filler.in_state("warming")),
                number(filler.in_state("draining")),
                number(duration_text(spec.notice_ms)),
                number(duration_text(spec.warm_up_ms)),
                word(filler.reason.as_deref().unwrap_or("")),
            ]);
        }
        row
    };
    columns(&header, view.fillers.iter().map(row).collect(), colour)
}

/// `filler show`.
pub(crate) fn show(filler: &FillerView, now_ms: u64, colour: bool) -> String {
    let spec = &filler.spec;
    let withdraw = match spec.withdraw_ms {
        0 => String::new(),
        ms => format!(", out of the ready list for the first {}", duration_text(ms)),
    };
    let pairs = [
        ("State", Tint::of_state(&filler.state).paint(&filler.state, colour)),
        ("Reason", filler.reason.clone().unwrap_or_default()),
        ("Model", spec.model.clone().unwrap_or_default()),
        ("Asks for", spec.shape()),
        (
            "Has",
            format!(
                "{} with {}, {} ready",
                words::count(filler.instances.len() as u64, "instance"),
                words::count(filler.gpus() as u64, "GPU"),
                filler.in_state("ready")
            ),
        ),
        (
            "Earns",
            format!(
                "${} a GPU-hour, tenant {}",
                words::dollars(spec.value_micros_per_gpu_hour),
                spec.tenant
            ),
        ),
        ("Warm-up", duration_text(spec.warm_up_ms)),
        ("Notice", format!("{}{withdraw}", duration_text(spec.notice_ms))),
        ("Command", words::command(&spec.command)),
        ("Folder", spec.working_dir.clone().unwrap_or_default()),
        ("Evicted", words::count(filler.evictions, "time")),
        ("Used", words::gpu_time(filler.gpu_ms)),
    ];
    let title = format!("Filler {}", spec.name);
    paragraphs([page(&title, &pairs, colour), instances(filler, now_ms, colour)])
}

fn instances(filler: &FillerView, now_ms: u64, colour: bool) -> String {
    if filler.instances.is_empty() {
        return String::new();
    }
    let row = |instance: &InstanceView| {
        let note = match (instance.deadline_unix_ms, &instance.reason) {
            (Some(at), Some(why)) => {
                format!("{why}, killed in {}", span(at.saturating_sub(now_ms)))
            }
            (Some(at), None) => format!("killed in {}", span(at.saturating_sub(now_ms))),
            (None, Some(why)) => why.clone(),
            (None, None) => String::new(),
        };
        vec![
            number(instance.id),
            word(instance.node.as_deref().unwrap_or("-")),
            word(words::ordinals(&instance.gpus)),
            state(&instance.state),
            number(span(now_ms.saturating_sub(instance.since_unix_ms))),
            word(instance.address.as_deref().unwrap_or("-")),
            word(note),
        ]
    };
    let header = ["ID", "NODE", "GPUS", "STATE", "FOR", "ADDRESS", "NOTE"];
    columns(&header, filler.instances.iter().map(row).collect(), colour)
}
