//! The log of a busy cluster, made without a cluster: jobs come, are planned, start, run, end, some
//! are cancelled and some fail. Commands are what the services and agents of a real one propose,
//! one after another depends on what the state has become. Never measures.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use rowen_raft::{Applied, ArchiveRecord, Replica, StateMachine};
use rowen_server::{Core, desired_tasks};
use rowen_state::codec;
use rowen_state::{
    Cluster, Command, Entry, GpuMask, JobSpec, NodeId, NodeReport, RequestId, Resources, TaskPhase,
    TaskReport,
};

/// Nodes of eight GPUs.
const NODES: u32 = 128;
const GPUS: u32 = 8;
/// Submissions of a round, each by one of as many clients: about half of what the GPUs would take.
const SUBMITS: u64 = 64;
const BEGIN_MS: u64 = 1_700_000_000_000;
/// Between two steps of the state's clock.
const STEP_MS: u64 = 700;

/// The production core as the log drives it. Clones are the same one.
#[derive(Clone, Default)]
pub(super) struct Machine(Arc<Mutex<Driven>>);

/// What has become of the log.
#[derive(Default)]
pub(super) struct Driven {
    pub(super) core: Core,
    pub(super) entries: u64,
    pub(super) ended_jobs: u64,
    /// Keys and values given to the archive.
    pub(super) archived_bytes: u64,
}

impl Machine {
    pub(super) fn look(&self) -> MutexGuard<'_, Driven> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn cluster(&self) -> Cluster {
        self.look().core.cluster().clone()
    }
}

impl StateMachine for Machine {
    fn apply(&mut self, index: u64, entry: &[u8]) -> Applied {
        let mut driven = self.look();
        let step = driven.core.apply(index, entry).expect("written by this build");
        driven.entries += 1;
        let reply = codec::encode(1, step.answer).expect("an answer is small");
        let mut records = Vec::new();
        for record in step.records {
            driven.ended_jobs += u64::from(record.key.starts_with(b"job/"));
            driven.archived_bytes += (record.key.len() + record.value.len()) as u64;
            records.push(ArchiveRecord { key: record.key, value: record.value });
        }
        Applied { reply, records }
    }

    fn applied(&mut self, _index: u64) {}

    fn snapshot(&self) -> Box<dyn FnOnce() -> Vec<u8> + Send> {
        let cluster = self.cluster();
        Box::new(move || cluster.to_snapshot().expect("the state fits the snapshot's limit"))
    }

    fn restore(&mut self, _index: u64, snapshot: &[u8]) -> Result<(), String> {
        self.look().core.restore(snapshot).map_err(|error| error.to_string())
    }
}

/// Proposes round after round.
pub(super) struct Traffic {
    replica: Replica,
    machine: Machine,
    now_ms: u64,
    round: u64,
}

impl Traffic {
    /// A fabric whose agents have all come.
    pub(super) async fn start(replica: Replica, machine: Machine) -> Result<Traffic> {
        let mut traffic = Traffic { replica, machine, now_ms: BEGIN_MS, round: 0 };
        let fabric = rowen_sim::uniform_fabric(NODES, GPUS);
        traffic.propose("operator", vec![(None, Command::SetFabric(fabric))]).await?;
        let nodes = traffic.nodes().into_iter().map(|node| (None, Command::NodeUp(hello(node))));
        traffic.propose("agent", nodes.collect()).await?;
        Ok(traffic)
    }

    /// Jobs come, are placed, start; some end; one in sixteen is cancelled.
    pub(super) async fn round(&mut self) -> Result<()> {
        self.round += 1;
        let round = self.round;
        let submit = |client: u64| {
            let request = RequestId { client: format!("client-{client}"), seq: round };
            (Some(request), Command::SubmitJob(job(round * SUBMITS + client)))
        };
        self.propose("operator", (1..=SUBMITS).map(submit).collect()).await?;
        let view = self.machine.cluster();
        let queued = view.queue().filter(|job| job.id.0.is_multiple_of(16));
        let cancels = queued.map(|job| (None, Command::CancelJob(job.id))).collect();
        self.propose("operator", cancels).await?;
        if let Some(plan) = Core::plan(&self.machine.cluster()) {
            self.propose("planner", vec![(None, plan)]).await?;
        }
        for _ in 0..2 {
            let reports = self.reports();
            self.propose("agent", reports).await?;
        }
        self.propose("leader", vec![(None, Command::Tick)]).await
    }

    /// What each agent says: a task that was bound runs; a running one ends, by itself or because
    /// it must.
    fn reports(&self) -> Vec<(Option<RequestId>, Command)> {
        let view = self.machine.cluster();
        let mut reports: BTreeMap<NodeId, Vec<TaskReport>> = BTreeMap::new();
        for node in self.nodes() {
            for (allocation, rank) in desired_tasks(&view, node) {
                let phase = match allocation.tasks[rank].phase {
                    _ if allocation.stop.is_some() => TaskPhase::Exited { code: 143 },
                    TaskPhase::Bound => TaskPhase::Running,
                    // One of three goes on; one in thirty-two that ends has failed.
                    _ if (allocation.id.0 + self.round).is_multiple_of(3) => continue,
                    _ => TaskPhase::Exited { code: i32::from(allocation.id.0.is_multiple_of(32)) },
                };
                reports.entry(node).or_default().push(TaskReport {
                    node,
                    allocation: allocation.id,
                    rank: rank as u32,
                    epoch: allocation.epoch,
                    phase,
                    port: 0,
                    message: String::new(),
                });
            }
        }
        reports.into_values().map(|reports| (None, Command::Report(reports))).collect()
    }

    fn nodes(&self) -> Vec<NodeId> {
        self.machine.cluster().nodes().iter().map(|(id, _)| id).collect()
    }

    /// Proposes commands all at once and waits for all answers. A refusal is a bug of this file.
    async fn propose(
        &mut self,
        principal: &str,
        commands: Vec<(Option<RequestId>, Command)>,
    ) -> Result<()> {
        self.now_ms += STEP_MS;
        let propose = async |(request, command): (Option<RequestId>, Command)| {
            let principal = principal.to_owned();
            let entry = Entry { at_ms: self.now_ms, principal, request, command };
            let bytes = codec::encode(1, entry.clone())?;
            let answer = self.replica.propose(bytes).await?.reply;
            let answer: rowen_server::Answer = codec::decode(&answer)?;
            let refusal = answer.err().map(|refusal| refusal.message);
            ensure!(refusal.is_none(), "{:?}: {}", entry.command, refusal.unwrap_or_default());
            anyhow::Ok(())
        };
        let all = try_join_all(commands.into_iter().map(propose));
        all.await.with_context(|| format!("round {}", self.round)).map(drop)
    }
}

/// Mostly small gangs, some of several nodes.
fn job(number: u64) -> JobSpec {
    let (workers, gpus) =
        [(1, 1), (1, 2), (1, 1), (2, 4), (1, 8), (1, 1), (4, 8), (1, 4)][(number % 8) as usize];
    let args = ["python3", "-m", "train", "--config", "/shared/configs/run.yaml", "--resume"];
    JobSpec {
        name: format!("train-{number}"),
        tenant: ["research", "products", "evals"][(number % 3) as usize].into(),
        queue: "main".into(),
        priority: (number % 5) as u32 * 100,
        workers,
        processes_per_worker: gpus,
        resources: Resources { gpus, ..Resources::default() },
        required: None,
        preferred: None,
        command: args.map(str::to_owned).to_vec(),
        env: [("WANDB_PROJECT".to_owned(), "pretraining".to_owned())].into(),
        working_dir: "/shared/work".into(),
        time_limit_ms: 0,
        notice_ms: 120_000,
        restarts: 1,
        checkpoint_interval_ms: 600_000,
        shape: Default::default(),
    }
}

fn hello(node: NodeId) -> NodeReport {
    NodeReport {
        node,
        boot_id: "bench".into(),
        addr: format!("node-{node}"),
        ports: vec![29_500, 29_501, 29_502, 29_503, 29_504, 29_505, 29_506, 29_507],
        healthy: GpuMask::first(GPUS),
        simulated: true,
        version: env!("CARGO_PKG_VERSION").into(),
        folder: String::new(),
        said_ms: 0,
        tasks: Vec::new(),
    }
}
