//! What runs beside a replica: turns what openraft and the log report into leadership and failure,
//! and fetches what the archive lacks. Decides nothing.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use openraft::{Raft, async_runtime::watch::WatchReceiver};
use tokio::{sync::watch, time::MissedTickBehavior};

use crate::{
    Archive, Leadership, Member, ReplicaId,
    machine::Applier,
    replica::member,
    sim,
    transport::{Peers, fetch_archive},
    types::TypeConfig,
    wal::Wal,
};

const ARCHIVE_REPAIR_EVERY: Duration = Duration::from_secs(1);
/// So many rounds lie between two periods of the archive that are held against the state: each is
/// read whole, and a replica that was just started has other things to do.
const ROUNDS_A_CHECK: u32 = 10;

/// Turns what openraft and the log report into leadership and failure.
pub(crate) struct Observer {
    pub(crate) id: ReplicaId,
    pub(crate) raft: Raft<TypeConfig, Applier>,
    pub(crate) wal: Wal,
    pub(crate) leadership: watch::Sender<Leadership>,
    pub(crate) failed: watch::Sender<Option<String>>,
    pub(crate) stopped: Arc<OnceLock<String>>,
}

impl Observer {
    pub(crate) async fn run(self) {
        let mut metrics = self.raft.metrics();
        let mut wal_failed = self.wal.failed();
        loop {
            let state = self.look();
            if let Some(why) = wal_failed.borrow_and_update().clone() {
                return self.fail(why);
            }
            match state {
                Ok(leadership) => self.publish(leadership),
                Err(why) => return self.fail(why),
            }
            tokio::select! {
                changed = metrics.changed() => if changed.is_err() {
                    return self.fail("raft stopped".into());
                },
                _ = wal_failed.changed() => {}
            }
        }
    }

    fn look(&self) -> Result<Leadership, String> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if let Err(fatal) = &metrics.running_state {
            return Err(fatal.to_string());
        }
        let leader = metrics
            .current_leader
            .and_then(|id| metrics.membership_config.get_node(&id).map(|node| member(id, node)));
        let is_leader = metrics.state.is_leader();
        let applied_term = metrics.last_applied.map(|id| id.committed_leader_id().term);
        let ready = is_leader && applied_term == Some(metrics.current_term);
        Ok(Leadership { term: metrics.current_term, leader, is_leader, ready })
    }

    fn publish(&self, new: Leadership) {
        self.leadership.send_if_modified(|old| {
            if *old == new {
                return false;
            }
            if (old.term, &old.leader) != (new.term, &new.leader) {
                let leader = new.leader.as_ref().map(|leader| leader.id.0);
                tracing::info!(replica = self.id.0, term = new.term, leader, "leadership changed");
            }
            *old = new;
            true
        });
    }

    /// Nobody may plan on behalf of a replica that stopped.
    fn fail(&self, why: String) {
        let term = self.leadership.borrow().term;
        self.leadership.send_replace(Leadership { term, ..Leadership::default() });
        if self.stopped.set(why.clone()).is_ok() {
            tracing::error!(replica = self.id.0, why, "the replica failed and must be restarted");
            self.failed.send_replace(Some(why));
        }
    }
}

/// Fetches from a peer what the archive lacks, after catching up by snapshot or because what was
/// there is not what the state says. The leader is asked first and every other member in turn: a
/// leader may lack records too, and it leads for long.
pub(crate) async fn repair_archive(
    own: ReplicaId,
    raft: Raft<TypeConfig, Applier>,
    leadership: watch::Receiver<Leadership>,
    archive: Arc<Archive>,
    peers: Peers,
) {
    let mut ticks = tokio::time::interval(ARCHIVE_REPAIR_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asked = 0;
    for round in 1u32.. {
        ticks.tick().await;
        let Leadership { leader, is_leader, .. } = leadership.borrow().clone();
        if !archive.has_gap().unwrap_or(false) {
            asked = 0;
            // Whoever leads is asked by the others: what it put aside would be missed.
            if leader.is_some() && !is_leader && round.is_multiple_of(ROUNDS_A_CHECK) {
                check_archive(&archive).await;
            }
            continue;
        }
        let peers_of_it = others(&raft, own, leader);
        let Some(peer) = peers_of_it.get(asked % peers_of_it.len().max(1)) else { continue };
        asked += 1;
        let from = peer.id.0;
        match fetch_archive(&peers, from, &peer.addr, &archive).await {
            Ok(true) => tracing::info!(from, "the archive is whole again"),
            Ok(false) => tracing::warn!(from, "what the peer's archive has does not close the gap"),
            Err(error) => tracing::warn!(from, %error, "archive not fetched yet"),
        }
    }
}

/// All members but `own`, the leader first.
fn others(raft: &Raft<TypeConfig, Applier>, own: ReplicaId, leader: Option<Member>) -> Vec<Member> {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let members = metrics.membership_config.nodes().map(|(id, node)| member(*id, node));
    let behind = members.filter(|other| Some(other) != leader.as_ref());
    leader.iter().cloned().chain(behind).filter(|other| other.id != own).collect()
}

async fn check_archive(archive: &Arc<Archive>) {
    let archive = Arc::clone(archive);
    let checked = sim::blocking(move || archive.check_next()).await;
    match checked {
        Ok(Ok(_)) => {} // what differs was told where it was found
        Ok(Err(error)) => tracing::warn!(%error, "the archive could not be checked"),
        Err(error) => tracing::warn!(%error, "the archive could not be checked"),
    }
}
