//! Commits a second of a group over loopback TCP with real syncs, beside the disk's bare
//! `fdatasync` rate: `cargo run --release -p rowen-raft --example commit [DIR]`. The state machine
//! only counts; `rowen bench commit` measures with the real one.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a measuring program")]

use std::{
    net::Ipv4Addr,
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rowen_raft::{Applied, Member, Replica, ReplicaConfig, ReplicaId, StateMachine};
use tonic::transport::server::TcpIncoming;

const ENTRY_BYTES: usize = 200;
const WARM_UP: Duration = Duration::from_millis(500);
const MEASURE: Duration = Duration::from_secs(4);

struct Counter(u64);

impl StateMachine for Counter {
    fn apply(&mut self, _index: u64, _entry: &[u8]) -> Applied {
        self.0 += 1;
        Applied { reply: self.0.to_le_bytes().to_vec(), records: Vec::new() }
    }

    fn applied(&mut self, _index: u64) {}

    fn snapshot(&self) -> Box<dyn FnOnce() -> Vec<u8> + Send> {
        let bytes = self.0.to_le_bytes().to_vec();
        Box::new(move || bytes)
    }

    fn restore(&mut self, _index: u64, snapshot: &[u8]) -> Result<(), String> {
        self.0 = u64::from_le_bytes(snapshot.try_into().map_err(|_| "eight bytes expected")?);
        Ok(())
    }
}

/// How often a second the disk syncs one small write into a file that exists already, and how long
/// the median one takes (on a busy machine the mean is that of waiting for a processor).
fn bare_rate(dir: &Path) -> String {
    let file = std::fs::File::create(dir.join("bare")).unwrap();
    file.write_all_at(&vec![0; 4 << 20], 0).unwrap();
    file.sync_all().unwrap();
    let (start, mut took) = (Instant::now(), Vec::new());
    while start.elapsed() < Duration::from_secs(2) {
        let offset = took.len() * ENTRY_BYTES % (4 << 20);
        let before = Instant::now();
        file.write_all_at(&[1; ENTRY_BYTES], offset as u64).unwrap();
        file.sync_data().unwrap();
        took.push(before.elapsed());
    }
    took.sort_unstable();
    let rate = took.len() as f64 / start.elapsed().as_secs_f64();
    format!("bare fdatasync of {ENTRY_BYTES} bytes: {rate:.0}/s, p50 {:.1?}", took[took.len() / 2])
}

async fn group(dir: &Path, size: u64) -> Vec<Replica> {
    let (mut replicas, mut members) = (Vec::new(), Vec::new());
    for id in 1..=size {
        let config = ReplicaConfig::new(ReplicaId(id), dir.join(id.to_string()));
        let replica = Replica::open(config, Counter(0)).await.unwrap();
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        members.push(Member { id: ReplicaId(id), addr });
        // Without it an answer waits 40 ms for the acknowledgement of the one before.
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let router = tonic::transport::Server::builder().add_service(replica.service());
        tokio::spawn(router.serve_with_incoming(incoming));
        replicas.push(replica);
    }
    replicas[0].initialize(members).await.unwrap();
    let mut leadership = replicas[0].leadership();
    leadership.wait_for(|leadership| leadership.ready).await.unwrap();
    replicas
}

async fn measure(leader: &Replica, clients: usize) -> (f64, Duration, Duration) {
    let begin = Instant::now() + WARM_UP;
    let end = begin + MEASURE;
    let client = |leader: Replica| async move {
        let mut took = Vec::new();
        while Instant::now() < end {
            let start = Instant::now();
            leader.propose(vec![7; ENTRY_BYTES]).await.unwrap();
            if start >= begin && Instant::now() < end {
                took.push(start.elapsed());
            }
        }
        took
    };
    let tasks: Vec<_> = (0..clients).map(|_| tokio::spawn(client(leader.clone()))).collect();
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await.unwrap());
    }
    took.sort_unstable();
    let rate = took.len() as f64 / MEASURE.as_secs_f64();
    (rate, took[took.len() / 2], took[took.len() * 99 / 100])
}

#[tokio::main]
async fn main() {
    let base = std::env::args().nth(1).unwrap_or_else(|| ".".into());
    let dir = Arc::new(tempfile::tempdir_in(base).unwrap());
    println!("{}", bare_rate(dir.path()));
    for size in [1, 3] {
        let replicas = group(&dir.path().join(format!("group-{size}")), size).await;
        for clients in [1, 16, 128, 1_024] {
            let syncs = replicas[0].metrics().sync_count;
            let (rate, p50, p99) = measure(&replicas[0], clients).await;
            let syncs = replicas[0].metrics().sync_count - syncs;
            let syncs = syncs as f64 / (WARM_UP + MEASURE).as_secs_f64();
            println!(
                "replicas={size} clients={clients}: {rate:.0} commits/s, p50 {p50:.1?}, p99 \
                 {p99:.1?}, {syncs:.0} syncs/s of the leader"
            );
        }
        for replica in replicas {
            replica.shutdown().await;
        }
        println!("{}", bare_rate(dir.path()));
    }
}
