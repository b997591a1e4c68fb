//! The whole replicated state, and the small moves that commands are made of.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use imbl::{OrdMap, OrdSet};
use rowen_planted::{Bug, planted};
use rowen_topology::{FabricRecord, FlatIndex, Impaired, NodePos, Offers};
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    Allocation, AllocationId, Effect, Epoch, Filler, FillerId, GpuMask, InForce, Job, JobId,
    JobState, Node, NodeId, Outcome, Owner, Place, Queue, QueueId, Record, Replica, ReplicaId,
    StopReason, Table,
    codec::{self, READS_VERSION, Row, Stored},
    health::{self, Health, Part, Parts},
    ledger::UsageKey,
    requests::Requests,
    rooms::{self, Rooms, Rows},
    v1::MetaV1,
};

/// Ended jobs kept in the state; older ones are in the archive.
pub(crate) const ENDED_JOBS: usize = 10_000;
/// Jobs that may wait or run at once.
pub(crate) const LIVE_JOBS: usize = 100_000;
/// Longest text kept of what somebody said: one row must not outgrow the archive's limit.
const TEXT_BYTES: usize = 512;
/// What every log begins with: the format of the first release.
const FIRST_VERSION: u32 = 1;
/// Fillers at once.
pub(crate) const FILLERS: usize = 4_096;

/// Counters and clocks; one row of the state hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Meta {
    /// Rises at every restore from backup.
    pub incarnation: u64,
    /// Index of the last applied entry.
    pub applied: u64,
    /// The state's clock, unix time.
    pub now_ms: u64,
    /// The cluster version: what every replica can read. Entries, snapshots, archive lines and the
    /// state hash are written so, and what apply does may depend on it. Only rises, one at a time.
    pub version: u32,
    /// Evictions ever.
    pub evictions: u64,
    /// Time of GPUs that left the fabric, in the order of [`crate::Class::ALL`].
    pub retired_ms: [u64; 4],
    /// Running digest of the archive's records. From version 2 on it grows by [`record_digest`] of
    /// each, so that any stretch of the archive can be held against it; before, it is a chain.
    pub archive_digest: u128,
    pub(crate) last_job: u64,
    pub(crate) last_filler: u64,
    pub(crate) last_allocation: u64,
    pub(crate) last_node: u32,
    /// The highest replica id given so far.
    pub last_replica: u64,
    /// From version 2 on, once it was set: before, each replica goes by its own configuration.
    pub timing: Option<InForce>,
    pub(crate) last_queue: u64,
}

/// What a line of the archive adds to the digest. No key comes twice.
pub fn record_digest(key: &[u8], value: &[u8]) -> u128 {
    let mut bytes = Vec::with_capacity(key.len() + value.len() + 16);
    codec::canonical(&(key, value), &mut bytes);
    xxh3_128(&bytes)
}

/// Everything that is true. A clone is cheap: maps are persistent and share
/// what does not change; the flat index is a few hundred kilobytes at most.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub(crate) meta: Meta,
    pub(crate) fabric: Arc<FabricRecord>,
    pub(crate) nodes: Table<NodeId, Node>,
    pub(crate) jobs: Table<JobId, Job>,
    pub(crate) fillers: Table<FillerId, Filler>,
    pub(crate) allocations: Table<AllocationId, Allocation>,
    pub(crate) replicas: Table<ReplicaId, Replica>,
    pub(crate) queues: Table<QueueId, Queue>,
    pub(crate) usage: OrdMap<UsageKey, u64>,
    pub(crate) requests: Requests,
    /// Faulty GPUs and links. From version 2 on; empty before.
    pub(crate) health: Parts,
    pub(crate) derived: Derived,
}

/// What follows from the rest; in neither hash nor snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Derived {
    pub(crate) index: FlatIndex,
    /// What the node at each dense position has for new work.
    pub(crate) rooms: Rooms,
    pub(crate) pos_of: OrdMap<NodeId, NodePos>,
    pub(crate) by_name: OrdMap<String, NodeId>,
    pub(crate) fillers_by_name: OrdMap<String, FillerId>,
    pub(crate) queues_by_name: OrdMap<String, QueueId>,
    /// Queued jobs, next first.
    pub(crate) queue: OrdSet<(Reverse<u32>, JobId)>,
    /// Ended jobs, oldest first.
    pub(crate) ended: OrdSet<(u64, JobId)>,
    /// Jobs and allocations with something that a tick may end.
    pub(crate) timed: OrdSet<JobId>,
    /// Running jobs with fewer workers than they asked for, that may grow.
    pub(crate) growing: OrdSet<JobId>,
    /// Live jobs that want their nodes for themselves.
    pub(crate) exclusive: OrdSet<JobId>,
    /// Allocations that are being taken back.
    pub(crate) stopping: OrdSet<AllocationId>,
    /// Hash of the fabric and digest of usage lines, brought up to date with them.
    pub(crate) fabric_hash: u128,
    pub(crate) usage_digest: u128,
    /// Nodes that faulty links slow down, by position.
    pub(crate) impaired: Arc<Vec<Impaired>>,
}

impl Default for Cluster {
    fn default() -> Self {
        Cluster::new(1)
    }
}

impl Cluster {
    /// An empty cluster.
    pub fn new(incarnation: u64) -> Self {
        let fabric = FabricRecord::default();
        Cluster {
            meta: Meta {
                incarnation,
                applied: 0,
                now_ms: 0,
                version: FIRST_VERSION,
                evictions: 0,
                retired_ms: [0; 4],
                archive_digest: 0,
                last_job: 0,
                last_filler: 0,
                last_allocation: 0,
                last_node: 0,
                last_replica: 0,
                timing: None,
                last_queue: 0,
            },
            nodes: Table::new(1),
            jobs: Table::new(2),
            fillers: Table::new(3),
            allocations: Table::new(4),
            replicas: Table::new(6),
            queues: Table::new(7),
            usage: OrdMap::new(),
            requests: Requests::default(),
            health: Parts::default(),
            derived: Derived::empty(&fabric, FIRST_VERSION),
            fabric: Arc::new(fabric),
        }
    }

    /// An empty cluster that has risen to the newest version, for worlds in which no older build
    /// ever was. A log begins with [`Cluster::new`].
    pub fn newest() -> Self {
        let mut cluster = Cluster::new(1);
        (FIRST_VERSION + 1..=READS_VERSION).for_each(|version| cluster.rise(version));
        cluster
    }

    /// Counters and clocks.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The state's clock, unix time.
    pub fn now_ms(&self) -> u64 {
        self.meta.now_ms
    }

    /// Index of the last applied entry.
    pub fn applied(&self) -> u64 {
        self.meta.applied
    }

    /// The fabric as its operator gave it.
    pub fn fabric(&self) -> &Arc<FabricRecord> {
        &self.fabric
    }

    /// Free and reclaimable GPUs on every level. Holds the node at each position of [`Cluster::node_at`].
    pub fn index(&self) -> &FlatIndex {
        &self.derived.index
    }

    /// The node at a position of the index.
    pub fn node_at(&self, pos: NodePos) -> &Node {
        self.nodes.get(self.derived.rooms.node(pos)).expect("every position has its node")
    }

    /// What each node has for new work, by position.
    pub fn rooms(&self) -> &Rooms {
        &self.derived.rooms
    }

    /// A node's position in the index.
    pub fn pos_of(&self, node: NodeId) -> Option<NodePos> {
        self.derived.pos_of.get(&node).copied()
    }

    /// Nodes by id.
    pub fn nodes(&self) -> &Table<NodeId, Node> {
        &self.nodes
    }

    /// The node of that name.
    pub fn node_named(&self, name: &str) -> Option<&Node> {
        self.nodes.get(*self.derived.by_name.get(name)?)
    }

    /// Jobs by id: live ones and the newest ended.
    pub fn jobs(&self) -> &Table<JobId, Job> {
        &self.jobs
    }

    /// Queued jobs, next first.
    pub fn queue(&self) -> impl Iterator<Item = &Job> {
        self.derived
            .queue
            .iter()
            .map(|(_, id)| self.jobs.get(*id).expect("a queued job is in the table"))
    }

    /// Running jobs with fewer workers than they asked for, that may grow, by id.
    pub fn growing(&self) -> impl Iterator<Item = &Job> {
        let ids = self.derived.growing.iter();
        ids.map(|id| self.jobs.get(*id).expect("a job that runs is in the table"))
    }

    /// How many jobs are queued.
    pub fn queue_len(&self) -> usize {
        self.derived.queue.len()
    }

    /// Fillers by id.
    pub fn fillers(&self) -> &Table<FillerId, Filler> {
        &self.fillers
    }

    /// The filler of that name.
    pub fn filler_named(&self, name: &str) -> Option<&Filler> {
        self.fillers.get(*self.derived.fillers_by_name.get(name)?)
    }

    /// Live allocations by id.
    pub fn allocations(&self) -> &Table<AllocationId, Allocation> {
        &self.allocations
    }

    /// Allocations that are being taken back, by id.
    pub fn stopping(&self) -> impl Iterator<Item = &Allocation> {
        let ids = self.derived.stopping.iter();
        ids.map(|id| self.allocations.get(*id).expect("an allocation that stops is in the table"))
    }

    /// Members of the Raft group as they should be.
    pub fn replicas(&self) -> &Table<ReplicaId, Replica> {
        &self.replicas
    }

    /// GPU-milliseconds of allocations that are over, by tenant, class and model.
    pub fn booked_usage(&self) -> impl Iterator<Item = (&UsageKey, u64)> {
        self.usage.iter().map(|(key, gpu_ms)| (key, *gpu_ms))
    }

    /// GPU-milliseconds until now, by tenant, class and model; live allocations included.
    pub fn usage(&self) -> BTreeMap<UsageKey, u64> {
        let mut usage: BTreeMap<_, _> =
            self.booked_usage().map(|(key, gpu_ms)| (key.clone(), gpu_ms)).collect();
        for allocation in self.allocations.values() {
            let so_far_ms = self.meta.now_ms - allocation.bound_ms;
            for task in allocation.tasks.iter().filter(|task| !task.released) {
                let Some(node) = self.nodes.get(task.node) else { continue };
                let key = UsageKey {
                    tenant: allocation.tenant.clone(),
                    class: allocation.owner.class(),
                    gpu_model: node.gpu_model.clone(),
                };
                *usage.entry(key).or_default() += so_far_ms * u64::from(task.gpus.count());
            }
        }
        usage
    }

    /// Hash of the whole state: equal on every replica at equal index.
    pub fn state_hash(&self) -> u128 {
        let mut bytes = Vec::with_capacity(256);
        self.meta.canonical(self.meta.version, &mut bytes);
        codec::canonical(
            &[
                self.nodes.digest(),
                self.jobs.digest(),
                self.fillers.digest(),
                self.allocations.digest(),
                self.replicas.digest(),
                self.requests.digest(),
                self.derived.fabric_hash,
                self.derived.usage_digest,
            ],
            &mut bytes,
        );
        if self.meta.version >= 2 {
            codec::canonical(&self.health.digest(), &mut bytes);
            codec::canonical(&self.queues.digest(), &mut bytes);
        }
        xxh3_128(&bytes)
    }

    /// Parts of the fabric that are not as they should be.
    pub fn health(&self) -> impl ExactSizeIterator<Item = (&Part, &Health)> {
        self.health.rows().iter()
    }

    /// How a part is; `None`: as it should be.
    pub fn health_of(&self, part: &Part) -> Option<&Health> {
        self.health.rows().get(part)
    }

    /// Nodes whose GPUs reach others at less than full speed, by position.
    pub fn impaired(&self) -> &[Impaired] {
        &self.derived.impaired
    }

    /// What each domain can offer with its links as they are.
    pub fn offers(&self) -> Offers {
        let faults = health::link_faults(self.health.rows().iter());
        rowen_topology::offers(&self.fabric, &self.derived.index, &faults)
    }

    /// GPUs a node could give to a gang by evicting fillers: owned by instances
    /// that are not already on their way out, held for nobody, healthy.
    pub fn reclaimable(&self, node: &Node) -> GpuMask {
        if !node.schedulable() {
            return GpuMask::NONE;
        }
        node.mask(|slot| {
            slot.healthy
                && slot.held.is_none()
                && slot.owner.and_then(|owner| self.allocations.get(owner)).is_some_and(
                    |allocation| {
                        allocation.stop.is_none()
                            && matches!(allocation.owner, Owner::Instance { .. })
                    },
                )
        })
    }

    /// Cores and memory (MiB) claimed on a node, by its owners and by holds on it.
    pub fn claimed(&self, node: &Node) -> (u32, u64) {
        let owners = node.owners().into_iter().filter_map(|id| self.allocations.get(id));
        let by_owners = owners.map(|owner| (&owner.resources, self.tasks_on(node, owner)));
        let holders = node.holders().into_iter().filter_map(|id| self.jobs.get(id));
        let by_holds = holders.map(|job| {
            let held = node.mask(|slot| slot.held == Some(job.id)).count();
            (&job.spec.resources, held / job.spec.resources.gpus)
        });
        by_owners.chain(by_holds).fold((0, 0), |(cpus, memory_mib), (claim, count)| {
            (cpus + claim.cpus * count, memory_mib + claim.memory_mib * u64::from(count))
        })
    }

    /// How many tasks of an allocation have their GPUs on a node. Counted by GPUs, for a gang has
    /// thousands of tasks and a node a few GPUs.
    pub fn tasks_on(&self, node: &Node, allocation: &Allocation) -> u32 {
        let gpus = node.mask(|slot| slot.owner == Some(allocation.id)).count();
        gpus / allocation.resources.gpus
    }

    /// Time of every GPU that is or was in the fabric, until now, in the order of [`crate::Class::ALL`].
    pub fn gpu_time_ms(&self) -> [u64; 4] {
        let mut totals = self.meta.retired_ms;
        for slot in self.nodes.values().flat_map(|node| &node.gpus) {
            for (total, ms) in totals.iter_mut().zip(slot.meter.totals(self.meta.now_ms)) {
                *total += ms;
            }
        }
        totals
    }

    /// Moves a job to `state`, and with it the queue and the list of ended jobs.
    pub(crate) fn set_job_state(&mut self, id: JobId, state: JobState) {
        let now_ms = self.meta.now_ms;
        let index = self.meta.applied;
        let job = self.jobs.get_mut(id).expect("the job exists");
        let place = (Reverse(job.spec.priority), id);
        if job.state == JobState::Queued {
            self.derived.queue.remove(&place);
        }
        job.state = state;
        if state == JobState::Queued {
            self.derived.queue.insert(place);
        }
        let timed = matches!(state, JobState::Holding)
            || (state == JobState::Running && job.spec.time_limit_ms > 0);
        if timed {
            self.derived.timed.insert(id);
        } else {
            self.derived.timed.remove(&id);
        }
        if job.spec.shape.nodes.exclusive {
            match state.ended() {
                true => self.derived.exclusive.remove(&id),
                false => self.derived.exclusive.insert(id),
            };
        }
        if state.ended() {
            job.ended_ms = now_ms;
            job.reason_index = index; // orders the ended jobs
            self.derived.ended.insert((index, id));
        }
        self.derived.growing.remove(&id);
        if state == JobState::Running && self.jobs.get(id).is_some_and(|job| self.is_small(job)) {
            self.derived.growing.insert(id);
        }
    }

    /// Whether a job may grow and has not all its workers.
    fn is_small(&self, job: &Job) -> bool {
        let own = job.allocation.and_then(|own| self.allocations.get(own));
        job.spec.shape.grow_after_ms > 0
            && own.is_some_and(|own| own.tasks.len() < job.spec.workers as usize)
    }

    /// Binds GPUs to an owner: allocation, slots, meters, generations.
    pub(crate) fn bind(&mut self, allocation: Allocation, outcome: &mut Outcome) {
        let (id, class, now_ms) = (allocation.id, allocation.owner.class(), self.meta.now_ms);
        for task in &allocation.tasks {
            let node = self.nodes.get_mut(task.node).expect("a place was checked");
            for ordinal in task.gpus.iter() {
                let slot = &mut node.gpus[ordinal as usize];
                let free = slot.owner.is_none() || planted(Bug::SkipRecheck);
                assert!(free, "GPU {ordinal} of {} has an owner", node.name);
                slot.owner = Some(id);
                slot.held = None;
                slot.meter.switch(now_ms, class);
            }
            outcome.effects.push(Effect::Push(task.node));
        }
        self.allocations.insert(id, allocation);
    }

    /// Gives a task's GPUs back to their node and books their time. Once only.
    pub(crate) fn release_task(&mut self, id: AllocationId, rank: usize, outcome: &mut Outcome) {
        let now_ms = self.meta.now_ms;
        let allocation = self.allocations.get_mut(id).expect("the allocation exists");
        let task = &mut allocation.tasks[rank];
        if std::mem::replace(&mut task.released, true) {
            return;
        }
        let (owner, tenant, bound_ms) =
            (allocation.owner, allocation.tenant.clone(), allocation.bound_ms);
        let (node_id, gpus) = (task.node, task.gpus);
        let node = self.nodes.get_mut(node_id).expect("a node with an owner stays");
        for ordinal in gpus.iter() {
            let slot = &mut node.gpus[ordinal as usize];
            let own = slot.owner == Some(id) || planted(Bug::SkipRecheck);
            assert!(own, "GPU {ordinal} of {} changed hands", node.name);
            slot.owner = None;
        }
        node.meter_unowned(now_ms);
        let times = if planted(Bug::UsageTwice) { 2 } else { 1 };
        let gpu_ms = (now_ms - bound_ms) * u64::from(gpus.count()) * times;
        let model = node.gpu_model.clone();
        let key = UsageKey { tenant, class: owner.class(), gpu_model: model.clone() };
        self.book(key, gpu_ms);
        match owner {
            Owner::Gang { job, .. } => {
                let job = self.jobs.get_mut(job).expect("its job exists");
                job.gpu_ms += gpu_ms;
                if !self.queues.is_empty() {
                    let queue = job.spec.queue.clone();
                    let held = job.held_on(node_id).and(gpus); // for its next attempt
                    let back = [(model, u64::from(gpus.without(held).count()))].into();
                    self.queue_uses(&queue, &back, false);
                }
            }
            Owner::Instance { filler, .. } => {
                self.fillers.get_mut(filler).expect("its filler exists").gpu_ms += gpu_ms;
            }
        }
        outcome.effects.push(Effect::Push(node_id));
        outcome.replan = true;
    }

    fn book(&mut self, key: UsageKey, gpu_ms: u64) {
        let old = self.usage.get(&key).copied();
        let new = old.unwrap_or(0) + gpu_ms;
        if let Some(old) = old {
            self.derived.usage_digest =
                self.derived.usage_digest.wrapping_sub(usage_hash(&key, old));
        }
        self.derived.usage_digest = self.derived.usage_digest.wrapping_add(usage_hash(&key, new));
        self.usage.insert(key, new);
    }

    /// Begins to take an allocation back, with the notice it was promised.
    pub(crate) fn stop(&mut self, id: AllocationId, reason: StopReason, outcome: &mut Outcome) {
        let now_ms = self.meta.now_ms;
        let Some(allocation) = self.allocations.get(id) else { return };
        if allocation.stop.is_some() {
            return;
        }
        let withdraw_ms = match allocation.owner {
            Owner::Instance { filler, .. } => {
                self.fillers.get(filler).map_or(0, |filler| filler.spec.withdraw_ms)
            }
            Owner::Gang { .. } => 0,
        };
        self.derived.stopping.insert(id);
        let allocation = self.allocations.get_mut(id).expect("looked up above");
        let evicted = matches!(reason, StopReason::Evicted { .. });
        let unnoticed = evicted && planted(Bug::EvictionWithoutNotice);
        let notice_ms = if unnoticed { 0 } else { allocation.notice_ms };
        allocation.stop = Some(crate::Stop {
            reason,
            since_ms: now_ms,
            deadline_ms: now_ms + notice_ms,
            withdraw_ms: withdraw_ms.min(notice_ms),
        });
        let nodes: Vec<_> = allocation.tasks.iter().map(|task| task.node).collect();
        outcome.effects.extend(nodes.into_iter().map(Effect::Push));
    }

    /// Takes an allocation out of the state, once nothing of it is left.
    pub(crate) fn forget_allocation(&mut self, id: AllocationId) -> Option<Allocation> {
        self.derived.stopping.remove(&id);
        self.allocations.remove(id)
    }

    /// Lets go of a hold; the job waits again.
    pub(crate) fn release_hold(&mut self, id: JobId, why: &str, outcome: &mut Outcome) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let Some(hold) = job.hold.take() else { return };
        if !self.queues.is_empty() {
            let queue = job.spec.queue.clone();
            self.queue_uses(&queue, &self.held_beside(id, &hold.places), false);
        }
        for Place { node, gpus } in hold.places {
            let Some(node) = self.nodes.get_mut(node) else { continue };
            for ordinal in gpus.iter() {
                node.gpus[ordinal as usize].held = None;
            }
        }
        if self.jobs.get(id).is_some_and(|job| job.state == JobState::Stopping) {
            // A gang that was to grow: it is queued again once its tasks have ended.
            self.tell(id, format!("the hold of its next attempt was released: {why}"), outcome);
            outcome.replan = true;
            return;
        }
        self.set_job_state(id, JobState::Queued);
        self.set_job_reason(id, why.to_owned());
        self.tell(id, format!("the hold was released: {why}"), outcome);
        outcome.replan = true;
    }

    pub(crate) fn set_job_reason(&mut self, id: JobId, reason: String) {
        let index = self.meta.applied;
        let job = self.jobs.get_mut(id).expect("the job exists");
        job.reason = clip(reason);
        job.reason_index = index;
    }

    /// Adds a line to a job's story in the archive.
    pub(crate) fn tell(&self, id: JobId, what: String, outcome: &mut Outcome) {
        let what = clip(what);
        let event = crate::JobEvent { index: self.meta.applied, at_ms: self.meta.now_ms, what };
        let mut key = Cluster::story_prefix(id);
        key.extend_from_slice(&self.meta.applied.to_be_bytes());
        key.extend_from_slice(&(outcome.records.len() as u32).to_be_bytes());
        outcome.records.push(self.record(key, event));
    }

    /// A line of the archive, as the cluster's version writes it.
    pub(crate) fn record(&self, key: Vec<u8>, value: impl Stored) -> Record {
        let value = codec::encode(self.meta.version, value).expect("an archive line is small");
        Record { key, value }
    }

    /// The cluster writes `to` from here on: what it writes in another shape is hashed anew.
    pub(crate) fn rise(&mut self, to: u32) {
        self.meta.version = to;
        self.nodes.rise(to);
        self.jobs.rise(to);
        self.fillers.rise(to);
        self.allocations.rise(to);
        self.replicas.rise(to);
        self.queues.rise(to);
        self.derived.fabric_hash = fabric_hash(&self.fabric, to);
        if to == 2 {
            self.adopt_sick_gpus();
        }
    }

    /// The archive's keys of a job's story begin so; then index and line number.
    pub fn story_prefix(id: JobId) -> Vec<u8> {
        let mut key = b"story/".to_vec();
        key.extend_from_slice(&id.0.to_be_bytes());
        key
    }

    /// The archive's key of an ended job that left the state: a [`Job`].
    pub fn job_key(id: JobId) -> Vec<u8> {
        let mut key = b"job/".to_vec();
        key.extend_from_slice(&id.0.to_be_bytes());
        key
    }

    pub(crate) fn epoch(&self) -> Epoch {
        Epoch { incarnation: self.meta.incarnation, index: self.meta.applied }
    }

    /// Everything derived is brought up to date with what an entry changed.
    pub(crate) fn settle(&mut self, outcome: &mut Outcome) {
        outcome.effects.sort_unstable();
        outcome.effects.dedup();
        for Effect::Push(node) in &outcome.effects {
            if let Some(node) = self.nodes.get_mut(*node) {
                node.generation += 1;
            }
        }
        for record in &outcome.records {
            self.meta.archive_digest = match self.meta.version {
                1 => {
                    let mut bytes = self.meta.archive_digest.to_le_bytes().to_vec();
                    codec::canonical(&(&record.key, &record.value), &mut bytes);
                    xxh3_128(&bytes)
                }
                _ => {
                    self.meta.archive_digest.wrapping_add(record_digest(&record.key, &record.value))
                }
            };
        }
        for id in self.nodes.dirty() {
            self.refresh_index(id);
        }
        self.settle_tables();
    }

    /// Brings the digests of the tables up to date.
    pub(crate) fn settle_tables(&mut self) {
        let version = self.meta.version;
        self.nodes.settle(version);
        self.jobs.settle(version);
        self.fillers.settle(version);
        self.allocations.settle(version);
        self.replicas.settle(version);
        self.queues.settle(version);
    }

    /// Brings the index and the rooms up to date with a node.
    pub(crate) fn refresh_index(&mut self, id: NodeId) {
        let (Some(pos), Some(node)) = (self.pos_of(id), self.nodes.get(id)) else { return };
        let rows = Rows::of(self, node);
        let (count, index) = (rows.count, &mut self.derived.index);
        index.set_in_service(pos, count.schedulable);
        index.set_node(pos, count.free.into(), count.evictable.into());
        self.derived.rooms.set(pos, rows);
    }

    /// Brings the rooms up to date with what an allocation's owner says of it.
    pub(crate) fn refresh_rooms_of(&mut self, id: AllocationId) {
        let tasks = self.allocations.get(id).map_or(&[][..], |allocation| &allocation.tasks);
        let mut nodes: Vec<_> = tasks.iter().map(|task| task.node).collect();
        nodes.dedup(); // workers of a node follow one another
        for node in nodes {
            self.refresh_index(node);
        }
    }

    /// Brings up to date what the state hash needs of what is derived: whether a restored state is
    /// whole must be known before the rest is made of it.
    pub(crate) fn rehash_derived(&mut self) {
        self.derived.fabric_hash = fabric_hash(&self.fabric, self.meta.version);
        let usage = self.usage.iter().map(|(key, gpu_ms)| usage_hash(key, *gpu_ms));
        self.derived.usage_digest = usage.fold(0, u128::wrapping_add);
    }

    /// Rebuilds what is derived, after a new fabric or a restore.
    pub(crate) fn rebuild_derived(&mut self) {
        let mut derived = Derived::empty(&self.fabric, self.meta.version);
        derived.by_name = self.nodes.iter().map(|(id, node)| (node.name.clone(), id)).collect();
        let node_at: Vec<NodeId> = (0..derived.index.node_count())
            .map(|pos| {
                let record = &self.fabric.nodes[derived.index.node_record(NodePos(pos))];
                derived.by_name[&record.name]
            })
            .collect();
        derived.pos_of = (0..).map(NodePos).zip(&node_at).map(|(pos, id)| (*id, pos)).collect();
        let machine = |id: &NodeId| (*id, rooms::whole(self.nodes.get(*id).expect("listed")));
        derived.rooms = Rooms::new(node_at.iter().map(machine).collect());
        derived.fillers_by_name =
            self.fillers.iter().map(|(id, filler)| (filler.spec.name.clone(), id)).collect();
        derived.queues_by_name =
            self.queues.iter().map(|(id, queue)| (queue.spec.name.clone(), id)).collect();
        for (id, job) in self.jobs.iter() {
            if job.state == JobState::Queued {
                derived.queue.insert((Reverse(job.spec.priority), id));
            }
            if job.state == JobState::Holding
                || (job.state == JobState::Running && job.spec.time_limit_ms > 0)
            {
                derived.timed.insert(id);
            }
            if job.state.ended() {
                derived.ended.insert((job.reason_index, id));
            } else if job.spec.shape.nodes.exclusive {
                derived.exclusive.insert(id);
            }
            if job.state == JobState::Running && self.is_small(job) {
                derived.growing.insert(id);
            }
        }
        let stopping = self.allocations.iter().filter(|(_, allocation)| allocation.stop.is_some());
        derived.stopping = stopping.map(|(id, _)| id).collect();
        self.derived = derived;
        self.rehash_derived();
        self.derive_impaired();
        for id in self.nodes.iter().map(|(id, _)| id).collect::<Vec<_>>() {
            self.refresh_index(id);
        }
    }
}

impl Derived {
    fn empty(fabric: &FabricRecord, version: u32) -> Self {
        // No fabric yet is the one fabric that an operator could not have set.
        let index = if *fabric == FabricRecord::default() {
            FlatIndex::default()
        } else {
            FlatIndex::build(fabric).expect("a fabric in the state was checked")
        };
        Derived {
            index,
            rooms: Rooms::default(),
            pos_of: OrdMap::new(),
            by_name: OrdMap::new(),
            fillers_by_name: OrdMap::new(),
            queues_by_name: OrdMap::new(),
            queue: OrdSet::new(),
            ended: OrdSet::new(),
            timed: OrdSet::new(),
            growing: OrdSet::new(),
            exclusive: OrdSet::new(),
            stopping: OrdSet::new(),
            fabric_hash: fabric_hash(fabric, version),
            usage_digest: 0,
            impaired: Arc::default(),
        }
    }
}

fn fabric_hash(fabric: &FabricRecord, version: u32) -> u128 {
    let mut bytes = Vec::new();
    fabric.canonical(version, &mut bytes);
    xxh3_128(&bytes)
}

/// The head of a text that came from outside.
pub(crate) fn clip(mut text: String) -> String {
    if text.len() > TEXT_BYTES {
        text.truncate(text.floor_char_boundary(TEXT_BYTES));
    }
    text
}

fn usage_hash(key: &UsageKey, gpu_ms: u64) -> u128 {
    codec::hash(&[5], &(key, gpu_ms))
}

impl Row for Meta {
    fn canonical(&self, version: u32, into: &mut Vec<u8>) {
        match version {
            1 => codec::canonical(&MetaV1::of(self), into),
            _ => codec::canonical(self, into),
        }
    }
}
