//! `rowen dev`: the demo's cluster, left running for a person.
//!
//! Starts again what dies, as systemd would on a real machine, and ends everything on Ctrl-C.

use std::io::{Write, stdout};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cluster::{self, Cluster, Options, Timing, fabric};

/// Where clients look when nobody tells them.
const USUAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7077);

/// Arguments of `rowen dev`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Keep everything in this folder, and resume from what it holds. Left out: a temporary one.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// How many nodes. Left out: the example's 16, in two blocks.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=200))]
    nodes: Option<u32>,
    /// GPUs a node.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64), conflicts_with = "fabric")]
    gpus: Option<u16>,
    /// Fabric file: an agent is started for each of its nodes.
    #[arg(long, value_name = "FILE", conflicts_with = "nodes")]
    fabric: Option<String>,
    /// Where the control plane listens. Left out: 127.0.0.1:7077, or any free port.
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Write addresses and process ids here, as JSON, once everything is up.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// How long an agent may run without the control plane.
    #[arg(long, value_name = "MS", default_value_t = Timing::default().node_lease_ms)]
    node_lease_ms: u64,
    /// Between two heartbeats of an agent.
    #[arg(long, value_name = "MS", default_value_t = Timing::default().heartbeat_ms)]
    heartbeat_ms: u64,
    /// From SIGKILL until processes are gone.
    #[arg(long, value_name = "MS", default_value_t = Timing::default().kill_ms)]
    kill_ms: u64,
}

/// Runs until Ctrl-C, SIGTERM or the end of the terminal.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    // Without --data the folder goes when this does; declared first, so that it goes last.
    let mut temporary = None;
    let data = match &args.data {
        Some(data) => data.clone(),
        None => {
            let made = tempfile::Builder::new().prefix("rowen-dev-").tempdir()?;
            temporary.insert(made).path().to_path_buf()
        }
    };
    let interrupted = cluster::interrupted();
    tokio::pin!(interrupted);
    let mut cluster = tokio::select! {
        cluster = Cluster::start(options(&args, data)?) => cluster?,
        () = &mut interrupted => return Ok(ExitCode::from(130)),
    };
    greet(&cluster, temporary.is_some());
    if let Some(path) = &args.ready_file {
        write_ready(&cluster, path)?;
    }
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
            () = &mut interrupted => break,
        }
        for name in cluster.revive().await? {
            say(&format!("the {name} had ended and was started again"));
        }
    }
    say("ending every process …");
    cluster.stop()?;
    Ok(ExitCode::SUCCESS)
}

fn options(args: &Args, data: PathBuf) -> Result<Options> {
    let fabric = match (&args.fabric, args.nodes, args.gpus) {
        (Some(file), _, _) => Some(fabric::from_file(file)?),
        (None, None, None) => None,
        (None, nodes, gpus) => Some(fabric::of_size(nodes.unwrap_or(16), gpus.unwrap_or(8))?),
    };
    let listen = match args.listen {
        Some(listen) => listen,
        None if TcpListener::bind(USUAL).is_ok() => USUAL,
        None => cluster::free_address()?,
    };
    let timing = Timing {
        node_lease_ms: args.node_lease_ms,
        heartbeat_ms: args.heartbeat_ms,
        kill_ms: args.kill_ms,
    };
    Ok(Options { data, fabric, listen, timing })
}

fn greet(cluster: &Cluster, temporary: bool) {
    let (addr, data) = (cluster.addr(), cluster.data().display().to_string());
    let (nodes, gpus) = (cluster.node_names().len(), cluster.gpu_count());
    let fate = if temporary { " (gone at the end; --data DIR keeps it)" } else { "" };
    say(&format!(
        "\
A control plane and {nodes} agents run on this machine. Their {gpus} GPUs are simulated; the
processes are real.

  control plane   {addr}
  data            {data}{fate}
  logs            {data}/logs

In another terminal:

  export ROWEN_ADDR={addr}
  rowen fabric show
  rowen submit --follow --name hello --workers 2 --gpus 8 -- sh -c 'echo rank $RANK of $WORLD_SIZE on $ROWEN_NODE'
  rowen queue --all

Ctrl-C ends every process of it.
"
    ));
}

// Renamed into place, so that who waits for it never reads half of it.
fn write_ready(cluster: &Cluster, path: &Path) -> Result<()> {
    let (server, agents) = cluster.pids();
    let ready = serde_json::json!({
        "addr": cluster.addr(),
        "data": cluster.data(),
        "pid": std::process::id(),
        "server_pid": server,
        "agent_pids": agents,
        "simulated": true,
    });
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, ready.to_string())
        .and_then(|()| std::fs::rename(&temporary, path))
        .with_context(|| format!("--ready-file: cannot write {}", path.display()))
}

fn say(text: &str) {
    // Nobody may be reading; the cluster runs all the same.
    let _ = writeln!(stdout(), "{text}");
}
