//! `rowen bench commit`: how many commands a second are made durable, and how long each takes.
//!
//! Real replicas, real TCP on loopback, real syncs, and the whole way: gRPC, log, majority, apply
//! in the scheduler's own state machine, answer. Where etcd is installed, three members of it on
//! the same disk take puts of the same size from the same number of clients in alternate rounds.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rowen_api::v1::{CordonNodeRequest, CordonNodeResponse, RequestId};
use tonic::Status;

use super::bounds;
use super::cpu::{Cpu, Side};
use super::etcd::{self, Etcd};
use super::figures::{Check, Figure, Report, percentile};
use super::wire::Connection;
use crate::cluster::replicas::Group;
use crate::cluster::{Timing, fabric};
use crate::output::note;

const CORDON: &str = "/rowen.v1.NodeService/CordonNode";
/// Bytes of a command's text, and of a value put into etcd.
const BYTES: usize = 200;
/// Nodes that the commands are about, and keys that are put.
const KEYS: u32 = 64;
/// Connections that clients share at most; HTTP/2 carries many requests on each.
const CONNECTIONS: u32 = 64;
/// The first requests open connections and files; they are not counted.
const WARM_UP: Duration = Duration::from_millis(500);
const ROUNDS: u32 = 4;
/// What issue 3 asks beside etcd on 3 replicas: clients, ratio.
const BARS: [(u32, f64); 3] = [(1, 1.0), (16, 1.5), (128, 2.0)];

/// Arguments of `rowen bench commit`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Clients at once, each waiting for its answer before it asks again.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 128, 1024], value_name = "N,…", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: Vec<u32>,
    /// Sizes of the group.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 3], value_name = "N,…", value_parser = clap::value_parser!(u8).range(1..=7))]
    replicas: Vec<u8>,
    /// How long each side is measured in each case.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// The etcd to measure beside, where there is one.
    #[arg(long, default_value = "etcd", value_name = "EXE")]
    etcd: String,
    #[command(flatten)]
    pub(super) common: super::Common,
}

pub(super) async fn measure(args: &Args, folder: &Path) -> Result<Report> {
    let syncs = bounds::synced_writes(folder, 1000)?;
    let per_s = 1e3 * syncs.len() as f64 / syncs.iter().sum::<f64>();
    let mut figures = vec![
        Figure::new("fdatasync", "bare, one after the other", per_s, "1/s"),
        Figure::new("fdatasync_p50", "bare, one after the other", percentile(&syncs, 50.0), "ms"),
    ];
    let mut checks = Vec::new();
    for &replicas in &args.replicas {
        let folder = folder.join(format!("replicas-{replicas}"));
        let (found, check) = with_replicas(args, &folder, replicas).await?;
        figures.extend(found);
        checks.push(check);
    }
    Ok(Report::new("bench commit", 0, figures, checks))
}

async fn with_replicas(args: &Args, folder: &Path, replicas: u8) -> Result<(Vec<Figure>, Check)> {
    let data = folder.join("rowen");
    let mut group = Group::start(&data, replicas.into(), Timing::default()).await?;
    let leader = group.leader().await?;
    group.rpc(leader).set_fabric(fabric::of_size(KEYS, 8)?).await?;
    let nodes = group.rpc(leader).nodes().await?.into_iter().map(|node| node.name).collect();
    let url = format!("http://{}", group.addrs()[leader]);
    // Under the group's folder, so that its guard ends them too.
    let peer = match replicas {
        3 => Etcd::start(&args.etcd, &data.join("etcd"), 3).await?,
        _ => None,
    };
    if replicas == 3 && peer.is_none() {
        note(&format!("no {} on the PATH: nothing is measured beside", args.etcd));
    }
    let (led, followed) = group.pids().into_iter().partition::<Vec<_>, _>(|(at, _)| *at == leader);
    let own = Side {
        leader: led.first().context("the leader is gone")?.1,
        followers: followed.into_iter().map(|(_, pid)| pid).collect(),
    };
    let bench = Bench { url, own, nodes, length: Duration::from_secs(args.seconds) };
    let mut figures = Vec::new();
    for &clients in &args.clients {
        let case = format!("replicas={replicas} clients={clients}");
        let (ours, theirs) = bench.alternate(clients, peer.as_ref()).await.context(case.clone())?;
        figures.extend(figures_of(&case, replicas, clients, &ours, theirs.as_ref(), &peer));
    }
    let status = group.rpc(leader).status().await.context("the leader changed under load")?;
    let ok = status.violations.is_empty();
    let detail = format!("{} entries, {} syncs", status.applied, status.wal_syncs);
    Ok((figures, Check { name: format!("invariants hold, replicas={replicas}"), ok, detail }))
}

fn figures_of(
    case: &str,
    replicas: u8,
    clients: u32,
    ours: &Load,
    theirs: Option<&Load>,
    peer: &Option<Etcd>,
) -> Vec<Figure> {
    let mut figures: Vec<Figure> =
        MEASURES.iter().map(|(name, unit, of)| Figure::new(name, case, of(ours), unit)).collect();
    if let (Some(theirs), Some(etcd)) = (theirs, peer) {
        let name = format!("etcd {}", etcd.version);
        let both = figures.into_iter().zip(MEASURES);
        figures =
            both.map(|(figure, (_, _, of))| figure.beside(name.clone(), of(theirs))).collect();
        let bar = BARS.iter().find(|(count, _)| replicas == 3 && *count == clients);
        if let Some((_, bar)) = bar {
            let rate = figures.remove(0).ratio_at_least(*bar);
            figures.insert(0, rate);
        }
    }
    figures
}

/// A figure's name, its unit, and how it follows from a load.
type Measure = (&'static str, &'static str, fn(&Load) -> f64);

/// What is told of each case.
const MEASURES: [Measure; 6] = [
    ("commit", "1/s", Load::per_s),
    ("commit_p50", "ms", |load| percentile(&load.latency_ms, 50.0)),
    ("commit_p99", "ms", |load| percentile(&load.latency_ms, 99.0)),
    ("commit_cpu_leader", "us", |load| load.cpu.leader_us / load.count()),
    ("commit_cpu_followers", "us", |load| load.cpu.followers_us / load.count()),
    ("commit_cpu_client", "us", |load| load.cpu.client_us / load.count()),
];

/// What clients got done.
#[derive(Default)]
struct Load {
    latency_ms: Vec<f64>,
    seconds: f64,
    cpu: Cpu,
}

impl Load {
    fn per_s(&self) -> f64 {
        self.count() / self.seconds
    }

    fn count(&self) -> f64 {
        self.latency_ms.len() as f64
    }

    fn add(&mut self, other: Load, before: Cpu, after: Cpu) {
        self.cpu.add_between(before, after);
        self.latency_ms.extend(other.latency_ms);
        self.seconds += other.seconds;
    }
}

struct Bench {
    /// Of the leader: following redirections is not what is measured.
    url: String,
    own: Side,
    nodes: Vec<String>,
    length: Duration,
}

impl Bench {
    /// Both sides in turn, so that what else the machine does falls on both.
    async fn alternate(&self, clients: u32, peer: Option<&Etcd>) -> Result<(Load, Option<Load>)> {
        let ours = connect(&self.url, clients).await?;
        let theirs = match peer {
            Some(etcd) => Some(connect(&etcd.leader, clients).await?),
            None => None,
        };
        self.rowen(&ours, clients, WARM_UP).await?;
        if let Some(connections) = &theirs {
            self.etcd(connections, clients, WARM_UP).await?;
        }
        let (mut own, mut peers) = (Load::default(), Load::default());
        for _ in 0..ROUNDS {
            let before = self.own.used()?;
            let round = self.rowen(&ours, clients, self.length / ROUNDS).await?;
            own.add(round, before, self.own.used()?);
            if let (Some(connections), Some(etcd)) = (&theirs, peer) {
                let before = etcd.processes().used()?;
                let round = self.etcd(connections, clients, self.length / ROUNDS).await?;
                peers.add(round, before, etcd.processes().used()?);
            }
        }
        Ok((own, theirs.map(|_| peers)))
    }

    /// A cordon with a reason: a command whose effect is bounded and whose way is the whole one.
    async fn rowen(
        &self,
        connections: &[Connection],
        clients: u32,
        length: Duration,
    ) -> Result<Load> {
        let unique = crate::demo::boottime_ns();
        let send = |client: u32, seq: u64| {
            let connection = pick(connections, client);
            let at = (u64::from(client) + seq) as usize % self.nodes.len();
            let request = CordonNodeRequest {
                request: Some(RequestId { client: format!("bench-{unique}-{client}"), seq }),
                name: self.nodes[at].clone(),
                reason: text(client, seq),
            };
            async move { connection.unary::<CordonNodeResponse>(CORDON, &request).await.map(drop) }
        };
        load(clients, length, send).await
    }

    async fn etcd(
        &self,
        connections: &[Connection],
        clients: u32,
        length: Duration,
    ) -> Result<Load> {
        let send = |client: u32, seq: u64| {
            let at = (u64::from(client) + seq) as usize % self.nodes.len();
            let (key, value) = (self.nodes[at].clone().into_bytes(), text(client, seq));
            etcd::put(pick(connections, client), key, value.into_bytes())
        };
        load(clients, length, send).await
    }
}

/// Each client asks, waits for the answer and asks again, until the time is over.
async fn load<F>(clients: u32, length: Duration, send: impl Fn(u32, u64) -> F) -> Result<Load>
where
    F: Future<Output = Result<(), Status>> + Send,
{
    let begun = Instant::now();
    let one = async |client: u32| {
        let (mut seq, mut latency_ms) = (0, Vec::new());
        while begun.elapsed() < length {
            seq += 1;
            let sent = Instant::now();
            send(client, seq).await?;
            latency_ms.push(sent.elapsed().as_secs_f64() * 1e3);
        }
        Ok::<_, Status>(latency_ms)
    };
    // One thread asks for all: the other cores are for those who answer.
    let all = futures::future::try_join_all((0..clients).map(one)).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let latency_ms = all.into_iter().flatten().collect();
    Ok(Load { latency_ms, seconds, cpu: Cpu::default() })
}

async fn connect(url: &str, clients: u32) -> Result<Vec<Connection>> {
    let count = clients.min(CONNECTIONS);
    futures::future::try_join_all((0..count).map(|_| Connection::open(url))).await
}

fn pick(connections: &[Connection], client: u32) -> Connection {
    connections[client as usize % connections.len()].clone()
}

/// Always so long, never twice the same.
fn text(client: u32, seq: u64) -> String {
    format!("{:0BYTES$}", u128::from(client) << 64 | u128::from(seq))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_differ_and_are_equally_long() {
        let texts = [text(1, 1), text(1, 2), text(2, 1), text(1023, u64::MAX)];
        assert!(texts.iter().all(|text| text.len() == BYTES));
        assert_eq!(texts.iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
    }

    #[tokio::test]
    async fn a_load_counts_what_was_answered() {
        let answered = std::sync::atomic::AtomicU64::new(0);
        let send = |_, _| async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            answered.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok(())
        };
        let load = load(4, Duration::from_millis(50), send).await.unwrap();
        let count = answered.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(load.latency_ms.len() as u64, count);
        assert!(load.latency_ms.iter().all(|ms| *ms >= 1.0));
        assert!((load.per_s() * load.seconds - count as f64).abs() < 0.5);
    }
}
