//! Rebuilds any moment that a data folder still reaches: the newest snapshot before it,
//! then the log, through the same core that serves.

use std::path::Path;

use anyhow::{Context, bail};
use rowen_raft::read_offline;
use rowen_state::{Cluster, JobEvent, JobId, Violation, codec};

use crate::core::Core;

/// A moment, rebuilt.
#[derive(Debug)]
pub struct Replay {
    /// The state as it was.
    pub cluster: Cluster,
    /// The snapshot it began with; none: an empty state.
    pub snapshot: Option<u64>,
    /// Entries applied after it.
    pub entries: u64,
    /// The last entry that is known to be committed; later ones may not have been.
    pub committed: Option<u64>,
    /// The last entry there is.
    pub last: Option<u64>,
    /// What is wrong with the end of the log, if anything.
    pub damage: Option<String>,
    /// Invariants that do not hold.
    pub violations: Vec<Violation>,
    /// The story of the job that was asked for, as far back as the replay began.
    pub story: Vec<JobEvent>,
}

/// Replays the folder of a stopped replica, or a copy of one, up to and with the entry `until`,
/// or to the end; collects the story of `job`. Nothing is written.
pub fn replay(dir: &Path, until: Option<u64>, job: Option<JobId>) -> anyhow::Result<Replay> {
    let log = read_offline(dir).with_context(|| format!("data: cannot read {}", dir.display()))?;
    if log.last_index().is_none() {
        bail!("data: {} holds no log; name the data folder of a replica", dir.display());
    }
    let plan = log.replay(until)?;
    let mut core = Core::default();
    let snapshot = plan.snapshot.as_ref().map(|(index, _)| *index);
    if let Some((index, bytes)) = &plan.snapshot {
        core.restore(bytes).with_context(|| format!("the snapshot at {index}"))?;
    }
    let prefix = job.map(Cluster::story_prefix);
    let (mut entries, mut story) = (0, Vec::new());
    for entry in plan.entries {
        let (index, bytes) = entry?;
        let step = core.apply(index, &bytes).with_context(|| format!("entry {index}"))?;
        entries += 1;
        let lines = step
            .records
            .iter()
            .filter(|record| prefix.as_ref().is_some_and(|prefix| record.key.starts_with(prefix)));
        for line in lines {
            story.push(codec::decode(&line.value)?);
        }
    }
    Ok(Replay {
        violations: core.cluster().verify(),
        cluster: core.cluster().clone(),
        snapshot,
        entries,
        committed: log.committed(),
        last: log.last_index(),
        damage: log.damage().map(str::to_owned),
        story,
    })
}
