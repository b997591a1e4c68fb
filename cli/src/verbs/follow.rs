//! A job from its submission to its end: its states, its logs, its exit code.
//!
//! Survives a change of the leader: the watch is opened again, and a log goes on with the line
//! after the last one printed.

use std::process::ExitCode;
use std::time::Duration;

use rowen_api::v1::{Job, JobState, WatchJobRequest};
use tokio::time::timeout;
use tonic::Streaming;

use super::Session;
use super::logs::{LogTail, Sink};
use super::submit::UNDECIDED;
use crate::client::{CallError, jobs, may_pass};
use crate::exit::{DONE, Outcome, ROWEN_FAILED, WAIT_EXPIRED, code_of_job};
use crate::output::job::JobView;
use crate::output::{note, words};

/// After a job's end its last lines may take this long to arrive.
const LAST_LINES: Duration = Duration::from_secs(5);

/// Waits for the job to end, printing its logs if asked; its exit code becomes ours.
pub(super) async fn to_end(
    session: &mut Session,
    id: u64,
    logs: bool,
    limit: Option<Duration>,
) -> Outcome {
    let wait = watch(session, id, logs);
    let ended = match limit {
        None => wait.await?,
        Some(limit) => match timeout(limit, wait).await {
            Ok(ended) => ended?,
            Err(_) => {
                let limit = words::span(limit.as_millis() as u64);
                note(&format!(
                    "job {id} has not ended after {limit}; it goes on (rowen cancel {id})"
                ));
                return Ok(ExitCode::from(WAIT_EXPIRED));
            }
        },
    };
    if session.out.is_text() {
        note(&ending(&ended));
    } else if !logs {
        session.out.emit(&JobView::new(&ended), |_| String::new())?;
    }
    Ok(ExitCode::from(exit_code(&ended)))
}

/// The job's own code; where it has none and did not complete, Rowen's.
fn exit_code(job: &Job) -> u8 {
    match job.state() {
        JobState::Completed => DONE,
        _ => code_of_job(job.exit_code).unwrap_or(ROWEN_FAILED),
    }
}

fn ending(job: &Job) -> String {
    let word = words::job_state(job.state());
    let code = match job.state() {
        JobState::Completed => String::new(),
        _ if job.exit_code == 0 => String::new(),
        _ => format!(" with exit code {}", job.exit_code),
    };
    let reason = match job.reason.as_str() {
        "" => String::new(),
        reason => format!(": {reason}"),
    };
    format!("job {} {word}{code}{reason}", job.id)
}

async fn watch(session: &mut Session, id: u64, logs: bool) -> anyhow::Result<Job> {
    let mut tail: Option<LogTail> = None;
    let mut told = String::new();
    loop {
        let mut changes = open(session, id).await?;
        loop {
            let change = tokio::select! {
                change = changes.message() => change,
                more = next_lines(&mut tail) => {
                    if !more? {
                        reopen(session, &mut tail).await;
                    }
                    continue;
                }
            };
            let job = match change {
                Ok(Some(job)) => job,
                Ok(None) => break,
                Err(status) if may_pass(&status) => break,
                Err(status) => return Err(CallError::Refused { status: Box::new(status) }.into()),
            };
            tell(session, &job, &mut told);
            if logs && job.attempt > 0 && started(&job) {
                turn_to_attempt(session, &job, &mut tail).await?;
            }
            if words::has_ended(job.state()) {
                if logs && tail.is_none() && job.attempt > 0 && job.bound_ms > 0 {
                    turn_to_attempt(session, &job, &mut tail).await?;
                }
                drain(session, &mut tail).await?;
                return Ok(job);
            }
        }
    }
}

async fn open(session: &mut Session, id: u64) -> Result<Streaming<Job>, CallError> {
    let watch =
        |ch| async move { jobs(ch).watch_job(WatchJobRequest { id: id.to_string() }).await };
    session.client.call(watch).await
}

fn started(job: &Job) -> bool {
    matches!(job.state(), JobState::Running | JobState::Stopping)
}

/// Follows the log of the job's current attempt; the one before is read to its end first.
async fn turn_to_attempt(
    session: &mut Session,
    job: &Job,
    tail: &mut Option<LogTail>,
) -> anyhow::Result<()> {
    if tail.as_ref().is_some_and(|tail| tail.attempt() == job.attempt) {
        return Ok(());
    }
    drain(session, tail).await?;
    let workers = job.spec.as_ref().map_or(1, |spec| spec.workers);
    let sink = Sink::new(session.out, workers > 1);
    *tail = Some(LogTail::open(&mut session.client, job.id, job.attempt, sink).await?);
    Ok(())
}

/// `false`: this log has ended. Never returns where there is none.
async fn next_lines(tail: &mut Option<LogTail>) -> anyhow::Result<bool> {
    match tail.as_mut().filter(|tail| tail.is_open()) {
        Some(tail) => tail.next().await,
        None => std::future::pending().await,
    }
}

/// A log that has ended is closed; one whose connection broke goes on, where that can be had.
/// Losing it does not end the wait: the job matters more.
async fn reopen(session: &mut Session, tail: &mut Option<LogTail>) {
    let Some(open) = tail.as_mut() else { return };
    if open.broke() {
        match open.resume(&mut session.client).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => note(&format!("the log broke off: {error}")),
        }
    }
    open.close();
}

/// Reads an open log to its end.
async fn drain(session: &mut Session, tail: &mut Option<LogTail>) -> anyhow::Result<()> {
    let rest = async {
        while let Some(open) = tail.as_mut().filter(|tail| tail.is_open()) {
            if !open.next().await? {
                reopen(session, tail).await;
            }
        }
        anyhow::Ok(())
    };
    match timeout(LAST_LINES, rest).await {
        Ok(read) => read,
        Err(_) => {
            note("some last lines did not arrive; `rowen logs` may have them");
            *tail = None;
            Ok(())
        }
    }
}

/// A line of progress where the state or its reason changed.
fn tell(session: &Session, job: &Job, told: &mut String) {
    if !session.out.is_text() || words::has_ended(job.state()) {
        return;
    }
    let state = words::job_state(job.state());
    let nodes = words::host_list(job.tasks.iter().map(|task| task.node.as_str()));
    if job.state() == JobState::Queued && job.reason == UNDECIDED {
        return;
    }
    let detail = match job.state() {
        JobState::Running if !nodes.is_empty() => format!(" on {nodes}"),
        JobState::Starting => return,
        _ if job.reason.is_empty() => String::new(),
        // Many reasons begin with the state's word themselves.
        _ => format!(": {}", job.reason.trim_start_matches(&format!("{state}: "))),
    };
    let attempt =
        if job.attempt > 1 { format!(" (attempt {})", job.attempt) } else { String::new() };
    let text = format!("job {} {state}{attempt}{detail}", job.id);
    if text != *told {
        note(&text);
        *told = text;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_of_endings() {
        let code = |state: JobState, exit_code| {
            let mut job = Job { exit_code, ..Job::default() };
            job.set_state(state);
            super::exit_code(&job)
        };
        assert_eq!(code(JobState::Completed, 0), 0);
        assert_eq!(code(JobState::Failed, 3), 3);
        assert_eq!(code(JobState::Failed, 137), 137);
        assert_eq!(code(JobState::Failed, 125), 125);
        assert_eq!(code(JobState::Failed, 0), 125);
        assert_eq!(code(JobState::Cancelled, 143), 143);
        assert_eq!(code(JobState::Cancelled, 0), 125);
    }
}
