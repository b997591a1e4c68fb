//! The parts a history falls into. No operation is about two of them.
//!
//! Owns which part an operation is about: ids come from answers, so a write that
//! was never answered belongs where a read has seen what it asked for. Names of
//! jobs are unique to one submission; those of fillers come again.

use std::{collections::BTreeMap, fmt};

use rowen_state::{FillerId, JobId, NodeId};

use super::Violation;
use crate::history::{Answer, Op, Operation};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Job(JobId),
    Filler(String),
    Node(NodeId),
    Gpu(NodeId, u32),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Job(id) => write!(f, "job {id}"),
            Part::Filler(name) => write!(f, "filler {name}"),
            Part::Node(id) => write!(f, "node {id}"),
            Part::Gpu(node, gpu) => write!(f, "GPU {gpu} of node {node}"),
        }
    }
}

type Parts = BTreeMap<Part, Vec<Operation>>;

/// Sorts operations into parts; what nobody ever saw is in none.
pub(super) fn partition(operations: &[Operation]) -> Result<Parts, Violation> {
    let names = Names::read(operations)?;
    let mut parts = Parts::new();
    for operation in operations {
        if operation.op.reads() && operation.result.is_none() {
            continue; // it saw nothing
        }
        if let Some(part) = names.part(operation) {
            parts.entry(part).or_default().push(operation.clone());
        }
    }
    Ok(parts)
}

#[derive(Default)]
struct Names {
    jobs: BTreeMap<String, JobId>,
    fillers: BTreeMap<FillerId, String>,
}

impl Names {
    fn read(operations: &[Operation]) -> Result<Names, Violation> {
        let mut names = Names::default();
        let mut by_id: BTreeMap<JobId, (String, &Operation)> = BTreeMap::new();
        let mut by_name: BTreeMap<String, (JobId, &Operation)> = BTreeMap::new();
        for operation in operations {
            match (&operation.op, &operation.result) {
                (Op::Submit { name }, Some(Answer::Job(id)))
                | (Op::ReadJob { job: id }, Some(Answer::SeenJob { name, .. })) => {
                    let of_id = by_id.entry(*id).or_insert_with(|| (name.clone(), operation));
                    let of_name = by_name.entry(name.clone()).or_insert((*id, operation));
                    if of_id.0 != *name || of_name.0 != *id {
                        let first = if of_name.0 == *id { of_id.1 } else { of_name.1 };
                        let why = "one submission is two jobs, or one job is of two submissions";
                        let window = vec![first.clone(), operation.clone()];
                        return Err(Violation { part: format!("job {id}"), why, window });
                    }
                    names.jobs.insert(name.clone(), *id);
                }
                (Op::Deploy { name }, Some(Answer::Filler(id)))
                | (Op::ReadFiller { name }, Some(Answer::SeenFiller { filler: id, .. })) => {
                    names.fillers.insert(*id, name.clone());
                }
                _ => {}
            }
        }
        Ok(names)
    }

    fn part(&self, operation: &Operation) -> Option<Part> {
        Some(match &operation.op {
            Op::Submit { name } => match operation.result {
                Some(Answer::Refused(_)) => return None,
                _ => Part::Job(*self.jobs.get(name)?),
            },
            Op::Cancel { job } | Op::Requeue { job } | Op::ReadJob { job } => Part::Job(*job),
            Op::Deploy { name } | Op::ReadFiller { name } => Part::Filler(name.clone()),
            Op::DrainFiller { filler } | Op::RemoveFiller { filler } => {
                Part::Filler(self.fillers.get(filler)?.clone())
            }
            Op::Cordon { node }
            | Op::Drain { node }
            | Op::Undrain { node }
            | Op::ReadNode { node } => Part::Node(*node),
            Op::ReadGpu { node, gpu } => Part::Gpu(*node, *gpu),
        })
    }
}
