//! The streams between agents and replicas: values of the wire, in order, over links that may be
//! cut. A stream over a dead link looks alive to either side until that side has waited long enough.
//! What was said into it meanwhile may still arrive when the link is mended, as TCP sends it again:
//! late, in its order, when the agent has long opened another stream.

use std::collections::{BTreeMap, VecDeque};

use rowen_agent::core::{Epoch, TaskKey};
use rowen_api::v1::{self, AgentMessage, agent_message, server_message};
use rowen_state::{FillerId, GpuMask, JobId, Owner, TaskPhase, TaskReport};
use tokio::sync::mpsc;
use tonic::Status;

use crate::{
    inbox::Arrived,
    logs::Writer,
    message::{DesiredTask, Event, MachineAt, ReplicaAt, ToAgent, ToLeader},
    net::Host,
    world::World,
};

type Up = mpsc::UnboundedSender<Result<AgentMessage, Status>>;

/// All that a replica still believes to be open.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    open: BTreeMap<u64, Stream>,
    last: u64,
}

#[derive(Debug)]
struct Stream {
    machine: MachineAt,
    replica: ReplicaAt,
    up: Up,
    pump: tokio::task::AbortHandle,
    /// What the agent's machine sends again until it arrives.
    held: VecDeque<ToLeader>,
    /// The agent has closed it: nothing comes after what is held.
    closing: bool,
    /// Until when the machine tries; 0: nothing is held.
    held_until_ms: u64,
}

/// More than that waits for no link: the agent is held up and gives the stream up.
const HELD_MESSAGES: usize = 1_000;
/// How long a machine sends again what was not acknowledged.
const HELD_MS: u64 = 20_000;

impl World {
    /// An agent tries the next replica, or the one it was sent to.
    pub(crate) fn connect(&mut self, machine: MachineAt) {
        let active = self.group.active();
        let row = &mut self.machines[machine];
        let Some(agent) = row.agent.as_mut().filter(|agent| agent.session.is_none()) else {
            return;
        };
        let sent_to = agent.go_to.take().and_then(|addr| self.group.at_addr(&addr));
        agent.tried += 1;
        let replica = sent_to.unwrap_or(active[agent.tried % active.len()]);
        let life = agent.life;
        let seat = &self.group.seats[replica];
        let reached = row.link.up && row.link.down && self.reaches(machine, replica);
        let (Some(shell), Some(process), true) = (&seat.shell, &seat.process, reached) else {
            let in_ms = self.context.rng.between(100, 2_000);
            return self.context.later(in_ms, Event::Connect { machine, life });
        };
        self.streams.last += 1;
        let session = self.streams.last;
        let (up, incoming) = mpsc::unbounded_channel();
        let (shell, inbox, addr) = (shell.clone(), self.inbox.clone(), seat.addr.clone());
        let pump = process.spawn(async move {
            let incoming = futures::stream::unfold(incoming, |mut incoming| async {
                incoming.recv().await.map(|message| (message, incoming))
            });
            let mut outgoing = shell.attach(Box::pin(incoming));
            drop(shell);
            while let Some(Ok(message)) = outgoing.recv().await {
                if let Some(message) = to_agent(message, &addr) {
                    inbox.push(Arrived::Said { session, message });
                }
            }
            inbox.push(Arrived::HungUp { session });
        });
        let stream = Stream {
            machine,
            replica,
            up,
            pump: pump.abort_handle(),
            held: VecDeque::new(),
            closing: false,
            held_until_ms: 0,
        };
        self.streams.open.insert(session, stream);
        self.machines[machine].hello(session, &mut self.context);
    }

    fn reaches(&self, machine: MachineAt, replica: ReplicaAt) -> bool {
        let (here, there) = (Host::Machine(machine), Host::Replica(self.group.seats[replica].id));
        self.group.net().is_open(here, there) && self.group.net().is_open(there, here)
    }

    /// What an agent said arrives, now or when the link is mended.
    pub(crate) fn goes_up(&mut self, machine: MachineAt, session: u64, message: ToLeader) {
        let Some(stream) = self.streams.open.get_mut(&session) else { return };
        stream.held.push_back(message);
        if stream.held_until_ms == 0 {
            stream.held_until_ms = self.context.now_ms + HELD_MS;
            self.flush(session);
        } else if stream.held.len() > HELD_MESSAGES {
            self.context.later(1, Event::Hangup { machine, session });
        }
    }

    /// Delivers what is held, if it can.
    pub(crate) fn flush(&mut self, session: u64) {
        let Some(stream) = self.streams.open.get(&session) else { return };
        let (machine, replica) = (stream.machine, stream.replica);
        let open = self.machines[machine].link.up && self.reaches(machine, replica);
        let now_ms = self.context.now_ms;
        let stream = self.streams.open.get_mut(&session).expect("looked up above");
        if !open && now_ms < stream.held_until_ms {
            let in_ms = self.context.rng.between(100, 1_500);
            return self.context.later(in_ms, Event::Flush { session });
        }
        stream.held_until_ms = 0;
        let held = std::mem::take(&mut stream.held);
        if !open {
            return self.context.later(1, Event::Hangup { machine, session });
        }
        for message in held {
            let (name, gpus) = (self.names[machine].clone(), self.machines[machine].gpus);
            let message = from_agent(message, machine, gpus, name);
            if stream.up.send(Ok(message)).is_err() {
                return self.context.later(1, Event::Hangup { machine, session });
            }
        }
        if stream.closing {
            self.closed(session);
        }
    }

    /// A machine's power fails: what it would have sent again is gone.
    pub(crate) fn lose_held(&mut self, machine: MachineAt) {
        let streams = self.streams.open.values_mut();
        streams.filter(|stream| stream.machine == machine).for_each(|stream| stream.held.clear());
    }

    /// What a replica said leaves it.
    pub(crate) fn said(&mut self, session: u64, message: ToAgent) {
        let Some(stream) = self.streams.open.get(&session) else { return };
        let (machine, replica) = (stream.machine, stream.replica);
        if !self.reaches(machine, replica) {
            let in_ms = self.context.rng.between(500, 6_000);
            return self.context.later(in_ms, Event::Hangup { machine, session });
        }
        self.machines[machine].send_down(session, message, &mut self.context);
    }

    /// A replica ended a stream; over a cut link its agent finds out by the silence.
    pub(crate) fn hung_up(&mut self, session: u64) {
        let Some(stream) = self.streams.open.remove(&session) else { return };
        let machine = stream.machine;
        if self.machines[machine].link.down && self.reaches(machine, stream.replica) {
            // After what was said before, which is on its way.
            let in_ms = 30 + self.context.rng.between(1, 50);
            self.context.later(in_ms, Event::Hangup { machine, session });
        }
    }

    /// The replica notices that the agent is gone, after all that was said.
    pub(crate) fn closed(&mut self, session: u64) {
        if let Some(stream) = self.streams.open.get_mut(&session)
            && !stream.held.is_empty()
        {
            stream.closing = true;
            return;
        }
        if let Some(stream) = self.streams.open.remove(&session) {
            stream.pump.abort();
        }
    }

    /// A replica's process is gone, and all its streams with it.
    pub(crate) fn streams_end(&mut self, replica: ReplicaAt) {
        let open = self.streams.open.iter();
        let gone: Vec<u64> =
            open.filter(|(_, stream)| stream.replica == replica).map(|(s, _)| *s).collect();
        gone.into_iter().for_each(|session| self.hung_up(session));
    }
}

fn from_agent(message: ToLeader, machine: MachineAt, gpus: u32, node: String) -> AgentMessage {
    let kind = match message {
        ToLeader::Hello { term, boot, said_ms, healthy, tasks } => {
            let gpu = |ordinal| v1::Gpu {
                ordinal,
                healthy: healthy.contains(ordinal),
                ..v1::Gpu::default()
            };
            agent_message::Kind::Hello(v1::Hello {
                protocol: 1,
                node,
                boot_id: format!("{machine}-{boot}"),
                instance: String::new(),
                addr: format!("m{machine}"),
                gpus: (0..gpus).map(gpu).collect(),
                simulated: true,
                version: "chaos".into(),
                highest_term: term,
                ports: vec![29_500],
                running: tasks.into_iter().map(report).collect(),
                folder: format!("{machine}"),
                said_ms,
            })
        }
        ToLeader::Heartbeat { seq, generation } => {
            agent_message::Kind::Heartbeat(v1::Heartbeat { seq, generation })
        }
        ToLeader::Report { seq, tasks } => {
            let tasks = tasks.into_iter().map(report).collect();
            agent_message::Kind::Report(v1::Report { seq, tasks })
        }
        ToLeader::Log { read, data, end, error } => {
            let (stream, data) = ("stdout".into(), data.into_bytes());
            agent_message::Kind::Log(v1::LogChunk { read, stream, data, end, error })
        }
        ToLeader::GpuHealth { sick } => {
            let trouble = |ordinal| match sick.contains(ordinal) {
                true => String::from("XID 79"),
                false => String::new(),
            };
            let gpu = |ordinal| v1::GpuTrouble { ordinal, trouble: trouble(ordinal) };
            let gpus = (0..gpus).map(gpu).collect();
            agent_message::Kind::GpuHealth(v1::GpuHealth { gpus })
        }
    };
    AgentMessage { kind: Some(kind) }
}

fn report(task: TaskReport) -> v1::TaskReport {
    let (phase, exit_code) = match task.phase {
        TaskPhase::Bound => (v1::TaskPhase::Unspecified, 0),
        TaskPhase::Running => (v1::TaskPhase::Running, 0),
        TaskPhase::Ready => (v1::TaskPhase::Ready, 0),
        TaskPhase::Lost => (v1::TaskPhase::Lost, 0),
        TaskPhase::Exited { code } => (v1::TaskPhase::Exited, code),
    };
    v1::TaskReport {
        allocation: task.allocation.0,
        rank: task.rank,
        epoch: Some(v1::Epoch { incarnation: task.epoch.incarnation, index: task.epoch.index }),
        phase: phase.into(),
        exit_code,
        message: task.message,
        port: task.port.into(),
    }
}

/// What the replica at `addr` says.
fn to_agent(message: v1::ServerMessage, addr: &str) -> Option<ToAgent> {
    Some(match message.kind? {
        server_message::Kind::Welcome(welcome) => ToAgent::Welcome {
            term: welcome.term,
            node_lease_ms: welcome.node_lease_ms,
            heartbeat_ms: welcome.heartbeat_ms,
        },
        server_message::Kind::HeartbeatAck(ack) => {
            ToAgent::HeartbeatAck { seq: ack.seq, term: ack.term }
        }
        server_message::Kind::ReportAck(ack) => ToAgent::ReportAck { seq: ack.seq },
        server_message::Kind::Desired(desired) => ToAgent::Desired {
            generation: desired.generation,
            term: desired.term,
            tasks: desired.tasks.into_iter().map(desired_task).collect(),
        },
        server_message::Kind::Refused(refused) => {
            let retry_after_ms = refused.retry_after_ms;
            // It leads, and takes the agent later.
            let leader = if retry_after_ms > 0 { addr.to_owned() } else { refused.leader };
            ToAgent::Refused { leader, retry_after_ms }
        }
        server_message::Kind::ReadLog(read) => {
            let owner = read.owner.unwrap_or_default();
            let (job, attempt) = (JobId(owner.id), owner.part as u32);
            let writer = Writer { job, attempt, rank: read.rank };
            ToAgent::ReadLog { read: read.read, writer, follow: read.follow }
        }
        server_message::Kind::StopLog(stop) => ToAgent::StopLog { read: stop.read },
    })
}

fn desired_task(task: v1::DesiredTask) -> DesiredTask {
    let epoch = task.epoch.unwrap_or_default();
    let epoch = Epoch { incarnation: epoch.incarnation, index: epoch.index };
    let owner = task.owner.unwrap_or_default();
    let owner = match owner.kind() {
        v1::OwnerKind::Filler => Owner::Instance { filler: FillerId(owner.id), number: owner.part },
        _ => Owner::Gang { job: JobId(owner.id), attempt: owner.part as u32 },
    };
    DesiredTask {
        key: TaskKey { allocation: task.allocation, rank: task.rank, epoch },
        owner,
        gpus: task.gpus.into_iter().collect::<GpuMask>(),
        notice_ms: task.notice_ms,
        stop: task.stop.map(|stop| (stop.withdraw_ms.min(stop.remaining_ms), stop.remaining_ms)),
    }
}
