//! Replicas compare their state hashes: the majority decides, one that differs stops.
//!
//! A difference means a bug or a bad machine. The longer both serve, the less can be
//! told from the log, so the odd one out stops at once and says where.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rowen_api::v1;
use rowen_raft::{Member, ReplicaId};
use tonic::Status;

use crate::{members, server::Server};

/// A hash is kept for every index that is a multiple of this.
pub(crate) const INTERVAL_ENTRIES: u64 = 1_024;
/// How many are kept; a replica further behind is compared when it has caught up.
const KEPT: usize = 64;

/// The state hashes of this replica at past checkpoints.
#[derive(Debug, Default)]
pub(crate) struct Checkpoints {
    hashes: Mutex<VecDeque<(u64, u128)>>,
    agreed: Mutex<Option<u64>>,
}

/// What a comparison found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not enough answers to tell.
    Unknown,
    /// A majority has this hash; these replicas have another.
    Majority { hash: String, odd: Vec<ReplicaId> },
    /// All that can be asked were, and no hash has a majority.
    Split,
}

impl Checkpoints {
    /// Called after each applied entry.
    pub(crate) fn note(&self, index: u64, hash: impl FnOnce() -> u128) {
        if index.is_multiple_of(INTERVAL_ENTRIES) {
            let mut hashes = lock(&self.hashes);
            hashes.push_back((index, hash()));
            if hashes.len() > KEPT {
                hashes.pop_front();
            }
        }
    }

    /// The hash at an index, or the newest for index 0.
    pub(crate) fn at(&self, index: u64) -> Option<(u64, String)> {
        let hashes = lock(&self.hashes);
        let found = match index {
            0 => hashes.back(),
            _ => hashes.iter().find(|(at, _)| *at == index),
        };
        found.map(|(at, hash)| (*at, format!("{hash:032x}")))
    }

    /// The newest index at which a majority was seen to agree.
    pub(crate) fn agreed(&self) -> Option<u64> {
        *lock(&self.agreed)
    }
}

/// Decides over the hashes of `voters` replicas at one index.
pub(crate) fn judge(voters: usize, hashes: &BTreeMap<ReplicaId, String>) -> Verdict {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for hash in hashes.values() {
        *counts.entry(hash).or_default() += 1;
    }
    match counts.iter().find(|(_, count)| **count > voters / 2) {
        Some((majority, _)) => Verdict::Majority {
            hash: (*majority).to_owned(),
            odd: hashes.iter().filter(|(_, hash)| hash != majority).map(|(id, _)| *id).collect(),
        },
        None if hashes.len() == voters => Verdict::Split,
        None => Verdict::Unknown,
    }
}

/// Compares the newest checkpoint with the other voters'. The leader calls it now and
/// then; false stops its planning.
pub(crate) async fn compare(server: &Server) -> bool {
    let Some((index, own_hash)) = server.checkpoints.at(0) else { return true };
    if server.checkpoints.agreed() == Some(index) {
        return true;
    }
    let own = server.replica.id();
    let voters: Vec<_> =
        server.replica.members().into_iter().filter(|status| status.voter).collect();
    let mut hashes = BTreeMap::from([(own, own_hash)]);
    let peers: Vec<_> = voters.iter().filter(|status| status.member.id != own).collect();
    let answers =
        futures::future::join_all(peers.iter().map(|peer| ask(server, &peer.member, index))).await;
    for (peer, answer) in peers.iter().zip(answers) {
        if let Ok(Some(hash)) = answer {
            hashes.insert(peer.member.id, hash);
        }
    }
    match judge(voters.len(), &hashes) {
        Verdict::Unknown => true,
        Verdict::Split => {
            tracing::error!(
                index,
                ?hashes,
                "no majority of the replicas agrees on the state; nothing is planned"
            );
            false
        }
        Verdict::Majority { hash, odd } => {
            *lock(&server.checkpoints.agreed) = Some(index);
            for id in odd {
                let found = hashes.get(&id).cloned().unwrap_or_default();
                let why = v1::QuarantineRequest { index, expected: hash.clone(), found };
                match voters.iter().find(|status| status.member.id == id) {
                    _ if id == own => step_down(server, &why).await,
                    Some(peer) => quarantine(server, &peer.member, why).await,
                    None => {}
                }
            }
            true
        }
    }
}

/// This replica differs from the majority.
pub(crate) fn stop(server: &Server, why: &v1::QuarantineRequest) {
    server.stop(format!(
        "the state hash at index {} is {}, the majority's is {}; keep this data folder for `rowen replay`, and join a new replica in its place",
        why.index, why.found, why.expected
    ));
}

async fn step_down(server: &Server, why: &v1::QuarantineRequest) {
    if let Some(to) = members::successor(&server.replica.members(), server.replica.id()) {
        let _ = server.replica.transfer_leadership(to).await; // it stops either way
    }
    stop(server, why);
}

async fn quarantine(server: &Server, peer: &Member, why: v1::QuarantineRequest) {
    tracing::error!(
        peer = peer.addr,
        index = why.index,
        expected = why.expected,
        found = why.found,
        "a replica differs from the majority; it is told to stop"
    );
    if let Err(status) = server.peers.quarantine(peer, why).await {
        tracing::warn!(peer = peer.addr, %status, "it could not be told; it is told again");
    }
}

async fn ask(server: &Server, peer: &Member, index: u64) -> Result<Option<String>, Status> {
    let checkpoint = server.peers.checkpoint(peer, index).await?;
    Ok((checkpoint.index == index).then_some(checkpoint.state_hash))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(all: &[(u64, &str)]) -> BTreeMap<ReplicaId, String> {
        all.iter().map(|(id, hash)| (ReplicaId(*id), (*hash).to_owned())).collect()
    }

    #[test]
    fn the_majority_decides() {
        let odd = |odd: &[u64]| Verdict::Majority {
            hash: "a".into(),
            odd: odd.iter().copied().map(ReplicaId).collect(),
        };
        assert_eq!(judge(3, &hashes(&[(1, "a"), (2, "a"), (3, "a")])), odd(&[]));
        assert_eq!(judge(3, &hashes(&[(1, "a"), (2, "b"), (3, "a")])), odd(&[2]));
        assert_eq!(judge(3, &hashes(&[(1, "a"), (2, "a")])), odd(&[]), "one is silent");
        assert_eq!(judge(3, &hashes(&[(1, "a"), (2, "b")])), Verdict::Unknown);
        assert_eq!(judge(3, &hashes(&[(1, "a"), (2, "b"), (3, "c")])), Verdict::Split);
        assert_eq!(judge(1, &hashes(&[(1, "a")])), odd(&[]));
    }

    #[test]
    fn only_multiples_of_the_interval_are_kept() {
        let checkpoints = Checkpoints::default();
        for index in 1..=INTERVAL_ENTRIES * 70 {
            checkpoints.note(index, || u128::from(index));
        }
        let (newest, hash) = checkpoints.at(0).unwrap();
        assert_eq!(
            (newest, hash),
            (INTERVAL_ENTRIES * 70, format!("{:032x}", INTERVAL_ENTRIES * 70))
        );
        assert!(checkpoints.at(INTERVAL_ENTRIES).is_none(), "the oldest are forgotten");
        assert!(checkpoints.at(INTERVAL_ENTRIES * 69).is_some());
    }
}
