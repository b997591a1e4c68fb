//! A draft: the view with the moves of this cycle on top, and a way back.
//!
//! What planning scans are the dense rows of the view's [`Rooms`]; the draft has rows of its own for
//! nodes that moved. A node's owners are loaded only where a pass asks who they are. A draft never
//! decides; passes do, and roll back what did not work out.

use std::{cell::OnceCell, collections::BTreeMap};

use rowen_state::{AllocationId, Cluster, Evictable, GpuMask, Job, JobSpec, Room, Rooms};
use rowen_topology::{DomainId, FlatIndex, Level, NodePos};

use crate::{
    demand::{Ask, Claim, Terms, Way},
    floors::Floors,
    node::{self, DraftNode, Leaving},
    slots::{Pool, Slots},
};

/// The view with moves on top.
pub(crate) struct Draft<'a> {
    pub(crate) view: &'a Cluster,
    /// Nodes that moved.
    rooms: Vec<Moved>,
    /// By position: one more than the place in `rooms`; 0: it did not move.
    room_of: Vec<u32>,
    /// Free GPUs that moves took from each site, pod, block and NVLink domain.
    taken: [Vec<i32>; 4],
    /// Owners of nodes, where somebody asked for them.
    nodes: OnceCell<Vec<OnceCell<Box<DraftNode>>>>,
    /// What leaves without a move of this draft.
    leaving: OnceCell<BTreeMap<NodePos, Leaving>>,
    floors: OnceCell<Floors>,
    slots: BTreeMap<(Claim, Pool), Slots>,
    terms: Terms,
    /// Nodes as they were before each move.
    journal: Vec<Before>,
    /// Every node that moved or moved back, in order.
    moves: Vec<NodePos>,
}

/// A node that moved.
#[derive(Clone, Copy)]
struct Moved {
    room: Room,
    /// Told apart from its owners, who need not be loaded for it.
    gone: Option<Gone>,
}

/// The only filler of a node was evicted, and these GPUs were promised to a gang.
#[derive(Clone, Copy)]
struct Gone {
    victim: AllocationId,
    gpus: GpuMask,
}

/// A node before a move.
struct Before {
    pos: NodePos,
    room: Room,
    gone: Option<Gone>,
    /// None: its owners were not loaded.
    node: Option<Box<DraftNode>>,
}

/// A point to roll back to.
#[derive(Clone, Copy)]
pub(crate) struct Checkpoint(usize);

impl<'a> Draft<'a> {
    pub(crate) fn new(view: &'a Cluster) -> Self {
        let index = view.index();
        let levels = [Level::Site, Level::Pod, Level::Block, Level::Nvlink];
        Draft {
            view,
            rooms: Vec::new(),
            room_of: vec![0; index.node_count() as usize],
            taken: levels.map(|level| vec![0; index.domains(level).len()]),
            nodes: OnceCell::new(),
            leaving: OnceCell::new(),
            floors: OnceCell::new(),
            slots: BTreeMap::new(),
            terms: Terms::default(),
            journal: Vec::new(),
            moves: Vec::new(),
        }
    }

    /// What a queued job asks for now.
    pub(crate) fn ask(&mut self, job: &Job) -> Ask {
        let until_ms = job.queued_ms.saturating_add(job.spec.shape.locality_wait_ms);
        self.ask_of(&job.spec, self.view.now_ms() < until_ms)
    }

    /// What a job asks for, with its locality wait still under way or over.
    pub(crate) fn ask_of(&mut self, spec: &JobSpec, waits: bool) -> Ask {
        let waits = waits && spec.shape.locality_wait_ms > 0;
        let mut ask = self.terms.ask(spec, waits, self.view.index());
        let bound = ask.workers > 1 && (spec.required.is_some() || waits);
        if bound && !self.view.impaired().is_empty() {
            ask.claim.way = Some(Way::required(ask.required));
        }
        ask
    }

    /// What asks stand for.
    pub(crate) fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Whether a node will do for a claim, whatever is free there.
    pub(crate) fn admits(&self, claim: &Claim, pos: NodePos) -> bool {
        self.terms.admits(claim, pos, self.index()) && self.reaches(claim, pos)
    }

    /// Whether a node's links are as far in order as a claim wants them.
    pub(crate) fn reaches(&self, claim: &Claim, pos: NodePos) -> bool {
        let Some(way) = claim.way else { return true };
        let impaired = self.view.impaired();
        let slow = impaired.binary_search_by_key(&pos, |slow| slow.pos);
        slow.is_err() || slow.is_ok_and(|at| impaired[at].left_milli(way.level) >= way.least_milli)
    }

    /// `12 × 8 H100 GPUs inside one pod`.
    pub(crate) fn in_words(&self, ask: &Ask) -> String {
        self.terms.ask_in_words(ask, self.index())
    }

    /// The shape of the fabric. Its counts are the view's: ask [`Draft::free_in`] for those here.
    pub(crate) fn index(&self) -> &'a FlatIndex {
        self.view.index()
    }

    /// What each node has in the view.
    pub(crate) fn rooms(&self) -> &'a Rooms {
        self.view.rooms()
    }

    /// What a node has, moves included.
    pub(crate) fn room(&self, pos: NodePos) -> Room {
        self.moved(pos).map_or_else(|| self.rooms().room(pos), |moved| moved.room)
    }

    /// What evictions on a node would give, moves included. The bounds on what they cost stay as
    /// they were.
    pub(crate) fn evictable(&self, pos: NodePos) -> Evictable {
        let evictable = self.rooms().evictable(pos);
        match self.loaded(pos).filter(|_| self.has_moved(pos)) {
            Some(node) => node.evictable(evictable),
            None if self.gone(pos).is_some() => {
                let gpus = GpuMask::NONE;
                Evictable { gpus, cpus: 0, memory_mib: 0, only: None, ..evictable }
            }
            None => evictable,
        }
    }

    /// Whether the view's rows tell all there is to evict on a node, to the micro-dollar: nobody,
    /// or one filler that no move has touched.
    pub(crate) fn rows_tell(&self, pos: NodePos, evictable: &Evictable) -> bool {
        let nobody_or_one = evictable.largest == 0 || evictable.only.is_some();
        let moved = self.has_moved(pos);
        nobody_or_one && !(moved && (self.gone(pos).is_some() || self.loaded(pos).is_some()))
    }

    pub(crate) fn has_moved(&self, pos: NodePos) -> bool {
        self.room_of[pos.0 as usize] > 0
    }

    fn gone(&self, pos: NodePos) -> Option<Gone> {
        self.moved(pos)?.gone
    }

    fn moved(&self, pos: NodePos) -> Option<&Moved> {
        let place = self.room_of[pos.0 as usize].checked_sub(1)?;
        Some(&self.rooms[place as usize])
    }

    /// Free GPUs of a node.
    pub(crate) fn free_at(&self, pos: NodePos) -> u32 {
        match self.moved(pos) {
            Some(moved) => moved.room.free.count(),
            None => self.rooms().count(pos).free.into(),
        }
    }

    pub(crate) fn moves(&self) -> &[NodePos] {
        &self.moves
    }

    /// Free GPUs of a domain.
    pub(crate) fn free_in(&self, domain: DomainId) -> u32 {
        let Some(taken) = self.taken.get(domain.level as usize) else {
            return self.free_at(NodePos(domain.ordinal));
        };
        let free = self.index().counts(domain, None).free;
        free.strict_sub_signed(taken[domain.ordinal as usize])
    }

    /// Brings the count of a claim up to date and gives it.
    pub(crate) fn slots(&mut self, claim: &Claim, pool: Pool) -> &Slots {
        let key = key(claim, pool);
        let slots = match self.slots.remove(&key) {
            Some(mut slots) => {
                slots.catch_up(self, &key.0, pool);
                slots
            }
            None => Slots::of(self, &key.0, pool),
        };
        self.slots.entry(key).or_insert(slots)
    }

    /// A count that [`Draft::slots`] brought up to date, with no move since.
    pub(crate) fn counted(&self, claim: &Claim, pool: Pool) -> &Slots {
        let slots = self.slots.get(&key(claim, pool)).expect("it was counted before");
        debug_assert!(pool == Pool::Empty || slots.moves == self.moves.len(), "counted too early");
        slots
    }

    /// Who is on a node.
    pub(crate) fn node(&self, pos: NodePos) -> &DraftNode {
        let empty = || (0..self.index().node_count()).map(|_| OnceCell::new()).collect();
        let cell = &self.nodes.get_or_init(empty)[pos.0 as usize];
        cell.get_or_init(|| {
            let mut node = DraftNode::load(self.view, self.view.node_at(pos), self.room(pos));
            if let Some(Gone { victim, gpus }) = self.gone(pos) {
                node.evict(victim);
                node.promise(gpus);
            }
            Box::new(node)
        })
    }

    /// Likewise, if somebody has asked before.
    pub(crate) fn loaded(&self, pos: NodePos) -> Option<&DraftNode> {
        self.nodes.get()?[pos.0 as usize].get().map(Box::as_ref)
    }

    /// What leaves each node by itself, where anything does.
    pub(crate) fn leaving(&self) -> &BTreeMap<NodePos, Leaving> {
        self.leaving.get_or_init(|| node::leaving(self.view))
    }

    /// What leaves a node, moves of this draft included.
    pub(crate) fn leaving_at(&self, pos: NodePos) -> Leaving {
        match self.loaded(pos).filter(|_| self.has_moved(pos)) {
            Some(node) => node.leaving(),
            None if self.gone(pos).is_some() => self.node(pos).leaving(),
            None => self.leaving().get(&pos).copied().unwrap_or_default(),
        }
    }

    /// What evictions cost at least.
    pub(crate) fn floors(&self) -> &Floors {
        let view = self.view;
        self.floors.get_or_init(|| Floors::new(view.rooms().evictables(), view.now_ms()))
    }

    /// All positions.
    pub(crate) fn positions(&self) -> impl Iterator<Item = NodePos> + use<> {
        (0..self.index().node_count()).map(NodePos)
    }

    /// Positions of a domain's nodes.
    pub(crate) fn nodes_of(&self, domain: DomainId) -> impl Iterator<Item = NodePos> + use<> {
        self.index().domain(domain).nodes.clone().map(NodePos)
    }

    pub(crate) fn checkpoint(&self) -> Checkpoint {
        Checkpoint(self.journal.len())
    }

    /// Undoes every move since the checkpoint, newest first.
    pub(crate) fn rollback(&mut self, Checkpoint(length): Checkpoint) {
        while self.journal.len() > length {
            let before = self.journal.pop().expect("it is longer than the checkpoint");
            let cell = self.nodes.get_mut().map(|nodes| &mut nodes[before.pos.0 as usize]);
            if let Some(cell) = cell {
                *cell = before.node.map_or_else(OnceCell::new, OnceCell::from);
            }
            self.put(before.pos, before.room, before.gone);
        }
    }

    /// Gives workers of a claim GPUs that are free on a node.
    pub(crate) fn take_free(&mut self, pos: NodePos, gpus: GpuMask, claim: &Claim, workers: u32) {
        let room = self.room(pos);
        assert!(gpus.without(room.free).is_empty(), "{gpus:?} of {pos:?} are not free");
        if self.loaded(pos).is_some() {
            return self.change(pos, |node| node.take(gpus, claim, workers));
        }
        let gone = self.gone(pos);
        self.journal.push(Before { pos, room, gone, node: None });
        self.put(pos, less(room, gpus, claim, workers), gone);
    }

    /// Evicts the only filler of a node where [`Draft::rows_tell`], and gives workers of a claim
    /// GPUs that are free or its.
    pub(crate) fn take_from_only(
        &mut self,
        pos: NodePos,
        victim: AllocationId,
        gpus: GpuMask,
        claim: &Claim,
        workers: u32,
    ) {
        if self.loaded(pos).is_some() {
            return self.change(pos, |node| {
                node.evict(victim);
                node.take(gpus, claim, workers);
            });
        }
        let room = self.room(pos);
        self.journal.push(Before { pos, room, gone: None, node: None });
        self.put(pos, less(room, gpus, claim, workers), Some(Gone { victim, gpus }));
    }

    /// Gives workers GPUs that are free but for `victims`, which leave for them.
    /// False, and nothing is changed, when they are not to be had or the node lacks cores or memory.
    pub(crate) fn take(
        &mut self,
        pos: NodePos,
        gpus: GpuMask,
        claim: &Claim,
        workers: u32,
        victims: &[AllocationId],
    ) -> bool {
        let node = self.node(pos);
        let usable = node.free.or(node.gpus_of_these(victims));
        let fits = gpus.without(usable).is_empty() && node.slots_without(claim, victims) >= workers;
        if fits {
            self.change(pos, |node| {
                victims.iter().for_each(|victim| node.evict(*victim));
                node.take(gpus, claim, workers);
            });
        }
        fits
    }

    /// Keeps GPUs for workers of a gang that has to wait for some of them.
    pub(crate) fn earmark(&mut self, pos: NodePos, gpus: GpuMask, claim: &Claim, workers: u32) {
        self.change(pos, |node| {
            node.take(gpus, claim, workers);
            node.kept += gpus.count();
        });
    }

    /// Keeps GPUs for a planned start.
    pub(crate) fn book(&mut self, pos: NodePos, gpus: GpuMask, cpus: i64, memory_mib: i64) {
        self.change(pos, |node| node.book(gpus, cpus, memory_mib));
    }

    /// Gives workers GPUs that another draft of the same view found for them.
    pub(crate) fn promise(&mut self, pos: NodePos, gpus: GpuMask, claim: &Claim, workers: u32) {
        self.change(pos, |node| node.take(gpus, claim, workers));
    }

    pub(crate) fn evict(&mut self, pos: NodePos, victim: AllocationId) {
        self.change(pos, |node| node.evict(victim));
    }

    /// As if a gang had gone. From nodes that it has for itself everything comes free.
    pub(crate) fn vacate(&mut self, gang: AllocationId, exclusive: bool) {
        for pos in self.nodes_of_gang(gang) {
            let node = self.view.node_at(pos);
            let rest = match exclusive && node.schedulable() {
                true => {
                    node.mask(|slot| slot.healthy && slot.held.is_none() && slot.owner.is_none())
                }
                false => GpuMask::NONE,
            };
            self.change(pos, |node| node.vacate(gang, rest));
        }
    }

    /// It has not gone yet after all: what it does not give to its next attempt is nobody's to take,
    /// and until it ends its claims count beside those of the next.
    pub(crate) fn occupy(&mut self, gang: AllocationId, claim: &Claim) {
        for pos in self.nodes_of_gang(gang) {
            let node = self.view.node_at(pos);
            let own = node.mask(|slot| slot.owner == Some(gang));
            let gpus = if claim.exclusive { GpuMask(u64::MAX) } else { own };
            self.change(pos, |node| node.take(gpus, claim, own.count() / claim.gpus));
        }
    }

    /// Where a gang is, each node once.
    fn nodes_of_gang(&self, gang: AllocationId) -> Vec<NodePos> {
        let tasks = self.view.allocations().get(gang).map_or(&[][..], |gang| &gang.tasks);
        let mut nodes: Vec<NodePos> =
            tasks.iter().filter_map(|task| self.view.pos_of(task.node)).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// The tightest domain that holds all of these nodes; `None` when they span sites.
    pub(crate) fn span(&self, nodes: impl Iterator<Item = NodePos> + Clone) -> Option<DomainId> {
        let first = nodes.clone().next()?;
        Level::ALL.into_iter().rev().map(|level| self.index().domain_of(first, level)).find(
            |domain| {
                let range = &self.index().domain(*domain).nodes;
                nodes.clone().all(|pos| range.contains(&pos.0))
            },
        )
    }

    fn change(&mut self, pos: NodePos, how: impl FnOnce(&mut DraftNode)) {
        let old = Box::new(self.node(pos).clone());
        let gone = self.gone(pos);
        self.journal.push(Before { pos, room: self.room(pos), gone, node: Some(old) });
        let nodes = self.nodes.get_mut().expect("loaded just above");
        let node = nodes[pos.0 as usize].get_mut().expect("loaded just above");
        how(node);
        let room = node.room();
        self.put(pos, room, gone);
    }

    /// Sets a node's room, and with it the free GPUs of its domains.
    fn put(&mut self, pos: NodePos, room: Room, gone: Option<Gone>) {
        let taken = self.free_at(pos) as i32 - room.free.count() as i32;
        match self.room_of[pos.0 as usize].checked_sub(1) {
            Some(place) => self.rooms[place as usize] = Moved { room, gone },
            None => {
                self.rooms.push(Moved { room, gone });
                self.room_of[pos.0 as usize] = self.rooms.len() as u32;
            }
        }
        let levels = if taken == 0 { [].as_mut_slice() } else { &mut self.taken };
        for (sums, level) in levels.iter_mut().zip(Level::ALL) {
            let domain = self.view.index().domain_of(pos, level);
            sums[domain.ordinal as usize] += taken;
        }
        self.moves.push(pos);
    }
}

/// A room once workers of a claim have these GPUs of it.
fn less(room: Room, gpus: GpuMask, claim: &Claim, workers: u32) -> Room {
    let workers = i64::from(workers);
    let host = room.host.plus(-(claim.cpus as i64) * workers, -(claim.memory_mib as i64) * workers);
    let free = if claim.exclusive { GpuMask::NONE } else { room.free.without(gpus) };
    Room { free, host }
}

/// Of an empty fabric also what is faulty now counts: it is mended one day.
fn key(claim: &Claim, pool: Pool) -> (Claim, Pool) {
    match pool {
        Pool::Empty => (claim.any_way(), pool),
        _ => (*claim, pool),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::tests::{claim, cluster};

    /// A node of which only the rows were known is the same, once loaded, as one that was loaded
    /// before: after an eviction, after more was taken of it, and after the way back.
    #[test]
    fn a_move_told_by_rows_is_the_move_of_owners() {
        let cluster = cluster();
        let (mut by_rows, mut by_owners) = (Draft::new(&cluster), Draft::new(&cluster));
        let pos = by_rows.positions().find(|pos| by_rows.rooms().evictable(*pos).only.is_some());
        let pos = pos.expect("a third of the nodes have one filler");
        by_owners.node(pos);
        let row = by_rows.rooms().evictable(pos);
        assert!(by_rows.rows_tell(pos, &row) && by_owners.rows_tell(pos, &row));
        let (victim, theirs) = (row.only.expect("found for it"), row.gpus);
        let gpus = theirs.or(by_rows.room(pos).free.lowest(1).expect("5 are free"));
        let before = by_rows.checkpoint();
        for draft in [&mut by_rows, &mut by_owners] {
            draft.take_from_only(pos, victim, gpus, &claim(4), 1);
            let free = draft.room(pos).free.lowest(2).expect("4 are free");
            draft.take_free(pos, free, &claim(1), 2);
            assert!(!draft.rows_tell(pos, &row), "it moved");
        }
        assert!(by_rows.loaded(pos).is_none(), "nobody asked for its owners");
        assert_eq!(by_rows.room(pos), by_owners.room(pos));
        assert_eq!(by_rows.evictable(pos), by_owners.evictable(pos));
        assert_eq!(by_rows.leaving_at(pos), by_owners.leaving_at(pos));
        assert_eq!(by_rows.node(pos), by_owners.node(pos));
        for level in Level::ALL {
            let domain = by_rows.index().domain_of(pos, level);
            assert_eq!(by_rows.free_in(domain), by_owners.free_in(domain), "{level}");
        }
        by_rows.rollback(before);
        let fresh = Draft::new(&cluster);
        assert_eq!(by_rows.evictable(pos), row);
        assert_eq!(by_rows.node(pos), fresh.node(pos));
    }
}
