//! What the mere passing of time ends: time limits, holds whose victims stay silent.

use rowen_planted::{Bug, hash_order, planted};

use super::Answer;
use crate::{Cluster, JobState, Outcome, Reply, StopReason};

/// A victim is killed by its agent at its deadline. A hold that is still not clear
/// this much later waits for something that may never come: it is planned anew.
const OVERDUE_MS: u64 = 30_000;

impl Cluster {
    pub(super) fn tick(&mut self, outcome: &mut Outcome) -> Answer {
        let now_ms = self.meta.now_ms;
        self.mend_parts(outcome);
        let mut timed: Vec<_> = self.derived.timed.iter().copied().collect();
        if planted(Bug::HashOrder) {
            hash_order(&mut timed);
        }
        for id in timed {
            let job = self.jobs.get(id).expect("a timed job is live");
            match job.state {
                JobState::Running if now_ms >= job.running_ms + job.spec.time_limit_ms => {
                    let why =
                        format!("ran over its time limit of {} s", job.spec.time_limit_ms / 1000);
                    self.stop_gang(id, StopReason::TimeLimit, &why, outcome);
                }
                JobState::Holding => {
                    let deadline_ms = job.hold.as_ref().map_or(0, |hold| hold.deadline_ms);
                    if now_ms > deadline_ms + OVERDUE_MS {
                        self.release_hold(id, "an evicted filler did not end in time", outcome);
                    }
                }
                _ => {}
            }
        }
        Ok(Reply::Done)
    }
}
