//! How many workers fit where: on each node and, summed up, in each domain of each level.
//!
//! Counted over the dense rows of the draft in one pass, kept for the cycle, and brought up to
//! date with the few nodes that moved since. Never looks at a single owner.

use std::ops::Range;

use rowen_state::{Count, Host, Rooms};
use rowen_topology::{DomainId, FlatIndex, Level, NodePos};

use crate::{demand::Claim, draft::Draft, node::Fate};

/// What a count of slots counts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pool {
    /// What is free now.
    Free,
    /// And fillers that may be evicted.
    Evicted,
    /// And whatever already leaves.
    Soon,
    /// The whole fabric, empty and every node up.
    Empty,
}

/// Workers that fit.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slots {
    /// By position.
    at: Vec<u16>,
    /// By ordinal, for sites, pods, blocks and NVLink domains; these are left out where each is
    /// one node.
    sums: [Vec<u32>; 4],
    /// Moves of the draft that are counted in.
    pub(crate) moves: usize,
}

impl Slots {
    /// Counts a claim against what a pool has.
    pub(crate) fn of(draft: &Draft<'_>, claim: &Claim, pool: Pool) -> Slots {
        let fits = Fits::new(claim);
        let mut at = match pool {
            Pool::Free => free(draft.rooms(), &fits),
            Pool::Evicted | Pool::Soon => evicted(draft.rooms(), &fits),
            Pool::Empty => {
                let machines = draft.rooms().machines().iter().zip(0u32..);
                let gpus = |pos| draft.index().gpu_count(NodePos(pos)) as u8;
                machines.map(|((_, host), pos)| fits.on(gpus(pos), *host)).collect()
            }
        };
        // That was the view; few nodes moved, and on few somebody leaves of his own.
        let leaving = (pool == Pool::Soon).then(|| draft.leaving().keys().copied());
        for pos in draft.moves().iter().copied().chain(leaving.into_iter().flatten()) {
            at[pos.0 as usize] = one(draft, &fits, pool, pos);
        }
        if claim.exclusive {
            for (slots, pos) in at.iter_mut().zip((0u32..).map(NodePos)).filter(|(at, _)| **at > 0)
            {
                *slots *= u16::from(is_empty(draft, pool, pos));
            }
        }
        Slots::summed(draft, claim, at)
    }

    /// Counts with `slots` of each node whose model will do.
    pub(crate) fn count(draft: &Draft<'_>, claim: &Claim, slots: impl Fn(NodePos) -> u32) -> Slots {
        let at = draft.positions().map(|pos| slots(pos).min(u16::MAX.into()) as u16).collect();
        Slots::summed(draft, claim, at)
    }

    fn summed(draft: &Draft<'_>, claim: &Claim, mut at: Vec<u16>) -> Slots {
        if !claim.admits_all() {
            for (slots, pos) in at.iter_mut().zip((0u32..).map(NodePos)) {
                *slots *= u16::from(draft.admits(claim, pos));
            }
        }
        let index = draft.index();
        let mut sums: [Vec<u32>; 4] = Default::default();
        if index.domains(Level::Nvlink).len() < at.len() {
            sums[3] = by_range(index, Level::Nvlink, &at);
        }
        sums[2] = by_range(index, Level::Block, &at);
        for (depth, level) in [(1, Level::Pod), (0, Level::Site)] {
            let parts = &sums[depth + 1];
            let of_parts = |children: &Range<u32>| {
                parts[children.start as usize..children.end as usize].iter().sum()
            };
            sums[depth] = index.domains(level).iter().map(|one| of_parts(&one.children)).collect();
        }
        Slots { at, sums, moves: draft.moves().len() }
    }

    /// Counts the nodes anew that moved since.
    pub(crate) fn catch_up(&mut self, draft: &Draft<'_>, claim: &Claim, pool: Pool) {
        if pool == Pool::Empty || self.moves == draft.moves().len() {
            return;
        }
        if draft.moves().len() - self.moves > self.at.len() / 4 {
            *self = Slots::of(draft, claim, pool);
            return;
        }
        let fits = Fits::new(claim);
        for pos in &draft.moves()[self.moves..] {
            let admitted =
                draft.admits(claim, *pos) && (!claim.exclusive || is_empty(draft, pool, *pos));
            let new = if admitted { one(draft, &fits, pool, *pos) } else { 0 };
            self.replace(draft.index(), *pos, new);
        }
        self.moves = draft.moves().len();
    }

    fn replace(&mut self, index: &FlatIndex, pos: NodePos, new: u16) {
        let old = std::mem::replace(&mut self.at[pos.0 as usize], new);
        for (sums, level) in self.sums.iter_mut().zip(Level::ALL) {
            if let Some(sum) = sums.get_mut(index.domain_of(pos, level).ordinal as usize) {
                *sum = *sum - u32::from(old) + u32::from(new);
            }
        }
    }

    /// Workers on a node.
    pub(crate) fn at(&self, pos: NodePos) -> u32 {
        self.at[pos.0 as usize].into()
    }

    /// Workers on each node, by position.
    pub(crate) fn nodes(&self) -> &[u16] {
        &self.at
    }

    /// Workers in a domain.
    pub(crate) fn within(&self, domain: DomainId) -> u64 {
        self.of_level(domain.level).at(domain.ordinal).into()
    }

    /// Workers in each domain of a level, by ordinal.
    pub(crate) fn of_level(&self, level: Level) -> Row<'_> {
        match self.sums.get(level as usize).filter(|sums| !sums.is_empty()) {
            Some(sums) => Row::Sums(sums),
            None => Row::Nodes(&self.at), // one node a domain, in the order of positions
        }
    }
}

/// One level's counts.
#[derive(Clone, Copy)]
pub(crate) enum Row<'s> {
    Sums(&'s [u32]),
    Nodes(&'s [u16]),
}

impl Row<'_> {
    pub(crate) fn at(self, ordinal: u32) -> u32 {
        match self {
            Row::Sums(sums) => sums[ordinal as usize],
            Row::Nodes(nodes) => nodes[ordinal as usize].into(),
        }
    }

    /// Ordinals with that count, rising.
    pub(crate) fn equal_to(self, count: u32) -> impl Iterator<Item = u32> {
        let (sums, nodes): (&[u32], &[u16]) = match self {
            Row::Sums(sums) => (sums, &[]),
            Row::Nodes(nodes) => (&[], nodes),
        };
        let sums = sums.iter().zip(0..).filter(move |(sum, _)| **sum == count);
        let nodes = nodes.iter().zip(0..).filter(move |(node, _)| u32::from(**node) == count);
        sums.map(|(_, ordinal)| ordinal).chain(nodes.map(|(_, ordinal)| ordinal))
    }

    /// The least count that is `workers` or more.
    pub(crate) fn least(self, workers: u32) -> Option<u32> {
        let enough = |count: &u32| *count >= workers;
        match self {
            Row::Sums(sums) => sums.iter().copied().filter(enough).min(),
            Row::Nodes(nodes) => {
                let workers = u16::try_from(workers).ok()?;
                // Without branches: most of the time goes here.
                let over = |count: &u16| if *count >= workers { *count } else { u16::MAX };
                let least = nodes.iter().map(over).min()?;
                (least < u16::MAX).then_some(least.into())
            }
        }
    }
}

/// Sums over the nodes of each domain.
fn by_range(index: &FlatIndex, level: Level, at: &[u16]) -> Vec<u32> {
    let sum = |nodes: &Range<u32>| {
        at[nodes.start as usize..nodes.end as usize].iter().map(|slots| u32::from(*slots)).sum()
    };
    index.domains(level).iter().map(|one| sum(&one.nodes)).collect()
}

/// One plain pass: a planner spends most of its time here.
fn free(rooms: &Rooms, fits: &Fits) -> Vec<u16> {
    let mut at: Vec<u16> = Vec::with_capacity(rooms.machines().len());
    for run in rooms.counts() {
        let first = at.len();
        at.extend(run.iter().map(|count| fits.by_gpus(count.free)));
        for (count, place) in run.iter().zip(first..) {
            if fits.may_lack_host(count) && at[place] > 0 {
                fits.lower(&mut at[place], rooms.room(NodePos(place as u32)).host);
            }
        }
    }
    at
}

fn evicted(rooms: &Rooms, fits: &Fits) -> Vec<u16> {
    let mut at = Vec::with_capacity(rooms.machines().len());
    for run in rooms.counts() {
        at.extend(run.iter().map(|count| fits.by_gpus(count.free + count.evictable)));
    }
    if !fits.gpus_alone() {
        let mut free = rooms.rooms().flatten();
        let mut slots = at.iter_mut();
        for run in rooms.evictables() {
            // The run leads: a zip takes from its left side first, even past the right one's end.
            for ((freed, slots), room) in run.iter().zip(slots.by_ref()).zip(free.by_ref()) {
                fits.lower(slots, room.host.plus(freed.cpus.into(), freed.memory_mib as i64));
            }
        }
    }
    at
}

/// One node's slots, moves included.
fn one(draft: &Draft<'_>, fits: &Fits, pool: Pool, pos: NodePos) -> u16 {
    let room = draft.room(pos);
    let mut gpus = room.free;
    let (mut cpus, mut memory_mib) = (0, 0);
    if matches!(pool, Pool::Evicted | Pool::Soon) {
        let freed = draft.evictable(pos);
        gpus = gpus.or(freed.gpus);
        (cpus, memory_mib) = (u64::from(freed.cpus), freed.memory_mib);
    }
    match pool {
        Pool::Soon => {
            let leaves = draft.leaving_at(pos);
            gpus = gpus.or(leaves.gpus);
            (cpus, memory_mib) = (cpus + leaves.cpus, memory_mib + leaves.memory_mib);
        }
        Pool::Empty => {
            let host = draft.rooms().machines()[pos.0 as usize].1;
            return fits.on(draft.index().gpu_count(pos) as u8, host);
        }
        Pool::Free | Pool::Evicted => {}
    }
    fits.on(gpus.count() as u8, room.host.plus(cpus as i64, memory_mib as i64))
}

/// Whether a node has nobody on it, once everybody has gone whom a pool counts as gone.
fn is_empty(draft: &Draft<'_>, pool: Pool, pos: NodePos) -> bool {
    if pool == Pool::Empty {
        return true;
    }
    let mut gpus = draft.room(pos).free;
    if pool != Pool::Free {
        gpus = gpus.or(draft.evictable(pos).gpus);
    }
    if pool == Pool::Soon {
        gpus = gpus.or(draft.leaving_at(pos).gpus);
    }
    let missing = u32::from(draft.index().gpu_count(pos)) - gpus.count();
    // GPUs that nobody can have may have an owner all the same.
    missing == 0
        || (missing == u32::from(draft.rooms().count(pos).sick)
            && draft.view.node_at(pos).holders().is_empty()
            && draft.node(pos).tenants.iter().all(|tenant| match pool {
                Pool::Evicted => tenant.fate == Fate::Evictable,
                Pool::Soon => tenant.fate != Fate::Staying,
                Pool::Free | Pool::Empty => false,
            }))
}

/// A claim, made ready for many nodes: no division where there are enough cores and memory.
struct Fits {
    by_gpus: [u16; 256],
    cpus: i64,
    memory_mib: i64,
    /// For each GPU, rounded up.
    cpus_a_gpu: u16,
    memory_gib_a_gpu: u16,
}

impl Fits {
    fn new(claim: &Claim) -> Fits {
        let mut by_gpus = [0; 256];
        for (gpus, slots) in (0u32..).zip(&mut by_gpus) {
            *slots = (gpus / claim.gpus) as u16;
        }
        let bounded = |amount| i64::try_from(amount).unwrap_or(i64::MAX);
        let gpus = u64::from(claim.gpus);
        let each = |amount: u64| u16::try_from(amount).unwrap_or(u16::MAX);
        Fits {
            by_gpus,
            cpus: bounded(claim.cpus),
            memory_mib: bounded(claim.memory_mib),
            cpus_a_gpu: each(claim.cpus.div_ceil(gpus)),
            memory_gib_a_gpu: each(claim.memory_mib.div_ceil(gpus * 1_024)),
        }
    }

    fn gpus_alone(&self) -> bool {
        self.cpus == 0 && self.memory_mib == 0
    }

    fn by_gpus(&self, gpus: u8) -> u16 {
        self.by_gpus[usize::from(gpus)]
    }

    /// Whether a node may lack cores or memory for all that its free GPUs could take.
    fn may_lack_host(&self, count: &Count) -> bool {
        let lacks = |have: u16, each: u16| have < each || each == u16::MAX;
        lacks(count.cpus_a_gpu, self.cpus_a_gpu)
            || lacks(count.memory_gib_a_gpu, self.memory_gib_a_gpu)
    }

    fn on(&self, gpus: u8, host: Host) -> u16 {
        let mut slots = self.by_gpus(gpus);
        self.lower(&mut slots, host);
        slots
    }

    /// To what cores and memory allow.
    fn lower(&self, slots: &mut u16, host: Host) {
        let all = i64::from(*slots);
        if host.cpus < all * self.cpus || host.memory_mib < all * self.memory_mib {
            *slots = self.by_host(all, host) as u16;
        }
    }

    /// A claim of nothing fits even a node that is over-claimed, as in apply.
    fn by_host(&self, slots: i64, host: Host) -> i64 {
        let times = |have: i64, each: i64| if each == 0 { slots } else { have.max(0) / each };
        times(host.cpus, self.cpus).min(times(host.memory_mib, self.memory_mib)).min(slots)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rowen_state::{
        Cluster, Command, Decision, Entry, FillerSpec, GpuMask, NodeReport, Place, Plan, Resources,
    };
    use rowen_topology::{GpuKind, Inventory, NodeGroup};

    use super::*;

    fn apply(cluster: &mut Cluster, command: Command) {
        let (index, at_ms) = (cluster.applied() + 1, 1_000_000);
        let entry = Entry { at_ms, principal: "test".into(), request: None, command };
        let answer = cluster.apply(index, &entry).answer.expect("apply always answers");
        assert!(answer.is_ok(), "{answer:?}");
    }

    fn nodes(number: u32) -> NodeGroup {
        NodeGroup {
            names: format!("n{number:03}"),
            site: None,
            rack: None,
            leafs: None,
            nvlink_domain: None,
            gpu: GpuKind { model: "H100".into(), count: 8, memory_mib: 81_559 },
            nic: None,
            cpus: 8 + number % 50,
            memory_mib: u64::from(64 + number % 70) << 10,
            addr: None,
            failure_domains: Default::default(),
            labels: Default::default(),
        }
    }

    fn filler() -> FillerSpec {
        let resources = Resources { gpus: 3, gpu_model: None, cpus: 3, memory_mib: 3 << 10 };
        FillerSpec {
            name: "filler".into(),
            tenant: "test".into(),
            model: String::new(),
            resources,
            min_instances: 0,
            max_instances: 1_000,
            value_micros: 0,
            warm_up_ms: 0,
            notice_ms: 0,
            withdraw_ms: 0,
            readiness: None,
            command: vec!["true".into()],
            env: Default::default(),
            working_dir: String::new(),
        }
    }

    /// More nodes than a run of rows has, no two neighbours alike.
    pub(crate) fn cluster() -> Cluster {
        let mut cluster = Cluster::new(1);
        let inventory = Inventory { nodes: (0..200).map(nodes).collect(), ..Default::default() };
        apply(&mut cluster, Command::SetFabric(inventory.expand().expect("a sound inventory")));
        let ids: Vec<_> = cluster.nodes().iter().map(|(id, _)| id).collect();
        for node in &ids {
            apply(
                &mut cluster,
                Command::NodeUp(NodeReport {
                    node: *node,
                    boot_id: "boot".into(),
                    addr: String::new(),
                    ports: Vec::new(),
                    healthy: GpuMask::first(8),
                    simulated: true,
                    version: String::new(),
                    folder: String::new(),
                    said_ms: 0,
                    tasks: Vec::new(),
                }),
            );
        }
        apply(&mut cluster, Command::DeployFiller(filler()));
        let filler = cluster.filler_named("filler").expect("just deployed").id;
        let start = |node| {
            let place = Place { node, gpus: GpuMask::first(3) };
            Decision::StartInstance { filler, place }
        };
        let decisions = ids.into_iter().step_by(3).map(start).collect();
        let based_on = cluster.applied();
        apply(&mut cluster, Command::CommitPlan(Plan { based_on, decisions }));
        cluster
    }

    /// Of GPUs alone.
    pub(crate) fn claim(gpus: u32) -> Claim {
        let resources = Resources { gpus, ..Resources::default() };
        Claim::new(&resources, &FlatIndex::default())
    }

    #[test]
    fn a_pass_over_all_rows_counts_what_a_look_at_each_does() {
        let cluster = cluster();
        let draft = Draft::new(&cluster);
        for (gpus, cpus, memory_mib) in [(1, 0, 0), (1, 7, 0), (2, 5, 20 << 10), (8, 40, 1)] {
            let resources = Resources { gpus, gpu_model: None, cpus, memory_mib };
            let claim = Claim::new(&resources, draft.index());
            let fits = Fits::new(&claim);
            for pool in [Pool::Free, Pool::Evicted, Pool::Soon, Pool::Empty] {
                let slots = Slots::of(&draft, &claim, pool);
                for pos in draft.positions() {
                    let (passed, looked) = (slots.at(pos), one(&draft, &fits, pool, pos));
                    assert_eq!(passed, u32::from(looked), "{claim:?} {pool:?} {pos:?}");
                }
            }
        }
    }
}
