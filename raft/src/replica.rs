//! One replica of the group, put together: log, snapshots, archive, openraft, transport. What the
//! rest of Rowen calls. Never says what an entry means, and never answers a read by a lease.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use openraft::{
    BasicNode, Raft, ReadPolicy,
    async_runtime::watch::WatchReceiver,
    errors::{
        ClientWriteError, Fatal, ForwardToLeader, InitializeError, LinearizableReadError,
        RaftError as CoreError,
    },
    metrics::WaitError,
};
use rowen_planted::{Bug, planted};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinHandle,
};
use tonic::Code;

use crate::{
    Archive, ArchiveError, OpenError, ProposeError, RaftError, ReplicaConfig, StateMachine,
    disk::{Disk, DiskLock, RealDisk},
    log_store::LogStore,
    machine::Applier,
    observer::{Observer, repair_archive},
    proposals::{self, Proposal},
    recovering::Recovering,
    seed, sim,
    snapshots::Snapshots,
    transport::{Network, Peers, RaftService, TransportService, ask_read_index, dial_tcp},
    types::{EntryBytes, TypeConfig},
    wal::{Wal, WalOptions},
};

/// Names one replica, for good: a new replica gets a new id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(pub u64);

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "replica {}", self.0)
    }
}

/// A member of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub id: ReplicaId,
    /// host:port where its gRPC listens.
    pub addr: String,
}

/// An entry that is on disk on a majority and was applied here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Its place in the log.
    pub index: u64,
    /// What the state machine answered.
    pub reply: Vec<u8>,
}

/// Who leads, as this replica sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The newest term seen.
    pub term: u64,
    /// The leader, where one is known.
    pub leader: Option<Member>,
    /// Whether that is this replica.
    pub is_leader: bool,
    /// This replica leads and has applied its own term's first entry: only now may it plan.
    pub ready: bool,
}

/// Figures of one replica.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplicaMetrics {
    /// The newest term seen.
    pub term: u64,
    /// The last entry in the log.
    pub last_log: Option<u64>,
    /// The last entry known to be committed.
    pub committed: Option<u64>,
    /// The last entry applied.
    pub applied: Option<u64>,
    /// What the newest snapshot covers.
    pub snapshot: Option<u64>,
    /// What is no longer in the log.
    pub purged: Option<u64>,
    /// How many syncs the log asked for.
    pub sync_count: u64,
    /// Whether it dropped the uncertain end of its log after a power cut and does not vote until
    /// the leader has sent it again.
    pub recovering: bool,
    /// All members, voting or not.
    pub members: Vec<Member>,
}

/// A handle on one running replica.
#[derive(Clone)]
pub struct Replica {
    inner: Arc<Inner>,
}

struct Inner {
    id: ReplicaId,
    raft: Raft<TypeConfig, Applier>,
    wal: Wal,
    recovering: Arc<Recovering>,
    archive: Arc<Archive>,
    snapshots: Arc<Snapshots>,
    peers: Peers,
    max_entry_bytes: usize,
    max_pending_bytes: usize,
    /// Bytes that may still be proposed.
    pending: Arc<Semaphore>,
    proposals: mpsc::UnboundedSender<Proposal>,
    leadership: watch::Receiver<Leadership>,
    failed: watch::Receiver<Option<String>>,
    /// Why this replica no longer takes part.
    stopped: Arc<OnceLock<String>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    lock: Mutex<Option<DiskLock>>,
}

/// What a replica is put together from.
struct Parts {
    raft: Raft<TypeConfig, Applier>,
    wal: Wal,
    recovering: Arc<Recovering>,
    archive: Arc<Archive>,
    snapshots: Arc<Snapshots>,
    peers: Peers,
    lock: DiskLock,
}

const ARCHIVE_LOCK_POLL: Duration = Duration::from_millis(10);
/// What an entry costs beside its bytes.
const ENTRY_OVERHEAD_BYTES: usize = 512;

impl Replica {
    /// Opens what is on disk, or starts empty, and applies the committed entries after the newest
    /// snapshot to `machine`.
    pub async fn open(
        config: ReplicaConfig,
        machine: impl StateMachine,
    ) -> Result<Replica, OpenError> {
        Replica::open_on(config, machine, Arc::new(RealDisk::default()), dial_tcp()).await
    }

    /// The same on a given disk and network.
    pub async fn open_on(
        config: ReplicaConfig,
        machine: impl StateMachine,
        disk: Arc<dyn Disk>,
        network: impl Into<Network>,
    ) -> Result<Replica, OpenError> {
        config.check()?;
        let mut raft_config = config.raft()?;
        let io = |error: std::io::Error| crate::WalError::io("open", &config.dir)(error);
        disk.create_dir(&config.dir).map_err(io)?;
        let lock = disk.lock(&config.dir.join("LOCK")).map_err(io)?;
        let lock =
            lock.ok_or_else(|| OpenError::Locked { dir: config.dir.display().to_string() })?;
        seed::check_finished(&*disk, &config.dir)?;
        let may_block = !disk.is_simulated();
        let snapshots = Arc::new(Snapshots::open(
            disk.clone(),
            &config.dir.join("snapshots"),
            config.retain_entries,
        )?);
        let archive_disk = disk.clone();
        let (wal, recovering) =
            Recovering::open_log(disk, &config.dir, wal_options(&config), &snapshots)?;
        let recovering = Arc::new(recovering);
        raft_config.enable_elect = !recovering.is_active();
        let raft_config = Arc::new(raft_config);
        let archive = match open_archive(&archive_disk, &config).await {
            Ok(archive) => Arc::new(archive),
            Err(error) => {
                wal.close().await;
                return Err(error.into());
            }
        };
        let log =
            LogStore { wal: wal.clone(), archive: archive.clone(), snapshots: snapshots.clone() };
        let applier = Applier::new(machine, archive.clone(), snapshots.clone(), may_block);
        let peers = Peers::new(config.id.0, network.into());
        let core = Raft::new(config.id.0, raft_config, peers.clone(), log, applier);
        let raft = match Box::pin(core).await {
            Ok(raft) => raft,
            Err(error) => {
                wal.close().await;
                archive.close();
                return Err(OpenError::Raft(error.to_string()));
            }
        };
        let parts = Parts { raft, wal, recovering, archive, snapshots, peers, lock };
        let replica = Replica::assemble(&config, parts);
        replica.elect_lone_voter().await?;
        Ok(replica)
    }

    /// A lone voter has nobody to wait for.
    async fn elect_lone_voter(&self) -> Result<(), OpenError> {
        let own_id = self.inner.id.0;
        let is_lone = self.inner.raft.with_raft_state(move |state| {
            state.membership_state.effective().voter_ids().eq([own_id])
        });
        let raft = |fatal: Fatal<TypeConfig>| OpenError::Raft(self.why_stopped(&fatal));
        if is_lone.await.map_err(raft)? && !self.inner.recovering.is_active() {
            self.inner.raft.trigger().elect(false).await.map_err(raft)?;
        }
        Ok(())
    }

    fn assemble(config: &ReplicaConfig, parts: Parts) -> Replica {
        let Parts { raft, wal, recovering, archive, snapshots, peers, lock } = parts;
        let stopped = Arc::new(OnceLock::new());
        let (leadership_sender, leadership) = watch::channel(Leadership::default());
        let (failed_sender, failed) = watch::channel(None);
        let observer = Observer {
            id: config.id,
            raft: raft.clone(),
            wal: wal.clone(),
            leadership: leadership_sender,
            failed: failed_sender,
            stopped: Arc::clone(&stopped),
        };
        let (kept, leads) = (Arc::clone(&archive), leadership.clone());
        let repair = repair_archive(config.id, raft.clone(), leads, kept, peers.clone());
        let (proposals, proposed) = mpsc::unbounded_channel(); // `pending` bounds it
        let proposing = proposals::run(raft.clone(), proposed, leadership.clone());
        let mut tasks = vec![sim::spawn(observer.run()), sim::spawn(repair), sim::spawn(proposing)];
        if recovering.is_active() {
            let (recovering, raft, wal) = (Arc::clone(&recovering), raft.clone(), wal.clone());
            tasks.push(sim::spawn(async move { recovering.run(&raft, &wal).await }));
        }
        let inner = Inner {
            id: config.id,
            raft,
            wal,
            recovering,
            archive,
            snapshots,
            peers,
            max_entry_bytes: config.max_entry_bytes,
            max_pending_bytes: config.max_pending_bytes,
            pending: Arc::new(Semaphore::new(config.max_pending_bytes)),
            proposals,
            leadership,
            failed,
            stopped,
            tasks: Mutex::new(tasks),
            lock: Mutex::new(Some(lock)),
        };
        Replica { inner: Arc::new(inner) }
    }

    pub(crate) fn raft(&self) -> &Raft<TypeConfig, Applier> {
        &self.inner.raft
    }

    /// Who this is.
    pub fn id(&self) -> ReplicaId {
        self.inner.id
    }

    /// Forms the group. Asked of one replica, once, at the group's first start.
    pub async fn initialize(&self, members: Vec<Member>) -> Result<(), RaftError> {
        let count = members.len();
        let members: BTreeMap<u64, BasicNode> = members
            .into_iter()
            .map(|member| (member.id.0, BasicNode { addr: member.addr }))
            .collect();
        if members.len() != count {
            return Err(RaftError::Members("an id is given twice".into()));
        }
        self.inner.raft.initialize(members).await.map_err(|error| match error {
            CoreError::APIError(InitializeError::NotAllowed(_)) => RaftError::AlreadyInitialized,
            CoreError::APIError(InitializeError::NotInMembers(_)) => {
                RaftError::Members(format!("{} itself is missing", self.inner.id))
            }
            CoreError::Fatal(fatal) => RaftError::Stopped(self.why_stopped(&fatal)),
        })
    }

    /// Whether the group was ever formed.
    pub async fn is_initialized(&self) -> Result<bool, RaftError> {
        let answer = self.inner.raft.is_initialized().await;
        answer.map_err(|fatal| RaftError::Stopped(self.why_stopped(&fatal)))
    }

    /// Commits an entry and applies it. Entries proposed at the same time share one sync.
    pub async fn propose(&self, entry: Vec<u8>) -> Result<Committed, ProposeError> {
        let (bytes, max) = (entry.len(), self.inner.max_entry_bytes);
        if bytes > max {
            return Err(ProposeError::TooLarge { bytes, max });
        }
        let weight = u32::try_from(bytes + ENTRY_OVERHEAD_BYTES).expect("bounded above");
        let weight = if planted(Bug::UnboundedQueue) { 0 } else { weight };
        let Ok(share) = Arc::clone(&self.inner.pending).try_acquire_many_owned(weight) else {
            let free = self.inner.pending.available_permits();
            let pending_bytes = self.inner.max_pending_bytes.saturating_sub(free);
            return Err(ProposeError::Busy { pending_bytes });
        };
        let (answer, answered) = oneshot::channel();
        let proposal = Proposal { entry: EntryBytes(entry.into()), answer, share };
        let sent = self.inner.proposals.send(proposal);
        let answer = match sent {
            Ok(()) => answered.await.unwrap_or(Err(Fatal::Stopped)),
            Err(_) => Err(Fatal::Stopped),
        };
        match answer {
            Ok(Ok(written)) => {
                Ok(Committed { index: written.log_id.index(), reply: written.response.0 })
            }
            Err(fatal) => Err(ProposeError::Stopped(self.why_stopped(&fatal))),
            Ok(Err(error)) => Err(match error {
                ClientWriteError::ForwardToLeader(to) => {
                    ProposeError::NotLeader { leader: leader_of(to) }
                }
                ClientWriteError::LogEntryDiscarded(to) => {
                    ProposeError::Unknown { leader: leader_of(to) }
                }
                other => ProposeError::Stopped(format!("unexpected: {other}")),
            }),
        }
    }

    /// The index up to which a read must see the state, applied here already: a majority confirmed
    /// the leadership after the call began. Only the leader can answer.
    pub async fn read_index(&self) -> Result<u64, ProposeError> {
        match self.inner.raft.ensure_linearizable(ReadPolicy::ReadIndex).await {
            Ok(read) => Ok(read.index()),
            Err(CoreError::Fatal(fatal)) => Err(ProposeError::Stopped(self.why_stopped(&fatal))),
            Err(CoreError::APIError(error)) => Err(match error {
                LinearizableReadError::ForwardToLeader(to) => {
                    ProposeError::NotLeader { leader: leader_of(to) }
                }
                LinearizableReadError::QuorumNotEnough(_) => ProposeError::NoQuorum,
            }),
        }
    }

    /// The same on any replica: one that follows asks the leader for the index, then waits until it
    /// has applied that much itself. Within `patience`, or it is [`ProposeError::NoQuorum`].
    pub async fn read_index_anywhere(&self, patience: Duration) -> Result<u64, ProposeError> {
        let read = async {
            let leadership = self.inner.leadership.borrow().clone();
            match leadership.leader {
                Some(leader) if !leadership.is_leader => {
                    let asked = ask_read_index(&self.inner.peers, &leader).await;
                    let index = asked.map_err(|status| match status.code() {
                        Code::FailedPrecondition => ProposeError::NotLeader { leader: None },
                        // Of a build in which only the leader answers reads: the caller goes there.
                        Code::Unimplemented => ProposeError::NotLeader { leader: Some(leader) },
                        _ => ProposeError::NoQuorum,
                    })?;
                    self.wait_applied(index, patience).await?;
                    Ok(index)
                }
                _ => self.read_index().await,
            }
        };
        tokio::time::timeout(patience, read).await.unwrap_or(Err(ProposeError::NoQuorum))
    }

    /// Waits until the entry at `index` is applied here; views show it then.
    pub async fn wait_applied(&self, index: u64, patience: Duration) -> Result<(), ProposeError> {
        let wait = self.inner.raft.wait(Some(patience));
        match wait.applied_index_at_least(Some(index), "a read").await {
            Ok(_) => Ok(()),
            Err(WaitError::Timeout(..)) => {
                Err(ProposeError::Behind { applied: self.metrics().applied.unwrap_or(0), index })
            }
            Err(WaitError::ShuttingDown) => Err(ProposeError::Stopped("shut down".into())),
        }
    }

    /// Hands leadership to another member. Returns when that was asked for, not when it is done.
    pub async fn transfer_leadership(&self, to: ReplicaId) -> Result<(), RaftError> {
        let leadership = self.inner.leadership.borrow().clone();
        if !leadership.is_leader {
            return Err(RaftError::NotLeader { leader: leadership.leader });
        }
        let asked = self.inner.raft.trigger().transfer_leader(to.0).await;
        asked.map_err(|fatal| RaftError::Stopped(self.why_stopped(&fatal)))
    }

    /// Builds a snapshot soon, whatever the policy says.
    pub async fn request_snapshot(&self) -> Result<(), RaftError> {
        let asked = self.inner.raft.trigger().snapshot().await;
        asked.map_err(|fatal| RaftError::Stopped(self.why_stopped(&fatal)))
    }

    /// Who leads, and whether this replica may plan.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// Set once the disk failed or openraft stopped: the process must exit.
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.inner.failed.clone()
    }

    /// What apply gave away for keeping.
    pub fn archive(&self) -> &Archive {
        &self.inner.archive
    }

    /// The transport, for the router of this process's gRPC server.
    pub fn service(&self) -> RaftService {
        self.transport().service()
    }

    pub(crate) fn transport(&self) -> TransportService {
        TransportService {
            own_id: self.inner.id.0,
            raft: self.inner.raft.clone(),
            archive: Arc::clone(&self.inner.archive),
            stopped: Arc::clone(&self.inner.stopped),
            recovering: Arc::clone(&self.inner.recovering),
        }
    }

    /// Figures, as of now.
    pub fn metrics(&self) -> ReplicaMetrics {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let members = metrics.membership_config.nodes();
        ReplicaMetrics {
            term: metrics.current_term,
            last_log: metrics.last_log_index,
            committed: metrics.local_committed.map(|id| id.index()),
            applied: metrics.last_applied.map(|id| id.index()),
            snapshot: metrics.snapshot.map(|id| id.index()),
            purged: metrics.purged.map(|id| id.index()),
            sync_count: self.inner.wal.sync_count(),
            recovering: self.inner.recovering.is_active(),
            members: members.map(|(id, node)| member(*id, node)).collect(),
        }
    }

    /// Stops taking part, writes out what waits and lets go of the folder.
    pub async fn shutdown(&self) {
        self.inner.stopped.set("shut down".into()).ok();
        // In a task of its own: openraft panics where a request that waited for its core's end was
        // dropped before that, as those of a peer are whose connection closes. The rest must end.
        let raft = self.inner.raft.clone();
        match tokio::spawn(async move { raft.shutdown().await }).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "raft did not stop cleanly"),
            Err(error) => tracing::warn!(%error, "raft did not stop cleanly"),
        }
        self.inner.wal.close().await;
        self.inner.snapshots.close();
        self.inner.archive.close();
        let tasks = std::mem::take(&mut *self.inner.tasks.lock().expect("no holder panics"));
        for task in tasks {
            task.abort();
        }
        self.inner.lock.lock().expect("no holder panics").take();
    }

    /// The first cause; openraft's own error is often only its consequence.
    pub(crate) fn why_stopped(&self, fatal: &Fatal<TypeConfig>) -> String {
        let failed = self.inner.wal.failed().borrow().clone();
        failed.or_else(|| self.inner.stopped.get().cloned()).unwrap_or_else(|| fatal.to_string())
    }
}

/// sled lets go of its lock a little after it is dropped. The folder's own lock is held, so whoever
/// has sled's is an earlier replica of this process.
async fn open_archive(
    disk: &Arc<dyn Disk>,
    config: &ReplicaConfig,
) -> Result<Archive, ArchiveError> {
    let dir = config.dir.join("archive");
    if disk.is_simulated() {
        return Archive::open_simulated(Arc::clone(disk), &dir, config.retention());
    }
    const PATIENCE: u32 = 200;
    let open = || Archive::open(&dir, config.retention());
    for _ in 0..PATIENCE {
        match open() {
            Err(error) if error.is_locked() => tokio::time::sleep(ARCHIVE_LOCK_POLL).await,
            opened => return opened,
        }
    }
    open()
}

pub(crate) fn wal_options(config: &ReplicaConfig) -> WalOptions {
    WalOptions {
        dir: config.dir.join("log"),
        segment_bytes: config.segment_bytes,
        cache_bytes: config.cache_bytes,
        retain_bytes: config.retain_bytes,
        accept_torn_tail: config.accept_torn_tail,
    }
}

pub(crate) fn member(id: u64, node: &BasicNode) -> Member {
    Member { id: ReplicaId(id), addr: node.addr.clone() }
}

pub(crate) fn leader_of(to: ForwardToLeader<TypeConfig>) -> Option<Member> {
    Some(member(to.leader_id?, &to.leader_node?))
}
