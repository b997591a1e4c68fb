//! Processes as /proc shows them: who lives, who descends from whom.
//!
//! Owns reading /proc and sending signals to single processes. Never decides
//! when. Used by the shim as well: no tokio here.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::spec::{self, ProcessId, Spec, Status};

/// What /proc/PID/stat says of a process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stat {
    parent: i32,
    group: i32,
    /// Nothing of it is left but its exit code. A first thread that ended before the others is none.
    zombie: bool,
    /// On its way out: its memory may be gone, its files, the GPU's among them, still open.
    exiting: bool,
    threads: u32,
    start_ticks: u64,
}

/// PF_EXITING of the kernel's include/linux/sched.h.
const EXITING: u32 = 4;

/// `None` when there is no such process.
pub(crate) fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    // The name, in parentheses, may itself hold spaces and parentheses.
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X");
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    let flags: u32 = fields.nth(3)?.parse().ok()?;
    let threads = fields.nth(10)?.parse().ok()?;
    let start_ticks = fields.nth(1)?.parse().ok()?;
    let zombie = ended && threads <= 1;
    let exiting = flags & EXITING != 0 && !zombie;
    Some(Stat { parent, group, zombie, exiting, threads, start_ticks })
}

/// Names a process that lives now.
pub(crate) fn identify(pid: i32) -> ProcessId {
    ProcessId { pid, start_ticks: stat(pid).map_or(0, |stat| stat.start_ticks) }
}

/// Whether it is still that process, and not a zombie.
pub(crate) fn lives(process: ProcessId) -> bool {
    stat(process.pid).is_some_and(|stat| !stat.zombie && stat.start_ticks == process.start_ticks)
}

/// Its process group.
pub(crate) fn group(pid: i32) -> Option<i32> {
    stat(pid).map(|stat| stat.group)
}

/// Everything below `root` that is not a zombie. The caller is a subreaper, so
/// whatever forked itself away is still below it.
pub(crate) fn descendants(root: i32) -> Vec<i32> {
    let stats: BTreeMap<i32, Stat> = pids().filter_map(|pid| Some((pid, stat(pid)?))).collect();
    let below = |mut pid: i32| {
        // A chain is never longer than there are processes.
        for _ in 0..stats.len() {
            match stats.get(&pid) {
                Some(stat) if stat.parent == root => return true,
                Some(stat) => pid = stat.parent,
                None => return false,
            }
        }
        false
    };
    stats.iter().filter(|(pid, stat)| !stat.zombie && below(**pid)).map(|(pid, _)| *pid).collect()
}

/// SIGKILL; a process that is gone is no error.
pub(crate) fn kill_now(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

/// Waits until the guard of a dead shim has done its work: it finds what
/// cleared its environment, which nobody finds once it is gone.
pub(crate) fn wait_for_guard(task_dir: &Path, limit: Duration) {
    let deadline = Instant::now() + limit;
    let status = spec::read::<Status>(&task_dir.join(spec::STATUS_FILE)).ok();
    let Some(guard) = status.and_then(|status| status.guard) else { return };
    while lives(guard) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Ends what is left of the task in `task_dir`, shim and guard included, and
/// waits until it is gone. Returns whether it is.
pub(crate) fn kill_orphans(task_dir: &Path, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    let mut ending = Ending::default();
    while !ending.kill(orphans(task_dir)).is_empty() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Processes that are killed until they are gone. What marks them may go before they do: the kernel
/// takes a dying process its memory first, the environment with it, and closes its files later,
/// the GPU's among them.
#[derive(Default)]
pub(crate) struct Ending {
    killed: Vec<ProcessId>,
    /// Were dying when one of ours was looked for; nobody can tell any more whose they are.
    unknown: Vec<ProcessId>,
    begun: Option<Instant>,
}

/// A dying process that is not known to be ours is not waited for longer.
const UNKNOWN_LIMIT: Duration = Duration::from_secs(2);

impl Ending {
    /// Kills what was `found` just now; gives what has not gone yet, of these and of earlier calls.
    pub(crate) fn kill(&mut self, found: Vec<i32>) -> Vec<i32> {
        if self.begun.is_none() || !found.is_empty() {
            // After the marks were read: whoever lost its mark before is seen here.
            self.unknown.extend(exiting());
        }
        let begun = *self.begun.get_or_insert_with(Instant::now);
        if begun.elapsed() >= UNKNOWN_LIMIT {
            self.unknown.clear();
        }
        for pid in found {
            let process = identify(pid);
            kill_now(pid);
            if !self.killed.contains(&process) {
                self.killed.push(process);
            }
        }
        self.killed.retain(|process| lives(*process));
        self.unknown.retain(|process| lives(*process));
        self.killed.iter().chain(&self.unknown).map(|process| process.pid).collect()
    }
}

fn exiting() -> impl Iterator<Item = ProcessId> {
    pids().filter_map(|pid| {
        let stat = stat(pid).filter(|stat| stat.exiting)?;
        Some(ProcessId { pid, start_ticks: stat.start_ticks })
    })
}

/// Living processes of a task: those its shim wrote down, what descends from
/// them, whatever carries its ROWEN_TASK_DIR, and whatever is in its cgroup (a
/// program may write its title over its environment).
fn orphans(task_dir: &Path) -> Vec<i32> {
    let mut found: Vec<i32> = Vec::new();
    if let Ok(status) = spec::read::<Status>(&task_dir.join(spec::STATUS_FILE)) {
        let known = status.guard.into_iter().chain([status.shim]).chain(status.processes);
        for process in known.filter(|process| lives(*process)) {
            found.push(process.pid);
            found.extend(descendants(process.pid));
        }
    }
    found.extend(marked(task_dir, false));
    found.extend(in_cgroup(task_dir));
    found.sort_unstable();
    found.dedup();
    found
}

fn in_cgroup(task_dir: &Path) -> Vec<i32> {
    let spec = spec::read::<Spec>(&task_dir.join(spec::SPEC_FILE)).ok();
    let procs = spec.and_then(|spec| fs::read_to_string(spec.cgroup?.join("cgroup.procs")).ok());
    let pids = procs.unwrap_or_default();
    let pids = pids.lines().filter_map(|line| line.parse().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|stat| !stat.zombie)).collect()
}

/// Living processes below `tasks`, by their mark, whose task folder is not one
/// of `known`.
pub(crate) fn strays(tasks: &Path, known: &[&Path]) -> Vec<i32> {
    // In this order: what a known task forks meanwhile is not among those found.
    let mut found = marked(tasks, true);
    let known: Vec<i32> = known.iter().flat_map(|dir| marked(dir, false)).collect();
    found.retain(|pid| !known.contains(pid));
    found
}

/// Living processes whose environment names `dir` (or a folder below it) as
/// their task folder.
fn marked(dir: &Path, below: bool) -> Vec<i32> {
    let mut prefix = b"ROWEN_TASK_DIR=".to_vec();
    prefix.extend(dir.as_os_str().as_bytes());
    let fits = |variable: &[u8]| match variable.strip_prefix(prefix.as_slice()) {
        Some(rest) => rest.is_empty() || (below && rest.first() == Some(&b'/')),
        None => false,
    };
    let living = pids().filter_map(|pid| Some((pid, stat(pid).filter(|stat| !stat.zombie)?)));
    let marked =
        living.filter(|(pid, stat)| environment(*pid, *stat).split(|byte| *byte == 0).any(fits));
    marked.map(|(pid, _)| pid).collect()
}

/// As it was at its start. Whose first thread has ended shows it by another thread.
fn environment(pid: i32, stat: Stat) -> Vec<u8> {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    if !environment.is_empty() || stat.threads <= 1 {
        return environment;
    }
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut environments =
        threads.filter_map(|thread| fs::read(thread.path().join("environ")).ok());
    environments.find(|environment| !environment.is_empty()).unwrap_or_default()
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Kills every shim and task of the agent folder `dir` at once, without notice,
/// as a power cut would: for demos and tests that lose a node. Returns, once
/// they are gone, how many processes it killed. The agent itself is the
/// caller's to kill first.
pub fn power_off(dir: &Path) -> usize {
    let tasks = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_path_buf()).join("tasks");
    let mut killed = 0;
    let entries = fs::read_dir(&tasks).into_iter().flatten().flatten();
    let folders: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    let statuses = folders
        .iter()
        .filter_map(|folder| spec::read::<Status>(&folder.join(spec::STATUS_FILE)).ok());
    // Shims first, so that none of them sees, and reports, the end of its task.
    let shims = statuses.map(|status| status.shim).filter(|shim| lives(*shim));
    for shim in shims.collect::<Vec<_>>() {
        let below = descendants(shim.pid);
        for pid in [shim.pid].into_iter().chain(below) {
            kill_now(pid);
            killed += 1;
        }
    }
    let mut ending = Ending::default();
    for _ in 0..200 {
        let left = marked(&tasks, true);
        killed += left.len();
        if ending.kill(left).is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    folders.iter().for_each(|folder| remove_cgroup(folder));
    killed
}

/// The cgroup that a dead shim left, and the agent's own where it was the last.
pub(crate) fn remove_cgroup(task_dir: &Path) {
    let spec = spec::read::<Spec>(&task_dir.join(spec::SPEC_FILE)).ok();
    if let Some(cgroup) = spec.and_then(|spec| spec.cgroup) {
        let _ = fs::remove_dir(&cgroup);
        let _ = cgroup.parent().map(fs::remove_dir);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// The kernel takes its memory, and its mark with it, a good while before it is gone.
    #[test]
    fn what_dies_slowly_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        // tail keeps all of it until the end of its input, which does not come.
        let script = "(head -c 300000000 /dev/zero; sleep 300) | tail >/dev/null";
        let mut shell = Command::new("sh")
            .args(["-c", script])
            .env("ROWEN_TASK_DIR", dir.path())
            .spawn()
            .unwrap();
        let pages = |pid: &i32| {
            let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
            statm.split(' ').nth(1).map_or(0, |pages| pages.parse::<u64>().unwrap())
        };
        let large = |pids: &[i32]| pids.iter().any(|pid| pages(pid) > 290_000_000 / 4096);
        let mut pids = marked(dir.path(), false);
        while !large(&pids) {
            std::thread::sleep(Duration::from_millis(5));
            pids = marked(dir.path(), false);
        }
        let processes: Vec<ProcessId> = pids.into_iter().map(identify).collect();
        assert!(kill_orphans(dir.path(), Duration::from_secs(20)));
        let left: Vec<_> = processes.into_iter().filter(|process| lives(*process)).collect();
        assert!(left.is_empty(), "{left:?}");
        shell.wait().unwrap();
    }
}
