//! Carrying out a plan: each decision is checked again, and stands or falls alone.

use std::collections::BTreeMap;

use super::{Answer, gangs::new_task, places::Misfit};
use crate::{
    Allocation, AllocationId, Cluster, Decision, FillerId, FillerState, GpuMask, Hold, JobId,
    JobState, NodeId, Outcome, Owner, Place, Plan, Reply, StopReason, cluster::clip,
};

impl Cluster {
    pub(super) fn commit_plan(&mut self, plan: &Plan, outcome: &mut Outcome) -> Answer {
        let (mut accepted, mut rejected) = (0, 0);
        for decision in &plan.decisions {
            match self.decide(decision, outcome) {
                Ok(()) => accepted += 1,
                Err(_) => rejected += 1,
            }
        }
        Ok(Reply::Planned { accepted, rejected })
    }

    fn decide(&mut self, decision: &Decision, outcome: &mut Outcome) -> Result<(), Misfit> {
        match decision {
            Decision::Start { job, places, why } => {
                self.queued(*job)?;
                let spec = &self.jobs.get(*job).expect("queued").spec;
                self.check_gang(spec, places, &[])?;
                self.check_limits(&spec.queue, &self.gpus_of(places))?;
                self.bind_gang(*job, places, why, outcome);
            }
            Decision::Hold { job, places, victims, why } => {
                self.hold_gang(*job, places, victims, why, outcome)?;
            }
            Decision::StartInstance { filler, place } => {
                self.start_instance(*filler, *place, outcome)?
            }
            Decision::Wait { job, reason } => {
                self.queued(*job)?;
                self.set_job_reason(*job, reason.clone());
                self.tell(*job, format!("waits: {reason}"), outcome);
            }
            Decision::Grow { job, places, victims, why } => {
                self.grow_gang(*job, places, victims, why, outcome)?;
            }
            Decision::Unfilled { filler, reason } => {
                let filler = self.fillers.get_mut(*filler).ok_or("the filler is gone")?;
                filler.reason = clip(reason.clone());
            }
        }
        Ok(())
    }

    fn queued(&self, id: JobId) -> Result<(), Misfit> {
        match self.jobs.get(id) {
            Some(job) if job.state == JobState::Queued => Ok(()),
            _ => Err(format!("job {id} does not wait any more")),
        }
    }

    fn hold_gang(
        &mut self,
        id: JobId,
        places: &[Place],
        victims: &[AllocationId],
        why: &str,
        outcome: &mut Outcome,
    ) -> Result<(), Misfit> {
        self.queued(id)?;
        if victims.is_empty() {
            return Err("a hold without victims is a start".into());
        }
        let mut victims = victims.to_vec();
        victims.sort_unstable();
        if victims.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("a victim is named twice".into());
        }
        let mut wanted: BTreeMap<NodeId, GpuMask> = BTreeMap::new();
        for place in places {
            let mask = wanted.entry(place.node).or_default();
            *mask = mask.or(place.gpus);
        }
        for victim in &victims {
            self.check_victim(*victim, &wanted)?;
        }
        let job = self.jobs.get(id).expect("queued");
        self.check_gang(&job.spec, places, &victims)?;
        let gpus = self.gpus_of(places);
        self.check_limits(&job.spec.queue, &gpus)?;
        let gangs: Vec<AllocationId> =
            victims.iter().copied().filter(|victim| self.is_gang(*victim)).collect();
        if !gangs.is_empty() {
            self.check_takes(&job.spec, gpus.values().sum(), &gangs)?;
        }

        let deadline_ms = self.evict_for(id, &victims, outcome);
        self.hold(
            id,
            Hold {
                places: places.to_vec(),
                victims: victims.to_vec(),
                since_ms: self.meta.now_ms,
                deadline_ms,
                index: self.meta.applied,
            },
        );
        self.set_job_state(id, JobState::Holding);
        self.set_job_reason(id, why.to_owned());
        let who = if gangs.is_empty() { "fillers" } else { "victims" };
        self.tell(id, format!("holds GPUs, {} {who} have notice: {why}", victims.len()), outcome);
        Ok(())
    }

    /// Gives victims their notice for a gang; when the last of them is killed.
    pub(super) fn evict_for(
        &mut self,
        id: JobId,
        victims: &[AllocationId],
        outcome: &mut Outcome,
    ) -> u64 {
        let mut deadline_ms = self.meta.now_ms;
        for victim in victims {
            self.evict(*victim, id, outcome);
            let victim = self.allocations.get(*victim).expect("checked by the caller");
            deadline_ms = deadline_ms.max(victim.stop.map_or(0, |stop| stop.deadline_ms));
            self.meta.evictions += 1;
            if let Owner::Instance { filler, .. } = victim.owner
                && let Some(filler) = self.fillers.get_mut(filler)
            {
                filler.evictions += 1;
            }
        }
        deadline_ms
    }

    /// Keeps the places of a hold that was checked.
    pub(super) fn hold(&mut self, id: JobId, hold: Hold) {
        for place in &hold.places {
            let node = self.nodes.get_mut(place.node).expect("checked by the caller");
            for ordinal in place.gpus.iter() {
                node.gpus[ordinal as usize].held = Some(id);
            }
        }
        if !self.queues.is_empty() {
            let queue = self.jobs.get(id).expect("checked by the caller").spec.queue.clone();
            self.queue_uses(&queue, &self.held_beside(id, &hold.places), true);
        }
        self.jobs.get_mut(id).expect("checked by the caller").hold = Some(hold);
    }

    pub(super) fn is_gang(&self, id: AllocationId) -> bool {
        let owner = self.allocations.get(id).map(|allocation| allocation.owner);
        matches!(owner, Some(Owner::Gang { .. }))
    }

    /// Begins to take an allocation back for a gang. A gang goes whole, and is queued again.
    fn evict(&mut self, id: AllocationId, by: JobId, outcome: &mut Outcome) {
        let reason = StopReason::Evicted { by };
        match self.allocations.get(id).map(|allocation| allocation.owner) {
            Some(Owner::Gang { job, .. }) => {
                self.stop_gang(job, reason, &format!("evicted for job {by}"), outcome);
            }
            _ => self.stop(id, reason, outcome),
        }
    }

    fn start_instance(
        &mut self,
        id: FillerId,
        place: Place,
        outcome: &mut Outcome,
    ) -> Result<(), Misfit> {
        let filler = self.fillers.get(id).ok_or("the filler is gone")?;
        if filler.state != FillerState::Active || filler.backoff_until_ms > self.meta.now_ms {
            return Err("the filler starts nothing now".into());
        }
        if filler.instances.len() >= filler.spec.max_instances as usize {
            return Err("the filler has all its instances".into());
        }
        let spec = filler.spec.clone();
        self.check_places(&spec.resources, &[place], &[])?;
        let now_ms = self.meta.now_ms;
        let epoch = self.epoch();
        self.meta.last_allocation += 1;
        let allocation = AllocationId(self.meta.last_allocation);
        let filler = self.fillers.get_mut(id).expect("looked up above");
        filler.last_number += 1;
        filler.instances.push(allocation);
        let number = filler.last_number;
        let bound = Allocation {
            id: allocation,
            owner: Owner::Instance { filler: id, number },
            tenant: spec.tenant.clone(),
            epoch,
            bound_ms: now_ms,
            resources: spec.resources.clone(),
            notice_ms: spec.notice_ms,
            tasks: vec![new_task(place, now_ms)],
            port: 0,
            stop: None,
        };
        self.bind(bound, outcome);
        Ok(())
    }
}
