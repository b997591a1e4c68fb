//! Exactly once: the answers to recent requests, by client.

use imbl::{OrdMap, OrdSet, Vector};
use rowen_planted::{Bug, planted};
use serde::{Deserialize, Serialize};

use crate::{Code, Refusal, Reply, RequestId};

/// A client retries for at most this long: until then its answers are kept.
const RETRY_MS: u64 = 120_000;
/// Clients remembered; beyond it those go whose time to retry is over, longest silent first.
const CLIENTS: usize = 65_536;
/// Clients that may still retry; beyond it new ones are refused. 2,184 new ones a second.
const RETRYING_CLIENTS: usize = 262_144;
/// Answers remembered for each: how many requests it may have under way at once.
const ANSWERS: usize = 64;

/// What a client was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Client {
    /// Log index of its newest request.
    last_index: u64,
    /// When that was.
    last_ms: u64,
    /// The highest seq whose answer was forgotten.
    floor: u64,
    /// Newest last: (seq, answer).
    answers: Vector<(u64, Result<Reply, Refusal>)>,
}

/// The table of answers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Requests {
    clients: OrdMap<String, Client>,
    by_age: OrdSet<(u64, String)>, // derived
    digest: u128,                  // chained over every answer; part of the state
}

/// What is known of a request.
pub(crate) enum Seen {
    /// Nothing: carry it out.
    New,
    /// It was answered so.
    Answered(Result<Reply, Refusal>),
    /// It may have been carried out, its answer is gone.
    Expired,
    /// Its answer could not be kept: not carried out.
    Full,
}

impl Requests {
    /// Looks a request up before it is carried out.
    pub(crate) fn look_up(&self, request: &RequestId, now_ms: u64) -> Seen {
        if planted(Bug::DedupForgets) {
            return Seen::New;
        }
        let Some(client) = self.clients.get(&request.client) else {
            return match request.seq {
                // A client starts at 1: a later number from an unknown one was seen and forgotten.
                2.. => Seen::Expired,
                _ if self.clients.len() >= RETRYING_CLIENTS && !self.oldest_is_over(now_ms) => {
                    Seen::Full
                }
                _ => Seen::New,
            };
        };
        if let Some((_, answer)) = client.answers.iter().find(|(seq, _)| *seq == request.seq) {
            return Seen::Answered(answer.clone());
        }
        if request.seq > client.floor { Seen::New } else { Seen::Expired }
    }

    /// Whether the client that has been silent longest may retry no more.
    fn oldest_is_over(&self, now_ms: u64) -> bool {
        let oldest = self.by_age.get_min().and_then(|(_, name)| self.clients.get(name));
        oldest.is_some_and(|client| now_ms >= client.last_ms + RETRY_MS)
    }

    /// Remembers an answer.
    pub(crate) fn remember(
        &mut self,
        index: u64,
        now_ms: u64,
        request: &RequestId,
        answer: &Result<Reply, Refusal>,
    ) {
        let mut client = self.clients.get(&request.client).cloned().unwrap_or_else(|| Client {
            last_index: 0,
            last_ms: 0,
            floor: 0,
            answers: Vector::new(),
        });
        self.by_age.remove(&(client.last_index, request.client.clone()));
        (client.last_index, client.last_ms) = (index, now_ms);
        client.answers.push_back((request.seq, answer.clone()));
        if client.answers.len() > ANSWERS
            && let Some((forgotten, _)) = client.answers.pop_front()
        {
            client.floor = client.floor.max(forgotten);
        }
        let mut bytes = self.digest.to_le_bytes().to_vec();
        crate::codec::canonical(&(index, request, answer), &mut bytes);
        self.digest = xxhash_rust::xxh3::xxh3_128(&bytes);
        self.by_age.insert((index, request.client.clone()));
        self.clients.insert(request.client.clone(), client);
        if self.clients.len() > CLIENTS
            && self.oldest_is_over(now_ms)
            && let Some((_, oldest)) = self.by_age.remove_min()
        {
            self.clients.remove(&oldest);
        }
    }

    /// Part of the state hash.
    pub(crate) fn digest(&self) -> u128 {
        self.digest
    }

    /// For the snapshot.
    pub(crate) fn to_parts(&self) -> (u128, Vec<(String, Client)>) {
        if planted(Bug::SnapshotMissesRequests) {
            return (self.digest, Vec::new());
        }
        (
            self.digest,
            self.clients.iter().map(|(name, client)| (name.clone(), client.clone())).collect(),
        )
    }

    /// From the snapshot.
    pub(crate) fn from_parts(digest: u128, clients: Vec<(String, Client)>) -> Self {
        let by_age =
            clients.iter().map(|(name, client)| (client.last_index, name.clone())).collect();
        Requests { clients: clients.into_iter().collect(), by_age, digest }
    }
}

/// The refusal of a request whose answer is gone.
pub(crate) fn expired() -> Refusal {
    Refusal::new(
        Code::Expired,
        "this request is too old to be answered again and was not carried out now; look at the state, then ask anew",
    )
}

/// The refusal of a new client while too many others may still retry.
pub(crate) fn full() -> Refusal {
    Refusal::new(
        Code::Exhausted,
        format!(
            "{RETRYING_CLIENTS} clients have asked within two minutes; reuse one client id, or ask again later"
        ),
    )
}
