//! Proposals on their way to the log. While a few batches are under way, what comes waits and goes
//! together as the next: one append, one sync and one request to each peer for all of it. A lone
//! proposal finds nothing under way and goes at once.
//!
//! Without this the log takes each proposal the moment it comes, and under load every replica pays
//! for a hundred small batches what it could pay for ten. Never answers by itself, and never keeps
//! proposals back on a replica that does not lead: openraft refuses those at once.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::BoxStream};
use openraft::{Raft, errors::Fatal, raft::WriteResult};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use crate::{
    Leadership,
    machine::Applier,
    sim::{self, Process},
    types::{EntryBytes, TypeConfig},
};

/// Batches under way at once: while one is applied and answered, the next is on its way to the
/// disks. With one alone an entry costs 3 % less CPU, and the disks wait for the cores in turn.
const UNDER_WAY: usize = 2;
/// Entries of one batch.
const BATCH_ENTRIES: usize = 1_024;
/// How long a batch that is smaller than the one before waits for the next proposal: clients that
/// were just answered ask again, one after the other. Far below what a sync takes.
const PATIENCE: Duration = Duration::from_micros(100);

/// What openraft says to one entry.
pub(crate) type Answer = Result<WriteResult<TypeConfig>, Fatal<TypeConfig>>;

/// One entry that wants into the log.
pub(crate) struct Proposal {
    pub(crate) entry: EntryBytes,
    pub(crate) answer: oneshot::Sender<Answer>,
    /// Its share of what may be pending: given back with the answer, even if nobody waits for it
    /// any more.
    pub(crate) share: OwnedSemaphorePermit,
}

/// Hands proposals to openraft until nobody can propose any more.
pub(crate) async fn run(
    raft: Raft<TypeConfig, Applier>,
    mut proposals: mpsc::UnboundedReceiver<Proposal>,
    mut leadership: watch::Receiver<Leadership>,
) {
    let under_way = Arc::new(Semaphore::new(UNDER_WAY));
    let mut expected = 1;
    loop {
        let slot = tokio::select! {
            biased;
            slot = Arc::clone(&under_way).acquire_owned() => slot.ok(),
            // What is under way may then be answered much later, or never.
            _ = leadership.wait_for(|now| !now.is_leader) => None,
        };
        let Some(first) = proposals.recv().await else { return };
        gather(&proposals, expected).await;
        let mut batch = vec![first];
        while batch.len() < BATCH_ENTRIES
            && let Ok(next) = proposals.try_recv()
        {
            batch.push(next);
        }
        expected = batch.len();
        // Nobody waits for these any more: the caller gave up before anything was written.
        batch.retain(|proposal| !proposal.answer.is_closed());
        let entries = batch.iter().map(|proposal| proposal.entry.clone()).collect::<Vec<_>>();
        // Stopped: who waits learns that from the end of the channel.
        let Ok(answers) = raft.client_write_many(entries).await else { return };
        sim::spawn(pass_on(answers, batch, slot));
    }
}

/// Lets those come that are about to: as many as the last time, without the one that is there.
async fn gather(proposals: &mpsc::UnboundedReceiver<Proposal>, expected: usize) {
    if Process::current().is_some() {
        // Simulated time stands still while a task has something to do.
        if proposals.len() + 1 < expected {
            tokio::time::sleep(PATIENCE).await;
        }
        return;
    }
    let (mut came, mut since) = (proposals.len(), Instant::now());
    while came + 1 < expected && since.elapsed() < PATIENCE {
        tokio::task::yield_now().await;
        if proposals.len() > came {
            (came, since) = (proposals.len(), Instant::now());
        }
    }
}

async fn pass_on(
    mut answers: BoxStream<'static, Answer>,
    batch: Vec<Proposal>,
    slot: Option<OwnedSemaphorePermit>,
) {
    for Proposal { answer, share, .. } in batch {
        let Some(found) = answers.next().await else { return };
        drop(share);
        answer.send(found).ok(); // who asked may have gone
    }
    drop(slot);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn propose(to: &mpsc::UnboundedSender<Proposal>) -> oneshot::Receiver<Answer> {
        let (answer, answered) = oneshot::channel();
        let share = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let entry = EntryBytes(b"entry".as_slice().into());
        assert!(to.send(Proposal { entry, answer, share }).is_ok());
        answered
    }

    #[tokio::test]
    async fn as_many_are_waited_for_as_came_before_but_not_for_long() {
        let (sender, proposals) = mpsc::unbounded_channel();
        gather(&proposals, 1).await; // a lone client: nobody else is expected
        let coming = tokio::spawn(async move {
            for _ in 0..3 {
                drop(propose(&sender));
                tokio::task::yield_now().await;
            }
            sender
        });
        gather(&proposals, 4).await;
        assert_eq!(proposals.len(), 3);
        let sender = coming.await.unwrap();
        let begun = Instant::now();
        gather(&proposals, 100).await;
        assert!(begun.elapsed() >= PATIENCE && begun.elapsed() < PATIENCE * 10_000);
        drop(sender);
    }
}
