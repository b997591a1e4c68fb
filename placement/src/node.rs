//! One node as a draft sees it: what is free, who is on it, and what would be free without them.
//! Knows nothing of other nodes.

use std::{collections::BTreeMap, ops::RangeInclusive};

use rowen_state::{Allocation, AllocationId, Cluster, Evictable, GpuMask, Host, Node, Owner, Room};
use rowen_topology::NodePos;

use crate::demand::Claim;

/// Lost with every eviction, whatever the filler earns: of two ways that cost the same, the one with
/// fewer victims is better. Divisible by all usual sizes of instances, so that [`crate::floors`]
/// are exact where all fillers are alike.
pub(crate) const EVICTION_MICROS: u128 = 1_680;
pub(crate) const HOUR_MS: u128 = 3_600_000;
/// What should have ended this long ago may never end: nobody is made to wait for it.
const OVERDUE_MS: u64 = 30_000;

/// What can become of an allocation's share of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// A filler instance that may be evicted.
    Evictable,
    /// It is being taken back already, for nobody.
    Leaving,
    /// It stays, as far as one can tell: a gang, an instance beside GPUs that were promised to
    /// one, and what should have ended long ago.
    Staying,
}

/// An allocation's share of a node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tenant {
    pub(crate) allocation: AllocationId,
    pub(crate) fate: Fate,
    /// Those that its going would give: healthy, held for nobody.
    pub(crate) gpus: GpuMask,
    cpus: u64,
    memory_mib: u64,
    /// What evicting it loses, in micro-dollars.
    pub(crate) loss_micros: u128,
    loss_a_gpu: u128,
    pub(crate) notice_ms: u64,
}

/// A node as a draft sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct DraftNode {
    pub(crate) free: GpuMask,
    /// By allocation id. Empty where nothing new may be placed.
    pub(crate) tenants: Vec<Tenant>,
    /// GPUs kept for a gang that waits for more.
    pub(crate) kept: u32,
    /// What nobody has claimed.
    host: Host,
}

/// What leaves a node for nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leaving {
    pub(crate) gpus: GpuMask,
    pub(crate) cpus: u64,
    pub(crate) memory_mib: u64,
}

impl Leaving {
    fn add(&mut self, tenant: &Tenant) {
        self.gpus = self.gpus.or(tenant.gpus);
        self.cpus += tenant.cpus;
        self.memory_mib += tenant.memory_mib;
    }
}

/// What leaves each node in the view, where anything does.
pub(crate) fn leaving(view: &Cluster) -> BTreeMap<NodePos, Leaving> {
    let mut leaving: BTreeMap<NodePos, Leaving> = BTreeMap::new();
    for allocation in view.stopping() {
        let mut nodes: Vec<_> = allocation.tasks.iter().map(|task| task.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        for node in nodes.into_iter().filter_map(|id| view.nodes().get(id)) {
            let Some(pos) = view.pos_of(node.id).filter(|_| node.schedulable()) else { continue };
            let tenant = tenant(view, node, allocation);
            if tenant.fate == Fate::Leaving {
                leaving.entry(pos).or_default().add(&tenant);
            }
        }
    }
    leaving
}

impl DraftNode {
    /// The node with its owners; `room`: what is left of it, moves of the draft included.
    pub(crate) fn load(view: &Cluster, node: &Node, room: Room) -> DraftNode {
        if !node.schedulable() {
            return DraftNode::default();
        }
        let tenants = node.owners().into_iter().filter_map(|id| view.allocations().get(id));
        DraftNode {
            free: room.free,
            tenants: tenants.map(|allocation| tenant(view, node, allocation)).collect(),
            kept: 0,
            host: room.host,
        }
    }

    /// What is left for new work at once.
    pub(crate) fn room(&self) -> Room {
        Room { free: self.free, host: self.host }
    }

    /// What evictions would give, with the bounds of `before`.
    pub(crate) fn evictable(&self, before: Evictable) -> Evictable {
        let mut sum = Leaving::default();
        let evictable = self.tenants.iter().filter(|tenant| tenant.fate == Fate::Evictable);
        evictable.for_each(|tenant| sum.add(tenant));
        let Leaving { gpus, cpus, memory_mib } = sum;
        Evictable { gpus, cpus: cpus as u32, memory_mib, only: None, ..before }
    }

    /// What leaves for nobody.
    pub(crate) fn leaving(&self) -> Leaving {
        let mut sum = Leaving::default();
        let leaving = self.tenants.iter().filter(|tenant| tenant.fate == Fate::Leaving);
        leaving.for_each(|tenant| sum.add(tenant));
        sum
    }

    /// How many workers fit once the tenants of which `gone` says yes have gone.
    pub(crate) fn slots(&self, claim: &Claim, gone: impl Fn(&Tenant) -> bool) -> u32 {
        self.without(self.tenants.iter().filter(|tenant| gone(tenant))).slots(claim)
    }

    /// Likewise once exactly `victims` have gone.
    pub(crate) fn slots_without(&self, claim: &Claim, victims: &[AllocationId]) -> u32 {
        self.slots(claim, |tenant| victims.contains(&tenant.allocation))
    }

    /// GPUs of the tenants with such a fate.
    pub(crate) fn gpus_of(&self, such: impl Fn(Fate) -> bool) -> GpuMask {
        let tenants = self.tenants.iter().filter(|tenant| such(tenant.fate));
        tenants.fold(GpuMask::NONE, |mask, tenant| mask.or(tenant.gpus))
    }

    /// The cheapest victims found for each number of workers, by rising workers, as far as there
    /// are any. Dropping any one of them breaks the fit. Two orders of dropping are tried: the
    /// dearest first, which is right where one small victim is enough, and the dearest a GPU first,
    /// which is right where one large victim spares several small ones.
    pub(crate) fn offers(&self, claim: &Claim, workers: RangeInclusive<u32>) -> Vec<Offer<'_>> {
        let mut dearest: Vec<&Tenant> =
            self.tenants.iter().filter(|tenant| tenant.fate == Fate::Evictable).collect();
        dearest.sort_by_key(|tenant| (tenant.loss_micros, tenant.notice_ms, tenant.allocation));
        let mut dearest_a_gpu = dearest.clone();
        dearest_a_gpu.sort_by_key(|tenant| tenant.loss_a_gpu);
        let offer = |workers| {
            let orders = [&dearest, &dearest_a_gpu].into_iter();
            let victims = orders.filter_map(|order| self.needed(claim, workers, order));
            let loss_micros = |these: &Vec<&Tenant>| these.iter().map(|t| t.loss_micros).sum();
            let (loss_micros, victims) =
                victims.map(|these| (loss_micros(&these), these)).min_by_key(|(loss, _)| *loss)?;
            Some(Offer { workers, loss_micros, victims })
        };
        workers.map_while(offer).collect()
    }

    /// Starts from all tenants in `order` and drops from its end whom the fit does not need.
    fn needed<'t>(
        &self,
        claim: &Claim,
        workers: u32,
        order: &[&'t Tenant],
    ) -> Option<Vec<&'t Tenant>> {
        let mut space = self.without(order.iter().copied());
        if space.slots(claim) < workers {
            return None;
        }
        let mut needed = Vec::new();
        for tenant in order.iter().rev() {
            let with = space;
            space.stays(tenant);
            if space.slots(claim) < workers {
                space = with;
                needed.push(*tenant);
            }
        }
        Some(needed)
    }

    fn without<'t>(&self, gone: impl Iterator<Item = &'t Tenant>) -> Space {
        let mut space = Space { gpus: self.free.count(), host: self.host };
        gone.for_each(|tenant| space.leaves(tenant));
        space
    }

    /// GPUs of these tenants.
    pub(crate) fn gpus_of_these(&self, these: &[AllocationId]) -> GpuMask {
        let tenants = self.tenants.iter().filter(|tenant| these.contains(&tenant.allocation));
        tenants.fold(GpuMask::NONE, |mask, tenant| mask.or(tenant.gpus))
    }

    /// Begins to take a filler instance's GPUs back.
    pub(crate) fn evict(&mut self, victim: AllocationId) {
        for tenant in self.tenants.iter_mut().filter(|tenant| tenant.allocation == victim) {
            tenant.fate = Fate::Leaving;
        }
    }

    /// Keeps GPUs for a planned start, and of cores and memory what it will claim beyond those
    /// that come free by then.
    pub(crate) fn book(&mut self, gpus: GpuMask, cpus: i64, memory_mib: i64) {
        let open = self.free.or(self.gpus_of(|fate| fate != Fate::Staying));
        self.kept += open.and(gpus).count();
        self.promise(gpus);
        self.host = self.host.plus(-cpus, -memory_mib);
    }

    /// Cores and memory of fillers that a booking of these GPUs sends away.
    pub(crate) fn sent_away(&self, gpus: GpuMask) -> (u64, u64) {
        let fillers = self.tenants.iter().filter(|tenant| tenant.fate == Fate::Evictable);
        let theirs = fillers.filter(|tenant| !tenant.gpus.and(gpus).is_empty());
        theirs.fold((0, 0), |(cpus, memory_mib), tenant| {
            (cpus + tenant.cpus, memory_mib + tenant.memory_mib)
        })
    }

    /// As if an owner had gone; `gpus` come free with it.
    pub(crate) fn vacate(&mut self, owner: AllocationId, gpus: GpuMask) {
        let Some(at) = self.tenants.iter().position(|tenant| tenant.allocation == owner) else {
            return;
        };
        let tenant = self.tenants.remove(at);
        self.free = self.free.or(tenant.gpus).or(gpus);
        self.host = self.host.plus(tenant.cpus as i64, tenant.memory_mib as i64);
    }

    /// Promises GPUs, whoever is on them now.
    pub(crate) fn promise(&mut self, gpus: GpuMask) {
        self.free = self.free.without(gpus);
        for tenant in &mut self.tenants {
            if !tenant.gpus.and(gpus).is_empty() && tenant.fate == Fate::Evictable {
                tenant.fate = Fate::Staying;
            }
            tenant.gpus = tenant.gpus.without(gpus);
        }
    }

    /// Promises GPUs to so many workers, with the cores and memory that they claim.
    pub(crate) fn take(&mut self, gpus: GpuMask, claim: &Claim, workers: u32) {
        self.promise(gpus);
        if claim.exclusive {
            self.free = GpuMask::NONE;
        }
        let workers = i64::from(workers);
        self.host =
            self.host.plus(-(claim.cpus as i64) * workers, -(claim.memory_mib as i64) * workers);
    }
}

/// `count` GPUs. Victims' go before free ones, which can be filled at once while the others still
/// drain.
pub(crate) fn pick(count: u32, victims: GpuMask, free: GpuMask) -> Option<GpuMask> {
    let chosen = victims.lowest(count.min(victims.count()))?;
    Some(chosen.or(free.lowest(count - chosen.count())?))
}

/// What a node can do for a gang, and for what.
pub(crate) struct Offer<'t> {
    pub(crate) workers: u32,
    pub(crate) loss_micros: u128,
    pub(crate) victims: Vec<&'t Tenant>,
}

/// What a node has for workers. Shares of tenants are disjoint, so counts are enough.
#[derive(Clone, Copy)]
struct Space {
    gpus: u32,
    host: Host,
}

impl Space {
    fn leaves(&mut self, tenant: &Tenant) {
        self.gpus += tenant.gpus.count();
        self.host = self.host.plus(tenant.cpus as i64, tenant.memory_mib as i64);
    }

    fn stays(&mut self, tenant: &Tenant) {
        self.gpus -= tenant.gpus.count();
        self.host = self.host.plus(-(tenant.cpus as i64), -(tenant.memory_mib as i64));
    }

    fn slots(&self, claim: &Claim) -> u32 {
        (self.gpus / claim.gpus)
            .min(times(self.host.cpus, claim.cpus))
            .min(times(self.host.memory_mib, claim.memory_mib))
    }
}

/// How often `each` fits into what is left. Less than nothing may be left, while fillers drain on
/// a node that is held; a claim of nothing fits even then, as in apply.
fn times(left: i64, each: u64) -> u32 {
    if left == Host::UNCOUNTED || each == 0 {
        return u32::MAX;
    }
    u32::try_from(left.max(0) as u64 / each).unwrap_or(u32::MAX)
}

fn tenant(view: &Cluster, node: &Node, allocation: &Allocation) -> Tenant {
    // A sick GPU would end the hold that was made for it.
    let usable = |slot: &rowen_state::GpuSlot| slot.healthy && slot.held.is_none();
    let gpus = node.mask(|slot| slot.owner == Some(allocation.id) && usable(slot));
    let tasks = u64::from(view.tasks_on(node, allocation));
    let leaving = allocation.stop.map(|stop| view.now_ms() <= stop.deadline_ms + OVERDUE_MS);
    let fate = match allocation.owner {
        _ if leaving == Some(true) => Fate::Leaving,
        _ if leaving == Some(false) => Fate::Staying,
        // Even one whose GPUs are all sick: it may have the cores that a gang lacks.
        Owner::Instance { .. } => Fate::Evictable,
        Owner::Gang { .. } => Fate::Staying,
    };
    let loss_micros = loss_micros(view, allocation);
    Tenant {
        allocation: allocation.id,
        fate,
        gpus,
        cpus: u64::from(allocation.resources.cpus) * tasks,
        memory_mib: allocation.resources.memory_mib * tasks,
        loss_micros,
        loss_a_gpu: loss_micros / u128::from(gpus.count().max(1)),
        notice_ms: allocation.notice_ms,
    }
}

/// What evicting an instance loses: what it earns during its notice, and the warm-up it has
/// been through and somebody must go through again.
fn loss_micros(view: &Cluster, allocation: &Allocation) -> u128 {
    let Owner::Instance { filler, .. } = allocation.owner else { return 0 };
    let Some(filler) = view.fillers().get(filler) else { return EVICTION_MICROS };
    let age_ms = view.now_ms().saturating_sub(allocation.bound_ms);
    let lost_ms = u128::from(filler.spec.warm_up_ms.min(age_ms) + allocation.notice_ms);
    let gpus = u128::from(allocation.resources.gpus);
    EVICTION_MICROS + gpus * (u128::from(filler.spec.value_micros) * lost_ms / HOUR_MS)
}
