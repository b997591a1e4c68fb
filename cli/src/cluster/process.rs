//! One child process: its own process group, its output to a file, its end.
//!
//! Never looks at what the process itself starts: see `sweep`.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A child with a name for people and a log file.
pub(super) struct Process {
    name: String,
    log: PathBuf,
    child: Child,
    started: Instant,
}

/// One that ends earlier than this will end again.
const STABLE: Duration = Duration::from_secs(2);

impl Process {
    /// Starts `exe` in a process group of its own, so that Ctrl-C at the terminal reaches only
    /// us, who then end things in order.
    pub(super) fn spawn(
        name: &str,
        exe: &Path,
        args: &[impl AsRef<OsStr>],
        log: &Path,
    ) -> Result<Process> {
        let file = OpenOptions::new().create(true).append(true).open(log)?;
        let child = Command::new(exe)
            .args(args)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start the {name}"))?;
        let (name, log) = (name.to_string(), log.to_path_buf());
        Ok(Process { name, log, child, started: Instant::now() })
    }

    /// Fails with the last line of its log when it has ended.
    pub(super) fn ensure_alive(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no output");
        bail!("the {} ended ({status}): {last}; see {}", self.name, self.log.display())
    }

    /// Whether it has ended after running well for a while; fails when it ended at once.
    pub(super) fn ensure_alive_or_stable(&mut self) -> Result<bool> {
        if self.started.elapsed() < STABLE {
            return self.ensure_alive().map(|()| false);
        }
        Ok(self.child.try_wait()?.is_some())
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and waits for the end.
    pub(super) fn kill(&mut self) {
        // It fails only when it has been waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, without waiting.
    pub(super) fn signal_term(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// SIGKILL, without waiting.
    pub(super) fn signal_kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let _ = kill(pid, signal);
    }

    /// SIGTERM, and SIGKILL when it is not gone after `limit`.
    pub(super) fn terminate(&mut self, limit: Duration) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal_term();
        }
        self.wait_or_kill(limit);
    }

    /// Waits for its end, and ends it after `limit`.
    pub(super) fn wait_or_kill(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() >= deadline {
                return self.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
