//! Allocate: a gang starts on GPUs that are free now. Never disturbs anybody.

use crate::{
    demand::Ask,
    draft::Draft,
    fit::{self, Placement, Spot},
    slots::Pool,
};

/// Places the gang on the draft, if what is free holds it.
pub(crate) fn allocate(draft: &mut Draft<'_>, ask: &Ask) -> Option<Placement> {
    draft.slots(&ask.claim, Pool::Free);
    let slots = draft.counted(&ask.claim, Pool::Free);
    let Spot { domain, on, left } = fit::spot(draft, ask, slots)?;
    let mut places = Vec::with_capacity(ask.workers as usize);
    for (pos, workers) in on {
        let free = draft.room(pos).free;
        let gpus = free.lowest(workers * ask.claim.gpus).expect("slots were counted on free GPUs");
        places.extend(fit::shares(draft.rooms().node(pos), gpus, &ask.claim));
        draft.take_free(pos, gpus, &ask.claim, workers);
    }
    let why = format!(
        "free GPUs in {}, the tightest fit: room for {left} more such workers is left there",
        fit::name(draft.index(), domain)
    );
    Some(Placement { places, victims: Vec::new(), notice_ms: 0, why })
}
