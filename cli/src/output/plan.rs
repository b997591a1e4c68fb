//! `plan` and `why` on the screen: what would happen, and why it does not.

use std::collections::BTreeMap;

use rowen_api::v1::{Owner, PlanJobResponse, WhyJobResponse};
use serde::Serialize;

use super::job::{JobSpecView, TaskView};
use super::table::{Tint, Value, columns, number, page, paragraphs, word};
use super::words::{self, count, span};
use crate::files::duration_text;

/// `job plan -o json`.
#[derive(Debug, Serialize)]
pub(crate) struct PlanView {
    /// Starts without evicting.
    fits_now: bool,
    /// Starts once its victims are gone.
    fits_by_eviction: bool,
    /// Why neither.
    reason: Option<String>,
    /// The tightest domain that holds it: `block b1`.
    span: Option<String>,
    /// The longest notice among the victims.
    start_in_ms: Option<u64>,
    /// When it would start at the latest, by the time limits of others.
    planned_start_unix_ms: Option<u64>,
    /// Where it would go, by rank.
    tasks: Vec<TaskView>,
    /// Whom it would evict.
    victims: Vec<VictimView>,
    /// Log index of the state it was planned on.
    index: u64,
    /// The job as planned.
    spec: JobSpecView,
}

/// One allocation that would end.
#[derive(Debug, Serialize)]
struct VictimView {
    owner: OwnerView,
    node: String,
    gpus: Vec<u32>,
    notice_ms: u64,
    #[serde(skip)]
    label: String,
}

/// Who has, or gets, GPUs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct OwnerView {
    /// job or filler.
    kind: &'static str,
    id: u64,
    name: String,
    /// Attempt of a job, instance of a filler.
    part: u64,
}

impl OwnerView {
    pub(crate) fn new(owner: &Owner) -> OwnerView {
        OwnerView {
            kind: words::owner_kind(owner.kind()),
            id: owner.id,
            name: owner.name.clone(),
            part: owner.part,
        }
    }
}

impl PlanView {
    pub(crate) fn new(plan: &PlanJobResponse, spec: JobSpecView) -> PlanView {
        let victim = |victim: &rowen_api::v1::Victim| {
            let owner = victim.owner.clone().unwrap_or_default();
            VictimView {
                owner: OwnerView::new(&owner),
                node: victim.node.clone(),
                gpus: victim.gpus.clone(),
                notice_ms: victim.notice_ms,
                label: words::owner(&owner),
            }
        };
        let fits = plan.fits_now || plan.fits_by_eviction;
        PlanView {
            fits_now: plan.fits_now,
            fits_by_eviction: plan.fits_by_eviction,
            reason: words::some_text(&plan.reason),
            span: words::some_text(&plan.span),
            start_in_ms: fits.then_some(plan.start_in_ms),
            planned_start_unix_ms: plan.planned_start_ms,
            tasks: plan.tasks.iter().map(TaskView::new).collect(),
            victims: plan.victims.iter().map(victim).collect(),
            index: plan.index,
            spec,
        }
    }

    /// It would start, now or after its victims' notice.
    pub(crate) fn fits(&self) -> bool {
        self.fits_now || self.fits_by_eviction
    }

    /// A row for each owner among the victims.
    fn by_owner(&self) -> Vec<Vec<Value>> {
        let mut owners: BTreeMap<(&str, u64), Vec<&VictimView>> = BTreeMap::new();
        for victim in &self.victims {
            owners.entry((victim.owner.kind, victim.owner.id)).or_default().push(victim);
        }
        let row = |victims: &Vec<&VictimView>| {
            let owner = &victims[0].owner;
            let gpus: usize = victims.iter().map(|victim| victim.gpus.len()).sum();
            let notice = victims.iter().map(|victim| victim.notice_ms).max().unwrap_or(0);
            vec![
                word(match owner.kind {
                    "filler" => format!("filler {}", owner.name),
                    kind => format!("{kind} {} {}", owner.id, owner.name),
                }),
                number(victims.len()),
                number(gpus),
                number(duration_text(notice)),
                word(words::host_list(victims.iter().map(|victim| victim.node.as_str()))),
            ]
        };
        owners.values().map(row).collect()
    }

    fn headline(&self, colour: bool) -> String {
        let gang = self.spec.gang();
        let place = self.span.as_ref().map(|span| format!(" in {span}")).unwrap_or_default();
        if self.fits_now {
            let yes = Tint::Good.paint("Fits now", colour);
            return format!("{yes}{place}: {gang}. Evicts nobody and starts at once.");
        }
        if self.fits_by_eviction {
            let gpus = self.victims.iter().map(|victim| victim.gpus.len() as u64).sum();
            let who = count(self.victims.len() as u64, "allocation");
            let when = duration_text(self.start_in_ms.unwrap_or(0));
            let yes = Tint::Busy.paint("Fits by eviction", colour);
            return format!(
                "{yes}{place}: {gang}.\nEvicts {who} ({}) and starts within {when}.",
                count(gpus, "GPU")
            );
        }
        let no = Tint::Bad.paint("Does not fit now", colour);
        let reason = self.reason.as_deref().unwrap_or("no reason was given");
        format!("{no}: {gang}.\n{reason}")
    }
}

/// `job plan`: who leaves, summed up by owner; wide: every worker and every allocation.
pub(crate) fn plan(view: &PlanView, wide: bool, colour: bool) -> String {
    let table = |header: &[&str], rows: Vec<Vec<Value>>| match rows.is_empty() {
        true => String::new(),
        false => columns(header, rows, colour),
    };
    if !wide {
        let header = ["EVICTS", "ALLOCATIONS", "GPUS", "NOTICE", "NODES"];
        let place = match view.tasks.is_empty() {
            true => String::new(),
            false => {
                let nodes = view.tasks.iter().map(|task| task.node.as_str());
                let (all, now) = (view.spec.workers as usize, view.tasks.len());
                let fewer =
                    if now < all { format!(" with {now} of {all} workers") } else { String::new() };
                format!("It would run{fewer} on {}.", words::host_list(nodes))
            }
        };
        return paragraphs([view.headline(colour), place, table(&header, view.by_owner())]);
    }
    let tasks = view
        .tasks
        .iter()
        .map(|task| vec![number(task.rank), word(&task.node), word(words::ordinals(&task.gpus))]);
    let victims = view.victims.iter().map(|victim| {
        vec![
            word(&victim.label),
            word(&victim.node),
            word(words::ordinals(&victim.gpus)),
            number(span(victim.notice_ms)),
        ]
    });
    let tasks = table(&["RANK", "NODE", "GPUS"], tasks.collect());
    let victims = table(&["EVICTS", "NODE", "GPUS", "NOTICE"], victims.collect());
    paragraphs([view.headline(colour), tasks, victims])
}

/// `job why -o json`.
#[derive(Debug, Serialize)]
pub(crate) struct WhyView {
    id: u64,
    state: &'static str,
    /// One sentence.
    summary: String,
    binding_constraint: Option<String>,
    /// 1 is next; null: it does not queue.
    queue_position: Option<u64>,
    queue_length: u32,
    levels: Vec<LevelView>,
    /// What would admit it.
    cheapest_change: Option<String>,
    /// Null: unknown.
    start_estimate_unix_ms: Option<u64>,
    /// Log index of the decision.
    decided_index: u64,
}

/// What was looked at on one level.
#[derive(Debug, Serialize)]
struct LevelView {
    level: String,
    domains_considered: u32,
    domains_large_enough: u32,
    nearest: Option<String>,
    nearest_lacks_gpus: u32,
}

impl WhyView {
    pub(crate) fn new(why: &WhyJobResponse) -> WhyView {
        let level = |level: &rowen_api::v1::LevelReason| LevelView {
            level: level.level.clone(),
            domains_considered: level.considered,
            domains_large_enough: level.could_if_empty,
            nearest: words::some_text(&level.nearest),
            nearest_lacks_gpus: level.nearest_lacks_gpus,
        };
        WhyView {
            id: why.id,
            state: words::job_state(why.state()),
            summary: why.summary.clone(),
            binding_constraint: words::some_text(&why.binding_constraint),
            queue_position: words::some(why.queue_position.into()),
            queue_length: why.queue_length,
            levels: why.levels.iter().map(level).collect(),
            cheapest_change: words::some_text(&why.cheapest_change),
            start_estimate_unix_ms: why.start_estimate_ms,
            decided_index: why.decided_index,
        }
    }
}

/// `job why`.
pub(crate) fn why(view: &WhyView, now_ms: u64, colour: bool) -> String {
    // The summary is a sentence of its own: `job 8 waits: …`.
    let mut title = view.summary.clone();
    if let Some(first) = title.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    let queued = view.state == "queued";
    let estimate = match view.start_estimate_unix_ms {
        Some(at) if at <= now_ms => "any moment".to_owned(),
        Some(at) => format!("in about {}", span(at - now_ms)),
        None if queued => "unknown".to_owned(),
        None => String::new(),
    };
    let place = view.queue_position.map(|at| format!("{at} of {}", view.queue_length));
    let pairs = [
        ("Bound by", view.binding_constraint.clone().unwrap_or_default()),
        ("Place in queue", place.unwrap_or_default()),
        ("Starts", estimate),
        ("Would admit it", view.cheapest_change.clone().unwrap_or_default()),
        (
            "Decided at",
            match view.decided_index {
                0 => String::new(),
                index => format!("log index {index}"),
            },
        ),
    ];
    let rows: Vec<_> = view.levels.iter().map(level_row).collect();
    let levels = match rows.is_empty() {
        true => String::new(),
        false => {
            let header = ["LEVEL", "DOMAINS", "LARGE ENOUGH", "NEAREST", "LACKS"];
            columns(&header, rows, colour)
        }
    };
    paragraphs([page(&title, &pairs, colour), levels])
}

fn level_row(level: &LevelView) -> Vec<Value> {
    let lacks = match level.nearest_lacks_gpus {
        0 => "-".to_owned(),
        gpus => count(gpus.into(), "GPU"),
    };
    vec![
        word(&level.level),
        number(level.domains_considered),
        number(level.domains_large_enough),
        word(level.nearest.as_deref().unwrap_or("-")),
        number(lacks),
    ]
}
