//! Reads on any replica: how fresh an answer must be, and the log index it is of.
//!
//! The caller says it in the metadata of its request, `rowen-read`: `linearizable` (or nothing), `stale`
//! or a log index; every answer to a read names its index in `rowen-index`. Never writes.

use std::{ops::Deref, sync::Arc, time::Duration};

use rowen_raft::ProposeError;
use rowen_state::Cluster;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use crate::server::{Server, propose_status};

const READ_KEY: &str = "rowen-read";
const INDEX_KEY: &str = "rowen-index";
/// How long a read may wait for the leader's word, and for this replica to catch up.
const PATIENCE: Duration = Duration::from_secs(3);

/// How fresh an answer must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Freshness {
    /// As new as everything acknowledged before the request. The default.
    Linearizable,
    /// As new as this log index, one the caller was told: its own write, say. Nobody is asked.
    AtLeast(u64),
    /// Whatever this replica has.
    Stale,
}

/// The state to answer a read from.
pub(crate) struct Read(Arc<Cluster>);

impl Deref for Read {
    type Target = Arc<Cluster>;

    fn deref(&self) -> &Arc<Cluster> {
        &self.0
    }
}

impl Read {
    /// The answer, with the index it is of.
    pub(crate) fn answer<T>(&self, message: T) -> Response<T> {
        let mut response = Response::new(message);
        response.metadata_mut().insert(INDEX_KEY, self.0.applied().into());
        response
    }
}

impl Server {
    /// What a request that reads is to be answered from.
    pub(crate) async fn read_for<T>(&self, request: &Request<T>) -> Result<Read, Status> {
        match freshness(request.metadata())? {
            Freshness::Linearizable => self.linear().await?,
            Freshness::AtLeast(index) => {
                let applied = self.replica.wait_applied(index, PATIENCE).await;
                applied.map_err(|error| read_status(&error))?;
            }
            Freshness::Stale => {}
        }
        Ok(Read(self.view()))
    }

    /// The same where only the leader knows the answer whole (how far the others are, what agents
    /// said): another replica names it, unless less than that was asked for.
    pub(crate) async fn read_at_leader<T>(&self, request: &Request<T>) -> Result<Read, Status> {
        match freshness(request.metadata())? {
            Freshness::Linearizable => Ok(Read(self.read().await?)),
            _ => self.read_for(request).await,
        }
    }

    /// Returns when the view here is at least as new as everything acknowledged before this call.
    pub(crate) async fn linear(&self) -> Result<(), Status> {
        let read = self.replica.read_index_anywhere(PATIENCE).await;
        read.map(drop).map_err(|error| read_status(&error))
    }
}

fn freshness(metadata: &MetadataMap) -> Result<Freshness, Status> {
    let Some(value) = metadata.get(READ_KEY) else { return Ok(Freshness::Linearizable) };
    match value.to_str() {
        Ok("linearizable") => Ok(Freshness::Linearizable),
        Ok("stale") => Ok(Freshness::Stale),
        Ok(text) if text.parse::<u64>().is_ok() => {
            Ok(Freshness::AtLeast(text.parse().expect("it was parsed above")))
        }
        _ => Err(Status::invalid_argument(format!(
            "{READ_KEY}: is {value:?}; choose linearizable, stale or a log index"
        ))),
    }
}

fn read_status(error: &ProposeError) -> Status {
    match error {
        ProposeError::NoQuorum => Status::unavailable(
            "no majority of the replicas answers; try again, or take what this replica has: --read stale",
        ),
        ProposeError::Behind { .. } => Status::deadline_exceeded(format!(
            "{error} after {} s; ask another replica, or this one later",
            PATIENCE.as_secs()
        )),
        error => propose_status(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_caller_may_ask_for() {
        let of = |text: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert(READ_KEY, text.parse().unwrap());
            freshness(&metadata)
        };
        assert_eq!(freshness(&MetadataMap::new()).unwrap(), Freshness::Linearizable);
        assert_eq!(of("linearizable").unwrap(), Freshness::Linearizable);
        assert_eq!(of("stale").unwrap(), Freshness::Stale);
        assert_eq!(of("4711").unwrap(), Freshness::AtLeast(4711));
        for wrong in ["", "fresh", "-1", "1.5"] {
            let status = of(wrong).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{wrong}");
            assert!(status.message().ends_with("choose linearizable, stale or a log index"));
        }
    }
}
