//! Exactly once: the answers to recent requests, by client.

use std::{collections::VecDeque, sync::Arc};

use imbl::OrdMap;
use rowen_planted::{Bug, planted};
use serde::{Deserialize, Serialize};

use crate::{Code, Refusal, Reply, RequestId, codec};

/// A client retries for at most this long: until then its answers are kept.
const RETRY_MS: u64 = 120_000;
/// Clients remembered; beyond it those go whose time to retry is over, longest silent first.
const CLIENTS: usize = 65_536;
/// Clients that may still retry; beyond it new ones are refused. 2,184 new ones a second.
const RETRYING_CLIENTS: usize = 262_144;
/// Answers remembered for each: how many requests it may have under way at once.
const ANSWERS: usize = 64;

/// Answers that are copied when one is added to them; the older ones are shared.
const BLOCK: usize = 8;

/// What a client was answered.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Client {
    /// Log index of its newest request.
    last_index: u64,
    /// When that was.
    last_ms: u64,
    /// The highest seq whose answer was forgotten.
    floor: u64,
    answers: Answers,
    /// No request of it was higher: most are new, and this tells without a search.
    #[serde(skip)]
    highest: u64, // derived
}

/// (seq, answer)
type Kept = (u64, Result<Reply, Refusal>);

/// The newest answers of one client, oldest first. Every view of the state shares them, so an
/// addition must not copy them all.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Vec<Kept>", into = "Vec<Kept>")]
struct Answers {
    blocks: VecDeque<Arc<Vec<Kept>>>,
    /// How many of the first block are forgotten.
    forgotten: usize,
    len: usize,
}

impl Client {
    fn remember(&mut self, index: u64, now_ms: u64, seq: u64, answer: &Result<Reply, Refusal>) {
        (self.last_index, self.last_ms) = (index, now_ms);
        self.highest = self.highest.max(seq);
        self.answers.push((seq, answer.clone()));
        if self.answers.len > ANSWERS
            && let Some(forgotten) = self.answers.forget()
        {
            self.floor = self.floor.max(forgotten);
        }
    }
}

impl Answers {
    fn iter(&self) -> impl Iterator<Item = &Kept> {
        self.blocks.iter().flat_map(|block| block.iter()).skip(self.forgotten)
    }

    fn push(&mut self, kept: Kept) {
        self.len += 1;
        match self.blocks.back_mut().filter(|block| block.len() < BLOCK) {
            Some(block) => match Arc::get_mut(block) {
                Some(own) => own.push(kept),
                // A clone would have no room for it and be copied a second time.
                None => *block = Arc::new(block.iter().cloned().chain([kept]).collect()),
            },
            None => self.blocks.push_back(Arc::new(vec![kept])),
        }
    }

    /// The seq of the oldest, which is forgotten.
    fn forget(&mut self) -> Option<u64> {
        let block = self.blocks.front()?;
        let seq = block.get(self.forgotten)?.0;
        self.forgotten += 1;
        self.len -= 1;
        if self.forgotten == block.len() {
            self.blocks.pop_front();
            self.forgotten = 0;
        }
        Some(seq)
    }
}

impl From<Vec<Kept>> for Answers {
    fn from(all: Vec<Kept>) -> Self {
        let mut answers = Answers::default();
        all.into_iter().for_each(|kept| answers.push(kept));
        answers
    }
}

impl From<Answers> for Vec<Kept> {
    fn from(answers: Answers) -> Self {
        answers.iter().cloned().collect()
    }
}

/// The table of answers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Requests {
    clients: OrdMap<Arc<str>, Arc<Client>>,
    /// By the log index of the newest request, which is no other client's.
    by_age: OrdMap<u64, Arc<str>>, // derived
    digest: u128, // chained over every answer; part of the state
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
        let Some(client) = self.clients.get(request.client.as_str()) else {
            return match request.seq {
                // A client starts at 1: a later number from an unknown one was seen and forgotten.
                2.. => Seen::Expired,
                _ if self.clients.len() >= RETRYING_CLIENTS && !self.oldest_is_over(now_ms) => {
                    Seen::Full
                }
                _ => Seen::New,
            };
        };
        if request.seq > client.highest {
            return Seen::New;
        }
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
        let name = match self.clients.get_mut(request.client.as_str()) {
            Some(known) => {
                let client = Arc::make_mut(known);
                let name = self.by_age.remove(&client.last_index);
                client.remember(index, now_ms, request.seq, answer);
                name.expect("each client has an age")
            }
            None => {
                let (name, mut client) = (Arc::from(request.client.as_str()), Client::default());
                client.remember(index, now_ms, request.seq, answer);
                self.clients.insert(Arc::clone(&name), Arc::new(client));
                name
            }
        };
        self.by_age.insert(index, name);
        self.digest = codec::hash(&self.digest.to_le_bytes(), &(index, request, answer));
        if self.clients.len() > CLIENTS
            && self.oldest_is_over(now_ms)
            && let Some((oldest_index, oldest)) =
                self.by_age.get_min().map(|(index, name)| (*index, Arc::clone(name)))
        {
            self.by_age.remove(&oldest_index);
            self.clients.remove(&*oldest);
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
        let clients = self.clients.iter();
        let clients = clients.map(|(name, client)| (name.to_string(), Client::clone(client)));
        (self.digest, clients.collect())
    }

    /// From the snapshot.
    pub(crate) fn from_parts(digest: u128, clients: Vec<(String, Client)>) -> Self {
        let mut requests = Requests { digest, ..Requests::default() };
        for (name, mut client) in clients {
            let name: Arc<str> = name.into();
            let kept = client.answers.iter().map(|(seq, _)| *seq).max().unwrap_or(0);
            client.highest = client.floor.max(kept);
            requests.by_age.insert(client.last_index, Arc::clone(&name));
            requests.clients.insert(name, Arc::new(client));
        }
        requests
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
