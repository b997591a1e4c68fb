//! What the agent and a shim write for each other, all of it JSON.
//!
//! Owns the files of a task folder (`spec.json`, `status.json`) and the lines
//! on its socket. Never the wire to the server: that is protobuf.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The order to a shim: written once, before the shim starts.
pub const SPEC_FILE: &str = "spec.json";
/// The shim's state, replaced whole at every change.
pub const STATUS_FILE: &str = "status.json";
/// Where the shim listens.
pub const SOCKET: &str = "sock";
/// Where a notice appears, ROWEN_NOTICE_FILE.
pub const NOTICE_FILE: &str = "notice.json";
/// Present once the leader has the exit in its log.
pub const ACKED_FILE: &str = "acked";

/// Whose task it is; log readers ask by these words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerSpec {
    /// `job` or `filler`.
    pub kind: OwnerKind,
    /// Of the job or filler.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Attempt of a job, instance of a filler.
    pub part: u64,
}

/// What owns a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnerKind {
    /// A gang attempt.
    Job,
    /// An instance of a filler.
    Filler,
}

/// How to find out that an instance is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeSpec {
    /// HTTP path to get; empty: connecting is enough.
    pub path: String,
    /// Port to connect to; 0: the instance's own.
    pub port: u16,
    /// Between two tries.
    pub period_ms: u64,
    /// Command to run instead of connecting.
    pub exec: Vec<String>,
}

/// One task, as the shim has to run it and the agent to find it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Of the machine that may run it.
    pub boot_id: String,
    /// The allocation.
    pub allocation: u64,
    /// Of the worker.
    pub rank: u32,
    /// Epoch of the allocation: incarnation.
    pub incarnation: u64,
    /// Epoch of the allocation: log index.
    pub index: u64,
    /// Whose it is.
    pub owner: OwnerSpec,
    /// GPU ordinals.
    pub gpus: Vec<u32>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Where it starts; empty: the task folder.
    pub working_dir: String,
    /// The whole environment of each process, by local rank.
    pub processes: Vec<BTreeMap<String, String>>,
    /// Between SIGTERM and SIGKILL when nobody names a time.
    pub notice_ms: u64,
    /// The agent's node lease.
    pub lease_file: PathBuf,
    /// Folder of its cgroup, if it gets one.
    pub cgroup: Option<PathBuf>,
    /// Cores, 0: no limit.
    pub cpus: u32,
    /// Memory, 0: no limit.
    pub memory_mib: u64,
    /// Reserved for it to serve on, 0: none.
    pub port: u16,
    /// Readiness, for instances.
    pub probe: Option<ProbeSpec>,
    /// A log file is rotated past this size.
    pub log_max_bytes: u64,
    /// Rotated files kept of each log.
    pub log_keep: u32,
}

#[cfg(test)]
impl Spec {
    /// A task that nobody launches.
    pub(crate) fn sample(owner: OwnerSpec) -> Self {
        Spec {
            boot_id: String::new(),
            allocation: 1,
            rank: 0,
            incarnation: 1,
            index: 1,
            owner,
            gpus: Vec::new(),
            command: Vec::new(),
            working_dir: String::new(),
            processes: Vec::new(),
            notice_ms: 0,
            lease_file: PathBuf::new(),
            cgroup: None,
            cpus: 0,
            memory_mib: 0,
            port: 0,
            probe: None,
            log_max_bytes: 0,
            log_keep: 0,
        }
    }
}

/// A process, named so that a reused pid is not mistaken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its pid.
    pub pid: i32,
    /// Field 22 of /proc/PID/stat.
    pub start_ticks: u64,
}

/// How far a shim is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShimPhase {
    /// Its processes are up.
    Running,
    /// No process of the task lives.
    Exited,
}

/// A shim's state: `status.json`, and a line on its socket at each change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// How far it is.
    pub phase: ShimPhase,
    /// The shim itself.
    pub shim: ProcessId,
    /// The task's process group and first processes.
    pub processes: Vec<ProcessId>,
    /// Once exited.
    pub exit_code: i32,
    /// Why, when it was not the task's own doing.
    pub message: String,
    /// It ended through no fault of its own.
    #[serde(default)]
    pub lost: bool,
    /// The shim's guard; none in what earlier builds wrote.
    #[serde(default)]
    pub guard: Option<ProcessId>,
}

/// A line to a shim: end the task. Times on CLOCK_BOOTTIME, so that a line
/// that was delayed, or sent twice, means the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopLine {
    /// SIGTERM.
    pub term_at_ms: u64,
    /// SIGKILL.
    pub kill_at_ms: u64,
    /// For the notice file.
    pub reason: String,
}

/// What a task finds in ROWEN_NOTICE_FILE.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// Always `stop`.
    pub action: String,
    /// SIGTERM comes no earlier.
    pub not_before_unix_ms: u64,
    /// SIGKILL comes then.
    pub deadline_unix_ms: u64,
    /// Why.
    pub reason: String,
}

/// Reads a JSON file of a task folder.
pub fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    serde_json::from_slice(&fs::read(path)?).map_err(io::Error::from)
}

/// Replaces a JSON file whole: readers see the old one or the new one. Not
/// synced: it need not survive a power cut, after which nothing runs anyway.
pub fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(value)?;
    bytes.push(b'\n');
    let temporary = path.with_extension("tmp");
    private_file(&temporary)?.write_all(&bytes)?;
    fs::rename(&temporary, path)
}

/// A fresh file that only its owner reads: environments hold secrets.
pub(crate) fn private_file(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}
