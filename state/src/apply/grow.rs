//! A running gang with fewer workers than it asked for is given more: by a new attempt.
//!
//! An attempt has one size for its whole life, so all or nothing, ranks and fencing stay what they
//! are. The larger attempt's GPUs are held before the old one gets its notice, its own among them,
//! so the job never stands without a place. Never decides when that is worth it.

use std::collections::BTreeMap;

use super::places::Misfit;
use crate::{
    AllocationId, Cluster, GpuMask, Hold, JobId, JobState, NodeId, Outcome, Place, StopReason,
};

impl Cluster {
    /// Holds `places` for the next attempt of a gang and gives the present one, and the fillers
    /// that are in the way, their notice.
    pub(super) fn grow_gang(
        &mut self,
        id: JobId,
        places: &[Place],
        victims: &[AllocationId],
        why: &str,
        outcome: &mut Outcome,
    ) -> Result<(), Misfit> {
        let own = self.may_grow(id, places.len())?;
        let mut wanted: BTreeMap<NodeId, GpuMask> = BTreeMap::new();
        for place in places {
            let mask = wanted.entry(place.node).or_default();
            *mask = mask.or(place.gpus);
        }
        let mut leaving = victims.to_vec();
        leaving.push(own);
        leaving.sort_unstable();
        if leaving.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("a victim is named twice".into());
        }
        for victim in victims {
            self.check_victim(*victim, &wanted)?;
            if self.is_gang(*victim) {
                return Err(format!("allocation {victim} is a gang: it leaves for no growth"));
            }
        }
        let spec = self.jobs.get(id).expect("it runs").spec.clone();
        self.check_gang(&spec, places, &leaving)?;
        self.check_limits(&spec.queue, &self.held_beside(id, places))?;

        let deadline_ms = self.evict_for(id, victims, outcome);
        self.stop_gang(id, StopReason::Resized, &format!("grows {why}"), outcome);
        let stop = self.allocations.get(own).and_then(|own| own.stop);
        let deadline_ms = deadline_ms.max(stop.map_or(0, |stop| stop.deadline_ms));
        self.hold(
            id,
            Hold {
                places: places.to_vec(),
                victims: leaving,
                since_ms: self.meta.now_ms,
                deadline_ms,
                index: self.meta.applied,
            },
        );
        Ok(())
    }

    /// The allocation that a larger one may take the place of.
    fn may_grow(&self, id: JobId, workers: usize) -> Result<AllocationId, Misfit> {
        let job = self.jobs.get(id).ok_or_else(|| format!("there is no job {id}"))?;
        let after_ms = job.spec.shape.grow_after_ms;
        if job.state != JobState::Running || after_ms == 0 {
            return Err(format!("job {id} does not grow"));
        }
        if self.meta.now_ms < job.running_ms + after_ms {
            return Err(format!("job {id} has not run long enough to grow"));
        }
        let own = job.allocation.ok_or("a running job has an allocation")?;
        let tasks = self.allocations.get(own).map_or(0, |own| own.tasks.len());
        if workers <= tasks {
            return Err(format!("{workers} workers are no more than job {id} has"));
        }
        Ok(own)
    }

    /// The old attempt is over: its hold is waited for, or bound at once.
    pub(super) fn grown(&mut self, id: JobId, why: &str, outcome: &mut Outcome) -> Vec<NodeId> {
        self.set_job_state(id, JobState::Holding);
        self.set_job_reason(id, why.to_owned());
        self.tell(id, format!("its next attempt has GPUs held: {why}"), outcome);
        let hold = self.jobs.get(id).and_then(|job| job.hold.as_ref());
        hold.iter().flat_map(|hold| &hold.places).map(|place| place.node).collect()
    }
}
