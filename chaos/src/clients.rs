//! The clients of a world: what they ask, of which replica, how often again, and what they were
//! told. Each asks one thing under one request id until it is answered.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use rowen_api::v1::{
    self, cluster_service_server::ClusterService as _, job_service_server::JobService as _,
};
use rowen_server::Shell;
use rowen_state::{
    Code, Command, Duty, FillerId, JobId, JobState, NodeId, ReplicaId, Reply, RequestId,
    codec::READS_VERSION,
};
use tonic::Status;

use crate::{
    draws::Drawn,
    group::MAX_PENDING_BYTES,
    history::{Answer, Op},
    inbox::Arrived,
    invariant::Invariant,
    message::{Event, ReplicaAt},
    net::Host,
    rng::Rng,
    setup,
    world::World,
};

/// A client asks again after this.
const RETRY_MS: u64 = 3_000;

/// Something a client wants, until it hears that it is so.
#[derive(Debug)]
pub(crate) struct Operation {
    /// In the history; none for what only operators ask.
    pub(crate) call: Option<usize>,
    pub(crate) want: Want,
    pub(crate) answer: Option<Result<Reply, Code>>,
    /// A restore went back to before it: what it was told counts no more.
    pub(crate) lost: bool,
    /// Who leads, as this client was told.
    leader: Option<ReplicaAt>,
}

/// See [`Operation`].
#[derive(Clone, Debug)]
pub(crate) enum Want {
    Write(Box<Command>),
    /// The timing in force is changed.
    Timing(v1::TimingChange),
    /// A replica of the build before asks to join a cluster that has risen above it. Asked once.
    JoinOld,
    /// Asked once; a read that was lost stays open. `anywhere`: as the services read, on any
    /// replica; else as the leader does before it proposes.
    Read {
        op: Op,
        anywhere: bool,
    },
    /// A job with its story, on any replica. Asked once.
    Story(JobId),
}

/// What came back.
#[derive(Clone, Debug)]
pub(crate) enum Told {
    Done {
        reply: Reply,
        index: u64,
    },
    Seen {
        answer: Answer,
        index: u64,
    },
    /// An older build was let in.
    LetIn,
    Story {
        job: JobId,
        told: Box<v1::Job>,
    },
    /// Refused, or not known: what it was says the log.
    Failed {
        code: tonic::Code,
        leader: Option<String>,
    },
}

impl Operation {
    /// The command that was asked for, if it is one.
    pub(crate) fn command(&self) -> Option<&Command> {
        match &self.want {
            Want::Write(command) => Some(command),
            _ => None,
        }
    }

    pub(crate) fn is_timing(&self) -> bool {
        matches!(self.want, Want::Timing(_))
    }

    /// Nobody waits for it any more.
    pub(crate) fn is_over(&self) -> bool {
        self.answer.is_some() || self.want.is_asked_once()
    }
}

impl Want {
    fn is_asked_once(&self) -> bool {
        matches!(self, Want::Read { .. } | Want::Story(_) | Want::JoinOld)
    }
}

pub(crate) fn request_id(operation: usize) -> RequestId {
    RequestId { client: format!("client-{operation}"), seq: 1 }
}

impl World {
    /// A client wants something.
    pub(crate) fn operate(&mut self) {
        if self.healed {
            return;
        }
        let (_, mut rng, on) = self.draws.next(Drawn::Operation);
        let in_ms = rng.between(100, 9_000);
        self.context.later(in_ms, Event::Operate);
        if !on {
            return;
        }
        if rng.chance(40)
            && let Some(op) = self.draw_read(&mut rng)
        {
            let anywhere = rng.chance(60);
            self.want(Want::Read { op, anywhere });
        }
        if rng.chance(8)
            && let Some(job) = self.draw_job(&mut rng)
        {
            self.want(Want::Story(job));
        }
        if let Some(command) = self.draw_command(&mut rng) {
            self.begin(command);
        }
    }

    pub(crate) fn begin(&mut self, command: Command) {
        self.want(Want::Write(Box::new(command)));
    }

    fn want(&mut self, want: Want) {
        let op = match &want {
            Want::Write(command) => Op::of(command),
            Want::Read { op, .. } => Some(op.clone()),
            Want::Timing(_) | Want::Story(_) | Want::JoinOld => None,
        };
        let client = self.operations.len() as u64;
        let call = op.map(|op| self.history.called(client, op, self.context.now_ms));
        self.operations.push(Operation { call, want, answer: None, lost: false, leader: None });
        self.ask(self.operations.len() - 1);
    }

    /// Asks, and goes on asking until there is an answer: with one request id.
    pub(crate) fn ask(&mut self, operation: usize) {
        let known = &self.operations[operation];
        if known.answer.is_some() {
            return;
        }
        let active = self.group.active();
        let drawn = self.context.rng.pick(&active).expect("a group is never empty");
        let replica = known.leader.unwrap_or(drawn);
        self.send_ask(operation, replica);
        if !self.operations[operation].want.is_asked_once() {
            self.context.later(RETRY_MS, Event::Retry { operation });
        }
    }

    fn send_ask(&mut self, operation: usize, replica: ReplicaAt) {
        let there = Host::Replica(self.group.seats[replica].id);
        for us in self.group.net().fate_us(Host::Client, there) {
            self.context.later(us.div_ceil(1_000), Event::Ask { operation, replica });
        }
    }

    /// A request arrives at a replica.
    pub(crate) fn asked(&mut self, operation: usize, replica: ReplicaAt) {
        let seat = &self.group.seats[replica];
        let (Some(shell), Some(process)) = (&seat.shell, &seat.process) else {
            self.operations[operation].leader = None;
            return;
        };
        let (shell, inbox) = (shell.clone(), self.inbox.clone());
        let want = self.operations[operation].want.clone();
        let waiting_bytes = Arc::clone(&seat.waiting_bytes);
        process.spawn(async move {
            let told = match want {
                Want::Write(command) => {
                    let _waiting = Waiting::new(waiting_bytes, &command);
                    match shell.propose(request_id(operation), *command).await {
                        Ok((index, reply)) => Told::Done { reply, index },
                        Err(status) => failed(&status),
                    }
                }
                Want::Timing(change) => set_timing(&shell, request_id(operation), change).await,
                Want::JoinOld => join_old(&shell, request_id(operation)).await,
                Want::Read { op, anywhere } => {
                    let view =
                        if anywhere { shell.read_anywhere().await } else { shell.read().await };
                    match view {
                        Ok(view) => {
                            let answer = op.look(&view).expect("it reads");
                            Told::Seen { answer, index: view.applied() }
                        }
                        Err(status) => failed(&status),
                    }
                }
                Want::Story(job) => {
                    let request = v1::GetJobRequest { id: job.to_string() };
                    match shell.jobs().get_job(Shell::authorized(request)).await {
                        Ok(told) => Told::Story { job, told: Box::new(told.into_inner()) },
                        Err(status) => failed(&status),
                    }
                }
            };
            drop(shell);
            inbox.push(Arrived::Answered { operation, replica, told });
        });
    }

    /// What a replica has taken and not answered is bounded.
    pub(crate) fn check_waiting(&mut self) {
        for at in 0..self.group.seats.len() {
            let seat = &self.group.seats[at];
            let bytes = seat.waiting_bytes.load(Ordering::Relaxed);
            if bytes == 0 || seat.process.is_none() {
                continue;
            }
            let over = bytes > MAX_PENDING_BYTES;
            let what = || format!("replica {at}: requests of {bytes} bytes wait to be answered");
            self.context.check(Invariant::Bounded, over.then(what));
        }
    }

    /// A replica answers.
    pub(crate) fn answers(&mut self, operation: usize, replica: ReplicaAt, told: Told) {
        if replica < self.restores.first_seat {
            return; // of a cluster that is no more
        }
        if let Told::Story { job, told } = &told {
            return self.check_story(replica, *job, told);
        }
        let here = Host::Replica(self.group.seats[replica].id);
        for us in self.group.net().fate_us(here, Host::Client) {
            let told = told.clone();
            self.context.later(us.div_ceil(1_000), Event::Told { operation, replica, told });
        }
    }

    /// The answer arrives.
    pub(crate) fn told(&mut self, operation: usize, replica: ReplicaAt, told: Told) {
        let now_ms = self.context.now_ms;
        if replica < self.restores.first_seat || self.operations[operation].lost {
            return; // of a cluster that is no more
        }
        match told {
            Told::Story { .. } => {}
            Told::LetIn => {
                let what = "a replica was let in that cannot read what the cluster writes";
                self.context.finding(Invariant::NothingLost, what);
            }
            Told::Seen { answer, index } => {
                if let Some(call) = self.operations[operation].call {
                    self.history.returned(call, now_ms, answer, index);
                }
            }
            Told::Done { reply, index } => {
                self.operations[operation].leader = Some(replica);
                self.check_on_quorum(index);
                self.answered(operation, Ok(reply), index);
            }
            Told::Failed { code, leader } => {
                let refused = refusal_of(code);
                match (refused, self.control.index_of(&request_id(operation))) {
                    (Some(code), Some(index)) => self.answered(operation, Err(code), index),
                    _ => {
                        let leader = leader.and_then(|addr| self.group.at_addr(&addr));
                        self.operations[operation].leader = leader;
                        if let Some(leader) = leader.filter(|leader| *leader != replica) {
                            self.send_ask(operation, leader);
                        }
                    }
                }
            }
        }
    }

    fn answered(&mut self, operation: usize, answer: Result<Reply, Code>, index: u64) {
        let known = &mut self.operations[operation];
        self.context.checked.add(Invariant::Once, 1);
        if known.answer.as_ref().is_some_and(|known| *known != answer) {
            let what = format!("asked twice, answered {:?} and {answer:?}", known.answer);
            return self.context.finding(Invariant::Once, what);
        }
        if known.answer.replace(answer.clone()).is_some() {
            return;
        }
        if let Some(call) = known.call {
            let answer = match &answer {
                Ok(reply) => Answer::from(&Ok(reply.clone())),
                Err(code) => Answer::Refused(*code),
            };
            self.history.returned(call, self.context.now_ms, answer, index);
        }
        let Some(command) = known.command().cloned() else { return };
        match (command, answer) {
            // A drain whose request was lost may reach the log after the faults ended.
            (Command::CordonNode { node, .. } | Command::DrainNode { node, .. }, _)
                if self.healed =>
            {
                self.begin(Command::UndrainNode(node));
            }
            (Command::SubmitJob(_), Ok(Reply::Job(job))) => self.may_watch(job),
            (Command::AdmitReplica { addr, .. }, answer) => self.admitted(&addr, answer),
            _ => {}
        }
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

    fn draw_job(&self, rng: &mut Rng) -> Option<JobId> {
        let jobs = self.control.core.cluster().jobs().iter();
        rng.pick(&jobs.map(|(id, _)| id).collect::<Vec<_>>())
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
                Command::SubmitJob(setup::job(self.jobs, rng, cluster.meta().version))
            }
            50..=57 => Command::CancelJob(rng.pick(&live)?),
            58..=60 => Command::RequeueJob(rng.pick(&live)?),
            61..=75 => Command::DeployFiller(setup::filler(rng)),
            76..=78 => Command::DrainFiller(rng.pick(&fillers)?),
            79..=80 => Command::RemoveFiller(rng.pick(&fillers)?),
            81..=84 => Command::CordonNode { node: rng.pick(&nodes)?, reason },
            85..=88 => Command::DrainNode { node: rng.pick(&nodes)?, reason },
            89..=91 => {
                self.change_members(rng);
                return None;
            }
            92..=93 if self.will_restore() => return None,
            92..=93 => {
                self.want(Want::Timing(self.timing.change(rng)));
                return None;
            }
            94 => {
                if cluster.meta().version == READS_VERSION {
                    self.want(Want::JoinOld);
                }
                return None;
            }
            95 => {
                self.flood(rng);
                return None;
            }
            _ => Command::UndrainNode(rng.pick(&out)?),
        })
    }

    /// Somebody's script submits large jobs all at once; none is valid, or they would be all there is.
    fn flood(&mut self, rng: &mut Rng) {
        self.count("flood of requests", None);
        self.context.note(format_args!("a flood of requests"));
        for _ in 0..rng.between(8, 16) {
            self.jobs += 1;
            let version = self.control.core.cluster().meta().version;
            let mut spec = setup::job(self.jobs, rng, version);
            spec.workers = 0;
            spec.env.insert("DATA".into(), "x".repeat(rng.between(8, 24) as usize * 1_024));
            self.begin(Command::SubmitJob(spec));
        }
    }

    /// An operator adds a replica, or takes one out.
    fn change_members(&mut self, rng: &mut Rng) {
        let active = self.group.active();
        if self.restores.small {
            return;
        }
        match rng.chance(50) {
            true if active.len() < 6 => self.replace(None),
            _ if active.len() > 3 => {
                if let Some(at) = rng.pick(&active) {
                    self.retire(at);
                }
            }
            _ => self.replace(rng.pick(&active)),
        }
    }

    /// Jobs that have not ended.
    pub(crate) fn unended(&self) -> impl Iterator<Item = (JobId, JobState)> {
        let jobs = self.control.core.cluster().jobs().values();
        jobs.filter(|job| !job.state.ended()).map(|job| (job.id, job.state))
    }

    /// The operator takes a replica out of the group.
    pub(crate) fn retire(&mut self, at: ReplicaAt) {
        let seat = &mut self.group.seats[at];
        seat.retired = true;
        let id = ReplicaId(seat.id);
        self.count("replica taken out", None);
        self.context.note(format_args!("r{at}: taken out"));
        self.begin(Command::RemoveReplica(id));
    }
}

/// A request that a replica has taken, until it is answered.
struct Waiting {
    all_bytes: Arc<AtomicUsize>,
    bytes: usize,
}

impl Waiting {
    /// Counted with what its entry holds at least.
    fn new(all_bytes: Arc<AtomicUsize>, command: &Command) -> Waiting {
        let bytes = match command {
            Command::SubmitJob(spec) => spec.env.values().map(String::len).sum(),
            _ => 0,
        };
        all_bytes.fetch_add(bytes, Ordering::Relaxed);
        Waiting { all_bytes, bytes }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.all_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

async fn join_old(shell: &Shell, id: RequestId) -> Told {
    let request = Some(v1::RequestId { client: id.client, seq: id.seq });
    let (addr, reads_version) = ("old:7077".to_owned(), READS_VERSION - 1);
    let request = v1::AdmitReplicaRequest { request, addr, reads_version };
    match shell.cluster().admit_replica(Shell::authorized(request)).await {
        Ok(_) => Told::LetIn,
        Err(status) => failed(&status),
    }
}

async fn set_timing(shell: &Shell, id: RequestId, change: v1::TimingChange) -> Told {
    let request = Some(v1::RequestId { client: id.client, seq: id.seq });
    let request = v1::SetTimingRequest { request, change: Some(change) };
    match shell.cluster().set_timing(Shell::authorized(request)).await {
        Ok(set) => Told::Done { reply: Reply::Done, index: set.into_inner().index },
        Err(status) => failed(&status),
    }
}

fn failed(status: &Status) -> Told {
    let leader = status.metadata().get("rowen-leader").and_then(|addr| addr.to_str().ok());
    Told::Failed { code: status.code(), leader: leader.map(str::to_owned) }
}

/// What a status says of a command that is in the log.
fn refusal_of(code: tonic::Code) -> Option<Code> {
    Some(match code {
        tonic::Code::InvalidArgument => Code::Invalid,
        tonic::Code::NotFound => Code::NotFound,
        tonic::Code::FailedPrecondition => Code::Conflict,
        tonic::Code::ResourceExhausted => Code::Exhausted,
        tonic::Code::Aborted => Code::Expired,
        _ => return None,
    })
}
