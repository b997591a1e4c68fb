//! Entries to one peer, several requests on the way at once: a request need not wait until the
//! peer's disk has the one before it, so the peer syncs more of them together. One HTTP/2 stream
//! keeps requests and answers in order. Its end, for whatever reason, ends the session; openraft
//! begins another.

use std::{collections::VecDeque, time::Duration};

use futures::{Stream, StreamExt, stream::BoxStream};
use openraft::{
    errors::{NetworkError, RPCError},
    raft::{AppendEntriesRequest, StreamAppendResult},
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{
    client::{Client, Deadline, rpc_error},
    convert, proto,
};
use crate::types::TypeConfig;

/// How many requests may be on the way. Each carries at most about 2 MiB.
const DEPTH: usize = 16;

type Answer = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

/// Sends what `input` gives and passes on the answers. It is polled by whoever polls the answers,
/// so that nothing more is taken from it once they are no longer wanted.
pub(super) async fn run<'s, S>(
    mut client: Client,
    deadline: Deadline,
    input: S,
) -> Result<BoxStream<'s, Answer>, RPCError<TypeConfig>>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
{
    let (requests, queue) = mpsc::channel(DEPTH);
    let setup = async { client.append_stream(ReceiverStream::new(queue)).await };
    let answers = deadline.run(setup).await?.into_inner();
    let session = Session {
        input,
        requests: Some(requests),
        answers,
        sent: VecDeque::new(),
        last_answer: Instant::now(),
        deadline,
    };
    let step = |session: Option<Session<S>>| async move {
        let mut session = session?;
        let answer = session.next_answer().await?;
        let goes_on = matches!(&answer, Ok(Ok(_)));
        Some((answer, goes_on.then_some(session)))
    };
    Ok(futures::stream::unfold(Some(session), step).boxed())
}

struct Session<S> {
    input: S,
    /// None once the input ended.
    requests: Option<mpsc::Sender<proto::AppendRequest>>,
    answers: Streaming<proto::AppendAnswer>,
    /// When the requests that are not answered were sent.
    sent: VecDeque<Instant>,
    last_answer: Instant,
    deadline: Deadline,
}

enum Event {
    Request(Option<AppendEntriesRequest<TypeConfig>>),
    Answer(Result<Option<proto::AppendAnswer>, Status>),
    Late,
}

impl<S> Session<S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
{
    /// None when everything was sent and answered.
    async fn next_answer(&mut self) -> Option<Answer> {
        loop {
            if self.requests.is_none() && self.sent.is_empty() {
                return None;
            }
            match self.next_event().await {
                Event::Request(Some(rpc)) => {
                    let request = convert::append_to(self.deadline.target, rpc);
                    self.sent.push_back(Instant::now());
                    let requests = self.requests.as_ref().expect("only then is the input polled");
                    // Never full: DEPTH bounds what is on the way. Closed: the answers tell why.
                    requests.try_send(request).ok();
                }
                Event::Request(None) => self.requests = None,
                Event::Answer(Ok(Some(answer))) => {
                    self.sent.pop_front();
                    self.last_answer = Instant::now();
                    let answer = convert::answer_from(answer);
                    return Some(answer.map_err(|status| rpc_error(&status)));
                }
                Event::Answer(Ok(None)) => {
                    let why = Status::unavailable("the peer ended the stream");
                    return Some(Err(RPCError::Network(NetworkError::new(&why))));
                }
                Event::Answer(Err(status)) => return Some(Err(rpc_error(&status))),
                Event::Late => return Some(Err(self.deadline.passed())),
            }
        }
    }

    async fn next_event(&mut self) -> Event {
        let may_send = self.requests.is_some() && self.sent.len() < DEPTH;
        // A peer that answers is alive, however much waits for it.
        let waits_since = self.sent.front().map(|sent| self.last_answer.max(*sent));
        let late_at = waits_since.unwrap_or_else(Instant::now) + self.deadline.timeout;
        tokio::select! {
            biased;
            answer = self.answers.message() => Event::Answer(answer),
            rpc = self.input.next(), if may_send => Event::Request(rpc),
            () = tokio::time::sleep_until(late_at), if waits_since.is_some() => Event::Late,
        }
    }
}

/// openraft grants a heartbeat's time. Entries also wait for the peer's disk, and asking again only
/// adds to what it has to write, so they get ten of them.
pub(super) fn patience(soft: Duration) -> Duration {
    soft * 10
}
