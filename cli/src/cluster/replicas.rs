//! Several replicas of a control plane and some agents, as real processes, to be murdered.
//!
//! Set up with `rowen cluster init` and `join` as an operator would. Whatever way this process
//! ends, nothing that it started stays behind. Never decides what runs.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rowen_api::v1;

use super::process::Process;
use super::rpc::Rpc;
use super::{Timing, free_addresses, guard, sweep};

/// How long a group may take to form.
const FORM: Duration = Duration::from_secs(30);

/// The running group. Dropping it ends every process of it.
pub(crate) struct Group {
    data: PathBuf,
    exe: PathBuf,
    timing: Timing,
    replicas: Vec<Replica>,
    agents: BTreeMap<String, Process>,
    _guard: guard::Guard,
}

struct Replica {
    addr: SocketAddr,
    /// None while it is dead.
    process: Option<Process>,
}

impl Group {
    /// Starts so many replicas and waits until each has its vote.
    pub(crate) async fn start(data: &Path, count: usize, timing: Timing) -> Result<Group> {
        fs::create_dir_all(data.join("logs"))?;
        let data = data.canonicalize()?;
        let exe = std::env::current_exe().context("cannot find my own executable")?;
        let guard = guard::Guard::start(&exe, &data)?;
        let addresses = free_addresses(count)?.into_iter();
        let replicas = addresses.map(|addr| Replica { addr, process: None }).collect();
        let mut group =
            Group { data, exe, timing, replicas, agents: BTreeMap::new(), _guard: guard };
        for at in 0..count {
            group.write_config(at)?;
            let config = group.config(at);
            match at {
                0 => group.set_up(&["init", "--config", &config])?,
                _ => group.join(&config).await?,
            }
            group.revive(at)?;
        }
        group.wait_formed().await?;
        Ok(group)
    }

    /// Every replica's address, with commas between.
    pub(crate) fn addrs(&self) -> Vec<String> {
        self.replicas.iter().map(|replica| replica.addr.to_string()).collect()
    }

    /// The process ids of those that live, by replica.
    pub(crate) fn pids(&self) -> Vec<(usize, u32)> {
        (0..self.replicas.len()).filter_map(|at| Some((at, self.pid(at)?))).collect()
    }

    /// A plain client of one replica.
    pub(crate) fn rpc(&self, at: usize) -> Rpc {
        Rpc::connect(&self.replicas[at].addr.to_string())
    }

    /// Process id and data folder of each replica that lives.
    pub(crate) fn processes(&self) -> Vec<(u32, PathBuf)> {
        let folder = |at: usize| self.data.join(format!("replica-{}", at + 1));
        self.pids().into_iter().map(|(at, pid)| (pid, folder(at))).collect()
    }

    /// The replica that leads, once one does.
    pub(crate) async fn leader(&mut self) -> Result<usize> {
        let deadline = Instant::now() + FORM;
        while Instant::now() < deadline {
            for at in 0..self.replicas.len() {
                if self.replicas[at].process.is_none() {
                    continue;
                }
                // Any replica answers, so that one does says nothing.
                let status = self.status(at).await;
                let leads = |status: v1::ClusterStatus| {
                    status.replicas.iter().any(|one| one.id == status.replica && one.leader)
                };
                if status.is_some_and(leads) {
                    return Ok(at);
                }
            }
            self.ensure_alive()?;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bail!("no replica leads; see {}", self.data.join("logs").display())
    }

    /// The replica's process id, while it lives.
    pub(crate) fn pid(&self, at: usize) -> Option<u32> {
        self.replicas[at].process.as_ref().map(Process::pid)
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, at: usize) {
        if let Some(mut process) = self.replicas[at].process.take() {
            process.kill();
        }
    }

    /// SIGKILL to all, none waited for before the last has its signal.
    pub(crate) fn kill_all(&mut self) {
        for process in self.replicas.iter().filter_map(|replica| replica.process.as_ref()) {
            process.signal_kill();
        }
        (0..self.replicas.len()).for_each(|at| self.kill(at));
    }

    /// Starts a replica that is dead.
    pub(crate) fn revive(&mut self, at: usize) -> Result<()> {
        let log = self.data.join(format!("logs/replica-{}.log", at + 1));
        let args = ["serve", "--config", &self.config(at)];
        let name = format!("replica {}", at + 1);
        self.replicas[at].process = Some(Process::spawn(&name, &self.exe, &args, &log)?);
        Ok(())
    }

    /// Waits until every replica votes and has nearly all of the log.
    pub(crate) async fn wait_formed(&mut self) -> Result<()> {
        let deadline = Instant::now() + FORM;
        loop {
            let leader = self.leader().await?;
            let status = self.status(leader).await;
            let count = self.replicas.len();
            let formed = status.is_some_and(|status| {
                let newest = status.replicas.iter().filter_map(|r| r.matched).max().unwrap_or(0);
                let ready = |r: &&v1::ReplicaStatus| {
                    r.voter && r.matched.is_some_and(|matched| matched + 200 >= newest)
                };
                status.replicas.iter().filter(ready).count() == count
            });
            if formed {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the replicas do not all vote after 30 s");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Gives the group a fabric and starts the agent of each node, which knows every replica.
    pub(crate) async fn start_agents(&mut self, fabric: v1::Fabric) -> Result<()> {
        let leader = self.leader().await?;
        self.rpc(leader).set_fabric(fabric.clone()).await?;
        let servers = self.addrs().join(",");
        for node in &fabric.nodes {
            let dir = self.data.join("nodes").join(&node.name);
            fs::create_dir_all(&dir)?;
            let (dir, gpus) = (dir.to_string_lossy(), node.gpu_count.to_string());
            let args = [
                ["--server", &servers],
                ["--node", &node.name],
                ["--dir", &*dir],
                ["--addr", "127.0.0.1"],
                ["--simulate-gpus", &gpus],
            ];
            let args: Vec<&str> =
                std::iter::once("agent").chain(args.into_iter().flatten()).collect();
            let log = self.data.join(format!("logs/{}.log", node.name));
            let name = format!("agent of {}", node.name);
            self.agents.insert(node.name.clone(), Process::spawn(&name, &self.exe, &args, &log)?);
        }
        self.wait_nodes_up(FORM).await.map(drop)
    }

    /// Waits until the leader says `up` of every node with an agent; how long that took.
    pub(crate) async fn wait_nodes_up(&mut self, limit: Duration) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            let leader = self.leader().await?;
            let nodes = self.rpc(leader).nodes().await.unwrap_or_default();
            let up = nodes.iter().filter(|node| node.state == "up").count();
            if up >= self.agents.len() {
                return Ok(begun.elapsed());
            }
            self.ensure_alive()?;
            ensure!(begun.elapsed() < limit, "only {up} nodes are up after {limit:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn ensure_alive(&mut self) -> Result<()> {
        let replicas = self.replicas.iter_mut().filter_map(|replica| replica.process.as_mut());
        replicas.chain(self.agents.values_mut()).try_for_each(Process::ensure_alive)
    }

    /// What the replica says, if it leads.
    async fn status(&self, at: usize) -> Option<v1::ClusterStatus> {
        let rpc = self.rpc(at);
        let answer = tokio::time::timeout(Duration::from_millis(500), rpc.status()).await;
        answer.ok()?.ok()
    }

    /// Until the group has its leader, nobody can be admitted.
    async fn join(&mut self, config: &str) -> Result<()> {
        self.leader().await?;
        let peers = self.addrs()[..1].join(",");
        self.set_up(&["join", "--config", config, "--peer", &peers])
    }

    fn set_up(&self, args: &[&str]) -> Result<()> {
        let output = Command::new(&self.exe)
            .arg("cluster")
            .args(args)
            .stdin(Stdio::null())
            .output()
            .context("cannot start rowen cluster")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "rowen cluster {}: {}", args[0], said.trim());
        Ok(())
    }

    fn config(&self, at: usize) -> String {
        self.data.join(format!("replica-{}.toml", at + 1)).to_string_lossy().into_owned()
    }

    fn write_config(&self, at: usize) -> Result<()> {
        let Timing { node_lease_ms, heartbeat_ms, kill_ms } = self.timing;
        let data = self.data.join(format!("replica-{}", at + 1));
        let text = format!(
            "data = {:?}\nlisten = \"{}\"\n\n[timing]\nnode_lease_ms = {node_lease_ms}\n\
             heartbeat_ms = {heartbeat_ms}\nkill_ms = {kill_ms}\n",
            data, self.replicas[at].addr
        );
        Ok(fs::write(self.config(at), text)?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill_all();
        self.agents.values_mut().for_each(Process::kill);
        if let Err(error) = sweep::kill_all_under(&self.data) {
            tracing::error!("cannot end the replicas: {error:#}");
        }
    }
}
