//! The re-check: does a decision still fit the state as it is now?

use std::collections::BTreeMap;

use rowen_planted::{Bug, hash_order, planted};
use rowen_topology::Level;

use crate::{
    AllocationId, Cluster, GpuMask, JobSpec, JobState, NodeId, Outcome, Owner, Place, Resources,
};

/// Why a decision no longer fits; for the log of the planner.
pub(super) type Misfit = String;

impl Cluster {
    /// Whether a gang may have `places`, once `victims` are gone.
    pub(super) fn check_gang(
        &self,
        spec: &JobSpec,
        places: &[Place],
        victims: &[AllocationId],
    ) -> Result<(), Misfit> {
        let count = places.len() as u32;
        if !spec.shape.admits_size(spec.workers, count) {
            return Err(format!("{count} places for {} workers", spec.workers));
        }
        self.check_places(&spec.resources, places, victims)?;
        if let Some(level) = spec.required {
            self.check_level(level, places)?;
        }
        if spec.shape.is_plain() { Ok(()) } else { self.check_shape(&spec.shape, places, victims) }
    }

    /// Whether every place is a different one, of the right size and model, and free
    /// but for `victims`, which are sorted.
    pub(super) fn check_places(
        &self,
        claim: &Resources,
        places: &[Place],
        victims: &[AllocationId],
    ) -> Result<(), Misfit> {
        if planted(Bug::SkipRecheck) {
            return Ok(());
        }
        let mut sorted = places.to_vec();
        sorted.sort_unstable_by_key(|place| (place.node, place.gpus));
        for on_node in sorted.chunk_by(|a, b| a.node == b.node) {
            let id = on_node[0].node;
            let node = self.nodes.get(id).ok_or_else(|| format!("there is no node {id}"))?;
            if claim.gpu_model.as_ref().is_some_and(|model| *model != node.gpu_model) {
                return Err(format!("{} has {}", node.name, node.gpu_model));
            }
            if self.is_taken_whole(node, victims) {
                return Err(format!("a gang has all of {}", node.name));
            }
            let victims_on_node: Vec<_> =
                node.owners().into_iter().filter(|o| victims.binary_search(o).is_ok()).collect();
            let evictable = node.mask(|slot| {
                slot.healthy
                    && slot.held.is_none()
                    && slot.owner.is_some_and(|owner| victims_on_node.contains(&owner))
            });
            let mut usable =
                node.free().or(if node.schedulable() { evictable } else { GpuMask::NONE });
            for place in on_node {
                if place.gpus.count() != claim.gpus || !place.gpus.without(usable).is_empty() {
                    return Err(format!(
                        "GPUs {:?} of {} are not to be had",
                        place.gpus, node.name
                    ));
                }
                usable = usable.without(place.gpus);
            }
            self.check_host(id, claim, on_node.len(), &victims_on_node)?;
        }
        Ok(())
    }

    /// Whether a node's cores and memory hold `count` more claims, once `victims` are gone.
    fn check_host(
        &self,
        id: NodeId,
        claim: &Resources,
        count: usize,
        victims: &[AllocationId],
    ) -> Result<(), Misfit> {
        let node = self.nodes.get(id).expect("checked by the caller");
        let (cpus, memory) = self.claimed(node);
        let freed = victims.iter().filter_map(|id| self.allocations.get(*id));
        let (cpus, memory) = freed.fold((cpus, memory), |(cpus, memory), victim| {
            let (tasks, claim) = (self.tasks_on(node, victim), &victim.resources);
            (
                cpus.saturating_sub(claim.cpus * tasks),
                memory.saturating_sub(claim.memory_mib * u64::from(tasks)),
            )
        });
        let count = count as u64;
        // A claim of nothing fits even a node that is over-claimed while victims leave it.
        if claim.cpus > 0
            && node.cpus > 0
            && u64::from(cpus) + count * u64::from(claim.cpus) > u64::from(node.cpus)
        {
            return Err(format!("{} lacks cores", node.name));
        }
        if claim.memory_mib > 0
            && node.memory_mib > 0
            && memory + count * claim.memory_mib > node.memory_mib
        {
            return Err(format!("{} lacks memory", node.name));
        }
        Ok(())
    }

    pub(super) fn check_level(&self, level: Level, places: &[Place]) -> Result<(), Misfit> {
        let mut domains = places.iter().map(|place| self.domain_of(place, level));
        let first = domains.next().flatten();
        if first.is_none() || domains.any(|domain| domain != first) {
            return Err(format!("the places span more than one {level}"));
        }
        Ok(())
    }

    /// Starts every gang whose hold on one of `nodes` has just become clear. Called in the
    /// same apply that frees the GPUs, so there is nothing to steal and no second plan.
    pub(super) fn advance_holds(&mut self, nodes: &[NodeId], outcome: &mut Outcome) {
        let mut holders: Vec<_> = nodes
            .iter()
            .filter_map(|id| self.nodes.get(*id))
            .flat_map(crate::Node::holders)
            .collect();
        holders.sort_unstable();
        holders.dedup();
        if planted(Bug::HashOrder) {
            hash_order(&mut holders);
        }
        for id in holders {
            let job = self.jobs.get(id).expect("a holder is a live job");
            let Some(hold) = &job.hold else { continue };
            let gone = hold.victims.iter().all(|victim| !self.allocations.contains(*victim));
            let clear = gone && hold.places.iter().all(|place| self.unowned(place));
            if clear {
                self.bind_hold(id, outcome);
            }
        }
    }

    fn unowned(&self, place: &Place) -> bool {
        self.nodes
            .get(place.node)
            .is_some_and(|node| node.mask(|slot| slot.owner.is_some()).and(place.gpus).is_empty())
    }

    fn bind_hold(&mut self, id: crate::JobId, outcome: &mut Outcome) {
        let job = self.jobs.get(id).expect("checked by the caller");
        debug_assert_eq!(job.state, JobState::Holding);
        let hold = job.hold.clone().expect("checked by the caller");
        let unfit = hold.places.iter().find_map(|place| {
            let node = self.nodes.get(place.node)?;
            let sick = place.gpus.without(node.mask(|slot| slot.healthy));
            (!node.schedulable() || !sick.is_empty()).then(|| node.name.clone())
        });
        if let Some(node) = unfit {
            self.release_hold(id, &format!("{node} can no longer take it"), outcome);
            return;
        }
        let waited_ms = self.meta.now_ms - hold.since_ms;
        let why = format!("its GPUs are clear after {waited_ms} ms (plan at index {})", hold.index);
        self.bind_gang(id, &hold.places, &why, outcome);
    }

    /// Whether an allocation may be evicted for places on the `wanted` nodes: one there that is not
    /// on its way out. Which gangs may be, [`Cluster::check_takes`] says. It need not have GPUs among them: a gang may lack cores alone.
    pub(super) fn check_victim(
        &self,
        id: AllocationId,
        wanted: &BTreeMap<NodeId, GpuMask>,
    ) -> Result<(), Misfit> {
        let victim = self.allocations.get(id).ok_or_else(|| format!("allocation {id} is gone"))?;
        let gang = matches!(victim.owner, Owner::Gang { .. });
        if (gang && self.meta.version < 2) || victim.stop.is_some() {
            return Err(format!("allocation {id} cannot be evicted"));
        }
        let in_the_way = victim.tasks.iter().any(|task| wanted.contains_key(&task.node));
        if in_the_way { Ok(()) } else { Err(format!("allocation {id} is not in the way")) }
    }
}
