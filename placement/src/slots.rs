//! How many workers fit where: on each node and, summed up, in each domain of each level.
//!
//! Counted over the dense rows of the draft in one pass, kept for the cycle, and brought up to
//! date with the few nodes that moved since. Never looks at a single owner.

use rowen_state::{Host, Room};
use rowen_topology::{DomainId, FlatIndex, Level, NodePos};

use crate::{
    demand::Claim,
    draft::{self, Draft},
};

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
    /// By ordinal, for sites, pods, blocks and NVLink domains.
    sums: [Vec<u32>; 4],
    /// Moves of the draft that are counted in.
    pub(crate) moves: usize,
}

impl Slots {
    /// Counts a claim against what a pool has.
    pub(crate) fn of(draft: &Draft<'_>, claim: &Claim, pool: Pool) -> Slots {
        let mut at = Vec::with_capacity(draft.index().node_count() as usize);
        let fits = Fits::new(claim);
        match pool {
            Pool::Free if fits.gpus_alone() => {
                at.extend(draft.rooms().counts().flatten().map(|count| fits.by_gpus(count.free)));
            }
            Pool::Free => {
                let rows = draft.rooms().counts().flatten().zip(draft.rooms().rooms().flatten());
                at.extend(rows.map(|(count, room)| fits.on(count.free, room.host)));
            }
            Pool::Evicted | Pool::Soon => {
                let freed = draft.rooms().evictables().flatten();
                let rows = draft.rooms().counts().flatten().zip(draft.rooms().rooms().flatten());
                at.extend(rows.zip(freed).map(|((count, room), freed)| {
                    let host = room.host.plus(freed.cpus.into(), freed.memory_mib as i64);
                    fits.on(count.free + count.evictable, host)
                }));
            }
            Pool::Empty => {
                let machines = draft.rooms().machines().iter().zip(0u32..);
                at.extend(machines.map(|((_, host), pos)| {
                    fits.on(draft.index().gpu_count(NodePos(pos)) as u8, *host)
                }));
            }
        }
        if pool == Pool::Soon {
            // Few nodes have somebody who leaves, of his own or by a move.
            for pos in draft.leaving().keys().copied().chain(draft::distinct(draft.moves())) {
                at[pos.0 as usize] = soon(draft, &fits, pos);
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
        let index = draft.index();
        if !claim.admits_all() {
            for (slots, pos) in at.iter_mut().zip((0u32..).map(NodePos)) {
                *slots *= u16::from(claim.admits(index.model(pos)));
            }
        }
        let of_range = |range: &std::ops::Range<u32>| {
            at[range.start as usize..range.end as usize].iter().map(|slots| u32::from(*slots)).sum()
        };
        let mut sums: [Vec<u32>; 4] = Default::default();
        sums[3] = index.domains(Level::Nvlink).iter().map(|one| of_range(&one.nodes)).collect();
        for (depth, level) in [(2, Level::Block), (1, Level::Pod), (0, Level::Site)] {
            let parts = &sums[depth + 1];
            let of_parts = |children: &std::ops::Range<u32>| {
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
            let new = match pool {
                _ if !claim.admits(draft.index().model(*pos)) => 0,
                Pool::Free => fits.room(draft.rooms().room(*pos)),
                Pool::Evicted => {
                    let (room, freed) = (draft.rooms().room(*pos), draft.rooms().evictable(*pos));
                    let host = room.host.plus(freed.cpus.into(), freed.memory_mib as i64);
                    fits.on((room.free.count() + freed.gpus.count()) as u8, host)
                }
                Pool::Soon | Pool::Empty => soon(draft, &fits, *pos),
            };
            self.replace(draft.index(), *pos, new);
        }
        self.moves = draft.moves().len();
    }

    fn replace(&mut self, index: &FlatIndex, pos: NodePos, new: u16) {
        let old = std::mem::replace(&mut self.at[pos.0 as usize], new);
        for (sums, level) in self.sums.iter_mut().zip(Level::ALL) {
            let sum = &mut sums[index.domain_of(pos, level).ordinal as usize];
            *sum = *sum - u32::from(old) + u32::from(new);
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
        let at = domain.ordinal as usize;
        match self.sums.get(domain.level as usize) {
            Some(sums) => sums[at].into(),
            None => self.at[at].into(), // one node a domain, in the order of positions
        }
    }
}

fn soon(draft: &Draft<'_>, fits: &Fits, pos: NodePos) -> u16 {
    let (room, freed) = (draft.rooms().room(pos), draft.rooms().evictable(pos));
    let leaves = draft.leaving_at(pos);
    let gpus = room.free.or(freed.gpus).or(leaves.gpus).count();
    let cpus = i64::from(freed.cpus) + leaves.cpus as i64;
    fits.on(gpus as u8, room.host.plus(cpus, (freed.memory_mib + leaves.memory_mib) as i64))
}

/// A claim, made ready for many nodes: no division where there are enough cores and memory.
struct Fits {
    by_gpus: [u16; 256],
    cpus: i64,
    memory_mib: i64,
}

impl Fits {
    fn new(claim: &Claim) -> Fits {
        let mut by_gpus = [0; 256];
        for (gpus, slots) in (0u32..).zip(&mut by_gpus) {
            *slots = (gpus / claim.gpus) as u16;
        }
        let bounded = |amount| i64::try_from(amount).unwrap_or(i64::MAX);
        Fits { by_gpus, cpus: bounded(claim.cpus), memory_mib: bounded(claim.memory_mib) }
    }

    fn gpus_alone(&self) -> bool {
        self.cpus == 0 && self.memory_mib == 0
    }

    fn by_gpus(&self, gpus: u8) -> u16 {
        self.by_gpus[usize::from(gpus)]
    }

    fn room(&self, room: Room) -> u16 {
        self.on(room.free.count() as u8, room.host)
    }

    /// A claim of nothing fits even a node that is over-claimed, as in apply.
    fn on(&self, gpus: u8, host: Host) -> u16 {
        let slots = self.by_gpus(gpus);
        let times = |have: i64, each: i64| match each {
            0 => i64::MAX,
            each if have >= i64::from(slots) * each => i64::MAX,
            each => have.max(0) / each,
        };
        let host = times(host.cpus, self.cpus).min(times(host.memory_mib, self.memory_mib));
        host.min(slots.into()) as u16
    }
}
