//! A replica that dropped the uncertain end of its log after a power cut, until it can be trusted
//! again. It may have acknowledged what it dropped, so it must not help to elect a leader that
//! lacks it.
//!
//! Why waiting is enough. Say that it acknowledged entry (t, i) and dropped it.
//! - Its promises are whole: a vote is answered only once two batches hold it (`wal::writer`), and
//!   only the last batch can be uncertain. So it still refuses every leader older than any it ever
//!   voted for or followed; its term is at least t.
//! - It grants no vote and stands for none. So every leader elected meanwhile got its majority from
//!   replicas that forgot nothing, and the usual argument holds for them: if (t, i) is committed,
//!   whoever leads a term after t has it. The leader of t itself made it.
//! - So whichever leader it accepts either has (t, i) or (t, i) was not committed and never will be.
//!   That leader may count an old acknowledgement for (t, i) as long as it leads; if it ends before
//!   this replica has i back, no majority can be found without one that has it, for this replica
//!   does not vote.
//! - It is done when its log, on disk, is longer than the dropped end can have made it: the entries
//!   that reach there came from such a leader, and Raft's log matching makes everything before
//!   them that leader's too.
//!
//! The mark is on disk before the tail is erased, so that a second crash finds one or the other.
//! Acknowledging entries is safe all the while: what is acknowledged now is on disk.
//!
//! Where that many replicas are in this state that no majority remains, nobody can be elected, and
//! an operator must decide: `accept_torn_tail` ends the state, or a restore. In a group of fewer
//! than three voters that is always so, hence such a replica refuses to start instead.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use openraft::{Raft, async_runtime::watch::WatchReceiver};

use crate::{
    OpenError, WalError, codec,
    disk::Disk,
    machine::Applier,
    snapshots::Snapshots,
    types::{Membership, TypeConfig},
    wal::{
        Wal, WalOptions,
        record::{self, Kind, Parsed},
        recover,
    },
};

const NAME: &str = "recovering";
/// The least that an entry takes in the log.
const LEAST_ENTRY_BYTES: u64 = record::HEADER_BYTES as u64 + 20;
/// A group that can elect a leader without this replica.
const LEAST_VOTERS: usize = 3;

/// Whether this replica may vote.
pub(crate) struct Recovering {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// The last index that the dropped tail can have held.
    upto: u64,
    active: AtomicBool,
}

impl Recovering {
    /// Opens the log in `options.dir`. Where its end is uncertain and the group can do without this
    /// replica's vote, drops that end.
    pub(crate) fn open_log(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: WalOptions,
        snapshots: &Snapshots,
    ) -> Result<(Wal, Recovering), OpenError> {
        let marked = read_mark(&*disk, dir)?;
        let mut recovering = Recovering {
            disk: Arc::clone(&disk),
            dir: dir.into(),
            upto: marked.unwrap_or(0),
            active: AtomicBool::new(marked.is_some()),
        };
        let torn = match Wal::open(Arc::clone(&disk), options.clone()) {
            Err(torn @ WalError::TornTail { .. }) => torn,
            opened => {
                let wal = opened?;
                if options.accept_torn_tail && recovering.is_active() {
                    tracing::warn!(
                        "nobody was told of the end that was dropped, says the operator"
                    );
                    recovering.end()?;
                }
                return Ok((wal, recovering));
            }
        };
        let WalError::TornTail { bytes, .. } = torn else { unreachable!("matched above") };
        let Some(last) = last_of_a_larger_group(&*disk, &options, snapshots)? else {
            return Err(torn.into());
        };
        let upto = last + bytes / LEAST_ENTRY_BYTES + 1;
        recovering.begin(recovering.upto.max(upto))?;
        tracing::warn!(error = %torn, upto,
            "dropped the uncertain end of the log; no votes until the leader has sent it again");
        let wal = Wal::open(disk, WalOptions { accept_torn_tail: true, ..options })?;
        Ok((wal, recovering))
    }

    /// Whether it may not vote yet.
    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    /// Waits until the log reaches far enough, then lets this replica vote.
    pub(crate) async fn run(&self, raft: &Raft<TypeConfig, Applier>, wal: &Wal) {
        let mut metrics = raft.metrics();
        while metrics.borrow_watched().last_log_index <= Some(self.upto) {
            if metrics.changed().await.is_err() {
                return;
            }
        }
        // What the metrics tell is accepted, not yet on disk.
        if let Err(error) = wal.flushed().await {
            tracing::warn!(%error, "the log cannot be written, so this replica goes on without a vote");
            return;
        }
        if let Err(error) = self.end() {
            tracing::error!(%error, "this replica goes on without a vote");
            return;
        }
        raft.runtime_config().elect(true);
        tracing::info!(upto = self.upto, "the log is whole again; this replica votes");
    }

    fn begin(&mut self, upto: u64) -> Result<(), WalError> {
        let path = self.dir.join(NAME);
        let temporary = path.with_extension("tmp");
        let mut bytes = Vec::new();
        record::push(&mut bytes, Kind::File, codec::SCHEMA, upto, &[]);
        let file = self.disk.create(&temporary).map_err(WalError::io("create", &temporary))?;
        file.write_at(&bytes, 0).map_err(WalError::io("write", &temporary))?;
        file.sync_data().map_err(WalError::io("sync", &temporary))?;
        self.disk.rename(&temporary, &path).map_err(WalError::io("rename", &path))?;
        self.disk.sync_dir(&self.dir).map_err(WalError::io("sync", &self.dir))?;
        self.upto = upto;
        *self.active.get_mut() = true;
        Ok(())
    }

    fn end(&self) -> Result<(), WalError> {
        let path = self.dir.join(NAME);
        self.disk.remove(&path).map_err(WalError::io("remove", &path))?;
        self.disk.sync_dir(&self.dir).map_err(WalError::io("sync", &self.dir))?;
        self.active.store(false, Ordering::Release);
        Ok(())
    }
}

fn read_mark(disk: &dyn Disk, dir: &Path) -> Result<Option<u64>, WalError> {
    let names = disk.list(dir).map_err(WalError::io("list", dir))?;
    if !names.iter().any(|name| name == NAME) {
        return Ok(None);
    }
    let path = dir.join(NAME);
    let file = disk.open(&path).map_err(WalError::io("open", &path))?;
    let bytes = recover::read_all(&*file, &path)?;
    match record::parse(&bytes, 0) {
        Parsed::Record(record) if record.kind == Kind::File => Ok(Some(record.index)),
        _ => Err(WalError::corrupt(&path, 0, "not the mark of a dropped tail".into())),
    }
}

/// The last index that is certain, if the group elects leaders without this replica.
fn last_of_a_larger_group(
    disk: &dyn Disk,
    options: &WalOptions,
    snapshots: &Snapshots,
) -> Result<Option<u64>, OpenError> {
    let survey = recover::survey(disk, options)?;
    let snapshot = snapshots.newest_meta();
    let covered = snapshot.as_ref().and_then(|meta| meta.last_log_id).map(|id| id.index());
    let logged = survey.membership;
    let kept = snapshot.map(|meta| meta.last_membership);
    let kept =
        kept.map(|stored| (stored.log_id().map(|id| id.index()), stored.membership().clone()));
    let logged = logged.map(|(index, membership)| (Some(index), membership));
    let newest = [kept, logged].into_iter().flatten().max_by_key(|(index, _)| *index);
    let is_larger = |membership: &Membership| {
        let configs = membership.get_joint_config();
        !configs.is_empty() && configs.iter().all(|voters| voters.len() >= LEAST_VOTERS)
    };
    let can_wait = newest.is_some_and(|(_, membership)| is_larger(&membership));
    Ok(can_wait.then(|| survey.last.max(covered).unwrap_or(0)))
}
