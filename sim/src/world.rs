//! The world of one run: one replica's core, its planner, and agents that are
//! simulated. The log is a counter: what consensus does is not simulated here.

use std::collections::BTreeMap;

use rowen_placement::MAX_DECISIONS;
use rowen_server::{Core, desired_tasks};
use rowen_state::{
    AllocationId, Cluster, Command, Effect, Entry, Epoch, FillerSpec, GpuMask, Job, JobId, JobSpec,
    NodeId, NodeReport, Owner, Reply, TaskPhase, TaskReport, Violation, codec,
};
use rowen_topology::FabricRecord;

use crate::Events;

/// When every world begins, unix time: late enough that no clock reads 0.
pub const START_MS: u64 = 1_600_000_000_000;
/// A world whose queue nothing will ever move is left after this many ticks.
const STUCK_TICKS: u32 = 5;
/// Violations kept; one is enough to fail.
const VIOLATIONS: usize = 100;

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// From the bound task to its processes being up and reported.
    pub launch_ms: u64,
    /// From SIGTERM to the end of a task; its notice bounds it.
    pub stop_ms: u64,
    /// From a change to the committed plan.
    pub plan_ms: u64,
    /// Between two ticks of the state's clock.
    pub tick_ms: u64,
    /// `verify()` after each so many entries; 0: only at the end.
    pub verify_every: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { launch_ms: 1_000, stop_ms: 5_000, plan_ms: 10, tick_ms: 60_000, verify_every: 0 }
    }
}

/// A cluster in virtual time.
#[derive(Debug)]
pub struct World {
    core: Core,
    index: u64,
    now_ms: u64,
    pace: Pace,
    events: Events<Event>,
    tasks: BTreeMap<TaskKey, Task>,
    durations_ms: BTreeMap<JobId, u64>,
    ended: Vec<Job>,
    to_submit: usize,
    live: usize,
    planning: bool,
    stuck_ticks: u32,
    violations: Vec<Violation>,
}

#[derive(Debug)]
enum Event {
    Ask(Box<Command>),
    Submit(Box<JobSpec>, u64),
    Up(TaskKey),
    Exit(TaskKey, i32),
    Plan,
    Tick,
}

type TaskKey = (AllocationId, u32);

/// A task as its simulated agent has it.
#[derive(Debug)]
struct Task {
    node: NodeId,
    epoch: Epoch,
    job: Option<JobId>,
    stopping: bool,
}

impl World {
    /// A cluster of that fabric whose agents have all come.
    pub fn new(fabric: FabricRecord, pace: Pace) -> World {
        let mut world = World {
            core: Core::default(),
            index: 0,
            now_ms: START_MS,
            pace,
            events: Events::default(),
            tasks: BTreeMap::new(),
            durations_ms: BTreeMap::new(),
            ended: Vec::new(),
            to_submit: 0,
            live: 0,
            planning: false,
            stuck_ticks: 0,
            violations: Vec::new(),
        };
        world.apply("operator", Command::SetFabric(fabric));
        let nodes: Vec<NodeId> = world.cluster().nodes().iter().map(|(id, _)| id).collect();
        for node in nodes {
            world.apply("agent", Command::NodeUp(hello(node)));
        }
        world.events.add(START_MS + pace.tick_ms, Event::Tick);
        world
    }

    /// A job comes `after_ms` after the start and, once all its tasks are up, runs for
    /// `duration_ms`. An attempt that is cut short starts from nothing: the world knows
    /// no checkpoints yet.
    pub fn submit(&mut self, after_ms: u64, spec: JobSpec, duration_ms: u64) {
        self.to_submit += 1;
        self.events.add(START_MS + after_ms, Event::Submit(Box::new(spec), duration_ms));
    }

    /// A filler is deployed `after_ms` after the start. Its instances run until they must end.
    pub fn deploy(&mut self, after_ms: u64, spec: FillerSpec) {
        self.ask(after_ms, Command::DeployFiller(spec));
    }

    /// The operator asks for something `after_ms` after the start.
    pub fn ask(&mut self, after_ms: u64, command: Command) {
        self.events.add(START_MS + after_ms, Event::Ask(Box::new(command)));
    }

    /// Runs until every job has ended, or nothing would ever move again.
    pub fn run(&mut self) {
        while self.to_submit + self.live > 0 && self.stuck_ticks < STUCK_TICKS && self.step() {}
        // Meters and ledger are read at the last instant.
        self.apply("leader", Command::Tick);
        self.verify();
    }

    /// What is true now.
    pub fn cluster(&self) -> &Cluster {
        self.core.cluster()
    }

    /// Ended jobs in the order of their ends, as the archive has them.
    pub fn ended(&self) -> &[Job] {
        &self.ended
    }

    /// Jobs that have not ended.
    pub fn unfinished(&self) -> usize {
        self.to_submit + self.live
    }

    /// Invariants that did not hold.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// Virtual time since the start.
    pub fn elapsed_ms(&self) -> u64 {
        self.now_ms - START_MS
    }

    /// Everything that happens at the next instant, reports as one entry.
    fn step(&mut self) -> bool {
        let Some(now_ms) = self.events.next_ms() else { return false };
        self.now_ms = now_ms;
        let mut reports = Vec::new();
        let mut plan = false;
        while let Some(event) = self.events.take_due(now_ms) {
            match event {
                Event::Ask(command) => drop(self.apply("operator", *command)),
                Event::Submit(spec, duration_ms) => self.submit_now(*spec, duration_ms),
                Event::Up(key) => reports.extend(self.task_up(key)),
                Event::Exit(key, code) => reports.extend(self.task_exit(key, code)),
                Event::Plan => plan = true,
                Event::Tick => self.tick(),
            }
        }
        if !reports.is_empty() {
            self.apply("agent", Command::Report(reports));
        }
        if plan {
            self.plan();
        }
        true
    }

    fn submit_now(&mut self, spec: JobSpec, duration_ms: u64) {
        self.to_submit -= 1;
        if let Some(Reply::Job(id)) = self.apply("operator", Command::SubmitJob(spec)) {
            self.live += 1;
            self.durations_ms.insert(id, duration_ms);
        }
    }

    fn tick(&mut self) {
        self.stuck_ticks = if self.events.is_empty() { self.stuck_ticks + 1 } else { 0 };
        self.apply("leader", Command::Tick);
        self.events.add(self.now_ms + self.pace.tick_ms, Event::Tick);
    }

    fn plan(&mut self) {
        self.planning = false;
        let Some(command) = Core::plan(self.cluster()) else { return };
        let full =
            matches!(&command, Command::CommitPlan(plan) if plan.decisions.len() >= MAX_DECISIONS);
        self.apply("planner", command);
        if full {
            self.wake_planner();
        }
    }

    fn wake_planner(&mut self) {
        if !std::mem::replace(&mut self.planning, true) {
            self.events.add(self.now_ms + self.pace.plan_ms, Event::Plan);
        }
    }

    fn apply(&mut self, principal: &str, command: Command) -> Option<Reply> {
        self.index += 1;
        let entry =
            Entry { at_ms: self.now_ms, principal: principal.into(), request: None, command };
        let step = self.core.apply_entry(self.index, &entry);
        for record in step.records.iter().filter(|record| record.key.starts_with(b"job/")) {
            let job: Job =
                codec::decode(&record.value).expect("this build wrote the line just now");
            self.durations_ms.remove(&job.id);
            self.live -= 1;
            self.ended.push(job);
        }
        for Effect::Push(node) in step.effects {
            self.agent_hears(node);
        }
        if step.replan {
            self.wake_planner();
        }
        if self.pace.verify_every > 0 && self.index.is_multiple_of(self.pace.verify_every) {
            self.verify();
        }
        step.answer.ok()
    }

    fn verify(&mut self) {
        let room = VIOLATIONS - self.violations.len();
        let found = self.core.cluster().verify();
        self.violations.extend(found.into_iter().take(room));
    }

    /// A node is sent what should run there.
    fn agent_hears(&mut self, node: NodeId) {
        for (allocation, rank) in desired_tasks(self.core.cluster(), node) {
            let key = (allocation.id, rank as u32);
            let task = self.tasks.entry(key).or_insert_with(|| {
                self.events.add(self.now_ms + self.pace.launch_ms, Event::Up(key));
                let job = match allocation.owner {
                    Owner::Gang { job, .. } => Some(job),
                    Owner::Instance { .. } => None,
                };
                Task { node, epoch: allocation.epoch, job, stopping: false }
            });
            if let Some(stop) = allocation.stop
                && !std::mem::replace(&mut task.stopping, true)
            {
                let end_ms = stop.since_ms + stop.withdraw_ms + self.pace.stop_ms;
                let end_ms = end_ms.min(stop.deadline_ms).max(self.now_ms);
                self.events.add(end_ms, Event::Exit(key, 143));
            }
        }
    }

    fn task_up(&mut self, key: TaskKey) -> Option<TaskReport> {
        let task = self.tasks.get(&key).filter(|task| !task.stopping)?;
        if let Some(job) = task.job {
            let duration_ms = self.durations_ms.get(&job).copied().unwrap_or(0);
            self.events.add(self.now_ms + duration_ms, Event::Exit(key, 0));
        }
        Some(report(key, task, TaskPhase::Running))
    }

    /// A task ends once, by itself or because it must, whichever comes first.
    fn task_exit(&mut self, key: TaskKey, code: i32) -> Option<TaskReport> {
        let task = self.tasks.remove(&key)?;
        Some(report(key, &task, TaskPhase::Exited { code }))
    }
}

fn report((allocation, rank): TaskKey, task: &Task, phase: TaskPhase) -> TaskReport {
    let (node, epoch) = (task.node, task.epoch);
    TaskReport { node, allocation, rank, epoch, phase, port: 0, message: String::new() }
}

fn hello(node: NodeId) -> NodeReport {
    NodeReport {
        node,
        boot_id: "simulated".into(),
        addr: format!("node-{node}"),
        ports: vec![29_500],
        healthy: GpuMask(u64::MAX),
        simulated: true,
        version: env!("CARGO_PKG_VERSION").into(),
        folder: String::new(),
        said_ms: 0,
        tasks: Vec::new(),
    }
}
