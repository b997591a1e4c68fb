//! The timing in force changes, and the one before it is remembered until its leases are over.

use super::Answer;
use crate::{Cluster, Code, InForce, Refusal, Reply, Timing};

impl Cluster {
    /// `granted`: the widest that some replica may have granted by its own configuration, before the
    /// state had any.
    pub(super) fn set_timing(&mut self, timing: Timing, granted: Option<Timing>) -> Answer {
        timing.validate()?;
        let widest = |a: Option<Timing>, b: Option<Timing>| match (a, b) {
            (Some(a), Some(b)) => Some(a.widest(b)),
            (a, b) => a.or(b),
        };
        let before = self.meta.timing;
        if granted.is_none() && before.is_some_and(|before| before.timing == timing) {
            return Ok(Reply::Done);
        }
        let earlier = before.and_then(|before| widest(before.earlier, Some(before.timing)));
        let earlier = widest(earlier, granted).filter(|earlier| *earlier != timing);
        self.meta.timing = Some(InForce { timing, since: self.meta.applied, earlier });
        Ok(Reply::Done)
    }

    /// The leader has waited until no lease of an earlier timing can be left.
    pub(super) fn settle_timing(&mut self, since: u64) -> Answer {
        match &mut self.meta.timing {
            Some(in_force) if in_force.since == since => {
                in_force.earlier = None;
                Ok(Reply::Done)
            }
            _ => Err(Refusal::new(
                Code::Conflict,
                format!("the timing set at index {since} is not in force"),
            )),
        }
    }
}
