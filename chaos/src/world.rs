//! One world: its seed draws the cluster, the workload and the faults; then
//! faults end, and everything must come to rest.

use std::collections::BTreeMap;

use rowen_state::{
    Command, Duty, FillerId, GpuMask, JobId, JobState, NodeId, Refusal, Reply, RequestId,
};

use crate::{
    checks,
    context::Context,
    leader::Control,
    machine::Machine,
    message::{Event, MachineAt, Then},
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
    pub(crate) faults: BTreeMap<&'static str, u64>,
    /// Faults are over.
    pub(crate) healed: bool,
    jobs: usize,
    sessions: u64,
}

/// Something a client wants, until it hears that it is so.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) command: Command,
    pub(crate) answer: Option<Result<Reply, Refusal>>,
}

/// What a run gave.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) seed: u64,
    pub(crate) simulated_ms: u64,
    pub(crate) digest: u64,
    pub(crate) state_hash: u128,
    pub(crate) findings: Vec<String>,
    /// The last lines of the trace before the first finding, or of all.
    pub(crate) tail: Vec<String>,
    pub(crate) faults: BTreeMap<&'static str, u64>,
    pub(crate) operations: u64,
    pub(crate) entries: u64,
    pub(crate) launches: u64,
}

/// Runs the world of a seed to its end, or to its first finding.
pub(crate) fn run(seed: u64) -> Outcome {
    let mut world = World::new(seed);
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
        seed,
        simulated_ms: world.context.now_ms - began_ms,
        digest: world.context.digest(),
        state_hash: world.control.core.cluster().state_hash(),
        tail: world.context.tail.iter().cloned().collect(),
        findings: world.context.findings,
        faults: world.faults,
        operations: world.operations.len() as u64,
        entries: world.control.entries.len() as u64,
        launches: world.context.journal.launches,
    }
}

impl World {
    fn new(seed: u64) -> World {
        let mut context = Context::new(seed);
        let timing = Timing::draw(&mut context.rng);
        let fabric = setup::fabric(&mut context.rng);
        let control = Control::new(&timing);
        let mut world = World {
            context,
            timing,
            machines: Vec::new(),
            control,
            operations: Vec::new(),
            faults: BTreeMap::new(),
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
                self.count("stale plan");
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
        let in_ms = self.context.rng.between(100, 9_000);
        self.context.later(in_ms, Event::Operate);
        let Some(command) = self.draw_command() else { return };
        self.begin(command);
    }

    fn begin(&mut self, command: Command) {
        self.operations.push(Operation { command, answer: None });
        self.ask(self.operations.len() - 1);
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
            self.count("duplicated request");
            self.propose("operator", Some(request), command, Then::Answered { operation });
        }
        self.context.later(RETRY_MS, Event::Retry { operation });
    }

    pub(crate) fn answered(&mut self, operation: usize, answer: Result<Reply, Refusal>) {
        let known = &mut self.operations[operation].answer;
        if known.as_ref().is_some_and(|known| *known != answer) {
            let what = format!("asked twice, answered {known:?} and {answer:?}");
            return self.context.finding(what);
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

    fn draw_command(&mut self) -> Option<Command> {
        let rng = &mut self.context.rng;
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
        let in_ms = self.context.rng.between(500, 20_000);
        self.context.later(in_ms, Event::Fault);
        let machine = self.context.rng.between(0, self.machines.len() as u64 - 1) as usize;
        match self.context.rng.between(0, 9) {
            0 | 1 => self.kill_agent(machine),
            2 => self.reboot(machine),
            3..=5 => self.cut(machine),
            6 | 7 => {
                self.count("leader change");
                self.depose();
            }
            8 => self.restore(),
            _ => {
                self.count("broken stream");
                let session = self.machines[machine].agent.as_ref().and_then(|a| a.session);
                if let Some(session) = session {
                    self.machines[machine].hangup(session, &mut self.context);
                }
            }
        }
    }

    fn kill_agent(&mut self, machine: MachineAt) {
        self.count("killed agent");
        self.context.note(format_args!("m{machine}: the agent is killed"));
        self.machines[machine].kill_agent();
        let long = self.context.rng.chance(30);
        let in_ms = self.context.rng.between(50, if long { 90_000 } else { 2_000 });
        self.context.later(in_ms, Event::StartAgent { machine });
    }

    fn reboot(&mut self, machine: MachineAt) {
        if !self.machines[machine].powered {
            return;
        }
        self.count("rebooted machine");
        self.context.note(format_args!("m{machine}: the power fails"));
        self.machines[machine].power_off(&mut self.context);
        let in_ms = self.context.rng.between(3_000, 60_000);
        self.context.later(in_ms, Event::PowerOn { machine });
    }

    fn cut(&mut self, machine: MachineAt) {
        self.count("cut link");
        let link = &mut self.machines[machine].link;
        match self.context.rng.between(0, 2) {
            0 => link.up = false,
            1 => link.down = false,
            _ => (link.up, link.down) = (false, false),
        }
        self.context.note(format_args!("m{machine}: the link is cut"));
        let long = self.context.rng.chance(40);
        let in_ms = self.context.rng.between(100, if long { 90_000 } else { 8_000 });
        self.context.later(in_ms, Event::Mend { machine });
    }

    /// The replica goes on from its own snapshot.
    fn restore(&mut self) {
        self.count("restored snapshot");
        let hash = self.control.core.cluster().state_hash();
        let bytes = self.control.core.cluster().to_snapshot().expect("a small state");
        if let Err(error) = self.control.core.restore(&bytes) {
            return self.context.finding(format!("a snapshot cannot be read: {error}"));
        }
        if self.control.core.cluster().state_hash() != hash {
            self.context.finding("a restored state has another hash".into());
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

    pub(crate) fn count(&mut self, fault: &'static str) {
        *self.faults.entry(fault).or_default() += 1;
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
