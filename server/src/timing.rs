//! The timing in force: the state's, from version 2 on, and this replica's configuration before.
//!
//! Puts the first one into the state, and says where the configuration differs from it. Never
//! measures anything by it: see `liveness`.

use rowen_api::v1;
use rowen_state::{Cluster, Command, Timing};

use crate::{auth::Principal, server::Server};

/// The timing in force in `view`.
pub(crate) fn in_force(server: &Server, view: &Cluster) -> Timing {
    view.meta().timing.map_or(server.timing().initial(), |in_force| in_force.timing)
}

/// A leader whose state has none yet puts its own there, once it knows what every replica may have
/// granted by its configuration.
pub(crate) async fn begin(server: &Server) {
    let meta = server.view().meta().clone();
    if meta.version < 2 || meta.timing.is_some() {
        return;
    }
    let own = server.replica.id();
    let group = server.replica.members();
    let others = group.iter().filter(|status| status.member.id != own);
    let answers = others.map(|status| async {
        Ok::<_, tonic::Status>(server.peers.checkpoint(&status.member, 0).await?.timing)
    });
    let mut granted = server.timing().initial();
    for answer in futures::future::join_all(answers).await {
        // One that does not answer may have granted more: it is asked again.
        let Ok(Some(timing)) = answer else { return };
        granted = granted.widest(from_proto(&timing));
    }
    let command = Command::SetTiming { timing: server.timing().initial(), granted: Some(granted) };
    match server.propose(&Principal::own("leader"), None, command).await {
        Ok(done) => tracing::info!(index = done.index, "the timing is in the state"),
        Err(status) => tracing::warn!(%status, "the timing is not in the state; it is tried again"),
    }
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
