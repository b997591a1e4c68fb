//! One shim with its task in a folder of its own, for the tests of what it does.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};
use rowen_agent::spec::{
    self, OwnerKind, OwnerSpec, ProcessId, SOCKET, SPEC_FILE, STATUS_FILE, ShimPhase, Spec, Status,
    StopLine,
};
use tempfile::TempDir;

const SHIM: &str = env!("CARGO_BIN_EXE_rowen-agent-shim");

pub(crate) struct Task {
    folder: TempDir,
    pub(crate) child: Child,
    pub(crate) started: Instant,
}

/// A task of one process a script, with a node lease that lasts `lease_ms`.
pub(crate) fn start(script: &str, lease_ms: u64, change: impl FnOnce(&mut Spec)) -> Task {
    let folder = TempDir::new().unwrap();
    let path = std::env::var("PATH").unwrap();
    let mut spec = Spec {
        boot_id: String::new(),
        allocation: 1,
        rank: 0,
        incarnation: 1,
        index: 1,
        owner: OwnerSpec { kind: OwnerKind::Job, id: 1, name: String::new(), part: 1 },
        gpus: Vec::new(),
        command: ["sh", "-c", script].map(str::to_string).to_vec(),
        working_dir: String::new(),
        processes: vec![BTreeMap::from([("PATH".to_string(), path)])],
        notice_ms: 300,
        lease_file: folder.path().join("lease"),
        cgroup: None,
        cpus: 0,
        memory_mib: 0,
        port: 0,
        probe: None,
        log_max_bytes: 1 << 20,
        log_keep: 2,
    };
    change(&mut spec);
    for (local, env) in spec.processes.iter_mut().enumerate() {
        env.insert("LOCAL_RANK".to_string(), local.to_string());
    }
    renew(folder.path(), lease_ms);
    spec::write(&folder.path().join(SPEC_FILE), &spec).unwrap();
    let mut command = Command::new(SHIM);
    command.arg("shim").arg(folder.path()).stdin(Stdio::null());
    Task { child: command.spawn().unwrap(), folder, started: Instant::now() }
}

pub(crate) fn renew(dir: &Path, lease_ms: u64) {
    let expires_ms = boottime_ms() + lease_ms;
    let bytes = [expires_ms.to_le_bytes(), (!expires_ms).to_le_bytes()].concat();
    fs::write(dir.join("lease"), bytes).unwrap();
}

pub(crate) fn boottime_ms() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap();
    (time.tv_sec() * 1000 + time.tv_nsec() / 1_000_000).try_into().unwrap()
}

/// What a busy machine may take for what is at once elsewhere.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const LONG_MS: u64 = 60_000;

impl Task {
    pub(crate) fn dir(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn status(&self) -> Status {
        spec::read(&self.dir().join(STATUS_FILE)).unwrap()
    }

    pub(crate) fn renew(&self, lease_ms: u64) {
        renew(self.dir(), lease_ms);
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir().join(name)).unwrap_or_default()
    }

    /// Waits until a file holds `text`.
    pub(crate) fn says(&self, name: &str, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.read(name).contains(text) {
            assert!(Instant::now() < deadline, "{name} never said {text:?}: {:?}", self.read(name));
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn stop(&self, withdraw_ms: u64, grace_ms: u64) {
        let term_at_ms = boottime_ms() + withdraw_ms;
        let kill_at_ms = term_at_ms + grace_ms;
        let line = StopLine { term_at_ms, kill_at_ms, reason: "a test".to_string() };
        let mut stream = self.connect();
        writeln!(stream, "{}", serde_json::to_string(&line).unwrap()).unwrap();
        // Read one line back, or the shim might see us gone before the order.
        BufReader::new(stream).read_line(&mut String::new()).unwrap();
    }

    pub(crate) fn connect(&self) -> UnixStream {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match UnixStream::connect(self.dir().join(SOCKET)) {
                Ok(stream) => return stream,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for the end: status, and how long the task took.
    pub(crate) fn end(&mut self) -> (Status, Duration) {
        assert!(self.child.wait().unwrap().success());
        let status: Status = spec::read(&self.dir().join(STATUS_FILE)).unwrap();
        assert_eq!(status.phase, ShimPhase::Exited);
        (status, self.started.elapsed())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

pub(crate) fn alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

pub(crate) fn send(process: ProcessId, signal: Signal) {
    kill(Pid::from_raw(process.pid), signal).unwrap();
}
