//! cgroup v2 of a task: limits, and killing it whole.
//!
//! Owns one cgroup a task where the agent may write, and nothing elsewhere:
//! every step is best effort, and process groups carry the rest.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::unistd::{AccessFlags, access};

use crate::spec::Spec;

/// Microseconds of one accounting period of `cpu.max`.
const CPU_PERIOD_US: u64 = 100_000;

/// The cgroup of one task.
pub(super) struct Cgroup {
    path: PathBuf,
    /// Where the shim itself belongs.
    home: PathBuf,
}

impl Cgroup {
    /// Creates it and moves the shim in, so that what it launches is in it from
    /// its first instruction on. `None` where that is not allowed.
    pub(super) fn enter(path: &Path, spec: &Spec) -> Option<Self> {
        let home = own()?;
        fs::create_dir_all(path).ok()?;
        if let Some(parent) = path.parent() {
            let _ = enable(parent);
        }
        if spec.cpus > 0 {
            let quota_us = u64::from(spec.cpus) * CPU_PERIOD_US;
            let _ = fs::write(path.join("cpu.max"), format!("{quota_us} {CPU_PERIOD_US}"));
        }
        if spec.memory_mib > 0 {
            let bytes = spec.memory_mib << 20;
            let _ = fs::write(path.join("memory.max"), bytes.to_string());
        }
        fs::write(path.join("cgroup.procs"), "0").ok()?;
        Some(Cgroup { path: path.to_path_buf(), home })
    }

    /// The shim goes home: it must survive `kill`.
    pub(super) fn leave(&self) {
        let _ = fs::write(self.home.join("cgroup.procs"), "0");
    }

    /// SIGKILL to all of it at once. Not while the shim is still inside.
    pub(super) fn kill(&self) {
        if own().as_deref() != Some(self.path.as_path()) {
            let _ = fs::write(self.path.join("cgroup.kill"), "1");
        }
    }

    /// Once it is empty.
    pub(super) fn remove(self) {
        let _ = fs::remove_dir(&self.path);
    }
}

/// The cgroup the calling process is in.
fn own() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (target, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| target.to_string())
    })?;
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(PathBuf::from(mount).join(path))
}

/// Where the agent of the folder `dir` puts the cgroups of its tasks; `None`
/// where it may not. Named after the folder itself, not after the node: two
/// clusters on one machine would else kill each other's tasks.
/// Controllers are switched on where the kernel lets it: processes may not sit
/// beside them, so an agent that is alone in its group moves into a leaf.
pub(crate) fn task_parent(dir: &Path) -> Option<PathBuf> {
    let folder = fs::metadata(dir).ok()?;
    let home = own()?;
    let home = match home.file_name() {
        Some(name) if name == "rowen-agent" => home.parent()?.to_path_buf(),
        _ => home,
    };
    let parent = home.join(format!("rowen-tasks-{:x}-{:x}", folder.dev(), folder.ino()));
    // Made by the first task: an agent without tasks leaves nothing behind.
    access(&home, AccessFlags::W_OK).ok()?;
    if enable(&home).is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy) {
        let leaf = home.join("rowen-agent");
        let _ = fs::create_dir_all(&leaf)
            .and_then(|()| fs::write(leaf.join("cgroup.procs"), "0"))
            .and_then(|()| enable(&home));
    }
    Some(parent)
}

fn enable(path: &Path) -> io::Result<()> {
    fs::write(path.join("cgroup.subtree_control"), "+cpu +memory")
}
