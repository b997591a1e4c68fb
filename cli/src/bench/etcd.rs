//! Members of etcd as a peer to measure beside: started, asked who leads, written to, ended.
//!
//! Speaks etcd's own gRPC (`etcdserverpb.KV/Put`), so that both sides pay for the same protocol.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tonic::Status;

use super::cpu::Side;
use super::wire::Connection;
use crate::cluster::free_addresses;

const PUT: &str = "/etcdserverpb.KV/Put";
const STATUS: &str = "/etcdserverpb.Maintenance/Status";
/// How long a group may take to form.
const FORM: Duration = Duration::from_secs(30);

/// `etcdserverpb.PutRequest`, as much of it as we use.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `etcdserverpb.PutResponse`; unknown fields are skipped.
#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Header {
    #[prost(uint64, tag = "2")]
    member_id: u64,
    #[prost(int64, tag = "3")]
    revision: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(string, tag = "2")]
    version: String,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

/// Running members. Dropping it ends them.
pub(super) struct Etcd {
    members: Vec<Child>,
    /// `http://HOST:PORT` of the leader.
    pub(super) leader: String,
    /// Which member that is.
    leader_at: usize,
    pub(super) version: String,
}

impl Etcd {
    /// Starts so many members with their data under `folder`; None where `exe` is not installed.
    pub(super) async fn start(exe: &str, folder: &Path, count: usize) -> Result<Option<Etcd>> {
        if Command::new(exe).arg("--version").stdout(Stdio::null()).status().is_err() {
            return Ok(None);
        }
        std::fs::create_dir_all(folder)?;
        let addresses = free_addresses(2 * count)?;
        let (clients, peers) = addresses.split_at(count);
        let named = peers.iter().enumerate().map(|(at, peer)| format!("m{at}=http://{peer}"));
        let group = named.collect::<Vec<_>>().join(",");
        let mut etcd = Etcd {
            members: Vec::new(),
            leader: String::new(),
            leader_at: 0,
            version: String::new(),
        };
        for at in 0..count {
            let child = member(exe, folder, at, clients[at], peers[at], &group)?;
            etcd.members.push(child);
        }
        etcd.find_leader(clients).await?;
        Ok(Some(etcd))
    }

    /// For its CPU time.
    pub(super) fn processes(&self) -> Side {
        let pids = self.members.iter().map(Child::id).enumerate();
        Side {
            leader: self.members[self.leader_at].id(),
            followers: pids.filter(|(at, _)| *at != self.leader_at).map(|(_, pid)| pid).collect(),
        }
    }

    async fn find_leader(&mut self, clients: &[SocketAddr]) -> Result<()> {
        let deadline = Instant::now() + FORM;
        while Instant::now() < deadline {
            for (at, address) in clients.iter().enumerate() {
                let url = format!("http://{address}");
                let Ok(status) = status(&url).await else { continue };
                let member = status.header.map(|header| header.member_id);
                if status.leader != 0 && member == Some(status.leader) {
                    (self.leader, self.leader_at) = (url, at);
                    self.version = status.version;
                    return Ok(());
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("etcd found no leader within {} s", FORM.as_secs())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.kill(); // it may have ended
            let _ = member.wait();
        }
    }
}

/// One key written.
pub(super) async fn put(
    connection: Connection,
    key: Vec<u8>,
    value: Vec<u8>,
) -> Result<(), Status> {
    connection.unary::<PutResponse>(PUT, &PutRequest { key, value }).await.map(drop)
}

async fn status(url: &str) -> Result<StatusResponse> {
    Ok(Connection::open(url).await?.unary(STATUS, &StatusRequest {}).await?)
}

fn member(
    exe: &str,
    folder: &Path,
    at: usize,
    client: SocketAddr,
    peer: SocketAddr,
    group: &str,
) -> Result<Child> {
    let data = folder.join(format!("m{at}"));
    let log = File::create(folder.join(format!("m{at}.log")))?;
    let (client, peer) = (format!("http://{client}"), format!("http://{peer}"));
    Command::new(exe)
        .args(["--name", &format!("m{at}"), "--data-dir"])
        .arg(&data)
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", group, "--initial-cluster-token", "rowen-bench"])
        .args(["--log-level", "error"])
        // By this the cluster's guard finds it, should we be killed.
        .env("ROWEN_TASK_DIR", &data)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {exe}"))
}
