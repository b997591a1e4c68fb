//! Finds the processes of a local cluster in /proc, by the folder they work in, and kills them.
//!
//! Shims and tasks outlive the agent that started them, by design, so their owner cannot be asked
//! for them: a shim is known by its argument, a task by `ROWEN_TASK_DIR` in its environment.
//! Never touches a process that merely mentions the folder (an editor, a `tail -f`).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// SIGKILL to every control plane, agent, shim and task of `dir`, until none is left.
pub(super) fn kill_all_under(dir: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    // A process may fork while it is looked for: two empty looks in a row say that all are gone.
    let mut empty_looks = 0;
    while empty_looks < 2 {
        let found = find_under(dir);
        if found.is_empty() {
            empty_looks += 1;
            continue;
        }
        empty_looks = 0;
        if Instant::now() > deadline {
            bail!("cannot end the processes {found:?} of {}", dir.display());
        }
        for pid in found {
            // It may be gone already.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The live processes of `dir` (zombies have neither arguments nor environment, and no GPU).
pub(super) fn find_under(dir: &Path) -> BTreeSet<i32> {
    let all: Vec<Seen> = pids().filter_map(Seen::read).collect();
    let direct = |seen: &&Seen| belongs(seen.pid, dir);
    let mut found: BTreeSet<i32> = all.iter().filter(direct).map(|seen| seen.pid).collect();
    // Then what they started, even where it cleared its environment.
    loop {
        let groups: BTreeSet<i32> =
            all.iter().filter(|s| found.contains(&s.pid)).map(|s| s.group).collect();
        let started =
            |s: &&Seen| s.live && (found.contains(&s.parent) || groups.contains(&s.group));
        let more: BTreeSet<i32> = all.iter().filter(started).map(|s| s.pid).collect();
        if more.is_subset(&found) {
            return found;
        }
        found.extend(more);
    }
}

struct Seen {
    pid: i32,
    parent: i32,
    group: i32,
    live: bool,
}

impl Seen {
    // /proc/PID/stat: pid (name) state ppid pgrp …; the name may hold spaces and brackets.
    fn read(pid: i32) -> Option<Seen> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        let live = !matches!(fields.next()?, "Z" | "X");
        let parent = fields.next()?.parse().ok()?;
        let group = fields.next()?.parse().ok()?;
        Some(Seen { pid, parent, group, live })
    }
}

fn pids() -> impl Iterator<Item = i32> {
    let me = std::process::id().cast_signed();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(move |pid: &i32| *pid != me)
}

fn belongs(pid: i32, dir: &Path) -> bool {
    let Ok(arguments) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let mut arguments = arguments.split(|byte| *byte == 0).skip(1);
    if matches!(arguments.next(), Some(b"serve" | b"agent" | b"shim"))
        && arguments.any(|argument| is_under(argument, dir))
    {
        return true;
    }
    let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { return false };
    environment
        .split(|byte| *byte == 0)
        .filter_map(|variable| variable.strip_prefix(b"ROWEN_TASK_DIR="))
        .any(|value| is_under(value, dir))
}

fn is_under(path: &[u8], dir: &Path) -> bool {
    Path::new(std::ffi::OsStr::from_bytes(path)).starts_with(dir)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn sleeper(task_dir: &Path) -> Child {
        let script = "env -i sleep 60 & sleep 60";
        let mut command = Command::new("sh");
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.args(["-c", script]).env("ROWEN_TASK_DIR", task_dir).spawn().unwrap()
    }

    #[test]
    fn kills_a_task_and_what_it_started_but_not_its_neighbour() {
        let dir = tempfile::tempdir().unwrap();
        let mine = sleeper(&dir.path().join("nodes/n1/tasks/7"));
        let mut other = sleeper(&dir.path().join("nodes/n10/tasks/7"));
        std::thread::sleep(Duration::from_millis(200));
        // The shell and two sleeps, of which one has an empty environment.
        assert_eq!(find_under(&dir.path().join("nodes/n1")).len(), 3);
        kill_all_under(&dir.path().join("nodes/n1")).unwrap();
        assert!(other.try_wait().unwrap().is_none(), "n10 is not under n1");
        assert!(find_under(&dir.path().join("nodes/n1")).is_empty());
        kill_all_under(dir.path()).unwrap();
        for mut child in [mine, other] {
            assert!(!child.wait().unwrap().success());
        }
    }
}
