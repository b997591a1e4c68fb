//! `filler deploy`, `validate`, `list`, `show`, `drain`, `remove`.

use std::process::ExitCode;

use rowen_api::v1::{
    DeployFillerRequest, DrainFillerRequest, GetFillerRequest, ListFillersRequest,
    RemoveFillerRequest,
};
use serde::Serialize;

use super::Session;
use super::submit::check_each;
use crate::args::{DeployArgs, FillerVerb, ValidateArgs, WatchArgs};
use crate::client::{Client, fillers};
use crate::exit::{DONE, Outcome};
use crate::files::{FillerFile, Source};
use crate::output::filler::{self, FillerListView, FillerSpecView, FillerView};
use crate::output::{Output, words};

/// What changes print for programs.
#[derive(Serialize)]
struct ChangedView<'a> {
    filler: &'a str,
    /// Log index that made it durable.
    index: u64,
}

/// `filler …`, except `validate` and `schema`, which need no cluster.
pub(super) async fn run(session: &mut Session, verb: FillerVerb) -> Outcome {
    match verb {
        FillerVerb::Deploy(args) => deploy(session, args).await,
        FillerVerb::List(args) => list(session, args).await,
        FillerVerb::Show(args) => show(session, args.name).await,
        FillerVerb::Drain(args) => drain(session, &args.name).await,
        FillerVerb::Remove(args) => remove(session, &args.name).await,
        FillerVerb::Validate(_) | FillerVerb::Schema => unreachable!("dispatched before"),
    }
}

/// `filler validate`.
pub(super) fn validate(out: Output, args: &ValidateArgs) -> Outcome {
    let cwd = std::env::current_dir()?;
    check_each(&args.files, |file| {
        let source = Source::read(file, args.format)?;
        let spec = FillerSpecView::new(&FillerFile::spec(&source, &cwd)?);
        Ok(out.emit(&spec, |spec| format!("{file}: ok: {}", spec.shape())))
    })
}

async fn deploy(session: &mut Session, args: DeployArgs) -> Outcome {
    let mut source = Source::read(&args.file.file, args.file.format)?;
    for assignment in &args.set {
        source.set_text(assignment)?;
    }
    let spec = FillerFile::spec(&source, &std::env::current_dir()?)?;
    let name = spec.name.clone();
    let request = DeployFillerRequest { request: session.client.request_id(), spec: Some(spec) };
    let send = |ch| {
        let request = request.clone();
        async move { fillers(ch).deploy_filler(request).await }
    };
    let index = session.client.call(send).await?.index;
    session.done(&ChangedView { filler: &name, index }, &format!("Deployed filler {name}."))?;
    Ok(ExitCode::from(DONE))
}

async fn list(session: &mut Session, args: WatchArgs) -> Outcome {
    let (wide, colour) = (session.out.wide(), session.out.colour);
    let fetch = async |client: &mut Client| {
        let list = |ch| async move { fillers(ch).list_fillers(ListFillersRequest {}).await };
        let answer = client.call(list).await?;
        let fillers = answer.fillers.iter().map(FillerView::new).collect();
        Ok(FillerListView { fillers, index: answer.index })
    };
    session.list(args.watch, fetch, |view| filler::list(view, wide, colour)).await
}

async fn show(session: &mut Session, name: String) -> Outcome {
    let request = GetFillerRequest { name };
    let get = |ch| {
        let request = request.clone();
        async move { fillers(ch).get_filler(request).await }
    };
    let view = FillerView::new(&session.client.call(get).await?);
    session.out.emit(&view, |view| filler::show(view, words::now_ms(), session.out.colour))?;
    Ok(ExitCode::from(DONE))
}

async fn drain(session: &mut Session, name: &str) -> Outcome {
    let request =
        DrainFillerRequest { request: session.client.request_id(), name: name.to_owned() };
    let send = |ch| {
        let request = request.clone();
        async move { fillers(ch).drain_filler(request).await }
    };
    let index = session.client.call(send).await?.index;
    let text = format!("Draining filler {name}: its instances end with their notice.");
    session.done(&ChangedView { filler: name, index }, &text)?;
    Ok(ExitCode::from(DONE))
}

async fn remove(session: &mut Session, name: &str) -> Outcome {
    let request =
        RemoveFillerRequest { request: session.client.request_id(), name: name.to_owned() };
    let send = |ch| {
        let request = request.clone();
        async move { fillers(ch).remove_filler(request).await }
    };
    let index = session.client.call(send).await?.index;
    let text = format!("Removing filler {name}: it is forgotten with its last instance.");
    session.done(&ChangedView { filler: name, index }, &text)?;
    Ok(ExitCode::from(DONE))
}
