//! The whole agent against a scripted server: real stream, real processes.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
    pin::Pin,
    time::{Duration, Instant},
};

use rowen_agent::{Config, Simulate, discover, spec};
use rowen_api::v1::{
    self, AgentMessage, Desired, DesiredTask, Epoch, Hello, LogChunk, Owner, OwnerKind, ReadLog,
    ServerMessage, TaskPhase, TaskReport,
    agent_message::Kind as Said,
    agent_service_server::{AgentService, AgentServiceServer},
    server_message::Kind,
};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::{
    Stream,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, Streaming};

const LIMIT: Duration = Duration::from_secs(60);

/// One attachment of the agent, as the server sees it.
struct Link {
    from: Streaming<AgentMessage>,
    to: mpsc::Sender<Result<ServerMessage, Status>>,
}

struct Service(mpsc::Sender<Link>);

#[tonic::async_trait]
impl AgentService for Service {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<ServerMessage, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let (to, out) = mpsc::channel(64);
        let link = Link { from: request.into_inner(), to };
        self.0.send(link).await.map_err(|_| Status::unavailable("ended"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }
}

/// A replica that says what the test tells it to.
struct Server {
    addr: String,
    links: mpsc::Receiver<Link>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (links_in, links) = mpsc::channel(8);
        let service = AgentServiceServer::new(Service(links_in));
        let router = tonic::transport::Server::builder().tcp_nodelay(true).add_service(service);
        tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        Server { addr, links }
    }

    async fn attached(&mut self) -> (Leader, Hello) {
        let link = timeout(LIMIT, self.links.recv()).await.unwrap().unwrap();
        let mut leader = Leader {
            link,
            lease: true,
            reports: VecDeque::new(),
            logs: VecDeque::new(),
            health: Vec::new(),
        };
        let Said::Hello(hello) = leader.hear().await else { panic!("hello comes first") };
        (leader, hello)
    }

    async fn welcomed(&mut self) -> (Leader, Hello) {
        let (leader, hello) = self.attached().await;
        let welcome = v1::Welcome {
            term: 1,
            node_lease_ms: 2000,
            heartbeat_ms: 50,
            kill_ms: 100,
            hears_gpu_health: true,
        };
        leader.say(Kind::Welcome(welcome)).await;
        (leader, hello)
    }
}

/// The scripted end of one stream: acknowledges heartbeats and reports.
struct Leader {
    link: Link,
    /// Heartbeats are acknowledged.
    lease: bool,
    reports: VecDeque<TaskReport>,
    logs: VecDeque<LogChunk>,
    /// By GPU, what the agent last said is wrong with it.
    health: Vec<String>,
}

impl Leader {
    async fn say(&self, kind: Kind) {
        self.link.to.send(Ok(ServerMessage { kind: Some(kind) })).await.unwrap();
    }

    async fn hear(&mut self) -> Said {
        let message = timeout(LIMIT, self.link.from.message()).await.expect("the agent is silent");
        message.unwrap().expect("the agent hung up").kind.unwrap()
    }

    /// Takes in one message.
    async fn turn(&mut self) {
        match self.hear().await {
            Said::Hello(_) => panic!("a second hello"),
            Said::Heartbeat(beat) if self.lease => {
                self.say(Kind::HeartbeatAck(v1::HeartbeatAck { seq: beat.seq, term: 1 })).await;
            }
            // Alive, but not confirmed as the leader.
            Said::Heartbeat(_) => self.say(Kind::ReportAck(v1::ReportAck { seq: 0 })).await,
            Said::Report(report) => {
                self.reports.extend(report.tasks);
                self.say(Kind::ReportAck(v1::ReportAck { seq: report.seq })).await;
            }
            Said::Log(chunk) => self.logs.push_back(chunk),
            Said::GpuHealth(health) => {
                self.health = health.gpus.into_iter().map(|gpu| gpu.trouble).collect();
            }
        }
    }

    /// Until the agent holds a node lease: the first ack has had time to arrive.
    async fn beat(&mut self) {
        for _ in 0..2 {
            self.turn().await;
        }
    }

    async fn want(&self, generation: u64, tasks: Vec<DesiredTask>) {
        self.say(Kind::Desired(Desired { generation, term: 1, tasks })).await;
    }

    /// The next report that says `phase`.
    async fn phase(&mut self, phase: TaskPhase) -> TaskReport {
        let deadline = Instant::now() + LIMIT;
        loop {
            while let Some(report) = self.reports.pop_front() {
                if report.phase() == phase {
                    return report;
                }
            }
            assert!(Instant::now() < deadline, "no report of {phase:?}");
            self.turn().await;
        }
    }

    async fn log(&mut self) -> LogChunk {
        while self.logs.is_empty() {
            self.turn().await;
        }
        self.logs.pop_front().unwrap()
    }
}

struct Agent {
    dir: TempDir,
    running: Option<(oneshot::Sender<()>, JoinHandle<anyhow::Result<()>>)>,
}

impl Agent {
    fn start(server: &Server) -> Self {
        let mut agent = Agent { dir: TempDir::new().unwrap(), running: None };
        agent.resume(server);
        agent
    }

    fn resume(&mut self, server: &Server) {
        let config = config(self.dir.path(), &server.addr);
        let (stop, stopped) = oneshot::channel::<()>();
        let run = rowen_agent::run(config, async {
            let _ = stopped.await;
        });
        self.running = Some((stop, tokio::spawn(run)));
    }

    /// The agent ends; its tasks do not.
    async fn end(&mut self) {
        let (stop, run) = self.running.take().unwrap();
        let _ = stop.send(());
        timeout(LIMIT, run).await.unwrap().unwrap().unwrap();
    }

    fn task(&self, name: &str) -> PathBuf {
        self.dir.path().join("tasks").join(name)
    }

    fn status(&self, name: &str) -> spec::Status {
        spec::read(&self.task(name).join(spec::STATUS_FILE)).unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Kill the agent's loop first: it would see its shims die.
        if let Some((_, run)) = self.running.take() {
            run.abort();
        }
        rowen_agent::power_off(self.dir.path());
    }
}

fn config(dir: &Path, server: &str) -> Config {
    let simulate = Simulate { gpus: 2, model: "sim".to_string(), memory_mib: 1024 };
    Config {
        node: "n1".to_string(),
        servers: vec![server.to_string()],
        dir: dir.to_path_buf(),
        addr: "127.0.0.1".to_string(),
        simulate: Some(simulate),
        shim: PathBuf::from(env!("CARGO_BIN_EXE_rowen-agent-shim")),
        cgroup: true,
    }
}

/// Worker 0 of attempt 1 of job `id`.
fn job(id: u64, script: &str) -> DesiredTask {
    let name = "test".to_string();
    DesiredTask {
        allocation: id,
        epoch: Some(Epoch { incarnation: 1, index: id }),
        owner: Some(Owner { kind: OwnerKind::Job.into(), id, name, part: 1 }),
        gpus: vec![0],
        command: ["sh", "-c", script].map(str::to_string).to_vec(),
        workers: 1,
        processes_per_worker: 1,
        notice_ms: 300,
        ..DesiredTask::default()
    }
}

fn stopping(task: &DesiredTask, remaining_ms: u64) -> DesiredTask {
    let reason = "a test".to_string();
    let stop = v1::Stop { remaining_ms, withdraw_ms: 0, deadline_ms: 0, reason };
    DesiredTask { stop: Some(stop), ..task.clone() }
}

fn alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_from_launch_to_exit() {
    let mut server = Server::start().await;
    let agent = Agent::start(&server);
    let (mut leader, hello) = server.welcomed().await;
    assert_eq!((hello.node.as_str(), hello.simulated, hello.gpus.len()), ("n1", true, 2));
    assert_eq!(hello.ports.len(), 8);
    leader.beat().await;
    let task = job(17, "echo $SLURM_JOB_ID $CUDA_VISIBLE_DEVICES; sleep 300");
    leader.want(1, vec![task.clone()]).await;
    let report = leader.phase(TaskPhase::Running).await;
    assert_eq!((report.allocation, report.rank), (17, 0));
    let pid = agent.status("j17-a1-r0").processes[0].pid;
    let shim = agent.status("j17-a1-r0").shim.pid;
    let stat = fs::read_to_string(format!("/proc/{shim}/stat")).unwrap();
    let session = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap();
    assert_eq!(session, shim.to_string(), "no terminal of the agent's can end it");
    let log = agent.task("j17-a1-r0").join("stdout.log");
    while fs::read_to_string(&log).unwrap().is_empty() {
        leader.turn().await; // A heartbeat each 50 ms.
    }
    leader.want(2, vec![stopping(&task, 2000)]).await;
    let report = leader.phase(TaskPhase::Exited).await;
    assert_eq!((report.exit_code, report.message.as_str()), (143, "killed by SIGTERM: a test"));
    assert!(!alive(pid));
    assert_eq!(fs::read_to_string(&log).unwrap(), "17 SIM-n1-0\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gpu_is_launched_on_only_when_it_is_clean() {
    let mut server = Server::start().await;
    let agent = Agent::start(&server);
    let (mut leader, _) = server.welcomed().await;
    leader.beat().await;
    let first = job(1, "trap '' TERM; echo up; while :; do sleep 0.05; done");
    leader.want(1, vec![first]).await;
    leader.phase(TaskPhase::Running).await;
    let log = agent.task("j1-a1-r0").join("stdout.log");
    while fs::read_to_string(&log).unwrap() != "up\n" {
        leader.turn().await;
    }
    let pid = agent.status("j1-a1-r0").processes[0].pid;
    let asked = Instant::now();
    leader.want(2, vec![job(2, "sleep 300")]).await;
    let report = leader.phase(TaskPhase::Running).await;
    assert_eq!(report.allocation, 2);
    assert!(!alive(pid));
    assert!(asked.elapsed() >= Duration::from_millis(280), "the first had its notice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_agent_adopts_what_runs() {
    let mut server = Server::start().await;
    let mut agent = Agent::start(&server);
    let (mut leader, _) = server.welcomed().await;
    leader.beat().await;
    let (kept, ended) =
        (job(1, "sleep 300"), DesiredTask { gpus: vec![1], ..job(2, "sleep 0.4; exit 6") });
    leader.want(1, vec![kept.clone(), ended.clone()]).await;
    leader.phase(TaskPhase::Running).await;
    leader.phase(TaskPhase::Running).await;
    let before = agent.status("j1-a1-r0");
    agent.end().await;
    drop(leader);
    while agent.status("j2-a1-r0").phase != spec::ShimPhase::Exited {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    agent.resume(&server);
    let (mut leader, hello) = server.welcomed().await;
    let found: Vec<_> =
        hello.running.iter().map(|task| (task.allocation, task.phase(), task.exit_code)).collect();
    assert_eq!(found, [(1, TaskPhase::Running, 0), (2, TaskPhase::Exited, 6)]);
    assert_eq!(leader.phase(TaskPhase::Exited).await.exit_code, 6);
    leader.want(1, vec![kept.clone(), ended]).await;
    assert_eq!(leader.phase(TaskPhase::Exited).await.exit_code, 6, "told again, not run again");
    let after = agent.status("j1-a1-r0");
    assert_eq!(after.shim, before.shim, "the same shim and processes");
    assert!(alive(after.processes[0].pid));
    leader.want(2, vec![stopping(&kept, 1000)]).await;
    assert_eq!(leader.phase(TaskPhase::Exited).await.allocation, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_an_earlier_boot_runs() {
    let mut server = Server::start().await;
    let mut agent = Agent::start(&server);
    let (mut leader, _) = server.welcomed().await;
    leader.beat().await;
    leader.want(1, vec![job(1, "sleep 300")]).await;
    leader.phase(TaskPhase::Running).await;
    agent.end().await;
    drop(leader);
    // As a power cut leaves the folder: no process, no word of an end.
    let status = fs::read(agent.task("j1-a1-r0").join(spec::STATUS_FILE)).unwrap();
    assert!(rowen_agent::power_off(agent.dir.path()) >= 2, "shim and task");
    let file = agent.task("j1-a1-r0").join(spec::SPEC_FILE);
    let mut spec: spec::Spec = spec::read(&file).unwrap();
    spec.boot_id = "an earlier one".to_string();
    spec::write(&file, &spec).unwrap();
    fs::write(agent.task("j1-a1-r0").join(spec::STATUS_FILE), status).unwrap();
    agent.resume(&server);
    let (_leader, hello) = server.attached().await;
    let found = &hello.running[0];
    assert_eq!((found.phase(), found.exit_code), (TaskPhase::Lost, 0));
    assert_eq!(found.message, "the machine restarted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_shim_takes_its_task_with_it() {
    let mut server = Server::start().await;
    let agent = Agent::start(&server);
    let (mut leader, _) = server.welcomed().await;
    leader.beat().await;
    leader.want(1, vec![job(1, "setsid sleep 300 & sleep 300")]).await;
    leader.phase(TaskPhase::Running).await;
    let status = agent.status("j1-a1-r0");
    let shim = nix::unistd::Pid::from_raw(status.shim.pid);
    nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGKILL).unwrap();
    let report = leader.phase(TaskPhase::Lost).await;
    assert_eq!((report.exit_code, report.message.as_str()), (0, "its shim died"));
    assert!(!alive(status.processes[0].pid));
    assert_eq!(rowen_agent::power_off(agent.dir.path()), 0, "nothing is left");
}

fn send(process: spec::ProcessId, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(process.pid), signal).unwrap();
}

/// Stopped, the two cannot end it; the task runs on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_shim_and_guard_do_not_keep_a_task_from_its_end() {
    let mut server = Server::start().await;
    let agent = Agent::start(&server);
    let (mut leader, _) = server.welcomed().await;
    leader.beat().await;
    let task = job(1, "sleep 300");
    leader.want(1, vec![task.clone()]).await;
    leader.phase(TaskPhase::Running).await;
    let status = agent.status("j1-a1-r0");
    send(status.guard.unwrap(), nix::sys::signal::Signal::SIGSTOP);
    send(status.shim, nix::sys::signal::Signal::SIGSTOP);
    leader.want(2, vec![stopping(&task, 100)]).await;
    let report = leader.phase(TaskPhase::Lost).await;
    assert_eq!(report.message, "its shim did not end it in time; the agent did");
    assert!(!alive(status.processes[0].pid) && !alive(status.shim.pid));
    assert_eq!(rowen_agent::power_off(agent.dir.path()), 0, "nothing is left");
}

/// Agent, shim and guard are gone at once; a daemon without parent or session is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_starts_on_clean_gpus() {
    let mut server = Server::start().await;
    let mut agent = Agent::start(&server);
    let (mut leader, _) = server.welcomed().await;
    leader.beat().await;
    let script = "(setsid sh -c 'echo $$ > daemon; exec sleep 300' &); exec sleep 300";
    leader.want(1, vec![job(1, script), DesiredTask { gpus: vec![1], ..job(2, script) }]).await;
    leader.phase(TaskPhase::Running).await;
    leader.phase(TaskPhase::Running).await;
    let pid = |task: &Path| fs::read_to_string(task.join("daemon")).unwrap_or_default();
    let tasks = [agent.task("j1-a1-r0"), agent.task("j2-a1-r0")];
    while tasks.iter().any(|task| pid(task).is_empty()) {
        leader.turn().await;
    }
    let daemons: Vec<i32> = tasks.iter().map(|task| pid(task).trim().parse().unwrap()).collect();
    agent.end().await;
    drop(leader);
    for name in ["j1-a1-r0", "j2-a1-r0"] {
        let status = agent.status(name);
        for process in [status.guard.unwrap(), status.shim] {
            send(process, nix::sys::signal::Signal::SIGSTOP);
        }
        for process in [status.guard.unwrap(), status.shim] {
            send(process, nix::sys::signal::Signal::SIGKILL);
        }
    }
    assert!(daemons.iter().all(|pid| alive(*pid)), "the kernel does not know them");
    // Somebody tidied up: only the mark in its environment tells whose it is.
    fs::remove_dir_all(&tasks[1]).unwrap();
    agent.resume(&server);
    let (_leader, hello) = server.attached().await;
    assert!(!daemons.iter().any(|pid| alive(*pid)), "found before anything was launched");
    assert_eq!(hello.running.len(), 1);
    assert_eq!(hello.running[0].message, "its shim died");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_launch_that_fails_by_this_node_is_no_failure_of_the_job() {
    let mut server = Server::start().await;
    let agent = Agent::start(&server);
    let (mut leader, _) = server.welcomed().await;
    leader.beat().await;
    let (tasks, aside) = (agent.dir.path().join("tasks"), agent.dir.path().join("aside"));
    fs::rename(&tasks, &aside).unwrap();
    fs::write(&tasks, "").unwrap();
    let begun = Instant::now();
    for id in 1..=4 {
        leader.want(id, vec![job(id, "sleep 300")]).await;
        let report = leader.phase(TaskPhase::Lost).await;
        let expect = "it could not be launched: task folder: Not a directory";
        assert!(report.message.starts_with(expect), "{}", report.message);
    }
    // Each waits longer: 0, 200, 400 and 800 ms.
    assert!(begun.elapsed() > Duration::from_millis(1300), "{:?}", begun.elapsed());
    fs::remove_file(&tasks).unwrap();
    fs::rename(&aside, &tasks).unwrap();
    leader.want(5, vec![job(5, "sleep 300")]).await;
    leader.phase(TaskPhase::Running).await;
}

#[tokio::test]
async fn a_folder_of_another_machine_is_refused() {
    let server = Server::start().await;
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("machine"), "0123456789abcdef0123456789abcdef\n").unwrap();
    let run = rowen_agent::run(config(dir.path(), &server.addr), std::future::pending::<()>());
    let end = timeout(LIMIT, run).await.unwrap().unwrap_err().to_string();
    assert!(end.contains("belongs to machine 0123456789abcdef0123456789abcdef, this is"), "{end}");
    assert!(end.contains("pass an empty --dir"), "{end}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_leader_ends_the_tasks() {
    let mut server = Server::start().await;
    let agent = Agent::start(&server);
    let (mut leader, _) = server.welcomed().await;
    leader.beat().await;
    leader.want(1, vec![job(1, "sleep 300")]).await;
    leader.phase(TaskPhase::Running).await;
    leader.lease = false;
    let asked = Instant::now();
    let report = leader.phase(TaskPhase::Lost).await;
    assert_eq!(report.message, "killed by SIGTERM: the node lease ran out");
    // A lease of 2000 from the last acknowledged heartbeat, which is up to 100 old.
    assert!(asked.elapsed() >= Duration::from_millis(1800), "{:?}", asked.elapsed());
    leader.want(2, vec![job(2, "sleep 300")]).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!agent.task("j2-a1-r0").exists(), "nothing is launched without a lease");
    leader.lease = true;
    leader.phase(TaskPhase::Running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn says_when_a_gpu_falls_ill_and_when_it_is_well_again() {
    let mut server = Server::start().await;
    let agent = Agent::start(&server);
    let (mut leader, hello) = server.welcomed().await;
    assert!(hello.gpus.iter().all(|gpu| gpu.healthy));
    let faults = agent.dir.path().join(discover::FAULTS_FILE);
    fs::write(&faults, "1 XID 79\n").unwrap();
    while leader.health.get(1).is_none_or(String::is_empty) {
        leader.turn().await;
    }
    assert_eq!(leader.health[..2], ["", "XID 79"]);
    // Whoever leads next hears of it in the hello.
    leader.say(Kind::Refused(v1::Refused { why: "no".into(), ..v1::Refused::default() })).await;
    let (mut leader, hello) = server.welcomed().await;
    assert_eq!((hello.gpus[1].healthy, hello.gpus[1].health.as_str()), (false, "XID 79"));
    fs::remove_file(&faults).unwrap();
    while leader.health.get(1).is_none_or(|said| !said.is_empty()) {
        leader.turn().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn goes_where_the_leader_is_and_refuses_older_ones() {
    let (mut follower, mut server) = (Server::start().await, Server::start().await);
    let agent = Agent::start(&follower);
    let (leader, _) = follower.attached().await;
    let refused = |leader: &str, r#final| {
        let leader = leader.to_string();
        Kind::Refused(v1::Refused { why: "no".to_string(), leader, r#final, retry_after_ms: 0 })
    };
    leader.say(refused(&server.addr, false)).await;
    let (leader, _) = server.attached().await;
    leader
        .say(Kind::Welcome(v1::Welcome {
            term: 5,
            node_lease_ms: 1,
            heartbeat_ms: 50,
            kill_ms: 1,
            hears_gpu_health: false,
        }))
        .await;
    leader.say(Kind::Desired(Desired { generation: 1, term: 4, tasks: Vec::new() })).await;
    let (leader, hello) = follower.attached().await;
    assert_eq!(hello.highest_term, 5, "left for the next on its list");
    let fence = fs::read_to_string(agent.dir.path().join("fence")).unwrap();
    assert!(fence.contains("\"term\":5"), "{fence}");
    leader.say(refused("", true)).await;
    let mut agent = agent;
    let (_stop, run) = agent.running.take().unwrap();
    let end = timeout(LIMIT, run).await.unwrap().unwrap().unwrap_err();
    assert!(end.to_string().contains("refused this node: no"), "{end}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn comes_again_when_the_leader_has_time() {
    let mut server = Server::start().await;
    let _agent = Agent::start(&server);
    let (leader, first) = server.attached().await;
    let asked = Instant::now();
    leader.say(Kind::Refused(v1::Refused { retry_after_ms: 800, ..Default::default() })).await;
    let (leader, again) = server.welcomed().await;
    let waited = asked.elapsed().as_millis();
    assert!(waited >= 800, "it came after {waited} ms: that moment was not its own yet");
    assert!(again.said_ms > first.said_ms, "what it says is of now");
    drop(leader);
    server.welcomed().await; // a stream that ends is opened again, without such a pause
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_is_ready_when_its_probe_passes() {
    let mut server = Server::start().await;
    let _agent = Agent::start(&server);
    let (mut leader, hello) = server.welcomed().await;
    leader.beat().await;
    let script = "mkdir w; cd w; exec python3 -m http.server $ROWEN_PORT --bind 127.0.0.1";
    let owner = Owner { kind: OwnerKind::Filler.into(), id: 3, name: "f".to_string(), part: 12 };
    let task = DesiredTask {
        owner: Some(owner),
        has_probe: true,
        probe_path: "/".to_string(),
        probe_period_ms: 20,
        ..job(9, script)
    };
    leader.want(1, vec![task.clone()]).await;
    let running = leader.phase(TaskPhase::Running).await;
    assert!(running.port > 0 && !hello.ports.contains(&running.port));
    let ready = leader.phase(TaskPhase::Ready).await;
    assert_eq!((ready.allocation, ready.port), (9, running.port));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_are_read_from_the_end_and_followed() {
    let mut server = Server::start().await;
    let agent = Agent::start(&server);
    let (mut leader, _) = server.welcomed().await;
    leader.beat().await;
    let (log, go) = (agent.task("j4-a1-r0").join("stdout.log"), agent.dir.path().join("go"));
    let script = format!(
        "for i in 1 2 3 4 5; do echo l$i; done; while [ ! -e {} ]; do sleep 0.02; done; echo l6; printf l7",
        go.display()
    );
    let task = job(4, &script);
    leader.want(1, vec![task.clone()]).await;
    leader.phase(TaskPhase::Running).await;
    while !fs::read_to_string(&log).unwrap_or_default().ends_with("l5\n") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let read = |read, tail_lines, follow| {
        let stream = "stdout".to_string();
        Kind::ReadLog(ReadLog {
            read,
            owner: task.owner.clone(),
            rank: 0,
            stream,
            follow,
            tail_lines,
        })
    };
    leader.say(read(1, 2, true)).await;
    let mut text = String::new();
    loop {
        let chunk = leader.log().await;
        assert_eq!((chunk.read, chunk.error.as_str()), (1, ""));
        text.push_str(std::str::from_utf8(&chunk.data).unwrap());
        if text.ends_with("l5\n") {
            fs::write(&go, "").unwrap();
        }
        if chunk.end {
            break;
        }
        assert_eq!(chunk.stream, "stdout");
    }
    assert_eq!(text, "l4\nl5\nl6\nl7");
    leader.say(read(2, 0, false)).await;
    assert_eq!(leader.log().await.data, b"l1\nl2\nl3\nl4\nl5\nl6\n");
    let missing = Some(Owner { id: 99, ..task.owner.clone().unwrap() });
    leader.log().await;
    leader.log().await;
    leader.say(Kind::ReadLog(ReadLog { read: 3, owner: missing, ..ReadLog::default() })).await;
    let chunk = leader.log().await;
    assert!(chunk.end && chunk.error.contains("no such task"), "{chunk:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_agent_a_folder() {
    let mut server = Server::start().await;
    let agent = Agent::start(&server);
    let _ = server.attached().await;
    let second =
        rowen_agent::run(config(agent.dir.path(), &server.addr), std::future::pending::<()>());
    let end = second.await.unwrap_err().to_string();
    assert!(end.contains("another agent runs in"), "{end}");
}

#[tokio::test]
async fn a_machine_without_gpus_says_so() {
    let found =
        rowen_agent::discover::discover(Path::new(env!("CARGO_BIN_EXE_rowen-agent-shim"))).await;
    // Where there are GPUs, they are described; where not, there is a reason.
    assert_eq!(
        found.gpus.is_empty(),
        found.note.as_deref().is_some_and(|note| note.starts_with("no GPU: "))
    );
    assert!(found.gpus.iter().all(|gpu| gpu.uuid.starts_with("GPU-") && gpu.memory_mib > 0));
}

#[tokio::test]
async fn a_probe_that_crashes_takes_nothing_with_it_and_says_one_line() {
    let dir = TempDir::new().unwrap();
    let program = dir.path().join("probe");
    let check = async |script: &str, expect: &str| {
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let found = rowen_agent::discover::discover(&program).await;
        assert_eq!((found.gpus.len(), found.note.as_deref()), (0, Some(expect)));
    };
    check(
        "echo a panic >&2; echo in libcuda >&2; kill -SEGV $$",
        "no GPU: the probe ended with signal: 11 (SIGSEGV) and said: in libcuda",
    )
    .await;
    check("echo not JSON", "no GPU: the probe ended with exit status: 0 and said: nothing").await;
    let missing = rowen_agent::discover::discover(&dir.path().join("none")).await.note.unwrap();
    assert!(missing.contains("could not be run") && missing.lines().count() == 1, "{missing}");
}
