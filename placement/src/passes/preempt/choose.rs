//! Who leaves a domain so that it holds a gang. Every victim is needed: without any one of them the
//! domain does not hold it.
//!
//! Most nodes have at most one filler, and then the dense rows tell all there is to know; owners
//! are loaded only of nodes with several, and only where nothing is surely cheaper. Never moves
//! anything.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

use rowen_state::AllocationId;
use rowen_topology::{DomainId, NodePos};

use super::Search;
use crate::{
    floors::loss_of_only,
    node::{DraftNode, Offer},
};

/// Who leaves.
pub(super) struct Choice {
    /// By position of the node, then by id.
    pub(super) victims: Vec<Victim>,
    pub(super) loss_micros: u128,
}

/// A filler instance that leaves.
#[derive(Clone, Copy)]
pub(super) struct Victim {
    pos: NodePos,
    pub(super) allocation: AllocationId,
    loss_micros: u64,
    notice_ms: u64,
    /// Nobody else can be evicted there, and the rows tell all of it.
    pub(super) only: bool,
    /// It was found not to be needed.
    stays: bool,
}

/// Workers on a node, and who leaves there for them.
pub(super) struct Share<'c> {
    pub(super) pos: NodePos,
    pub(super) workers: u32,
    pub(super) victims: &'c [Victim],
}

/// Takes the offer that costs least a worker, again and again; then drops every victim that a
/// later offer made superfluous. What is free costs nothing and is taken first.
pub(super) fn choose(search: &Search<'_, '_>, domain: DomainId) -> Option<Choice> {
    let workers = u64::from(search.ask.workers);
    let mut missing = workers.saturating_sub(search.free.within(domain)) as u32;
    let mut bids = first_bids(search, domain, missing);
    let mut looked: Vec<Looked<'_>> = Vec::new();
    let mut victims = Vec::with_capacity(missing as usize);
    while missing > 0 {
        let Reverse(bid) = bids.pop()?;
        let taken = bid.of != Of::Floor && bid.more <= missing;
        if taken {
            missing -= bid.more;
        }
        match bid.of {
            Of::Only if taken => {
                debug_assert!(search.owners_agree(&bid), "the rows of {:?} lie", bid.pos);
                victims.push(search.only(bid.pos));
            }
            Of::Only => bids.push(Reverse(Bid { more: missing, ..bid })),
            Of::Floor => {
                let node = Looked::new(search, bid.pos, missing);
                bids.extend(node.best(looked.len() as u32, missing).map(Reverse));
                looked.push(node);
            }
            Of::Offer { looked: at, offer } => {
                let node = &mut looked[at as usize];
                if taken {
                    node.taken = Some(offer as usize);
                }
                bids.extend(node.best(at, missing).map(Reverse));
            }
        }
    }
    victims.extend(looked.iter().flat_map(Looked::victims));
    victims.sort_unstable_by_key(|victim| (victim.pos, victim.allocation));
    let mut choice = Choice { victims, loss_micros: 0 };
    choice.drop_superfluous(search, domain);
    Some(choice)
}

/// What each node offers beyond what is free on it, or may offer.
fn first_bids(search: &Search<'_, '_>, domain: DomainId, missing: u32) -> BinaryHeap<Reverse<Bid>> {
    let Search { draft, free, slots, .. } = *search;
    let nodes = draft.nodes_of(domain).filter(|pos| slots.at(*pos) > free.at(*pos));
    let now_ms = draft.view.now_ms();
    let bids = draft.rooms().evictables_of(nodes).map(|(pos, evictable)| {
        Reverse(match draft.rows_tell(pos, &evictable) {
            true => Bid {
                micros: bounded(loss_of_only(&evictable, now_ms)),
                more: (slots.at(pos) - free.at(pos)).min(missing),
                pos,
                of: Of::Only,
            },
            false => Bid { micros: search.floor_of_next(pos), more: 1, pos, of: Of::Floor },
        })
    });
    bids.collect()
}

fn bounded(micros: u128) -> u64 {
    u64::try_from(micros).unwrap_or(u64::MAX)
}

impl Search<'_, '_> {
    /// What one more worker than is free for costs on a node at least; further ones cost no less
    /// each.
    fn floor_of_next(&self, pos: NodePos) -> u64 {
        let needs = (self.free.at(pos) + 1) * self.ask.claim.gpus;
        let lacks = needs.saturating_sub(self.draft.free_at(pos));
        u64::from(lacks).saturating_mul(self.floors.at(pos).loss_a_gpu)
    }

    /// The only filler of a node.
    fn only(&self, pos: NodePos) -> Victim {
        let evictable = self.draft.rooms().evictable(pos);
        Victim {
            pos,
            allocation: evictable.only.expect("the rows told that there is one"),
            loss_micros: bounded(loss_of_only(&evictable, self.draft.view.now_ms())),
            notice_ms: evictable.notice_ms,
            only: true,
            stays: false,
        }
    }

    /// Whether a look at the owners of a node gives what its rows told.
    fn owners_agree(&self, bid: &Bid) -> bool {
        let view = self.draft.view;
        let node = DraftNode::load(view, view.node_at(bid.pos), self.draft.room(bid.pos));
        let workers = self.free.at(bid.pos) + bid.more;
        let only = self.only(bid.pos);
        node.offers(&self.ask.claim, workers..=workers).iter().any(|offer| {
            let [victim] = offer.victims[..] else { return false };
            (victim.allocation, victim.notice_ms) == (only.allocation, only.notice_ms)
                && [only.loss_micros, bid.micros] == [bounded(victim.loss_micros); 2]
        })
    }

    /// Workers that a node holds once those have gone who do not stay after all, `but` for one.
    fn room_at(&self, pos: NodePos, victims: &[Victim], but: Option<AllocationId>) -> u32 {
        let gone = victims.iter().filter(|one| !one.stays && Some(one.allocation) != but);
        match gone.clone().next() {
            None => self.free.at(pos),
            Some(victim) if victim.only => self.slots.at(pos),
            Some(_) => self.draft.node(pos).slots(&self.ask.claim, |tenant| {
                gone.clone().any(|one| one.allocation == tenant.allocation)
            }),
        }
    }
}

/// A node whose owners were looked at.
struct Looked<'d> {
    pos: NodePos,
    /// Workers on what is free.
    free: u32,
    offers: Vec<Offer<'d>>,
    taken: Option<usize>,
}

impl<'d> Looked<'d> {
    fn new(search: &Search<'d, '_>, pos: NodePos, missing: u32) -> Looked<'d> {
        let free = search.free.at(pos);
        let most = search.slots.at(pos).min(free + missing);
        let node = search.draft.node(pos);
        let offers = node.offers(&search.ask.claim, free + 1..=most);
        Looked { pos, free, offers, taken: None }
    }

    /// The offer that costs least for each worker it adds to what was taken.
    fn best(&self, at: u32, missing: u32) -> Option<Bid> {
        let now = self.taken.map(|offer| &self.offers[offer]);
        let (workers, loss_micros) =
            now.map_or((self.free, 0), |now| (now.workers, now.loss_micros));
        let offers = (0..).zip(&self.offers);
        let further = offers
            .filter(|(_, offer)| offer.workers > workers && offer.workers - workers <= missing);
        let bids = further.map(|(number, offer)| Bid {
            micros: bounded(offer.loss_micros.saturating_sub(loss_micros)),
            more: offer.workers - workers,
            pos: self.pos,
            of: Of::Offer { looked: at, offer: number },
        });
        bids.min()
    }

    fn victims(&self) -> impl Iterator<Item = Victim> {
        let taken = self.taken.map(|offer| &self.offers[offer]);
        taken.into_iter().flat_map(|offer| &offer.victims).map(|tenant| Victim {
            pos: self.pos,
            allocation: tenant.allocation,
            loss_micros: bounded(tenant.loss_micros),
            notice_ms: tenant.notice_ms,
            only: false,
            stays: false,
        })
    }
}

/// What some more workers on a node cost.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Bid {
    micros: u64,
    more: u32,
    pos: NodePos,
    of: Of,
}

/// Who bids.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    /// A node whose only filler leaves.
    Only,
    /// A bound, for a node that was not looked at.
    Floor,
    /// A node that was.
    Offer { looked: u32, offer: u32 },
}

/// By cost a worker, then what is known before what is only bounded, then by more workers, then by
/// position.
impl Ord for Bid {
    fn cmp(&self, other: &Self) -> Ordering {
        let mine = u128::from(self.micros) * u128::from(other.more);
        let theirs = u128::from(other.micros) * u128::from(self.more);
        mine.cmp(&theirs)
            .then((self.of == Of::Floor).cmp(&(other.of == Of::Floor)))
            .then(other.more.cmp(&self.more))
            .then(self.pos.cmp(&other.pos))
    }
}

impl PartialOrd for Bid {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Choice {
    /// Until the last victim has gone at the latest.
    pub(super) fn notice_ms(&self) -> u64 {
        self.victims.iter().map(|victim| victim.notice_ms).max().unwrap_or(0)
    }

    /// Drops victims, the dearest first, as long as the domain still holds the gang.
    fn drop_superfluous(&mut self, search: &Search<'_, '_>, domain: DomainId) {
        let freed = self.by_node().map(|(pos, victims)| {
            u64::from(search.room_at(pos, victims, None)) - u64::from(search.free.at(pos))
        });
        let room = search.free.within(domain) + freed.sum::<u64>();
        let mut spare = room - u64::from(search.ask.workers);
        // Workers are whole, so one that went may make another superfluous that was not before.
        // Each gives some, as offers have nobody in vain: where nothing is to spare, all leave.
        while spare > 0 && self.drop_dearest(search, &mut spare) {}
        self.victims.retain(|victim| !victim.stays);
        self.loss_micros = self.victims.iter().map(|victim| u128::from(victim.loss_micros)).sum();
    }

    /// Looks at each victim once; whether one was dropped.
    fn drop_dearest(&mut self, search: &Search<'_, '_>, spare: &mut u64) -> bool {
        let dearest = |at: &usize| {
            let Victim { loss_micros, pos, allocation, .. } = self.victims[*at];
            Reverse((loss_micros, pos, allocation))
        };
        let mut order: Vec<usize> = (0..self.victims.len()).collect();
        order.retain(|at| !self.victims[*at].stays);
        order.sort_unstable_by_key(dearest);
        let mut dropped = false;
        for at in order {
            let Victim { pos, allocation, .. } = self.victims[at];
            let here = self.on_node(pos);
            let given =
                search.room_at(pos, here, None) - search.room_at(pos, here, Some(allocation));
            if u64::from(given) <= *spare {
                *spare -= u64::from(given);
                self.victims[at].stays = true;
                dropped = true;
            }
        }
        dropped
    }

    fn on_node(&self, pos: NodePos) -> &[Victim] {
        let from = self.victims.partition_point(|victim| victim.pos < pos);
        let count = self.victims[from..].partition_point(|victim| victim.pos == pos);
        &self.victims[from..from + count]
    }

    fn by_node(&self) -> impl Iterator<Item = (NodePos, &[Victim])> {
        let nodes = self.victims.chunk_by(|one, next| one.pos == next.pos);
        nodes.map(|victims| (victims[0].pos, victims))
    }

    /// Who goes where, in rank order. Nodes with victims are used as fully as can be (each victim
    /// gives more than is to spare, so none is in vain), then the roomiest others.
    pub(super) fn shares(
        &self,
        search: &Search<'_, '_>,
        domain: DomainId,
    ) -> Option<Vec<Share<'_>>> {
        let mut missing = search.ask.workers;
        let mut shares = Vec::with_capacity(self.victims.len().min(missing as usize));
        let mut use_up = |(pos, room, victims)| {
            let workers = missing.min(room);
            missing -= workers;
            if workers > 0 {
                shares.push(Share { pos, workers, victims });
            }
            missing == 0
        };
        let mut freed: Vec<_> = self
            .by_node()
            .map(|(pos, victims)| (pos, search.room_at(pos, victims, None), victims))
            .collect();
        freed.sort_by_key(|(_, room, _)| Reverse(*room)); // stable: then by position
        let done = freed.into_iter().any(&mut use_up) || {
            let others = search.draft.nodes_of(domain).filter(|pos| search.free.at(*pos) > 0);
            let mut others: Vec<_> = others.filter(|pos| self.on_node(*pos).is_empty()).collect();
            others.sort_by_key(|pos| Reverse(search.free.at(*pos)));
            others.into_iter().any(|pos| use_up((pos, search.free.at(pos), &[])))
        };
        shares.sort_unstable_by_key(|share| share.pos);
        done.then_some(shares)
    }
}
