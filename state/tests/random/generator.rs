//! Draws the next command from the seed and the state, so that sequences reach deep states.

use rowen_state::{
    AllocationId, Cluster, Code, Command, Decision, Entry, Epoch, GpuMask, Liveness, NodeId,
    NodeReport, Outcome, Owner, Part, PartReport, Plan, QueueSpec, ReplicaId, RequestId, Seer,
    TaskPhase, TaskReport, Timing, codec::READS_VERSION,
};
use rowen_topology::FaultyLink;

use crate::{plans, rng::Rng, specs};

/// What a step must do, as far as its maker knows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Expect {
    /// Nothing is known beforehand.
    Any,
    /// A refusal of this kind.
    Refused(Code),
    /// Every decision is carried out.
    AllAccepted,
    /// No decision is carried out, nothing changes.
    AllRejected,
    /// It is taken, and changes nothing.
    Nothing,
    /// The answer that the step of this number got, and nothing changes.
    AnswerOf(usize),
}

/// One entry of the log and what it must do.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) index: u64,
    pub(crate) entry: Entry,
    pub(crate) expect: Expect,
    /// For the coverage table.
    pub(crate) kind: &'static str,
}

/// Everything a sequence's maker remembers.
pub(crate) struct Generator {
    rng: Rng,
    drawn: Vec<specs::DrawnNode>,
    node_names: u64,
    host_claims: bool,
    now_ms: u64,
    index: u64,
    seq: u64,
    /// Requests made: their number, and the step that made them.
    asked: Vec<(RequestId, usize)>,
    old_reports: Vec<TaskReport>,
    old_plan: Option<Plan>,
}

type Drawn = (&'static str, Command, Expect);

impl Generator {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let drawn = specs::fabric(&mut rng);
        let host_claims = rng.chance(25);
        Generator {
            rng,
            node_names: drawn.len() as u64,
            drawn,
            host_claims,
            now_ms: 1_000_000,
            index: 0,
            seq: 0,
            asked: Vec::new(),
            old_reports: Vec::new(),
            old_plan: None,
        }
    }

    /// How many commands the sequence has, its first ones not counted.
    pub(crate) fn length(&mut self) -> usize {
        self.rng.between(20, 80) as usize
    }

    pub(crate) fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// The fabric, some replicas, an agent for most nodes, then two fillers and a job.
    pub(crate) fn first_steps(&mut self) -> Vec<Step> {
        let fabric = Command::SetFabric(specs::record(&self.drawn));
        let mut commands = vec![("set fabric", fabric, Expect::Any)];
        for replica in 1..=self.rng.pick(&[1, 1, 3, 7]).expect("not empty") {
            let addr = format!("10.0.1.{replica}:7078");
            let admit = Command::AdmitReplica { id: None, addr };
            commands.push(("admit replica", admit, Expect::Any));
        }
        for node in 1..=self.drawn.len() as u32 {
            if self.rng.chance(90) {
                commands.push(("node up", self.agent_comes(NodeId(node)), Expect::Any));
            }
        }
        for _ in 0..2 {
            let spec = specs::filler(&mut self.rng, self.host_claims);
            commands.push(("deploy filler", Command::DeployFiller(spec), Expect::Any));
        }
        let spec = specs::job(&mut self.rng, self.host_claims);
        commands.push(("submit", Command::SubmitJob(spec), Expect::Any));
        if self.rng.chance(50) {
            let asked = (1..=7).map(ReplicaId).collect(); // more than there are may have been asked
            commands.push(("raise version", Command::RaiseVersion { to: 2, asked }, Expect::Any));
            if self.rng.chance(50) {
                for name in specs::QUEUES {
                    let name = name.into();
                    let spec = QueueSpec { name, ..specs::queue(&mut self.rng) };
                    commands.push(("set queue", Command::SetQueue(spec), Expect::Any));
                }
            }
        }
        commands.into_iter().map(|drawn| self.stamp(drawn)).collect()
    }

    fn agent_comes(&mut self, node: NodeId) -> Command {
        Command::NodeUp(NodeReport {
            node,
            boot_id: "boot-0".into(),
            addr: format!("10.0.0.{node}"),
            ports: vec![30_000, 30_001],
            healthy: GpuMask::first(64),
            simulated: true,
            version: "0.1".into(),
            folder: "folder-0".into(),
            said_ms: self.now_ms,
            tasks: vec![],
        })
    }

    /// Index, time and sender of a command.
    fn stamp(&mut self, (kind, command, expect): Drawn) -> Step {
        self.index += self.rng.between(1, 3);
        self.now_ms += match self.rng.below(20) {
            0 => self.rng.between(30_000, 400_000),
            1..=3 => 0,
            4..=6 => self.rng.between(2_000, 20_000),
            _ => self.rng.below(1_500),
        };
        let entry = Entry { at_ms: self.now_ms, principal: "test".into(), request: None, command };
        Step { index: self.index, entry, expect, kind }
    }

    pub(crate) fn next(&mut self, cluster: &Cluster, number: usize) -> Step {
        let drawn = loop {
            if let Some(drawn) = self.draw(cluster) {
                break drawn;
            }
        };
        let mut step = self.stamp(drawn);
        match self.rng.below(100) {
            0 => {
                step.entry.at_ms = cluster.now_ms() + 8 * 86_400_000;
                (step.kind, step.expect) =
                    ("a clock in the future", Expect::Refused(Code::Conflict));
            }
            1..=3 => step.entry.at_ms = step.entry.at_ms.saturating_sub(500_000), // a clock behind
            _ => {}
        }
        self.give_request(&mut step, number);
        step
    }

    /// Half of the steps carry a request's number; some repeat one, some carry one too old.
    fn give_request(&mut self, step: &mut Step, number: usize) {
        match self.rng.below(100) {
            0..=44 => {
                self.seq += 1;
                let request = RequestId { client: "client".into(), seq: self.seq };
                self.asked.push((request.clone(), number));
                step.entry.request = Some(request);
            }
            45..=48 => {
                let recent = &self.asked[self.asked.len().saturating_sub(64)..];
                let Some((request, asked)) = self.rng.pick(recent) else { return };
                step.entry.request = Some(request);
                (step.kind, step.expect) = ("duplicate request", Expect::AnswerOf(asked));
            }
            49 => {
                let forgotten = &self.asked[..self.asked.len().saturating_sub(64)];
                let forgotten = self.rng.pick(forgotten).map(|(request, _)| request);
                let unknown = RequestId { client: "long gone".into(), seq: 7 };
                step.entry.request = Some(forgotten.unwrap_or(unknown));
                (step.kind, step.expect) = ("expired request", Expect::Refused(Code::Expired));
            }
            _ => {}
        }
    }

    fn draw(&mut self, cluster: &Cluster) -> Option<Drawn> {
        Some(match self.rng.below(100) {
            0..=2 => {
                let spec = specs::shaped_job(&mut self.rng, self.host_claims);
                match cluster.meta().version {
                    1 => {
                        let refused = Expect::Refused(Code::Conflict);
                        ("a shape in an old version", Command::SubmitJob(spec), refused)
                    }
                    _ => ("submit a shape", Command::SubmitJob(spec), Expect::Any),
                }
            }
            3..=8 => {
                let spec = specs::job(&mut self.rng, self.host_claims);
                ("submit", Command::SubmitJob(spec), Expect::Any)
            }
            9 => {
                let spec = specs::invalid_job(&mut self.rng);
                ("invalid job", Command::SubmitJob(spec), Expect::Refused(Code::Invalid))
            }
            10..=14 => self.draw_job_command(cluster)?,
            15..=20 => self.draw_filler_command(cluster)?,
            21..=29 => self.draw_node_command(cluster)?,
            30..=35 => ("tick", Command::Tick, Expect::Any),
            36..=64 => self.draw_reports(cluster)?,
            65..=70 => self.draw_stale_report(cluster)?,
            71..=90 => self.draw_plan(cluster),
            91 => self.draw_queue(cluster),
            92..=93 => {
                let plan = plans::taking_a_gang(cluster)?;
                ("take a gang back", Command::CommitPlan(plan), Expect::AllAccepted)
            }
            94..=96 => {
                let (what, decision) = plans::garbage(&mut self.rng, cluster)?;
                let plan = Plan { based_on: cluster.applied(), decisions: vec![decision] };
                (what, Command::CommitPlan(plan), Expect::AllRejected)
            }
            97 if self.rng.chance(60) => self.draw_timing(cluster),
            98 if self.rng.chance(70) => self.draw_health(cluster)?,
            97 => self.draw_version(cluster)?,
            _ => self.draw_fabric(cluster)?,
        })
    }

    /// A queue that comes, changes or goes, and one that cannot.
    fn draw_queue(&mut self, cluster: &Cluster) -> Drawn {
        let spec = specs::queue(&mut self.rng);
        let name = spec.name.clone();
        match self.rng.below(10) {
            _ if cluster.meta().version < 2 => {
                let refused = Expect::Refused(Code::Conflict);
                ("queue in an old version", Command::SetQueue(spec), refused)
            }
            0 => {
                let spec = QueueSpec { weight: 0, ..spec };
                ("invalid queue", Command::SetQueue(spec), Expect::Refused(Code::Invalid))
            }
            1 => {
                let spec = QueueSpec { parent: name, ..spec };
                ("a queue below itself", Command::SetQueue(spec), Expect::Refused(Code::Invalid))
            }
            2..=3 if cluster.queue_named(&name).is_some() => {
                ("remove queue", Command::RemoveQueue(name), Expect::Any)
            }
            4 => {
                let none = Command::RemoveQueue("none".into());
                ("remove no queue", none, Expect::Refused(Code::NotFound))
            }
            _ => ("set queue", Command::SetQueue(spec), Expect::Any),
        }
    }

    /// The next version, of all that are there or of all but one, or one that is not next.
    fn draw_version(&mut self, cluster: &Cluster) -> Option<Drawn> {
        let to = cluster.meta().version + 1;
        let mut asked: Vec<_> = cluster.replicas().iter().map(|(id, _)| id).collect();
        let (what, to, expect) = match self.rng.below(4) {
            0 => ("raise to a version that is not next", to + 1, Expect::Refused(Code::Conflict)),
            1 => ("raise to a version of before", to - 1, Expect::Refused(Code::Conflict)),
            _ if to > READS_VERSION => return None,
            2 => {
                asked.remove(self.rng.below(asked.len() as u64) as usize);
                ("raise without asking a replica", to, Expect::Refused(Code::Conflict))
            }
            _ => ("raise version", to, Expect::Any),
        };
        Some((what, Command::RaiseVersion { to, asked }, expect))
    }

    /// A timing in and out of bounds, and the end of the leases of the one before.
    fn draw_timing(&mut self, cluster: &Cluster) -> Drawn {
        let node_lease_ms = self.rng.between(3, 30) * 1_000;
        let drawn = Timing { node_lease_ms, heartbeat_ms: 700, kill_ms: 2_000, drift_ppm: 500 };
        let timing = match self.rng.below(4) {
            0 => Timing { kill_ms: 499, ..drawn },
            1 => Timing { heartbeat_ms: node_lease_ms / 3 + 1, ..drawn },
            2 => Timing { drift_ppm: 100_001, ..drawn },
            _ => Timing { node_lease_ms: 3_600_001, ..drawn },
        };
        let refused = |code| Expect::Refused(code);
        let set = |timing, granted| Command::SetTiming { timing, granted };
        let Some(in_force) = cluster.meta().timing else {
            if cluster.meta().version < 2 {
                return ("timing in an old version", set(drawn, None), refused(Code::Conflict));
            }
            let granted = Timing { node_lease_ms: 40_000, ..drawn };
            return ("first timing", set(drawn, Some(granted)), Expect::Any);
        };
        match self.rng.below(10) {
            0..=2 => ("invalid timing", set(timing, None), refused(Code::Invalid)),
            3 => ("the same timing", set(in_force.timing, None), Expect::Nothing),
            4 => {
                let since = in_force.since + 1;
                ("settle another timing", Command::SettleTiming { since }, refused(Code::Conflict))
            }
            5..=6 => {
                let since = in_force.since;
                ("settle timing", Command::SettleTiming { since }, Expect::Any)
            }
            _ => ("set timing", set(drawn, None), Expect::Any),
        }
    }

    /// Parts get worse and better, in the words of agents and operators.
    fn draw_health(&mut self, cluster: &Cluster) -> Option<Drawn> {
        let old = cluster.meta().version < 2;
        let count = self.rng.between(1, 4);
        let mut reports: Vec<_> = (0..count).filter_map(|_| self.part_report(cluster)).collect();
        let first = reports.first_mut()?;
        let (what, expect) = match self.rng.below(10) {
            _ if old => ("health in an old version", Expect::Refused(Code::Conflict)),
            0 => {
                first.part = Part::Gpu { node: first_node(cluster)?, gpu: 64 };
                first.left_milli = 0;
                ("health of no GPU", Expect::Refused(Code::NotFound))
            }
            1 => {
                first.left_milli = 1_001;
                ("more health than all", Expect::Refused(Code::Invalid))
            }
            2 => {
                let (node, leaf) = (first_node(cluster)?, String::from("no-leaf"));
                first.part = Part::Link(FaultyLink::Rail { node, leaf });
                first.left_milli = 0;
                ("health of no link", Expect::Refused(Code::NotFound))
            }
            _ => ("health", Expect::Any),
        };
        Some((what, Command::SetHealth(reports), expect))
    }

    fn part_report(&mut self, cluster: &Cluster) -> Option<PartReport> {
        let record = self.rng.pick(&cluster.fabric().nodes)?;
        let (node, leaf) = (record.name.clone(), record.leafs.first()?.clone());
        let gpu = self.rng.below(record.gpu_count.into()) as u16;
        let whole = self.rng.chance(40);
        let drawn = self.rng.below(1_001) as u16;
        // Often a part that is known already, so that it flaps.
        let known: Vec<Part> = cluster.health().map(|(part, _)| part.clone()).collect();
        let part = match self.rng.below(8) {
            0..=3 if !known.is_empty() => self.rng.pick(&known)?,
            0..=4 => Part::Gpu { node, gpu },
            5 => Part::Link(FaultyLink::NvLink { node, gpu }),
            6 => Part::Link(FaultyLink::Rail { node, leaf }),
            _ => {
                let leaf = self.rng.pick(&cluster.fabric().leafs)?;
                let spine = leaf.spines.first()?.clone();
                Part::Link(FaultyLink::Uplink { leaf: leaf.name.clone(), spine })
            }
        };
        let is_gpu = matches!(part, Part::Gpu { .. });
        let left_milli = match (whole, is_gpu) {
            (true, _) => 1_000,
            (false, true) => 0,
            (false, false) => drawn,
        };
        let seer = if self.rng.chance(50) { Seer::Operator } else { Seer::Agent };
        Some(PartReport {
            part,
            left_milli,
            mended: self.rng.chance(15),
            seer,
            reason: "a test".into(),
        })
    }

    fn draw_job_command(&mut self, cluster: &Cluster) -> Option<Drawn> {
        let live: Vec<_> = cluster.jobs().values().filter(|job| !job.state.ended()).collect();
        let ended: Vec<_> = cluster.jobs().values().filter(|job| job.state.ended()).collect();
        let unknown = rowen_state::JobId(9_999);
        Some(match self.rng.below(12) {
            0..=4 => ("cancel", Command::CancelJob(self.rng.pick(&live)?.id), Expect::Any),
            5..=8 => {
                let bound: Vec<_> = live.iter().filter(|job| job.allocation.is_some()).collect();
                ("requeue", Command::RequeueJob(self.rng.pick(&bound)?.id), Expect::Any)
            }
            9 => {
                let id = self.rng.pick(&ended)?.id;
                ("cancel an ended job", Command::CancelJob(id), Expect::Refused(Code::Conflict))
            }
            10 => ("cancel nothing", Command::CancelJob(unknown), Expect::Refused(Code::NotFound)),
            _ => {
                let id = cluster.queue().next()?.id;
                ("requeue a waiting job", Command::RequeueJob(id), Expect::Refused(Code::Conflict))
            }
        })
    }

    fn draw_filler_command(&mut self, cluster: &Cluster) -> Option<Drawn> {
        let fillers: Vec<_> = cluster.fillers().iter().map(|(id, _)| id).collect();
        Some(match self.rng.below(12) {
            0..=6 => {
                let spec = specs::filler(&mut self.rng, self.host_claims);
                ("deploy filler", Command::DeployFiller(spec), Expect::Any)
            }
            7 => {
                let spec = specs::invalid_filler(&mut self.rng);
                ("invalid filler", Command::DeployFiller(spec), Expect::Refused(Code::Invalid))
            }
            8 => ("drain filler", Command::DrainFiller(self.rng.pick(&fillers)?), Expect::Any),
            9..=10 => {
                ("remove filler", Command::RemoveFiller(self.rng.pick(&fillers)?), Expect::Any)
            }
            _ => {
                let id = rowen_state::FillerId(9_999);
                ("drain nothing", Command::DrainFiller(id), Expect::Refused(Code::NotFound))
            }
        })
    }

    fn draw_node_command(&mut self, cluster: &Cluster) -> Option<Drawn> {
        let nodes: Vec<_> = cluster.nodes().values().collect();
        let node = self.rng.pick(&nodes)?;
        let idle: Vec<_> = nodes.iter().filter(|node| node.liveness != Liveness::Up).collect();
        let out: Vec<_> = nodes.iter().filter(|n| n.duty != rowen_state::Duty::InService).collect();
        let reason = String::from("a test");
        Some(match self.rng.below(45) {
            0..=14 => {
                let node = self.rng.pick(&idle).map_or(node, |node| node);
                ("node up", self.node_up(cluster, node.id), Expect::Any)
            }
            15..=18 => (
                "node silent",
                Command::NodeSilent { node: node.id, came: self.came(node) },
                Expect::Any,
            ),
            19..=23 => (
                "node lost",
                Command::NodeLost { node: node.id, came: self.came(node) },
                Expect::Any,
            ),
            24..=26 => ("cordon", Command::CordonNode { node: node.id, reason }, Expect::Any),
            27..=28 => ("drain", Command::DrainNode { node: node.id, reason }, Expect::Any),
            39..=40 if node.liveness == Liveness::Up => (
                "forget a node that is heard",
                Command::ForgetNode(node.id),
                Expect::Refused(Code::Conflict),
            ),
            39..=40 => ("forget node", Command::ForgetNode(node.id), Expect::Any),
            41..=42 => {
                let addr = format!("10.0.1.{}:7078", self.rng.below(20));
                ("admit replica", Command::AdmitReplica { id: None, addr }, Expect::Any)
            }
            43 => {
                let replica = ReplicaId(self.rng.between(1, 8));
                ("remove replica", Command::RemoveReplica(replica), Expect::Any)
            }
            29..=38 => ("undrain", Command::UndrainNode(self.rng.pick(&out)?.id), Expect::Any),
            _ => {
                let node = NodeId(9_999);
                let commands = [
                    Command::NodeLost { node, came: 0 },
                    Command::UndrainNode(node),
                    Command::DrainNode { node, reason },
                    self.agent_comes(node),
                ];
                let command = self.rng.pick(&commands)?;
                ("a node that is not there", command, Expect::Refused(Code::NotFound))
            }
        })
    }

    /// What a leader knows of a node's last coming, sometimes too little.
    fn came(&mut self, node: &rowen_state::Node) -> u64 {
        if self.rng.chance(90) { node.came } else { node.came.saturating_sub(1) }
    }

    /// An agent comes again: the same machine or rebooted, knowing all or some of its tasks.
    fn node_up(&mut self, cluster: &Cluster, id: NodeId) -> Command {
        let node = cluster.nodes().get(id).expect("drawn from the table");
        let rebooted = self.rng.chance(20);
        let mut tasks = live_tasks(cluster);
        tasks.retain(|task| task.node == id);
        let forgets = self.rng.chance(40);
        tasks.retain(|_| !forgets || self.rng.chance(50));
        let healthy = if self.rng.chance(85) { u64::MAX } else { self.rng.next() };
        let Command::NodeUp(report) = self.agent_comes(id) else { unreachable!("it makes those") };
        let folder = if self.rng.chance(92) { report.folder } else { "folder-1".into() };
        let boot_id = if rebooted { format!("boot-{}", self.index) } else { node.boot_id.clone() };
        Command::NodeUp(NodeReport { boot_id, folder, healthy: GpuMask(healthy), tasks, ..report })
    }

    /// What agents really see: tasks come up, serve, end by themselves or because they must.
    fn draw_reports(&mut self, cluster: &Cluster) -> Option<Drawn> {
        let ids: Vec<AllocationId> = cluster.allocations().iter().map(|(id, _)| id).collect();
        let mut reports = Vec::new();
        for _ in 0..self.rng.between(1, 4) {
            let allocation = cluster.allocations().get(self.rng.pick(&ids)?)?;
            let whole = self.rng.chance(70);
            let fails = self.rng.chance(20);
            for task in tasks_of(cluster, allocation.id) {
                if whole || self.rng.chance(50) {
                    let gang = matches!(allocation.owner, Owner::Gang { .. });
                    let phase = self.moved_on(task.phase, allocation.stop.is_some(), gang, fails);
                    reports.push(TaskReport { phase, port: 8_000, ..task });
                }
            }
        }
        self.old_reports.extend(reports.iter().take(2).cloned());
        Some(("report", Command::Report(reports), Expect::Any))
    }

    fn moved_on(&mut self, phase: TaskPhase, stopped: bool, gang: bool, fails: bool) -> TaskPhase {
        let code = if fails { self.rng.between(1, 127) as i32 } else { 0 };
        match phase {
            _ if stopped && self.rng.chance(80) => TaskPhase::Exited { code: 143 },
            TaskPhase::Bound if !self.rng.chance(5) => TaskPhase::Running,
            TaskPhase::Running if !gang && !fails => TaskPhase::Ready,
            TaskPhase::Ready if !fails => TaskPhase::Ready,
            _ => TaskPhase::Exited { code },
        }
    }

    /// A report that may change nothing: of another epoch, node or rank, of something that is
    /// over, of an earlier phase, or one that no agent can know.
    fn draw_stale_report(&mut self, cluster: &Cluster) -> Option<Drawn> {
        let right = live_tasks(cluster);
        let gone = self
            .old_reports
            .iter()
            .filter(|report| !cluster.allocations().contains(report.allocation));
        let gone: Vec<_> = gone.cloned().collect();
        let ended = TaskPhase::Exited { code: 1 };
        let (kind, report) = match self.rng.below(6) {
            0 => {
                let report = self.rng.pick(&right)?;
                let epoch = Epoch { index: report.epoch.index - 1, ..report.epoch };
                ("report of an old epoch", TaskReport { epoch, phase: ended, ..report })
            }
            1 => {
                let report = self.rng.pick(&right)?;
                let node = NodeId(report.node.0 + 1);
                ("report from another node", TaskReport { node, phase: ended, ..report })
            }
            2 => {
                let report = self.rng.pick(&right)?;
                ("report of no task", TaskReport { rank: 77, phase: ended, ..report })
            }
            3 => ("report of what is over", self.rng.pick(&gone)?),
            4 => {
                let report = self.rng.pick(&right)?;
                let phase = if report.phase == TaskPhase::Ready {
                    TaskPhase::Running
                } else {
                    report.phase
                };
                ("report out of order", TaskReport { phase, message: "late".into(), ..report })
            }
            _ => {
                // Not stale at all: the gang ends and waits again, and nothing is counted.
                let report = self.rng.pick(&right)?;
                let report = TaskReport { phase: TaskPhase::Lost, ..report };
                return Some(("report of a loss", Command::Report(vec![report]), Expect::Any));
            }
        };
        Some((kind, Command::Report(vec![report]), Expect::Nothing))
    }

    fn draw_plan(&mut self, cluster: &Cluster) -> Drawn {
        let plan = plans::sensible(&mut self.rng, cluster);
        match self.rng.below(10) {
            0 => {
                self.old_plan = Some(plan.clone());
                ("tick", Command::Tick, Expect::Any)
            }
            1 if self.old_plan.is_some() => {
                let plan = self.old_plan.take().expect("just looked");
                ("plan of an older state", Command::CommitPlan(plan), Expect::Any)
            }
            2 => {
                // Two leaders planned the same: the second must find all of it taken.
                let twice =
                    plan.decisions.iter().filter(|d| !matches!(d, Decision::StartInstance { .. }));
                let twice = twice.cloned().chain(plan.decisions.clone()).collect();
                let plan = Plan { decisions: twice, ..plan };
                ("plan made twice", Command::CommitPlan(plan), Expect::Any)
            }
            _ if cluster
                .queues()
                .values()
                .any(|queue| queue.spec.quotas().any(|(_, quota)| quota.limit_gpus.is_some())) =>
            {
                ("plan blind to limits", Command::CommitPlan(plan), Expect::Any)
            }
            _ if self.host_claims => {
                ("plan blind to hosts", Command::CommitPlan(plan), Expect::Any)
            }
            _ => ("plan", Command::CommitPlan(plan), Expect::AllAccepted),
        }
    }

    fn draw_fabric(&mut self, cluster: &Cluster) -> Option<Drawn> {
        let mut drawn = self.drawn.clone();
        match self.rng.below(4) {
            0 if drawn.len() < 6 => {
                self.node_names += 1;
                drawn.push(specs::node(&mut self.rng, self.node_names));
            }
            1 if drawn.len() > 2 => drop(drawn.remove(self.rng.below(drawn.len() as u64) as usize)),
            2 => {
                let at = self.rng.below(drawn.len() as u64) as usize;
                drawn[at].gpus = self.rng.between(1, 8);
            }
            3 => {
                let mut record = specs::record(&drawn);
                record.nodes.push(record.nodes[0].clone());
                let expect = Expect::Refused(Code::Invalid);
                return Some(("invalid fabric", Command::SetFabric(record), expect));
            }
            _ => return None,
        }
        let busy = self.drawn.iter().filter(|node| !drawn.contains(node)).any(|node| {
            let node = cluster.node_named(&node.name).expect("drawn and in the state");
            !node.owners().is_empty() || !node.holders().is_empty()
        });
        let record = Command::SetFabric(specs::record(&drawn));
        if busy {
            return Some(("fabric without a busy node", record, Expect::Refused(Code::Conflict)));
        }
        Some(("set fabric", record, Expect::Any))
    }

    /// The maker hears what became of its step.
    pub(crate) fn hear(&mut self, step: &Step, outcome: &Outcome, cluster: &Cluster) {
        if let (Command::SetFabric(record), Some(Ok(_))) = (&step.entry.command, &outcome.answer)
            && *record == **cluster.fabric()
        {
            self.drawn.retain(|node| record.nodes.iter().any(|r| r.name == node.name));
            for node in &record.nodes {
                let gpus = u64::from(node.gpu_count);
                match self.drawn.iter_mut().find(|drawn| drawn.name == node.name) {
                    Some(drawn) => drawn.gpus = gpus,
                    None => self.drawn.push(specs::DrawnNode {
                        name: node.name.clone(),
                        block: if node.leafs[0] == "a-leaf" { "a" } else { "b" },
                        gpus,
                        model: if node.gpu_model == "H100" { "H100" } else { "H200" },
                    }),
                }
            }
        }
        // A clock behind or too far ahead does not move the state's.
        self.now_ms = self.now_ms.max(cluster.now_ms());
    }
}

fn first_node(cluster: &Cluster) -> Option<String> {
    Some(cluster.fabric().nodes.first()?.name.clone())
}

/// A report for each live task, as its agent would make it now.
fn live_tasks(cluster: &Cluster) -> Vec<TaskReport> {
    cluster.allocations().iter().flat_map(|(id, _)| tasks_of(cluster, id)).collect()
}

fn tasks_of(cluster: &Cluster, id: AllocationId) -> Vec<TaskReport> {
    let allocation = cluster.allocations().get(id).expect("listed by the caller");
    let live = (0u32..).zip(&allocation.tasks).filter(|(_, task)| task.phase.live());
    live.map(|(rank, task)| TaskReport {
        node: task.node,
        allocation: id,
        rank,
        epoch: allocation.epoch,
        phase: task.phase,
        port: 0,
        message: String::new(),
    })
    .collect()
}
