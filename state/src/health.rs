//! What of the fabric is faulty, and since when: GPUs and links.
//!
//! A part that gets worse counts as worse at once; one that gets better is trusted only after it
//! has stayed so for a while, longer each time it relapses, so that what flaps is not used between
//! its flaps. Never says what follows from it: see `apply/health.rs` and the planner.

use imbl::OrdMap;
use rowen_topology::{FaultyLink, LinkFault};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::{FieldError, codec};

/// All of a part, in thousandths.
pub const WHOLE_MILLI: u16 = 1_000;
/// Faulty parts known at once.
pub(crate) const FAULTS: usize = 16_384;
/// Parts of one command.
const REPORTS: usize = 1_024;
/// How long a part must have been better before it is trusted; doubled by each relapse.
const QUIET_MS: u64 = 60_000;
/// Relapses that still double it: beyond, it is an hour and four minutes.
const DOUBLINGS: u32 = 6;

/// What can be faulty by itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Part {
    /// A GPU: whole or down, nothing between.
    Gpu {
        /// The node's name.
        node: String,
        /// The GPU's number in it.
        gpu: u16,
    },
    /// A link.
    Link(FaultyLink),
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Part::Gpu { node, gpu } => write!(f, "GPU {gpu} of {node}"),
            Part::Link(FaultyLink::NvLink { node, gpu }) => {
                write!(f, "NVLink of GPU {gpu} of {node}")
            }
            Part::Link(FaultyLink::Rail { node, leaf }) => write!(f, "link {node} to {leaf}"),
            Part::Link(FaultyLink::Uplink { leaf, spine }) => write!(f, "link {leaf} to {spine}"),
        }
    }
}

/// Who says how a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seer {
    /// An operator, or a monitor of the network: an agent does not contradict it.
    Operator,
    /// The agent of the node.
    Agent,
}

/// What somebody saw of a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartReport {
    /// Of which.
    pub part: Part,
    /// What is left of it, in thousandths: 0 is down, 1000 as good as new.
    pub left_milli: u16,
    /// It has been mended: better counts at once, and what was is forgotten.
    pub mended: bool,
    /// Who saw it.
    pub seer: Seer,
    /// In the words of who saw it.
    pub reason: String,
}

/// How a faulty part is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// What counts, in thousandths: the worst since it was last trusted.
    pub left_milli: u16,
    /// As last said.
    pub said_milli: u16,
    /// When that was first said.
    pub said_ms: u64,
    /// When it became faulty.
    pub since_ms: u64,
    /// How often it relapsed while it was getting better.
    pub relapses: u32,
    /// Who saw the last change for the worse.
    pub seer: Seer,
    /// In the words of who saw the last change for the worse.
    pub reason: String,
}

impl Health {
    fn new(report: &PartReport, reason: String, now_ms: u64) -> Health {
        Health {
            left_milli: report.left_milli,
            said_milli: report.left_milli,
            said_ms: now_ms,
            since_ms: now_ms,
            relapses: 0,
            seer: report.seer,
            reason,
        }
    }

    /// It comes and goes.
    pub fn flaps(&self) -> bool {
        self.relapses > 0
    }

    /// When it is trusted to be as last said, if it counts as worse now and stays so.
    pub fn trusted_ms(&self) -> Option<u64> {
        let quiet_ms = QUIET_MS << self.relapses.min(DOUBLINGS);
        (self.said_milli > self.left_milli).then(|| self.said_ms.saturating_add(quiet_ms))
    }

    /// Takes over what was seen now. Better is only noted.
    fn hear(&mut self, report: &PartReport, reason: String, now_ms: u64) {
        let left_milli = report.left_milli;
        let contradicts = self.seer == Seer::Operator && report.seer == Seer::Agent;
        if left_milli == self.said_milli || (left_milli > self.said_milli && contradicts) {
            return;
        }
        if left_milli < self.said_milli {
            self.relapses += u32::from(self.said_milli > self.left_milli);
            self.left_milli = self.left_milli.min(left_milli);
            (self.reason, self.seer) = (reason, report.seer);
        }
        (self.said_milli, self.said_ms) = (left_milli, now_ms);
    }
}

/// Every part that is not as it should be, and a digest of them that does not depend on the order
/// of changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    rows: OrdMap<Part, Health>,
    digest: u128,
}

impl Parts {
    pub(crate) fn rows(&self) -> &OrdMap<Part, Health> {
        &self.rows
    }

    pub(crate) fn digest(&self) -> u128 {
        self.digest
    }

    /// What counts of a part, in thousandths.
    pub(crate) fn counts_milli(&self, part: &Part) -> u16 {
        self.rows.get(part).map_or(WHOLE_MILLI, |health| health.left_milli)
    }

    /// Takes a report over. Whether what counts has changed.
    pub(crate) fn hear(&mut self, report: &PartReport, reason: String, now_ms: u64) -> bool {
        let before = self.counts_milli(&report.part);
        let known = self.rows.get(&report.part).filter(|_| !report.mended).cloned();
        let health = match known {
            None => Health::new(report, reason, now_ms),
            Some(mut health) => {
                health.hear(report, reason, now_ms);
                health
            }
        };
        self.set(&report.part, health);
        self.counts_milli(&report.part) != before
    }

    /// Trusts what has been better for long enough; which parts those are.
    pub(crate) fn mend(&mut self, now_ms: u64) -> Vec<Part> {
        let is_due = |health: &Health| health.trusted_ms().is_some_and(|at_ms| now_ms >= at_ms);
        let due = self.rows.iter().filter(|(_, health)| is_due(health));
        let due: Vec<(Part, Health)> =
            due.map(|(part, health)| (part.clone(), health.clone())).collect();
        due.into_iter()
            .map(|(part, health)| {
                let left_milli = health.said_milli;
                self.set(&part, Health { left_milli, ..health });
                part
            })
            .collect()
    }

    /// Replaces a row. One with which nothing is wrong any more is none.
    pub(crate) fn set(&mut self, part: &Part, health: Health) {
        self.forget(part);
        if health.left_milli < WHOLE_MILLI || health.said_milli < WHOLE_MILLI {
            self.digest = self.digest.wrapping_add(hash(part, &health));
            self.rows.insert(part.clone(), health);
        }
    }

    pub(crate) fn forget(&mut self, part: &Part) {
        if let Some(health) = self.rows.remove(part) {
            self.digest = self.digest.wrapping_sub(hash(part, &health));
        }
    }
}

fn hash(part: &Part, health: &Health) -> u128 {
    let mut bytes = vec![7]; // tables have 1 to 6
    codec::canonical(&(part, health), &mut bytes);
    xxh3_128(&bytes)
}

/// Every limit of a command's reports.
pub(crate) fn validate(reports: &[PartReport]) -> Result<(), FieldError> {
    if reports.is_empty() || reports.len() > REPORTS {
        let problem = format!("has {} parts", reports.len());
        return Err(FieldError::new("parts", problem, format!("send 1 to {REPORTS}")));
    }
    for report in reports {
        if report.left_milli > WHOLE_MILLI {
            let problem = format!("{} of {} is more than all", report.left_milli, report.part);
            return Err(FieldError::new("left_milli", problem, "send 0 to 1000"));
        }
        let gpu = matches!(report.part, Part::Gpu { .. });
        if gpu && !matches!(report.left_milli, 0 | WHOLE_MILLI) {
            let problem = format!("{} of {}: a GPU is up or down", report.left_milli, report.part);
            return Err(FieldError::new("left_milli", problem, "send 0 or 1000"));
        }
    }
    Ok(())
}

/// The faulty links among the parts, as the fabric's arithmetic wants them.
pub(crate) fn link_faults<'a>(
    parts: impl Iterator<Item = (&'a Part, &'a Health)>,
) -> Vec<LinkFault> {
    let fault = |(part, health): (&Part, &Health)| match part {
        Part::Link(link) if health.left_milli < WHOLE_MILLI => {
            Some(LinkFault { link: link.clone(), left_milli: health.left_milli })
        }
        _ => None,
    };
    parts.filter_map(fault).collect()
}
