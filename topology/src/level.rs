//! The levels of the communication hierarchy and the small ids that the flat index deals in.
//!
//! None of these ids is ever stored: they are dense positions, valid for one index only.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A level of the communication hierarchy, coarse to fine: `Site < Node`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// One place, one network.
    Site,
    /// Blocks whose leafs reach the same set of spines.
    Pod,
    /// Nodes that share exactly one set of leafs.
    Block,
    /// Nodes whose GPUs share an NVLink domain; on HGX machines the node itself.
    #[serde(alias = "nvlink-domain")]
    Nvlink,
    /// One machine.
    Node,
}

impl Level {
    /// Coarse to fine.
    pub const ALL: [Level; 5] = [Level::Site, Level::Pod, Level::Block, Level::Nvlink, Level::Node];

    /// The word used in files and on screens.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Site => "site",
            Level::Pod => "pod",
            Level::Block => "block",
            Level::Nvlink => "nvlink",
            Level::Node => "node",
        }
    }

    /// The next finer level; `None` below `Node`.
    pub fn finer(self) -> Option<Level> {
        Level::ALL.get(self as usize + 1).copied()
    }

    /// The next coarser level; `None` above `Site`.
    pub fn coarser(self) -> Option<Level> {
        (self as usize).checked_sub(1).map(|i| Level::ALL[i])
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(text: &str) -> Result<Level, UnknownLevel> {
        match text {
            "nvlink-domain" => Ok(Level::Nvlink),
            _ => Level::ALL
                .into_iter()
                .find(|level| level.as_str() == text)
                .ok_or_else(|| UnknownLevel { text: text.to_owned() }),
        }
    }
}

/// A word that is no level.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a level; write site, pod, block, nvlink or node")]
pub struct UnknownLevel {
    /// The word.
    pub text: String,
}

/// A node's dense position in hierarchy order, 0 to `node_count() - 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodePos(pub u32);

/// A GPU model, numbered by first appearance in the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelId(pub u16);

/// One domain: its level and its ordinal in `FlatIndex::domains(level)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainId {
    /// Which level it is on.
    pub level: Level,
    /// Its place among the domains of that level, in hierarchy order.
    pub ordinal: u32,
}
