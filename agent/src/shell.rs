//! The shell around `core`: one loop that owns everything and does the IO.
//!
//! Owns the order of things: fence on disk before a launch, a report at once
//! when something changed. Never decides: every decision comes from `core`.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    future::Future,
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};
use rowen_api::v1::{self, AgentMessage, agent_message, server_message::Kind};
use tokio::{
    sync::{Notify, mpsc},
    task::AbortHandle,
    time::sleep,
};

use crate::{
    Config, clock,
    core::{Action, Core, Phase, StopAt, TaskKey},
    discover, env,
    fence::FenceFile,
    identity,
    lease::LeaseFile,
    logs,
    ports::Ports,
    probe, shim,
    spec::{self, ProbeSpec, Spec, StopLine},
    stream::{self, Link, Outbox},
    tasks, wire,
};

const LOG_MAX_BYTES: u64 = 16 << 20;
const LOG_KEEP: u32 = 3;
/// Between two looks at the clock when nothing else happens.
const TICK_MS: u64 = 100;
/// An unacknowledged report is sent again after this.
const RESEND_MS: u64 = 1000;
/// How its GPUs are is said again after this, so that a lost word is healed.
const HEALTH_MS: u64 = 60_000;
/// Finished tasks are counted and ports taken back this often.
const HOUSEKEEPING_MS: u64 = 10_000;
/// Log reads at a time.
const READS_MAX: usize = 64;
/// Until the leader says otherwise.
const HEARTBEAT_MS: u64 = 1000;

/// Runs the agent until `shutdown` resolves. Tasks go on: their shims do not
/// need the agent, only, before long, a renewed node lease.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let (news_in, mut news) = mpsc::unbounded_channel();
    let (links_in, mut links) = mpsc::channel(256);
    let (ready_in, mut ready) = mpsc::unbounded_channel();
    let (health_in, mut health) = mpsc::channel(1);
    let drop_link = Arc::new(Notify::new());
    let mut shell = Shell::open(config, news_in, ready_in, drop_link.clone()).await?;
    let simulated = shell.config.simulate.is_some().then(|| shell.dir.clone());
    let watch =
        discover::watch(shell.config.shim.clone(), simulated, shell.gpus.clone(), health_in);
    let _watch = Ended(tokio::spawn(watch).abort_handle());
    let servers = shell.config.servers.clone();
    let node = shell.config.node.clone();
    let link = stream::run(&node, servers, links_in, drop_link);
    tokio::pin!(link);
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            end = &mut link => return end,
            Some(link) = links.recv() => shell.on_link(link)?,
            Some((key, phase)) = news.recv() => shell.on_news(key, phase),
            Some(key) = ready.recv() => shell.core.observe(key, Phase::Ready),
            Some(health) = health.recv() => shell.on_health(health),
            () = sleep(Duration::from_millis(TICK_MS)) => {}
        }
        shell.turn()?;
    }
    shell.stop_reads();
    if let Some(cgroups) = &shell.cgroups {
        // Stays while tasks of it run.
        let _ = fs::remove_dir(cgroups);
    }
    Ok(())
}

/// Ends a task of this process with the agent.
struct Ended(AbortHandle);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A task whose shim, or whose folder, is still of interest.
struct Handle {
    dir: PathBuf,
    stops: Option<tasks::Stops>,
    /// Ports to take back at its exit.
    ports: Vec<u16>,
    /// Probes it, until it is ready.
    prober: Option<AbortHandle>,
    probe: Option<probe::Target>,
}

struct Shell {
    config: Config,
    /// Held as long as the agent lives: one agent a folder.
    _lock: Flock<File>,
    dir: PathBuf,
    /// Names `dir` for as long as it exists.
    folder: String,
    tasks_dir: PathBuf,
    boot_id: String,
    instance: String,
    core: Core,
    fence: FenceFile,
    saved_term: u64,
    lease: LeaseFile,
    gpus: Vec<v1::Gpu>,
    gpu_uuids: BTreeMap<u32, String>,
    base_env: BTreeMap<String, String>,
    cgroups: Option<PathBuf>,
    ports: Ports,
    /// The leader's words, for what `core` does not look at.
    wanted: BTreeMap<TaskKey, v1::DesiredTask>,
    handles: BTreeMap<TaskKey, Handle>,
    reads: BTreeMap<u64, Arc<AtomicBool>>,
    outbox: Option<Outbox>,
    /// The leader took the hello.
    welcomed: bool,
    /// It hears of GPUs that fall ill later.
    hears_health: bool,
    heartbeat_ms: u64,
    heartbeat_at_ms: u64,
    health_at_ms: u64,
    housekeeping_at_ms: u64,
    news: tasks::News,
    failures: tasks::Failures,
    ready: mpsc::UnboundedSender<TaskKey>,
    drop_link: Arc<Notify>,
}

impl Shell {
    async fn open(
        config: Config,
        news: tasks::News,
        ready: mpsc::UnboundedSender<TaskKey>,
        drop_link: Arc<Notify>,
    ) -> anyhow::Result<Self> {
        let tasks_dir = config.dir.join("tasks");
        fs::create_dir_all(&tasks_dir)
            .with_context(|| format!("dir: cannot create {}", tasks_dir.display()))?;
        let dir = fs::canonicalize(&config.dir)?;
        let tasks_dir = dir.join("tasks");
        let lock = lock(&dir)?;
        identity::check_machine(&dir)?;
        let folder = identity::folder_id(&dir).context("dir: cannot name it")?;
        let boot_id = clock::boot_id().context("cannot read the boot id of the machine")?;
        let (mut fence_file, fence, fenced_boot) = FenceFile::open(&dir).with_context(|| {
            format!("dir: {}/fence is damaged; this node must not launch", dir.display())
        })?;
        let lease = LeaseFile::open(&dir.join("lease"))?;
        // CLOCK_BOOTTIME starts anew with the machine: an old lease means nothing.
        let same_boot = fenced_boot == boot_id;
        let lease_expires_ms = lease.read().filter(|_| same_boot).unwrap_or(0);
        lease.write(lease_expires_ms)?;
        fence_file.save(&fence, &boot_id)?;
        let saved_term = fence.term;
        let gpus = find_gpus(&config).await?;
        let found = {
            let (tasks_dir, boot_id) = (tasks_dir.clone(), boot_id.clone());
            tokio::task::spawn_blocking(move || tasks::find(&tasks_dir, &boot_id, same_boot))
                .await??
        };
        // An exit the leader has is only of interest if it is desired again.
        let known =
            found.iter().map(|found| (wire::key_of(&found.spec), found.task.clone())).collect();
        let mut core = Core::new(fence, known, lease_expires_ms);
        found.iter().filter(|found| found.acked).for_each(|found| {
            core.acknowledged(wire::key_of(&found.spec));
        });
        let seed = config.node.bytes().fold(u64::from(std::process::id()), |seed, byte| {
            seed.wrapping_mul(31).wrapping_add(u64::from(byte))
        });
        let mut shell = Shell {
            ports: Ports::reserve(&config.addr, gpus.len(), seed)
                .context("addr: cannot reserve ports")?,
            gpu_uuids: gpus.iter().map(|gpu| (gpu.ordinal, gpu.uuid.clone())).collect(),
            base_env: inherited(),
            cgroups: config.cgroup.then(|| shim::task_parent(&dir)).flatten(),
            instance: format!("{}-{}", std::process::id(), clock::unix_ms()),
            _lock: lock,
            config,
            dir,
            folder,
            tasks_dir,
            boot_id,
            core,
            fence: fence_file,
            saved_term,
            lease,
            gpus,
            wanted: BTreeMap::new(),
            handles: BTreeMap::new(),
            reads: BTreeMap::new(),
            outbox: None,
            welcomed: false,
            hears_health: false,
            heartbeat_ms: HEARTBEAT_MS,
            heartbeat_at_ms: 0,
            health_at_ms: 0,
            housekeeping_at_ms: 0,
            news,
            failures: tasks::Failures::default(),
            ready,
            drop_link,
        };
        found.into_iter().for_each(|found| shell.adopt(found));
        Ok(shell)
    }

    fn adopt(&mut self, mut found: tasks::Found) {
        let key = wire::key_of(&found.spec);
        let stops = tasks::adopt(&mut found, self.news.clone());
        let port = found.spec.port;
        if stops.is_some() && port != 0 {
            self.ports.adopt(port);
        }
        let ports = if stops.is_some() && port != 0 { vec![port] } else { Vec::new() };
        let probe = self.probe_target(&found.spec, &found.dir);
        self.handles.insert(key, Handle { dir: found.dir, stops, ports, prober: None, probe });
        if found.task.phase == Phase::Running {
            self.start_probe(key);
        }
    }

    fn on_link(&mut self, link: Link) -> anyhow::Result<()> {
        match link {
            Link::Up(outbox) => {
                self.outbox = Some(outbox);
                self.welcomed = false;
                let hello = self.hello();
                self.send(agent_message::Kind::Hello(hello));
            }
            Link::Down => {
                self.outbox = None;
                self.welcomed = false;
                self.stop_reads();
            }
            Link::Message(message) => {
                if let Err(stale) = self.on_message(message.kind)? {
                    tracing::warn!(%stale, "leaving a deposed leader");
                    self.outbox = None;
                    self.drop_link.notify_one();
                }
            }
        }
        Ok(())
    }

    fn on_message(
        &mut self,
        message: Option<Kind>,
    ) -> anyhow::Result<Result<(), crate::core::StaleTerm>> {
        let done = match message {
            Some(Kind::Welcome(welcome)) => {
                let done = self.core.welcome(welcome.term, welcome.node_lease_ms);
                if done.is_ok() {
                    self.welcomed = true;
                    self.hears_health = welcome.hears_gpu_health;
                    self.heartbeat_ms = welcome.heartbeat_ms.max(10);
                    self.heartbeat_at_ms = 0;
                }
                done
            }
            Some(Kind::HeartbeatAck(ack)) => match self.core.heartbeat_ack(ack.seq, ack.term) {
                Ok(Some(expires_ms)) => {
                    self.lease.write(expires_ms).context("cannot write the node lease")?;
                    Ok(())
                }
                Ok(None) => Ok(()),
                Err(stale) => Err(stale),
            },
            Some(Kind::Desired(desired)) => self.on_desired(desired),
            Some(Kind::ReportAck(ack)) => {
                self.on_report_ack(ack.seq);
                Ok(())
            }
            Some(Kind::ReadLog(read)) => {
                self.on_read_log(read);
                Ok(())
            }
            Some(Kind::StopLog(stop)) => {
                if let Some(stopped) = self.reads.remove(&stop.read) {
                    stopped.store(true, Ordering::Relaxed);
                }
                Ok(())
            }
            Some(Kind::Refused(_)) | None => Ok(()),
        };
        Ok(done)
    }

    fn on_desired(&mut self, message: v1::Desired) -> Result<(), crate::core::StaleTerm> {
        let desired = wire::desired(&message, clock::boottime_ms());
        if self.core.desire(desired)? {
            self.wanted = message.tasks.into_iter().map(|task| (wire::key(&task), task)).collect();
            self.forget_handles();
        }
        Ok(())
    }

    fn on_report_ack(&mut self, seq: u64) {
        for key in self.core.report_ack(seq) {
            if let Some(handle) = self.handles.get(&key) {
                let _ = fs::write(handle.dir.join(spec::ACKED_FILE), "");
            }
        }
        self.forget_handles();
    }

    /// What `core` has forgotten needs no handle; its folder stays for its logs.
    fn forget_handles(&mut self) {
        self.handles.retain(|key, _| self.core.task(key).is_some());
    }

    fn on_news(&mut self, key: TaskKey, phase: Phase) {
        let exited = phase.ended();
        let running = phase == Phase::Running;
        self.core.observe(key, phase);
        if running {
            self.failures.forget();
            self.start_probe(key);
        }
        let Some(handle) = self.handles.get_mut(&key) else { return };
        if exited {
            handle.stops = None;
            handle.prober.take().inspect(AbortHandle::abort);
            handle.ports.drain(..).for_each(|port| self.ports.take_back(port));
        }
    }

    /// After every event: what follows from it.
    fn turn(&mut self) -> anyhow::Result<()> {
        let now = clock::boottime_ms();
        let actions = self.core.reconcile(now);
        let fenced = actions.contains(&Action::Persist);
        if fenced || self.core.term() != self.saved_term {
            self.fence
                .save(&self.core.fence(), &self.boot_id)
                .context("cannot write the fence; nothing may be launched without it")?;
            self.saved_term = self.core.term();
        }
        for action in actions {
            match action {
                Action::Persist => {}
                Action::Launch(key) => self.launch(key),
                Action::Stop(key, stop) => self.stop(key, stop),
                Action::Refuse(key, why) => tracing::info!(?key, %why, "refused a task"),
            }
        }
        self.report(now);
        if self.welcomed && now >= self.heartbeat_at_ms {
            self.heartbeat_at_ms = now + self.heartbeat_ms;
            let (seq, generation) = self.core.heartbeat(now);
            self.send(agent_message::Kind::Heartbeat(v1::Heartbeat { seq, generation }));
        }
        if self.welcomed && self.hears_health && now >= self.health_at_ms {
            self.health_at_ms = now + HEALTH_MS;
            self.tell_health();
        }
        if now >= self.housekeeping_at_ms {
            self.housekeeping_at_ms = now + HOUSEKEEPING_MS;
            self.ports.retake();
            let keep: Vec<PathBuf> =
                self.handles.values().map(|handle| handle.dir.clone()).collect();
            let tasks_dir = self.tasks_dir.clone();
            tokio::task::spawn_blocking(move || tasks::clean_up(&tasks_dir, &keep));
        }
        Ok(())
    }

    /// The next hello says it too: what it says of a GPU counts as seen now.
    fn on_health(&mut self, health: v1::GpuHealth) {
        for said in health.gpus {
            let gpu = self.gpus.iter_mut().find(|gpu| gpu.ordinal == said.ordinal);
            let Some(gpu) = gpu.filter(|gpu| gpu.health != said.trouble) else { continue };
            tracing::warn!(gpu = gpu.ordinal, was = gpu.health, now = said.trouble, "GPU health");
            (gpu.healthy, gpu.health) = (said.trouble.is_empty(), said.trouble);
            self.health_at_ms = 0;
        }
    }

    fn tell_health(&mut self) {
        let said =
            |gpu: &v1::Gpu| v1::GpuTrouble { ordinal: gpu.ordinal, trouble: gpu.health.clone() };
        let gpus = self.gpus.iter().map(said).collect();
        self.send(agent_message::Kind::GpuHealth(v1::GpuHealth { gpus }));
    }

    fn report(&mut self, now: u64) {
        if !self.welcomed {
            return;
        }
        if let Some((seq, keys)) = self.core.report(now, RESEND_MS) {
            let task = |key: &TaskKey| Some(wire::report(key, self.core.task(key)?));
            let tasks = keys.iter().filter_map(task).collect();
            self.send(agent_message::Kind::Report(v1::Report { seq, tasks }));
        }
    }

    fn launch(&mut self, key: TaskKey) {
        match self.prepare(key) {
            Ok((dir, spec, ports)) => {
                let probe = self.probe_target(&spec, &dir);
                self.core.observe_port(key, spec.port);
                ports.iter().for_each(|port| self.ports.release(*port));
                let shim = self.config.shim.clone();
                let (failures, news) = (self.failures.clone(), self.news.clone());
                let stops = Some(tasks::launch(shim, dir.clone(), spec, failures, news));
                self.handles.insert(key, Handle { dir, stops, ports, prober: None, probe });
            }
            Err(error) => {
                let message = format!("it could not be launched: {error:#}");
                self.failures.tell(key, message, self.news.clone());
            }
        }
    }

    /// Folder, spec and ports of a task that is about to start.
    fn prepare(&mut self, key: TaskKey) -> anyhow::Result<(PathBuf, Spec, Vec<u16>)> {
        let task = self.wanted.get(&key).context("no longer wanted")?;
        if let Some(gpu) = task.gpus.iter().find(|gpu| !self.gpu_uuids.contains_key(gpu)) {
            anyhow::bail!("gpus: {gpu} is not on this node, which has {}", self.gpus.len());
        }
        let owner = wire::owner(task.owner.as_ref());
        let mut ports = Vec::new();
        let mut port = 0;
        if owner.kind == spec::OwnerKind::Filler {
            port = self.ports.lend().context("port")?;
            ports.push(port);
        } else if let (0, Some(rendezvous)) = (task.rank, &task.rendezvous) {
            ports.extend(u16::try_from(rendezvous.port));
        }
        let dir = tasks::new_dir(&self.tasks_dir, &owner, task.rank).context("task folder")?;
        let node = env::Node {
            name: &self.config.node,
            addr: &self.config.addr,
            gpu_uuids: &self.gpu_uuids,
            simulated: self.config.simulate.is_some(),
            base: &self.base_env,
        };
        let locals = 0..task.processes_per_worker.max(1);
        let spec = Spec {
            boot_id: self.boot_id.clone(),
            allocation: key.allocation,
            rank: key.rank,
            incarnation: key.epoch.incarnation,
            index: key.epoch.index,
            owner,
            gpus: task.gpus.clone(),
            command: task.command.clone(),
            working_dir: task.working_dir.clone(),
            processes: locals.map(|local| env::build(task, &node, &dir, port, local)).collect(),
            notice_ms: task.notice_ms,
            lease_file: self.dir.join("lease"),
            cgroup: self.cgroups.as_ref().zip(dir.file_name()).map(|(at, name)| at.join(name)),
            cpus: task.cpus,
            memory_mib: task.memory_mib,
            port,
            probe: wire::probe(task),
            log_max_bytes: LOG_MAX_BYTES,
            log_keep: LOG_KEEP,
        };
        Ok((dir, spec, ports))
    }

    fn stop(&mut self, key: TaskKey, stop: StopAt) {
        let StopAt { term_at_ms, kill_at_ms, reason } = stop;
        if let Some(stops) = self.handles.get(&key).and_then(|handle| handle.stops.as_ref()) {
            // Fails only when the shim is gone: its exit is on the way.
            let _ = stops.send(StopLine { term_at_ms, kill_at_ms, reason });
        }
    }

    fn probe_target(&self, spec: &Spec, dir: &std::path::Path) -> Option<probe::Target> {
        let probe: ProbeSpec = spec.probe.clone()?;
        let env = spec.processes.first().cloned().unwrap_or_default();
        let host = self.config.addr.clone();
        Some(probe::Target { probe, host, port: spec.port, env, dir: dir.to_path_buf() })
    }

    /// Starts to ask a running instance whether it is ready.
    fn start_probe(&mut self, key: TaskKey) {
        let Some(handle) = self.handles.get_mut(&key) else { return };
        let Some(target) = handle.probe.take() else { return };
        let ready = self.ready.clone();
        let prober = tokio::spawn(async move {
            probe::until_ready(target).await;
            let _ = ready.send(key);
        });
        handle.prober = Some(prober.abort_handle());
    }

    fn hello(&self) -> v1::Hello {
        // Those that start too: one that was adopted may have been told as running by the agent
        // before, and what is not named here is taken for lost.
        let said = |(key, task): (&TaskKey, &crate::core::Task)| wire::report(key, task);
        v1::Hello {
            protocol: 1,
            node: self.config.node.clone(),
            boot_id: self.boot_id.clone(),
            instance: self.instance.clone(),
            addr: self.config.addr.clone(),
            gpus: self.gpus.clone(),
            simulated: self.config.simulate.is_some(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            highest_term: self.core.term(),
            ports: self.ports.offered(),
            running: self.core.tasks().iter().map(said).collect(),
            folder: self.folder.clone(),
            said_ms: clock::boottime_ms(),
        }
    }

    fn on_read_log(&mut self, read: v1::ReadLog) {
        let Some(outbox) = self.outbox.clone() else { return };
        self.reads.retain(|_, stopped| Arc::strong_count(stopped) > 1);
        if self.reads.len() >= READS_MAX {
            let error = format!("{READS_MAX} logs of this node are being read; try again later");
            let chunk = v1::LogChunk { read: read.read, end: true, error, ..Default::default() };
            return self.send(agent_message::Kind::Log(chunk));
        }
        let stopped = Arc::new(AtomicBool::new(false));
        self.reads.insert(read.read, stopped.clone());
        let tasks_dir = self.tasks_dir.clone();
        tokio::task::spawn_blocking(move || {
            let wanted = || !stopped.load(Ordering::Relaxed) && !outbox.logs.is_closed();
            let send = |chunk| {
                let message = AgentMessage { kind: Some(agent_message::Kind::Log(chunk)) };
                wanted() && outbox.logs.blocking_send(message).is_ok()
            };
            logs::read(&tasks_dir, &read, send, wanted);
        });
    }

    fn stop_reads(&mut self) {
        self.reads.values().for_each(|stopped| stopped.store(true, Ordering::Relaxed));
        self.reads.clear();
    }

    /// A server so slow that its queue is full is left: everything is sent
    /// again to the next.
    fn send(&mut self, kind: agent_message::Kind) {
        let Some(outbox) = &self.outbox else { return };
        if outbox.control.try_send(AgentMessage { kind: Some(kind) }).is_err() {
            self.outbox = None;
            self.drop_link.notify_one();
        }
    }
}

fn lock(dir: &std::path::Path) -> anyhow::Result<Flock<File>> {
    let file = File::options().write(true).create(true).truncate(false).open(dir.join("lock"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        anyhow::anyhow!("dir: another agent runs in {} ({error})", dir.display())
    })
}

async fn find_gpus(config: &Config) -> io::Result<Vec<v1::Gpu>> {
    if let Some(simulate) = &config.simulate {
        return Ok(discover::simulated(&config.node, simulate));
    }
    let discovery = discover::discover(&config.shim).await;
    if let Some(note) = &discovery.note {
        tracing::info!("{note}");
    }
    Ok(discovery.gpus.into_iter().map(discover::wire).collect())
}

fn inherited() -> BTreeMap<String, String> {
    let own = env::INHERITED.iter().filter_map(|name| Some((*name, std::env::var(name).ok()?)));
    own.map(|(name, value)| (name.to_string(), value)).collect()
}
