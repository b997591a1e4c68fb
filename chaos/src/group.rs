//! The replicas of a world: each a production replica and shell in a simulated process, on a
//! simulated disk, machine clock and network. Starts, kills and freezes them; which and when is
//! drawn elsewhere.

use std::sync::{Arc, atomic::AtomicUsize};

use rowen_api::v1;
use rowen_raft::{
    Member, MemberStatus, Replica, ReplicaConfig, ReplicaId,
    sim::{self, MachineClock, MemoryNetwork, Process},
    sim_disk::SimDisk,
};
use rowen_server::{Config, PeerCalls, Shell, SimulatedMachine};
use rowen_state::codec::READS_VERSION;
use tonic::Status;

use crate::{
    inbox::{Arrived, Inbox},
    message::ReplicaAt,
    net::{Host, Net},
    rng::Rng,
    setup::Timing,
    truth::{Truth, Watched},
};

/// Entries that a follower may not have applied yet: time goes into the log all the while.
const ON_THE_WAY: u64 = 8;

/// What may be proposed to a replica and not yet be answered: little, so that a few large requests
/// reach it.
const MAX_ENTRY_BYTES: usize = 64 << 10;
pub(crate) const MAX_PENDING_BYTES: usize = MAX_ENTRY_BYTES + 1_024;

/// Unix time when a world begins.
pub(crate) const WALL_MS: u64 = 1_700_000_000_000;

/// All replicas there ever were, by place.
pub(crate) struct Group {
    pub(crate) seats: Vec<Seat>,
    network: Arc<MemoryNetwork>,
    net: Net,
    inbox: Inbox,
    truth: Truth,
    timing: Timing,
    phones: Phones,
}

/// One replica: its machine, its disk, and its process, if one runs.
pub(crate) struct Seat {
    pub(crate) id: u64,
    pub(crate) addr: String,
    pub(crate) disk: SimDisk,
    pub(crate) clock: MachineClock,
    pub(crate) process: Option<Process>,
    pub(crate) shell: Option<Arc<Shell>>,
    /// Counts the starts of its process.
    pub(crate) life: u64,
    /// What is on its disk may be wrong: it is to be replaced.
    pub(crate) damaged: bool,
    /// The operator has taken it out, for good.
    pub(crate) retired: bool,
    /// It dies in the middle of one of its next writes; whether power goes with it.
    pub(crate) dying: Option<bool>,
    /// What a leader knew to be on its disk when its process ended.
    pub(crate) matched: u64,
    /// Bytes of what clients ask of its process and wait for.
    pub(crate) waiting_bytes: Arc<AtomicUsize>,
    /// The newest cluster version that the build on it reads.
    pub(crate) reads: u32,
}

impl Group {
    pub(crate) fn new(net: Net, inbox: Inbox, truth: Truth, timing: Timing) -> Group {
        let network = MemoryNetwork::new(Arc::new(net.clone()));
        let phones = Phones { net: net.clone(), lines: Arc::default() };
        Group { seats: Vec::new(), network, net, inbox, truth, timing, phones }
    }

    /// A machine with an empty disk, for a replica of that id.
    pub(crate) fn seat(&mut self, id: u64, now_ms: u64, rng: &mut Rng) -> ReplicaAt {
        let half_ppm = self.timing.drift_ppm * 9 / 20;
        let drift_ppm = rng.between(0, 2 * half_ppm) as i64 - half_ppm as i64;
        let boot_ms = rng.between(1_000, 100_000_000);
        self.seats.push(Seat {
            id,
            addr: address(self.seats.len()),
            disk: SimDisk::new(rng.next()),
            clock: MachineClock::new(boot_ms, WALL_MS + now_ms, drift_ppm),
            process: None,
            shell: None,
            life: 0,
            damaged: false,
            retired: false,
            dying: None,
            matched: 0,
            waiting_bytes: Arc::default(),
            reads: READS_VERSION,
        });
        self.seats.len() - 1
    }

    /// Its disk is empty again.
    pub(crate) fn empty(&mut self, at: ReplicaAt, seed: u64) {
        self.seats[at].disk = SimDisk::new(seed);
    }

    /// Starts its process. `founders`: of these the group is made, if it is not yet.
    pub(crate) fn start(&mut self, at: ReplicaAt, founders: Option<Vec<Member>>, rng: &mut Rng) {
        let (slow_us, timing) = (rng.between(50, 8_000), self.timing);
        let seat = &mut self.seats[at];
        seat.life += 1;
        seat.waiting_bytes = Arc::default();
        let process = Process::new(rng.next(), seat.clock.clone());
        seat.process = Some(process.clone());
        seat.disk.slow(
            std::time::Duration::from_micros(slow_us / 4),
            std::time::Duration::from_micros(slow_us),
        );
        let opening = Opening {
            replica: at,
            life: seat.life,
            reads: seat.reads,
            addr: seat.addr.clone(),
            config: raft_config(seat.id, &timing),
            disk: seat.disk.clone(),
            network: Arc::clone(&self.network),
            process: process.clone(),
            inbox: self.inbox.clone(),
            truth: self.truth.clone(),
            phones: self.phones.clone(),
            timing,
            founders,
        };
        process.spawn(opening.run());
    }

    /// Its process is gone at once; what it had not synced may go with it.
    pub(crate) fn kill(&mut self, at: ReplicaAt, power_cut: bool) {
        let matched = self.matched(at);
        let seat = &mut self.seats[at];
        let Some(process) = seat.process.take() else { return };
        process.kill();
        self.network.hang_up(&seat.addr);
        self.phones.hang_up(&seat.addr);
        seat.shell = None;
        seat.matched = matched.max(seat.matched);
        if power_cut {
            seat.disk.cut_power();
            seat.clock.reboot();
        } else {
            seat.disk.kill_process();
        }
    }

    /// How much of the log the leader knows to be on its disk.
    fn matched(&self, at: ReplicaAt) -> u64 {
        let id = ReplicaId(self.seats[at].id);
        let Some((leader, _)) = self.leader() else { return 0 };
        let members = leader.replica().members();
        members.iter().find(|status| status.member.id == id).and_then(|s| s.matched).unwrap_or(0)
    }

    /// The shell that leads and may plan, with its place; of several the one of the newest term.
    pub(crate) fn leader(&self) -> Option<(&Arc<Shell>, ReplicaAt)> {
        let shells = self.seats.iter().enumerate();
        let leading = shells.filter_map(|(at, seat)| {
            let shell = seat.shell.as_ref()?;
            let leadership = shell.replica().leadership().borrow().clone();
            leadership.ready.then_some((leadership.term, shell, at))
        });
        leading.max_by_key(|(term, _, at)| (*term, *at)).map(|(_, shell, at)| (shell, at))
    }

    /// The members as the leader has them.
    pub(crate) fn members(&self) -> Vec<MemberStatus> {
        self.leader().map(|(shell, _)| shell.replica().members()).unwrap_or_default()
    }

    /// Places of those that are to be in the group.
    pub(crate) fn active(&self) -> Vec<ReplicaAt> {
        (0..self.seats.len()).filter(|at| !self.seats[*at].retired).collect()
    }

    /// How many of them cannot be relied on: damaged, or not voting until they have caught up.
    pub(crate) fn unreliable(&self) -> usize {
        let weak = |at: &ReplicaAt| {
            let seat = &self.seats[*at];
            let recovering = seat.shell.as_ref().is_some_and(|s| s.replica().metrics().recovering);
            seat.damaged || recovering
        };
        self.active().iter().filter(|at| weak(at)).count()
    }

    pub(crate) fn at_addr(&self, addr: &str) -> Option<ReplicaAt> {
        self.seats.iter().position(|seat| seat.addr == addr)
    }

    /// Every running replica follows one leader and has applied what there was a moment ago.
    pub(crate) fn converged(&self) -> Result<(), String> {
        let Some((leader, _)) = self.leader() else { return Err("nobody leads".into()) };
        let term = leader.replica().metrics().term;
        let last = self.truth.last();
        let members = leader.replica().members();
        for at in self.active() {
            let seat = &self.seats[at];
            let Some(shell) = &seat.shell else { return Err(format!("replica {at} is down")) };
            let metrics = shell.replica().metrics();
            let behind = metrics.applied.unwrap_or(0) + ON_THE_WAY < last;
            if metrics.term != term || behind || metrics.recovering {
                return Err(format!("replica {at} is behind #{last} of term {term}: {metrics:?}"));
            }
            let status = members.iter().find(|status| status.member.id.0 == seat.id);
            if !status.is_some_and(|status| status.voter) {
                return Err(format!("replica {at} does not vote"));
            }
        }
        match members.len() == self.active().len() {
            true => Ok(()),
            false => Err(format!("{} members, {} are wanted", members.len(), self.active().len())),
        }
    }

    /// The last entry that is on the medium of its disk.
    pub(crate) fn durable_last(&self, at: ReplicaAt) -> Option<u64> {
        let seat = &self.seats[at];
        sim::durable_last(&seat.disk, &raft_config(seat.id, &self.timing))
    }

    /// The vote, term and candidate, that is on the medium of its disk.
    pub(crate) fn durable_vote(&self, at: ReplicaAt) -> Option<(u64, u64)> {
        let seat = &self.seats[at];
        let vote = sim::durable_vote(&seat.disk, &raft_config(seat.id, &self.timing));
        vote.map(|(term, candidate)| (term, candidate.0))
    }

    pub(crate) fn net(&self) -> &Net {
        &self.net
    }
}

/// Where the replica at a place listens.
pub(crate) fn address(at: ReplicaAt) -> String {
    format!("r{at}:7077")
}

pub(crate) fn raft_config(id: u64, timing: &Timing) -> ReplicaConfig {
    ReplicaConfig {
        heartbeat_ms: timing.raft_heartbeat_ms,
        election_min_ms: timing.raft_heartbeat_ms * 4,
        election_max_ms: timing.raft_heartbeat_ms * 8,
        snapshot_timeout_ms: 20_000,
        snapshot_every: timing.snapshot_every,
        keep_log: timing.keep_log,
        retain_entries: timing.keep_log,
        segment_bytes: timing.segment_bytes,
        max_entry_bytes: MAX_ENTRY_BYTES,
        max_pending_bytes: MAX_PENDING_BYTES,
        archive_period_entries: timing.archive_period_entries,
        archive_retain: timing.archive_retain,
        ..ReplicaConfig::new(ReplicaId(id), "/rowen")
    }
}

pub(crate) fn server_config(id: u64, addr: &str, timing: &Timing) -> Config {
    Config {
        replica: Some(id),
        data: "/rowen".into(),
        listen: std::net::SocketAddr::from(([127, 0, 0, 1], 7077)),
        advertise: Some(addr.to_owned()),
        bootstrap: false,
        agents_per_s: timing.agents_per_s,
        archive_retain: timing.archive_retain,
        accept_torn_tail: false,
        timing: rowen_server::Timing {
            node_lease_ms: timing.node_lease_ms,
            heartbeat_ms: timing.heartbeat_ms,
            kill_ms: timing.kill_ms,
            drift_ppm: timing.drift_ppm,
            tick_ms: timing.tick_ms,
        },
    }
}

/// A replica's process from its first instruction on.
struct Opening {
    replica: ReplicaAt,
    life: u64,
    reads: u32,
    addr: String,
    config: ReplicaConfig,
    disk: SimDisk,
    network: Arc<MemoryNetwork>,
    process: Process,
    inbox: Inbox,
    truth: Truth,
    phones: Phones,
    timing: Timing,
    founders: Option<Vec<Member>>,
}

impl Opening {
    async fn run(self) {
        let Opening { replica, life, inbox, .. } = &self;
        let (replica, life, inbox) = (*replica, *life, inbox.clone());
        match self.open().await {
            Ok(shell) => {
                inbox.push(Arrived::Opened { replica, life, shell: Arc::clone(&shell) });
                let why = shell.ended().await;
                inbox.push(Arrived::Ended { replica, life, why });
            }
            Err(why) => inbox.push(Arrived::Refused { replica, life, why }),
        }
    }

    async fn open(self) -> Result<Arc<Shell>, String> {
        let (machine, feed) = SimulatedMachine::new();
        let watched =
            Watched { machine, replica: self.replica, reads: self.reads, truth: self.truth };
        let id = self.config.id.0;
        let opened =
            Replica::open_on(self.config, watched, Arc::new(self.disk), Arc::clone(&self.network));
        let replica = opened.await.map_err(|error| error.to_string())?;
        self.network.listen(&self.addr, &replica, &self.process);
        if let Some(founders) = self.founders
            && !replica.is_initialized().await.map_err(|error| error.to_string())?
        {
            replica.initialize(founders).await.map_err(|error| error.to_string())?;
        }
        let config = server_config(id, &self.addr, &self.timing);
        let phones = Phones { net: self.phones.net.clone(), ..self.phones.clone() };
        let calls = Arc::new(Phone { from: id, reads: self.reads, phones });
        let shell = Arc::new(Shell::simulate(config, replica, feed, calls));
        self.phones.listen(&self.addr, id, &shell, &self.process);
        Ok(shell)
    }
}

/// How replicas ask each other for state hashes.
#[derive(Clone)]
struct Phones {
    net: Net,
    lines: Arc<std::sync::Mutex<std::collections::BTreeMap<String, Line>>>,
}

#[derive(Clone)]
struct Line {
    id: u64,
    shell: Arc<Shell>,
    process: Process,
}

struct Phone {
    from: u64,
    reads: u32,
    phones: Phones,
}

impl Phones {
    fn listen(&self, addr: &str, id: u64, shell: &Arc<Shell>, process: &Process) {
        let line = Line { id, shell: Arc::clone(shell), process: process.clone() };
        self.lines.lock().expect("no holder panics").insert(addr.to_owned(), line);
    }

    fn hang_up(&self, addr: &str) {
        self.lines.lock().expect("no holder panics").remove(addr);
    }
}

impl Phone {
    async fn ask<T, F>(
        &self,
        peer: &Member,
        call: impl FnOnce(Arc<Shell>) -> F,
    ) -> Result<T, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let line = self.phones.lines.lock().expect("no holder panics").get(&peer.addr).cloned();
        let line = line.ok_or_else(|| Status::unavailable("nobody listens there"))?;
        let (here, there) = (Host::Replica(self.from), Host::Replica(line.id));
        let way = |from, to| {
            let copies = self.phones.net.fate_us(from, to);
            copies.first().copied().ok_or_else(|| Status::deadline_exceeded("no answer"))
        };
        let (there_us, back_us) = (way(here, there)?, way(there, here)?);
        tokio::time::sleep(std::time::Duration::from_micros(there_us)).await;
        let answer = line.process.spawn(call(line.shell));
        let answer = tokio::time::timeout(std::time::Duration::from_millis(500), answer).await;
        tokio::time::sleep(std::time::Duration::from_micros(back_us)).await;
        match answer {
            Ok(Ok(answer)) => answer,
            _ => Err(Status::unavailable("no answer in time")),
        }
    }
}

#[tonic::async_trait]
impl PeerCalls for Phone {
    async fn checkpoint(&self, peer: &Member, index: u64) -> Result<v1::Checkpoint, Status> {
        use v1::replica_service_server::ReplicaService;
        let request = Shell::authorized(v1::GetCheckpointRequest { index });
        let call = |shell: Arc<Shell>| async move {
            shell.peers().get_checkpoint(request).await.map(tonic::Response::into_inner)
        };
        self.ask(peer, call).await
    }

    async fn quarantine(&self, peer: &Member, why: v1::QuarantineRequest) -> Result<(), Status> {
        use v1::replica_service_server::ReplicaService;
        let request = Shell::authorized(why);
        let call =
            |shell: Arc<Shell>| async move { shell.peers().quarantine(request).await.map(drop) };
        self.ask(peer, call).await
    }

    fn reads_version(&self) -> u32 {
        self.reads
    }
}
