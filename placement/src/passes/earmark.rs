//! Earmark: GPUs that already come free for nobody are kept for the gang that is next.
//!
//! Without it a later gang or a filler would slip in while the last of them drains. Nothing is
//! written: the next cycle finds the same again, until the gang starts or holds.

use rowen_state::GpuMask;
use rowen_topology::NodePos;

use crate::{
    demand::Ask,
    draft::Draft,
    fit::{self, Spot},
    node::{DraftNode, Fate},
    slots::Pool,
};

/// What is kept: of each node its GPUs, and for how many workers.
type Kept = Vec<(NodePos, GpuMask, u32)>;

/// Keeps GPUs on the draft for a gang that fits once what already leaves has left; why it waits.
pub(crate) fn earmark(draft: &mut Draft<'_>, ask: &Ask) -> Option<(String, Kept)> {
    draft.slots(&ask.claim, Pool::Soon);
    let slots = draft.counted(&ask.claim, Pool::Soon);
    let Spot { domain, on, .. } = fit::spot(draft, ask, slots)?;
    let mut kept = Kept::new();
    for (pos, workers) in on {
        let gpus = soonest(draft.node(pos), workers * ask.claim.gpus);
        draft.earmark(pos, gpus, &ask.claim, workers);
        kept.push((pos, gpus, workers));
    }
    let reason = format!(
        "needs {}: {} holds it once what already ends there has ended",
        draft.in_words(ask),
        fit::name(draft.index(), domain)
    );
    Some((reason, kept))
}

/// What leaves first, then what is free, then fillers' GPUs.
fn soonest(node: &DraftNode, count: u32) -> GpuMask {
    let mut chosen = GpuMask::NONE;
    let of = |fate| node.gpus_of(|other| other == fate);
    for pool in [of(Fate::Leaving), node.free, of(Fate::Evictable)] {
        let rest = count - chosen.count();
        chosen = chosen.or(pool.lowest(rest.min(pool.count())).expect("no more than there are"));
    }
    chosen
}
