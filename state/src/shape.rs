//! What a gang asks of the fabric beyond workers and a level: groups, spread, nodes, sizes.
//!
//! One structure for segments, nested groups and everything else about where workers may stand.
//! Says what is asked and whether it can make sense; never where anything is free.

use std::collections::BTreeMap;

use rowen_topology::Level;
use serde::{Deserialize, Serialize};

use crate::{
    FieldError, JobSpec,
    spec::{MAX_DURATION_MS, MAX_GPUS, MAX_MODEL_BYTES, length, range},
};

/// Longest key or value of a label, as Kubernetes has it.
const LABEL_BYTES: usize = 253;
const MAX_RULES: usize = 16;
const MAX_VALUES: usize = 64;
const MAX_MODELS: usize = 16;

/// What a gang asks of the fabric. The default asks nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Shape {
    /// Equal parts of consecutive ranks, outer to inner. One of them is a segment.
    pub groups: Vec<Group>,
    /// Groups (or workers) are shared out evenly over the domains that hold them, instead of
    /// filling one after the other.
    pub balanced: bool,
    /// So that one failure does not take too many.
    pub spread: Vec<Spread>,
    /// Until it has waited this long, what it prefers counts as required; 0: at no time.
    pub locality_wait_ms: u64,
    /// On which nodes it may stand.
    pub nodes: NodeFilter,
    /// It may start with as few; 0: with all workers or not at all.
    pub min_workers: u32,
    /// An attempt with fewer than all workers is replaced by a larger one no sooner than this after
    /// its start; 0: never.
    pub grow_after_ms: u64,
}

/// Ranks 0 to `workers` - 1 inside one domain of a level, the next `workers` likewise, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Group {
    /// Workers of each group; divides those of the next outer one.
    pub workers: u32,
    /// Each group inside one domain of it.
    pub level: Level,
    /// Only where that can be had.
    pub preferred: bool,
}

/// No more than so many workers in any domain of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Spread {
    /// At most.
    pub workers: u32,
    /// Of which level.
    pub level: Level,
}

/// Which nodes will do.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeFilter {
    /// GPU models, any of which will do; none: all.
    pub gpu_models: Vec<String>,
    /// Each must hold.
    pub labels: Vec<LabelRule>,
    /// Nobody else on these nodes: no other gang, no filler.
    pub exclusive: bool,
}

/// What a node's label must be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LabelRule {
    /// Of which label.
    pub key: String,
    /// What is asked of it.
    pub test: LabelTest,
}

/// What is asked of a label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LabelTest {
    /// It has one of these values.
    In(Vec<String>),
    /// It has none of them; a node without the label will do.
    NotIn(Vec<String>),
    /// The node has it.
    Exists,
    /// The node does not have it.
    Missing,
}

impl LabelRule {
    /// Whether a node with these labels will do.
    pub fn admits(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match &self.test {
            LabelTest::In(values) => value.is_some_and(|value| values.contains(value)),
            LabelTest::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            LabelTest::Exists => value.is_some(),
            LabelTest::Missing => value.is_none(),
        }
    }
}

impl NodeFilter {
    /// Whether a node with this model and these labels will do, whoever is on it.
    pub fn admits(&self, gpu_model: &str, labels: &BTreeMap<String, String>) -> bool {
        (self.gpu_models.is_empty() || self.gpu_models.iter().any(|model| model == gpu_model))
            && self.labels.iter().all(|rule| rule.admits(labels))
    }

    fn validate(&self, spec: &JobSpec) -> Result<(), FieldError> {
        let fail = |field: &str, problem: String, fix: &str| {
            Err(FieldError::new(&format!("nodes.{field}"), problem, fix))
        };
        if !self.gpu_models.is_empty() && spec.resources.gpu_model.is_some() {
            let problem = "stands beside resources.gpu_model".to_owned();
            return fail("gpu_models", problem, "keep one of them");
        }
        if self.gpu_models.len() > MAX_MODELS {
            return fail("gpu_models", format!("are {}", self.gpu_models.len()), "name at most 16");
        }
        for model in &self.gpu_models {
            if model.is_empty() {
                return fail("gpu_models", "holds an empty name".to_owned(), "remove it");
            }
            length("nodes.gpu_models", model.len(), MAX_MODEL_BYTES)?;
        }
        if self.labels.len() > MAX_RULES {
            return fail("labels", format!("are {}", self.labels.len()), "write at most 16");
        }
        self.labels.iter().try_for_each(LabelRule::validate)
    }
}

impl LabelRule {
    fn validate(&self) -> Result<(), FieldError> {
        let fail = |problem: String, fix: &str| Err(FieldError::new("nodes.labels", problem, fix));
        if self.key.is_empty() {
            return fail("a rule names no key".to_owned(), "name the label it is about");
        }
        length("nodes.labels", self.key.len(), LABEL_BYTES)?;
        let (LabelTest::In(values) | LabelTest::NotIn(values)) = &self.test else { return Ok(()) };
        if values.is_empty() || values.len() > MAX_VALUES {
            let problem = format!("{} has {} values", self.key, values.len());
            return fail(problem, "name 1 to 64");
        }
        let longest = values.iter().map(String::len).max().unwrap_or(0);
        length("nodes.labels", longest, LABEL_BYTES)
    }
}

impl Shape {
    /// Whether it asks nothing beyond workers and levels.
    pub fn is_plain(&self) -> bool {
        *self == Shape::default()
    }

    /// What the size of a gang must be a multiple of: its outermost groups are whole.
    pub fn step(&self) -> u32 {
        self.groups.first().map_or(1, |group| group.workers.max(1))
    }

    /// Whether a gang of `spec` may run with so many workers.
    pub fn admits_size(&self, all: u32, workers: u32) -> bool {
        let least = if self.min_workers == 0 { all } else { self.min_workers };
        (least..=all).contains(&workers) && workers.is_multiple_of(self.step())
    }

    /// Every limit, first violation first. What `spec` says besides was checked before.
    pub(crate) fn validate(&self, spec: &JobSpec) -> Result<(), FieldError> {
        self.validate_groups(spec)?;
        self.validate_spread(spec)?;
        let prefers = spec.preferred.is_some() || self.groups.iter().any(|group| group.preferred);
        if self.locality_wait_ms > 0 && !prefers {
            return Err(FieldError::new(
                "topology.locality_wait",
                "waits for nothing",
                "add topology.preferred, or a preferred group",
            ));
        }
        range("topology.locality_wait", self.locality_wait_ms, 0, MAX_DURATION_MS)?;
        self.nodes.validate(spec)?;
        if self.grow_after_ms > 0 && self.min_workers == 0 {
            return Err(FieldError::new(
                "grow_after",
                "stands without min_workers",
                "add min_workers, or leave it out",
            ));
        }
        range("grow_after", self.grow_after_ms, 0, MAX_DURATION_MS)?;
        range("min_workers", self.min_workers.into(), 0, spec.workers.into())?;
        divides("min_workers", self.step(), self.min_workers)
    }

    fn validate_groups(&self, spec: &JobSpec) -> Result<(), FieldError> {
        if self.groups.len() > Level::ALL.len() {
            return Err(group(format!("are {} deep", self.groups.len()), "use each level once"));
        }
        let mut outer = spec.workers;
        let mut above = None;
        for Group { workers, level, .. } in &self.groups {
            range("topology.groups", (*workers).into(), 1, spec.workers.into())?;
            divides("topology.groups", *workers, outer)?;
            if spec.required.is_some_and(|required| *level < required) {
                let problem = format!("{level} is coarser than the required level");
                return Err(group(problem, "the gang is inside one such domain already"));
            }
            if above.is_some_and(|above| *level <= above) {
                let problem = format!("{level} stands inside a level as fine");
                return Err(group(problem, "list them outer to inner, each level finer"));
            }
            if *level == Level::Node && workers.saturating_mul(spec.resources.gpus) > MAX_GPUS {
                let gpus = spec.resources.gpus;
                let problem = format!("{workers} workers of {gpus} GPUs cannot share one node");
                return Err(group(problem, "choose nvlink or a coarser level"));
            }
            (outer, above) = (*workers, Some(*level));
        }
        Ok(())
    }

    fn validate_spread(&self, spec: &JobSpec) -> Result<(), FieldError> {
        let fail = |problem: String, fix: &str| {
            Err(FieldError::new("topology.spread", problem, fix.to_owned()))
        };
        for (at, Spread { workers, level }) in self.spread.iter().enumerate() {
            range("topology.spread", (*workers).into(), 1, spec.workers.into())?;
            if self.spread[..at].iter().any(|other| other.level == *level) {
                return fail(format!("says twice how many go in one {level}"), "keep one");
            }
            let group = self.groups.iter().find(|group| group.level >= *level);
            if let Some(group) = group.filter(|group| group.workers > *workers) {
                let problem =
                    format!("{workers} in one {level} splits groups of {}", group.workers);
                return fail(problem, "allow whole groups");
            }
            // A gang never spans sites.
            let together = spec.required.max(spec.preferred).unwrap_or(Level::Site);
            if together >= *level && *workers < spec.workers {
                let problem = format!("{workers} in one {level} cannot be all inside one");
                return fail(problem, "ask for a coarser level");
            }
        }
        Ok(())
    }
}

fn group(problem: String, fix: &str) -> FieldError {
    FieldError::new("topology.groups", problem, fix)
}

fn divides(field: &str, part: u32, whole: u32) -> Result<(), FieldError> {
    if whole.is_multiple_of(part) {
        return Ok(());
    }
    let problem = format!("{whole} workers are not whole groups of {part}");
    Err(FieldError::new(field, problem, format!("choose a number that {part} divides")))
}
