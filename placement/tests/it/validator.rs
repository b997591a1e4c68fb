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

    fn gang(&mut self, job: JobId, places: &[Place], victims: &[AllocationId]) {
        self.once(job);
        let spec = self.cluster.jobs().get(job).unwrap().spec.clone();
        assert_eq!(places.len(), spec.workers as usize, "{job}: a place a worker");
        let level = spec.required.unwrap_or(Level::Site);
        let domain = |place: &Place| {
            self.cluster.index().domain_of(self.cluster.pos_of(place.node).unwrap(), level)
        };
        let domains: BTreeSet<_> = places.iter().map(domain).collect();
        assert_eq!(domains.len(), 1, "{job} must be inside one {level}: {domains:?}");
        let nodes: BTreeSet<NodeId> = places.iter().map(|place| place.node).collect();
        for victim in victims {
            let allocation = self.cluster.allocations().get(*victim).expect("a victim exists");
            assert!(matches!(allocation.owner, Owner::Instance { .. }), "{victim} is a gang");
            assert!(allocation.stop.is_none(), "{victim} leaves already");
            assert!(self.victims.insert(*victim), "{victim} leaves twice");
            let beside = allocation.tasks.iter().any(|task| nodes.contains(&task.node));
            assert!(beside, "{victim} leaves, but not for {job}");
        }
        places.iter().for_each(|place| self.place(*place, &spec.resources, victims));
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
