//! Starts a replica and serves until it is told to stop or its disk fails.

use std::time::Duration;

use anyhow::Context;
use rowen_raft::Replica;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;

use crate::{
    auth::Authorization,
    config::Config,
    members,
    peers::Peers,
    services, setup,
    shell::{Shell, failure},
    timing,
};

/// Serves `config` until `shutdown` resolves. An error means that the replica could
/// not start, or that it stopped itself: its disk failed, or consensus did.
pub async fn serve(
    config: Config,
    shutdown: impl Future<Output = ()> + Send,
) -> anyhow::Result<()> {
    config.validate().map_err(anyhow::Error::msg)?;
    let listener = TcpListener::bind(config.listen).await.with_context(|| {
        format!("listen: cannot listen on {}; choose another address", config.listen)
    })?;
    let identity = setup::identify(&config)?;
    let (replica, feed) = setup::open(&config, identity).await?;
    let mut failed = replica.failed();
    let Shell { server, agents, leading } =
        Shell::start(config, replica.clone(), feed, Peers::Grpc);
    let mut stopped = server.stopped.subscribe();
    let compared = server.clone();
    let comparing = tokio::spawn(async move { timing::compare(&compared).await });

    let router = tonic::transport::Server::builder()
        .layer(Authorization)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(replica.service());
    let router = services::add(router, &server, agents);
    let (close, closed) = tokio::sync::oneshot::channel::<()>();
    // The builder's tcp_nodelay holds only for sockets that it opens itself: without this each
    // streamed answer waits 40 ms for the client's delayed acknowledgement.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let serving = router.serve_with_incoming_shutdown(incoming, async {
        let _ = closed.await;
    });
    tokio::pin!(serving);
    tracing::info!(listen = %server.config.listen, replica = identity.replica, "serving");

    let outcome = tokio::select! {
        result = &mut serving => result.context("the gRPC server stopped"),
        () = shutdown => Ok(()),
        why = failure(&mut failed) => Err(anyhow::anyhow!("the replica stopped itself: {why}")),
        why = failure(&mut stopped) => Err(anyhow::anyhow!("the replica stopped itself: {why}")),
    };
    hand_over(&replica).await;
    // Streams of agents and watchers end with their sessions; nobody is waited for long.
    server.sessions.close();
    let _ = close.send(());
    let _ = tokio::time::timeout(Duration::from_millis(500), &mut serving).await;
    leading.abort();
    comparing.abort();
    replica.shutdown().await;
    outcome
}

/// A leader that stops on purpose does not let the others find out by silence.
async fn hand_over(replica: &Replica) {
    let mut leadership = replica.leadership();
    if !leadership.borrow().is_leader {
        return;
    }
    let Some(to) = members::successor(&replica.members(), replica.id()) else { return };
    if replica.transfer_leadership(to).await.is_ok() {
        let gone = leadership.wait_for(|state| !state.is_leader);
        let _ = tokio::time::timeout(Duration::from_secs(1), gone).await;
    }
}
