//! The filler file: what `rowen filler deploy` reads, and the `FillerSpec` it becomes.

use std::collections::BTreeMap;
use std::path::Path;

use rowen_api::v1::{FillerSpec, Probe};
use schemars::JsonSchema;
use serde::Deserialize;

use super::check::{Checks, MAX_INSTANCES, NAME_PATTERN, duration};
use super::job::absolute;
use super::resources::ResourcesFile;
use super::values::{Command, EnvValue, MicroDollars, Millis};
use super::{FileError, Kind, Problem, Source};

/// A million dollars a GPU-hour is more than anyone pays.
const MAX_VALUE_MICROS: u64 = 1_000_000_000_000;

/// A preemptible inference deployment: instances that run on what the gangs leave over.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Filler")]
pub(crate) struct FillerFile {
    /// Unique among fillers; deploying the same name again changes it.
    #[schemars(regex(pattern = NAME_PATTERN))]
    name: String,
    /// Who earns.
    #[serde(default = "default_tenant")]
    #[schemars(regex(pattern = NAME_PATTERN))]
    tenant: String,
    /// The model it serves, a label.
    #[serde(default)]
    model: String,
    /// What each instance needs.
    #[serde(default)]
    resources: ResourcesFile,
    /// How many instances there may be.
    instances: InstancesFile,
    /// Dollars that a GPU of it earns an hour; who earns more goes first.
    #[serde(default)]
    value_per_gpu_hour: MicroDollars,
    /// From an instance's start until it earns.
    #[serde(default = "none")]
    warm_up: Millis,
    /// From the eviction of an instance to its SIGKILL.
    #[serde(default = "default_notice")]
    notice: Millis,
    /// The first part of the notice: out of the ready list, but still answering, before SIGTERM.
    #[serde(default = "none")]
    withdraw: Millis,
    /// How an instance says that it serves. Left out: it does as soon as it runs.
    #[serde(default)]
    readiness: Option<ReadinessFile>,
    /// What each instance runs: a list of words, or one line for `sh -c`.
    command: Command,
    /// Added to the environment of each instance.
    #[serde(default)]
    env: BTreeMap<String, EnvValue>,
    /// Where the instances run; a relative one starts at the folder `rowen filler deploy` ran in,
    /// which is also the default.
    #[serde(default)]
    working_dir: Option<String>,
}

/// How many instances of a filler there may be.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Instances")]
struct InstancesFile {
    /// Started before any other filler gets more.
    #[serde(default)]
    #[schemars(range(max = 131_072))]
    min: u32,
    /// Never more.
    #[schemars(range(min = 1, max = 131_072))]
    max: u32,
}

/// A readiness probe: exactly one of `http`, `tcp` and `exec`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Readiness")]
struct ReadinessFile {
    /// GET of this path answers 2xx.
    http: Option<String>,
    /// A connection to the port opens.
    tcp: bool,
    /// A command that ends with 0.
    exec: Option<Command>,
    /// For `http` and `tcp`. Left out: the port that the instance finds in ROWEN_PORT.
    #[schemars(range(min = 1))]
    port: Option<u16>,
    /// Between two tries. Left out: 1s.
    period: Option<Millis>,
}

fn default_tenant() -> String {
    "default".to_owned()
}

fn default_notice() -> Millis {
    Millis(30_000)
}

fn none() -> Millis {
    Millis(0)
}

impl FillerFile {
    /// The filler that `source` describes, every limit checked. Relative folders start at `cwd`.
    pub(crate) fn spec(source: &Source, cwd: &Path) -> Result<FillerSpec, FileError> {
        let file: FillerFile = source.decode_as(Kind::Filler)?;
        file.check().map_err(|problems| source.error(problems))?;
        file.message(cwd).map_err(|problem| source.error(vec![problem]))
    }

    fn check(&self) -> Result<(), Vec<Problem>> {
        let mut checks = Checks::default();
        checks.name("name", &self.name);
        checks.name("tenant", &self.tenant);
        checks.text("model", &self.model);
        self.resources.check(&mut checks);
        checks.count("instances.max", self.instances.max, 1..=MAX_INSTANCES);
        let InstancesFile { min, max } = self.instances;
        if min > max {
            checks.fail("instances.min", format!("{min} is above instances.max; write 0 to {max}"));
        }
        if self.value_per_gpu_hour.0 > MAX_VALUE_MICROS {
            checks.fail("value_per_gpu_hour", "above 1000000 dollars; write less");
        }
        checks.warm_up("warm_up", self.warm_up);
        checks.notice("notice", self.notice);
        if self.withdraw > self.notice {
            let text = format!(
                "{} is longer than the notice, of which it is a part; write at most {}",
                duration(self.withdraw),
                duration(self.notice)
            );
            checks.fail("withdraw", text);
        }
        if let Some(probe) = &self.readiness {
            probe.check(&mut checks);
        }
        checks.process(&self.command.0, &self.env);
        checks.finish(())
    }

    fn message(self, cwd: &Path) -> Result<FillerSpec, Problem> {
        Ok(FillerSpec {
            resources: Some(self.resources.message()),
            name: self.name,
            tenant: self.tenant,
            model: self.model,
            min_instances: self.instances.min,
            max_instances: self.instances.max,
            value_micros: self.value_per_gpu_hour.0,
            warm_up_ms: self.warm_up.0,
            notice_ms: self.notice.0,
            withdraw_ms: self.withdraw.0,
            readiness: self.readiness.map(ReadinessFile::message),
            command: self.command.0,
            env: self.env.into_iter().map(|(key, value)| (key, value.0)).collect(),
            working_dir: absolute(self.working_dir.as_deref(), cwd)?,
        })
    }
}

impl ReadinessFile {
    fn check(&self, checks: &mut Checks) {
        let ways = [self.http.is_some(), self.tcp, self.exec.is_some()];
        if ways.into_iter().filter(|&way| way).count() != 1 {
            checks.fail("readiness", "write exactly one of http, tcp and exec");
        }
        if let Some(path) = self.http.as_deref().filter(|path| !path.starts_with('/')) {
            checks.fail("readiness.http", format!("{path:?} is no path; begin it with '/'"));
        }
        if self.exec.is_some() && self.port.is_some() {
            checks.fail("readiness.port", "exec has no port; remove it");
        }
        if self.exec.as_ref().is_some_and(|exec| exec.0.is_empty()) {
            checks.fail("readiness.exec", "empty; name the program to run");
        }
        if self.port == Some(0) {
            checks.fail("readiness.port", "0 is no port; leave it out for the one in ROWEN_PORT");
        }
        if let Some(period) = self.period.filter(|p| !(10..=600_000).contains(&p.0)) {
            let text = format!("{} is out of range; write 10ms to 10m", duration(period));
            checks.fail("readiness.period", text);
        }
    }

    fn message(self) -> Probe {
        Probe {
            http_path: self.http.unwrap_or_default(),
            port: self.port.unwrap_or(0).into(),
            period_ms: self.period.map_or(1_000, |period| period.0),
            exec: self.exec.map(|exec| exec.0).unwrap_or_default(),
        }
    }
}
