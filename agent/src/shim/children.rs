//! The processes of one task.
//!
//! Owns launching them, finding whatever they forked, signalling and reaping
//! it. Never decides when: `shim` does; never waits for a disk once one lives.

use std::{
    collections::BTreeMap,
    io,
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        prctl,
        signal::{SigSet, Signal, kill, killpg},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{self, Pid},
};

use super::{
    cgroup::Cgroup,
    log_file::LogFile,
    pump::{Pipe, Pump},
};
use crate::{
    process,
    spec::{ProcessId, Spec},
};

/// For what is left in the pipes to reach the logs of a task that ended.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// How one of the task's first processes ended.
pub(super) struct Exit {
    local: usize,
    /// 128 + signal when killed.
    pub(super) code: i32,
    signal: Option<Signal>,
}

impl Exit {
    /// By SIGKILL, whoever sent it.
    pub(super) fn killed(&self) -> bool {
        self.signal == Some(Signal::SIGKILL)
    }

    /// For people; empty where the code says it all.
    pub(super) fn message(&self, processes: usize) -> String {
        let how = match self.signal {
            Some(signal) => format!("killed by {signal}"),
            None if processes > 1 => format!("exited with {}", self.code),
            None => return String::new(),
        };
        if processes > 1 { format!("process {} {how}", self.local) } else { how }
    }
}

#[derive(Default)]
pub(super) struct Children {
    launched: Vec<ProcessId>,
    /// First processes that live: pid to local rank.
    mains: BTreeMap<i32, usize>,
    group: Option<i32>,
    pump: Option<Pump>,
    cgroup: Option<Cgroup>,
}

/// stdout and stderr of one process.
type Logs = [LogFile; 2];

impl Children {
    /// Starts one process for each environment of `spec`, in one group.
    pub(super) fn launch(&mut self, spec: &Spec) -> Result<(), String> {
        self.cgroup = spec.cgroup.as_ref().and_then(|path| Cgroup::enter(path, spec));
        // All logs before any process: a disk that hangs here hangs an empty task.
        let logs: io::Result<Vec<Logs>> =
            (0..spec.processes.len()).map(|local| open_logs(spec, local)).collect();
        let mut pipes = Vec::new();
        let launched = logs.map_err(|error| format!("logs: {error}")).and_then(|logs| {
            logs.into_iter()
                .enumerate()
                .try_for_each(|(local, logs)| self.launch_one(spec, local, logs, &mut pipes))
        });
        if let Some(cgroup) = &self.cgroup {
            cgroup.leave();
        }
        launched?;
        self.pump = Some(Pump::start(pipes).map_err(|error| format!("logs: {error}"))?);
        Ok(())
    }

    fn launch_one(
        &mut self,
        spec: &Spec,
        local: usize,
        logs: Logs,
        pipes: &mut Vec<Pipe>,
    ) -> Result<(), String> {
        let env = &spec.processes[local];
        let name = spec.command.first().ok_or("command: empty; name a program")?;
        let here = std::env::current_dir().map_err(|error| format!("task folder: {error}"))?;
        let dir = match spec.working_dir.as_str() {
            "" => here,
            dir => PathBuf::from(dir),
        };
        if !dir.is_dir() {
            return Err(format!("working_dir: {} does not exist on this node", dir.display()));
        }
        let program = resolve(name, env.get("PATH").map_or("", String::as_str), &dir)?;
        let mut command = Command::new(program);
        command.arg0(name).args(&spec.command[1..]).env_clear().envs(env).current_dir(&dir);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(self.group.unwrap_or(0));
        end_with_shim(&mut command);
        let mut child = command.spawn().map_err(|error| cannot_start(name, &error))?;
        self.note(&child, local);
        let failed = |error: io::Error| format!("logs: {error}");
        let [stdout, stderr] = logs;
        let out = child.stdout.take().expect("piped");
        let err = child.stderr.take().expect("piped");
        pipes.push(Pipe::new(OwnedFd::from(out), stdout).map_err(failed)?);
        pipes.push(Pipe::new(OwnedFd::from(err), stderr).map_err(failed)?);
        Ok(())
    }

    fn note(&mut self, child: &Child, local: usize) {
        let pid = i32::try_from(child.id()).expect("pids fit");
        self.group.get_or_insert(pid);
        self.mains.insert(pid, local);
        self.launched.push(process::identify(pid));
    }

    /// The first processes, as they were launched.
    pub(super) fn launched(&self) -> &[ProcessId] {
        &self.launched
    }

    /// How many of the first processes live.
    pub(super) fn mains(&self) -> usize {
        self.mains.len()
    }

    /// What ended of the first processes, and whether anything is left at all:
    /// we are a subreaper, so while a descendant lives we have a child.
    pub(super) fn reap(&mut self) -> (Vec<Exit>, bool) {
        let mut exits = Vec::new();
        loop {
            let (pid, code, signal) = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code, None),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    (pid, 128 + signal as i32, Some(signal))
                }
                Ok(WaitStatus::StillAlive) => return (exits, true),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(_) => return (exits, false), // ECHILD
            };
            if let Some(local) = self.mains.remove(&pid.as_raw()) {
                exits.push(Exit { local, code, signal });
            }
        }
    }

    /// SIGTERM to the task's process group.
    pub(super) fn terminate_group(&self) {
        self.signal_group(Signal::SIGTERM);
    }

    /// SIGTERM to everything, wherever it forked itself to.
    pub(super) fn terminate_all(&self) {
        for pid in below() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }

    /// SIGKILL to everything. To be called again until nothing is left: what
    /// forks while we look is only seen the next time. Returns whether
    /// something was there.
    pub(super) fn kill_all(&self) -> bool {
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill();
        }
        self.signal_group(Signal::SIGKILL);
        let left = below();
        left.iter().copied().for_each(process::kill_now);
        !left.is_empty()
    }

    /// The group's number may belong to a stranger once its last member is
    /// gone, so a member must live.
    fn signal_group(&self, signal: Signal) {
        let Some(group) = self.group else { return };
        if below().into_iter().any(|pid| process::group(pid) == Some(group)) {
            let _ = killpg(Pid::from_raw(group), signal);
        }
    }

    /// What the processes wrote last, once none is left to write more.
    pub(super) fn drain_logs(&mut self) {
        if let Some(pump) = self.pump.take() {
            pump.finish(DRAIN_LIMIT);
        }
    }

    /// Once it is empty.
    pub(super) fn remove_cgroup(&mut self) {
        if let Some(cgroup) = self.cgroup.take() {
            cgroup.remove();
        }
    }
}

fn open_logs(spec: &Spec, local: usize) -> io::Result<Logs> {
    let open = |stream: &str| {
        let name = match spec.processes.len() {
            1 => format!("{stream}.log"),
            _ => format!("{stream}.{local}.log"),
        };
        LogFile::open(Path::new(&name), spec.log_max_bytes, spec.log_keep)
    };
    Ok([open("stdout")?, open("stderr")?])
}

/// The kernel kills the process with the shim, even where the guard died with
/// it. Its children do not inherit that, and a setuid program sheds it: the
/// guard, or the next agent, finds those.
fn end_with_shim(command: &mut Command) {
    let shim = unistd::getpid();
    let bind = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        if unistd::getppid() != shim {
            return Err(Errno::ESRCH.into()); // It died before the kernel knew.
        }
        // The shim reads its signals from a descriptor; programs expect to get theirs.
        SigSet::empty().thread_set_mask()?;
        Ok(())
    };
    #[expect(unsafe_code, reason = "three system calls, between fork and exec")]
    unsafe {
        command.pre_exec(bind);
    }
}

fn below() -> Vec<i32> {
    process::descendants(i32::try_from(std::process::id()).expect("pids fit"))
}

/// The program that `name` means, looked up as a shell would in the task's own
/// PATH. Done here, so that the error can name what is missing.
fn resolve(name: &str, path: &str, dir: &Path) -> Result<PathBuf, String> {
    if name.contains('/') {
        let program = dir.join(name);
        return match program.is_file() {
            true => Ok(program),
            false => Err(format!("command: {} does not exist on this node", program.display())),
        };
    }
    let candidates = path.split(':').map(|folder| dir.join(folder).join(name));
    candidates
        .into_iter()
        .find(|program| executable(program))
        .ok_or_else(|| format!("command: {name} not found on this node; PATH is {path:?}"))
}

fn executable(program: &Path) -> bool {
    program.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

fn cannot_start(name: &str, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) if code == Errno::ENOEXEC as i32 => {
            format!("command: {name} is no program; a script needs a #! line")
        }
        Some(code) if code == Errno::EACCES as i32 => {
            format!("command: {name} may not be executed; chmod +x it")
        }
        Some(code) if code == Errno::E2BIG as i32 => {
            format!("command: arguments and environment of {name} are too long")
        }
        _ => format!("command: {name} could not be started: {error}"),
    }
}
