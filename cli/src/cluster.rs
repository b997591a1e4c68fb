//! A local cluster of real processes: one control plane and one agent a node, on loopback.
//!
//! Owns their folder, their start, their end and their murder; whatever way this process ends
//! (return, panic, Ctrl-C, even SIGKILL), nothing that it started stays behind. Never decides
//! what runs: it only speaks to the control plane as any client does.

pub(crate) mod fabric;
mod guard;
mod process;
pub(crate) mod replicas;
pub(crate) mod rpc;
mod sweep;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rowen_api::v1;
use tokio::signal::unix::{SignalKind, signal};

pub(crate) use self::guard::run as guard;
use self::process::Process;
use self::rpc::Rpc;

/// What a local cluster is made of.
pub(crate) struct Options {
    /// The folder that holds everything of it; made when missing, resumed from when not.
    pub(crate) data: PathBuf,
    /// Its nodes; each gets an agent with that many simulated GPUs. Left out: those that a resumed
    /// cluster has, and the example's for a new one.
    pub(crate) fabric: Option<v1::Fabric>,
    /// Where the control plane listens.
    pub(crate) listen: SocketAddr,
    /// The times that bound failures.
    pub(crate) timing: Timing,
}

/// Times of a cluster on one machine: shorter than a real one's, since loopback loses nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    /// How long an agent may run without a confirmed leader.
    pub(crate) node_lease_ms: u64,
    /// Between two heartbeats of an agent.
    pub(crate) heartbeat_ms: u64,
    /// From SIGKILL until the processes are gone.
    pub(crate) kill_ms: u64,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing { node_lease_ms: 2000, heartbeat_ms: 300, kill_ms: 500 }
    }
}

/// The running cluster. Dropping it ends every process of it.
pub(crate) struct Cluster {
    data: PathBuf,
    listen: SocketAddr,
    timing: Timing,
    fabric: v1::Fabric,
    exe: PathBuf,
    // Dropped in this order: the processes before the guard that would end them.
    server: Option<Process>,
    agents: BTreeMap<String, Process>,
    _guard: guard::Guard,
    _lock: File,
}

impl Cluster {
    /// Starts the control plane, gives it the fabric, starts the agents and waits until every
    /// node is up.
    pub(crate) async fn start(options: Options) -> Result<Cluster> {
        let fabric = options.fabric.clone();
        let mut cluster = Cluster::prepare(options)?;
        cluster.start_server().await?;
        cluster.settle_fabric(fabric).await?;
        let nodes: Vec<String> = cluster.node_names();
        for node in &nodes {
            cluster.start_agent(node)?;
        }
        cluster.wait_nodes_up(&nodes, Duration::from_secs(60)).await?;
        Ok(cluster)
    }

    fn prepare(options: Options) -> Result<Cluster> {
        let Options { data, listen, timing, .. } = options;
        fs::create_dir_all(data.join("logs"))
            .with_context(|| format!("cannot make {}", data.display()))?;
        // Processes are found again by this path in their arguments, so it must be the one true.
        let data = data.canonicalize()?;
        let lock = File::create(data.join("lock"))?;
        ensure!(
            lock.try_lock().is_ok(),
            "{} is in use by another `rowen dev`; stop that one or name another folder",
            data.display()
        );
        // Left behind only where both the last owner and its guard were killed.
        sweep::kill_all_under(&data)?;
        let exe = std::env::current_exe().context("cannot find my own executable")?;
        let guard = guard::Guard::start(&exe, &data)?;
        write_config(&data, listen, timing)?;
        Ok(Cluster {
            data,
            listen,
            timing,
            fabric: v1::Fabric::default(),
            exe,
            server: None,
            agents: BTreeMap::new(),
            _guard: guard,
            _lock: lock,
        })
    }

    /// Where clients reach it.
    pub(crate) fn addr(&self) -> String {
        self.listen.to_string()
    }

    /// The folder of it all.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// Its nodes, in the fabric's order.
    pub(crate) fn node_names(&self) -> Vec<String> {
        self.fabric.nodes.iter().map(|node| node.name.clone()).collect()
    }

    /// How many GPUs it has in all.
    pub(crate) fn gpu_count(&self) -> u64 {
        self.fabric.nodes.iter().map(|node| u64::from(node.gpu_count)).sum()
    }

    /// The times it was started with.
    pub(crate) fn timing(&self) -> Timing {
        self.timing
    }

    /// A new client of it.
    pub(crate) fn rpc(&self) -> Rpc {
        Rpc::connect(&self.addr())
    }

    /// Starts the control plane, for the first time or after [`Cluster::kill_server`], and waits
    /// until it answers.
    pub(crate) async fn start_server(&mut self) -> Result<()> {
        let config = self.data.join("serve.toml");
        let args = [Path::new("serve"), Path::new("--config"), &config].map(|a| a.as_os_str());
        let log = self.data.join("logs/serve.log");
        self.server = Some(Process::spawn("control plane", &self.exe, &args, &log)?);
        let rpc = self.rpc();
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let answer = rpc.status().await;
            let leads = |s: &v1::ClusterStatus| s.replicas.iter().any(|r| r.leader);
            match &answer {
                Ok(status) if leads(status) => return Ok(()),
                _ => {}
            }
            self.server.as_mut().expect("started above").ensure_alive()?;
            if Instant::now() > deadline {
                let why = answer.map_or_else(|e| e.to_string(), |_| "it has no leader".into());
                bail!("the control plane is not ready after 30 s: {why}; see {}", log.display());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// SIGKILL to the control plane; everything else goes on.
    pub(crate) fn kill_server(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill();
        }
    }

    /// Starts the agent of a node, for the first time or after its end.
    pub(crate) fn start_agent(&mut self, node: &str) -> Result<()> {
        let found = self.fabric.nodes.iter().find(|n| n.name == node);
        let found = found.with_context(|| format!("no node {node:?} in the fabric"))?;
        let (server, dir) = (self.addr(), self.node_dir(node));
        fs::create_dir_all(&dir)?;
        let dir = dir.to_string_lossy();
        let (gpus, memory) = (found.gpu_count.to_string(), found.gpu_memory_mib.to_string());
        let args = [
            ["--server", &server],
            ["--node", node],
            ["--dir", &*dir],
            ["--addr", "127.0.0.1"],
            ["--simulate-gpus", &gpus],
            ["--simulate-model", &found.gpu_model],
            ["--simulate-memory-mib", &memory],
        ];
        let args: Vec<&str> = std::iter::once("agent").chain(args.into_iter().flatten()).collect();
        let log = self.data.join(format!("logs/{node}.log"));
        let agent = Process::spawn(&format!("agent of {node}"), &self.exe, &args, &log)?;
        self.agents.insert(node.to_string(), agent);
        Ok(())
    }

    /// The machine loses power: SIGKILL to the agent, its shims and every task, at once.
    pub(crate) fn kill_node(&mut self, node: &str) -> Result<()> {
        if let Some(mut agent) = self.agents.remove(node) {
            agent.kill();
        }
        sweep::kill_all_under(&self.node_dir(node))
    }

    /// Waits until the control plane says `up` of each of these nodes.
    pub(crate) async fn wait_nodes_up(&mut self, nodes: &[String], limit: Duration) -> Result<()> {
        let (rpc, deadline) = (self.rpc(), Instant::now() + limit);
        loop {
            let up: Vec<String> = match rpc.nodes().await {
                Ok(list) => list.into_iter().filter(|n| n.state == "up").map(|n| n.name).collect(),
                Err(_) => Vec::new(),
            };
            let missing: Vec<&String> = nodes.iter().filter(|node| !up.contains(node)).collect();
            if missing.is_empty() {
                return Ok(());
            }
            for agent in self.agents.values_mut().chain(&mut self.server) {
                agent.ensure_alive()?;
            }
            if Instant::now() > deadline {
                let logs = self.data.join("logs");
                bail!("not up after {} s: {missing:?}; see {}", limit.as_secs(), logs.display());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends every process; what it leaves on disk can be resumed from.
    ///
    /// The control plane goes first: it must not take the end of the rest for failures of jobs.
    pub(crate) fn stop(&mut self) -> Result<()> {
        if let Some(mut server) = self.server.take() {
            server.terminate(Duration::from_secs(3));
        }
        for agent in self.agents.values() {
            agent.signal_term();
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        for mut agent in std::mem::take(&mut self.agents).into_values() {
            agent.wait_or_kill(deadline.saturating_duration_since(Instant::now()));
        }
        sweep::kill_all_under(&self.data)
    }

    /// Fails when one of the processes has ended by itself.
    pub(crate) fn ensure_alive(&mut self) -> Result<()> {
        for process in self.agents.values_mut().chain(&mut self.server) {
            process.ensure_alive()?;
        }
        Ok(())
    }

    /// Starts again what has ended by itself, as systemd would; returns the names. One that ends
    /// right after its start is not tried again.
    pub(crate) async fn revive(&mut self) -> Result<Vec<String>> {
        let mut revived = Vec::new();
        if let Some(server) = &mut self.server
            && server.ensure_alive_or_stable()?
        {
            self.start_server().await?;
            revived.push("control plane".to_string());
        }
        let mut ended = Vec::new();
        for (node, agent) in &mut self.agents {
            if agent.ensure_alive_or_stable()? {
                ended.push(node.clone());
            }
        }
        for node in ended {
            self.start_agent(&node)?;
            revived.push(format!("agent of {node}"));
        }
        Ok(revived)
    }

    /// Process ids: of the control plane, and of the agents by node.
    pub(crate) fn pids(&self) -> (Option<u32>, BTreeMap<&str, u32>) {
        let agents = self.agents.iter().map(|(node, agent)| (node.as_str(), agent.pid())).collect();
        (self.server.as_ref().map(Process::pid), agents)
    }

    fn node_dir(&self, node: &str) -> PathBuf {
        self.data.join("nodes").join(node)
    }

    // A resumed cluster keeps its fabric: setting the same one again would be a log entry for
    // nothing, and one that nobody named must not take its nodes away.
    async fn settle_fabric(&mut self, wanted: Option<v1::Fabric>) -> Result<()> {
        let rpc = self.rpc();
        let present = rpc.fabric().await?.filter(|fabric| !fabric.nodes.is_empty());
        self.fabric = match (wanted, &present) {
            (Some(wanted), _) => wanted,
            (None, Some(present)) => present.clone(),
            (None, None) => fabric::example()?,
        };
        if present.as_ref() != Some(&self.fabric) {
            rpc.set_fabric(self.fabric.clone()).await.context("the fabric was refused")?;
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::error!("cannot end the local cluster: {error:#}");
        }
    }
}

/// Returns when somebody wants us to end: Ctrl-C, SIGTERM, or the terminal was closed.
pub(crate) async fn interrupted() {
    let next = |kind| async move {
        match signal(kind) {
            Ok(mut signals) => drop(signals.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = next(SignalKind::interrupt()) => {}
        () = next(SignalKind::terminate()) => {}
        () = next(SignalKind::hangup()) => {}
    }
}

/// Below what agents reserve for their tasks and what the kernel takes for outgoing connections:
/// the control plane must find its port free again after it was killed.
const LOWEST_PORT: u16 = 16_000;
const HIGHEST_PORT: u16 = 20_000;

/// A free port on loopback.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(free_addresses(1)?[0])
}

/// So many different ones.
pub(crate) fn free_addresses(count: usize) -> Result<Vec<SocketAddr>> {
    let first = LOWEST_PORT + (std::process::id() % 1000) as u16 * 2;
    let ports = (first..HIGHEST_PORT).chain(LOWEST_PORT..first);
    let free = ports
        .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .filter(|address| TcpListener::bind(address).is_ok());
    let found: Vec<SocketAddr> = free.take(count).collect();
    ensure!(
        found.len() == count,
        "no {count} free ports on loopback between {LOWEST_PORT} and {HIGHEST_PORT}"
    );
    Ok(found)
}

fn write_config(data: &Path, listen: SocketAddr, timing: Timing) -> Result<()> {
    let mut times = toml::Table::new();
    for (name, value) in [
        ("node_lease_ms", timing.node_lease_ms),
        ("heartbeat_ms", timing.heartbeat_ms),
        ("kill_ms", timing.kill_ms),
    ] {
        times.insert(name.into(), toml::Value::Integer(i64::try_from(value)?));
    }
    let mut config = toml::Table::new();
    config.insert("replica".into(), toml::Value::Integer(1));
    let state = data.join("state");
    let state = state.to_str().context("the data folder's name is not UTF-8")?;
    config.insert("data".into(), toml::Value::String(state.into()));
    config.insert("listen".into(), toml::Value::String(listen.to_string()));
    config.insert("bootstrap".into(), toml::Value::Boolean(true));
    config.insert("timing".into(), toml::Value::Table(times));
    fs::write(data.join("serve.toml"), toml::to_string(&config)?)?;
    Ok(())
}
