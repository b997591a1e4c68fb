//! How a data folder becomes a replica's: a new cluster, one more replica of a cluster,
//! or a cluster restored from a backup. And who the replica is, from then on.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
};

use anyhow::{Context, bail};
use rowen_api::v1::{self, cluster_service_client::ClusterServiceClient};
use rowen_raft::{Member, Replica, ReplicaConfig, ReplicaId};
use serde::{Deserialize, Serialize};

use crate::{backup, config::Config, machine::Machine};

const FILE: &str = "identity.toml";
/// Redirections followed when a cluster is asked to admit a replica.
const HOPS: usize = 8;

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
pub fn restore(config: &Config, bytes: &[u8]) -> anyhow::Result<u64> {
    config.validate().map_err(anyhow::Error::msg)?;
    refuse_used(config)?;
    let backup = backup::read(bytes)?;
    let (cluster, id) = backup.cluster.reincarnate(&config.address());
    let member = Member { id: ReplicaId(id.0), addr: config.address() };
    let raft = ReplicaConfig::new(member.id, config.data.clone());
    let snapshot = cluster.to_snapshot()?;
    rowen_raft::seed(&raft, cluster.applied(), &snapshot, backup.records.into_iter(), member)?;
    Identity { replica: id.0, founder: true }.save(&config.data)?;
    Ok(id.0)
}

/// Opens the folder's replica; a founder that has not founded yet does so now.
pub(crate) async fn open(
    config: &Config,
    identity: Identity,
) -> anyhow::Result<(Replica, crate::machine::Feed)> {
    let (machine, feed) = Machine::new();
    let id = ReplicaId(identity.replica);
    let replica = Replica::open(ReplicaConfig::new(id, config.data.clone()), machine)
        .await
        .with_context(|| format!("data: cannot open {}", config.data.display()))?;
    if identity.founder && !replica.is_initialized().await? {
        replica.initialize(vec![Member { id, addr: config.address() }]).await?;
    }
    Ok((replica, feed))
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

/// Asks the cluster for an id. A repeated ask for the same address gets the same id.
async fn admit(addr: String, peers: &[String]) -> anyhow::Result<u64> {
    let mut next: Vec<String> = peers.iter().rev().cloned().collect();
    let mut last = anyhow::anyhow!("peer: name at least one replica of the cluster");
    for _ in 0..HOPS {
        let Some(peer) = next.pop() else { break };
        match ask(&peer, &addr).await {
            Ok(id) => return Ok(id),
            Err(status) => {
                if let Some(leader) = status.metadata().get("rowen-leader") {
                    next.push(leader.to_str().unwrap_or_default().to_owned());
                }
                last = anyhow::anyhow!("{peer}: {}", status.message());
            }
        }
    }
    Err(last.context("no replica admitted this one"))
}

async fn ask(peer: &str, addr: &str) -> Result<u64, tonic::Status> {
    let connected = ClusterServiceClient::connect(format!("http://{peer}")).await;
    let mut client = connected.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let request = v1::AdmitReplicaRequest { request: None, addr: addr.to_owned() };
    Ok(client.admit_replica(request).await?.into_inner().id)
}
