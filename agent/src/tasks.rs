//! Tasks as folders and shims: launch, connect, adopt, clean up.
//!
//! Owns `tasks/` in the agent's folder. Never decides what runs: `core` does.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::DirBuilderExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    sync::mpsc,
};

use crate::{
    clock,
    core::{LAUNCH_FAILED, Phase, Task, TaskKey},
    process,
    spec::{self, OwnerKind, OwnerSpec, ShimPhase, Spec, Status, StopLine},
    wire,
};

/// Exit code of a task whose shim died under it, or whose machine did.
const KILLED: i32 = 137;
/// Finished tasks whose logs are kept.
const FINISHED_MAX: usize = 200;
/// Bytes all finished tasks together may take.
const FINISHED_BYTES_MAX: u64 = 1 << 30;
/// Patience with processes that do not die of SIGKILL, before it is tried anew.
const ORPHAN_LIMIT: Duration = Duration::from_secs(10);
/// Patience with the guard of a dead shim.
const GUARD_LIMIT: Duration = Duration::from_secs(5);
/// A shim that has not said a word after this is given up.
const START_LIMIT: Duration = Duration::from_secs(60);
/// A shim that has not ended its task so long after the moment of SIGKILL is
/// stopped or stuck: the agent does it.
const OVERDUE_MS: u64 = 2000;
/// Shims are looked after this often.
const LOOK: Duration = Duration::from_millis(250);
/// Between failed launches: the next one is soon sent to the same node.
const PAUSE_MIN_MS: u64 = 100;
const PAUSE_MAX_MS: u64 = 10_000;

const SHIM_DIED: &str = "its shim died";

/// What happened to a task.
pub(crate) type News = mpsc::UnboundedSender<(TaskKey, Phase)>;
/// Orders to its shim.
pub(crate) type Stops = mpsc::UnboundedSender<StopLine>;

/// Launches in a row that failed by this node's fault.
#[derive(Debug, Clone, Default)]
pub(crate) struct Failures(Arc<AtomicU32>);

impl Failures {
    /// A task is up.
    pub(crate) fn forget(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Tells of one more: no failure of the job, which is queued again and may
    /// come back at once, so with a pause that grows.
    pub(crate) fn tell(&self, key: TaskKey, message: String, news: News) {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        let pause_ms = match before {
            0 => 0,
            before => (PAUSE_MIN_MS << before.min(16)).min(PAUSE_MAX_MS),
        };
        tracing::warn!(?key, %message, "a launch failed");
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            let _ = news.send((key, Phase::Lost { message }));
        });
    }
}

/// Starts the task in `dir`, which [`new_dir`] made, and follows it.
pub(crate) fn launch(
    shim: PathBuf,
    dir: PathBuf,
    spec: Spec,
    failures: Failures,
    news: News,
) -> Stops {
    let (stops, orders) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let key = wire::key_of(&spec);
        let started = {
            let dir = dir.clone();
            tokio::task::spawn_blocking(move || start_shim(&shim, &dir, &spec)).await
        };
        match started.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(stream) => follow(key, dir, stream, orders, news, START_LIMIT).await,
            Err(error) => {
                let message = format!("its shim could not be started: {error}");
                record_end(&dir, LAUNCH_FAILED, &message, true);
                failures.tell(key, message, news);
            }
        }
    });
    stops
}

/// A fresh folder, `j17-a1-r0` or `f3-i12-r0`, with a number after it where a
/// finished task left one of that name.
pub(crate) fn new_dir(tasks: &Path, owner: &OwnerSpec, rank: u32) -> io::Result<PathBuf> {
    let name = dir_name(owner, rank);
    for again in 1..10_000 {
        let dir = match again {
            1 => tasks.join(&name),
            _ => tasks.join(format!("{name}.{again}")),
        };
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| dir),
        }
    }
    Err(io::Error::other(format!("{name}: too many folders of that name in {}", tasks.display())))
}

/// Where logs of a task are looked for; a number may follow.
pub(crate) fn dir_name(owner: &OwnerSpec, rank: u32) -> String {
    match owner.kind {
        OwnerKind::Job => format!("j{}-a{}-r{rank}", owner.id, owner.part),
        OwnerKind::Filler => format!("f{}-i{}-r{rank}", owner.id, owner.part),
    }
}

/// Binds the task's socket, connects to it and hands it to a new shim as its
/// standard input: no waiting until the shim listens.
fn start_shim(shim: &Path, dir: &Path, spec: &Spec) -> io::Result<UnixStream> {
    spec::write(&dir.join(spec::SPEC_FILE), spec)?;
    let listener = at_socket(dir, UnixListener::bind)?;
    let stream = at_socket(dir, UnixStream::connect)?;
    let mut command = tokio::process::Command::new(shim);
    command.arg("shim").arg(dir).env_clear().env("ROWEN_TASK_DIR", dir);
    command.stdin(Stdio::from(OwnedFd::from(listener))).stdout(Stdio::null());
    // No group of its own: the leader of a group may not start the session that
    // the shim makes for itself.
    let mut child = command.stderr(Stdio::null()).spawn()?;
    tokio::spawn(async move { child.wait().await });
    Ok(stream)
}

/// A socket path may be 107 bytes long; a task folder may be longer. Through
/// the descriptor of the folder it is short.
fn at_socket<T>(dir: &Path, open: impl Fn(PathBuf) -> io::Result<T>) -> io::Result<T> {
    let folder = File::open(dir)?;
    open(PathBuf::from(format!("/proc/self/fd/{}/{}", folder.as_raw_fd(), spec::SOCKET)))
}

/// Passes on what the shim says and what it is told, until the task is gone.
/// What a shim does not do in time, the agent does.
async fn follow(
    key: TaskKey,
    dir: PathBuf,
    stream: UnixStream,
    mut orders: mpsc::UnboundedReceiver<StopLine>,
    news: News,
    start_limit: Duration,
) {
    let stream =
        stream.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(stream));
    let mut given_up = None;
    if let Ok(stream) = stream {
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader).lines();
        let mut late = Late { begun: Some(Instant::now()), start_limit, kill_at_ms: u64::MAX };
        while given_up.is_none() {
            tokio::select! {
                line = lines.next_line() => {
                    let Ok(Some(line)) = line else { break };
                    let Ok(status) = serde_json::from_str::<Status>(&line) else { break };
                    late.begun = None;
                    let phase = phase(&status);
                    let exited = status.phase == ShimPhase::Exited;
                    if news.send((key, phase)).is_err() || exited {
                        return;
                    }
                }
                order = orders.recv() => {
                    let Some(order) = order else { return }; // The agent ended.
                    late.kill_at_ms = late.kill_at_ms.min(order.kill_at_ms);
                    let mut line = serde_json::to_vec(&order).expect("plain fields");
                    line.push(b'\n');
                    if writer.write_all(&line).await.is_err() {
                        break;
                    }
                }
                () = tokio::time::sleep(LOOK) => given_up = late.reason(clock::boottime_ms()),
            }
        }
    }
    // The shim is gone, or as good as. Either it was done, or it left the task.
    let why = given_up.clone().unwrap_or_else(|| SHIM_DIED.to_string());
    let message = why.clone();
    let found = tokio::task::spawn_blocking(move || bury(&dir, &message, given_up.is_some())).await;
    let _ = news.send((key, found.unwrap_or(Phase::Lost { message: why })));
}

/// What is expected of a shim, and until when.
struct Late {
    /// Nothing was heard since.
    begun: Option<Instant>,
    start_limit: Duration,
    /// On CLOCK_BOOTTIME.
    kill_at_ms: u64,
}

impl Late {
    fn reason(&self, now: u64) -> Option<String> {
        if self.begun.is_some_and(|begun| begun.elapsed() >= self.start_limit) {
            return Some(format!("it did not start within {} s", self.start_limit.as_secs()));
        }
        (now >= self.kill_at_ms.saturating_add(OVERDUE_MS))
            .then(|| "its shim did not end it in time; the agent did".to_string())
    }
}

fn phase(status: &Status) -> Phase {
    match status.phase {
        ShimPhase::Running => Phase::Running,
        ShimPhase::Exited if status.lost => Phase::Lost { message: status.message.clone() },
        ShimPhase::Exited => {
            Phase::Exited { code: status.exit_code, message: status.message.clone() }
        }
    }
}

/// The end of a task whose shim is gone, or (`by_force`) has to go. Returns when
/// no process of it lives.
fn bury(dir: &Path, why: &str, by_force: bool) -> Phase {
    if !by_force {
        if let Some(exited) = exit_of(dir) {
            return exited;
        }
        process::wait_for_guard(dir, GUARD_LIMIT);
    }
    while !process::kill_orphans(dir, ORPHAN_LIMIT) {
        tracing::warn!(task = %dir.display(), "processes survive SIGKILL; their GPUs stay used");
    }
    process::remove_cgroup(dir);
    if let Some(exited) = exit_of(dir) {
        return exited; // The shim was done just then.
    }
    record_end(dir, KILLED, why, true);
    Phase::Lost { message: why.to_string() }
}

/// How the task ended, if it did.
pub(crate) fn exit_of(dir: &Path) -> Option<Phase> {
    let status: Status = spec::read(&dir.join(spec::STATUS_FILE)).ok()?;
    (status.phase == ShimPhase::Exited).then(|| phase(&status))
}

/// Writes down an end that no shim could.
fn record_end(dir: &Path, exit_code: i32, message: &str, lost: bool) {
    let nobody = spec::ProcessId { pid: 0, start_ticks: 0 };
    let status = Status {
        phase: ShimPhase::Exited,
        shim: nobody,
        processes: Vec::new(),
        exit_code,
        message: message.to_string(),
        lost,
        guard: None,
    };
    if let Err(error) = spec::write(&dir.join(spec::STATUS_FILE), &status) {
        tracing::warn!(task = %dir.display(), %error, "cannot write down how it ended");
    }
}

/// A task found at the agent's start.
pub(crate) struct Found {
    pub(crate) dir: PathBuf,
    pub(crate) spec: Spec,
    pub(crate) task: Task,
    /// To its shim, if it lives.
    stream: Option<UnixStream>,
    /// The leader has its exit.
    pub(crate) acked: bool,
}

/// Looks through `tasks`: what runs is connected to, what lost its shim is
/// killed before anything else happens, what belongs to an earlier boot of the
/// machine has ended with it. `same_boot`: the agent ran in this boot before.
pub(crate) fn find(tasks: &Path, boot_id: &str, same_boot: bool) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(tasks)? {
        let dir = entry?.path();
        let spec = match spec::read::<Spec>(&dir.join(spec::SPEC_FILE)) {
            Ok(spec) => spec,
            Err(error) if error.kind() == io::ErrorKind::NotFound || !same_boot => {
                // The agent died while it made the folder: nothing was launched. Or a power cut
                // ruined a file that is never synced: nothing runs any more.
                let _ = fs::remove_dir_all(&dir);
                continue;
            }
            // Its GPUs may be in use: to go on without it could start a second owner beside it.
            Err(error) => {
                return Err(io::Error::new(
                    error.kind(),
                    format!("{} cannot be read ({error}); mend or remove it", dir.display()),
                ));
            }
        };
        let (phase, stream) = find_one(&dir, &spec, boot_id);
        let task = Task {
            gpus: spec.gpus.iter().copied().map(crate::core::Ordinal).collect(),
            notice_ms: spec.notice_ms,
            phase,
            stopping: None,
            port: spec.port,
        };
        let acked = dir.join(spec::ACKED_FILE).exists();
        found.push(Found { dir, spec, task, stream, acked });
    }
    kill_strays(tasks, &found);
    Ok(found)
}

/// Nothing may live here but what was found alive: a daemon whose shim, guard
/// and agent were all killed at once, a task whose folder somebody removed.
fn kill_strays(tasks: &Path, found: &[Found]) {
    let alive = found.iter().filter(|found| found.stream.is_some());
    let alive: Vec<&Path> = alive.map(|found| found.dir.as_path()).collect();
    let mut told = Instant::now();
    let mut ending = process::Ending::default();
    loop {
        let left = ending.kill(process::strays(tasks, &alive));
        if left.is_empty() {
            return;
        }
        if told.elapsed() >= ORPHAN_LIMIT {
            told = Instant::now();
            tracing::warn!(?left, "processes of earlier tasks survive SIGKILL; not starting");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn find_one(dir: &Path, spec: &Spec, boot_id: &str) -> (Phase, Option<UnixStream>) {
    if let Some(exited) = exit_of(dir) {
        return (exited, None);
    }
    if spec.boot_id != boot_id {
        let message = "the machine restarted".to_string();
        record_end(dir, KILLED, &message, true);
        return (Phase::Lost { message }, None);
    }
    match at_socket(dir, UnixStream::connect) {
        Ok(stream) if dir.join(spec::STATUS_FILE).exists() => (Phase::Running, Some(stream)),
        Ok(stream) => (Phase::Starting, Some(stream)),
        Err(_) => (bury(dir, SHIM_DIED, false), None),
    }
}

/// Follows a found task that lives.
pub(crate) fn adopt(found: &mut Found, news: News) -> Option<Stops> {
    let stream = found.stream.take()?;
    let (stops, orders) = mpsc::unbounded_channel();
    let (key, dir) = (wire::key_of(&found.spec), found.dir.clone());
    tokio::spawn(follow(key, dir, stream, orders, news, START_LIMIT));
    Some(stops)
}

/// Deletes the oldest finished tasks past the bounds. `keep` holds folders of
/// which the leader does not know the exit yet.
pub(crate) fn clean_up(tasks: &Path, keep: &[PathBuf]) {
    let mut finished: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(tasks).into_iter().flatten().flatten() {
        let dir = entry.path();
        let ended = dir.join(spec::STATUS_FILE).metadata().and_then(|file| file.modified());
        if let (Ok(ended), Some(_), false) = (ended, exit_of(&dir), keep.contains(&dir)) {
            finished.push((ended, dir));
        }
    }
    finished.sort();
    let mut bytes = 0;
    for (position, (_, dir)) in finished.iter().rev().enumerate() {
        bytes += size(dir, 8);
        if (position >= FINISHED_MAX || bytes > FINISHED_BYTES_MAX) && position > 0 {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

/// Bytes of a folder, `depth` levels down; links are not followed.
fn size(dir: &Path, depth: u32) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(file) if file.is_dir() && depth > 0 => size(&entry.path(), depth - 1),
        Ok(file) => file.len(),
        Err(_) => 0,
    };
    entries.map(of).sum()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn only_the_newest_finished_tasks_are_kept() {
        let tasks = TempDir::new().unwrap();
        let owner = OwnerSpec { kind: OwnerKind::Job, id: 17, name: String::new(), part: 1 };
        let mut dirs = Vec::new();
        for number in 0..FINISHED_MAX + 5 {
            let dir = new_dir(tasks.path(), &owner, 0).unwrap();
            record_end(&dir, 0, "", false);
            // Files made within one tick of the clock would have one time.
            let age = Duration::from_secs(1000 - number as u64);
            let status = File::options().write(true).open(dir.join(spec::STATUS_FILE)).unwrap();
            status.set_modified(SystemTime::now() - age).unwrap();
            dirs.push(dir);
        }
        let running = new_dir(tasks.path(), &owner, 0).unwrap();
        clean_up(tasks.path(), &dirs[..1]);
        let kept = |dir: &&PathBuf| dir.exists();
        assert_eq!(dirs.iter().filter(kept).count(), FINISHED_MAX + 1);
        assert!(dirs[0].exists() && !dirs[1].exists() && !dirs[4].exists() && dirs[5].exists());
        assert!(running.exists());
        assert!(running.ends_with(format!("j17-a1-r0.{}", FINISHED_MAX + 6)));
    }

    #[test]
    fn a_folder_that_cannot_be_read_may_hold_a_running_task() {
        let tasks = TempDir::new().unwrap();
        let owner = OwnerSpec { kind: OwnerKind::Job, id: 17, name: String::new(), part: 1 };
        let empty = new_dir(tasks.path(), &owner, 0).unwrap();
        assert!(find(tasks.path(), "boot", true).unwrap().is_empty());
        assert!(!empty.exists(), "nothing was launched in it");
        let ruined = new_dir(tasks.path(), &owner, 1).unwrap();
        fs::write(ruined.join(spec::SPEC_FILE), "").unwrap();
        let error = find(tasks.path(), "boot", true).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("j17-a1-r1") && ruined.exists(), "{error}");
        assert!(find(tasks.path(), "boot", false).unwrap().is_empty(), "after a power cut");
        assert!(!ruined.exists());
    }

    /// The shim is a program that does nothing, for ever.
    #[tokio::test]
    async fn a_shim_that_does_not_start_is_given_up() {
        let dir = TempDir::new().unwrap();
        let program = dir.path().join("shim");
        fs::write(&program, "#!/bin/sh\nexec sleep 300\n").unwrap();
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let owner = OwnerSpec { kind: OwnerKind::Job, id: 17, name: String::new(), part: 1 };
        let task = new_dir(dir.path(), &owner, 0).unwrap();
        let spec = Spec::sample(owner);
        let stream = start_shim(&program, &task, &spec).unwrap();
        let (news, mut told) = mpsc::unbounded_channel();
        let (_stops, orders) = mpsc::unbounded_channel();
        let limit = Duration::from_millis(300);
        follow(wire::key_of(&spec), task.clone(), stream, orders, news, limit).await;
        let (_, phase) = told.recv().await.unwrap();
        let expect = "it did not start within 0 s".to_string();
        assert_eq!(phase, Phase::Lost { message: expect.clone() });
        assert_eq!(exit_of(&task), Some(Phase::Lost { message: expect }));
        assert!(process::strays(dir.path(), &[]).is_empty(), "it is gone");
    }
}
