//! When GPUs come free: the one place where that is answered.
//!
//! It knows what time limits say of running gangs and of those that start in this cycle, and which
//! GPUs are booked from when until when for gangs that wait. Fillers always count as free: they
//! leave within their notice. Reads a draft; never changes it, and never decides who goes first.
//!
//! A booking is found by the *first* domain and nodes in the order of the hierarchy, not by the
//! best fit: so that a gang that starts beside it leaves it where it was, time and GPUs.

use std::collections::{BTreeMap, BTreeSet};

use rowen_state::{Cluster, End, GpuMask, Host, JobId};
use rowen_topology::{DomainId, Level, NodePos};

use crate::{
    demand::{Ask, Claim},
    draft::Draft,
    fit,
    slots::Pool,
};

/// What has no time limit ends then.
pub(crate) const NEVER: u64 = u64::MAX;
/// A start of which no limit says when: before that a gang with a limit has ended.
pub(crate) const UNKNOWN: u64 = u64::MAX - 1;

/// GPUs kept for a gang that waits, from `start_ms` on.
#[derive(Debug)]
pub(crate) struct Booking {
    /// By the time limits of others; [`UNKNOWN`]: they do not say.
    pub(crate) start_ms: u64,
    /// Whose limit it is that counts.
    pub(crate) after: Option<JobId>,
    /// Of each node its GPUs, and for how many workers.
    pub(crate) on: Vec<(NodePos, GpuMask, u32)>,
}

/// What this cycle has promised of a node.
#[derive(Debug)]
struct Term {
    job: JobId,
    gpus: GpuMask,
    cpus: i64,
    memory_mib: i64,
    from_ms: u64,
    until_ms: u64,
    /// The how many-th booking it is of; none: it begins now.
    booking: Option<usize>,
}

/// See the module.
pub(crate) struct Calendar<'a> {
    view: &'a Cluster,
    pub(crate) terms: Terms<'a>,
    /// What the cycle's draft keeps of nodes for all bookings.
    pub(crate) charged: Charged,
    ready: BTreeMap<Claim, Ready>,
    scratch: Vec<u64>,
}

/// Cores and memory that a draft keeps unclaimed for bookings.
#[derive(Default)]
pub(crate) struct Charged(BTreeMap<NodePos, (i64, i64)>);

impl Charged {
    /// Brings a draft up to date with what the bookings that `bind` need of a node.
    pub(crate) fn again(
        &mut self,
        draft: &mut Draft<'_>,
        terms: &Terms<'_>,
        pos: NodePos,
        bind: impl Fn(usize, u64) -> bool,
    ) {
        let new = terms.charge(pos, bind);
        let old = self.0.get(&pos).copied().unwrap_or_default();
        if new != old {
            draft.book(pos, GpuMask::NONE, new.0 - old.0, new.1 - old.1);
            self.0.insert(pos, new);
        }
    }

    fn at(&self, pos: NodePos) -> (i64, i64) {
        self.0.get(&pos).copied().unwrap_or_default()
    }
}

impl<'a> Calendar<'a> {
    pub(crate) fn new(view: &'a Cluster) -> Self {
        Calendar {
            view,
            terms: Terms { view, by_node: BTreeMap::new(), evicted: BTreeSet::new() },
            charged: Charged::default(),
            ready: BTreeMap::new(),
            scratch: Vec::new(),
        }
    }

    /// Workers of a gang got GPUs of a node in this cycle.
    pub(crate) fn given(
        &mut self,
        job: JobId,
        (pos, gpus, workers): (NodePos, GpuMask, u32),
        claim: &Claim,
        until_ms: u64,
    ) {
        let from_ms = self.view.now_ms();
        let (cpus, memory_mib) = share(claim, workers);
        let term = Term { job, gpus, cpus, memory_mib, from_ms, until_ms, booking: None };
        self.terms.add(pos, term);
    }

    /// A gang leaves: what it has counts as coming free at once.
    pub(crate) fn evicted(&mut self, job: JobId) {
        self.terms.evicted.insert(job);
    }

    /// Writes down the `number`th booking, whose gang ends at `until_ms` at the latest.
    pub(crate) fn book(
        &mut self,
        draft: &Draft<'_>,
        booking: &Booking,
        (job, number, until_ms): (JobId, usize, u64),
        claim: &Claim,
    ) {
        for (pos, gpus, workers) in &booking.on {
            let (cpus, memory_mib) = share(claim, *workers);
            let away = draft.node(*pos).sent_away(*gpus);
            let term = Term {
                job,
                gpus: *gpus,
                cpus: (cpus - away.0 as i64).max(0),
                memory_mib: (memory_mib - away.1 as i64).max(0),
                from_ms: booking.start_ms,
                until_ms,
                booking: Some(number),
            };
            self.terms.add(*pos, term);
        }
    }

    /// When and where a gang can start at the latest, as far as limits say. `None`: they say
    /// nothing.
    pub(crate) fn earliest(&mut self, draft: &mut Draft<'_>, ask: &Ask) -> Option<Booking> {
        self.catch_up(draft, &ask.claim);
        let workers = ask.workers as usize;
        let ready = &self.ready[&ask.claim];
        let mut first_ms = UNKNOWN;
        for domain in fit::domains(draft.index(), ask.required) {
            let times = ready.of(draft, domain);
            if times.len() < workers {
                continue;
            }
            self.scratch.clear();
            self.scratch.extend(times.iter().copied().filter(|at_ms| *at_ms < first_ms));
            if self.scratch.len() >= workers {
                first_ms = *self.scratch.select_nth_unstable(workers - 1).1;
            }
        }
        // What is there at once, or leaves already, is for other passes.
        if first_ms == UNKNOWN || first_ms <= self.view.now_ms() {
            return None;
        }
        let holds = |domain: &DomainId| ready.count(draft, *domain, first_ms) >= workers;
        let domain =
            ask.levels().find_map(|level| fit::domains(draft.index(), level).find(holds))?;
        Some(self.booking(draft, ask, domain, first_ms))
    }

    /// Where most of what a gang needs is or comes free, of the domains that would hold it once
    /// everything there has ended: it may be kept for it, though nobody knows until when.
    pub(crate) fn nearest(&mut self, draft: &mut Draft<'_>, ask: &Ask) -> Option<Booking> {
        self.catch_up(draft, &ask.claim);
        let ready = &self.ready[&ask.claim];
        // By node: workers that come free, GPUs, workers when it is empty.
        let by_node: Vec<(usize, GpuMask, usize)> = draft
            .positions()
            .map(|pos| match draft.rooms().count(pos).schedulable {
                true => {
                    let gpus = self.prospect(draft, pos).gpus_at(UNKNOWN - 1);
                    (ready.by(pos, UNKNOWN - 1), gpus, ready.at(pos).len())
                }
                false => (0, GpuMask::NONE, 0),
            })
            .collect();
        let of = |domain: &DomainId| {
            let nodes = draft.nodes_of(*domain).map(|pos| by_node[pos.0 as usize]);
            nodes.filter(|(.., whole)| *whole > 0).fold((0, 0, 0), |sum, (workers, gpus, whole)| {
                (sum.0 + workers, sum.1 + gpus.count(), sum.2 + whole)
            })
        };
        let domains = fit::domains(draft.index(), ask.required);
        let domains = domains.map(|domain| (of(&domain), std::cmp::Reverse(domain)));
        let holds = domains.filter(|((.., whole), _)| *whole >= ask.workers as usize);
        let (_, std::cmp::Reverse(domain)) = holds.max()?;
        let mut nodes: Vec<NodePos> =
            draft.nodes_of(domain).filter(|pos| by_node[pos.0 as usize].2 > 0).collect();
        nodes.sort_by_key(|pos| {
            let (workers, gpus, _) = by_node[pos.0 as usize];
            std::cmp::Reverse((workers, gpus.count()))
        });
        let mut missing = ask.workers as usize;
        let mut on = Vec::new();
        for pos in nodes {
            let (_, gpus, whole) = by_node[pos.0 as usize];
            let here = whole.min(missing);
            missing -= here;
            let most = (here as u32 * ask.claim.gpus).min(gpus.count());
            if let Some(gpus) = gpus.lowest(most).filter(|gpus| !gpus.is_empty()) {
                on.push((pos, gpus, here as u32));
            }
            if missing == 0 {
                break;
            }
        }
        Some(Booking { start_ms: UNKNOWN, after: None, on })
    }

    /// The first nodes of a domain that have room by then.
    fn booking(&self, draft: &Draft<'_>, ask: &Ask, domain: DomainId, start_ms: u64) -> Booking {
        let ready = &self.ready[&ask.claim];
        let mut missing = ask.workers as usize;
        let (mut on, mut after) = (Vec::new(), None);
        for pos in draft.nodes_of(domain) {
            let here = ready.by(pos, start_ms).min(missing);
            if here == 0 {
                continue;
            }
            let prospect = self.prospect(draft, pos);
            let gpus = prospect.gpus_at(start_ms).lowest(here as u32 * ask.claim.gpus);
            let gpus = gpus.expect("so many workers are ready by then");
            after = after.or_else(|| prospect.ends_at(start_ms, gpus));
            on.push((pos, gpus, here as u32));
            missing -= here;
            if missing == 0 {
                break;
            }
        }
        Booking { start_ms, after, on }
    }

    /// Brings the times of a claim up to date with the draft's moves.
    fn catch_up(&mut self, draft: &mut Draft<'_>, claim: &Claim) {
        draft.slots(claim, Pool::Soon);
        draft.slots(claim, Pool::Empty);
        let moves = draft.moves().len();
        let few = |ready: &Ready| moves - ready.moves <= ready.first.len() / 4;
        let mut ready = match self.ready.remove(claim).filter(few) {
            Some(ready) => ready,
            None => self.all_ready(draft, claim),
        };
        for pos in &draft.moves()[ready.moves..] {
            self.fill(draft, claim, *pos, ready.at_mut(*pos));
        }
        ready.moves = moves;
        self.ready.insert(*claim, ready);
    }

    fn all_ready(&self, draft: &Draft<'_>, claim: &Claim) -> Ready {
        let mut ready = Ready::new(draft.counted(claim, Pool::Empty).nodes());
        let soon = draft.counted(claim, Pool::Soon).nodes();
        for ((pos, soon), ends) in (0u32..).zip(soon).zip(draft.rooms().has_ends()) {
            let pos = NodePos(pos);
            if ends || !self.terms.of(pos).is_empty() {
                self.fill(draft, claim, pos, ready.at_mut(pos));
            } else {
                let at_once = ready.at_mut(pos).iter_mut().take((*soon).into());
                at_once.for_each(|at_ms| *at_ms = 0);
            }
        }
        ready.moves = draft.moves().len();
        ready
    }

    /// When each of the workers that a node can take is ready there, rising.
    fn fill(&self, draft: &Draft<'_>, claim: &Claim, pos: NodePos, into: &mut [u64]) {
        let prospect = self.prospect(draft, pos);
        into.fill(NEVER);
        if !draft.admits(claim, pos) || !draft.reaches(claim, pos) {
            return;
        }
        let mut ready = 0;
        let mut slots_at = |at_ms, slots: u32| {
            let here = (slots as usize).min(into.len());
            if here > ready {
                into[ready..here].fill(at_ms);
                ready = here;
            }
        };
        if !prospect.terms.is_empty() {
            prospect.times().into_iter().for_each(|at| slots_at(at, prospect.slots(claim, at)));
            return;
        }
        // Nothing is booked, so there is only ever more.
        let mut ends: Vec<(u64, &End)> = prospect.shares().collect();
        ends.sort_unstable_by_key(|(at_ms, _)| *at_ms);
        let (mut gpus, mut host) = (prospect.open.count(), prospect.host);
        slots_at(0, slots(claim, gpus, host));
        for (at_ms, end) in ends {
            gpus += end.gpus.without(prospect.open).count();
            host = host.plus(end.cpus as i64, end.memory_mib as i64);
            slots_at(at_ms, slots(claim, gpus, host));
        }
    }

    fn prospect(&self, draft: &Draft<'_>, pos: NodePos) -> Prospect<'_> {
        let (room, freed, leaving) = (draft.room(pos), draft.evictable(pos), draft.leaving_at(pos));
        let (cpus, memory_mib) = self.charged.at(pos);
        Prospect {
            open: room.free.or(freed.gpus).or(leaving.gpus),
            host: room.host.plus(
                i64::from(freed.cpus) + leaving.cpus as i64 + cpus,
                freed.memory_mib as i64 + leaving.memory_mib as i64 + memory_mib,
            ),
            ends: self.terms.ends(pos).collect(),
            terms: self.terms.of(pos),
            now_ms: self.view.now_ms(),
        }
    }
}

/// What this cycle has promised, by node.
pub(crate) struct Terms<'a> {
    view: &'a Cluster,
    by_node: BTreeMap<NodePos, Vec<Term>>,
    /// Gangs that are evicted in this cycle: their limits count no more.
    evicted: BTreeSet<JobId>,
}

impl Terms<'_> {
    fn of(&self, pos: NodePos) -> &[Term] {
        self.by_node.get(&pos).map_or(&[], Vec::as_slice)
    }

    fn ends(&self, pos: NodePos) -> impl Iterator<Item = &End> {
        let ends = self.view.rooms().ends(pos).iter();
        ends.filter(|end| self.evicted.is_empty() || !self.evicted.contains(&end.job))
    }

    fn add(&mut self, pos: NodePos, term: Term) {
        self.by_node.entry(pos).or_default().push(term);
    }

    /// Cores and memory of a node that must stay unclaimed for the bookings that `bind`: what they
    /// will claim beyond what comes free by then.
    pub(crate) fn charge(&self, pos: NodePos, bind: impl Fn(usize, u64) -> bool) -> (i64, i64) {
        let terms = self.of(pos);
        let binds = |term: &Term| term.booking.is_some_and(|number| bind(number, term.from_ms));
        let mut most = (0, 0);
        for at_ms in terms.iter().filter(|term| binds(term)).map(|term| term.from_ms) {
            let (freed_cpus, freed_memory_mib) = self.freed(pos, at_ms);
            let under_way =
                |term: &&Term| binds(term) && term.from_ms <= at_ms && at_ms < term.until_ms;
            let claims = terms.iter().filter(under_way);
            let (cpus, memory_mib) = claims.fold((0, 0), |(cpus, memory_mib), term| {
                (cpus + term.cpus, memory_mib + term.memory_mib)
            });
            most = (most.0.max(cpus - freed_cpus), most.1.max(memory_mib - freed_memory_mib));
        }
        most
    }

    /// Cores and memory of a node that time limits have given back by then.
    fn freed(&self, pos: NodePos, at_ms: u64) -> (i64, i64) {
        let now_ms = self.view.now_ms();
        let ends = self.ends(pos).filter(|end| end.at_ms(now_ms) <= at_ms);
        let ends = ends.map(|end| (end.cpus as i64, end.memory_mib as i64));
        let terms = self.of(pos).iter();
        let over = terms.filter(|term| term.booking.is_none() && term.until_ms <= at_ms);
        let over = over.map(|term| (term.cpus, term.memory_mib));
        ends.chain(over).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }
}

/// Workers for which there is enough.
fn slots(claim: &Claim, gpus: u32, host: Host) -> u32 {
    let times = |left: i64, each: u64| match each {
        0 => u32::MAX,
        _ if left == Host::UNCOUNTED => u32::MAX,
        each => u32::try_from(left.max(0) as u64 / each).unwrap_or(u32::MAX),
    };
    (gpus / claim.gpus)
        .min(times(host.cpus, claim.cpus))
        .min(times(host.memory_mib, claim.memory_mib))
}

fn share(claim: &Claim, workers: u32) -> (i64, i64) {
    let times = |each: u64| (each as i64).saturating_mul(workers.into());
    (times(claim.cpus), times(claim.memory_mib))
}

/// When each worker of a claim is ready, for every node.
struct Ready {
    /// By position: where its times begin. One more at the end.
    first: Vec<u32>,
    /// Of each node as many as it holds when empty, rising; 0: now.
    times: Vec<u64>,
    /// Moves of the draft that are counted in.
    moves: usize,
}

impl Ready {
    fn new(empty: &[u16]) -> Ready {
        let mut first = Vec::with_capacity(empty.len() + 1);
        let mut sum = 0;
        for slots in empty {
            first.push(sum);
            sum += u32::from(*slots);
        }
        first.push(sum);
        Ready { first, times: vec![NEVER; sum as usize], moves: 0 }
    }

    fn at(&self, NodePos(pos): NodePos) -> &[u64] {
        let pos = pos as usize;
        &self.times[self.first[pos] as usize..self.first[pos + 1] as usize]
    }

    fn at_mut(&mut self, NodePos(pos): NodePos) -> &mut [u64] {
        let pos = pos as usize;
        &mut self.times[self.first[pos] as usize..self.first[pos + 1] as usize]
    }

    fn of(&self, draft: &Draft<'_>, domain: DomainId) -> &[u64] {
        if domain.level == Level::Node {
            return self.at(NodePos(domain.ordinal));
        }
        let nodes = &draft.index().domain(domain).nodes;
        let (from, to) = (nodes.start as usize, nodes.end as usize);
        &self.times[self.first[from] as usize..self.first[to] as usize]
    }

    /// Workers of a node that are ready by then.
    fn by(&self, pos: NodePos, by_ms: u64) -> usize {
        self.at(pos).partition_point(|at_ms| *at_ms <= by_ms)
    }

    /// Workers of a domain that are ready by then.
    fn count(&self, draft: &Draft<'_>, domain: DomainId, by_ms: u64) -> usize {
        self.of(draft, domain).iter().filter(|at_ms| **at_ms <= by_ms).count()
    }
}

/// A node over time.
struct Prospect<'c> {
    /// Free, fillers' or leaving already.
    open: GpuMask,
    /// Of them, as if nothing were booked.
    host: Host,
    ends: Vec<&'c End>,
    terms: &'c [Term],
    now_ms: u64,
}

impl Prospect<'_> {
    /// When something comes free, rising.
    fn times(&self) -> Vec<u64> {
        let terms = self.terms.iter().map(|term| term.until_ms).filter(|until| *until < UNKNOWN);
        let mut times: Vec<u64> = self.shares().map(|(at_ms, ..)| at_ms).chain(terms).collect();
        times.push(0);
        times.sort_unstable();
        times.dedup();
        times
    }

    /// What ends by the limits of running gangs, and when. Nothing that runs ends in the past.
    fn shares(&self) -> impl Iterator<Item = (u64, &End)> {
        self.ends.iter().map(|end| (end.at_ms(self.now_ms).max(self.now_ms + 1), *end))
    }

    /// GPUs that are free from then on.
    fn gpus_at(&self, by_ms: u64) -> GpuMask {
        let (mut free, mut later) = (self.open, GpuMask::NONE);
        let mut end = |at_ms, gpus| match at_ms <= by_ms {
            true => free = free.or(gpus),
            false => later = later.or(gpus),
        };
        self.shares().for_each(|(at_ms, share)| end(at_ms, share.gpus));
        self.terms.iter().for_each(|term| end(term.until_ms, term.gpus));
        free.without(later)
    }

    /// Cores and memory that are unclaimed from then on.
    fn host_at(&self, from_ms: u64) -> Host {
        let booked = self.terms.iter().filter(|term| term.booking.is_some());
        let drops = booked.map(|term| term.from_ms).filter(|at_ms| *at_ms > from_ms);
        let at = |at_ms| self.host_then(at_ms);
        drops.map(at).fold(at(from_ms), |least, host| Host {
            cpus: least.cpus.min(host.cpus),
            memory_mib: least.memory_mib.min(host.memory_mib),
        })
    }

    fn host_then(&self, at_ms: u64) -> Host {
        let mut host = self.host;
        for (_, end) in self.shares().filter(|(end_ms, _)| *end_ms <= at_ms) {
            host = host.plus(end.cpus as i64, end.memory_mib as i64);
        }
        for term in self.terms {
            match term.booking {
                None if term.until_ms <= at_ms => host = host.plus(term.cpus, term.memory_mib),
                Some(_) if term.from_ms <= at_ms && at_ms < term.until_ms => {
                    host = host.plus(-term.cpus, -term.memory_mib);
                }
                _ => {}
            }
        }
        host
    }

    fn slots(&self, claim: &Claim, from_ms: u64) -> u32 {
        slots(claim, self.gpus_at(from_ms).count(), self.host_at(from_ms))
    }

    /// Who has some of the GPUs until then.
    fn ends_at(&self, at_ms: u64, gpus: GpuMask) -> Option<JobId> {
        let ends = self.shares().map(|(end_ms, end)| (end_ms, end.gpus, end.job));
        let terms = self.terms.iter().map(|term| (term.until_ms, term.gpus, term.job));
        let mut all = ends.chain(terms);
        let found =
            all.find(|(end_ms, theirs, _)| *end_ms == at_ms && !theirs.and(gpus).is_empty());
        found.map(|(.., job)| job)
    }
}
