//! The part of a job file that says how the gang stands in the fabric: levels, groups, spread,
//! nodes, sizes. Never knows a fabric: whether a level or a label exists is the cluster's to say.

use rowen_api::v1::{self, JobSpec};
use rowen_topology::Level;
use schemars::JsonSchema;
use serde::Deserialize;

use super::check::{Checks, MAX_GPUS};
use super::values::Millis;

/// An attempt with fewer workers runs at least so long, unless the file says otherwise.
const DEFAULT_GROW_AFTER: Millis = Millis(600_000);
const MAX_RULES: usize = 16;
const MAX_VALUES: usize = 64;

/// How close together the workers must be: levels are site, pod, block, nvlink and node.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Topology")]
pub(super) struct TopologyFile {
    /// All workers inside one domain of this level, or the job waits. Left out: anywhere.
    #[serde(default)]
    pub(super) required: Option<Level>,
    /// All workers inside one domain of this level where that can be had. Left out: the tightest
    /// that fits.
    #[serde(default)]
    pub(super) preferred: Option<Level>,
    /// So long after it was queued, what is preferred counts as required (Slurm's
    /// `--switches=COUNT@TIME`). Left out: at no time.
    #[serde(default)]
    locality_wait: Option<Millis>,
    /// Equal parts of consecutive ranks, outer to inner: each group inside one domain of its level.
    /// One group is a segment.
    #[serde(default)]
    groups: Vec<GroupFile>,
    /// How groups (or workers) go over several domains.
    #[serde(default)]
    packing: Packing,
    /// So that one failure does not take too many.
    #[serde(default)]
    spread: Vec<SpreadFile>,
}

/// Ranks 0 to workers - 1 inside one domain of a level, the next likewise, and so on.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Group")]
struct GroupFile {
    /// Workers of each group; divides those of the next outer one.
    #[schemars(range(min = 1, max = 16384))]
    workers: u32,
    /// Each group inside one domain of this level.
    level: Level,
    /// Only where that can be had.
    #[serde(default)]
    preferred: bool,
}

/// How groups go over several domains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Packing {
    /// One domain is filled after the other.
    #[default]
    Packed,
    /// Evenly over as few domains as hold them.
    Balanced,
}

/// No more than so many workers in any domain of a level.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Spread")]
struct SpreadFile {
    /// At most so many.
    #[schemars(range(min = 1, max = 16384))]
    workers: u32,
    /// In any domain of this level.
    level: Level,
}

/// On which nodes the workers may be.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Nodes")]
pub(super) struct NodesFile {
    /// GPU models, any of which will do. Left out: as `resources.gpu_model` says.
    gpu_models: Vec<String>,
    /// Rules about the labels of nodes; each must hold.
    labels: Vec<LabelFile>,
    /// Nobody else on these nodes, no other job and no filler.
    exclusive: bool,
}

/// A rule about one label: exactly one of `in`, `not_in` and `exists`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "LabelRule")]
struct LabelFile {
    /// Of which label.
    key: String,
    /// It has one of these values.
    #[serde(default, rename = "in")]
    any_of: Option<Vec<String>>,
    /// It has none of them; a node without the label will do.
    #[serde(default)]
    not_in: Option<Vec<String>>,
    /// Whether the node has it at all.
    #[serde(default)]
    exists: Option<bool>,
}

/// All of it together, to be checked.
pub(super) struct Shape<'a> {
    pub(super) workers: u32,
    pub(super) gpus: u32,
    pub(super) gpu_model: Option<&'a str>,
    pub(super) topology: &'a TopologyFile,
    pub(super) nodes: &'a NodesFile,
    pub(super) min_workers: Option<u32>,
    pub(super) grow_after: Option<Millis>,
}

impl Shape<'_> {
    pub(super) fn check(&self, checks: &mut Checks) {
        checks.levels(self.topology.required, self.topology.preferred);
        self.check_node(checks, "topology.required", self.topology.required, self.workers);
        self.check_groups(checks);
        self.check_spread(checks);
        self.check_wait(checks);
        self.check_sizes(checks);
        self.nodes.check(checks, self.gpu_model);
    }

    fn check_node(&self, checks: &mut Checks, field: &str, level: Option<Level>, workers: u32) {
        let gpus = workers.saturating_mul(self.gpus);
        if level == Some(Level::Node) && gpus > MAX_GPUS {
            let verb = if field == "topology.required" { "require" } else { "choose" };
            let text = format!("no node has {gpus} GPUs; {verb} nvlink, block or a coarser level");
            checks.fail(field, text);
        }
    }

    fn check_groups(&self, checks: &mut Checks) {
        let (mut outer, mut above): (u32, Option<Level>) = (self.workers, None);
        for (at, group) in self.topology.groups.iter().enumerate() {
            let field = |name: &str| format!("topology.groups[{at}].{name}");
            checks.count(&field("workers"), group.workers, 1..=self.workers.max(1));
            if group.workers > 0 && !outer.is_multiple_of(group.workers) {
                let whose = if at == 0 { "workers" } else { "the group around it" };
                let text =
                    format!("{} does not divide {whose}, {outer}; write a divisor", group.workers);
                checks.fail(&field("workers"), text);
            }
            let level = group.level;
            if let Some(required) = self.topology.required.filter(|required| level < *required) {
                let text = format!(
                    "{level} is coarser than required {required}; write {required} or a finer level"
                );
                checks.fail(&field("level"), text);
            }
            if let Some(above) = above.filter(|above| level <= *above) {
                let text = format!(
                    "{level} stands inside {above}; list groups outer to inner, each level finer"
                );
                checks.fail(&field("level"), text);
            }
            self.check_node(checks, &field("level"), Some(level), group.workers);
            (outer, above) = (group.workers, Some(level));
        }
    }

    fn check_spread(&self, checks: &mut Checks) {
        let TopologyFile { required, preferred, groups, spread, .. } = self.topology;
        for (at, SpreadFile { workers, level }) in spread.iter().enumerate() {
            let field = format!("topology.spread[{at}].workers");
            checks.count(&field, *workers, 1..=self.workers.max(1));
            if spread[..at].iter().any(|other| other.level == *level) {
                let text = format!("{level} stands here twice; keep one");
                checks.fail(&format!("topology.spread[{at}].level"), text);
            }
            let group = groups.iter().find(|group| group.level >= *level);
            if let Some(group) = group.filter(|group| group.workers > *workers) {
                let whole = group.workers;
                checks.fail(&field, format!("{workers} splits a group of {whole}; write {whole}"));
            }
            let together = (*required).max(*preferred).unwrap_or(Level::Site);
            if together >= *level && *workers < self.workers {
                let text = format!(
                    "with at most {workers} in one {level} they are not all inside one {together}; \
                     write a finer level"
                );
                checks.fail(&format!("topology.spread[{at}].level"), text);
            }
        }
    }

    fn check_wait(&self, checks: &mut Checks) {
        let Some(wait) = self.topology.locality_wait else { return };
        checks.long("topology.locality_wait", wait, Millis(1_000));
        let groups = self.topology.groups.iter();
        if self.topology.preferred.is_none() && !groups.into_iter().any(|group| group.preferred) {
            let text = "nothing is preferred; add topology.preferred, or leave it out";
            checks.fail("topology.locality_wait", text);
        }
    }

    fn check_sizes(&self, checks: &mut Checks) {
        let Some(least) = self.min_workers else {
            if self.grow_after.is_some() {
                checks.fail("grow_after", "the job has one size; add min_workers or leave it out");
            }
            return;
        };
        checks.count("min_workers", least, 1..=self.workers.max(1));
        let step = self.topology.groups.first().map_or(1, |group| group.workers.max(1));
        if !least.is_multiple_of(step) {
            let text = format!("{least} workers are not whole groups of {step}; write a multiple");
            checks.fail("min_workers", text);
        }
        if let Some(after) = self.grow_after.filter(|after| after.0 > 0) {
            checks.long("grow_after", after, Millis(1_000));
        }
    }
}

impl NodesFile {
    fn check(&self, checks: &mut Checks, gpu_model: Option<&str>) {
        if let (Some(model), false) = (gpu_model, self.gpu_models.is_empty()) {
            let text = format!("resources.gpu_model says {model} already; keep one of them");
            checks.fail("nodes.gpu_models", text);
        }
        if self.gpu_models.len() > MAX_RULES {
            let text = format!("{} models; name at most {MAX_RULES}", self.gpu_models.len());
            checks.fail("nodes.gpu_models", text);
        }
        if self.gpu_models.iter().any(|model| model.trim().is_empty()) {
            checks.fail("nodes.gpu_models", "holds an empty name; remove it");
        }
        self.gpu_models.iter().for_each(|model| checks.text("nodes.gpu_models", model));
        if self.labels.len() > MAX_RULES {
            let text = format!("{} rules; write at most {MAX_RULES}", self.labels.len());
            checks.fail("nodes.labels", text);
        }
        for (at, rule) in self.labels.iter().enumerate() {
            rule.check(checks, &format!("nodes.labels[{at}]"));
        }
    }
}

impl LabelFile {
    fn check(&self, checks: &mut Checks, field: &str) {
        if self.key.is_empty() {
            checks.fail(&format!("{field}.key"), "empty; name the label");
        }
        checks.text(&format!("{field}.key"), &self.key);
        let tests = [self.any_of.is_some(), self.not_in.is_some(), self.exists.is_some()];
        if tests.into_iter().filter(|test| *test).count() != 1 {
            checks.fail(field, "write exactly one of in, not_in and exists");
        }
        for (name, values) in [("in", &self.any_of), ("not_in", &self.not_in)] {
            let Some(values) = values else { continue };
            let field = format!("{field}.{name}");
            if values.is_empty() || values.len() > MAX_VALUES {
                checks.fail(&field, format!("{} values; write 1 to {MAX_VALUES}", values.len()));
            }
            values.iter().for_each(|value| checks.text(&field, value));
        }
    }

    fn message(&self) -> v1::LabelRule {
        let (test, values) = match (&self.any_of, &self.not_in, self.exists) {
            (Some(values), ..) => ("in", values.clone()),
            (_, Some(values), _) => ("not-in", values.clone()),
            (_, _, Some(false)) => ("missing", Vec::new()),
            _ => ("exists", Vec::new()),
        };
        v1::LabelRule { key: self.key.clone(), test: test.to_owned(), values }
    }
}

/// Fills in what the file says of all this.
pub(super) fn fill_in(
    spec: &mut JobSpec,
    topology: &TopologyFile,
    nodes: &NodesFile,
    (min_workers, grow_after): (Option<u32>, Option<Millis>),
) {
    let word = |level: Option<Level>| level.map(|l| l.to_string()).unwrap_or_default();
    spec.required_level = word(topology.required);
    spec.preferred_level = word(topology.preferred);
    spec.locality_wait_ms = topology.locality_wait.map_or(0, |wait| wait.0);
    let group = |group: &GroupFile| v1::Group {
        workers: group.workers,
        level: group.level.to_string(),
        preferred: group.preferred,
    };
    spec.groups = topology.groups.iter().map(group).collect();
    spec.balanced = topology.packing == Packing::Balanced;
    let spread = |spread: &SpreadFile| v1::Spread {
        workers: spread.workers,
        level: spread.level.to_string(),
    };
    spec.spread = topology.spread.iter().map(spread).collect();
    spec.gpu_models = nodes.gpu_models.clone();
    spec.node_labels = nodes.labels.iter().map(LabelFile::message).collect();
    spec.exclusive = nodes.exclusive;
    spec.min_workers = min_workers.unwrap_or(0);
    spec.grow_after_ms = match min_workers {
        Some(_) => grow_after.unwrap_or(DEFAULT_GROW_AFTER).0,
        None => 0,
    };
}
