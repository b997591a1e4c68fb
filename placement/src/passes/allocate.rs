//! Allocate: a gang starts on GPUs that are free now. Never disturbs anybody.

use rowen_topology::Level;

use crate::{
    demand::{Ask, Way},
    draft::Draft,
    fit::{self, Placement, Spot},
    slots::Pool,
};

/// Places the gang on the draft, if what is free holds it.
pub(crate) fn allocate(draft: &mut Draft<'_>, ask: &Ask) -> Option<Placement> {
    draft.slots(&ask.claim, Pool::Free);
    let slots = draft.counted(&ask.claim, Pool::Free);
    let found = fit::spot(draft, ask, slots)?;
    let Spot { domain, on, left } = at_full_speed(draft, ask, &found).unwrap_or(found);
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

/// Another spot of the same level, all of whose nodes reach each other at full speed, where some of
/// the one that was found do not. A wider one would cost more than a slow link.
fn at_full_speed(draft: &mut Draft<'_>, ask: &Ask, found: &Spot) -> Option<Spot> {
    if draft.view.impaired().is_empty() || ask.gpus() < 2 {
        return None;
    }
    let level = found.domain.level;
    let claim = ask.claim.by(Way::whole(level.min(Level::Nvlink)));
    if found.on.iter().all(|(pos, _)| draft.reaches(&claim, *pos)) {
        return None;
    }
    let ask = ask.inside(level, claim);
    draft.slots(&claim, Pool::Free);
    fit::spot(draft, &ask, draft.counted(&claim, Pool::Free))
}
