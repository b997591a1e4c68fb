//! One node as a draft sees it: what is free, who is on it, and what would be free without them.
//! Knows nothing of other nodes.

use rowen_state::{Allocation, AllocationId, Cluster, GpuMask, Node, Owner};

use crate::demand::Claim;

/// Lost with every eviction, whatever the filler earns: of two ways that cost the same, the one with
/// fewer victims is better.
const EVICTION_MICROS: u128 = 1_000;
const HOUR_MS: u128 = 3_600_000;
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
#[derive(Clone, Debug)]
pub(crate) struct Tenant {
    pub(crate) allocation: AllocationId,
    pub(crate) fate: Fate,
    /// Those that its going would give: healthy, held for nobody.
    pub(crate) gpus: GpuMask,
    cpus: u64,
    memory_mib: u64,
    /// What evicting it loses, in micro-dollars.
    pub(crate) loss_micros: u128,
    pub(crate) notice_ms: u64,
}

/// A node as a draft sees it.
#[derive(Clone, Debug, Default)]
pub(crate) struct DraftNode {
    pub(crate) free: GpuMask,
    /// By allocation id. Empty where nothing new may be placed.
    pub(crate) tenants: Vec<Tenant>,
    /// GPUs kept for a gang that waits for more.
    pub(crate) kept: u32,
    /// 0: not declared, so not counted.
    cpus: u64,
    memory_mib: u64,
    claimed_cpus: u64,
    claimed_memory_mib: u64,
}

impl DraftNode {
    pub(crate) fn load(view: &Cluster, node: &Node) -> DraftNode {
        if !node.schedulable() {
            return DraftNode::default();
        }
        let (cpus, memory_mib) = view.claimed(node);
        let tenants = node.owners().into_iter().filter_map(|id| view.allocations().get(id));
        DraftNode {
            free: node.free(),
            tenants: tenants.map(|allocation| tenant(view, node, allocation)).collect(),
            kept: 0,
            cpus: node.cpus.into(),
            memory_mib: node.memory_mib,
            claimed_cpus: cpus.into(),
            claimed_memory_mib: memory_mib,
        }
    }

    /// How many workers fit once the tenants of which `gone` says yes have gone.
    pub(crate) fn slots(&self, claim: &Claim, gone: impl Fn(&Tenant) -> bool) -> u32 {
        let mut gpus = self.free;
        let (mut cpus, mut memory_mib) = (self.claimed_cpus, self.claimed_memory_mib);
        for tenant in self.tenants.iter().filter(|tenant| gone(tenant)) {
            gpus = gpus.or(tenant.gpus);
            cpus = cpus.saturating_sub(tenant.cpus);
            memory_mib = memory_mib.saturating_sub(tenant.memory_mib);
        }
        (gpus.count() / claim.gpus).min(times(self.cpus, cpus, claim.cpus)).min(times(
            self.memory_mib,
            memory_mib,
            claim.memory_mib,
        ))
    }

    /// Likewise once exactly `victims` have gone.
    pub(crate) fn slots_without(&self, claim: &Claim, victims: &[AllocationId]) -> u32 {
        self.slots(claim, |tenant| victims.contains(&tenant.allocation))
    }

    /// How many workers fit once fillers are evicted as apply allows it: each victim has GPUs among
    /// the places, so a worker of few GPUs cannot clear many fillers for their cores.
    pub(crate) fn evicted_slots(&self, claim: &Claim) -> u32 {
        let most = self.slots(claim, |tenant| tenant.fate == Fate::Evictable);
        if self.only_gpus_matter(claim) {
            return most;
        }
        (1..=most).rev().find(|workers| self.victims(claim, *workers).is_some()).unwrap_or(0)
    }

    /// How many workers will fit: likewise, and once what already leaves has left.
    pub(crate) fn soon_slots(&self, claim: &Claim) -> u32 {
        if self.only_gpus_matter(claim) {
            return self.slots(claim, |tenant| tenant.fate != Fate::Staying);
        }
        let left = self.slots(claim, |tenant| tenant.fate == Fate::Leaving);
        left.max(self.evicted_slots(claim))
    }

    fn only_gpus_matter(&self, claim: &Claim) -> bool {
        let host = times(self.cpus, self.claimed_cpus, claim.cpus).min(times(
            self.memory_mib,
            self.claimed_memory_mib,
            claim.memory_mib,
        ));
        host == u32::MAX
    }

    /// GPUs that evictions could give.
    pub(crate) fn evictable(&self) -> GpuMask {
        self.tenants
            .iter()
            .filter(|tenant| tenant.fate == Fate::Evictable)
            .fold(GpuMask::NONE, |mask, tenant| mask.or(tenant.gpus))
    }

    /// The cheapest victims found that make room for `workers`, with what they lose. Dropping any
    /// one of them breaks the fit. Two orders of dropping are tried: the dearest first, which is
    /// right where one small victim is enough, and the dearest a GPU first, which is right where
    /// one large victim spares several small ones.
    pub(crate) fn victims(&self, claim: &Claim, workers: u32) -> Option<(u128, Vec<AllocationId>)> {
        let mut order: Vec<&Tenant> =
            self.tenants.iter().filter(|tenant| tenant.fate == Fate::Evictable).collect();
        order.sort_by_key(|tenant| (tenant.loss_micros, tenant.notice_ms, tenant.allocation));
        let dearest = self.drop_superfluous(claim, workers, &order);
        order.sort_by_key(|tenant| tenant.loss_micros / u128::from(tenant.gpus.count()));
        let dearest_a_gpu = self.drop_superfluous(claim, workers, &order);
        [dearest, dearest_a_gpu].into_iter().flatten().min_by_key(|(loss_micros, _)| *loss_micros)
    }

    /// Starts from all tenants in `order` and drops from its end whom the fit does not need.
    fn drop_superfluous(
        &self,
        claim: &Claim,
        workers: u32,
        order: &[&Tenant],
    ) -> Option<(u128, Vec<AllocationId>)> {
        let mut victims: Vec<AllocationId> = order.iter().map(|tenant| tenant.allocation).collect();
        if self.slots_without(claim, &victims) < workers {
            return None;
        }
        let mut loss_micros: u128 = order.iter().map(|tenant| tenant.loss_micros).sum();
        for (at, tenant) in order.iter().enumerate().rev() {
            let dropped = victims.remove(at);
            if self.slots_without(claim, &victims) >= workers {
                loss_micros -= tenant.loss_micros;
            } else {
                victims.insert(at, dropped);
            }
        }
        // Apply wants GPUs of each victim among the places.
        (victims.len() as u64 <= u64::from(workers) * u64::from(claim.gpus))
            .then_some((loss_micros, victims))
    }

    /// GPUs for `count`, at least one of each victim. Victims' GPUs go before free ones, which can
    /// be filled at once while the others still drain.
    pub(crate) fn pick(&self, count: u32, victims: &[AllocationId]) -> Option<GpuMask> {
        let mut chosen = GpuMask::NONE;
        let mut theirs = GpuMask::NONE;
        for tenant in self.tenants.iter().filter(|tenant| victims.contains(&tenant.allocation)) {
            chosen = chosen.or(tenant.gpus.lowest(1)?);
            theirs = theirs.or(tenant.gpus);
        }
        let rest = count.checked_sub(chosen.count())?;
        let more = theirs.without(chosen);
        chosen = chosen.or(more.lowest(rest.min(more.count()))?);
        let rest = count - chosen.count();
        Some(chosen.or(self.free.lowest(rest)?))
    }

    /// Begins to take a filler instance's GPUs back.
    pub(crate) fn evict(&mut self, victim: AllocationId) {
        for tenant in self.tenants.iter_mut().filter(|tenant| tenant.allocation == victim) {
            tenant.fate = Fate::Leaving;
        }
    }

    /// Promises GPUs to so many workers, whoever is on them now.
    pub(crate) fn take(&mut self, gpus: GpuMask, claim: &Claim, workers: u32) {
        self.free = self.free.without(gpus);
        for tenant in &mut self.tenants {
            if !tenant.gpus.and(gpus).is_empty() && tenant.fate == Fate::Evictable {
                tenant.fate = Fate::Staying;
            }
            tenant.gpus = tenant.gpus.without(gpus);
        }
        self.claimed_cpus += claim.cpus * u64::from(workers);
        self.claimed_memory_mib += claim.memory_mib * u64::from(workers);
    }
}

/// How often `each` fits into what `claimed` leaves of `total`. Not even nothing fits where more is
/// claimed than there is, as it is while fillers drain on a node that is held: apply sees it so.
fn times(total: u64, claimed: u64, each: u64) -> u32 {
    match (total, total.checked_sub(claimed)) {
        (0, _) => u32::MAX,
        (_, None) => 0,
        (_, Some(left)) => {
            left.checked_div(each).map_or(u32::MAX, |n| u32::try_from(n).unwrap_or(u32::MAX))
        }
    }
}

fn tenant(view: &Cluster, node: &Node, allocation: &Allocation) -> Tenant {
    // A sick GPU would end the hold that was made for it.
    let usable = |slot: &rowen_state::GpuSlot| slot.healthy && slot.held.is_none();
    let gpus = node.mask(|slot| slot.owner == Some(allocation.id) && usable(slot));
    let here = allocation.tasks.iter().filter(|task| task.node == node.id && !task.released);
    let tasks = here.count() as u64;
    let leaving = allocation.stop.map(|stop| view.now_ms() <= stop.deadline_ms + OVERDUE_MS);
    let fate = match allocation.owner {
        _ if leaving == Some(true) => Fate::Leaving,
        _ if leaving == Some(false) => Fate::Staying,
        Owner::Instance { .. } if !gpus.is_empty() => Fate::Evictable,
        Owner::Instance { .. } | Owner::Gang { .. } => Fate::Staying,
    };
    Tenant {
        allocation: allocation.id,
        fate,
        gpus,
        cpus: u64::from(allocation.resources.cpus) * tasks,
        memory_mib: allocation.resources.memory_mib * tasks,
        loss_micros: loss_micros(view, allocation),
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
    EVICTION_MICROS + u128::from(filler.spec.value_micros) * gpus * lost_ms / HOUR_MS
}
