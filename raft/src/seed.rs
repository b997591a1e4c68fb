//! Makes an empty data folder into that of a one-member group with a given state: how a backup
//! comes back. Never touches a folder that holds anything.

use std::{fs, io, path::Path, sync::Arc};

use openraft::BasicNode;
use tokio::sync::oneshot;

use crate::{
    ArchiveRecord, Member, OpenError, ReplicaConfig, WalError,
    archive::{Archive, Indexed},
    codec,
    disk::{Disk, RealDisk},
    replica::wal_options,
    snapshots::{SnapshotError, Snapshots},
    types::{SnapshotMeta, StoredMembership, Vote, log_id},
    wal::{Wal, writer::Done},
};

/// Stands in a folder while it is being made; one that has it is not used.
pub(crate) const UNFINISHED: &str = "UNFINISHED";
/// The term in which the state counts as committed. The first leader's is the next.
const TERM: u64 = 1;
/// How many records go to the archive in one piece.
const PIECE: usize = 1_000;

/// Makes the empty folder of `config` into that of a group whose one member is `member`, whose
/// state is `snapshot` at `index` and whose archive holds `records`. Blocks its thread.
pub fn seed(
    config: &ReplicaConfig,
    index: u64,
    snapshot: &[u8],
    records: impl Iterator<Item = ArchiveRecord>,
    member: Member,
) -> Result<(), OpenError> {
    let dir = config.dir.as_path();
    let disk = Arc::new(RealDisk::default());
    let fail = |error: io::Error| WalError::io("make", dir)(error);
    disk.create_dir(dir).map_err(fail)?;
    if fs::read_dir(dir).map_err(fail)?.next().is_some() {
        let fix = format!("{} is not empty: choose another folder", dir.display());
        return Err(OpenError::Config { field: "dir", fix });
    }
    // The log has a thread of its own: nothing of this waits for a runtime.
    futures::executor::block_on(seed_on(disk, config, (index, snapshot), records, member))
}

/// The same on an empty disk of any kind, where nothing blocks.
pub async fn seed_on(
    disk: Arc<dyn Disk>,
    config: &ReplicaConfig,
    (index, snapshot): (u64, &[u8]),
    records: impl Iterator<Item = ArchiveRecord>,
    member: Member,
) -> Result<(), OpenError> {
    config.check()?;
    if member.id != config.id {
        let fix = format!("the member is {}, the folder's {}", member.id, config.id);
        return Err(OpenError::Config { field: "id", fix });
    }
    let dir = config.dir.as_path();
    let fail = |error: io::Error| WalError::io("make", dir)(error);
    disk.create_dir(dir).map_err(fail)?;
    let lock = disk.lock(&dir.join("LOCK")).map_err(fail)?;
    let _lock = lock.ok_or_else(|| OpenError::Locked { dir: dir.display().to_string() })?;
    let mark = dir.join(UNFINISHED);
    disk.create(&mark).map_err(fail)?;
    disk.sync_dir(dir).map_err(fail)?;

    write_archive(&disk, config, index, records)?;
    write_snapshot(disk.clone(), config, index, snapshot, member)?;
    write_log(disk.clone(), config, index).await?;

    disk.remove(&mark).map_err(fail)?;
    disk.sync_dir(dir).map_err(fail)?;
    Ok(())
}

/// Whether `dir` is the rest of a seeding that did not come to its end.
pub(crate) fn check_finished(disk: &dyn Disk, dir: &Path) -> Result<(), OpenError> {
    let names = disk.list(dir).map_err(WalError::io("list", dir))?;
    if names.iter().any(|name| name == UNFINISHED) {
        let fix = format!("{} is half restored: empty it and restore again", dir.display());
        return Err(OpenError::Config { field: "dir", fix });
    }
    Ok(())
}

fn write_archive(
    disk: &Arc<dyn Disk>,
    config: &ReplicaConfig,
    index: u64,
    records: impl Iterator<Item = ArchiveRecord>,
) -> Result<(), OpenError> {
    let dir = config.dir.join("archive");
    let archive = match disk.is_simulated() {
        true => Archive::open_simulated(Arc::clone(disk), &dir, config.retention())?,
        false => Archive::open(&dir, config.retention())?,
    };
    archive.write(index, Vec::new(), None)?;
    let mut piece = Vec::new();
    for record in records {
        piece.push(Indexed { index, record });
        if piece.len() == PIECE {
            archive.merge(std::mem::take(&mut piece))?;
        }
    }
    archive.merge(piece)?;
    archive.checkpoint()?;
    archive.close();
    Ok(())
}

fn write_snapshot(
    disk: Arc<dyn Disk>,
    config: &ReplicaConfig,
    index: u64,
    snapshot: &[u8],
    member: Member,
) -> Result<(), OpenError> {
    let nodes = [(member.id.0, BasicNode { addr: member.addr })].into();
    let membership = codec::new_membership(vec![vec![member.id.0]], nodes)
        .map_err(|error| OpenError::Config { field: "member", fix: error.to_string() })?;
    let at = Some(log_id(TERM, index));
    let meta =
        SnapshotMeta { last_log_id: at, last_membership: StoredMembership::new(at, membership) };
    let dir = config.dir.join("snapshots");
    let snapshots = Snapshots::open(disk, &dir, config.retain_entries)?;
    snapshots.save(&meta, snapshot).map_err(SnapshotError::into)
}

async fn write_log(
    disk: Arc<dyn Disk>,
    config: &ReplicaConfig,
    index: u64,
) -> Result<(), OpenError> {
    let wal = Wal::open(disk, wal_options(config))?;
    let vote = Vote::new_committed(TERM, config.id.0);
    durable(|done| wal.save_vote(vote, done)).await?;
    durable(|done| wal.purge(log_id(TERM, index), index, done)).await?;
    wal.save_committed(Some(log_id(TERM, index)));
    wal.close().await;
    Ok(())
}

/// Submits something and waits until it is on disk.
async fn durable(submit: impl FnOnce(Done) -> Result<(), WalError>) -> Result<(), WalError> {
    let (sender, receiver) = oneshot::channel();
    submit(Box::new(move |result| drop(sender.send(result))))?;
    receiver.await.unwrap_or(Err(WalError::Closed))
}
