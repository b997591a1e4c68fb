//! The timing in force: the state's, from version 2 on, and this replica's configuration before.
//!
//! Puts the first one into the state, and says where the configuration differs from it. Never
//! measures anything by it: see `liveness`.

use rowen_api::v1;
use rowen_raft::Member;
use rowen_state::{Cluster, Command, Timing};
use tonic::Status;

use crate::{auth::Principal, server::Server};

/// The timing in force in `view`.
pub(crate) fn in_force(server: &Server, view: &Cluster) -> Timing {
    view.meta().timing.map_or(server.timing().initial(), |in_force| in_force.timing)
}

/// A leader whose state has none yet puts its own there, once it knows what every replica may have
/// granted by its configuration.
pub(crate) async fn begin(server: &Server) {
    if !is_due(server) {
        return;
    }
    // A replica that does not answer is asked again.
    let Ok(granted) = widest_granted(server).await else { return };
    if let Err(status) = put_first(server, granted).await {
        tracing::warn!(%status, "the timing is not in the state; it is tried again");
    }
}

/// The same for somebody who waits for it, and is told what it lacks.
pub(crate) async fn begin_now(server: &Server) -> Result<(), Status> {
    if !is_due(server) {
        return Ok(());
    }
    let granted = widest_granted(server).await?;
    put_first(server, granted).await
}

fn is_due(server: &Server) -> bool {
    let view = server.view();
    view.meta().version >= 2 && view.meta().timing.is_none()
}

/// What covers the configuration of every replica: one that does not answer may have granted more.
async fn widest_granted(server: &Server) -> Result<Timing, Status> {
    let own = server.replica.id();
    let group = server.replica.members();
    let others = group.iter().filter(|status| status.member.id != own);
    let answers = others.map(|status| async {
        let answer = server.peers.checkpoint(&status.member, 0).await;
        let timing = answer.ok().and_then(|checkpoint| checkpoint.timing);
        timing.ok_or_else(|| does_not_answer(&status.member))
    });
    let mut granted = server.timing().initial();
    for timing in futures::future::join_all(answers).await {
        granted = granted.widest(from_proto(&timing?));
    }
    Ok(granted)
}

fn does_not_answer(member: &Member) -> Status {
    let (id, addr) = (member.id.0, &member.addr);
    Status::failed_precondition(format!(
        "the cluster has no timing yet, and replica {id} at {addr} does not say which leases it \
         may have granted; start it, or `rowen cluster remove {id}`, and try again"
    ))
}

async fn put_first(server: &Server, granted: Timing) -> Result<(), Status> {
    let command = Command::SetTiming { timing: server.timing().initial(), granted: Some(granted) };
    let done = server.propose(&Principal::own("leader"), None, command).await?;
    tracing::info!(index = done.index, "the timing is in the state");
    Ok(())
}

/// Says once for each timing that comes into force which configured value is not the cluster's.
pub(crate) async fn compare(server: &Server) {
    let mut views = server.feed.views.clone();
    let mut compared = 0;
    loop {
        let in_force = views.borrow_and_update().meta().timing;
        if let Some(in_force) = in_force.filter(|in_force| in_force.since != compared) {
            compared = in_force.since;
            let configured = server.timing().initial().fields();
            for ((field, own), (_, cluster)) in configured.into_iter().zip(in_force.timing.fields())
            {
                if own != cluster {
                    tracing::warn!(
                        own,
                        cluster,
                        "timing.{field}: the configuration says otherwise than the cluster, which counts; change one (`rowen cluster set-timing`)"
                    );
                }
            }
        }
        if views.changed().await.is_err() {
            return;
        }
    }
}

/// `change` over what is in force: what is left out stays.
pub(crate) fn changed(server: &Server, change: &v1::TimingChange) -> Timing {
    let timing = in_force(server, &server.view());
    Timing {
        node_lease_ms: change.node_lease_ms.unwrap_or(timing.node_lease_ms),
        heartbeat_ms: change.heartbeat_ms.unwrap_or(timing.heartbeat_ms),
        kill_ms: change.kill_ms.unwrap_or(timing.kill_ms),
        drift_ppm: change.drift_ppm.unwrap_or(timing.drift_ppm),
    }
}

pub(crate) fn to_proto(timing: Timing) -> v1::Timing {
    let Timing { node_lease_ms, heartbeat_ms, kill_ms, drift_ppm } = timing;
    v1::Timing { node_lease_ms, heartbeat_ms, kill_ms, drift_ppm }
}

fn from_proto(timing: &v1::Timing) -> Timing {
    let v1::Timing { node_lease_ms, heartbeat_ms, kill_ms, drift_ppm } = *timing;
    Timing { node_lease_ms, heartbeat_ms, kill_ms, drift_ppm }
}
