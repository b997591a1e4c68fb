//! How far apart the planner puts a gang, beside the least that any placement could do.
//!
//! Counted from the nodes themselves, a slow way that shares nothing with the planner's index. Never
//! part of what is timed.

use std::collections::BTreeSet;

use rowen_state::{Cluster, Decision, JobId, Place, Plan};
use rowen_topology::{DomainId, Level, NodePos};

use super::super::figures::Figure;

/// Of the decisions of one case.
pub(super) struct Spans {
    case: String,
    decisions: u32,
    /// That evict: what is lost counts there, not the span alone.
    holds: u32,
    /// Blocks, over the fewest possible.
    sum: f64,
    worst: f64,
    /// On a coarser level than a tighter one that would have held them.
    wider: u32,
}

impl Spans {
    pub(super) fn new(case: &str) -> Spans {
        Spans { case: case.to_string(), decisions: 0, holds: 0, sum: 0.0, worst: 0.0, wider: 0 }
    }

    /// Counts a plan for a job, if it gives it a place.
    pub(super) fn count(&mut self, view: &Cluster, job: JobId, plan: &Plan) {
        let placed = plan.decisions.iter().find_map(|decision| match decision {
            Decision::Start { job: id, places, .. } if *id == job => Some((places, false)),
            Decision::Hold { job: id, places, .. } if *id == job => Some((places, true)),
            _ => None,
        });
        let Some((places, evicts)) = placed else { return };
        let workers = places.len() as u64;
        let room = Room::count(view, places[0].gpus.count(), evicts);
        let of = |level| domains(view, level, places).len() as f64;
        let ratio = of(Level::Block) / room.fewest_blocks(workers);
        self.decisions += 1;
        self.holds += u32::from(evicts);
        self.sum += ratio;
        self.worst = self.worst.max(ratio);
        let tighter =
            Level::ALL.into_iter().any(|level| of(level) > 1.0 && room.holds(level, workers));
        self.wider += u32::from(tighter);
    }

    pub(super) fn figures(&self) -> Vec<Figure> {
        if self.decisions == 0 {
            return Vec::new();
        }
        let decisions = f64::from(self.decisions);
        let figure = |name, value, unit| Figure::new(name, self.case.clone(), value, unit);
        let wider = 100.0 * f64::from(self.wider) / decisions;
        let wider = figure("wider_than_need", wider, "% of decisions");
        vec![
            figure("span_mean", self.sum / decisions, "× fewest blocks"),
            figure("span_worst", self.worst, "× fewest blocks"),
            if self.holds == 0 { wider.at_most(0.0) } else { wider },
        ]
    }
}

fn domains(view: &Cluster, level: Level, places: &[Place]) -> BTreeSet<DomainId> {
    let nodes = places.iter().filter_map(|place| view.pos_of(place.node));
    nodes.map(|pos| view.index().domain_of(pos, level)).collect()
}

/// Workers that fit, by domain. GPUs alone count: the load leaves cores and memory in proportion.
/// By level, then by ordinal.
struct Room([Vec<u64>; 5]);

impl Room {
    fn count(view: &Cluster, each: u32, evict: bool) -> Room {
        let mut room = Level::ALL.map(|level| vec![0; view.index().domains(level).len()]);
        for pos in (0..view.index().node_count()).map(NodePos) {
            let node = view.node_at(pos);
            let evictable = if evict { view.reclaimable(node).count() } else { 0 };
            let workers = u64::from((node.free().count() + evictable) / each);
            for level in Level::ALL {
                let domain = view.index().domain_of(pos, level);
                room[level as usize][domain.ordinal as usize] += workers;
            }
        }
        Room(room)
    }

    fn holds(&self, level: Level, workers: u64) -> bool {
        self.0[level as usize].iter().any(|room| *room >= workers)
    }

    /// The roomiest blocks, wherever they are: no placement takes fewer.
    fn fewest_blocks(&self, mut workers: u64) -> f64 {
        let mut room = self.0[Level::Block as usize].clone();
        room.sort_unstable();
        let mut count = 0.0;
        while let Some(most) = room.pop().filter(|_| workers > 0) {
            workers = workers.saturating_sub(most);
            count += 1.0;
        }
        count
    }
}
