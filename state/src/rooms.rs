//! What every node has for new work, in dense rows by position in the flat index: the only thing
//! that planning scans.
//!
//! Derived from nodes and allocations, so in neither hash nor snapshot. Rows are kept in persistent
//! vectors: a clone is free, and a draft that changes a few rows copies a few chunks. Never decides
//! anything.

use std::{ops::Range, sync::Arc};

use imbl::Vector;
use rowen_topology::NodePos;

use crate::{Allocation, AllocationId, Cluster, GpuMask, JobId, JobSpec, Node, NodeId, Owner};

/// GPUs of a node, counted. The masks behind the first two are in [`Room`] and [`Evictable`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// That may be given now.
    pub free: u8,
    /// Of instances that may be evicted.
    pub evictable: u8,
    /// Whose agent found them unfit.
    pub sick: u8,
    /// Whether anything new may be placed on the node.
    pub schedulable: bool,
    /// Unclaimed cores for each free GPU, rounded down; what is not counted is plenty.
    pub cpus_a_gpu: u16,
    /// Unclaimed memory for each free GPU in GiB, likewise.
    pub memory_gib_a_gpu: u16,
}

impl Count {
    /// With what a room has.
    #[must_use]
    pub fn of_room(self, room: Room) -> Count {
        let free = room.free.count();
        let each =
            |have: i64| u16::try_from(have.max(0) / i64::from(free.max(1))).unwrap_or(u16::MAX);
        Count {
            free: free as u8,
            cpus_a_gpu: each(room.host.cpus),
            memory_gib_a_gpu: each(room.host.memory_mib / 1_024),
            ..self
        }
    }
}

/// Cores and memory, as far as they are declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Cores. Negative while more is claimed than there is: on a node that is held, the victims'
    /// claims and the gang's both count.
    pub cpus: i64,
    /// Memory, likewise.
    pub memory_mib: i64,
}

impl Host {
    /// Not declared, so not counted.
    pub const UNCOUNTED: i64 = i64::MAX;

    /// With `cpus` and `memory_mib` more (or less), where they are counted.
    #[must_use]
    pub fn plus(self, cpus: i64, memory_mib: i64) -> Host {
        let add = |have, more| if have == Host::UNCOUNTED { have } else { have + more };
        Host { cpus: add(self.cpus, cpus), memory_mib: add(self.memory_mib, memory_mib) }
    }
}

impl Default for Host {
    fn default() -> Self {
        Host { cpus: Host::UNCOUNTED, memory_mib: Host::UNCOUNTED }
    }
}

/// What a node has for new work at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// GPUs that may be given now.
    pub free: GpuMask,
    /// What is not claimed.
    pub host: Host,
}

/// What evictions would give, and bounds on what they cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evictable {
    /// GPUs.
    pub gpus: GpuMask,
    /// Cores.
    pub cpus: u32,
    /// Memory.
    pub memory_mib: u64,
    /// GPUs of the largest instance among them.
    pub largest: u32,
    /// The least value of a GPU-hour among them, in micro-dollars.
    pub value_micros: u64,
    /// The shortest warm-up among them.
    pub warm_up_ms: u64,
    /// The shortest notice among them.
    pub notice_ms: u64,
    /// When the youngest of them was bound.
    pub bound_ms: u64,
    /// The instance, where there is only one: then the bounds are what it costs.
    pub only: Option<AllocationId>,
}

/// A gang is taken to be up so long after it was bound.
const START_MS: u64 = 60_000;

/// A share of a node that comes free by a time limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Whose limit it is.
    pub job: JobId,
    /// GPUs.
    pub gpus: GpuMask,
    /// Cores.
    pub cpus: u64,
    /// Memory.
    pub memory_mib: u64,
    /// The limit, and the notice after it.
    length_ms: u64,
    /// When the gang was up; where it is not yet, when it was bound, or will be at the latest.
    from_ms: u64,
    up: bool,
}

impl End {
    /// Unix time, at the latest. Of a gang that is not up yet it is put off in ever longer steps:
    /// an estimate that moved with the clock would be another one at every tick.
    pub fn at_ms(&self, now_ms: u64) -> u64 {
        let mut start_ms = if self.up { 0 } else { START_MS };
        while !self.up && self.from_ms + start_ms < now_ms {
            start_ms *= 2;
        }
        self.from_ms + start_ms + self.length_ms
    }

    /// When a gang that is bound now gives its GPUs back at the latest; `None`: it has no limit.
    pub fn of_new(job: &JobSpec, now_ms: u64) -> Option<u64> {
        let length_ms = length_ms(job);
        (length_ms > 0).then(|| now_ms + START_MS + length_ms)
    }
}

/// The limit and the notice after it; 0: no limit.
fn length_ms(job: &JobSpec) -> u64 {
    if job.time_limit_ms > 0 { job.time_limit_ms + job.notice_ms } else { 0 }
}

/// None where nothing ends by a limit, which is most nodes of many clusters.
type Ends = Option<Arc<[End]>>;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rooms {
    counts: Vector<Count>,
    rooms: Vector<Room>,
    evictable: Vector<Evictable>,
    ends: Vector<Ends>,
    /// Whole machines: only a new fabric changes them.
    machines: Arc<Vec<(NodeId, Host)>>,
}

impl Rooms {
    pub(crate) fn new(machines: Vec<(NodeId, Host)>) -> Rooms {
        Rooms {
            counts: std::iter::repeat_n(Count::default(), machines.len()).collect(),
            rooms: std::iter::repeat_n(Room::default(), machines.len()).collect(),
            evictable: std::iter::repeat_n(Evictable::default(), machines.len()).collect(),
            ends: std::iter::repeat_n(None, machines.len()).collect(),
            machines: Arc::new(machines),
        }
    }

    /// The node at a position.
    pub fn node(&self, pos: NodePos) -> NodeId {
        self.machines[pos.0 as usize].0
    }

    /// All cores and memory of the node at each position.
    pub fn machines(&self) -> &[(NodeId, Host)] {
        &self.machines
    }

    /// Counts, in runs, by position.
    pub fn counts(&self) -> impl Iterator<Item = &[Count]> {
        self.counts.leaves()
    }

    /// Counts of some positions.
    pub fn counts_of(&self, nodes: Range<u32>) -> impl Iterator<Item = (NodePos, Count)> {
        let mut focus = self.counts.focus();
        nodes.map(move |pos| {
            let count = focus.get(pos as usize).expect("a position of the index");
            (NodePos(pos), *count)
        })
    }

    /// Rooms, in runs, by position.
    pub fn rooms(&self) -> impl Iterator<Item = &[Room]> {
        self.rooms.leaves()
    }

    /// What evictions would give, in runs, by position.
    pub fn evictables(&self) -> impl Iterator<Item = &[Evictable]> {
        self.evictable.leaves()
    }

    /// What evictions would give at some positions.
    pub fn evictables_of(
        &self,
        nodes: impl Iterator<Item = NodePos>,
    ) -> impl Iterator<Item = (NodePos, Evictable)> {
        let mut focus = self.evictable.focus();
        nodes.map(move |pos| {
            let evictable = focus.get(pos.0 as usize).expect("a position of the index");
            (pos, *evictable)
        })
    }

    /// One node's counts.
    pub fn count(&self, pos: NodePos) -> Count {
        self.counts[pos.0 as usize]
    }

    /// One node's room.
    pub fn room(&self, pos: NodePos) -> Room {
        self.rooms[pos.0 as usize]
    }

    /// What evictions on one node would give.
    pub fn evictable(&self, pos: NodePos) -> Evictable {
        self.evictable[pos.0 as usize]
    }

    /// What comes free on one node by time limits.
    pub fn ends(&self, pos: NodePos) -> &[End] {
        self.ends[pos.0 as usize].as_deref().unwrap_or_default()
    }

    /// By position: whether anything comes free there by a time limit.
    pub fn has_ends(&self) -> impl Iterator<Item = bool> {
        self.ends.leaves().flatten().map(Option::is_some)
    }

    /// Puts one node's rows in the place of its old ones.
    pub(crate) fn set(&mut self, pos: NodePos, Rows { count, room, evictable, ends }: Rows) {
        self.counts[pos.0 as usize] = count;
        self.rooms[pos.0 as usize] = room;
        self.evictable[pos.0 as usize] = evictable;
        if ends.is_some() || self.ends[pos.0 as usize].is_some() {
            self.ends[pos.0 as usize] = ends;
        }
    }
}

/// All of one node.
pub(crate) struct Rows {
    pub(crate) count: Count,
    room: Room,
    evictable: Evictable,
    ends: Ends,
}

impl Rows {
    /// As the state has them.
    pub(crate) fn of(cluster: &Cluster, node: &Node) -> Rows {
        let schedulable = node.schedulable();
        let sick = node.mask(|slot| !slot.healthy).count() as u8;
        let ends = if schedulable { ends_on(cluster, node) } else { None };
        let (room, evictable) = match schedulable {
            true if !cluster.is_taken_whole(node, &[]) => {
                (room_of(cluster, node), evictable_on(cluster, node))
            }
            _ => Default::default(),
        };
        let count = Count {
            sick,
            schedulable,
            evictable: evictable.gpus.count() as u8,
            ..Count::default()
        };
        Rows { count: count.of_room(room), room, evictable, ends }
    }
}

/// All cores and memory of a machine.
pub(crate) fn whole(node: &Node) -> Host {
    let counted = |total: u64| match total {
        0 => Host::UNCOUNTED,
        total => i64::try_from(total).unwrap_or(Host::UNCOUNTED),
    };
    Host { cpus: counted(node.cpus.into()), memory_mib: counted(node.memory_mib) }
}

fn room_of(cluster: &Cluster, node: &Node) -> Room {
    let (cpus, memory_mib) = cluster.claimed(node);
    Room { free: node.free(), host: whole(node).plus(-i64::from(cpus), -(memory_mib as i64)) }
}

fn evictable_on(cluster: &Cluster, node: &Node) -> Evictable {
    let mut sum = Evictable { gpus: cluster.reclaimable(node), ..Evictable::default() };
    let (mut value_micros, mut warm_up_ms, mut notice_ms) = (u64::MAX, u64::MAX, u64::MAX);
    for id in node.owners() {
        let Some(allocation) = cluster.allocations().get(id) else { continue };
        let Owner::Instance { filler, .. } = allocation.owner else { continue };
        if allocation.stop.is_some() {
            continue;
        }
        let tasks = cluster.tasks_on(node, allocation);
        sum.only = (sum.largest == 0).then_some(id);
        sum.cpus += allocation.resources.cpus * tasks;
        sum.memory_mib += allocation.resources.memory_mib * u64::from(tasks);
        sum.largest = sum.largest.max(allocation.resources.gpus);
        sum.bound_ms = sum.bound_ms.max(allocation.bound_ms);
        notice_ms = notice_ms.min(allocation.notice_ms);
        let spec = cluster.fillers().get(filler).map(|filler| &filler.spec);
        value_micros = value_micros.min(spec.map_or(0, |spec| spec.value_micros));
        warm_up_ms = warm_up_ms.min(spec.map_or(0, |spec| spec.warm_up_ms));
    }
    if sum.largest > 0 {
        (sum.value_micros, sum.warm_up_ms, sum.notice_ms) = (value_micros, warm_up_ms, notice_ms);
    }
    sum
}

/// Gangs with a time limit, those included for which GPUs are held.
fn ends_on(cluster: &Cluster, node: &Node) -> Ends {
    let owners = node.owners().into_iter().filter_map(|id| cluster.allocations().get(id));
    let running = owners.filter_map(|allocation| end_of(cluster, node, allocation));
    let holders = node.holders().into_iter().filter_map(|id| cluster.jobs().get(id));
    let held = holders.filter_map(|job| {
        let gpus = node.mask(|slot| slot.healthy && slot.held == Some(job.id));
        let from_ms = job.hold.as_ref()?.deadline_ms;
        end(&job.spec, job.id, gpus, gpus.count(), from_ms, false)
    });
    let ends: Vec<End> = running.chain(held).collect();
    (!ends.is_empty()).then(|| ends.into())
}

fn end_of(cluster: &Cluster, node: &Node, allocation: &Allocation) -> Option<End> {
    let Owner::Gang { job, .. } = allocation.owner else { return None };
    let job = cluster.jobs().get(job).filter(|_| allocation.stop.is_none())?;
    let usable = |slot: &crate::GpuSlot| slot.healthy && slot.held.is_none();
    let gpus = node.mask(|slot| slot.owner == Some(allocation.id) && usable(slot));
    let claims = node.mask(|slot| slot.owner == Some(allocation.id)).count();
    let up = job.running_ms > 0;
    let from_ms = if up { job.running_ms } else { allocation.bound_ms };
    end(&job.spec, job.id, gpus, claims, from_ms, up)
}

fn end(
    spec: &JobSpec,
    job: JobId,
    gpus: GpuMask,
    claims: u32,
    from_ms: u64,
    up: bool,
) -> Option<End> {
    let length_ms = length_ms(spec);
    let workers = u64::from(claims / spec.resources.gpus);
    (length_ms > 0).then(|| End {
        job,
        gpus,
        cpus: u64::from(spec.resources.cpus) * workers,
        memory_mib: spec.resources.memory_mib * workers,
        length_ms,
        from_ms,
        up,
    })
}
