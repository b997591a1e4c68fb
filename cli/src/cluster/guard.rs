//! A small process that outlives us by a moment and ends what we could not.
//!
//! Its standard input is a pipe that we hold open and never write to. When we are gone, however
//! (SIGKILL included), the pipe closes and it sweeps our folder.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result};

use super::sweep;

/// The first argument that makes our executable a guard.
const VERB: &str = "cluster-guard";

/// Our end of the pipe. Dropping it lets the guard look once more and end.
pub(super) struct Guard {
    child: Child,
}

impl Guard {
    pub(super) fn start(exe: &Path, data: &Path) -> Result<Guard> {
        let child = Command::new(exe)
            .arg(VERB)
            .arg(data)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start the cluster's guard")?;
        Ok(Guard { child })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// `rowen cluster-guard DIR` (hidden).
pub(crate) fn run() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(2).map(PathBuf::from) else {
        return ExitCode::from(2);
    };
    // Nothing is ever written: this returns when the other end is closed.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    match sweep::kill_all_under(&dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
