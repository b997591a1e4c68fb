//! `rowen demo`: the main job end to end, live, on real processes, in half a minute.
//!
//! A list of steps, each with checks; it ends with figures and fails when one check did not hold.
//! What it claims it takes from what the processes themselves saw (`journal`) wherever it can,
//! not from what the scheduler says of itself. The GPUs are simulated, and it says so.

pub(crate) mod filler;
mod http;
pub(crate) mod journal;
mod ring;
mod screen;
mod steps;
pub(crate) mod worker;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rowen_api::v1;

pub(crate) use self::journal::boottime_ns;
use self::journal::{JOURNAL_ENV, Journal, Line, What, Who};
use self::screen::Screen;
use crate::bench::figures::{Check, Figure, Report};
use crate::cluster::rpc::Rpc;
use crate::cluster::{self, Cluster, Options, Timing, fabric};

/// Arguments of `rowen demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print the figures as one JSON object, and nothing else, on standard output.
    #[arg(long)]
    json: bool,
    /// Also kill the control plane (SIGKILL) in the middle of the second gang, and start it again.
    #[arg(long)]
    crash: bool,
    /// Keep the folder of logs, Raft log and journal. It is always kept when a check fails.
    #[arg(long)]
    keep: bool,
    /// Chooses which node is killed, and when the control plane is.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
}

/// Plays it. Whichever way this ends, every process of the cluster ends with it.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    let folder = tempfile::Builder::new().prefix("rowen-demo-").tempdir()?;
    let mut screen = Screen::new(args.json);
    let report = tokio::select! {
        report = play(&args, folder.path(), &mut screen) => report,
        () = cluster::interrupted() => {
            screen.close();
            return Ok(ExitCode::from(130));
        }
    };
    screen.close();
    let keep = args.keep || !report.as_ref().is_ok_and(|report| report.ok);
    if keep {
        let kept = folder.keep();
        screen.aside(&format!("kept: {}", kept.display()));
    }
    Ok(report?.finish(args.json, false))
}

/// The demo as it goes on: the cluster, the picture, and what was found so far.
struct Demo<'a> {
    args: &'a Args,
    screen: &'a mut Screen,
    cluster: Cluster,
    rpc: Rpc,
    journal: PathBuf,
    exe: String,
    checks: Vec<Check>,
    figures: Vec<Figure>,
}

async fn play(args: &Args, folder: &Path, screen: &mut Screen) -> Result<Report> {
    let exe = std::env::current_exe()?.to_str().context("my path is not UTF-8")?.to_string();
    screen.step("a cluster of real processes; its GPUs are simulated");
    let options = Options {
        data: folder.to_path_buf(),
        fabric: Some(fabric::example()?),
        listen: cluster::free_address()?,
        timing: Timing::default(),
    };
    let cluster = Cluster::start(options).await?;
    screen.follow(cluster.rpc());
    let (rpc, journal) = (cluster.rpc(), cluster.data().join("journal"));
    let (checks, figures) = (Vec::new(), Vec::new());
    let mut demo = Demo { args, screen, cluster, rpc, journal, exe, checks, figures };
    let before = demo.rpc.status().await?;
    if let Err(error) = steps::all(&mut demo).await {
        demo.check("every step comes to its end", false, format!("{error:#}"));
    }
    let state_hash = demo.close_books(&before).await;
    let command = if args.crash { "demo --crash" } else { "demo" };
    let mut report = Report::new(command, args.seed, demo.figures, demo.checks);
    report.state_hash = state_hash;
    Ok(report)
}

impl Demo<'_> {
    fn event(&self, text: impl AsRef<str>) {
        self.screen.event(text.as_ref());
    }

    fn check(&mut self, name: &str, ok: bool, detail: impl Into<String>) {
        let detail = detail.into();
        let mark = if ok { "ok:" } else { "FAILED:" };
        self.event(format!("{mark} {name} ({detail})"));
        self.checks.push(Check { name: name.to_string(), ok, detail });
    }

    fn figure(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    fn lines(&self) -> Result<Vec<Line>> {
        journal::read(&self.journal)
    }

    /// A gang of whole nodes that runs the demo's worker.
    fn gang(&self, name: &str, workers: u32, level: &str, options: &[&str]) -> v1::JobSpec {
        let resources = v1::Resources { gpus: 8, ..Default::default() };
        v1::JobSpec {
            name: name.to_string(),
            priority: 50,
            workers,
            resources: Some(resources),
            required_level: level.to_string(),
            command: [&self.exe, "demo-worker"]
                .into_iter()
                .chain(options.iter().copied())
                .map(str::to_string)
                .collect(),
            env: self.env(),
            notice_ms: Some(3000),
            ..Default::default()
        }
    }

    fn env(&self) -> BTreeMap<String, String> {
        [(JOURNAL_ENV.to_string(), self.journal.display().to_string())].into()
    }

    /// The machine goes dark, and the journal says when: its processes cannot.
    fn kill_node(&mut self, node: &str) -> Result<()> {
        self.cluster.kill_node(node)?;
        let who = Who { kind: "node".into(), node: node.to_string(), ..Default::default() };
        Journal::open(&self.journal, who)?.write(What::Cut, "")
    }

    /// Every live instance, with the name of its filler.
    async fn instances(&self) -> Result<Vec<(String, v1::Instance)>> {
        let fillers = self.rpc.fillers().await?;
        let with_name = |filler: v1::Filler| {
            let name = filler.spec.unwrap_or_default().name;
            filler.instances.into_iter().map(move |instance| (name.clone(), instance))
        };
        Ok(fillers.into_iter().flat_map(with_name).collect())
    }

    /// Waits until ready instances have all these GPUs.
    async fn wait_filled(&self, gpus: u64) -> Result<()> {
        let limit = Duration::from_secs(60);
        until(&format!("fillers to take {gpus} GPUs"), limit, async || {
            let instances = self.instances().await.ok()?;
            let ready = instances.iter().filter(|(_, instance)| instance.state == "ready");
            let taken: u64 = ready.map(|(_, instance)| instance.gpus.len() as u64).sum();
            (taken == gpus).then_some(())
        })
        .await
    }

    /// The last checks and the figures of the whole run; also after a failed step.
    async fn close_books(&mut self, before: &v1::ClusterStatus) -> Option<String> {
        if let Err(error) = steps::books::close(self, before).await {
            self.check("the books can be closed", false, format!("{error:#}"));
        }
        self.rpc.status().await.ok().map(|status| status.state_hash)
    }
}

/// Asks again and again until there is an answer.
async fn until<T>(
    what: &str,
    limit: Duration,
    mut ask: impl AsyncFnMut() -> Option<T>,
) -> Result<T> {
    let answer = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    };
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => Ok(answer),
        Err(_) => bail!("waited {} s in vain for {what}", limit.as_secs()),
    }
}
