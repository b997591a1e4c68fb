//! The part that job and filler files share: what one worker or one instance needs.

use rowen_api::v1::Resources;
use schemars::JsonSchema;
use serde::Deserialize;

use super::check::{Checks, MAX_GPUS};
use super::values::Mib;

/// One pebibyte: no node has more.
const MAX_MEMORY_MIB: u64 = 1 << 30;

/// What a worker of a job, or an instance of a filler, needs on its node.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Resources")]
pub(crate) struct ResourcesFile {
    /// Whole GPUs of one node.
    #[schemars(range(min = 1, max = 64))]
    pub(super) gpus: u32,
    /// Only nodes with this GPU model, as `rowen node list` names it. Left out: any.
    pub(super) gpu_model: Option<String>,
    /// CPU cores. 0: no claim.
    #[schemars(range(max = 65536))]
    pub(super) cpus: u32,
    /// Main memory, `64GiB`; a plain number is MiB. Left out: no claim.
    pub(super) memory: Option<Mib>,
}

impl Default for ResourcesFile {
    fn default() -> ResourcesFile {
        ResourcesFile { gpus: 1, gpu_model: None, cpus: 0, memory: None }
    }
}

impl ResourcesFile {
    pub(super) fn check(&self, checks: &mut Checks) {
        checks.count("resources.gpus", self.gpus, 1..=MAX_GPUS);
        checks.count("resources.cpus", self.cpus, 0..=65_536);
        if let Some(model) = &self.gpu_model {
            checks.text("resources.gpu_model", model);
            if model.trim().is_empty() {
                checks.fail("resources.gpu_model", "empty; name a model or leave it out for any");
            }
        }
        if let Some(Mib(mib)) = self.memory
            && mib > MAX_MEMORY_MIB
        {
            checks
                .fail("resources.memory", format!("{mib} MiB is too much; write at most 1024TiB"));
        }
    }

    pub(super) fn message(&self) -> Resources {
        Resources {
            gpus: self.gpus,
            gpu_model: self.gpu_model.clone().unwrap_or_default(),
            cpus: self.cpus,
            memory_mib: self.memory.map_or(0, |memory| memory.0),
        }
    }
}
