//! `job submit`, `job plan`, `job validate`: everything that begins with a job's description.

use std::process::ExitCode;
use std::time::Duration;

use rowen_api::v1::{
    Job, JobSpec, JobState, PlanJobRequest, SubmitJobRequest, SubmitJobResponse, WatchJobRequest,
};
use serde::Serialize;
use serde_json::Value;

use super::{Session, follow};
use crate::args::{JobSource, PlanArgs, SubmitArgs, ValidateArgs};
use crate::client::jobs;
use crate::exit::{DONE, Outcome, ROWEN_FAILED, USAGE, UsageError, WAITS, code_of};
use crate::files::{FileError, JobFile, Source};
use crate::output::job::JobSpecView;
use crate::output::plan::{self, PlanView};
use crate::output::{Output, line, note, words};

/// How long a plain submit looks at what becomes of its job. The planner decides in a millisecond
/// or two; a cluster that is slower than this still has the job.
const GLANCE: Duration = Duration::from_millis(50);
/// The reason of a job that no plan has looked at yet.
pub(super) const UNDECIDED: &str = "waits for the next plan";

/// `job submit`.
pub(super) async fn submit(session: &mut Session, args: SubmitArgs) -> Outcome {
    let waits = args.wait || args.follow;
    if args.timeout.is_some() && !waits {
        return Err(UsageError("--timeout needs --wait or --follow".to_owned()).into());
    }
    let spec = spec(&args.source)?;
    let accepted = match send(session, spec).await {
        Ok(accepted) => accepted,
        Err(error) if waits => return blame(error),
        Err(error) => return Err(error),
    };
    if args.parsable {
        line(&accepted.id.to_string())?;
    }
    if waits {
        if !args.parsable && session.out.is_text() {
            note(&format!("Submitted job {}.", accepted.id));
        }
        return follow::to_end(session, accepted.id, args.follow, args.timeout)
            .await
            .or_else(blame);
    }
    let job = glance(session, accepted.id).await;
    report(session.out, &accepted, job.as_ref(), args.parsable)
}

/// Under --wait an error of the control plane's is told apart from the job's own failure.
fn blame(error: anyhow::Error) -> Outcome {
    match code_of(&error) {
        crate::exit::FAILED => {
            note(&format!("error: {error:#}"));
            Ok(ExitCode::from(ROWEN_FAILED))
        }
        _ => Err(error),
    }
}

async fn send(session: &mut Session, spec: JobSpec) -> anyhow::Result<SubmitJobResponse> {
    let request = SubmitJobRequest { request: session.client.request_id(), spec: Some(spec) };
    let send = |ch| {
        let request = request.clone();
        async move { jobs(ch).submit_job(request).await }
    };
    Ok(session.client.call(send).await?)
}

/// What the planner made of the job, if it was quick. Failing to look is no failure: the job is in.
async fn glance(session: &mut Session, id: u64) -> Option<Job> {
    let mut seen = None;
    let look = async {
        let request = WatchJobRequest { id: id.to_string() };
        let watch = |ch| {
            let request = request.clone();
            async move { jobs(ch).watch_job(request).await }
        };
        let mut changes = session.client.call(watch).await.ok()?;
        while let Some(job) = changes.message().await.ok()? {
            let decided = job.state() != JobState::Queued || job.reason != UNDECIDED;
            seen = Some(job);
            if decided {
                break;
            }
        }
        Some(())
    };
    let _ = tokio::time::timeout(GLANCE, look).await;
    seen
}

/// `job submit -o json`.
#[derive(Serialize)]
struct SubmittedView {
    id: u64,
    /// Log index that made it durable.
    index: u64,
    /// Shortly after; null: not known.
    state: Option<&'static str>,
    /// Why it waits, when it does.
    reason: Option<String>,
}

fn report(out: Output, accepted: &SubmitJobResponse, job: Option<&Job>, parsable: bool) -> Outcome {
    let queued = job.filter(|job| job.state() == JobState::Queued && job.reason != UNDECIDED);
    let view = SubmittedView {
        id: accepted.id,
        index: accepted.index,
        state: job.map(|job| words::job_state(job.state())),
        reason: job.and_then(|job| words::some_text(&job.reason)),
    };
    match (parsable, queued) {
        (true, Some(job)) => note(&format!("job {} waits: {}", accepted.id, job.reason)),
        (true, None) => {}
        (false, _) => out.emit(&view, |_| sentence(accepted.id, job))?,
    }
    Ok(ExitCode::from(if queued.is_some() { WAITS } else { DONE }))
}

fn sentence(id: u64, job: Option<&Job>) -> String {
    let Some(job) = job else { return format!("Submitted job {id}.") };
    let nodes = words::host_list(job.tasks.iter().map(|task| task.node.as_str()));
    match job.state() {
        JobState::Queued if job.reason == UNDECIDED => format!("Submitted job {id}."),
        JobState::Queued => {
            let why = format!("`rowen why {id}` says more");
            format!("Submitted job {id}; it waits: {} ({why}).", job.reason)
        }
        JobState::Holding => format!("Submitted job {id}; GPUs are being cleared for it."),
        JobState::Starting | JobState::Running if !nodes.is_empty() => {
            format!("Submitted job {id}; it starts on {nodes}.")
        }
        _ => format!("Submitted job {id}."),
    }
}

/// `job plan`.
pub(super) async fn plan(session: &mut Session, args: PlanArgs) -> Outcome {
    let spec = spec(&args.source)?;
    let view = JobSpecView::new(&spec);
    let request = PlanJobRequest { spec: Some(spec) };
    let send = |ch| {
        let request = request.clone();
        async move { jobs(ch).plan_job(request).await }
    };
    let view = PlanView::new(&session.client.call(send).await?, view);
    let out = session.out;
    out.emit(&view, |view| plan::plan(view, out.wide(), out.colour))?;
    Ok(ExitCode::from(if view.fits() { DONE } else { WAITS }))
}

/// `job validate`: all files are looked at, whatever is wrong with the first.
pub(super) fn validate(out: Output, args: &ValidateArgs) -> Outcome {
    let cwd = std::env::current_dir()?;
    check_each(&args.files, |file| {
        let source = Source::read(file, args.format)?;
        let spec = JobSpecView::new(&JobFile::spec(&source, &cwd)?);
        Ok(out.emit(&spec, |spec| format!("{file}: ok: {}", spec.gang())))
    })
}

/// Runs `check` on each file and prints what is wrong; exit code 2 when anything was.
pub(super) fn check_each(
    files: &[String],
    mut check: impl FnMut(&str) -> Result<anyhow::Result<()>, FileError>,
) -> Outcome {
    let mut code = DONE;
    for file in files {
        match check(file) {
            Ok(printed) => printed?,
            Err(error) => {
                note(&error.to_string());
                code = USAGE;
            }
        }
    }
    Ok(ExitCode::from(code))
}

/// The job of a file.
pub(super) fn spec_of(file: &str) -> anyhow::Result<JobSpec> {
    Ok(JobFile::spec(&Source::read(file, None)?, &std::env::current_dir()?)?)
}

/// The job that the arguments describe: a file, flags, or a file changed by flags.
fn spec(args: &JobSource) -> anyhow::Result<JobSpec> {
    let mut source = match &args.file {
        Some(file) => Source::read(file, args.format)?,
        None if args.command.is_empty() => {
            let text =
                "name a job file, or a command: rowen submit --workers 2 --gpus 8 -- COMMAND";
            return Err(UsageError(text.to_owned()).into());
        }
        None => from_command(&args.command)?,
    };
    for assignment in &args.set {
        source.set_text(assignment)?;
    }
    for (path, value) in overrides(args) {
        source.set(path, value)?;
    }
    Ok(JobFile::spec(&source, &std::env::current_dir()?)?)
}

/// A job without a file is named after its program, as srun does it.
fn from_command(command: &[String]) -> Result<Source, FileError> {
    let mut source = Source::empty("command line");
    let program = command[0].rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let plain: String =
        program.chars().filter(|&c| c.is_ascii_alphanumeric() || "._-".contains(c)).collect();
    let name = plain.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    let name = if name.is_empty() { "job" } else { &name[..name.len().min(63)] };
    source.set("name", Value::from(name))?;
    Ok(source)
}

fn overrides(args: &JobSource) -> Vec<(&'static str, Value)> {
    let mut set = Vec::new();
    let mut put = |path, value: Option<Value>| set.extend(value.map(|value| (path, value)));
    put("name", args.name.clone().map(Value::from));
    put("workers", args.workers.map(Value::from));
    put("resources.gpus", args.gpus.map(Value::from));
    put("priority", args.priority.map(Value::from));
    put("topology.required", args.required.clone().map(Value::from));
    put("time_limit", args.time_limit.clone().map(Value::from));
    put("command", (!args.command.is_empty()).then(|| Value::from(args.command.clone())));
    set
}
