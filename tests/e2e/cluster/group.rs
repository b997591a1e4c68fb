//! A group of replicas and agents that a test starts, kills and looks at.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::rig::{PATIENCE, ROWEN, text, wait};

/// Below what tasks and outgoing connections take, and beside what `rowen dev` and `bench` take.
const PORTS: std::ops::Range<u16> = 20_000..24_000;

/// Of agents that share two busy cores with each other, and must not be missed for that.
pub(super) const NODE_LEASE_MS: u64 = 4_000;

/// Replicas are numbered from 1, as their ids are at first. Dropping it ends every process.
pub(super) struct Group {
    pub(super) folder: PathBuf,
    pub(super) addrs: Vec<String>,
    /// What is started from here on; a rolling upgrade changes it on the way.
    pub(super) exe: PathBuf,
    /// Of the configurations written from here on.
    pub(super) node_lease_ms: u64,
    replicas: BTreeMap<usize, Child>,
    agents: BTreeMap<String, Child>,
    guard: Child,
}

impl Group {
    /// Sets up so many replicas and waits until each has its vote.
    pub(super) fn start(folder: &Path, count: usize) -> Group {
        Group::start_as(ROWEN.into(), NODE_LEASE_MS, folder, count)
    }

    /// The same with another build, and node leases of this length.
    pub(super) fn start_as(exe: PathBuf, node_lease_ms: u64, folder: &Path, count: usize) -> Group {
        let folder = folder.canonicalize().unwrap();
        // Ends what is left when this process is gone, whatever way.
        let guard = Command::new(ROWEN)
            .arg("cluster-guard")
            .arg(&folder)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let first = PORTS.start + (std::process::id() % 1000) as u16 * 3;
        let free =
            (first..PORTS.end).filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
        let addrs: Vec<String> = free.take(count).map(|port| format!("127.0.0.1:{port}")).collect();
        assert_eq!(addrs.len(), count, "no free ports");
        let (replicas, agents) = (BTreeMap::new(), BTreeMap::new());
        let mut group = Group { folder, addrs, exe, node_lease_ms, replicas, agents, guard };
        for number in 1..=count {
            let config = group.write_config(number, &format!("replica-{number}"));
            let joined = match number {
                1 => group.json(&["cluster", "init", "--config", &config]),
                _ => group.join(&config),
            };
            assert_eq!(joined["replica"], number);
            group.serve(number);
        }
        group.wait_voters(&(1..=count as u64).collect::<Vec<_>>());
        group
    }

    /// The configuration of a replica whose data is in `data`; its path.
    pub(super) fn write_config(&self, number: usize, data: &str) -> String {
        let path = self.config(number);
        let config = format!(
            "data = {:?}\nlisten = {:?}\n[timing]\nnode_lease_ms = {}\nheartbeat_ms = 400\nkill_ms = 500\n",
            self.folder.join(data),
            self.addrs[number - 1],
            self.node_lease_ms,
        );
        fs::write(&path, config).unwrap();
        path
    }

    pub(super) fn config(&self, number: usize) -> String {
        self.folder.join(format!("replica-{number}.toml")).to_str().unwrap().to_owned()
    }

    /// `cluster join` by whatever replica answers.
    pub(super) fn join(&self, config: &str) -> Value {
        let peers = self.addrs.join(",");
        self.json(&["cluster", "join", "--config", config, "--peer", &peers])
    }

    pub(super) fn serve(&mut self, number: usize) {
        let config = self.config(number);
        let child = self.spawn(&["serve", "--config", &config], &format!("replica-{number}"));
        self.replicas.insert(number, child);
    }

    /// Sends a signal to a replica and waits for its end.
    pub(super) fn end(&mut self, number: usize, signal: Signal) {
        let mut child = self.replicas.remove(&number).unwrap();
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        child.wait().unwrap();
    }

    /// Starts agents of nodes with 8 GPUs each, which know every replica, and waits until all
    /// are up.
    pub(super) fn start_agents(&mut self, count: u32) {
        let servers = self.addrs.join(",");
        self.start_agents_at(count, |_| servers.clone());
    }

    /// The same, of agents that know what `servers` says of the node with that number.
    pub(super) fn start_agents_at(&mut self, count: u32, servers: impl Fn(u32) -> String) {
        let fabric = json!({
            "leafs": [{"names": "leaf[1-8]"}],
            "nodes": [{
                "names": format!("n[1-{count}]"), "rack": "r1", "leafs": "leaf[1-8]",
                "gpu": {"model": "H100", "count": 8, "memory_mib": 81920},
                "cpus": 192, "memory_mib": 2_097_152,
            }],
        });
        let file = self.folder.join("fabric.json");
        fs::write(&file, fabric.to_string()).unwrap();
        self.ok(&["fabric", "set", file.to_str().unwrap()]);
        for node in 1..=count {
            self.start_agent_with(&format!("n{node}"), &servers(node));
        }
        self.wait_up(count);
    }

    /// The agent of a node, for the first time or in the place of one that was ended.
    pub(super) fn start_agent(&mut self, name: &str) {
        let servers = self.addrs.join(",");
        self.start_agent_with(name, &servers);
    }

    fn start_agent_with(&mut self, name: &str, servers: &str) {
        let dir = self.node_dir(name);
        fs::create_dir_all(&dir).unwrap();
        let (dir, addr) = (dir.to_str().unwrap(), "127.0.0.1");
        let args = ["agent", "--server", servers, "--node", name, "--dir", dir];
        let args = [&args[..], &["--addr", addr, "--simulate-gpus", "8"]].concat();
        let child = self.spawn(&args, name);
        self.agents.insert(name.to_owned(), child);
    }

    /// Ends an agent; its tasks go on.
    pub(super) fn end_agent(&mut self, name: &str, signal: Signal) {
        let mut child = self.agents.remove(name).unwrap();
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        child.wait().unwrap();
    }

    pub(super) fn wait_up(&self, count: u32) {
        wait("every node to be up", 30, || {
            let output = self.rowen(&["node", "list", "-o", "json"]);
            // A replica that was just started may not listen yet.
            let nodes: Value = serde_json::from_slice(&output.stdout).ok()?;
            let nodes = nodes["nodes"].as_array().unwrap();
            (nodes.iter().filter(|node| node["state"] == "up").count() == count as usize)
                .then_some(())
        });
    }

    pub(super) fn node_dir(&self, node: &str) -> PathBuf {
        self.folder.join("nodes").join(node)
    }

    /// Waits until exactly these replicas are in the group, all with a vote.
    pub(super) fn wait_voters(&self, ids: &[u64]) {
        let mut last = Value::Null;
        let deadline = Instant::now() + Duration::from_secs(30 * PATIENCE);
        while Instant::now() < deadline {
            // A lone replica that was just started may not listen yet.
            let output = self.rowen(&["cluster", "status", "-o", "json"]);
            last = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let Some(replicas) = last["replicas"].as_array() else { continue };
            let voters = replicas.iter().filter(|replica| replica["role"] != "learner");
            let found: Vec<u64> = voters.map(|replica| replica["id"].as_u64().unwrap()).collect();
            if found == ids && replicas.len() == ids.len() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the voters are never {ids:?}: {last:#}");
    }

    /// `cluster status`, by whatever replica leads.
    pub(super) fn status(&self) -> Value {
        self.json(&["cluster", "status"])
    }

    /// Number of the replica that leads; its place in `addrs`, which its id may not be.
    pub(super) fn leader(&self) -> usize {
        let status = self.status();
        let replicas = status["replicas"].as_array().unwrap();
        let leader = replicas.iter().find(|replica| replica["role"] == "leader").unwrap();
        1 + self.addrs.iter().position(|addr| leader["addr"] == **addr).unwrap()
    }

    pub(super) fn rowen(&self, args: &[&str]) -> Output {
        let addrs = self.addrs.join(",");
        Command::new(&self.exe).args(args).env("ROWEN_ADDR", addrs).output().unwrap()
    }

    /// Asks one replica and no other.
    pub(super) fn at(&self, number: usize, args: &[&str]) -> Output {
        let addr = &self.addrs[number - 1];
        Command::new(&self.exe).args(args).env("ROWEN_ADDR", addr).output().unwrap()
    }

    /// Runs a verb that must work; what it printed.
    pub(super) fn ok(&self, args: &[&str]) -> String {
        let output = self.rowen(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The same as JSON.
    pub(super) fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[args, &["-o", "json"]].concat())).unwrap()
    }

    /// Runs a verb that must fail with this exit code; its one line on standard error.
    pub(super) fn refused(&self, code: i32, args: &[&str]) -> String {
        let output = self.rowen(args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
        said
    }

    pub(super) fn submit(&self, args: &[&str]) -> String {
        let output = self.rowen(&[&["submit", "--parsable"], args].concat());
        let code = output.status.code();
        assert!(matches!(code, Some(0 | 3)), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    pub(super) fn wait_state(&self, job: &str, state: &str) -> Value {
        let mut last = Value::Null;
        let deadline = Instant::now() + Duration::from_secs(30 * PATIENCE);
        while Instant::now() < deadline {
            last = self.json(&["job", "show", job]);
            if last["state"] == state {
                return last;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("job {job} is never {state}: {last:#}");
    }

    fn spawn(&self, args: &[&str], name: &str) -> Child {
        let log = self.folder.join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(log).unwrap();
        Command::new(&self.exe)
            .args(args)
            .env("RUST_LOG", "info,openraft=warn")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show_logs(&self.folder);
        }
        for child in self.replicas.values_mut().chain(self.agents.values_mut()) {
            let _ = child.kill();
            let _ = child.wait();
        }
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// The last lines of every process, for whoever has to find out why a test failed.
#[expect(clippy::print_stderr, reason = "shown by the test runner where the test has failed")]
fn show_logs(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let short = |line: &&str| line.chars().take(300).collect::<String>();
            let last: Vec<String> = lines.iter().rev().take(15).rev().map(short).collect();
            eprintln!("--- {}\n{}", path.display(), last.join("\n"));
        }
    }
}
