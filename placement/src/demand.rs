//! What a gang or an instance asks for, in the terms of the flat index. Small values that compare,
//! so that equal shapes are recognised. Never looks at what is free.

use std::fmt;

use rowen_state::{JobSpec, Resources};
use rowen_topology::{FlatIndex, Level, ModelId};

/// Which GPUs will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Model {
    Any,
    Only(ModelId),
    /// Asked for by a name that no node of the fabric has.
    Unknown,
}

/// What one worker or instance needs of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Claim {
    pub(crate) gpus: u32,
    pub(crate) cpus: u64,
    pub(crate) memory_mib: u64,
    pub(crate) model: Model,
}

impl Claim {
    pub(crate) fn new(resources: &Resources, index: &FlatIndex) -> Self {
        let model = match &resources.gpu_model {
            None => Model::Any,
            Some(name) => index.model_id(name).map_or(Model::Unknown, Model::Only),
        };
        Claim {
            gpus: resources.gpus,
            cpus: resources.cpus.into(),
            memory_mib: resources.memory_mib,
            model,
        }
    }

    /// Whether every model will do.
    pub(crate) fn admits_all(&self) -> bool {
        self.model == Model::Any
    }

    pub(crate) fn admits(&self, model: ModelId) -> bool {
        match self.model {
            Model::Any => true,
            Model::Only(wanted) => wanted == model,
            Model::Unknown => false,
        }
    }

    /// `8 H100 GPUs`.
    pub(crate) fn in_words(&self, index: &FlatIndex) -> String {
        let gpus = if self.gpus == 1 { "GPU" } else { "GPUs" };
        match self.model {
            Model::Only(model) => format!("{} {} {gpus}", self.gpus, index.model_name(model)),
            Model::Any | Model::Unknown => format!("{} {gpus}", self.gpus),
        }
    }
}

/// What a gang asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ask {
    pub(crate) claim: Claim,
    pub(crate) workers: u32,
    /// All workers inside one domain of this level; a gang never spans sites.
    pub(crate) required: Level,
    pub(crate) preferred: Option<Level>,
}

impl Ask {
    pub(crate) fn new(spec: &JobSpec, index: &FlatIndex) -> Self {
        Ask {
            claim: Claim::new(&spec.resources, index),
            workers: spec.workers,
            required: spec.required.unwrap_or(Level::Site),
            preferred: spec.preferred,
        }
    }

    /// Levels to try, tightest first: from the preferred one (a node, where none is) to the required.
    pub(crate) fn levels(&self) -> impl Iterator<Item = Level> + use<> {
        let (finest, coarsest) = (self.preferred.unwrap_or(Level::Node), self.required);
        Level::ALL.into_iter().rev().filter(move |level| *level <= finest && *level >= coarsest)
    }

    /// GPUs of the whole gang.
    pub(crate) fn gpus(&self) -> u64 {
        u64::from(self.workers) * u64::from(self.claim.gpus)
    }

    /// `12 × 8 H100 GPUs inside one pod`.
    pub(crate) fn in_words(&self, index: &FlatIndex) -> String {
        let each = self.claim.in_words(index);
        let count = if self.workers == 1 { each } else { format!("{} × {each}", self.workers) };
        format!("{count} inside one {}", LevelWord(self.required))
    }
}

/// A level in a sentence.
pub(crate) struct LevelWord(pub(crate) Level);

impl fmt::Display for LevelWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Level::Nvlink => "NVLink domain",
            level => level.as_str(),
        })
    }
}
