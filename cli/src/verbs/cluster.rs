//! `cluster …`: the replicas of the control plane, their backup and their return from one.
//!
//! Setting up a data folder needs no running server; `rowen serve` runs what was set up.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use rowen_api::v1::{
    BackupRequest, GetStatusRequest, RemoveReplicaRequest, SetTimingRequest, TimingChange,
    TransferLeadershipRequest,
};
use serde::Serialize;

use super::{Session, client, on_all_cores, serve};
use crate::args::{
    BackupArgs, ClusterVerb, GlobalArgs, RemoveArgs, RestoreArgs, TimingArgs, WatchArgs,
};
use crate::client::{CallError, Client, cluster};
use crate::exit::{DONE, Outcome, UsageError};
use crate::output::Output;
use crate::output::cluster::{self as output, ClusterView};

/// `cluster …`.
pub(super) fn run(global: &GlobalArgs, verb: ClusterVerb) -> Outcome {
    let out = Output::new(global.output);
    match verb {
        ClusterVerb::Init(args) => {
            let config = serve::config(&args)?;
            set_up(out, &config, async { rowen_server::init(&config).await })
        }
        ClusterVerb::Join(args) => {
            let config = serve::config(&args.serve)?;
            set_up(out, &config, async { rowen_server::join(&config, &args.peer).await })
        }
        ClusterVerb::Restore(args) => restore(out, &args),
        ClusterVerb::Status(args) => client(global, async |s| status(s, args).await),
        ClusterVerb::Remove(args) => client(global, async |s| remove(s, args).await),
        ClusterVerb::TransferLeader(args) => {
            client(global, async |s| transfer(s, args.to.unwrap_or(0)).await)
        }
        ClusterVerb::SetTiming(args) => client(global, async |s| set_timing(s, args).await),
        ClusterVerb::Backup(args) => client(global, async |s| backup(s, args).await),
    }
}

/// What setting up a data folder prints for programs.
#[derive(Serialize)]
struct SetUpView {
    /// The id in the group.
    replica: u64,
    data: PathBuf,
    addr: String,
}

fn set_up(
    out: Output,
    config: &rowen_server::Config,
    work: impl Future<Output = anyhow::Result<u64>>,
) -> Outcome {
    on_all_cores(async {
        let view =
            SetUpView { replica: work.await?, data: config.data.clone(), addr: config.address() };
        let sentence = |view: &SetUpView| {
            let data = view.data.display();
            format!("Replica {} is set up in {data}; run it with `rowen serve`.", view.replica)
        };
        out.emit(&view, sentence)?;
        Ok(ExitCode::from(DONE))
    })
}

fn restore(out: Output, args: &RestoreArgs) -> Outcome {
    let config = serve::config(&args.serve)?;
    let bytes = fs::read(&args.file)
        .with_context(|| format!("cannot read the backup {}", args.file.display()))?;
    set_up(out, &config, async {
        rowen_server::restore(&config, &bytes, args.longest_lease)
            .with_context(|| args.file.display().to_string())
    })
}

async fn status(session: &mut Session, args: WatchArgs) -> Outcome {
    let colour = session.out.colour;
    let fetch = async |client: &mut Client| {
        let request = GetStatusRequest { ask_replicas: true };
        let get = |ch| async move { cluster(ch).get_status(request).await };
        Ok(ClusterView::new(&client.call(get).await?))
    };
    session.list(args.watch, fetch, |view| output::show(view, colour)).await
}

/// What a change of the group prints for programs.
#[derive(Serialize)]
struct ChangedView {
    replica: u64,
    /// Log index that made it durable; null: it is no log entry.
    index: Option<u64>,
}

async fn remove(session: &mut Session, args: RemoveArgs) -> Outcome {
    let request = RemoveReplicaRequest { request: session.client.request_id(), id: args.id };
    let send = |ch| {
        let request = request.clone();
        async move { cluster(ch).remove_replica(request).await }
    };
    let index = session.client.call(send).await?.index;
    let text = format!(
        "Replica {} leaves the group; its id is never used again, its folder can be deleted.",
        args.id
    );
    session.done(&ChangedView { replica: args.id, index: Some(index) }, &text)?;
    Ok(ExitCode::from(DONE))
}

async fn transfer(session: &mut Session, to: u64) -> Outcome {
    let send =
        |ch| async move { cluster(ch).transfer_leadership(TransferLeadershipRequest { to }).await };
    let to = session.client.call(send).await?.to;
    let text = format!("Replica {to} is to lead; see `rowen cluster status`.");
    session.done(&ChangedView { replica: to, index: None }, &text)?;
    Ok(ExitCode::from(DONE))
}

/// `cluster set-timing -o json`.
#[derive(Serialize)]
struct TimingView {
    /// Log index that made it durable.
    index: u64,
    node_lease_ms: u64,
    heartbeat_ms: u64,
    kill_ms: u64,
    drift_ppm: u64,
}

async fn set_timing(session: &mut Session, args: TimingArgs) -> Outcome {
    let ms = |time: Option<Duration>| {
        time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    };
    let change = TimingChange {
        node_lease_ms: ms(args.node_lease),
        heartbeat_ms: ms(args.heartbeat),
        kill_ms: ms(args.kill),
        drift_ppm: args.drift_ppm,
    };
    let request = SetTimingRequest { request: session.client.request_id(), change: Some(change) };
    let send = |ch| {
        let request = request.clone();
        async move { cluster(ch).set_timing(request).await }
    };
    let answer = session.client.call(send).await?;
    let timing = answer.timing.unwrap_or_default();
    let view = TimingView {
        index: answer.index,
        node_lease_ms: timing.node_lease_ms,
        heartbeat_ms: timing.heartbeat_ms,
        kill_ms: timing.kill_ms,
        drift_ppm: timing.drift_ppm,
    };
    let text = format!(
        "In force since log index {}: node lease {} ms, heartbeat {} ms, kill time {} ms, drift {} ppm. \
         GPUs of silent nodes come back by the wider of this and the old one until no old lease is left.",
        view.index, view.node_lease_ms, view.heartbeat_ms, view.kill_ms, view.drift_ppm
    );
    session.done(&view, &text)?;
    Ok(ExitCode::from(DONE))
}

/// `cluster backup -o json`.
#[derive(Serialize)]
struct BackupView {
    file: PathBuf,
    /// Everything up to this log index is in it.
    index: u64,
    /// Hex, of the state.
    state_hash: String,
    archive_records: usize,
    bytes: usize,
    /// Hex; the xxh3-128 at the end of the file, of all before it.
    checksum: String,
}

async fn backup(session: &mut Session, args: BackupArgs) -> Outcome {
    let BackupArgs { file, force } = args;
    if file.exists() && !force {
        let text = format!("{} exists; choose another name, or add --force", file.display());
        return Err(UsageError(text).into());
    }
    let mut aside = file.clone().into_os_string();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    let written = async {
        fetch(session, &aside).await?;
        check(&aside, &file)
    };
    let view = match written.await {
        Ok(view) => view,
        Err(error) => {
            let _ = fs::remove_file(&aside); // it may not be there
            return Err(error);
        }
    };
    name(&aside, &file).with_context(|| format!("cannot name it {}", file.display()))?;
    session.out.emit(&view, sentence)?;
    Ok(ExitCode::from(DONE))
}

/// Writes what the leader sends, and syncs it.
async fn fetch(session: &mut Session, aside: &Path) -> anyhow::Result<()> {
    let cannot = || format!("cannot write {}", aside.display());
    let mut out = File::create(aside).with_context(cannot)?;
    let open = |ch| async move { cluster(ch).backup(BackupRequest {}).await };
    let mut chunks = session.client.call(open).await?;
    loop {
        match chunks.message().await {
            Ok(Some(chunk)) => out.write_all(&chunk.data).with_context(cannot)?,
            Ok(None) => break,
            Err(status) => return Err(CallError::Refused { status: Box::new(status) }.into()),
        }
    }
    out.sync_all().with_context(cannot)
}

/// Reads it back: a backup that cannot be restored is none.
fn check(aside: &Path, file: &Path) -> anyhow::Result<BackupView> {
    let bytes = fs::read(aside)?;
    let backup = rowen_server::backup::read(&bytes).context("what came is no whole backup")?;
    let checksum = bytes.last_chunk::<16>().context("what came is no whole backup")?;
    Ok(BackupView {
        file: file.to_owned(),
        index: backup.cluster.applied(),
        state_hash: format!("{:032x}", backup.cluster.state_hash()),
        archive_records: backup.records.len(),
        bytes: bytes.len(),
        checksum: format!("{:032x}", u128::from_le_bytes(*checksum)),
    })
}

/// Renames, and makes the name durable too.
fn name(aside: &Path, file: &Path) -> std::io::Result<()> {
    fs::rename(aside, file)?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn sentence(view: &BackupView) -> String {
    format!(
        "Wrote {}: index {}, state hash {}, {} archive records, {} bytes, checksum {}.",
        view.file.display(),
        view.index,
        view.state_hash,
        view.archive_records,
        view.bytes,
        view.checksum
    )
}
