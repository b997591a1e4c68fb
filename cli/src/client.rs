//! The way to the control plane: the first replica of a list that answers, then its leader.
//!
//! A request that changes something carries one request id through all its retries, so it happens
//! once however often it is sent. Never prints and never decides an exit code.

use std::fs::File;
use std::future::Future;
use std::io::Read as _;
use std::time::Duration;

use rowen_api::v1::RequestId;
use rowen_api::v1::cluster_service_client::ClusterServiceClient;
use rowen_api::v1::fabric_service_client::FabricServiceClient;
use rowen_api::v1::filler_service_client::FillerServiceClient;
use rowen_api::v1::job_service_client::JobServiceClient;
use rowen_api::v1::node_service_client::NodeServiceClient;
use rowen_api::v1::queue_service_client::QueueServiceClient;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::{Interceptor, interceptor::InterceptedService};
use tonic::transport::Endpoint;
use tonic::{Code, Request, Response, Status};

use crate::args::GlobalArgs;

/// How long a call is retried while a cluster that answered before is without a leader.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one address may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// First pause between two tries; doubles up to the second. A new leader is there within a second,
/// so a client that sleeps longer would be most of what a user waits for.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(100));
/// A list of a hundred thousand GPUs is larger than tonic's 4 MiB.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// Where `rowen dev` listens unless told otherwise.
const DEFAULT_ADDR: &str = "127.0.0.1:7077";

/// A connection that says with every request how fresh the answer must be.
pub(crate) type Channel = InterceptedService<tonic::transport::Channel, ReadAs>;

/// See [`GlobalArgs::read`].
#[derive(Clone, Debug, Default)]
pub(crate) struct ReadAs(Option<MetadataValue<Ascii>>);

impl Interceptor for ReadAs {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("rowen-read", value.clone());
        }
        Ok(request)
    }
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// No address of the list accepts a connection.
    #[error("cannot reach rowen at {addrs}: {why}; start one with `rowen dev` or set ROWEN_ADDR")]
    Unreachable {
        /// What was tried.
        addrs: String,
        /// What the last one said.
        why: String,
    },
    /// An address that is none.
    #[error("--addr {addr:?} is no address; write HOST:PORT")]
    BadAddress {
        /// As given.
        addr: String,
    },
    /// The control plane said no.
    #[error("{}", status.message())]
    Refused {
        /// Its answer.
        status: Box<Status>,
    },
    /// Connected, but nothing came back.
    #[error("no answer from rowen at {addr} within {} s", PATIENCE.as_secs())]
    Silent {
        /// Who was asked.
        addr: String,
    },
}

/// A client of one cluster.
pub(crate) struct Client {
    addrs: Vec<String>,
    open: Option<Open>,
    /// Whether any replica ever answered: before that, nothing is worth waiting for.
    answered: bool,
    id: String,
    seq: u64,
    read: ReadAs,
}

struct Open {
    addr: String,
    channel: Channel,
}

impl Client {
    /// A client of the cluster that the flags, or else ROWEN_ADDR, name. Connects when first used.
    pub(crate) fn new(global: &GlobalArgs) -> Client {
        let read = global.read.as_ref().and_then(|read| read.parse().ok()); // clap has checked it
        Client {
            addrs: addresses(global),
            open: None,
            answered: false,
            id: random_id(),
            seq: 0,
            read: ReadAs(read),
        }
    }

    /// An id for one request that changes something, to be kept through its retries.
    pub(crate) fn request_id(&mut self) -> Option<RequestId> {
        self.seq += 1;
        Some(RequestId { client: self.id.clone(), seq: self.seq })
    }

    /// The answer to `send`, which is called again while the cluster changes its leader.
    pub(crate) async fn call<T, F>(&mut self, send: impl Fn(Channel) -> F) -> Result<T, CallError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = PAUSES.0;
        let mut before = None;
        loop {
            let answered = self.answered;
            let problem = match self.connected().await {
                Err(error) if !answered => return Err(error),
                Err(error) => error,
                Ok(Open { addr, channel }) => {
                    match timeout_at(deadline, send(channel.clone())).await {
                        Ok(Ok(response)) => {
                            self.answered = true;
                            self.say_index(&response);
                            return Ok(response.into_inner());
                        }
                        Ok(Err(status)) if may_pass(&status) => {
                            self.answered = true;
                            self.turn_away(&status);
                            CallError::Refused { status: Box::new(status) }
                        }
                        Ok(Err(status)) => {
                            return Err(CallError::Refused { status: Box::new(status) });
                        }
                        // What was said before says more than that it took too long to say it again.
                        Err(_) => {
                            let silent = CallError::Silent { addr: addr.clone() };
                            return Err(before.unwrap_or(silent));
                        }
                    }
                }
            };
            if Instant::now() + pause >= deadline {
                return Err(problem);
            }
            before = Some(problem);
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// For who asked for a certain freshness: what came of it.
    fn say_index<T>(&self, response: &Response<T>) {
        let index = response.metadata().get("rowen-index").and_then(|index| index.to_str().ok());
        if let (Some(read), Some(index)) = (&self.read.0, index) {
            let read = read.to_str().unwrap_or_default();
            crate::output::note(&format!("as of log index {index} (--read {read})"));
        }
    }

    /// The connection in use, or a new one to the first address that accepts it.
    async fn connected(&mut self) -> Result<&Open, CallError> {
        if self.open.is_none() {
            let mut why = String::from("no address given");
            for addr in &self.addrs {
                match connect(addr).await? {
                    Ok(channel) => {
                        let channel = InterceptedService::new(channel, self.read.clone());
                        self.open = Some(Open { addr: addr.clone(), channel });
                        break;
                    }
                    Err(error) => why = error,
                }
            }
            if self.open.is_none() {
                return Err(CallError::Unreachable { addrs: self.addrs.join(","), why });
            }
        }
        Ok(self.open.as_ref().expect("it was opened above"))
    }

    /// Leaves the replica that gave `status`: for the leader that it names, else for the next.
    fn turn_away(&mut self, status: &Status) {
        let Some(left) = self.open.take() else { return };
        let leader = status.metadata().get("rowen-leader").and_then(|addr| addr.to_str().ok());
        match leader.filter(|addr| !addr.is_empty() && *addr != left.addr) {
            Some(leader) => {
                self.addrs.retain(|addr| addr != leader);
                self.addrs.insert(0, leader.to_owned());
            }
            None => self.addrs.rotate_left(1),
        }
    }
}

/// Clients of the services on one channel, with room for large answers.
pub(crate) fn jobs(channel: Channel) -> JobServiceClient<Channel> {
    JobServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

/// See [`jobs`].
pub(crate) fn nodes(channel: Channel) -> NodeServiceClient<Channel> {
    NodeServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

/// See [`jobs`].
pub(crate) fn fabric(channel: Channel) -> FabricServiceClient<Channel> {
    FabricServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

/// See [`jobs`].
pub(crate) fn fillers(channel: Channel) -> FillerServiceClient<Channel> {
    FillerServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

/// See [`jobs`].
pub(crate) fn queues(channel: Channel) -> QueueServiceClient<Channel> {
    QueueServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

/// See [`jobs`].
pub(crate) fn cluster(channel: Channel) -> ClusterServiceClient<Channel> {
    ClusterServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

/// Whether the same request may succeed in a moment: no leader just now, or a broken connection
/// (which tonic reports with the transport's error as the source).
pub(crate) fn may_pass(status: &Status) -> bool {
    use std::error::Error as _;
    match status.code() {
        Code::Unavailable => true,
        Code::Unknown | Code::Cancelled | Code::Internal => status.source().is_some(),
        _ => false,
    }
}

/// The outer error is final, the inner one says why this address does not answer.
async fn connect(addr: &str) -> Result<Result<tonic::transport::Channel, String>, CallError> {
    let bad = || CallError::BadAddress { addr: addr.to_owned() };
    if addr.contains('/') || !addr.contains(':') {
        return Err(bad());
    }
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))
        .map_err(|_| bad())?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    Ok(endpoint.connect().await.map_err(|error| innermost(&error)))
}

/// The cause at the bottom, without the layers above it: `Connection refused`.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut at = error;
    while let Some(source) = at.source() {
        at = source;
    }
    let text = at.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

fn addresses(global: &GlobalArgs) -> Vec<String> {
    let split = |text: String| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    let given = match global.addr.is_empty() {
        true => std::env::var("ROWEN_ADDR").map(split).unwrap_or_default(),
        false => global.addr.clone(),
    };
    let mut addrs: Vec<String> =
        given.iter().map(|a| a.trim().to_owned()).filter(|a| !a.is_empty()).collect();
    if addrs.is_empty() {
        addrs.push(DEFAULT_ADDR.to_owned());
    }
    addrs
}

/// 128 random bits: no two processes of all clusters share a request id.
fn random_id() -> String {
    let mut bytes = [0u8; 16];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.expect("/dev/urandom exists wherever Rowen runs");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_tried_again() {
        let with_source = |code| {
            let mut status = Status::new(code, "broken pipe");
            status.set_source(std::sync::Arc::new(std::io::Error::other("broken pipe")));
            status
        };
        assert!(may_pass(&Status::unavailable("no leader")));
        assert!(may_pass(&with_source(Code::Unknown)));
        assert!(!may_pass(&Status::unknown("a bug")));
        assert!(!may_pass(&Status::invalid_argument("workers: 0; choose 1 to 16384")));
        assert!(!may_pass(&with_source(Code::NotFound)));
    }

    #[test]
    fn request_ids_differ_and_rise() {
        let global =
            GlobalArgs { addr: vec![], read: None, output: crate::args::OutputFormat::Table };
        let (mut a, mut b) = (Client::new(&global), Client::new(&global));
        let (first, second) = (a.request_id().unwrap(), a.request_id().unwrap());
        assert_eq!((first.seq, second.seq), (1, 2));
        assert_eq!(first.client, second.client);
        assert_eq!(first.client.len(), 32);
        assert_ne!(first.client, b.request_id().unwrap().client);
    }

    #[test]
    fn a_leader_that_is_named_goes_first() {
        let global = GlobalArgs {
            addr: vec!["a:1".into(), "b:1".into()],
            read: None,
            output: crate::args::OutputFormat::Table,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _guard = runtime.enter();
        let mut client = Client::new(&global);
        let open = || Open {
            addr: "a:1".into(),
            channel: InterceptedService::new(
                Endpoint::from_static("http://a:1").connect_lazy(),
                ReadAs::default(),
            ),
        };
        client.open = Some(open());
        client.turn_away(&Status::unavailable("x"));
        assert_eq!(client.addrs, ["b:1", "a:1"]);
        let mut status = Status::unavailable("x");
        status.metadata_mut().insert("rowen-leader", "c:1".parse().unwrap());
        client.open = Some(open());
        client.turn_away(&status);
        assert_eq!(client.addrs, ["c:1", "b:1", "a:1"]);
    }

    #[tokio::test]
    async fn nothing_listens() {
        // Port 1 is reserved and closed on any machine that runs tests.
        let global = GlobalArgs {
            addr: vec!["127.0.0.1:1".into()],
            read: None,
            output: crate::args::OutputFormat::Table,
        };
        let mut client = Client::new(&global);
        let call = client.call(|ch| async move {
            cluster(ch).get_status(rowen_api::v1::GetStatusRequest::default()).await
        });
        let error = call.await.unwrap_err().to_string();
        assert_eq!(
            error,
            "cannot reach rowen at 127.0.0.1:1: connection refused; \
             start one with `rowen dev` or set ROWEN_ADDR"
        );
    }
}
