//! The timing in force changes, and the one before it is remembered until its leases are over.

use super::Answer;
use crate::{Cluster, Code, InForce, Refusal, Reply, Timing};

impl Cluster {
    /// `granted`: the widest that some replica may have granted by its own configuration, before the
    /// state had any. Only the leader says it, and only it may set the first: without it, leases of
    /// the configurations would be forgotten.
    pub(super) fn set_timing(&mut self, timing: Timing, granted: Option<Timing>) -> Answer {
        timing.validate()?;
        let (timing, earlier) = match (self.meta.timing, granted) {
            (None, None) => return Err(none_yet()),
            (None, Some(granted)) => (timing, granted),
            (Some(before), None) if before.timing == timing => return Ok(Reply::Done),
            (Some(before), None) => (timing, before.widest()),
            // An operator was quicker, or a leader before this one: what they set counts.
            (Some(before), Some(granted)) if before.widest().widest(granted) == before.widest() => {
                return Ok(Reply::Done);
            }
            (Some(before), Some(granted)) => {
                (before.timing, before.earlier.map_or(granted, |earlier| earlier.widest(granted)))
            }
        };
        let earlier = Some(earlier).filter(|earlier| *earlier != timing);
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

fn none_yet() -> Refusal {
    Refusal::new(
        Code::Conflict,
        "the cluster has no timing yet; its leader sets the first as soon as every replica answers; \
         set it again after `rowen cluster status` shows one",
    )
}

impl InForce {
    /// What covers every lease that may be held.
    pub(crate) fn widest(&self) -> Timing {
        self.earlier.map_or(self.timing, |earlier| earlier.widest(self.timing))
    }
}

#[cfg(test)]
mod tests {
    use crate::{Cluster, Code, Command, Entry, InForce, Timing};

    fn timing(node_lease_ms: u64) -> Timing {
        Timing { node_lease_ms, heartbeat_ms: 1_000, kill_ms: 2_000, drift_ppm: 1_000 }
    }

    fn set(cluster: &mut Cluster, lease_ms: u64, granted_ms: Option<u64>) -> Result<InForce, Code> {
        let command =
            Command::SetTiming { timing: timing(lease_ms), granted: granted_ms.map(timing) };
        let entry = Entry { at_ms: 1, principal: "test".into(), request: None, command };
        let answer = cluster.apply(cluster.applied() + 1, &entry).answer.expect("an answer");
        answer.map(|_| cluster.meta().timing.expect("a timing")).map_err(|refusal| refusal.code)
    }

    fn in_force(lease_ms: u64, since: u64, earlier_ms: Option<u64>) -> InForce {
        InForce { timing: timing(lease_ms), since, earlier: earlier_ms.map(timing) }
    }

    #[test]
    fn the_first_timing_comes_with_what_was_granted_before_it() {
        let mut cluster = Cluster::newest();
        let before = cluster.applied();
        assert_eq!(set(&mut cluster, 6_000, None), Err(Code::Conflict));
        assert_eq!(cluster.meta().timing, None);
        assert_eq!(
            set(&mut cluster, 6_000, Some(60_000)),
            Ok(in_force(6_000, before + 2, Some(60_000)))
        );
    }

    #[test]
    fn a_first_timing_that_comes_late_only_adds_what_was_granted() {
        let mut cluster = Cluster::newest();
        let first = cluster.applied() + 1;
        set(&mut cluster, 10_000, Some(10_000)).unwrap();
        let set_by_operator = in_force(6_000, first + 1, Some(10_000));
        assert_eq!(set(&mut cluster, 6_000, None), Ok(set_by_operator));
        assert_eq!(set(&mut cluster, 10_000, Some(10_000)), Ok(set_by_operator), "it is covered");
        assert_eq!(
            set(&mut cluster, 10_000, Some(60_000)),
            Ok(in_force(6_000, first + 3, Some(60_000))),
            "a leader that follows waits anew"
        );
    }
}
