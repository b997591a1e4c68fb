//! Deploy, drain and remove fillers; how an instance ends.

use super::{Answer, not_found};
use crate::{
    AllocationId, Cluster, Code, Filler, FillerId, FillerSpec, FillerState, Outcome, Owner,
    Refusal, Reply, StopReason, TaskPhase, cluster::FILLERS,
};

/// An instance that ran this long was fine: its end does not count towards the back-off.
const HEALTHY_RUN_MS: u64 = 60_000;
const MAX_BACKOFF_MS: u64 = 300_000;

impl Cluster {
    pub(super) fn deploy_filler(&mut self, spec: &FillerSpec, outcome: &mut Outcome) -> Answer {
        spec.validate()?;
        let Some(id) = self.derived.fillers_by_name.get(&spec.name).copied() else {
            return self.add_filler(spec);
        };
        let filler = self.fillers.get_mut(id).expect("the index of names is derived");
        if filler.state == FillerState::Removing {
            return Err(Refusal::new(
                Code::Conflict,
                format!("filler {} is being removed; deploy it again when it is gone", spec.name),
            ));
        }
        let redeployed = runs_differently(&filler.spec, spec);
        filler.spec = spec.clone().into();
        filler.state = FillerState::Active;
        (filler.failures, filler.backoff_until_ms) = (0, 0);
        let instances = filler.instances.clone();
        let keep = if redeployed { 0 } else { spec.max_instances as usize };
        let reason = if redeployed { StopReason::Redeployed } else { StopReason::Withdrawn };
        let (kept, stopped) = instances.split_at(keep.min(instances.len()));
        for instance in stopped {
            self.stop(*instance, reason, outcome);
        }
        for instance in kept {
            self.refresh_rooms_of(*instance); // they may be worth more or less now
        }
        Ok(Reply::Filler(id))
    }

    fn add_filler(&mut self, spec: &FillerSpec) -> Answer {
        if self.fillers.len() >= FILLERS {
            return Err(Refusal::new(
                Code::Exhausted,
                format!("there are {FILLERS} fillers already; remove some"),
            ));
        }
        self.meta.last_filler += 1;
        let id = FillerId(self.meta.last_filler);
        self.fillers.insert(id, Filler::new(id, spec.clone()));
        self.derived.fillers_by_name.insert(spec.name.clone(), id);
        Ok(Reply::Filler(id))
    }

    pub(super) fn drain_filler(
        &mut self,
        id: FillerId,
        remove: bool,
        outcome: &mut Outcome,
    ) -> Answer {
        let filler = self.fillers.get_mut(id).ok_or_else(|| not_found("filler", id))?;
        if remove {
            filler.state = FillerState::Removing;
        } else if filler.state == FillerState::Active {
            filler.state = FillerState::Draining;
        }
        for instance in filler.instances.clone() {
            self.stop(instance, StopReason::Withdrawn, outcome);
        }
        self.forget_if_gone(id);
        Ok(Reply::Done)
    }

    /// What an instance's change means for its filler.
    pub(super) fn instance_changed(&mut self, id: AllocationId, outcome: &mut Outcome) {
        let allocation = self.allocations.get(id).expect("a report was matched with it");
        let Owner::Instance { filler: filler_id, .. } = allocation.owner else { return };
        let node = allocation.tasks[0].node;
        let failed = match allocation.tasks[0].phase {
            TaskPhase::Exited { .. } => allocation.stop.is_none(),
            TaskPhase::Lost => false,
            _ => return,
        };
        let ran_ms = self.meta.now_ms - allocation.bound_ms;
        self.release_task(id, 0, outcome);
        self.forget_allocation(id);
        let now_ms = self.meta.now_ms;
        let filler = self.fillers.get_mut(filler_id).expect("its allocation names it");
        filler.instances.retain(|instance| *instance != id);
        if ran_ms >= HEALTHY_RUN_MS {
            filler.failures = 0;
        }
        if failed {
            // Seconds, doubling: a server that cannot start must not burn the node.
            filler.failures += 1;
            let backoff_ms = 1_000u64.saturating_mul(1 << (filler.failures - 1).min(16));
            filler.backoff_until_ms = now_ms + backoff_ms.min(MAX_BACKOFF_MS);
        }
        self.forget_if_gone(filler_id);
        self.advance_holds(&[node], outcome);
    }

    fn forget_if_gone(&mut self, id: FillerId) {
        let gone = self.fillers.get(id).is_some_and(|filler| {
            filler.state == FillerState::Removing && filler.instances.is_empty()
        });
        if gone && let Some(filler) = self.fillers.remove(id) {
            self.derived.fillers_by_name.remove(&filler.spec.name);
        }
    }
}

/// Whether instances of the old file would not do for the new one.
fn runs_differently(old: &FillerSpec, new: &FillerSpec) -> bool {
    old.command != new.command
        || old.env != new.env
        || old.working_dir != new.working_dir
        || old.resources != new.resources
        || old.readiness != new.readiness
        || old.tenant != new.tenant
        || old.model != new.model
}
