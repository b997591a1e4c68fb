//! A dry run of a submit: what would happen, as the queue is now. Nothing changes.

use rowen_state::{AllocationId, Cluster, JobSpec, Place};

use crate::{
    Candidate, Cycle, Verdict,
    fit::{self, Placement},
    passes::backfill,
    when::{self, PlannedStart},
};

/// What would happen if the job were submitted now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DryRun {
    /// On GPUs that are free.
    pub fits_now: bool,
    /// Once `victims` have left.
    pub fits_by_eviction: bool,
    /// By rank; empty when it would wait.
    pub places: Vec<Place>,
    /// Filler instances that would get their notice.
    pub victims: Vec<AllocationId>,
    /// At the latest: the longest notice of the victims, 0 without any. `None`: it would wait.
    pub start_in_ms: Option<u64>,
    /// When it would start at the latest, if it would wait and time limits say so.
    pub planned: Option<PlannedStart>,
    /// Why there, or why it would wait.
    pub reason: String,
    /// The tightest domain that holds all places, `block b1-leaf`; empty when it would wait.
    pub span: String,
}

/// A dry run of a submit: nothing changes. Jobs that are queued already go first where their
/// priority is the same or higher.
pub fn dry_run(view: &Cluster, spec: &JobSpec) -> DryRun {
    let mut cycle = Cycle::new(view);
    cycle.gangs_before(|job| {
        let own = view.queues().is_empty() || job.spec.queue == spec.queue;
        own && job.spec.priority < spec.priority
    });
    let candidate = Candidate::new(spec, &mut cycle.draft);
    match cycle.consider(&candidate) {
        Verdict::Wait { reason, planned } => {
            let planned = planned.or_else(|| backfill::estimate(&mut cycle, &candidate.ask));
            DryRun { reason: when::with_start(reason, planned), planned, ..DryRun::default() }
        }
        Verdict::Start(placement) => DryRun { fits_now: true, ..placed(&cycle, placement) },
        Verdict::Hold(placement) => DryRun { fits_by_eviction: true, ..placed(&cycle, placement) },
    }
}

fn placed(cycle: &Cycle<'_>, Placement { places, victims, notice_ms, why }: Placement) -> DryRun {
    let span = cycle.draft.span(places.iter().filter_map(|place| cycle.view.pos_of(place.node)));
    DryRun {
        span: span.map_or_else(String::new, |domain| fit::name(cycle.draft.index(), domain)),
        start_in_ms: Some(notice_ms),
        reason: why,
        places,
        victims,
        ..DryRun::default()
    }
}
