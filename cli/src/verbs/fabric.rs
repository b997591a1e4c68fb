//! `fabric show`, `check`, `set`.

use std::process::ExitCode;

use rowen_api::v1::{Occupancy, SetFabricRequest, WatchOccupancyRequest};
use serde::Serialize;
use tonic::Streaming;

use super::Session;
use super::submit::check_each;
use crate::args::{FabricVerb, FileArgs, ValidateArgs, WatchArgs};
use crate::client::{CallError, cluster, fabric as fabric_client, may_pass};
use crate::exit::{DONE, Outcome};
use crate::files::{Problem, Source, read_fabric, read_inventory};
use crate::output::fabric::{FoundView, OccupancyView, show as drawn};
use crate::output::{Output, words};

/// `fabric …`, except `check`, `import` and `schema`, which need no cluster.
pub(super) async fn run(session: &mut Session, verb: FabricVerb) -> Outcome {
    match verb {
        FabricVerb::Show(args) => show(session, args).await,
        FabricVerb::Set(args) => set(session, args).await,
        FabricVerb::Health(verb) => super::health::run(session, verb).await,
        FabricVerb::Check(_) | FabricVerb::Import(_) | FabricVerb::Schema => {
            unreachable!("dispatched before")
        }
    }
}

/// The picture comes anew with each change, not each second: the server says when.
async fn show(session: &mut Session, args: WatchArgs) -> Outcome {
    let out = session.out;
    let picture = |occupancy: &Occupancy| drawn(occupancy, out.colour);
    loop {
        let mut changes = watch(session).await?;
        loop {
            let occupancy = match changes.message().await {
                Ok(Some(occupancy)) => occupancy,
                Err(status) if !may_pass(&status) => {
                    return Err(CallError::Refused { status: Box::new(status) }.into());
                }
                _ => break,
            };
            let view = OccupancyView::new(&occupancy);
            if !args.watch {
                out.emit(&view, |_| picture(&occupancy))?;
                return Ok(ExitCode::from(DONE));
            }
            out.redraw(&view, |_| picture(&occupancy))?;
        }
    }
}

async fn watch(session: &mut Session) -> Result<Streaming<Occupancy>, CallError> {
    let watch = |ch| async move { cluster(ch).watch_occupancy(WatchOccupancyRequest {}).await };
    session.client.call(watch).await
}

/// `fabric check`.
pub(super) fn check(out: Output, args: &ValidateArgs) -> Outcome {
    check_each(&args.files, |file| {
        let source = Source::read(file, args.format)?;
        let inventory = read_inventory(&source)?;
        let found = FoundView::new(&inventory)
            .map_err(|e| source.error(vec![Problem::new("", e.to_string())]))?;
        Ok(out.emit(&found, |found| found.checked(file, out.wide())))
    })
}

/// What `fabric set` prints for programs.
#[derive(Serialize)]
struct SetView {
    /// Log index that made it durable.
    index: u64,
    irregularities: Vec<String>,
}

async fn set(session: &mut Session, args: FileArgs) -> Outcome {
    let record = read_fabric(&Source::read(&args.file, args.format)?)?;
    let request = SetFabricRequest {
        request: session.client.request_id(),
        fabric: Some(rowen_server::convert::fabric_to_proto(&record)),
    };
    let send = |ch| {
        let request = request.clone();
        async move { fabric_client(ch).set_fabric(request).await }
    };
    let answer = session.client.call(send).await?;
    let view = SetView { index: answer.index, irregularities: answer.irregularities };
    session.out.emit(&view, |view| {
        let nodes = words::count(record.nodes.len() as u64, "node");
        let mut text = format!("The fabric has {nodes} now.");
        for irregularity in &view.irregularities {
            text += &format!("\nirregular: {irregularity}");
        }
        text
    })?;
    Ok(ExitCode::from(DONE))
}
