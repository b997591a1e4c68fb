//! Allocate: a gang starts on GPUs that are free now. Never disturbs anybody.

use crate::{
    demand::Ask,
    draft::Draft,
    fit::{self, Placement, Pool, Slots},
};

/// Places the gang on the draft, if what is free holds it.
pub(crate) fn allocate(draft: &mut Draft<'_>, ask: &Ask) -> Option<Placement> {
    let slots = Slots::of(draft, &ask.claim, Pool::Free);
    let domain = fit::best_domain(draft, ask, &slots)?;
    let on = fit::spread(draft, &slots, domain, ask.workers.into());
    let places = fit::places(draft, &ask.claim, &on, &[]).expect("slots were counted on free GPUs");
    for place in &places {
        assert!(draft.take(*place, &ask.claim, &[]), "{place:?} was counted as free");
    }
    let left = slots.within(draft.index(), domain) - u64::from(ask.workers);
    let why = format!(
        "free GPUs in {}, the tightest fit: room for {left} more such workers is left there",
        fit::name(draft.index(), domain)
    );
    Some(Placement { places, victims: Vec::new(), notice_ms: 0, why })
}
