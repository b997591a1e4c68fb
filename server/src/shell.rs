//! One replica's shell without its sockets: the leader's loop, the agents' sessions and the
//! services over one [`Replica`]. [`crate::serve`] puts gRPC around it; chaos runs it as it is.

use std::sync::Arc;

use futures::Stream;
use rowen_api::v1::{
    self, AgentMessage, ServerMessage, cluster_service_server::ClusterService,
    filler_service_server::FillerService, job_service_server::JobService,
    node_service_server::NodeService, replica_service_server::ReplicaService,
};
use rowen_raft::{Replica, ReplicaConfig, sim, sim_disk::SimDisk};
use rowen_state::{Cluster, Command, Reply, RequestId};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tonic::{Request, Status};

use crate::{
    agents::Sessions,
    auth::{Principal, Role},
    backup,
    clock::Clock,
    config::Config,
    leader,
    machine::{Feed, Machine},
    peers::{PeerCalls, Peers},
    server::Server,
    services::{self, AgentApi},
    setup,
};

/// See the module.
pub struct Shell {
    pub(crate) server: Arc<Server>,
    pub(crate) agents: AgentApi,
    pub(crate) leading: JoinHandle<()>,
}

impl Shell {
    pub(crate) fn start(config: Config, replica: Replica, feed: Feed, peers: Peers) -> Shell {
        let (renewals, received) = mpsc::channel(leader::RENEWALS);
        let server = Arc::new(Server {
            checkpoints: feed.checkpoints.clone(),
            stopped: watch::channel(None).0,
            changing_timing: tokio::sync::Mutex::default(),
            config,
            replica,
            feed,
            clock: Clock::default(),
            sessions: Sessions::default(),
            peers,
        });
        let leading = sim::spawn(leader::run(server.clone(), received));
        let agents = AgentApi::new(server.clone(), renewals);
        Shell { server, agents, leading }
    }

    /// A replica in a simulated process; `feed` is that of the machine it was opened with.
    pub fn simulate(
        config: Config,
        replica: Replica,
        feed: SimulatedFeed,
        peers: Arc<dyn PeerCalls>,
    ) -> Shell {
        Shell::start(config, replica, feed.0, Peers::Simulated(peers))
    }

    /// Takes an agent's stream; what it is sent arrives at the receiver.
    pub fn attach(
        &self,
        incoming: impl Stream<Item = Result<AgentMessage, Status>> + Send + Unpin + 'static,
    ) -> mpsc::Receiver<Result<ServerMessage, Status>> {
        self.agents.serve(incoming)
    }

    /// A request as the authorization point hands it on, of an operator on this machine.
    pub fn authorized<T>(message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.extensions_mut().insert(operator());
        request
    }

    /// `JobService`.
    pub fn jobs(&self) -> impl JobService + use<> {
        services::jobs(&self.server)
    }

    /// `FillerService`.
    pub fn fillers(&self) -> impl FillerService + use<> {
        services::fillers(&self.server)
    }

    /// `NodeService`.
    pub fn nodes(&self) -> impl NodeService + use<> {
        services::nodes(&self.server)
    }

    /// `ClusterService`.
    pub fn cluster(&self) -> impl ClusterService + use<> {
        services::cluster(&self.server)
    }

    /// `FabricService`.
    pub fn fabric(&self) -> impl v1::fabric_service_server::FabricService + use<> {
        services::fabric(&self.server)
    }

    /// `ReplicaService`.
    pub fn peers(&self) -> impl ReplicaService + use<> {
        services::replica(&self.server)
    }

    /// Puts an operator's command into the log and waits until it is applied here.
    pub async fn propose(
        &self,
        request: RequestId,
        command: Command,
    ) -> Result<(u64, Reply), Status> {
        let done = self.server.propose(&operator(), Some(request), command).await?;
        Ok((done.index, done.reply))
    }

    /// The state, at least as new as everything acknowledged before this call.
    pub async fn read(&self) -> Result<Arc<Cluster>, Status> {
        self.server.read().await
    }

    /// The same on any replica, as the services read.
    pub async fn read_anywhere(&self) -> Result<Arc<Cluster>, Status> {
        self.server.linear().await?;
        Ok(self.server.view())
    }

    /// What `rowen cluster backup` writes to its file.
    pub async fn backup(&self) -> Result<Vec<u8>, Status> {
        let view = self.read_anywhere().await?;
        let mut bytes = Vec::new();
        let keep = |chunk: Vec<u8>| {
            bytes.extend(chunk);
            Ok(())
        };
        backup::write(&view, self.server.replica.archive(), keep)
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(bytes)
    }

    /// Makes an empty simulated disk that of the first replica of a cluster that goes on from a
    /// backup. `raft` gets its id; what its machine's clock shows in seconds, and the longest lease
    /// that an agent may hold in milliseconds.
    pub async fn restore_simulated(
        disk: SimDisk,
        raft: &mut ReplicaConfig,
        bytes: &[u8],
        config: &Config,
        times: (u64, u64),
    ) -> Result<(), String> {
        let restored = setup::restore_on(Arc::new(disk), raft, bytes, config, times).await;
        restored.map_err(|error| format!("{error:#}"))
    }

    /// Resolves when it has stopped itself, with why: its disk failed, or consensus did, or its
    /// state differs from the others'.
    pub async fn ended(&self) -> String {
        let mut own = self.server.stopped.subscribe();
        let mut failed = self.server.replica.failed();
        tokio::select! {
            why = failure(&mut own) => why,
            why = failure(&mut failed) => why,
        }
    }

    /// The state as this replica last saw it.
    pub fn view(&self) -> Arc<Cluster> {
        self.server.view()
    }

    /// The replica under it.
    pub fn replica(&self) -> &Replica {
        &self.server.replica
    }
}

fn operator() -> Principal {
    Principal { name: "operator".into(), role: Role::Operator }
}

/// Waits for why.
pub(crate) async fn failure(failed: &mut watch::Receiver<Option<String>>) -> String {
    loop {
        if let Some(why) = failed.borrow_and_update().clone() {
            return why;
        }
        if failed.changed().await.is_err() {
            return "consensus ended".into();
        }
    }
}

/// What a shell sees of its state machine.
#[derive(Clone, Debug)]
pub struct SimulatedFeed(Feed);

/// The production state machine, to be watched by a world.
pub struct SimulatedMachine(Machine);

impl SimulatedMachine {
    /// An empty state.
    pub fn new() -> (SimulatedMachine, SimulatedFeed) {
        let (machine, feed) = Machine::new();
        (SimulatedMachine(machine), SimulatedFeed(feed))
    }

    /// What is true after the last applied entry.
    pub fn cluster(&self) -> &Cluster {
        self.0.cluster()
    }
}

impl rowen_raft::StateMachine for SimulatedMachine {
    fn apply(&mut self, index: u64, entry: &[u8]) -> rowen_raft::Applied {
        self.0.apply(index, entry)
    }

    fn applied(&mut self, index: u64) {
        self.0.applied(index);
    }

    fn snapshot(&self) -> Box<dyn FnOnce() -> Vec<u8> + Send> {
        self.0.snapshot()
    }

    fn restore(&mut self, index: u64, snapshot: &[u8]) -> Result<(), String> {
        self.0.restore(index, snapshot)
    }
}
