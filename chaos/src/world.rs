//! One world: its seed draws the cluster, the workload and the faults; then
//! faults end, and everything must come to rest.

use std::collections::{BTreeMap, BTreeSet};

use rowen_state::{
    Command, Duty, FillerId, GpuMask, JobId, JobState, NodeId, Refusal, Reply, RequestId,
};

use crate::{
    checks,
    context::Context,
    coverage,
    draws::{Draw, Drawn, Draws},
    history::{History, Op},
    invariant::{Checked, Finding, Invariant},
    leader::Control,
    machine::Machine,
    message::{Event, MachineAt, Then},
    rng::Rng,
    setup::{self, Timing},
};

/// A world that has not come to rest this long after the faults ended never will.
const REST_WITHIN_MS: u64 = 6 * 3_600_000;
/// It must stay at rest this long.
const REST_MS: u64 = 30_000;
/// A client asks again after this.
const RETRY_MS: u64 = 3_000;

/// See the module.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) context: Context,
    pub(crate) timing: Timing,
    pub(crate) machines: Vec<Machine>,
    pub(crate) control: Control,
    pub(crate) operations: Vec<Operation>,
    pub(crate) history: History,
    pub(crate) draws: Draws,
    pub(crate) faults: Coverage,
    /// Faults are over.
    pub(crate) healed: bool,
    jobs: usize,
    sessions: u64,
}

/// Something a client wants, until it hears that it is so.
#[derive(Debug)]
pub(crate) struct Operation {
    /// In the history.
    pub(crate) call: usize,
    pub(crate) command: Command,
    pub(crate) answer: Option<Result<Reply, Refusal>>,
}

/// What to run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    /// Draws to leave out.
    pub(crate) drop: BTreeSet<Draw>,
}

/// How often which fault fell into which phase.
pub(crate) type Coverage = BTreeMap<(&'static str, &'static str), u64>;

/// What a run gave.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) seed: u64,
    pub(crate) simulated_ms: u64,
    pub(crate) digest: u64,
    pub(crate) state_hash: u128,
    pub(crate) findings: Vec<Finding>,
    pub(crate) checked: Checked,
    /// The last lines of the trace before the first finding, or of all.
    pub(crate) tail: Vec<String>,
    pub(crate) faults: Coverage,
    pub(crate) history: History,
    /// Draws that happened.
    pub(crate) draws: Vec<Draw>,
    pub(crate) entries: u64,
    pub(crate) launches: u64,
}

/// Runs the world of a seed to its end, or to its first finding.
pub(crate) fn run(options: &Options) -> Outcome {
    let mut world = World::new(options);
    let began_ms = world.context.now_ms;
    let faults_ms = world.context.rng.between(120_000, 600_000);
    world.context.later(faults_ms, Event::Heal);
    let mut rest_ms = None;
    while world.context.findings.is_empty() {
        let Some(next_ms) = world.context.events.next_ms() else { break };
        world.context.now_ms = next_ms;
        while let Some(event) = world.context.events.take_due(next_ms) {
            world.happen(event);
        }
        let now_ms = world.context.now_ms;
        rest_ms = checks::at_rest(&world).then(|| rest_ms.unwrap_or(now_ms));
        let rested_ms = rest_ms.map_or(0, |since_ms| now_ms - since_ms);
        // An instance may have ended just now, and the leader has not heard of it.
        let settled = || rested_ms > 2 * REST_MS || checks::diverging(&world).is_empty();
        if rested_ms >= REST_MS && settled() {
            break;
        }
        if now_ms > began_ms + faults_ms + REST_WITHIN_MS {
            checks::unrest(&mut world);
        }
    }
    if world.context.findings.is_empty() {
        checks::at_end(&mut world);
    }
    Outcome {
        seed: options.seed,
        simulated_ms: world.context.now_ms - began_ms,
        digest: world.context.digest(),
        state_hash: world.control.core.cluster().state_hash(),
        tail: world.context.tail.iter().cloned().collect(),
        findings: world.context.findings,
        checked: world.context.checked,
        faults: world.faults,
        history: world.history,
        draws: world.draws.happened(),
        entries: world.control.entries.len() as u64,
        launches: world.context.journal.launches,
    }
}

impl World {
    fn new(options: &Options) -> World {
        let mut context = Context::new(options.seed);
        let timing = Timing::draw(&mut context.rng);
        let fabric = setup::fabric(&mut context.rng);
        let control = Control::new(&timing);
        let mut world = World {
            context,
            timing,
            machines: Vec::new(),
            control,
            operations: Vec::new(),
            history: History::default(),
            draws: Draws::new(options.seed, options.drop.clone()),
            faults: Coverage::new(),
            healed: false,
            jobs: 0,
            sessions: 0,
        };
        let gpus: Vec<u32> = fabric.nodes.iter().map(|node| node.gpu_count.into()).collect();
        world.healed = true; // the first entries are not to be lost
        world.propose("operator", None, Command::SetFabric(fabric), Then::Nothing);
        world.commit();
        let drift_ppm = world.timing.drift_ppm;
        let ids: Vec<NodeId> =
            world.control.core.cluster().nodes().iter().map(|(id, _)| id).collect();
        for (at, (node, gpus)) in ids.into_iter().zip(gpus).enumerate() {
            let drawn = world.context.rng.between(0, 2 * drift_ppm * 9 / 10);
            let drift_ppm = drawn as i64 - (drift_ppm * 9 / 10) as i64;
            world.machines.push(Machine::new(at, node, gpus, drift_ppm));
            world.context.later(10, Event::StartAgent { machine: at });
        }
        world.healed = false;
        world.context.later(100, Event::Beat { term: 1 });
        world.context.later(200, Event::Operate);
        world.context.later(5_000, Event::Fault);
        world
    }

    fn happen(&mut self, event: Event) {
        let World { machines, context, timing, .. } = self;
        match event {
            Event::PowerOn { machine } => {
                machines[machine].power_on(context);
                context.later(500, Event::StartAgent { machine });
            }
            Event::StartAgent { machine } => machines[machine].start_agent(context),
            Event::Connect { machine, life } => self.connect(machine, life),
            Event::Turn { machine, life } => {
                if lives(&machines[machine], life) {
                    machines[machine].turn(timing, context);
                    context.later(500, Event::Turn { machine, life });
                }
            }
            Event::Shim { machine, key } => machines[machine].shim(key, timing, context),
            Event::News { machine, life, key } => {
                if lives(&machines[machine], life) {
                    machines[machine].news(key, timing, context);
                }
            }
            Event::Up { machine, session, message } => {
                if machines[machine].link.up {
                    self.leader_hears(machine, session, message);
                }
            }
            Event::Down { machine, session, message } => {
                if machines[machine].link.down {
                    machines[machine].hear(session, message, timing, context);
                }
            }
            Event::Hangup { machine, session } => machines[machine].hangup(session, context),
            Event::Mend { machine } => {
                (machines[machine].link.up, machines[machine].link.down) = (true, true);
            }
            Event::Propose { term, proposal } => match term == self.control.term {
                true => self.enqueue(*proposal),
                false => self.stale_proposal(*proposal),
            },
            Event::Commit => self.commit(),
            Event::Renewed { machine, session, term, seq, generation } => {
                self.renewed(machine, session, term, seq, generation);
            }
            Event::Beat { term } => self.beat(term),
            Event::Elected => self.elected(),
            Event::Operate => self.operate(),
            Event::Retry { operation } => self.ask(operation),
            Event::Fault => self.fault(),
            Event::Heal => self.heal(),
        }
    }

    fn connect(&mut self, machine: MachineAt, life: u64) {
        let row = &mut self.machines[machine];
        if !lives(row, life) || row.agent.as_ref().is_some_and(|agent| agent.session.is_some()) {
            return;
        }
        if !self.control.leading || !row.link.up {
            let in_ms = self.context.rng.between(200, 1_000);
            return self.context.later(in_ms, Event::Connect { machine, life });
        }
        self.sessions += 1;
        let all = GpuMask::first(row.gpus);
        let sick = !self.healed && self.context.rng.chance(5);
        let gpu = self.context.rng.between(0, u64::from(row.gpus) - 1) as u32;
        let healthy = if sick { all.without(GpuMask::one(gpu)) } else { all };
        row.hello(self.sessions, healthy, &mut self.context);
    }

    /// A proposal of a leader that leads no more: its plan may still reach the log
    /// through the next one, as a stale one; the rest is lost.
    fn stale_proposal(&mut self, proposal: crate::message::Proposal) {
        match proposal.then {
            Then::Planned => {
                self.count("stale plan", None);
                self.propose("planner", None, proposal.command, Then::Nothing);
            }
            _ => self.not_committed(proposal.then),
        }
    }

    /// A client wants something.
    fn operate(&mut self) {
        if self.healed {
            return;
        }
        let (_, mut rng, on) = self.draws.next(Drawn::Operation);
        let in_ms = rng.between(100, 9_000);
        self.context.later(in_ms, Event::Operate);
        if !on {
            return;
        }
        if rng.chance(40) {
            self.read(&mut rng);
        }
        let Some(command) = self.draw_command(&mut rng) else { return };
        self.begin(command);
    }

    fn begin(&mut self, command: Command) {
        let op = Op::of(&command).expect("clients ask nothing else");
        let client = self.operations.len() as u64;
        let call = self.history.called(client, op, self.context.now_ms);
        self.operations.push(Operation { call, command, answer: None });
        self.ask(self.operations.len() - 1);
    }

    /// A client looks at something. What it sees is the state of some moment between call and return.
    fn read(&mut self, rng: &mut Rng) {
        let Some(op) = self.draw_read(rng) else { return };
        if !self.control.leading {
            return;
        }
        let seen = op.look(self.control.core.cluster()).expect("a read");
        let (called_ms, returned_ms) = (self.context.now_ms, self.context.now_ms);
        let call = self.history.called(u64::MAX, op, called_ms);
        let index = self.control.core.cluster().applied();
        self.history.returned(call, returned_ms, seen, index);
    }

    fn draw_read(&mut self, rng: &mut Rng) -> Option<Op> {
        let cluster = self.control.core.cluster();
        let jobs: Vec<JobId> = cluster.jobs().iter().map(|(id, _)| id).collect();
        let fillers = cluster.fillers().values().map(|filler| filler.spec.name.clone());
        let fillers: Vec<String> = fillers.collect();
        let machine = &self.machines[rng.between(0, self.machines.len() as u64 - 1) as usize];
        Some(match rng.between(0, 9) {
            0..=3 => Op::ReadJob { job: rng.pick(&jobs)? },
            4 | 5 => Op::ReadFiller { name: rng.pick(&fillers)? },
            6 | 7 => Op::ReadNode { node: machine.node },
            _ => {
                let gpu = rng.between(0, u64::from(machine.gpus) - 1) as u32;
                Op::ReadGpu { node: machine.node, gpu }
            }
        })
    }

    /// Asks, and goes on asking until there is an answer: with one request id.
    fn ask(&mut self, operation: usize) {
        if self.operations[operation].answer.is_some() {
            return;
        }
        let command = self.operations[operation].command.clone();
        let request = RequestId { client: format!("client-{operation}"), seq: 1 };
        self.propose(
            "operator",
            Some(request.clone()),
            command.clone(),
            Then::Answered { operation },
        );
        if self.context.rng.chance(5) && !self.healed {
            self.count("duplicated request", None);
            self.propose("operator", Some(request), command, Then::Answered { operation });
        }
        self.context.later(RETRY_MS, Event::Retry { operation });
    }

    pub(crate) fn answered(&mut self, operation: usize, answer: Result<Reply, Refusal>) {
        let known = &mut self.operations[operation].answer;
        if known.as_ref().is_some_and(|known| *known != answer) {
            let what = format!("asked twice, answered {known:?} and {answer:?}");
            return self.context.finding(Invariant::Once, what);
        }
        let first = known.replace(answer).is_none();
        // A drain whose request was lost may reach the log after the faults ended.
        if first && self.healed {
            match self.operations[operation].command {
                Command::CordonNode { node, .. } | Command::DrainNode { node, .. } => {
                    self.begin(Command::UndrainNode(node));
                }
                _ => {}
            }
        }
    }

    fn draw_command(&mut self, rng: &mut Rng) -> Option<Command> {
        let cluster = self.control.core.cluster();
        let jobs = cluster.jobs().values();
        let live: Vec<JobId> = jobs.filter(|job| !job.state.ended()).map(|job| job.id).collect();
        let fillers: Vec<FillerId> = cluster.fillers().iter().map(|(id, _)| id).collect();
        let nodes: Vec<NodeId> = cluster.nodes().iter().map(|(id, _)| id).collect();
        let out = cluster.nodes().values().filter(|node| node.duty != Duty::InService);
        let out: Vec<NodeId> = out.map(|node| node.id).collect();
        let reason = String::from("chaos");
        Some(match rng.between(0, 99) {
            0..=49 => {
                self.jobs += 1;
                Command::SubmitJob(setup::job(self.jobs, rng))
            }
            50..=57 => Command::CancelJob(rng.pick(&live)?),
            58..=60 => Command::RequeueJob(rng.pick(&live)?),
            61..=75 => Command::DeployFiller(setup::filler(rng)),
            76..=78 => Command::DrainFiller(rng.pick(&fillers)?),
            79..=80 => Command::RemoveFiller(rng.pick(&fillers)?),
            81..=84 => Command::CordonNode { node: rng.pick(&nodes)?, reason },
            85..=88 => Command::DrainNode { node: rng.pick(&nodes)?, reason },
            _ => Command::UndrainNode(rng.pick(&out)?),
        })
    }

    fn fault(&mut self) {
        if self.healed {
            return;
        }
        let (_, mut rng, on) = self.draws.next(Drawn::Fault);
        let in_ms = rng.between(500, 20_000);
        self.context.later(in_ms, Event::Fault);
        if !on {
            return;
        }
        let machine = rng.between(0, self.machines.len() as u64 - 1) as usize;
        match rng.between(0, 9) {
            0 | 1 => self.kill_agent(machine, &mut rng),
            2 => self.reboot(machine, &mut rng),
            3..=5 => self.cut(machine, &mut rng),
            6 | 7 => {
                self.count("leader change", None);
                self.depose();
            }
            8 => self.restore(),
            _ => {
                self.count("broken stream", Some(machine));
                let session = self.machines[machine].agent.as_ref().and_then(|a| a.session);
                if let Some(session) = session {
                    self.machines[machine].hangup(session, &mut self.context);
                }
            }
        }
    }

    fn kill_agent(&mut self, machine: MachineAt, rng: &mut Rng) {
        self.count("killed agent", Some(machine));
        self.context.note(format_args!("m{machine}: the agent is killed"));
        self.machines[machine].kill_agent();
        let long = rng.chance(30);
        let in_ms = rng.between(50, if long { 90_000 } else { 2_000 });
        self.context.later(in_ms, Event::StartAgent { machine });
    }

    fn reboot(&mut self, machine: MachineAt, rng: &mut Rng) {
        if !self.machines[machine].powered {
            return;
        }
        self.count("rebooted machine", Some(machine));
        self.context.note(format_args!("m{machine}: the power fails"));
        self.machines[machine].power_off(&mut self.context);
        let in_ms = rng.between(3_000, 60_000);
        self.context.later(in_ms, Event::PowerOn { machine });
    }

    fn cut(&mut self, machine: MachineAt, rng: &mut Rng) {
        self.count("cut link", Some(machine));
        let link = &mut self.machines[machine].link;
        match rng.between(0, 2) {
            0 => link.up = false,
            1 => link.down = false,
            _ => (link.up, link.down) = (false, false),
        }
        self.context.note(format_args!("m{machine}: the link is cut"));
        let long = rng.chance(40);
        let in_ms = rng.between(100, if long { 90_000 } else { 8_000 });
        self.context.later(in_ms, Event::Mend { machine });
    }

    /// The replica goes on from its own snapshot.
    fn restore(&mut self) {
        self.count("restored snapshot", None);
        let hash = self.control.core.cluster().state_hash();
        let bytes = self.control.core.cluster().to_snapshot().expect("a small state");
        if let Err(error) = self.control.core.restore(&bytes) {
            let what = format!("a snapshot cannot be read: {error}");
            return self.context.finding(Invariant::SnapshotReplays, what);
        }
        if self.control.core.cluster().state_hash() != hash {
            let what = "a restored state has another hash";
            self.context.finding(Invariant::SnapshotReplays, what);
        }
        self.control.snapshot = Some((self.control.entries.len(), bytes));
    }

    /// No more faults: what was broken is mended, and clients undrain what was drained.
    fn heal(&mut self) {
        self.context.note(format_args!("faults end"));
        self.healed = true;
        for machine in 0..self.machines.len() {
            self.context.later(1, Event::Mend { machine });
            if self.machines[machine].powered {
                // A GPU that was sick is well again: the agent says so when it comes.
                self.machines[machine].kill_agent();
                self.context.later(100, Event::StartAgent { machine });
            }
        }
        let nodes: Vec<NodeId> = self.machines.iter().map(|machine| machine.node).collect();
        for node in nodes {
            self.begin(Command::UndrainNode(node));
        }
    }

    /// A fault falls into a phase: what its machine is at, or the control plane.
    pub(crate) fn count(&mut self, fault: &'static str, machine: Option<MachineAt>) {
        let node = machine.map(|machine| self.machines[machine].node);
        let phase = coverage::phase(self.control.core.cluster(), node);
        *self.faults.entry((fault, phase)).or_default() += 1;
    }

    /// Jobs that have not ended.
    pub(crate) fn unended(&self) -> impl Iterator<Item = (JobId, JobState)> {
        let jobs = self.control.core.cluster().jobs().values();
        jobs.filter(|job| !job.state.ended()).map(|job| (job.id, job.state))
    }
}

fn lives(machine: &Machine, life: u64) -> bool {
    machine.agent.as_ref().is_some_and(|agent| agent.life == life)
}
