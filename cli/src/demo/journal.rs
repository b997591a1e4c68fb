//! What the demo's processes saw of themselves, so that the checks need not trust the scheduler.
//!
//! Each worker and each instance appends lines to one file and, while it lives, holds a kernel
//! lock on every GPU it was given. The kernel lets go of a lock only when its process is gone: a
//! lock that is not free when its new owner starts is a GPU with two owners, whatever any log
//! says. Never written by the control plane or an agent.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// The variable that tells a process of the demo where the journal is.
pub(crate) const JOURNAL_ENV: &str = "ROWEN_DEMO_JOURNAL";

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum What {
    /// The process's first act.
    Start,
    /// SIGTERM came.
    Term,
    /// Its last act.
    End,
    /// Something that must be its own is still held by another process.
    Clash,
    /// Written by the demo itself: it killed every process of the node.
    Cut,
}

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// CLOCK_BOOTTIME.
    pub(crate) at_ns: u64,
    pub(crate) unix_ms: u64,
    pub(crate) what: What,
    pub(crate) who: Who,
    /// From the notice file, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) deadline_unix_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) note: String,
}

/// A process of the demo, as its environment describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Who {
    /// `job` or `filler`.
    pub(crate) kind: String,
    /// Job id or filler name.
    pub(crate) owner: String,
    /// Attempt or instance.
    pub(crate) part: u64,
    pub(crate) rank: u32,
    /// Workers of the gang; an instance: 1.
    pub(crate) workers: u32,
    pub(crate) node: String,
    /// Ordinals.
    pub(crate) gpus: Vec<u32>,
    pub(crate) pid: u32,
}

impl Who {
    /// From what the agent put into the environment.
    pub(crate) fn from_env() -> Who {
        let get = |name: &str| std::env::var(name).unwrap_or_default();
        let number = |name: &str| get(name).parse::<u64>().unwrap_or(0);
        let gpus = get("ROWEN_GPUS").split(',').filter_map(|gpu| gpu.parse().ok()).collect();
        let node = get("ROWEN_NODE");
        let pid = std::process::id();
        match std::env::var("ROWEN_FILLER") {
            Ok(owner) if !owner.is_empty() => {
                let (kind, part) = ("filler".into(), number("ROWEN_INSTANCE"));
                Who { kind, owner, part, rank: 0, workers: 1, node, gpus, pid }
            }
            _ => {
                let (kind, owner) = ("job".into(), get("ROWEN_JOB_ID"));
                let (part, rank) = (number("ROWEN_ATTEMPT"), number("ROWEN_RANK") as u32);
                let workers = number("ROWEN_WORKERS") as u32;
                Who { kind, owner, part, rank, workers, node, gpus, pid }
            }
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Who { owner, part, rank, node, .. } = self;
        match self.kind.as_str() {
            "filler" => write!(f, "{owner} instance {part} on {node}"),
            _ => write!(f, "job {owner} attempt {part} rank {rank} on {node}"),
        }
    }
}

/// A process's own pen, and the locks it holds while it lives.
pub(crate) struct Journal {
    file: File,
    who: Who,
    _locks: Vec<File>,
}

impl Journal {
    /// Opens the journal named in the environment, takes the locks and writes `start`. `None`
    /// where no journal is named: the worker and the filler are useful without a demo.
    pub(crate) fn begin() -> Result<Option<Journal>> {
        let Some(path) = std::env::var_os(JOURNAL_ENV).map(PathBuf::from) else { return Ok(None) };
        let mut journal = Journal::open(&path, Who::from_env())?;
        journal.write(What::Start, "")?;
        journal.take_locks(&path)?;
        Ok(Some(journal))
    }

    /// Opens it to write in another's name.
    pub(crate) fn open(path: &Path, who: Who) -> Result<Journal> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.with_context(|| format!("cannot open the journal {}", path.display()))?;
        Ok(Journal { file, who, _locks: Vec::new() })
    }

    /// Appends a line; one `write`, so that lines of several processes do not mix.
    pub(crate) fn write(&mut self, what: What, note: &str) -> Result<()> {
        let deadline_unix_ms = if what == What::Term { notice_deadline() } else { None };
        let who = self.who.clone();
        let (at_ns, unix_ms, note) = (boottime_ns(), unix_ms(), note.to_string());
        let line = Line { at_ns, unix_ms, what, who, deadline_unix_ms, note };
        let mut text = serde_json::to_string(&line)?;
        text.push('\n');
        Ok(self.file.write_all(text.as_bytes())?)
    }

    fn take_locks(&mut self, path: &Path) -> Result<()> {
        let folder = path.with_extension("locks");
        fs::create_dir_all(&folder)?;
        let who = self.who.clone();
        for gpu in &who.gpus {
            self.take(&folder, &format!("gpu-{}-{gpu}", who.node))?;
        }
        if who.kind != "job" {
            return Ok(());
        }
        self.take(&folder, &attempt_lock(&who, who.part, who.rank))?;
        // No worker of an earlier attempt may live. Shared and let go at once: siblings look too.
        for attempt in 1..who.part {
            for rank in 0..who.workers {
                let name = attempt_lock(&who, attempt, rank);
                if lock_file(&folder, &name)?.try_lock_shared().is_err() {
                    self.write(What::Clash, &name)?;
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, folder: &Path, name: &str) -> Result<()> {
        let file = lock_file(folder, name)?;
        if file.try_lock().is_err() {
            self.write(What::Clash, name)?;
        }
        self._locks.push(file);
        Ok(())
    }
}

fn attempt_lock(who: &Who, attempt: u64, rank: u32) -> String {
    format!("job-{}-attempt-{attempt}-rank-{rank}", who.owner)
}

fn lock_file(folder: &Path, name: &str) -> Result<File> {
    let path = folder.join(name);
    Ok(OpenOptions::new().create(true).truncate(false).write(true).open(path)?)
}

/// All complete lines so far.
pub(crate) fn read(path: &Path) -> Result<Vec<Line>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error.into()),
    };
    let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
    let parse = |line| serde_json::from_str(line).context("the journal has a broken line");
    complete.lines().map(parse).collect()
}

/// Every moment at which a GPU had two owners or a job two attempts; empty is good.
///
/// Two witnesses: the locks (a `clash` line), and the times that the processes wrote. The end of a
/// process that could not write it (killed) is when the demo cut its node; where that is not known
/// either, the locks alone speak.
pub(crate) fn conflicts(lines: &[Line]) -> Vec<String> {
    let clashes = lines.iter().filter(|line| line.what == What::Clash);
    let mut conflicts: Vec<String> =
        clashes.map(|line| format!("{} found {} held", line.who, line.note)).collect();
    let lives = lives(lines);
    let mut by_gpu: BTreeMap<(&str, u32), Vec<&Life>> = BTreeMap::new();
    let mut by_job: BTreeMap<&str, Vec<&Life>> = BTreeMap::new();
    for life in &lives {
        for gpu in &life.who.gpus {
            by_gpu.entry((&life.who.node, *gpu)).or_default().push(life);
        }
        if life.who.kind == "job" {
            by_job.entry(&life.who.owner).or_default().push(life);
        }
    }
    for ((node, gpu), lives) in by_gpu {
        for pair in lives.windows(2).filter(|pair| pair[0].outlived(pair[1])) {
            conflicts.push(format!("GPU {gpu} of {node}: {} and {}", pair[0].who, pair[1].who));
        }
    }
    for lives in by_job.values() {
        for later in lives {
            let earlier = |other: &&&Life| other.who.part < later.who.part;
            if let Some(other) = lives.iter().filter(earlier).find(|l| l.outlived(later)) {
                conflicts.push(format!("two attempts: {} and {}", other.who, later.who));
            }
        }
    }
    conflicts
}

/// From a process's first to its last sign, in the order of their starts.
pub(crate) struct Life<'a> {
    pub(crate) who: &'a Who,
    pub(crate) from_ns: u64,
    pub(crate) to_ns: Option<u64>,
}

impl Life<'_> {
    fn outlived(&self, next: &Life<'_>) -> bool {
        self.to_ns.is_some_and(|end| end > next.from_ns)
    }
}

/// One life a `start`.
pub(crate) fn lives(lines: &[Line]) -> Vec<Life<'_>> {
    let starts = lines.iter().filter(|line| line.what == What::Start);
    let mut lives: Vec<Life<'_>> = starts
        .map(|start| Life {
            who: &start.who,
            from_ns: start.at_ns,
            to_ns: lines
                .iter()
                .filter(|line| line.at_ns >= start.at_ns)
                .filter(|line| match line.what {
                    What::End => line.who == start.who,
                    What::Cut => line.who.node == start.who.node,
                    What::Start | What::Term | What::Clash => false,
                })
                .map(|line| line.at_ns)
                .min(),
        })
        .collect();
    lives.sort_by_key(|life| life.from_ns);
    lives
}

/// The clock that the whole machine shares and that nobody sets.
pub(crate) fn boottime_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME");
    now.tv_sec().cast_unsigned() * 1_000_000_000 + now.tv_nsec().cast_unsigned()
}

/// The clock in which deadlines are told to people.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64)
}

fn notice_deadline() -> Option<u64> {
    let path = std::env::var_os("ROWEN_NOTICE_FILE")?;
    let notice: serde_json::Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    notice.get("deadline_unix_ms")?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(kind: &str, owner: &str, part: u64, rank: u32, gpus: &[u32]) -> Who {
        let pid = rank + 10 * part as u32;
        let (node, gpus) = (format!("n{rank}"), gpus.to_vec());
        Who { kind: kind.into(), owner: owner.into(), part, rank, workers: 2, node, gpus, pid }
    }

    fn line(at_ns: u64, what: What, who: &Who) -> Line {
        let (who, note) = (who.clone(), String::new());
        Line { at_ns, unix_ms: 0, what, who, deadline_unix_ms: None, note }
    }

    #[test]
    fn a_gpu_handed_over_in_order_is_no_conflict() {
        let (filler, gang) = (who("filler", "chat", 1, 0, &[0, 1]), who("job", "7", 1, 0, &[1]));
        let mut lines = vec![
            line(1, What::Start, &filler),
            line(5, What::Term, &filler),
            line(6, What::End, &filler),
            line(7, What::Start, &gang),
        ];
        assert!(conflicts(&lines).is_empty());
        lines[2].at_ns = 8;
        assert_eq!(
            conflicts(&lines),
            ["GPU 1 of n0: chat instance 1 on n0 and job 7 attempt 1 rank 0 on n0"]
        );
    }

    #[test]
    fn two_attempts_at_once_are_a_conflict_even_on_other_gpus() {
        let (first, second) = (who("job", "7", 1, 0, &[0]), who("job", "7", 2, 1, &[0]));
        let mut lines = vec![
            line(1, What::Start, &first),
            line(3, What::Start, &second),
            line(2, What::Cut, &first),
        ];
        assert!(conflicts(&lines).is_empty(), "the first was cut before the second began");
        lines[2].at_ns = 4;
        assert_eq!(conflicts(&lines).len(), 1);
    }

    #[test]
    fn a_clash_is_a_conflict() {
        let mut clash = line(1, What::Clash, &who("job", "7", 2, 1, &[0]));
        clash.note = "gpu-n1-0".into();
        assert_eq!(conflicts(&[clash]), ["job 7 attempt 2 rank 1 on n1 found gpu-n1-0 held"]);
    }

    #[test]
    fn the_locks_see_a_second_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let begin = |part, rank| {
            let mut journal = Journal::open(&path, who("job", "7", part, rank, &[3])).unwrap();
            journal.take_locks(&path).unwrap();
            journal
        };
        let first = begin(1, 0);
        assert!(read(&path).unwrap().is_empty());
        let second = begin(2, 0);
        // The GPU, and the attempt before it.
        assert_eq!(read(&path).unwrap().len(), 2);
        drop((first, second));
        begin(3, 0);
        assert_eq!(read(&path).unwrap().len(), 2, "all were free again");
    }
}
