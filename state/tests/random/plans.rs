//! Plans: a small greedy planner whose decisions must all be accepted on the state they were
//! made on, and garbage of which none may be.

use std::collections::BTreeMap;

use rowen_state::{
    AllocationId, Cluster, Decision, FillerId, FillerState, GpuMask, GpuSlot, Job, JobId, JobState,
    Node, NodeId, Owner, Place, Plan,
};
use rowen_topology::Level;

use crate::rng::Rng;

/// What the plan being made has given away already.
struct Draft<'a> {
    cluster: &'a Cluster,
    taken: BTreeMap<NodeId, GpuMask>,
    victims: Vec<AllocationId>,
}

/// Starts, holds and instances that fit the state as it is; host claims are not looked at.
pub(crate) fn sensible(rng: &mut Rng, cluster: &Cluster) -> Plan {
    let mut draft = Draft { cluster, taken: BTreeMap::new(), victims: Vec::new() };
    let mut decisions = Vec::new();
    let evict = rng.chance(60);
    for job in cluster.queue().take(4) {
        decisions.push(
            draft
                .gang(job, evict)
                .unwrap_or_else(|| Decision::Wait { job: job.id, reason: "does not fit".into() }),
        );
    }
    for job in cluster.growing() {
        if rng.chance(60)
            && let Some(decision) = draft.growth(job)
        {
            decisions.push(decision);
        }
    }
    if rng.chance(70) {
        for filler in cluster.fillers().values().filter(|f| f.state == FillerState::Active) {
            if filler.backoff_until_ms > cluster.now_ms() {
                continue;
            }
            let missing =
                (filler.spec.max_instances as usize).saturating_sub(filler.instances.len());
            let wanted = &filler.spec.resources;
            for _ in 0..missing {
                let fits =
                    |node: &Node| wanted.gpu_model.as_ref().is_none_or(|m| *m == node.gpu_model);
                let mut nodes = cluster.nodes().values().filter(|node| fits(node));
                let Some(place) = nodes.find_map(|node| {
                    let gpus = draft.free(node).lowest(wanted.gpus)?;
                    Some(Place { node: node.id, gpus })
                }) else {
                    break;
                };
                draft.take(place);
                decisions.push(Decision::StartInstance { filler: filler.id, place });
            }
            decisions.push(Decision::Unfilled { filler: filler.id, reason: "no room".into() });
        }
    }
    Plan { based_on: cluster.applied(), decisions }
}

impl Draft<'_> {
    /// Nothing of a node that a gang has for itself.
    fn free(&self, node: &Node) -> GpuMask {
        if taken_whole(self.cluster, node, None) {
            return GpuMask::NONE;
        }
        node.free().without(self.taken.get(&node.id).copied().unwrap_or_default())
    }

    /// GPUs of the instances that are still to be had, unhealthy ones left out.
    fn reclaimable(&self, node: &Node) -> GpuMask {
        let healthy = node.mask(|slot| slot.healthy);
        let taken = self.taken.get(&node.id).copied().unwrap_or_default();
        let known: GpuMask = (0u32..)
            .zip(&node.gpus)
            .filter(|(_, slot)| slot.owner.is_some_and(|owner| self.victims.contains(&owner)))
            .map(|(ordinal, _)| ordinal)
            .collect();
        self.cluster.reclaimable(node).and(healthy).without(taken).without(known)
    }

    /// Whether nobody is on a node that may not leave it, in the state or by this plan.
    fn alone(&self, node: &Node, own: Option<AllocationId>) -> bool {
        node.owners().iter().all(|owner| Some(*owner) == own)
            && node.holders().is_empty()
            && !self.taken.contains_key(&node.id)
    }

    /// A larger attempt on what is free and what it has.
    fn growth(&mut self, job: &Job) -> Option<Decision> {
        let own = self.cluster.allocations().get(job.allocation?)?;
        if self.cluster.now_ms() < job.running_ms + job.spec.shape.grow_after_ms {
            return None;
        }
        let level = job.spec.required.unwrap_or(Level::Site);
        for domain in self.domains(level) {
            let places = self.places(job, &domain, false, Some(own.id));
            if let Some(places) = places.filter(|places| places.len() > own.tasks.len()) {
                self.keep(job, &places);
                let why = "more came free".into();
                return Some(Decision::Grow { job: job.id, places, victims: Vec::new(), why });
            }
        }
        None
    }

    /// What a decision takes: whole nodes where the gang wants that.
    fn keep(&mut self, job: &Job, places: &[Place]) {
        for place in places {
            let whole = Place { gpus: GpuMask(u64::MAX), ..*place };
            self.take(if job.spec.shape.nodes.exclusive { whole } else { *place });
        }
    }

    fn take(&mut self, place: Place) {
        let taken = self.taken.entry(place.node).or_default();
        *taken = taken.or(place.gpus);
    }

    /// The first domain that takes the whole gang, on free GPUs or else by evictions.
    fn gang(&mut self, job: &Job, evict: bool) -> Option<Decision> {
        let level = job.spec.required.unwrap_or(Level::Site);
        let passes: &[bool] = if evict { &[false, true] } else { &[false] };
        for evict in passes {
            for domain in self.domains(level) {
                if let Some(places) = self.places(job, &domain, *evict, None) {
                    return Some(self.decide(job, places));
                }
            }
        }
        None
    }

    fn domains(&self, level: Level) -> Vec<Vec<NodeId>> {
        let mut domains: BTreeMap<u32, Vec<NodeId>> = BTreeMap::new();
        for node in self.cluster.nodes().values() {
            let pos = self.cluster.pos_of(node.id).expect("every node has a position");
            let domain = self.cluster.index().domain_of(pos, level);
            domains.entry(domain.ordinal).or_default().push(node.id);
        }
        domains.into_values().collect()
    }

    /// `own`: the attempt that gives way to this one.
    fn places(
        &self,
        job: &Job,
        domain: &[NodeId],
        evict: bool,
        own: Option<AllocationId>,
    ) -> Option<Vec<Place>> {
        let wanted = &job.spec.resources;
        let shape = &job.spec.shape;
        let mut places = Vec::new();
        for id in domain {
            let node = self.cluster.nodes().get(*id).expect("listed above");
            if wanted.gpu_model.as_ref().is_some_and(|model| *model != node.gpu_model) {
                continue;
            }
            let models = &shape.nodes.gpu_models;
            if !models.is_empty() && !models.contains(&node.gpu_model) {
                continue;
            }
            if shape.nodes.exclusive && (evict || !self.alone(node, own)) {
                continue;
            }
            let mut usable = self.free(node);
            if let Some(own) = own.filter(|_| node.schedulable()) {
                let taken = self.taken.get(&node.id).copied().unwrap_or_default();
                let theirs =
                    |slot: &GpuSlot| slot.healthy && slot.held.is_none() && slot.owner == Some(own);
                usable = usable.or(node.mask(theirs).without(taken));
            }
            if evict && !taken_whole(self.cluster, node, None) {
                usable = usable.or(self.reclaimable(node));
            }
            while places.len() < job.spec.workers as usize
                && let Some(gpus) = usable.lowest(wanted.gpus)
            {
                usable = usable.without(gpus);
                places.push(Place { node: *id, gpus });
            }
        }
        let sizes = (1..=places.len() as u32).rev();
        let size = { sizes }.find(|size| shape.admits_size(job.spec.workers, *size))?;
        places.truncate(size as usize);
        has_form(self.cluster, job, &places).then_some(places)
    }

    fn decide(&mut self, job: &Job, places: Vec<Place>) -> Decision {
        let mut victims: Vec<_> =
            places.iter().flat_map(|place| owners(self.cluster, *place)).collect();
        victims.sort_unstable();
        victims.dedup();
        self.keep(job, &places);
        let job = job.id;
        self.victims.extend(&victims);
        if victims.is_empty() {
            return Decision::Start { job, places, why: "fits".into() };
        }
        Decision::Hold { job, places, victims, why: "fits after evictions".into() }
    }
}

/// Whether a gang that wants it for itself has the node, or holds some of it.
fn taken_whole(cluster: &Cluster, node: &Node, but: Option<AllocationId>) -> bool {
    let exclusive =
        |job: &JobId| cluster.jobs().get(*job).is_some_and(|job| job.spec.shape.nodes.exclusive);
    let owned = node.owners().into_iter().filter(|owner| Some(*owner) != but).any(|owner| {
        match cluster.allocations().get(owner).expect("an owner is there").owner {
            Owner::Gang { job, .. } => exclusive(&job),
            Owner::Instance { .. } => false,
        }
    });
    owned || node.holders().iter().any(exclusive)
}

/// Whether groups that must be are together, and no domain has too many.
fn has_form(cluster: &Cluster, job: &Job, places: &[Place]) -> bool {
    let domain = |place: &Place, level: Level| {
        cluster.pos_of(place.node).map(|pos| cluster.index().domain_of(pos, level))
    };
    let groups = job.spec.shape.groups.iter().filter(|group| !group.preferred);
    let together = groups.into_iter().all(|group| {
        places.chunks(group.workers as usize).all(|chunk| {
            chunk.iter().all(|p| domain(p, group.level) == domain(&chunk[0], group.level))
        })
    });
    let few = job.spec.shape.spread.iter().all(|spread| {
        places.iter().all(|place| {
            let same = |other: &&Place| domain(other, spread.level) == domain(place, spread.level);
            places.iter().filter(same).count() <= spread.workers as usize
        })
    });
    together && few
}

fn owners(cluster: &Cluster, place: Place) -> Vec<AllocationId> {
    let node = cluster.nodes().get(place.node).expect("a place names a node");
    place.gpus.iter().filter_map(|ordinal| node.gpus.get(ordinal as usize)?.owner).collect()
}

/// A hold that evicts a gang, where queues allow it.
pub(crate) fn taking_a_gang(cluster: &Cluster) -> Option<Plan> {
    let single = |job: &&Job| {
        let plain = job.spec.shape.is_plain() && job.spec.resources.cpus == 0;
        plain && job.spec.workers == 1
    };
    let jobs = cluster.queue().filter(single).filter(|job| job.spec.resources.memory_mib == 0);
    let decision = jobs.flat_map(|job| {
        let victims = cluster.allocations().values();
        victims.filter_map(move |victim| {
            let gpus = job.spec.resources.gpus;
            cluster.check_takes(&job.spec, gpus.into(), &[victim.id]).ok()?;
            let places = victim.tasks.iter().filter_map(|task| {
                let node = cluster.nodes().get(task.node).filter(|node| node.schedulable())?;
                let model = job.spec.resources.gpu_model.as_ref();
                let usable = node.mask(|slot| slot.healthy && slot.held.is_none());
                let gpus = task.gpus.and(usable).lowest(gpus)?;
                let fits = model.is_none_or(|model| *model == node.gpu_model);
                fits.then_some(Place { node: node.id, gpus })
            });
            let place = places.into_iter().next()?;
            let more = cluster.gpus_of(&[place]);
            let line = cluster.queue_line(&job.spec.queue);
            let within = line.iter().all(|queue| queue.limit_passed(&more).is_none());
            let victims = vec![victim.id];
            let why = String::from("a guarantee");
            within.then(|| Decision::Hold { job: job.id, places: vec![place], victims, why })
        })
    });
    let decisions = vec![decision.into_iter().next()?];
    Some(Plan { based_on: cluster.applied(), decisions })
}

/// One decision that cannot be carried out, and the name of what is wrong with it.
pub(crate) fn garbage(rng: &mut Rng, cluster: &Cluster) -> Option<(&'static str, Decision)> {
    let why = String::from("garbage");
    let queued: Vec<_> = cluster.queue().cloned().collect();
    let start = |job: &Job, places| Decision::Start { job: job.id, places, why: why.clone() };
    let nodes: Vec<_> = cluster.nodes().values().cloned().collect();
    let node = rng.pick(&nodes)?;
    let job = rng.pick(&queued);
    let free_place = |job: &Job| {
        let fits = nodes.iter().find_map(|node| {
            Some(Place { node: node.id, gpus: node.free().lowest(job.spec.resources.gpus)? })
        });
        fits.unwrap_or(Place { node: node.id, gpus: GpuMask::first(job.spec.resources.gpus) })
    };
    Some(match rng.below(14) {
        0 => {
            let job = queued.iter().find(|job| job.spec.workers > 1)?;
            let places = vec![free_place(job); job.spec.workers as usize];
            ("overlapping places", start(job, places))
        }
        1 => {
            let job = job?;
            let smaller = job.spec.shape.min_workers == 0 && rng.chance(50);
            let count = job.spec.workers as usize + 1 - 2 * usize::from(smaller);
            ("wrong count of places", start(&job, vec![free_place(&job); count]))
        }
        2 => {
            let job = job?;
            let gpus = GpuMask::first(job.spec.resources.gpus + 1);
            let places = vec![Place { node: node.id, gpus }; job.spec.workers as usize];
            ("wrong size of a place", start(&job, places))
        }
        3 => {
            let job = job?;
            let gpus = GpuMask(GpuMask::first(job.spec.resources.gpus).0 << 50);
            let places = vec![Place { node: node.id, gpus }; job.spec.workers as usize];
            ("GPUs that do not exist", start(&job, places))
        }
        4 => {
            let job = job?;
            let place = Place { node: NodeId(9_999), ..free_place(&job) };
            ("a node that does not exist", start(&job, vec![place; job.spec.workers as usize]))
        }
        5 => {
            let jobs = cluster.jobs().values().filter(|job| job.state != JobState::Queued);
            let job = rng.pick(&jobs.cloned().collect::<Vec<_>>());
            let job = job.map_or(JobId(9_999), |job| job.id);
            let place = Place { node: node.id, gpus: GpuMask::one(0) };
            ("a job that does not wait", Decision::Start { job, places: vec![place], why })
        }
        6 => {
            let job = job?;
            let taken = nodes.iter().find_map(|node| {
                let taken = node.mask(|slot| slot.owner.is_some() || slot.held.is_some());
                Some(Place { node: node.id, gpus: taken.lowest(job.spec.resources.gpus)? })
            })?;
            ("GPUs that are taken", start(&job, vec![taken; job.spec.workers as usize]))
        }
        7 => {
            let job = job.filter(|job| job.spec.workers == 1)?;
            let places = vec![free_place(&job)];
            ("a hold without victims", Decision::Hold { job: job.id, places, victims: vec![], why })
        }
        8 => {
            let job = job.filter(|_| cluster.queues().is_empty())?;
            let gangs = cluster.allocations().values().find_map(|allocation| {
                matches!(allocation.owner, Owner::Gang { .. })
                    .then_some((allocation.id, allocation.tasks[0].clone()))
            });
            let (victim, place) = match gangs {
                Some((id, task)) => (id, Place { node: task.node, gpus: task.gpus }),
                None => (AllocationId(9_999), free_place(&job)),
            };
            let places = vec![place; job.spec.workers as usize];
            (
                "a victim that may not be evicted",
                Decision::Hold { job: job.id, places, victims: vec![victim], why },
            )
        }
        9 => {
            let job = job.filter(|job| job.spec.workers == 1)?;
            let place = free_place(&job);
            let innocent = cluster.allocations().values().find(|allocation| {
                matches!(allocation.owner, Owner::Instance { .. })
                    && allocation.tasks[0].node != place.node
            })?;
            let victims = vec![innocent.id];
            (
                "a victim on another node",
                Decision::Hold { job: job.id, places: vec![place], victims, why },
            )
        }
        11 => {
            let job =
                queued.iter().find(|job| job.spec.workers == 2 && job.spec.required.is_some())?;
            let places: Vec<_> = nodes
                .iter()
                .filter_map(|node| {
                    Some(Place {
                        node: node.id,
                        gpus: node.free().lowest(job.spec.resources.gpus)?,
                    })
                })
                .collect();
            let domain = |place: &Place| {
                let pos = cluster.pos_of(place.node)?;
                Some(cluster.index().domain_of(pos, job.spec.required?))
            };
            let first = *places.first()?;
            let other = *places.iter().find(|place| domain(place) != domain(&first))?;
            ("places in two domains", start(job, vec![first, other]))
        }
        12 if cluster.meta().version >= 2 => {
            // Of one that does not run, that has all it asked for, or that would get no more.
            let jobs: Vec<_> = cluster.jobs().values().cloned().collect();
            let job = rng.pick(&jobs)?;
            let own = job.allocation.and_then(|own| cluster.allocations().get(own));
            let tasks = own.map_or(&[][..], |own| &own.tasks).iter();
            let mut places: Vec<_> =
                tasks.map(|task| Place { node: task.node, gpus: task.gpus }).collect();
            if places.is_empty() {
                places.push(free_place(&job));
            }
            let victims = Vec::new();
            ("growth that may not be", Decision::Grow { job: job.id, places, victims, why })
        }
        10 => {
            let job = job?;
            let victim = cluster.allocations().values().find(|allocation| {
                allocation.stop.is_none()
                    && matches!(allocation.owner, Owner::Instance { .. })
                    && allocation.resources.gpus == job.spec.resources.gpus
            })?;
            let task = &victim.tasks[0];
            let places =
                vec![Place { node: task.node, gpus: task.gpus }; job.spec.workers as usize];
            let victims = vec![victim.id; 2];
            ("a victim named twice", Decision::Hold { job: job.id, places, victims, why })
        }
        _ => {
            let filler = cluster.fillers().values().find(|filler| {
                filler.state != FillerState::Active
                    || filler.instances.len() >= filler.spec.max_instances as usize
            });
            let filler = filler.map_or(FillerId(9_999), |filler| filler.id);
            let place =
                Place { node: node.id, gpus: node.free().lowest(1).unwrap_or(GpuMask::one(0)) };
            ("an instance that may not start", Decision::StartInstance { filler, place })
        }
    })
}
