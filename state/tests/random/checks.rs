//! What must hold of a step beyond `verify()`: compares the state before and after it.

use std::collections::{BTreeMap, BTreeSet};

use rowen_state::{
    AllocationId, Cluster, Command, Decision, Effect, Entry, Epoch, NodeId, Outcome, Owner, Record,
    Reply, Stop, TaskPhase,
    codec::{self, CodecError, READS_VERSION},
    record_digest,
};

use crate::{
    coverage::Coverage,
    generator::{Expect, Step},
};

type Answer = Result<Reply, rowen_state::Refusal>;

/// What earlier steps were answered, and the newest epoch on every GPU.
#[derive(Default)]
pub(crate) struct Memory {
    answers: Vec<Answer>,
    fences: BTreeMap<(NodeId, u32), Epoch>,
    /// What should run where after the last step.
    desired: BTreeMap<NodeId, Desired>,
    /// Keys of the archive.
    archived: BTreeSet<Vec<u8>>,
}

impl Memory {
    /// The first thing that is wrong with a step, and what it reached.
    pub(crate) fn check(
        &mut self,
        before: &Cluster,
        step: &Step,
        outcome: &Outcome,
        after: &Cluster,
        coverage: &mut Coverage,
    ) -> Result<(), String> {
        let answer = outcome.answer.clone().ok_or("no answer")?;
        coverage.hit(format!("step: {}", step.kind));
        if let Err(refusal) = &answer {
            coverage.hit(format!("refused: {:?}", refusal.code));
        }
        self.check_answer(before, step, &answer, after)?;
        if answer.is_err() || matches!(step.expect, Expect::Nothing | Expect::AnswerOf(_)) {
            unchanged(before, after)?;
            if !outcome.records.is_empty() || !outcome.effects.is_empty() {
                return Err(format!("changed nothing, yet gave {outcome:?}"));
            }
        }
        let is = desired(after);
        let was = std::mem::replace(&mut self.desired, is);
        check_pushes(before, (&was, &self.desired), outcome, after)?;
        check_ends(before, &step.entry.command, after)?;
        check_version(before, step, &answer, after)?;
        check_timing(before, &step.entry.command, after)?;
        check_transitions(before, outcome, after, coverage)?;
        self.check_fences(before, after)?;
        self.check_archive(before, outcome, after)?;
        cover(before, step, &answer, after, coverage);
        self.answers.push(answer);
        Ok(())
    }

    /// No line of the archive is written twice, and the digest grows by what each adds: a replica
    /// holds its periods against the state by that.
    fn check_archive(
        &mut self,
        before: &Cluster,
        outcome: &Outcome,
        after: &Cluster,
    ) -> Result<(), String> {
        let mut grown = before.meta().archive_digest;
        for Record { key, value } in &outcome.records {
            grown = grown.wrapping_add(record_digest(key, value));
            if !self.archived.insert(key.clone()) {
                return Err(format!("the line {key:?} is written again"));
            }
        }
        if after.meta().version >= 2 && after.meta().archive_digest != grown {
            return Err(format!(
                "the digest grew to {:x}, not {grown:x}",
                after.meta().archive_digest
            ));
        }
        Ok(())
    }

    fn check_answer(
        &self,
        before: &Cluster,
        step: &Step,
        answer: &Answer,
        after: &Cluster,
    ) -> Result<(), String> {
        let holds = match (&step.expect, answer) {
            (Expect::Any, _) => true,
            (Expect::Refused(code), Err(refusal)) => refusal.code == *code,
            (Expect::AllAccepted, Ok(Reply::Planned { rejected: 0, .. })) => true,
            (Expect::AllRejected, Ok(Reply::Planned { accepted: 0, .. })) => {
                unchanged(before, after)?;
                true
            }
            (Expect::Nothing, Ok(Reply::Done)) => true,
            (Expect::AnswerOf(number), answer) => self.answers[*number] == *answer,
            _ => false,
        };
        if holds { Ok(()) } else { Err(format!("expected {:?}, answered {answer:?}", step.expect)) }
    }

    /// A GPU's next owner always has a higher epoch than its last.
    fn check_fences(&mut self, before: &Cluster, after: &Cluster) -> Result<(), String> {
        let new = after.allocations().iter().filter(|(id, _)| !before.allocations().contains(*id));
        for (id, allocation) in new {
            for task in &allocation.tasks {
                for ordinal in task.gpus.iter() {
                    let old = self.fences.insert((task.node, ordinal), allocation.epoch);
                    if old.is_some_and(|old| old >= allocation.epoch) {
                        return Err(format!("{id} has {:?}, GPU had {old:?}", allocation.epoch));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whether everything but the index, the clock and the table of requests is the same.
fn unchanged(before: &Cluster, after: &Cluster) -> Result<(), String> {
    let mut meta = before.meta().clone();
    (meta.applied, meta.now_ms) = (after.meta().applied, after.meta().now_ms);
    let same = [
        ("meta", meta == *after.meta()),
        ("fabric", before.fabric() == after.fabric()),
        ("nodes", before.nodes().iter().eq(after.nodes().iter())),
        ("jobs", before.jobs().iter().eq(after.jobs().iter())),
        ("fillers", before.fillers().iter().eq(after.fillers().iter())),
        ("allocations", before.allocations().iter().eq(after.allocations().iter())),
        ("replicas", before.replicas().iter().eq(after.replicas().iter())),
        ("usage", before.booked_usage().eq(after.booked_usage())),
        ("index", before.index() == after.index()),
        ("queue", before.queue().eq(after.queue())),
    ];
    match same.iter().find(|(_, same)| !same) {
        None => Ok(()),
        Some((what, _)) => Err(format!("should have changed nothing, but {what} changed")),
    }
}

/// What should run on a node: allocation, rank, and whether it must end.
type Desired = Vec<(AllocationId, u32, Option<Stop>)>;

fn desired(cluster: &Cluster) -> BTreeMap<NodeId, Desired> {
    let mut nodes: BTreeMap<NodeId, Desired> = BTreeMap::new();
    for (id, allocation) in cluster.allocations().iter() {
        for (rank, task) in (0u32..).zip(&allocation.tasks).filter(|(_, task)| !task.released) {
            nodes.entry(task.node).or_default().push((id, rank, allocation.stop));
        }
    }
    nodes
}

/// A node whose desired state changed is pushed, once, and its generation rises; no other's does.
fn check_pushes(
    before: &Cluster,
    (was, is): (&BTreeMap<NodeId, Desired>, &BTreeMap<NodeId, Desired>),
    outcome: &Outcome,
    after: &Cluster,
) -> Result<(), String> {
    for node in after.nodes().values() {
        let pushes = outcome.effects.iter().filter(|effect| **effect == Effect::Push(node.id));
        let pushes = pushes.count() as u64;
        if was.get(&node.id) != is.get(&node.id) && pushes == 0 {
            return Err(format!("{} should run something else and is not told", node.name));
        }
        let generation = before.nodes().get(node.id).map_or(0, |node| node.generation);
        if pushes > 1 || node.generation != generation + pushes {
            return Err(format!(
                "{}: generation {} after {pushes} pushes",
                node.name, node.generation
            ));
        }
    }
    let gone = outcome.effects.iter().find(|Effect::Push(node)| !after.nodes().contains(*node));
    gone.map_or(Ok(()), |effect| Err(format!("{effect:?} to a node that is gone")))
}

/// Only a report of a task itself or the loss of its node ends it: whatever else frees GPUs
/// would let two owners run on them.
fn check_ends(before: &Cluster, command: &Command, after: &Cluster) -> Result<(), String> {
    for (id, was) in before.allocations().iter() {
        let is = after.allocations().get(id);
        for (rank, task) in (0u32..).zip(&was.tasks).filter(|(_, task)| task.phase.live()) {
            let lives = is.is_some_and(|is| is.tasks[rank as usize].phase.live());
            let may_end = match command {
                Command::NodeLost { node, .. } | Command::ForgetNode(node) => *node == task.node,
                Command::NodeUp(report) => report.node == task.node,
                Command::Report(reports) => {
                    reports.iter().any(|report| report.allocation == id && report.rank == rank)
                }
                _ => false,
            };
            if !lives && !may_end {
                return Err(format!("task {rank} of allocation {id} was ended by nobody"));
            }
        }
    }
    Ok(())
}

/// The version rises by its own command alone, by one, and everything else stays as it was. What the
/// entry is written in can be read back, in the version that the cluster had.
fn check_version(
    before: &Cluster,
    Step { entry, expect, .. }: &Step,
    answer: &Answer,
    after: &Cluster,
) -> Result<(), String> {
    let (was, is) = (before.meta().version, after.meta().version);
    if matches!(expect, Expect::AnswerOf(_)) {
        return Ok(()); // not looked at: `unchanged` holds
    }
    match (&entry.command, answer) {
        (Command::RaiseVersion { to, .. }, Ok(_)) if is != *to || is != was + 1 => {
            return Err(format!("rose from version {was} to {is}, asked for {to}"));
        }
        (Command::RaiseVersion { .. }, Ok(_)) => {}
        _ if was != is => return Err(format!("version {was} became {is} by itself")),
        _ => {}
    }
    let bytes = match codec::encode(was, entry.clone()) {
        Err(CodecError::Older { .. }) if answer.is_err() => return Ok(()),
        // Builds that would refuse it are not asked: its schema is theirs to come.
        Ok(bytes) if u32::from(bytes[2]) > READS_VERSION => return Ok(()),
        Ok(bytes) => bytes,
        Err(error) => return Err(format!("carried out, but cannot be written: {error}")),
    };
    match codec::decode::<Entry>(&bytes) {
        Ok(read) if read == *entry => Ok(()),
        read => Err(format!("written as {entry:?}, read as {read:?}")),
    }
}

/// Whatever timing was granted before and is not settled is covered by what is remembered.
fn check_timing(before: &Cluster, command: &Command, after: &Cluster) -> Result<(), String> {
    let (was, is) = (before.meta().timing, after.meta().timing);
    if was == is || matches!(command, Command::SettleTiming { .. }) {
        return Ok(());
    }
    let Command::SetTiming { granted, .. } = command else {
        return Err(format!("{was:?} became {is:?} by {command:?}"));
    };
    let is = is.ok_or("the timing is gone")?;
    let covered = is.earlier.map_or(is.timing, |earlier| earlier.widest(is.timing));
    let owed = was.into_iter().flat_map(|was| [Some(was.timing), was.earlier]);
    for owed in owed.chain([*granted]).flatten() {
        if covered.widest(owed) != covered {
            return Err(format!("{owed:?} is owed, {is:?} does not cover it"));
        }
    }
    Ok(())
}

/// Each change of a job's state leaves a line in its story.
fn check_transitions(
    before: &Cluster,
    outcome: &Outcome,
    after: &Cluster,
    coverage: &mut Coverage,
) -> Result<(), String> {
    for (id, job) in after.jobs().iter() {
        let was = before.jobs().get(id).map(|job| job.state);
        if was == Some(job.state) {
            continue;
        }
        let was = was.map_or("new".into(), |was| format!("{was:?}"));
        coverage.hit(format!("job: {was} -> {:?}", job.state));
        let prefix = Cluster::story_prefix(id);
        if !outcome.records.iter().any(|record| record.key.starts_with(&prefix)) {
            return Err(format!("job {id}: {was} -> {:?} without a word", job.state));
        }
        let archived = outcome.records.iter().any(|record| record.key == Cluster::job_key(id));
        if archived != job.state.ended() {
            return Err(format!("job {id} is {:?}, archived: {archived}", job.state));
        }
        if let Some(stopping) = before.jobs().get(id).and_then(|job| job.stopping) {
            coverage.hit(format!("after {stopping:?}: {:?}", job.state));
        }
    }
    Ok(())
}

fn cover(before: &Cluster, step: &Step, answer: &Answer, after: &Cluster, coverage: &mut Coverage) {
    for (id, was) in before.allocations().iter() {
        let instance = matches!(was.owner, Owner::Instance { .. });
        let kind = if instance { "instance" } else { "gang" };
        let name = |stop: Option<Stop>| {
            stop.map_or("itself".into(), |stop| format!("{:?}", stop.reason))
                .split(' ')
                .next()
                .expect("a first word")
                .to_owned()
        };
        match after.allocations().get(id) {
            None => coverage.hit(format!("{kind} over after: {}", name(was.stop))),
            Some(is) if is.stop != was.stop => {
                coverage.hit(format!("{kind} stopped: {}", name(is.stop)))
            }
            Some(is) if is.tasks.iter().any(|task| task.phase == TaskPhase::Lost) => {
                coverage.hit("gang that lost a task waits for the others");
            }
            Some(_) => {}
        }
    }
    if let (Command::CommitPlan(plan), Ok(Reply::Planned { accepted, rejected })) =
        (&step.entry.command, answer)
    {
        let holds = plan.decisions.iter().filter(|d| matches!(d, Decision::Hold { .. })).count();
        coverage.hit(format!(
            "plan: {}{}{}",
            if *accepted > 0 { "some accepted" } else { "none accepted" },
            if *rejected > 0 { ", some rejected" } else { "" },
            if holds > 0 { ", with holds" } else { "" },
        ));
    }
    if after.fillers().values().any(|filler| filler.failures > 1) {
        coverage.hit("filler backs off further");
    }
    if after.fillers().len() < before.fillers().len() {
        coverage.hit("filler gone");
    }
    if after.nodes().len() != before.nodes().len() && !before.nodes().is_empty() {
        let grown = after.nodes().len() > before.nodes().len();
        coverage.hit(if grown { "fabric grown" } else { "fabric shrunk" });
    }
}
