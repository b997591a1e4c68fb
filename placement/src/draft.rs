//! A draft: the view with the moves of this cycle on top, and a way back.
//!
//! What planning scans are the dense rows of the view's [`Rooms`]; the draft has rows of its own for
//! nodes that moved. A node's owners are loaded only where a pass asks who they are. A draft never
//! decides; passes do, and roll back what did not work out.

use std::{cell::OnceCell, collections::BTreeMap};

use rowen_state::{AllocationId, Cluster, Evictable, GpuMask, Place, Room, Rooms};
use rowen_topology::{DomainId, FlatIndex, Level, NodePos};

use crate::{
    demand::Claim,
    floors::Floors,
    node::{self, DraftNode, Leaving},
    slots::{Pool, Slots},
};

/// The view with moves on top.
pub(crate) struct Draft<'a> {
    pub(crate) view: &'a Cluster,
    /// Rooms of nodes that moved.
    rooms: Vec<Room>,
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
    /// Nodes as they were before each move.
    journal: Vec<Before>,
    /// Every node that moved or moved back, in order.
    moves: Vec<NodePos>,
}

/// A node before a move.
struct Before {
    pos: NodePos,
    room: Room,
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
            journal: Vec::new(),
            moves: Vec::new(),
        }
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
        self.moved(pos).copied().unwrap_or_else(|| self.rooms().room(pos))
    }

    /// What evictions on a node would give, moves included. The bounds on what they cost stay as
    /// they were.
    pub(crate) fn evictable(&self, pos: NodePos) -> Evictable {
        let evictable = self.rooms().evictable(pos);
        match self.loaded(pos).filter(|_| self.has_moved(pos)) {
            Some(node) => node.evictable(evictable),
            None => evictable,
        }
    }

    pub(crate) fn has_moved(&self, pos: NodePos) -> bool {
        self.room_of[pos.0 as usize] > 0
    }

    fn moved(&self, pos: NodePos) -> Option<&Room> {
        let place = self.room_of[pos.0 as usize].checked_sub(1)?;
        Some(&self.rooms[place as usize])
    }

    /// Free GPUs of a node.
    pub(crate) fn free_at(&self, pos: NodePos) -> u32 {
        match self.moved(pos) {
            Some(room) => room.free.count(),
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
        let key = (*claim, pool);
        let slots = match self.slots.remove(&key) {
            Some(mut slots) => {
                slots.catch_up(self, claim, pool);
                slots
            }
            None => Slots::of(self, claim, pool),
        };
        self.slots.entry(key).or_insert(slots)
    }

    /// A count that [`Draft::slots`] brought up to date, with no move since.
    pub(crate) fn counted(&self, claim: &Claim, pool: Pool) -> &Slots {
        let slots = self.slots.get(&(*claim, pool)).expect("it was counted before");
        debug_assert!(pool == Pool::Empty || slots.moves == self.moves.len(), "counted too early");
        slots
    }

    /// Who is on a node.
    pub(crate) fn node(&self, pos: NodePos) -> &DraftNode {
        let empty = || (0..self.index().node_count()).map(|_| OnceCell::new()).collect();
        let cell = &self.nodes.get_or_init(empty)[pos.0 as usize];
        cell.get_or_init(|| {
            let node = DraftNode::load(self.view, self.view.node_at(pos), self.room(pos));
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
            self.put(before.pos, before.room);
        }
    }

    /// Gives workers of a claim GPUs that are free on a node.
    pub(crate) fn take_free(&mut self, pos: NodePos, gpus: GpuMask, claim: &Claim, workers: u32) {
        let room = self.room(pos);
        assert!(gpus.without(room.free).is_empty(), "{gpus:?} of {pos:?} are not free");
        if self.loaded(pos).is_some() {
            return self.change(pos, |node| node.take(gpus, claim, workers));
        }
        self.journal.push(Before { pos, room, node: None });
        let host = room.host.plus(
            -(claim.cpus as i64) * i64::from(workers),
            -(claim.memory_mib as i64) * i64::from(workers),
        );
        self.put(pos, Room { free: room.free.without(gpus), host });
    }

    /// Gives a worker GPUs that are free but for `victims`, which leave for it.
    /// False, and nothing is changed, when they are not to be had or the node lacks cores or memory.
    pub(crate) fn take(
        &mut self,
        Place { node, gpus }: Place,
        claim: &Claim,
        victims: &[AllocationId],
    ) -> bool {
        let Some(pos) = self.view.pos_of(node) else { return false };
        let node = self.node(pos);
        let leaving = node.tenants.iter().filter(|tenant| victims.contains(&tenant.allocation));
        let usable = leaving.fold(node.free, |mask, tenant| mask.or(tenant.gpus));
        let fits = gpus.without(usable).is_empty() && node.slots_without(claim, victims) > 0;
        if fits {
            self.change(pos, |node| node.take(gpus, claim, 1));
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
        self.journal.push(Before { pos, room: self.room(pos), node: Some(old) });
        let nodes = self.nodes.get_mut().expect("loaded just above");
        let node = nodes[pos.0 as usize].get_mut().expect("loaded just above");
        how(node);
        let room = node.room();
        self.put(pos, room);
    }

    /// Sets a node's room, and with it the free GPUs of its domains.
    fn put(&mut self, pos: NodePos, room: Room) {
        let taken = self.free_at(pos) as i32 - room.free.count() as i32;
        match self.room_of[pos.0 as usize].checked_sub(1) {
            Some(place) => self.rooms[place as usize] = room,
            None => {
                self.rooms.push(room);
                self.room_of[pos.0 as usize] = self.rooms.len() as u32;
            }
        }
        for (sums, level) in self.taken.iter_mut().zip(Level::ALL) {
            let domain = self.view.index().domain_of(pos, level);
            sums[domain.ordinal as usize] += taken;
        }
        self.moves.push(pos);
    }
}
