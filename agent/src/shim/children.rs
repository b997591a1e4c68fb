//! The processes of one task.
//!
//! Owns launching them, finding whatever they forked, signalling and reaping
//! it. Never decides when: `shim` does.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{fs::PermissionsExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        signal::{Signal, kill, killpg},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{cgroup::Cgroup, log_file::LogFile};
use crate::{
    process,
    spec::{ProcessId, Spec},
};

/// Read at most this much of one log before looking at the others.
const PUMP_BYTES: usize = 64 * 1024;

/// How one of the task's first processes ended.
pub(super) struct Exit {
    local: usize,
    /// 128 + signal when killed.
    pub(super) code: i32,
    signal: Option<Signal>,
}

impl Exit {
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

/// A pipe from a process to its log.
struct Pipe {
    reader: Box<dyn ReadFd>,
    log: LogFile,
}

trait ReadFd: Read + AsFd {}
impl<T: Read + AsFd> ReadFd for T {}

#[derive(Default)]
pub(super) struct Children {
    launched: Vec<ProcessId>,
    /// First processes that live: pid to local rank.
    mains: BTreeMap<i32, usize>,
    group: Option<i32>,
    pipes: Vec<Pipe>,
    cgroup: Option<Cgroup>,
}

impl Children {
    /// Starts one process for each environment of `spec`, in one group.
    pub(super) fn launch(&mut self, spec: &Spec) -> Result<(), String> {
        self.cgroup = spec.cgroup.as_ref().and_then(|path| Cgroup::enter(path, spec));
        let launched = (0..spec.processes.len()).try_for_each(|local| self.launch_one(spec, local));
        if let Some(cgroup) = &self.cgroup {
            cgroup.leave();
        }
        launched
    }

    fn launch_one(&mut self, spec: &Spec, local: usize) -> Result<(), String> {
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
        let child = command.spawn().map_err(|error| cannot_start(name, &error))?;
        self.adopt(child, spec, local).map_err(|error| format!("logs: {error}"))
    }

    fn adopt(&mut self, mut child: Child, spec: &Spec, local: usize) -> io::Result<()> {
        let pid = i32::try_from(child.id()).expect("pids fit");
        self.group.get_or_insert(pid);
        self.mains.insert(pid, local);
        self.launched.push(process::identify(pid));
        let log = |stream: &str| {
            let name = match spec.processes.len() {
                1 => format!("{stream}.log"),
                _ => format!("{stream}.{local}.log"),
            };
            LogFile::open(Path::new(&name), spec.log_max_bytes, spec.log_keep)
        };
        let stdout = child.stdout.take().expect("piped");
        let stderr = child.stderr.take().expect("piped");
        for fd in [stdout.as_fd(), stderr.as_fd()] {
            fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        self.pipes.push(Pipe { reader: Box::new(stdout), log: log("stdout")? });
        self.pipes.push(Pipe { reader: Box::new(stderr), log: log("stderr")? });
        Ok(())
    }

    /// The first processes, as they were launched.
    pub(super) fn launched(&self) -> &[ProcessId] {
        &self.launched
    }

    /// How many of the first processes live.
    pub(super) fn mains(&self) -> usize {
        self.mains.len()
    }

    /// To wait on.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.pipes.iter().map(|pipe| pipe.reader.as_fd())
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

    /// Moves what the processes wrote into their logs, a bit of each.
    pub(super) fn pump_logs(&mut self) {
        let mut buffer = vec![0; PUMP_BYTES];
        self.pipes.retain_mut(|pipe| match pipe.reader.read(&mut buffer) {
            Ok(0) => false,
            Ok(length) => {
                pipe.log.append(&buffer[..length]);
                true
            }
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        });
    }

    /// The rest, once no process is left to write more.
    pub(super) fn drain_logs(&mut self) {
        // Ends at the end of file of each pipe: nobody holds the other side.
        // A pipe passed to a process outside the task could stay open: bounded.
        for _ in 0..1024 {
            let before: u64 = self.pipes.iter().map(|pipe| pipe.log.written()).sum();
            self.pump_logs();
            let after: u64 = self.pipes.iter().map(|pipe| pipe.log.written()).sum();
            if self.pipes.is_empty() || before == after {
                break;
            }
        }
        self.pipes.clear();
    }

    /// Once it is empty.
    pub(super) fn remove_cgroup(&mut self) {
        if let Some(cgroup) = self.cgroup.take() {
            cgroup.remove();
        }
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
