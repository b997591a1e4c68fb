//! `node list`, `show`, `cordon`, `drain`, `undrain`, `forget`.

use std::process::ExitCode;

use rowen_api::v1::{
    CordonNodeRequest, DrainNodeRequest, ForgetNodeRequest, GetNodeRequest, ListNodesRequest,
    UndrainNodeRequest,
};
use serde::Serialize;

use super::Session;
use crate::args::{ForgetArgs, NodeNamesArgs, NodeReasonArgs, NodeVerb, WatchArgs};
use crate::client::{Client, nodes};
use crate::exit::{DONE, Outcome, UsageError};
use crate::output::node::{self, NodeListView, NodeView};

/// What changes print for programs.
#[derive(Serialize)]
struct ChangedView<'a> {
    node: &'a str,
    /// Log index that made it durable.
    index: u64,
}

/// `node …`.
pub(super) async fn run(session: &mut Session, verb: NodeVerb) -> Outcome {
    match verb {
        NodeVerb::List(args) => list(session, args).await,
        NodeVerb::Show(args) => show(session, args.name).await,
        NodeVerb::Cordon(args) => cordon(session, args).await,
        NodeVerb::Drain(args) => drain(session, args).await,
        NodeVerb::Undrain(args) => undrain(session, args).await,
        NodeVerb::Forget(args) => forget(session, args).await,
    }
}

async fn list(session: &mut Session, args: WatchArgs) -> Outcome {
    let (wide, colour) = (session.out.wide(), session.out.colour);
    let fetch = async |client: &mut Client| {
        let list = |ch| async move { nodes(ch).list_nodes(ListNodesRequest {}).await };
        let answer = client.call(list).await?;
        let nodes = answer.nodes.iter().map(NodeView::new).collect();
        Ok(NodeListView { nodes, index: answer.index })
    };
    session.list(args.watch, fetch, |view| node::list(view, wide, colour)).await
}

async fn show(session: &mut Session, name: String) -> Outcome {
    let request = GetNodeRequest { name };
    let get = |ch| {
        let request = request.clone();
        async move { nodes(ch).get_node(request).await }
    };
    let view = NodeView::new(&session.client.call(get).await?);
    session.out.emit(&view, |view| node::show(view, session.out.colour))?;
    Ok(ExitCode::from(DONE))
}

async fn cordon(session: &mut Session, args: NodeReasonArgs) -> Outcome {
    let cordon = async |session: &mut Session, name: &String| {
        let request = CordonNodeRequest {
            request: session.client.request_id(),
            name: name.clone(),
            reason: args.reason.clone(),
        };
        let send = |ch| {
            let request = request.clone();
            async move { nodes(ch).cordon_node(request).await }
        };
        let index = session.client.call(send).await?.index;
        let text = format!("Cordoned {name}: nothing new is placed on it.");
        session.done(&ChangedView { node: name, index }, &text)
    };
    session.each(&names(&args.nodes)?, cordon).await
}

async fn drain(session: &mut Session, args: NodeReasonArgs) -> Outcome {
    let drain = async |session: &mut Session, name: &String| {
        let request = DrainNodeRequest {
            request: session.client.request_id(),
            name: name.clone(),
            reason: args.reason.clone(),
        };
        let send = |ch| {
            let request = request.clone();
            async move { nodes(ch).drain_node(request).await }
        };
        let index = session.client.call(send).await?.index;
        let text = format!("Draining {name}: what runs there ends with its notice.");
        session.done(&ChangedView { node: name, index }, &text)
    };
    session.each(&names(&args.nodes)?, drain).await
}

async fn undrain(session: &mut Session, args: NodeNamesArgs) -> Outcome {
    let undrain = async |session: &mut Session, name: &String| {
        let request =
            UndrainNodeRequest { request: session.client.request_id(), name: name.clone() };
        let send = |ch| {
            let request = request.clone();
            async move { nodes(ch).undrain_node(request).await }
        };
        let index = session.client.call(send).await?.index;
        let text = format!("{name} is back in service.");
        session.done(&ChangedView { node: name, index }, &text)
    };
    session.each(&names(&args)?, undrain).await
}

async fn forget(session: &mut Session, args: ForgetArgs) -> Outcome {
    let ForgetArgs { name, i_checked: checked } = args;
    if !checked {
        let text = format!(
            "--i-checked is missing: go and see that {name} is off; if it still runs, two jobs may use one GPU"
        );
        return Err(UsageError(text).into());
    }
    let request =
        ForgetNodeRequest { request: session.client.request_id(), name: name.clone(), checked };
    let send = |ch| {
        let request = request.clone();
        async move { nodes(ch).forget_node(request).await }
    };
    let index = session.client.call(send).await?.index;
    let text = format!("Forgot what ran on {name}: its GPUs are free and its gangs requeue.");
    session.done(&ChangedView { node: &name, index }, &text)?;
    Ok(ExitCode::from(DONE))
}

/// The names that the arguments stand for: `node[1-4]` is four of them.
fn names(args: &NodeNamesArgs) -> Result<Vec<String>, UsageError> {
    let mut names = Vec::new();
    for list in &args.names {
        let grown = rowen_topology::hostlist::expand(list)
            .map_err(|error| UsageError(format!("NODE: {error}; write names like node[1-4]")))?;
        names.extend(grown);
    }
    Ok(names)
}
