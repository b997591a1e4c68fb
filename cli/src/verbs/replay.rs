//! `replay`: any moment that a data folder still reaches, rebuilt and checked.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use rowen_server::Replay;
use rowen_state::JobId;
use serde::Serialize;

use crate::exit::{DONE, FAILED, Outcome};
use crate::output::Output;

/// Arguments of `replay`.
#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// Data folder of a stopped replica, or a copy of one; nothing is written to it.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Stop after this entry of the log; the last one, unless said.
    #[arg(long, value_name = "INDEX")]
    until: Option<u64>,
    /// Tell this job's story, as far back as the replay begins.
    #[arg(long, value_name = "ID")]
    job: Option<u64>,
}

/// `replay -o json`.
#[derive(Debug, Serialize)]
struct ReplayView {
    /// The last applied entry.
    index: u64,
    /// The snapshot it began with; none: an empty state.
    snapshot_index: Option<u64>,
    /// Entries applied after it.
    entries: u64,
    committed_index: Option<u64>,
    last_index: Option<u64>,
    /// Hex; what every replica had at this index.
    state_hash: String,
    /// The state's clock.
    unix_ms: u64,
    incarnation: u64,
    nodes: usize,
    jobs: usize,
    allocations: usize,
    /// Of the invariants; empty is good.
    violations: Vec<String>,
    /// What is wrong with the end of the log.
    damage: Option<String>,
    story: Vec<LineView>,
}

#[derive(Debug, Serialize)]
struct LineView {
    index: u64,
    unix_ms: u64,
    what: String,
}

impl ReplayView {
    fn new(replay: &Replay) -> ReplayView {
        let cluster = &replay.cluster;
        let story = replay.story.iter();
        ReplayView {
            index: cluster.applied(),
            snapshot_index: replay.snapshot,
            entries: replay.entries,
            committed_index: replay.committed,
            last_index: replay.last,
            state_hash: format!("{:032x}", cluster.state_hash()),
            unix_ms: cluster.now_ms(),
            incarnation: cluster.meta().incarnation,
            nodes: cluster.nodes().len(),
            jobs: cluster.jobs().len(),
            allocations: cluster.allocations().len(),
            violations: replay.violations.iter().map(ToString::to_string).collect(),
            damage: replay.damage.clone(),
            story: story
                .map(|line| LineView {
                    index: line.index,
                    unix_ms: line.at_ms,
                    what: line.what.clone(),
                })
                .collect(),
        }
    }

    fn text(&self) -> String {
        let from = self
            .snapshot_index
            .map_or("an empty state".to_owned(), |at| format!("the snapshot at {at}"));
        let mut lines = vec![
            format!(
                "Index       {} of {}, {} entries after {from}",
                self.index,
                self.last_index.unwrap_or(0),
                self.entries
            ),
            format!("State hash  {}", self.state_hash),
            format!(
                "Holds       {} nodes, {} jobs, {} allocations",
                self.nodes, self.jobs, self.allocations
            ),
            match self.violations.len() {
                0 => "Invariants  all hold".to_owned(),
                count => format!("Invariants  {count} do NOT hold"),
            },
        ];
        lines.extend(self.violations.iter().map(|violation| format!("            {violation}")));
        lines.extend(self.damage.iter().map(|damage| format!("Damage      {damage}")));
        if !self.story.is_empty() {
            lines.push("Story".to_owned());
            let begin_ms = self.story[0].unix_ms;
            lines.extend(self.story.iter().map(|line| {
                let after_ms = line.unix_ms.saturating_sub(begin_ms);
                format!(
                    "  {:>8}  +{}.{:03}s  {}",
                    line.index,
                    after_ms / 1000,
                    after_ms % 1000,
                    line.what
                )
            }));
        }
        lines.join("\n")
    }
}

/// `replay`. Fails where an invariant does not hold.
pub(super) fn run(out: Output, args: &ReplayArgs) -> Outcome {
    let replay = rowen_server::replay(&args.data, args.until, args.job.map(JobId))?;
    let view = ReplayView::new(&replay);
    out.emit(&view, ReplayView::text)?;
    Ok(ExitCode::from(if view.violations.is_empty() { DONE } else { FAILED }))
}
