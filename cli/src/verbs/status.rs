//! `status`: the control plane and what the GPUs were used for.

use rowen_api::v1::GetStatusRequest;

use super::Session;
use crate::args::WatchArgs;
use crate::client::{Client, cluster};
use crate::exit::Outcome;
use crate::output::status::{self, StatusView};

/// `status`.
pub(super) async fn run(session: &mut Session, args: WatchArgs) -> Outcome {
    let colour = session.out.colour;
    let fetch = async |client: &mut Client| {
        let get = |ch| async move { cluster(ch).get_status(GetStatusRequest::default()).await };
        Ok(StatusView::new(&client.call(get).await?))
    };
    session.list(args.watch, fetch, |view| status::show(view, colour)).await
}
