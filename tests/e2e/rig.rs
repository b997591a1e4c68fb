//! What the tests share: running `rowen`, a cluster under `rowen dev`, and a look at /proc.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// The binary under test.
pub(crate) const ROWEN: &str = env!("CARGO_BIN_EXE_rowen");

/// One test at a time.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A cluster under `rowen dev`.
pub(crate) struct Dev {
    child: Child,
    pub(crate) data: PathBuf,
    pub(crate) addr: String,
    /// As `--ready-file` has it.
    pub(crate) ready: Value,
}

impl Dev {
    /// Starts one on `data`, or resumes it, and waits until every node is up.
    pub(crate) fn start(data: &Path, nodes: u32) -> Dev {
        let ready_file = data.with_extension("ready");
        let _ = std::fs::remove_file(&ready_file);
        let log = std::fs::File::create(data.with_extension("log")).unwrap();
        let mut child = Command::new(ROWEN)
            .args(["dev", "--nodes", &nodes.to_string(), "--data"])
            .arg(data)
            .arg("--ready-file")
            .arg(&ready_file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let ready = wait("rowen dev to be ready", 60, || {
            if let Some(status) = child.try_wait().unwrap() {
                let said = std::fs::read_to_string(data.with_extension("log")).unwrap();
                panic!("rowen dev ended ({status}): {said}");
            }
            std::fs::read(&ready_file).ok()
        });
        let ready: Value = serde_json::from_slice(&ready).unwrap();
        let addr = ready["addr"].as_str().unwrap().to_string();
        Dev { child, data: data.to_path_buf(), addr, ready }
    }

    /// Runs a verb against it.
    pub(crate) fn rowen(&self, args: &[&str]) -> Output {
        Command::new(ROWEN).args(args).env("ROWEN_ADDR", &self.addr).output().unwrap()
    }

    /// The same, of a verb that must work, as JSON.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let output = self.rowen(&[args, &["-o", "json"]].concat());
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Submits and returns the job's id; `code` is what `submit` should exit with. That a job waits
    /// (3) it only says where the planner was quick.
    pub(crate) fn submit(&self, code: i32, args: &[&str]) -> String {
        let output = self.rowen(&[&["submit", "--parsable"], args].concat());
        let said = output.status.code();
        let is_late = code == 3 && said == Some(0);
        assert!(said == Some(code) || is_late, "{args:?}: {said:?} {}", text(&output.stderr));
        let id = text(&output.stdout);
        assert!(id.parse::<u64>().is_ok(), "no job id: {id:?}");
        id
    }

    pub(crate) fn wait_state(&self, job: &str, state: &str) -> Value {
        let mut last = Value::Null;
        let found = wait_for(30, || {
            last = self.json(&["job", "show", job]);
            (last["state"] == state).then(|| last.clone())
        });
        found.unwrap_or_else(|| panic!("job {job} is never {state}: {last:#}"))
    }

    /// Ctrl-C; every process must be gone.
    pub(crate) fn stop(mut self) {
        self.end(Signal::SIGINT);
        assert!(self.child.wait().unwrap().success());
        assert_eq!(processes_of(&self.data), Vec::<String>::new());
    }

    /// SIGKILL: it cannot clean up, so its guard must.
    pub(crate) fn kill(mut self) {
        self.end(Signal::SIGKILL);
        wait("the guard to end every process", 15, || {
            processes_of(&self.data).is_empty().then_some(())
        });
    }

    fn end(&mut self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
        wait("rowen dev to end", 20, || self.child.try_wait().unwrap());
    }
}

impl Drop for Dev {
    // A failed test must not leave a cluster behind.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}

/// Command lines of the live processes that work under `dir`: by argument, or by environment.
pub(crate) fn processes_of(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        let read = |file: &str| {
            text(&std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default())
                .replace('\0', " ")
        };
        let (arguments, environment) = (read("cmdline"), read("environ"));
        let tasks = format!("ROWEN_TASK_DIR={dir}");
        let mine = pid == std::process::id();
        if !mine && (arguments.contains(dir) || environment.contains(&tasks)) {
            found.push(format!("{pid} {arguments}"));
        }
    }
    found
}

/// Whether the process lives (a zombie does not).
pub(crate) fn lives(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|arguments| !arguments.is_empty())
}

/// How often as long a busy machine may take. Nothing is slower by it unless it has failed.
pub(crate) const PATIENCE: u64 = 5;

/// `seconds` are those of an idle machine.
pub(crate) fn wait<T>(what: &str, seconds: u64, look: impl FnMut() -> Option<T>) -> T {
    let patience = seconds * PATIENCE;
    wait_for(seconds, look).unwrap_or_else(|| panic!("waited {patience} s in vain for {what}"))
}

fn wait_for<T>(seconds: u64, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + Duration::from_secs(seconds * PATIENCE);
    while Instant::now() < deadline {
        if let Some(found) = look() {
            return Some(found);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    None
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_string()
}
