//! A cluster of any size and load, built by real commands: what the planner is measured on.
//!
//! Everything is drawn from one seed. Never plans anything itself.

use anyhow::{Result, ensure};
use rowen_state::{
    Cluster, Command, Decision, Entry, FillerSpec, GpuMask, JobId, JobSpec, NodeId, NodeReport,
    Place, Plan, Reply, Resources, TaskPhase, TaskReport,
};
use rowen_topology::{FabricRecord, GpuKind, Inventory, LeafGroup, Level, NodeGroup, NodePos};

/// GPUs of a node.
pub(super) const NODE_GPUS: u32 = 8;
/// Nodes that share their leafs.
const BLOCK_NODES: u32 = 32;
/// Blocks that share their spines.
const POD_BLOCKS: u32 = 64;

/// How much of the fabric gangs have, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    Empty,
    /// A quarter of the nodes full, a quarter empty, the rest in pieces.
    Half,
    /// 3 of 100 nodes empty, 5 in pieces.
    Full95,
}

impl Load {
    pub(super) fn name(self) -> &'static str {
        match self {
            Load::Empty => "empty",
            Load::Half => "half",
            Load::Full95 => "95%",
        }
    }

    /// Used GPUs of a node, drawn.
    fn used(self, dice: &mut Dice) -> u32 {
        let whole = dice.below(100);
        match self {
            Load::Empty => 0,
            Load::Half if whole < 25 => 0,
            Load::Half if whole < 50 => NODE_GPUS,
            Load::Full95 if whole < 3 => 0,
            Load::Full95 if whole < 95 => NODE_GPUS,
            Load::Half | Load::Full95 => 1 + dice.below(NODE_GPUS - 1),
        }
    }
}

/// See the module.
pub(super) struct World {
    pub(super) cluster: Cluster,
    dice: Dice,
    /// Running jobs of the load: which, and where.
    running: Vec<(JobId, Place)>,
    jobs: u64,
    /// Of what runs: spread from a tenth of it to all.
    limit_ms: Option<u64>,
    /// Of all commands since somebody set it to nothing, in CPU time.
    pub(super) slowest_apply_us: f64,
}

impl World {
    pub(super) fn new(gpus: u32, load: Load) -> Result<World> {
        World::limited(gpus, load, None)
    }

    pub(super) fn limited(gpus: u32, load: Load, limit_ms: Option<u64>) -> Result<World> {
        let (cluster, dice, running) = (Cluster::new(1), Dice(7), Vec::new());
        let slowest_apply_us = 0.0;
        let mut world = World { cluster, dice, running, jobs: 0, limit_ms, slowest_apply_us };
        world.apply(Command::SetFabric(fabric(gpus / NODE_GPUS)?))?;
        let nodes: Vec<NodeId> = world.cluster.nodes().iter().map(|(id, _)| id).collect();
        for node in &nodes {
            world.apply(Command::NodeUp(node_report(*node)))?;
        }
        for pos in (0..nodes.len() as u32).map(NodePos) {
            let mut used = load.used(&mut world.dice);
            while used > 0 {
                let most = used.ilog2().min(3);
                let size = 1 << world.dice.below(most + 1);
                world.run(pos, size)?;
                used -= size;
            }
        }
        Ok(world)
    }

    /// Fillers on all that is free: instances of 8 GPUs and of 1, worth more and less.
    pub(super) fn fill(&mut self) -> Result<()> {
        for (name, gpus, value_micros) in [("wide", NODE_GPUS, 3_000_000), ("narrow", 1, 2_000_000)]
        {
            self.apply(Command::DeployFiller(filler(name, gpus, value_micros)))?;
        }
        self.settle()
    }

    /// Plans are carried out until there is nothing left to decide.
    pub(super) fn settle(&mut self) -> Result<()> {
        loop {
            let plan = rowen_placement::plan(&self.cluster);
            if plan.decisions.is_empty() {
                return Ok(());
            }
            self.commit(plan)?;
        }
    }

    pub(super) fn submit(&mut self, spec: JobSpec) -> Result<JobId> {
        self.jobs += 1;
        match self.apply(Command::SubmitJob(spec))? {
            Reply::Job(id) => Ok(id),
            other => anyhow::bail!("{other:?}"),
        }
    }

    pub(super) fn commit(&mut self, plan: Plan) -> Result<()> {
        let reply = self.apply(Command::CommitPlan(plan))?;
        ensure!(matches!(reply, Reply::Planned { rejected: 0, .. }), "{reply:?}");
        Ok(())
    }

    /// All tasks of a job end; its GPUs are free again.
    pub(super) fn end(&mut self, job: JobId) -> Result<()> {
        let allocation = self.cluster.jobs().get(job).and_then(|job| job.allocation);
        let Some(allocation) = allocation.and_then(|id| self.cluster.allocations().get(id)) else {
            return self.apply(Command::CancelJob(job)).map(drop);
        };
        let report = |(rank, task): (u32, &rowen_state::Task)| TaskReport {
            allocation: allocation.id,
            epoch: allocation.epoch,
            node: task.node,
            rank,
            phase: TaskPhase::Exited { code: 0 },
            port: 0,
            message: String::new(),
        };
        let reports = (0..).zip(&allocation.tasks).map(report).collect();
        self.apply(Command::Report(reports)).map(drop)
    }

    /// One running job of the load ends, and one of another size starts where it was: so that no
    /// two decisions are made on the same state.
    pub(super) fn churn(&mut self) -> Result<()> {
        if self.running.is_empty() {
            return Ok(());
        }
        let at = self.dice.below(self.running.len() as u32) as usize;
        let (job, place) = self.running.swap_remove(at);
        self.end(job)?;
        let pos = self.cluster.pos_of(place.node).expect("nodes stay");
        let size = place.gpus.count();
        let smaller = size > 1 && self.dice.below(2) == 0;
        self.run(pos, if smaller { size / 2 } else { size })
    }

    fn run(&mut self, pos: NodePos, size: u32) -> Result<()> {
        let mut spec = gang(size, size, None);
        if let Some(limit_ms) = self.limit_ms {
            spec.time_limit_ms = limit_ms * u64::from(100 + self.dice.below(900)) / 1_000;
        }
        let id = self.submit(spec)?;
        let node = self.cluster.node_at(pos);
        let gpus = node.free().lowest(size).expect("the load fits the node");
        let place = Place { node: node.id, gpus };
        let start = Decision::Start { job: id, places: vec![place], why: String::new() };
        let based_on = self.cluster.applied();
        self.commit(Plan { based_on, decisions: vec![start] })?;
        self.running.push((id, place));
        Ok(())
    }

    fn apply(&mut self, command: Command) -> Result<Reply> {
        let (index, at_ms) = (self.cluster.applied() + 1, self.cluster.now_ms().max(1_000_000) + 1);
        let entry = Entry { at_ms, principal: "bench".into(), request: None, command };
        let begun_us = super::cpu_us();
        let answer = self.cluster.apply(index, &entry).answer;
        self.slowest_apply_us = self.slowest_apply_us.max(super::cpu_us() - begun_us);
        let answer = answer.expect("apply always answers");
        answer.map_err(|refusal| anyhow::anyhow!("{refusal}"))
    }
}

/// A gang of so many GPUs in workers of `each`, with the cores and memory such workers ask for.
pub(super) fn gang(gpus: u32, each: u32, required: Option<Level>) -> JobSpec {
    JobSpec {
        name: "gang".into(),
        tenant: "bench".into(),
        queue: "main".into(),
        priority: 0,
        workers: gpus / each,
        processes_per_worker: 1,
        resources: resources(each),
        required,
        preferred: None,
        command: vec!["true".into()],
        env: Default::default(),
        working_dir: String::new(),
        time_limit_ms: 0,
        notice_ms: 0,
        restarts: 0,
        checkpoint_interval_ms: 0,
        shape: Default::default(),
    }
}

/// The `number`th of 200 shapes, small ones and large ones.
pub(super) fn shape(number: u32) -> JobSpec {
    let each = [1, 2, 4, 8][number as usize % 4];
    let workers = [1, 2, 3, 4, 6, 8, 12, 16, 32, 64][number as usize / 4 % 10];
    let required = [None, Some(Level::Pod), Some(Level::Block), Some(Level::Site), None];
    let mut spec = gang(workers * each, each, required[number as usize / 40 % 5]);
    spec.preferred = (number / 40 % 5 == 4).then_some(Level::Block);
    spec
}

fn resources(gpus: u32) -> Resources {
    let memory_mib = u64::from(gpus) * (160 << 10);
    Resources { gpus, gpu_model: None, cpus: gpus * 16, memory_mib }
}

fn filler(name: &str, gpus: u32, value_micros: u64) -> FillerSpec {
    FillerSpec {
        name: name.into(),
        tenant: "bench".into(),
        model: String::new(),
        resources: resources(gpus),
        min_instances: 0,
        max_instances: 131_072,
        value_micros,
        warm_up_ms: 60_000,
        notice_ms: 30_000,
        withdraw_ms: 0,
        readiness: None,
        command: vec!["true".into()],
        env: Default::default(),
        working_dir: String::new(),
    }
}

fn node_report(node: NodeId) -> NodeReport {
    NodeReport {
        node,
        boot_id: "boot".into(),
        addr: "127.0.0.1".into(),
        ports: vec![29_500],
        healthy: GpuMask::first(NODE_GPUS),
        simulated: true,
        version: "bench".into(),
        folder: String::new(),
        said_ms: 0,
        tasks: Vec::new(),
    }
}

/// Blocks of 32 nodes on 8 rails, pods of 64 blocks.
fn fabric(nodes: u32) -> Result<FabricRecord> {
    let pods = nodes.div_ceil(BLOCK_NODES * POD_BLOCKS);
    let mut inventory =
        Inventory { spines: Some(format!("s[0-7]p[0-{}]", pods - 1)), ..Default::default() };
    for block in 0..nodes.div_ceil(BLOCK_NODES) {
        let spines = Some(format!("s[0-7]p{}", block / POD_BLOCKS));
        let leafs = format!("b{block}l[0-7]");
        inventory.leafs.push(LeafGroup { names: leafs.clone(), rail: None, spines });
        inventory.nodes.push(NodeGroup {
            names: format!("b{block}n[1-{}]", BLOCK_NODES.min(nodes - block * BLOCK_NODES)),
            site: None,
            rack: Some(format!("b{block}r[1-4]")),
            leafs: Some(leafs),
            nvlink_domain: None,
            gpu: GpuKind { model: "H100".into(), count: NODE_GPUS as u16, memory_mib: 81_559 },
            nic: None,
            cpus: 192,
            memory_mib: 2 << 20,
            addr: None,
            failure_domains: Default::default(),
            labels: Default::default(),
        });
    }
    Ok(inventory.expand()?)
}

/// A small generator (SplitMix64): the same worlds everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 32) % u64::from(bound)) as u32
    }
}
