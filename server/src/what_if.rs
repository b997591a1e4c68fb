//! `WhatIf`: what is asked, made commands, and what came of them, made an answer. On a view of the
//! state as it is, or as a replay rebuilt it. Proposes nothing.

use rowen_api::v1::{self, change::Kind};
use rowen_placement::{self as placement, Becomes, WhatIf};
use rowen_state::{Cluster, Command, JobId, NodeId};
use rowen_topology::{Level, NodePos, hostlist};
use tonic::Status;

use crate::{convert, server::refusal_status};

/// Changes of one question.
const CHANGES: usize = 256;
const REASON: &str = "what if";

/// Applies the changes to a copy and plans; minutes of notice pass in no time.
pub fn what_if(view: &Cluster, request: v1::WhatIfRequest) -> Result<v1::WhatIfResponse, Status> {
    let Asked { commands, drained } = read(view, request)?;
    let found = placement::what_if(view, commands)
        .map_err(|refusal| refusal_status(refusal.code, refusal.message))?;
    Ok(answer(view, found, drained))
}

/// What is to be done to the copy.
struct Asked {
    commands: Vec<Command>,
    drained: Vec<String>,
}

fn read(view: &Cluster, request: v1::WhatIfRequest) -> Result<Asked, Status> {
    if request.changes.is_empty() || request.changes.len() > CHANGES {
        let count = request.changes.len();
        return Err(Status::invalid_argument(format!("changes: are {count}; send 1 to {CHANGES}")));
    }
    let mut asked = Asked { commands: Vec::new(), drained: Vec::new() };
    for (at, change) in request.changes.into_iter().enumerate() {
        let empty = || Status::invalid_argument(format!("changes[{at}]: is empty; send one"));
        match change.kind.ok_or_else(empty)? {
            Kind::Drain(name) => {
                for (node, name) in nodes_of(view, &name)? {
                    asked.commands.push(Command::DrainNode { node, reason: REASON.into() });
                    asked.drained.push(name);
                }
            }
            Kind::Undrain(name) => {
                let nodes = nodes_of(view, &name)?.into_iter();
                asked.commands.extend(nodes.map(|(node, _)| Command::UndrainNode(node)));
            }
            Kind::Submit(spec) => {
                let invalid = |error: rowen_state::FieldError| {
                    Status::invalid_argument(format!("changes[{at}]: {error}"))
                };
                let spec = convert::job_spec_from_proto(spec).map_err(invalid)?;
                spec.validate().map_err(invalid)?;
                asked.commands.push(Command::SubmitJob(spec));
            }
            Kind::Cancel(job) => asked.commands.push(Command::CancelJob(find(view, &job)?)),
        }
    }
    Ok(asked)
}

/// A live job, by its number or by a name that no other has.
fn find(view: &Cluster, text: &str) -> Result<JobId, Status> {
    if let Ok(id) = text.parse() {
        return Ok(JobId(id));
    }
    let named = view.jobs().values().filter(|job| job.spec.name == text && !job.state.ended());
    match named.collect::<Vec<_>>()[..] {
        [job] => Ok(job.id),
        [] => Err(Status::not_found(format!("there is no live job {text}"))),
        _ => Err(Status::invalid_argument(format!(
            "cancel: several live jobs are called {text}; use a number from `rowen job list`"
        ))),
    }
}

/// The nodes that a name means: a node, a rack, a host list, or a domain of any level.
fn nodes_of(view: &Cluster, name: &str) -> Result<Vec<(NodeId, String)>, Status> {
    let node = |name: &String| view.node_named(name).map(|node| (node.id, node.name.clone()));
    let listed = hostlist::expand(name).unwrap_or_default();
    let nodes: Vec<_> = listed.iter().filter_map(node).collect();
    if !nodes.is_empty() && nodes.len() == listed.len() {
        return Ok(nodes);
    }
    let records = view.fabric().nodes.iter();
    let in_rack = records.filter(|record| record.rack == name).map(|record| &record.name);
    let nodes: Vec<_> = in_rack.filter_map(node).collect();
    if !nodes.is_empty() {
        return Ok(nodes);
    }
    for level in Level::ALL {
        let domains = view.index().domains(level).iter();
        if let Some(domain) = domains.into_iter().find(|domain| domain.name == name) {
            let at = |pos| view.node_at(NodePos(pos));
            let nodes = domain.nodes.clone().map(at);
            return Ok(nodes.map(|node| (node.id, node.name.clone())).collect());
        }
    }
    Err(Status::not_found(format!(
        "there is no node, rack or domain {name}; `rowen node list` shows them"
    )))
}

fn answer(view: &Cluster, found: WhatIf, drained: Vec<String>) -> v1::WhatIfResponse {
    let [idle_before_gpus, idle_after_gpus] = found.idle_gpus;
    let fillers = found.fillers.into_iter().map(|filler| v1::WhatIfFiller {
        name: filler.name,
        instances_before: filler.instances[0],
        instances_after: filler.instances[1],
        evicted: filler.evicted,
    });
    let jobs = found.jobs.into_iter().map(|job| v1::WhatIfJob {
        id: job.id.0,
        name: job.name,
        new: job.new,
        becomes: word(job.becomes).into(),
        reason: job.reason,
        nodes: job.nodes,
        span: job.span,
        after_ms: job.after_ms,
        gpus: job.gpus.try_into().unwrap_or(u32::MAX),
    });
    v1::WhatIfResponse {
        jobs: jobs.collect(),
        fillers: fillers.collect(),
        drained,
        idle_before_gpus,
        idle_after_gpus,
        index: view.applied(),
        open: found.open,
    }
}

fn word(becomes: Becomes) -> &'static str {
    match becomes {
        Becomes::Starts => "starts",
        Becomes::Moves => "moves",
        Becomes::Requeues => "requeues",
        Becomes::Waits => "waits",
        Becomes::Ends => "ends",
    }
}
