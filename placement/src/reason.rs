//! Why something does not fit, in one sentence with numbers.
//!
//! A reason is written to the log when it changes, so it holds nothing that moves by itself: no
//! times, no counts of what does not matter, and GPUs of fillers, and those coming free, count as
//! if they were free.

use rowen_state::Filler;
use rowen_topology::{DomainId, Level};

use crate::{
    demand::{Ask, Claim, LevelWord, Model},
    draft::Draft,
    fit::{self, Holding},
    slots::Pool,
};

/// Longest reason. The state keeps 512 bytes of it: a longer one would never be found to be the
/// one that is there already, and would be proposed again for ever.
pub(crate) const REASON_BYTES: usize = 480;

/// The head of a reason with the longest names.
pub(crate) fn bounded(mut reason: String) -> String {
    if reason.len() > REASON_BYTES {
        reason.truncate(reason.floor_char_boundary(REASON_BYTES));
        reason.push('…');
    }
    reason
}

/// Why a gang that no pass could place waits.
pub(crate) fn why_not(draft: &mut Draft<'_>, ask: &Ask) -> String {
    if let Some(reason) = never(draft, ask) {
        return reason;
    }
    let index = draft.index();
    draft.slots(&ask.claim, Pool::Soon);
    let slots = draft.counted(&ask.claim, Pool::Soon);
    let Some((nearest, workers)) = Holding::of(draft, ask, slots).nearest(index, ask.required)
    else {
        return "the fabric has no nodes yet".into();
    };
    let needs = draft.in_words(ask);
    let name = fit::name(index, nearest);
    let gives = workers * u64::from(ask.claim.gpus);
    let lost = (slots.within(nearest) - workers) * u64::from(ask.claim.gpus);
    let rest = Census::of(draft, &ask.claim, nearest).with_lost(lost).in_words();
    let (needed, open) = (ask.least_gpus(), if rest.is_empty() { "" } else { ": " });
    let wait = if ask.waits { " while its locality wait lasts" } else { "" };
    format!(
        "needs {needs}{wait}; the nearest, {name}, can give {gives} of {needed} GPUs{open}{rest}"
    )
}

/// Why the gang does not fit even on an empty fabric, if so.
pub(crate) fn never(draft: &mut Draft<'_>, ask: &Ask) -> Option<String> {
    if let Some(reason) = no_such_node(draft, &ask.claim) {
        return Some(format!("can never start: {reason}"));
    }
    let index = draft.index();
    if ask.waits {
        return None; // another level will do later
    }
    draft.slots(&ask.claim, Pool::Empty);
    let empty = Holding::of(draft, ask, draft.counted(&ask.claim, Pool::Empty));
    let (largest, workers) = empty.nearest(index, ask.required)?;
    (workers < ask.least.into()).then(|| {
        format!(
            "can never start: needs {}; the largest, {}, holds {workers} of {} workers when empty",
            draft.in_words(ask),
            fit::name(index, largest),
            ask.least
        )
    })
}

/// Why a filler gets no more instances.
pub(crate) fn no_room_on_a_node(draft: &mut Draft<'_>, filler: &Filler, claim: &Claim) -> String {
    if let (Model::Unknown, Some(model)) = (claim.model, &filler.spec.resources.gpu_model) {
        return format!("no node has the GPU model {model}; there are {}", models(draft));
    }
    no_such_node(draft, claim).unwrap_or_else(|| {
        let host = if claim.cpus + claim.memory_mib > 0 { ", cores and memory" } else { "" };
        format!("no node has {}{host} free", draft.terms().claim_in_words(claim, draft.index()))
    })
}

/// Why not even an empty node holds one worker, if so.
fn no_such_node(draft: &mut Draft<'_>, claim: &Claim) -> Option<String> {
    let index = draft.index();
    if index.node_count() == 0 {
        return None; // a fabric may come
    }
    if claim.model == Model::Unknown {
        return Some(format!("no node has the GPU model asked for; there are {}", models(draft)));
    }
    if draft.slots(claim, Pool::Empty).nodes().iter().any(|slots| *slots > 0) {
        return None;
    }
    let wanted = draft.terms().claim_in_words(claim, index);
    let admitted = draft.positions().filter(|pos| draft.admits(claim, *pos));
    let Some(most) = admitted.map(|pos| u32::from(index.gpu_count(pos))).max() else {
        return Some(format!("no node will do for {wanted}; the models are {}", models(draft)));
    };
    Some(match most < claim.gpus {
        true => format!("no node has {wanted}, the largest has {most}"),
        false => format!(
            "no node has {wanted} with {} cores and {} MiB of memory",
            claim.cpus, claim.memory_mib
        ),
    })
}

fn models(draft: &Draft<'_>) -> String {
    let ids = (0..draft.index().model_count()).map(rowen_topology::ModelId);
    let names: Vec<&str> = ids.map(|id| draft.index().model_name(id)).collect();
    names.join(", ")
}

/// What has become of the GPUs of a domain that a claim cannot use, not even soon.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Census {
    gangs: u32,
    kept: u32,
    down: u32,
    fragments: u32,
    no_host: u32,
    /// Free on nodes that others are on too.
    shared: u32,
    /// Beside whole groups, or beyond a spread.
    lost: u64,
    /// On nodes whose links are too slow.
    slow: u32,
}

impl Census {
    /// `draft` has counted the claim against what is free soon.
    pub(crate) fn of(draft: &Draft<'_>, claim: &Claim, domain: DomainId) -> Census {
        let (index, slots) = (draft.index(), draft.counted(claim, Pool::Soon));
        let mut census = Census::default();
        let nodes = index.domain(domain).nodes.clone();
        for (pos, count) in draft.rooms().counts_of(nodes) {
            if !draft.admits(&claim.any_way(), pos) {
                continue;
            }
            let gpus = u32::from(index.gpu_count(pos));
            if !count.schedulable {
                census.down += gpus;
                continue;
            }
            let sick = u32::from(count.sick);
            let leaving = draft.leaving_at(pos).gpus.count();
            let open = leaving
                + match draft.has_moved(pos) {
                    true => draft.free_at(pos) + draft.evictable(pos).gpus.count(),
                    false => u32::from(count.free) + u32::from(count.evictable),
                };
            let kept = draft.loaded(pos).map_or(0, |node| node.kept);
            census.down += sick;
            census.kept += kept;
            census.gangs += gpus - sick - open - kept;
            if !draft.reaches(claim, pos) {
                census.slow += open;
                continue;
            }
            if claim.exclusive && open < gpus - sick {
                census.shared += open;
                continue;
            }
            census.fragments += open % claim.gpus;
            census.no_host += (open / claim.gpus - slots.at(pos)) * claim.gpus;
        }
        census
    }

    /// With GPUs whose workers make up no whole group.
    pub(crate) fn with_lost(self, lost: u64) -> Census {
        Census { lost, ..self }
    }

    /// `gangs have 64, 8 are down`.
    pub(crate) fn in_words(&self) -> String {
        let parts = [
            (self.gangs, "gangs have"),
            (self.kept, "kept for a gang ahead:"),
            (self.down, "down, silent or out of service:"),
            (self.fragments, "in pieces too small:"),
            (self.no_host, "without cores or memory:"),
            (self.shared, "on nodes that others are on:"),
            (self.lost as u32, "left over beside whole groups:"),
            (self.slow, "behind faulty links:"),
        ];
        let parts = parts.into_iter().filter(|(count, _)| *count > 0);
        parts.map(|(count, what)| format!("{what} {count}")).collect::<Vec<_>>().join(", ")
    }

    /// What holds back most of them.
    pub(crate) fn binding(&self) -> &'static str {
        let kinds = [
            (self.gangs, "GPUs that gangs have"),
            (self.kept, "GPUs kept for a gang ahead"),
            (self.down, "GPUs that are down or out of service"),
            (self.fragments, "fragmentation"),
            (self.no_host, "cores or memory"),
            (self.shared, "nodes that others are on"),
            (self.lost as u32, "whole groups"),
            (self.slow, "faulty links"),
        ];
        let most = kinds.into_iter().rev().max_by_key(|(count, _)| *count);
        most.map_or("GPUs", |(_, what)| what)
    }
}

/// `block instead of node`, for a level in the middle of a sentence.
pub(crate) fn instead(new: Level, old: Level) -> String {
    format!("{} instead of {}", LevelWord(new), LevelWord(old))
}
