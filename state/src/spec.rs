//! What users ask for, and every limit it is held to.

use std::{collections::BTreeMap, fmt};

use rowen_topology::Level;
use serde::{Deserialize, Serialize};

use crate::Shape;

/// Longest name, in bytes (a DNS label).
const NAME_BYTES: usize = 63;
const MAX_WORKERS: u32 = 16_384;
pub(crate) const MAX_GPUS: u32 = 64;
const MAX_PROCESSES: u32 = 64;
const MAX_PRIORITY: u32 = 1_000;
const MAX_INSTANCES: u32 = 131_072;
const MAX_NOTICE_MS: u64 = 3_600_000;
pub(crate) const MAX_DURATION_MS: u64 = 366 * 86_400_000;
const MAX_ENV: usize = 1_024;
const MAX_TEXT_BYTES: usize = 128 << 10;
pub(crate) const MAX_MODEL_BYTES: usize = 128;
const MAX_PATH_BYTES: usize = 4_096;

/// A value that cannot be accepted: which, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct FieldError {
    /// Path of the field, as people write it: `resources.gpus`.
    pub field: String,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub fix: String,
}

impl FieldError {
    /// An error of `field`.
    pub fn new(field: &str, problem: impl Into<String>, fix: impl Into<String>) -> Self {
        FieldError { field: field.into(), problem: problem.into(), fix: fix.into() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.field, self.problem, self.fix)
    }
}

/// What a worker of a gang, or an instance of a filler, needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Whole GPUs of one node, 1 to 64.
    pub gpus: u32,
    /// Only nodes with this model.
    pub gpu_model: Option<String>,
    /// Cores; 0 claims none.
    pub cpus: u32,
    /// Memory; 0 claims none.
    pub memory_mib: u64,
}

impl Resources {
    fn validate(&self) -> Result<(), FieldError> {
        range("resources.gpus", self.gpus.into(), 1, MAX_GPUS.into())?;
        if self.gpu_model.as_deref() == Some("") {
            return Err(FieldError::new(
                "resources.gpu_model",
                "is empty",
                "leave it out for any model",
            ));
        }
        let model_bytes = self.gpu_model.as_ref().map_or(0, String::len);
        length("resources.gpu_model", model_bytes, MAX_MODEL_BYTES)?;
        range("resources.cpus", self.cpus.into(), 0, 65_536)?;
        range("resources.memory_mib", self.memory_mib, 0, 1 << 40)
    }
}

/// A training job: a gang of equal workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// A label for people; need not be unique.
    pub name: String,
    /// Who pays.
    pub tenant: String,
    /// Where it waits.
    pub queue: String,
    /// 0 to 1000, higher first.
    pub priority: u32,
    /// Tasks of the gang, 1 to 16,384.
    pub workers: u32,
    /// Processes of a task; WORLD_SIZE = workers × this.
    pub processes_per_worker: u32,
    /// Of a worker.
    pub resources: Resources,
    /// All workers inside one domain of this level.
    pub required: Option<Level>,
    /// Inside one domain of this level, where that can be had.
    pub preferred: Option<Level>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Added to the task's environment.
    pub env: BTreeMap<String, String>,
    /// Empty: the task's own folder.
    pub working_dir: String,
    /// From running on; 0: none.
    pub time_limit_ms: u64,
    /// From SIGTERM to SIGKILL.
    pub notice_ms: u64,
    /// How often it is started again after a failure of its own.
    pub restarts: u32,
    /// How often it writes a checkpoint; 0: not said.
    pub checkpoint_interval_ms: u64,
    /// What it asks of the fabric besides. Version 1 knows only [`Shape::is_plain`].
    pub shape: Shape,
}

impl JobSpec {
    /// Every limit of a job, first violation first.
    pub fn validate(&self) -> Result<(), FieldError> {
        name("name", &self.name)?;
        name("tenant", &self.tenant)?;
        name("queue", &self.queue)?;
        range("priority", self.priority.into(), 0, MAX_PRIORITY.into())?;
        range("workers", self.workers.into(), 1, MAX_WORKERS.into())?;
        range("processes_per_worker", self.processes_per_worker.into(), 1, MAX_PROCESSES.into())?;
        self.resources.validate()?;
        if let (Some(required), Some(preferred)) = (self.required, self.preferred)
            && preferred < required
        {
            return Err(FieldError::new(
                "topology.preferred",
                format!("{preferred} is coarser than the required level {required}"),
                format!("choose {required} or a finer level"),
            ));
        }
        if self.required == Some(Level::Node)
            && self.workers.saturating_mul(self.resources.gpus) > MAX_GPUS
        {
            return Err(FieldError::new(
                "topology.required",
                format!(
                    "{} workers of {} GPUs cannot share one node",
                    self.workers, self.resources.gpus
                ),
                "require a coarser level",
            ));
        }
        process(&self.command, &self.env, &self.working_dir)?;
        range("time_limit", self.time_limit_ms, 0, MAX_DURATION_MS)?;
        range("notice", self.notice_ms, 0, MAX_NOTICE_MS)?;
        range("restarts", self.restarts.into(), 0, 1_000)?;
        range("checkpoint_interval", self.checkpoint_interval_ms, 0, MAX_DURATION_MS)?;
        self.shape.validate(self)
    }
}

/// How an instance says that it serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// GET of this path answers 2xx; empty: a TCP connection is enough.
    pub http_path: String,
    /// 0: the port it was given.
    pub port: u16,
    /// Between two tries.
    pub period_ms: u64,
    /// Instead: a command that ends with 0.
    pub exec: Vec<String>,
}

/// A preemptible inference deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FillerSpec {
    /// Unique among fillers.
    pub name: String,
    /// Who earns.
    pub tenant: String,
    /// What it serves, a label.
    pub model: String,
    /// Of an instance.
    pub resources: Resources,
    /// Started before anything else fills.
    pub min_instances: u32,
    /// Never more.
    pub max_instances: u32,
    /// Micro-dollars a GPU-hour.
    pub value_micros: u64,
    /// From its start until it earns.
    pub warm_up_ms: u64,
    /// From the eviction to SIGKILL.
    pub notice_ms: u64,
    /// The first part of the notice, before SIGTERM: out of the ready list.
    pub withdraw_ms: u64,
    /// None: it is ready as soon as it runs.
    pub readiness: Option<Probe>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Added to the environment.
    pub env: BTreeMap<String, String>,
    /// Empty: the task's own folder.
    pub working_dir: String,
}

impl FillerSpec {
    /// Every limit of a filler, first violation first.
    pub fn validate(&self) -> Result<(), FieldError> {
        name("name", &self.name)?;
        name("tenant", &self.tenant)?;
        if self.model.len() > 256 {
            return Err(FieldError::new("model", "is longer than 256 bytes", "shorten it"));
        }
        self.resources.validate()?;
        range("instances.max", self.max_instances.into(), 1, MAX_INSTANCES.into())?;
        range("instances.min", self.min_instances.into(), 0, self.max_instances.into())?;
        range("value_per_gpu_hour", self.value_micros, 0, 1_000_000_000_000)?;
        range("warm_up", self.warm_up_ms, 0, 86_400_000)?;
        range("notice", self.notice_ms, 0, MAX_NOTICE_MS)?;
        range("withdraw", self.withdraw_ms, 0, self.notice_ms)?;
        if let Some(probe) = &self.readiness {
            range("readiness.period", probe.period_ms, 10, 600_000)?;
            if !probe.http_path.is_empty() && !probe.http_path.starts_with('/') {
                return Err(FieldError::new("readiness.http", "is not a path", "begin it with /"));
            }
            let bytes = probe.http_path.len() + probe.exec.iter().map(String::len).sum::<usize>();
            length("readiness", bytes, MAX_PATH_BYTES)?;
        }
        process(&self.command, &self.env, &self.working_dir)
    }
}

/// A name as Kubernetes and DNS accept it.
pub(crate) fn name(field: &str, name: &str) -> Result<(), FieldError> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let fits = name.len() <= NAME_BYTES
        && name.starts_with(inner)
        && name.ends_with(inner)
        && name.chars().all(|c| inner(c) || matches!(c, '.' | '_' | '-'));
    if fits {
        return Ok(());
    }
    Err(FieldError::new(
        field,
        if name.is_empty() { "is missing".into() } else { format!("{name:?} is not a name") },
        "use 1 to 63 lower-case letters, digits, '.', '_' or '-', with a letter or digit at both ends",
    ))
}

pub(crate) fn range(field: &str, value: u64, low: u64, high: u64) -> Result<(), FieldError> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(FieldError::new(field, format!("is {value}"), format!("choose {low} to {high}")))
}

pub(crate) fn length(field: &str, bytes: usize, high: usize) -> Result<(), FieldError> {
    if bytes <= high {
        return Ok(());
    }
    Err(FieldError::new(field, format!("has {bytes} bytes"), format!("use at most {high}")))
}

fn process(
    command: &[String],
    env: &BTreeMap<String, String>,
    working_dir: &str,
) -> Result<(), FieldError> {
    if command.first().is_none_or(String::is_empty) {
        return Err(FieldError::new("command", "is empty", "name the program to run"));
    }
    let bytes = command.iter().map(String::len).sum::<usize>()
        + env.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
    if bytes > MAX_TEXT_BYTES {
        return Err(FieldError::new(
            "command",
            format!("with env it is {bytes} bytes"),
            format!("stay below {MAX_TEXT_BYTES}: put long scripts in a file"),
        ));
    }
    if command.iter().any(|word| word.contains('\0')) {
        return Err(FieldError::new("command", "holds a NUL byte", "remove it"));
    }
    if env.len() > MAX_ENV {
        return Err(FieldError::new(
            "env",
            format!("has {} variables", env.len()),
            format!("use at most {MAX_ENV}"),
        ));
    }
    for (key, value) in env {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            return Err(FieldError::new(
                "env",
                format!("{key:?} cannot be set"),
                "use a name without '=' or NUL",
            ));
        }
    }
    length("working_dir", working_dir.len(), MAX_PATH_BYTES)?;
    if working_dir.contains('\0') {
        return Err(FieldError::new("working_dir", "holds a NUL byte", "remove it"));
    }
    if !working_dir.is_empty() && !working_dir.starts_with('/') {
        return Err(FieldError::new(
            "working_dir",
            format!("{working_dir:?} is relative"),
            "give an absolute path",
        ));
    }
    Ok(())
}
