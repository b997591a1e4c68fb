//! What each verb does: one file a noun, each a thin line from arguments over a call to a view.
//!
//! Client verbs run on a current-thread runtime, which starts in microseconds; what serves runs
//! on all cores. Nothing here decides how anything looks: see `output`.

mod agent;
mod cluster;
mod completion;
mod fabric;
mod filler;
mod follow;
mod health;
mod import;
mod job;
mod logs;
mod node;
mod queue;
mod replay;
mod schema;
mod serve;
mod sim;
mod status;
mod submit;
mod version;
mod whatif;

pub(crate) use health::HealthVerb;
pub(crate) use replay::ReplayArgs;
pub(crate) use sim::SimVerb;
pub(crate) use whatif::WhatIfArgs;

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use tokio::runtime::Builder;

use crate::args::{FabricVerb, FillerVerb, GlobalArgs, JobVerb, QueueArgs, RowenArgs, Verb};
use crate::client::{CallError, Client};
use crate::exit::{DONE, Outcome};
use crate::files::Kind;
use crate::output::Output;

/// How often `--watch` prints.
const WATCH_PERIOD: Duration = Duration::from_secs(1);

/// Does what was typed.
pub(crate) fn run(args: RowenArgs) -> Outcome {
    let global = &args.global;
    match args.verb {
        Verb::Submit(args) => client(global, async |s| submit::submit(s, args).await),
        Verb::Plan(args) => client(global, async |s| submit::plan(s, args).await),
        Verb::Queue(QueueArgs { verb: Some(verb), .. }) => {
            client(global, async |s| queue::run(s, verb).await)
        }
        Verb::Queue(args) => client(global, async |s| job::list(s, args.jobs).await),
        Verb::Why(args) => client(global, async |s| job::why(s, args).await),
        Verb::WhatIf(args) => whatif::run(global, args),
        Verb::Logs(args) => client(global, async |s| logs::logs(s, args).await),
        Verb::Cancel(args) => client(global, async |s| job::cancel(s, args).await),
        Verb::Job(verb) => job(global, verb),
        Verb::Node(verb) => client(global, async |s| node::run(s, verb).await),
        Verb::Fabric(FabricVerb::Check(args)) => fabric::check(Output::new(global.output), &args),
        Verb::Fabric(FabricVerb::Import(args)) => import::run(Output::new(global.output), &args),
        Verb::Fabric(FabricVerb::Schema) => schema::print(Kind::Fabric),
        Verb::Fabric(verb) => client(global, async |s| fabric::run(s, verb).await),
        Verb::Filler(FillerVerb::Validate(args)) => {
            filler::validate(Output::new(global.output), &args)
        }
        Verb::Filler(FillerVerb::Schema) => schema::print(Kind::Filler),
        Verb::Filler(verb) => client(global, async |s| filler::run(s, verb).await),
        Verb::Status(args) => client(global, async |s| status::run(s, args).await),
        Verb::Cluster(verb) => cluster::run(global, verb),
        Verb::Dev(args) => on_all_cores(crate::dev::run(*args)),
        Verb::Demo(args) => on_all_cores(crate::demo::run(*args)),
        Verb::Bench(args) => on_all_cores(crate::bench::run(*args)),
        Verb::Replay(args) => replay::run(Output::new(global.output), &args),
        Verb::Sim(verb) => sim::run(verb),
        Verb::Serve(args) => serve::run(&args),
        Verb::Agent(args) => agent::run(args),
        Verb::Schema(args) => schema::print(args.kind),
        Verb::Completion(args) => completion::print(args.shell),
        Verb::Version => version::print(Output::new(global.output)),
        Verb::Shim | Verb::ProbeGpus | Verb::DemoWorker | Verb::DemoFiller | Verb::ClusterGuard => {
            anyhow::bail!("for Rowen's own use, with exactly the arguments it gives")
        }
    }
}

fn job(global: &GlobalArgs, verb: JobVerb) -> Outcome {
    match verb {
        JobVerb::Validate(args) => submit::validate(Output::new(global.output), &args),
        JobVerb::Schema => schema::print(Kind::Job),
        JobVerb::Submit(args) => client(global, async |s| submit::submit(s, args).await),
        JobVerb::Plan(args) => client(global, async |s| submit::plan(s, args).await),
        JobVerb::List(args) => client(global, async |s| job::list(s, args).await),
        JobVerb::Show(args) => client(global, async |s| job::show(s, args).await),
        JobVerb::Why(args) => client(global, async |s| job::why(s, args).await),
        JobVerb::Logs(args) => client(global, async |s| logs::logs(s, args).await),
        JobVerb::Cancel(args) => client(global, async |s| job::cancel(s, args).await),
        JobVerb::Requeue(args) => client(global, async |s| job::requeue(s, args).await),
    }
}

/// What a client verb has at hand.
struct Session {
    client: Client,
    out: Output,
}

fn client(global: &GlobalArgs, verb: impl AsyncFnOnce(&mut Session) -> Outcome) -> Outcome {
    let mut session = Session { client: Client::new(global), out: Output::new(global.output) };
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(verb(&mut session))
}

/// For what serves others, or runs many processes.
fn on_all_cores(work: impl Future<Output = Outcome>) -> Outcome {
    Builder::new_multi_thread().enable_all().build()?.block_on(work)
}

/// Ends with the first SIGTERM or Ctrl-C.
fn interrupted() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Logs of what serves go to standard error; RUST_LOG chooses.
fn log_to_stderr() {
    use std::io::IsTerminal as _;
    use tracing_subscriber::EnvFilter;
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,openraft=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && crate::output::may_colour())
        .init();
}

impl Session {
    /// Prints a list once, or each second.
    async fn list<V: Serialize>(
        &mut self,
        watch: bool,
        mut fetch: impl AsyncFnMut(&mut Client) -> Result<V, CallError>,
        text: impl Fn(&V) -> String,
    ) -> Outcome {
        if !watch {
            let view = fetch(&mut self.client).await?;
            self.out.emit(&view, &text)?;
            return Ok(ExitCode::from(DONE));
        }
        loop {
            let view = fetch(&mut self.client).await?;
            self.out.redraw(&view, &text)?;
            tokio::time::sleep(WATCH_PERIOD).await;
        }
    }

    /// Does `act` to each of `items`, whatever becomes of the others; the first refusal is the
    /// error, the ones after it are only told.
    async fn each<T>(
        &mut self,
        items: &[T],
        mut act: impl AsyncFnMut(&mut Session, &T) -> anyhow::Result<()>,
    ) -> Outcome {
        let mut refused = None;
        for item in items {
            match act(self, item).await {
                Ok(()) => {}
                Err(error) if !matches!(error.downcast_ref(), Some(CallError::Refused { .. })) => {
                    return Err(error);
                }
                Err(error) if refused.is_none() => refused = Some(error),
                Err(error) => crate::output::note(&format!("error: {error}")),
            }
        }
        refused.map_or(Ok(ExitCode::from(DONE)), Err)
    }

    /// Says that something was done: a sentence for people, `{"done": …}` for programs.
    fn done(&self, view: &impl Serialize, sentence: &str) -> anyhow::Result<()> {
        self.out.emit(view, |_| sentence.to_owned())
    }
}
