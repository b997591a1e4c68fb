//! The network of a world: which of two hosts reaches the other, how long a message takes, and
//! whether it is lost or comes twice. One-way: the way back is drawn apart. Knows no messages.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rowen_raft::{ReplicaId, sim::Wire};

use crate::{
    inbox::{Arrived, Inbox},
    message::MachineAt,
    rng::Rng,
};

/// An end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Host {
    Replica(u64),
    Machine(MachineAt),
    Client,
}

/// The network. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Net {
    state: Arc<Mutex<State>>,
    inbox: Inbox,
}

#[derive(Debug)]
struct State {
    rng: Rng,
    calm: bool,
    links: BTreeMap<(Host, Host), Link>,
    /// Messages from the first to the second are lost.
    cuts: BTreeSet<(Host, Host)>,
    /// While the network is split: who is on the smaller side.
    island: Option<BTreeSet<Host>>,
    lost: u64,
    doubled: u64,
}

/// One direction between two hosts.
#[derive(Clone, Copy, Debug)]
struct Link {
    least_us: u64,
    most_us: u64,
    loss_permille: u64,
    doubling_permille: u64,
}

const CALM: Link = Link { least_us: 200, most_us: 2_000, loss_permille: 0, doubling_permille: 0 };

impl Net {
    pub(crate) fn new(rng: Rng, inbox: Inbox) -> Net {
        let state = State {
            rng,
            calm: false,
            links: BTreeMap::new(),
            cuts: BTreeSet::new(),
            island: None,
            lost: 0,
            doubled: 0,
        };
        Net { state: Arc::new(Mutex::new(state)), inbox }
    }

    /// A message leaves: after how many microseconds each copy of it arrives. None: it is lost.
    pub(crate) fn fate_us(&self, from: Host, to: Host) -> Vec<u64> {
        let state = &mut *self.state();
        if !state.is_open(from, to) {
            state.lost += 1;
            return Vec::new();
        }
        let link = state.link(from, to);
        if state.rng.between(1, 1_000) <= link.loss_permille {
            state.lost += 1;
            return Vec::new();
        }
        let mut copies = vec![state.rng.between(link.least_us, link.most_us)];
        if state.rng.between(1, 1_000) <= link.doubling_permille {
            state.doubled += 1;
            copies.push(state.rng.between(link.least_us, link.most_us * 20));
        }
        copies
    }

    /// Whether messages come through at all, now.
    pub(crate) fn is_open(&self, from: Host, to: Host) -> bool {
        self.state().is_open(from, to)
    }

    /// Cuts one direction, or mends it.
    pub(crate) fn cut(&self, from: Host, to: Host, is_cut: bool) {
        let mut state = self.state();
        match is_cut {
            true => state.cuts.insert((from, to)),
            false => state.cuts.remove(&(from, to)),
        };
    }

    /// Splits the network: `island` and the rest do not reach each other.
    pub(crate) fn split(&self, island: Option<BTreeSet<Host>>) {
        self.state().island = island;
    }

    /// All links are drawn anew.
    pub(crate) fn redraw(&self) {
        self.state().links.clear();
    }

    /// From now on nothing is lost, doubled or slow.
    pub(crate) fn calm(&self) {
        let mut state = self.state();
        state.calm = true;
        state.cuts.clear();
        state.island = None;
    }

    /// How many messages were lost, and how many came twice.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let state = self.state();
        (state.lost, state.doubled)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_open(&self, from: Host, to: Host) -> bool {
        let split = self.island.as_ref().is_some_and(|island| {
            let of_clients = matches!(from, Host::Client) || matches!(to, Host::Client);
            !of_clients && island.contains(&from) != island.contains(&to)
        });
        !split && !self.cuts.contains(&(from, to))
    }

    fn link(&mut self, from: Host, to: Host) -> Link {
        if self.calm {
            return CALM;
        }
        let rng = &mut self.rng;
        *self.links.entry((from, to)).or_insert_with(|| Link::draw(rng))
    }
}

impl Link {
    fn draw(rng: &mut Rng) -> Link {
        let (least_us, most_us) = match rng.between(0, 99) {
            0..=74 => (100, 2_000),
            75..=94 => (1_000, 30_000),
            _ => (20_000, 150_000),
        };
        let bad = rng.chance(30);
        Link {
            least_us,
            most_us,
            loss_permille: if bad { rng.between(1, 60) } else { 0 },
            doubling_permille: if rng.chance(30) { rng.between(1, 40) } else { 0 },
        }
    }
}

impl Wire for Net {
    fn carry(&self, from: ReplicaId, to: ReplicaId) -> Vec<Duration> {
        let copies = self.fate_us(Host::Replica(from.0), Host::Replica(to.0));
        copies.into_iter().map(Duration::from_micros).collect()
    }

    fn voted(&self, voter: ReplicaId, term: u64, candidate: ReplicaId) {
        self.inbox.push(Arrived::Voted { voter: voter.0, term, candidate: candidate.0 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_one_way_and_splits_are_not() {
        let net = Net::new(Rng::new(1), Inbox::default());
        let (a, b, c) = (Host::Replica(1), Host::Replica(2), Host::Replica(3));
        net.cut(a, b, true);
        assert!(!net.is_open(a, b) && net.is_open(b, a));
        assert!(net.fate_us(a, b).is_empty());
        net.split(Some([c].into()));
        assert!(!net.is_open(a, c) && !net.is_open(c, a) && net.is_open(b, a));
        assert!(net.is_open(Host::Client, c), "clients are everywhere");
        net.calm();
        assert!(net.is_open(a, b) && net.is_open(c, a));
        assert_eq!(net.fate_us(a, b).len(), 1);
    }
}
