//! How a data folder becomes a replica's: a new cluster, one more replica of a cluster,
//! or a cluster restored from a backup. And who the replica is, from then on.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{Read, Write},
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use rowen_api::v1::{self, cluster_service_client::ClusterServiceClient};
use rowen_raft::{ArchiveRecord, Member, Replica, ReplicaConfig, ReplicaId, disk::Disk};
use rowen_state::{MAX_NODE_LEASE_MS, Timing, codec::READS_VERSION};
use serde::{Deserialize, Serialize};
use tonic::{Code, Status, transport::Endpoint};

use crate::{backup, config::Config, machine::Machine};

const FILE: &str = "identity.toml";
/// How long a cluster that has no leader now is asked to admit a replica.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(200);
const CONNECT: Duration = Duration::from_secs(2);

/// Who a data folder belongs to. Written once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    /// The id in the Raft group.
    pub(crate) replica: u64,
    /// It founded its cluster; the others wait until a leader finds them.
    pub(crate) founder: bool,
}

impl Identity {
    /// The folder's identity, if it has one.
    pub(crate) fn load(dir: &Path) -> anyhow::Result<Option<Identity>> {
        let path = dir.join(FILE);
        match fs::read_to_string(&path) {
            Ok(text) => {
                let identity = toml::from_str(&text);
                Ok(Some(identity.with_context(|| format!("{} is damaged", path.display()))?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// Written aside, synced, renamed, directory synced: an id is never half there.
    pub(crate) fn save(self, dir: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(dir)
            .with_context(|| format!("data: cannot create {}", dir.display()))?;
        let aside = dir.join(format!("{FILE}.new"));
        let mut file = File::create(&aside).with_context(|| aside.display().to_string())?;
        file.write_all(toml::to_string(&self)?.as_bytes())?;
        file.sync_all()?;
        fs::rename(&aside, dir.join(FILE))?;
        File::open(dir)?.sync_all()?;
        Ok(())
    }
}

/// Makes an empty data folder the first replica of a new cluster.
pub async fn init(config: &Config) -> anyhow::Result<u64> {
    config.validate().map_err(anyhow::Error::msg)?;
    refuse_used(config)?;
    let identity = Identity { replica: config.replica.unwrap_or(1), founder: true };
    identity.save(&config.data)?;
    let (replica, _) = open(config, identity).await?;
    replica.shutdown().await;
    Ok(identity.replica)
}

/// Makes an empty data folder a further replica of the cluster that answers at one of
/// `peers`. It catches up and gets its vote once it is served.
pub async fn join(config: &Config, peers: &[String]) -> anyhow::Result<u64> {
    config.validate().map_err(anyhow::Error::msg)?;
    refuse_used(config)?;
    let id = admit(config.address(), peers).await?;
    Identity { replica: id, founder: false }.save(&config.data)?;
    Ok(id)
}

/// Makes an empty data folder the first replica of a cluster that goes on from a backup.
/// Its incarnation rises, so that no allocation of before can be mistaken for one of after.
/// `longest_lease`: what an agent of before may hold; the backup cannot know what was granted after
/// it. Nodes that do not come back keep their GPUs for as long.
pub fn restore(config: &Config, bytes: &[u8], longest_lease: Duration) -> anyhow::Result<u64> {
    config.validate().map_err(anyhow::Error::msg)?;
    let longest_ms = u64::try_from(longest_lease.as_millis()).unwrap_or(u64::MAX);
    if longest_ms > MAX_NODE_LEASE_MS {
        bail!(
            "longest-lease: is {longest_ms} ms; no cluster grants more than 1h: give at most that"
        );
    }
    refuse_used(config)?;
    let since = (unix_s(), config.timing.initial(), longest_ms);
    let Reborn { index, snapshot, records, member } = reborn(bytes, config.address(), since)?;
    let id = member.id;
    let raft = raft_config(config, id);
    rowen_raft::seed(&raft, index, &snapshot, records.into_iter(), member)?;
    Identity { replica: id.0, founder: true }.save(&config.data)?;
    Ok(id.0)
}

/// The same for an empty disk of a simulated world, whose wall clock shows `unix_s`. `raft` gets
/// the id of the replica.
pub(crate) async fn restore_on(
    disk: Arc<dyn Disk>,
    raft: &mut ReplicaConfig,
    bytes: &[u8],
    config: &Config,
    (unix_s, longest_ms): (u64, u64),
) -> anyhow::Result<()> {
    let since = (unix_s, config.timing.initial(), longest_ms);
    let Reborn { index, snapshot, records, member } = reborn(bytes, config.address(), since)?;
    raft.id = member.id;
    rowen_raft::seed_on(disk, raft, (index, &snapshot), records.into_iter(), member).await?;
    Ok(())
}

/// What a cluster goes on from after a backup.
struct Reborn {
    index: u64,
    snapshot: Vec<u8>,
    records: Vec<ArchiveRecord>,
    member: Member,
}

fn reborn(
    bytes: &[u8],
    addr: String,
    (unix_s, timing, longest_ms): (u64, Timing, u64),
) -> anyhow::Result<Reborn> {
    let backup = backup::read(bytes)?;
    let (cluster, id) = backup.cluster.reincarnate(&addr, unix_s, timing, longest_ms);
    let member = Member { id: ReplicaId(id.0), addr };
    let (index, snapshot) = (cluster.applied(), cluster.to_snapshot()?);
    Ok(Reborn { index, snapshot, records: backup.records, member })
}

/// Opens the folder's replica; a founder that has not founded yet does so now.
pub(crate) async fn open(
    config: &Config,
    identity: Identity,
) -> anyhow::Result<(Replica, crate::machine::Feed)> {
    let (machine, feed) = Machine::new();
    let id = ReplicaId(identity.replica);
    let replica = Replica::open(raft_config(config, id), machine)
        .await
        .with_context(|| format!("data: cannot open {}", config.data.display()))?;
    if identity.founder && !replica.is_initialized().await? {
        replica.initialize(vec![Member { id, addr: config.address() }]).await?;
    }
    Ok((replica, feed))
}

fn raft_config(config: &Config, id: ReplicaId) -> ReplicaConfig {
    ReplicaConfig {
        archive_retain: config.archive_retain,
        accept_torn_tail: config.accept_torn_tail,
        ..ReplicaConfig::new(id, config.data.clone())
    }
}

/// Who this folder is; `bootstrap` makes an empty one the founder of a new cluster.
pub(crate) fn identify(config: &Config) -> anyhow::Result<Identity> {
    if let Some(identity) = Identity::load(&config.data)? {
        if config.replica.is_some_and(|replica| replica != identity.replica) {
            bail!(
                "replica: the folder {} is replica {}'s; leave `replica` out of the file",
                config.data.display(),
                identity.replica
            );
        }
        return Ok(identity);
    }
    if !config.bootstrap {
        bail!(
            "data: {} holds no replica; make one with `rowen cluster init` or `rowen cluster join`",
            config.data.display()
        );
    }
    let identity = Identity { replica: config.replica.unwrap_or(1), founder: true };
    identity.save(&config.data)?;
    Ok(identity)
}

fn refuse_used(config: &Config) -> anyhow::Result<()> {
    let used = match fs::read_dir(&config.data) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(error).with_context(|| config.data.display().to_string()),
    };
    if used {
        bail!(
            "data: {} is not empty; choose another folder, or move it away",
            config.data.display()
        );
    }
    Ok(())
}

/// Asks the cluster for an id, under one request id: however often it is sent, it gets one.
async fn admit(addr: String, peers: &[String]) -> anyhow::Result<u64> {
    let mut next: VecDeque<String> = peers.iter().cloned().collect();
    let request = v1::RequestId { client: random_id()?, seq: 1 };
    let deadline = Instant::now() + PATIENCE;
    while let Some(peer) = next.pop_front() {
        let status = match ask(&peer, &addr, &request).await {
            Ok(id) => return Ok(id),
            Err(status) => status,
        };
        if status.code() != Code::Unavailable || Instant::now() >= deadline {
            bail!("peer: {peer} did not admit this replica: {}", status.message());
        }
        next.push_back(peer);
        match status.metadata().get("rowen-leader").and_then(|addr| addr.to_str().ok()) {
            Some(leader) => next.push_front(leader.to_owned()),
            None => tokio::time::sleep(PAUSE).await, // no leader now, or nobody there
        }
    }
    bail!("peer: name at least one replica of the cluster")
}

async fn ask(peer: &str, addr: &str, id: &v1::RequestId) -> Result<u64, Status> {
    let unavailable = |error: tonic::transport::Error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        Status::unavailable(cause.unwrap_or_else(|| error.to_string()))
    };
    let endpoint = Endpoint::from_shared(format!("http://{peer}"))
        .map_err(|_| Status::invalid_argument("it is no address; give host:port"))?
        .connect_timeout(CONNECT);
    let mut client = ClusterServiceClient::new(endpoint.connect().await.map_err(unavailable)?);
    let request = v1::AdmitReplicaRequest {
        request: Some(id.clone()),
        addr: addr.to_owned(),
        reads_version: READS_VERSION,
    };
    Ok(client.admit_replica(request).await?.into_inner().id)
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// 128 random bits.
fn random_id() -> anyhow::Result<String> {
    let mut bytes = [0u8; 16];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes))?;
    Ok(format!("join-{:032x}", u128::from_le_bytes(bytes)))
}
