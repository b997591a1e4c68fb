//! The job file: what `rowen submit` reads, and the `JobSpec` it becomes.

use std::collections::BTreeMap;
use std::path::Path;

use rowen_api::v1::JobSpec;
use schemars::JsonSchema;
use serde::Deserialize;

use super::check::{Checks, NAME_PATTERN};
use super::resources::ResourcesFile;
use super::shape::{NodesFile, Shape, TopologyFile, fill_in};
use super::values::{Command, EnvValue, Millis};
use super::{FileError, Kind, Problem, Source};

/// A training job: a gang of equal workers that start together or not at all.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Job")]
pub(crate) struct JobFile {
    /// A label for people; need not be unique.
    #[schemars(regex(pattern = NAME_PATTERN))]
    name: String,
    /// Who pays.
    #[serde(default = "default_word")]
    #[schemars(regex(pattern = NAME_PATTERN))]
    tenant: String,
    /// Where it waits.
    #[serde(default = "default_word")]
    #[schemars(regex(pattern = NAME_PATTERN))]
    queue: String,
    /// Higher goes first.
    #[serde(default = "default_priority")]
    #[schemars(range(min = 0, max = 1000))]
    priority: u32,
    /// How many workers the gang has; each is one task on one node.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 16384))]
    workers: u32,
    /// Processes that each worker starts by itself: WORLD_SIZE is workers times this.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    processes_per_worker: u32,
    /// What each worker needs.
    #[serde(default)]
    resources: ResourcesFile,
    /// It may start with as few, and grow later. Left out: with all workers or not at all.
    #[serde(default)]
    #[schemars(range(min = 1, max = 16384))]
    min_workers: Option<u32>,
    /// An attempt with fewer than all workers runs at least so long before a larger one takes its
    /// place; 0s: it never does. Left out: 10m.
    #[serde(default)]
    grow_after: Option<Millis>,
    /// How close together the workers must be.
    #[serde(default)]
    topology: TopologyFile,
    /// On which nodes they may be.
    #[serde(default)]
    nodes: NodesFile,
    /// What each worker runs: a list of words, or one line for `sh -c`.
    command: Command,
    /// Added to the environment of each task.
    #[serde(default)]
    env: BTreeMap<String, EnvValue>,
    /// Where the tasks run; a relative one starts at the folder `rowen submit` ran in, which is
    /// also the default.
    #[serde(default)]
    working_dir: Option<String>,
    /// The job is ended after running this long. Left out: no limit.
    #[serde(default)]
    time_limit: Option<Millis>,
    /// How long tasks have between SIGTERM and SIGKILL when the job must make room.
    #[serde(default = "default_notice")]
    notice: Millis,
    /// How often the job is started again after it failed by itself. Making room never counts.
    #[serde(default)]
    #[schemars(range(max = 1000))]
    restarts: u32,
    /// How often the job writes a checkpoint: what an eviction would lose.
    #[serde(default)]
    checkpoint_interval: Option<Millis>,
}

fn default_word() -> String {
    "default".to_owned()
}

fn default_priority() -> u32 {
    50
}

fn default_notice() -> Millis {
    Millis(120_000)
}

fn one() -> u32 {
    1
}

impl JobFile {
    /// The job that `source` describes, every limit checked. Relative folders start at `cwd`.
    pub(crate) fn spec(source: &Source, cwd: &Path) -> Result<JobSpec, FileError> {
        let file: JobFile = source.decode_as(Kind::Job)?;
        file.check().map_err(|problems| source.error(problems))?;
        file.message(cwd).map_err(|problem| source.error(vec![problem]))
    }

    fn check(&self) -> Result<(), Vec<Problem>> {
        let mut checks = Checks::default();
        checks.name("name", &self.name);
        checks.name("tenant", &self.tenant);
        checks.name("queue", &self.queue);
        checks.count("priority", self.priority, 0..=1_000);
        checks.count("workers", self.workers, 1..=16_384);
        checks.count("processes_per_worker", self.processes_per_worker, 1..=64);
        self.resources.check(&mut checks);
        self.shape().check(&mut checks);
        checks.process(&self.command.0, &self.env);
        if let Some(limit) = self.time_limit {
            checks.long("time_limit", limit, Millis(1_000));
        }
        checks.notice("notice", self.notice);
        checks.count("restarts", self.restarts, 0..=1_000);
        if let Some(interval) = self.checkpoint_interval {
            checks.long("checkpoint_interval", interval, Millis(1_000));
        }
        checks.finish(())
    }

    fn shape(&self) -> Shape<'_> {
        Shape {
            workers: self.workers,
            gpus: self.resources.gpus,
            gpu_model: self.resources.gpu_model.as_deref(),
            topology: &self.topology,
            nodes: &self.nodes,
            min_workers: self.min_workers,
            grow_after: self.grow_after,
        }
    }

    fn message(self, cwd: &Path) -> Result<JobSpec, Problem> {
        let mut spec = JobSpec {
            resources: Some(self.resources.message()),
            name: self.name,
            tenant: self.tenant,
            queue: self.queue,
            priority: self.priority,
            workers: self.workers,
            processes_per_worker: self.processes_per_worker,
            command: self.command.0,
            env: self.env.into_iter().map(|(key, value)| (key, value.0)).collect(),
            working_dir: absolute(self.working_dir.as_deref(), cwd)?,
            time_limit_ms: self.time_limit.map_or(0, |limit| limit.0),
            notice_ms: Some(self.notice.0),
            restarts: self.restarts,
            checkpoint_interval_ms: self.checkpoint_interval.map_or(0, |interval| interval.0),
            ..JobSpec::default()
        };
        fill_in(&mut spec, &self.topology, &self.nodes, (self.min_workers, self.grow_after));
        Ok(spec)
    }
}

/// The folder as it is sent: absolute, `cwd` where none was named, as Slurm has it.
pub(super) fn absolute(folder: Option<&str>, cwd: &Path) -> Result<String, Problem> {
    let folder = folder.map_or_else(|| cwd.to_path_buf(), |folder| cwd.join(folder));
    let text = folder.to_str().filter(|text| !text.contains('\0'));
    match text {
        Some(text) if text.len() <= 4_096 => Ok(text.trim_end_matches("/.").to_owned()),
        _ => Err(Problem::new("working_dir", "not a usable path; write a shorter one in UTF-8")),
    }
}
