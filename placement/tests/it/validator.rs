//! A slow, obvious check of a plan against the state that it was made for: decision by decision,
//! GPU by GPU. Shares nothing with apply or with the planner.

use std::collections::{BTreeMap, BTreeSet};

use rowen_state::{
    AllocationId, Cluster, Decision, FillerId, FillerState, GpuMask, JobId, JobState, NodeId,
    Owner, Place, Plan, Resources,
};
use rowen_topology::Level;

/// Panics, and says why, where a plan does what it must not.
pub(crate) fn check(cluster: &Cluster, plan: &Plan) {
    let mut seen = Seen::new(cluster);
    for decision in &plan.decisions {
        seen.decision(decision);
    }
}

/// What the plan has given away up to here.
struct Seen<'a> {
    cluster: &'a Cluster,
    jobs: BTreeSet<JobId>,
    promised: BTreeMap<NodeId, GpuMask>,
    /// Cores and memory.
    claimed: BTreeMap<NodeId, (u64, u64)>,
    victims: BTreeSet<AllocationId>,
    /// By node: a gang of this plan, and whether it wants the node for itself.
    alone: BTreeMap<NodeId, (JobId, bool)>,
    instances: BTreeMap<FillerId, u32>,
}

impl<'a> Seen<'a> {
    fn new(cluster: &'a Cluster) -> Seen<'a> {
        Seen {
            cluster,
            jobs: BTreeSet::new(),
            promised: BTreeMap::new(),
            claimed: BTreeMap::new(),
            victims: BTreeSet::new(),
            alone: BTreeMap::new(),
            instances: BTreeMap::new(),
        }
    }

    fn decision(&mut self, decision: &Decision) {
        match decision {
            Decision::Start { job, places, .. } => self.gang(*job, places, &[]),
            Decision::Hold { job, places, victims, .. } => {
                assert!(!victims.is_empty(), "{job} holds for nobody");
                self.gang(*job, places, victims);
            }
            Decision::Grow { job, places, victims, .. } => self.growth(*job, places, victims),
            Decision::StartInstance { filler, place } => self.instance(*filler, *place),
            Decision::Wait { job, reason } => {
                assert!(!reason.is_empty(), "{job} waits for no reason");
                self.once(*job);
            }
            Decision::Unfilled { filler, .. } => {
                assert!(self.cluster.fillers().get(*filler).is_some(), "{filler} is unknown");
            }
        }
    }

    fn once(&mut self, job: JobId) {
        let state = self.cluster.jobs().get(job).map(|job| job.state);
        assert_eq!(state, Some(JobState::Queued), "{job} does not wait");
        assert!(self.jobs.insert(job), "{job} is decided twice");
    }

    /// The present attempt leaves as victims do.
    fn growth(&mut self, job: JobId, places: &[Place], victims: &[AllocationId]) {
        let known = self.cluster.jobs().get(job).expect("the job exists");
        assert_eq!(known.state, JobState::Running, "{job} does not run");
        assert!(self.jobs.insert(job), "{job} is decided twice");
        let own = known.allocation.expect("a running job has GPUs");
        let has = self.cluster.allocations().get(own).unwrap().tasks.len();
        assert!(places.len() > has, "{job} has {has} workers and would get {}", places.len());
        let after_ms = known.running_ms + known.spec.shape.grow_after_ms;
        assert!(self.cluster.now_ms() >= after_ms, "{job} has not run long enough");
        self.victims_leave(job, places, victims);
        self.stands(job, places, &[victims, &[own]].concat());
    }

    fn gang(&mut self, job: JobId, places: &[Place], victims: &[AllocationId]) {
        self.once(job);
        self.victims_leave(job, places, victims);
        self.stands(job, places, victims);
    }

    /// Whether the places are such as the job asks for, once `gone` are gone.
    fn stands(&mut self, job: JobId, places: &[Place], gone: &[AllocationId]) {
        let spec = self.cluster.jobs().get(job).unwrap().spec.clone();
        let shape = &spec.shape;
        let size = places.len() as u32;
        let least = if shape.min_workers > 0 { shape.min_workers } else { spec.workers };
        assert!((least..=spec.workers).contains(&size), "{job}: {size} workers");
        let in_one = |level: Level, places: &[Place]| {
            let domain = |place: &Place| {
                self.cluster.index().domain_of(self.cluster.pos_of(place.node).unwrap(), level)
            };
            let domains: BTreeSet<_> = places.iter().map(domain).collect();
            assert_eq!(domains.len(), 1, "{job} must be inside one {level}: {domains:?}");
        };
        in_one(spec.required.unwrap_or(Level::Site), places);
        for group in shape.groups.iter().filter(|group| !group.preferred) {
            assert_eq!(size % group.workers, 0, "{job}: whole groups");
            places.chunks(group.workers as usize).for_each(|part| in_one(group.level, part));
        }
        for spread in &shape.spread {
            let mut counts: BTreeMap<_, u32> = BTreeMap::new();
            for place in places {
                let pos = self.cluster.pos_of(place.node).unwrap();
                *counts.entry(self.cluster.index().domain_of(pos, spread.level)).or_default() += 1;
            }
            assert!(counts.values().all(|count| *count <= spread.workers), "{job}: {counts:?}");
        }
        for place in places {
            let node = self.cluster.nodes().get(place.node).unwrap();
            let record = self.cluster.fabric().nodes.iter().find(|one| one.name == node.name);
            let labels = &record.unwrap().labels;
            assert!(shape.nodes.admits(&node.gpu_model, labels), "{job} on {}", node.name);
            if shape.nodes.exclusive {
                let others: Vec<_> =
                    node.owners().into_iter().filter(|id| !gone.contains(id)).collect();
                assert!(others.is_empty() && node.holders().is_empty(), "{job} beside {others:?}");
            }
            let alone = self.alone.insert(node.id, (job, shape.nodes.exclusive));
            let same = alone
                .is_none_or(|(other, whole)| other == job || (!whole && !shape.nodes.exclusive));
            assert!(same, "{job} on {}, which {alone:?} has for itself", node.name);
        }
        places.iter().for_each(|place| self.place(*place, &spec.resources, gone));
    }

    fn victims_leave(&mut self, job: JobId, places: &[Place], victims: &[AllocationId]) {
        let nodes: BTreeSet<NodeId> = places.iter().map(|place| place.node).collect();
        for victim in victims {
            let allocation = self.cluster.allocations().get(*victim).expect("a victim exists");
            assert!(allocation.stop.is_none(), "{victim} leaves already");
            assert!(self.victims.insert(*victim), "{victim} leaves twice");
            let beside = allocation.tasks.iter().any(|task| nodes.contains(&task.node));
            assert!(beside, "{victim} leaves, but not for {job}");
        }
    }

    fn instance(&mut self, filler: FillerId, place: Place) {
        let known = self.cluster.fillers().get(filler).expect("the filler exists");
        assert_eq!(known.state, FillerState::Active, "{filler} may not start");
        assert!(known.backoff_until_ms <= self.cluster.now_ms(), "{filler} pauses");
        let running = known.instances.len() as u32;
        let instances = self.instances.entry(filler).or_insert(running);
        *instances += 1;
        assert!(*instances <= known.spec.max_instances, "{filler} has {instances} instances");
        let resources = known.spec.resources.clone();
        self.place(place, &resources, &[]);
    }

    /// One worker's GPUs, cores and memory.
    fn place(&mut self, place: Place, resources: &Resources, victims: &[AllocationId]) {
        let node = self.cluster.nodes().get(place.node).expect("the node exists");
        let taken_whole = node.owners().into_iter().filter(|id| !victims.contains(id)).any(|id| {
            match self.cluster.allocations().get(id).unwrap().owner {
                Owner::Gang { job, .. } => {
                    self.cluster.jobs().get(job).unwrap().spec.shape.nodes.exclusive
                }
                Owner::Instance { .. } => false,
            }
        });
        assert!(!taken_whole, "{} is a gang's alone", node.name);
        assert!(node.schedulable(), "{} takes nothing new", node.name);
        assert!(resources.gpu_model.as_ref().is_none_or(|model| *model == node.gpu_model));
        assert_eq!(place.gpus.count(), resources.gpus, "{:?} of {}", place.gpus, node.name);
        let promised = self.promised.entry(node.id).or_default();
        for gpu in place.gpus.iter() {
            let slot = &node.gpus[gpu as usize];
            let at = format!("GPU {gpu} of {}", node.name);
            assert!(slot.healthy, "{at} is sick");
            assert_eq!(slot.held, None, "{at} is held");
            assert!(!promised.contains(gpu), "{at} is given twice");
            assert!(slot.owner.is_none_or(|owner| victims.contains(&owner)), "{at} is owned");
        }
        *promised = promised.or(place.gpus);

        let claimed = self.claimed.entry(node.id).or_default();
        *claimed = (claimed.0 + u64::from(resources.cpus), claimed.1 + resources.memory_mib);
        let (mut cpus, mut memory_mib) = *claimed;
        // Who stays, with the GPUs that each has here: so many workers claim so many times.
        let mut here: BTreeMap<(u64, bool), (&Resources, u32)> = BTreeMap::new();
        for slot in &node.gpus {
            let owner = slot.owner.filter(|owner| !victims.contains(owner));
            if let Some(owner) = owner.and_then(|id| self.cluster.allocations().get(id)) {
                here.entry((owner.id.0, false)).or_insert((&owner.resources, 0)).1 += 1;
            }
            if let Some(job) = slot.held.and_then(|id| self.cluster.jobs().get(id)) {
                here.entry((job.id.0, true)).or_insert((&job.spec.resources, 0)).1 += 1;
            }
        }
        for (claim, gpus) in here.values() {
            let workers = gpus / claim.gpus;
            cpus += u64::from(claim.cpus * workers);
            memory_mib += claim.memory_mib * u64::from(workers);
        }
        let fits = |claim: u64, all: u64, total: u64| claim == 0 || total == 0 || all <= total;
        assert!(fits(resources.cpus.into(), cpus, node.cpus.into()), "cores of {}", node.name);
        assert!(fits(resources.memory_mib, memory_mib, node.memory_mib), "memory of {}", node.name);
    }
}
