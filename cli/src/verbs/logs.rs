//! `job logs`: what tasks wrote, their standard output to ours and their standard error to ours.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use rowen_api::v1::{GetJobRequest, LogLine, ReadLogsRequest};
use serde::Serialize;
use tonic::Streaming;

use super::Session;
use crate::args::LogsArgs;
use crate::client::{CallError, Client, jobs, may_pass};
use crate::exit::{DONE, Outcome};
use crate::output::{Output, note};

/// Before a broken log is opened again.
const REOPEN_PAUSE: Duration = Duration::from_millis(200);
/// How often a broken log is opened again before one more line must have come: for 10 s.
const MAX_TRIES: u32 = 50;
/// The stream of lines that no task wrote: what the control plane says about the log.
const REMARK: &str = "rowen";

/// `job logs`.
pub(super) async fn logs(session: &mut Session, args: LogsArgs) -> Outcome {
    let request = GetJobRequest { id: args.id.clone() };
    let get = |ch| {
        let request = request.clone();
        async move { jobs(ch).get_job(request).await }
    };
    let job = session.client.call(get).await?;
    let workers = job.spec.as_ref().map_or(1, |spec| spec.workers);
    let stream = match (args.stdout, args.stderr) {
        (true, _) => "stdout",
        (_, true) => "stderr",
        _ => "",
    };
    let request = ReadLogsRequest {
        id: job.id.to_string(),
        rank: args.rank,
        follow: args.follow,
        attempt: args.attempt,
        stream: stream.to_owned(),
        tail_lines: args.tail,
    };
    let sink = Sink::new(session.out, workers > 1 && args.rank.is_none());
    let mut tail = LogTail::begin(&mut session.client, request, sink).await?;
    loop {
        while tail.next().await? {}
        // A broken connection is taken up again only where it is known what was printed.
        if !tail.broke() || !tail.resume(&mut session.client).await? {
            return Ok(ExitCode::from(DONE));
        }
    }
}

/// Where log lines go: ranks told apart by a prefix where there are several.
pub(super) struct Sink {
    out: Output,
    prefix: bool,
}

/// A line of `job logs -o json`.
#[derive(Serialize)]
struct LineView<'a> {
    rank: u32,
    node: &'a str,
    stream: &'a str,
    text: std::borrow::Cow<'a, str>,
}

impl Sink {
    pub(super) fn new(out: Output, prefix: bool) -> Sink {
        Sink { out, prefix }
    }

    fn print(&self, line: &LogLine) -> anyhow::Result<()> {
        if !self.out.is_text() {
            let text = String::from_utf8_lossy(&line.text);
            let view = LineView { rank: line.rank, node: &line.node, stream: &line.stream, text };
            return crate::output::line(&serde_json::to_string(&view)?);
        }
        let mut bytes = Vec::with_capacity(line.text.len() + 12);
        if self.prefix {
            let faint = if self.out.colour {
                anstyle::Style::new().dimmed()
            } else {
                anstyle::Style::new()
            };
            write!(bytes, "{faint}{}:{faint:#} ", line.rank)?;
        }
        bytes.extend_from_slice(&line.text);
        bytes.push(b'\n');
        match line.stream.as_str() {
            "stderr" => io::stderr().lock().write_all(&bytes)?,
            _ => io::stdout().lock().write_all(&bytes)?,
        }
        Ok(())
    }
}

/// The log of one attempt as it is read.
pub(super) struct LogTail {
    request: ReadLogsRequest,
    sink: Sink,
    lines: Option<Streaming<LogLine>>,
    broke: bool,
    /// Times it was opened again since the last line.
    tries: u32,
    /// What the control plane last said about the log itself.
    remark: String,
    /// How many lines of each rank and stream were printed.
    printed: BTreeMap<(u32, String), u64>,
    /// How many of them a reopened log brings again.
    skip: BTreeMap<(u32, String), u64>,
}

impl LogTail {
    /// Follows the whole log of one attempt.
    pub(super) async fn open(
        client: &mut Client,
        job: u64,
        attempt: u32,
        sink: Sink,
    ) -> Result<LogTail, CallError> {
        let request =
            ReadLogsRequest { id: job.to_string(), follow: true, attempt, ..Default::default() };
        LogTail::begin(client, request, sink).await
    }

    async fn begin(
        client: &mut Client,
        request: ReadLogsRequest,
        sink: Sink,
    ) -> Result<LogTail, CallError> {
        let lines = Some(stream(client, &request).await?);
        let (printed, skip) = (BTreeMap::new(), BTreeMap::new());
        let (broke, tries, remark) = (false, 0, String::new());
        Ok(LogTail { request, sink, lines, broke, tries, remark, printed, skip })
    }

    pub(super) fn attempt(&self) -> u32 {
        self.request.attempt
    }

    pub(super) fn is_open(&self) -> bool {
        self.lines.is_some()
    }

    pub(super) fn close(&mut self) {
        self.lines = None;
    }

    pub(super) fn broke(&self) -> bool {
        self.broke
    }

    /// Prints the next line; `false` where the log has ended or the connection broke.
    pub(super) async fn next(&mut self) -> anyhow::Result<bool> {
        let Some(lines) = self.lines.as_mut() else { return Ok(false) };
        let line = match lines.message().await {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(false),
            Err(status) if may_pass(&status) => {
                self.broke = true;
                return Ok(false);
            }
            Err(status) => return Err(CallError::Refused { status: Box::new(status) }.into()),
        };
        if line.stream == REMARK {
            self.remark(&line);
            return Ok(true);
        }
        let key = (line.rank, line.stream.clone());
        if let Some(left) = self.skip.get_mut(&key).filter(|left| **left > 0) {
            *left -= 1;
            return Ok(true);
        }
        self.tries = 0;
        *self.printed.entry(key).or_default() += 1;
        self.sink.print(&line)?;
        Ok(true)
    }

    /// A part of the log cannot be read now: an agent is away. Who follows tries again.
    fn remark(&mut self, line: &LogLine) {
        let text = String::from_utf8_lossy(&line.text);
        if self.remark != text {
            note(&text);
            self.remark = text.into_owned();
        }
        self.broke = self.request.follow;
    }

    /// Opens a broken log again; `false` where that was tried for long enough, or where a part of
    /// the log was asked for, since it is then not known which lines come again.
    pub(super) async fn resume(&mut self, client: &mut Client) -> Result<bool, CallError> {
        if self.request.tail_lines > 0 || self.tries >= MAX_TRIES {
            return Ok(false);
        }
        self.tries += 1;
        // A log that breaks at once, again and again, must not spin.
        tokio::time::sleep(REOPEN_PAUSE).await;
        self.lines = Some(stream(client, &self.request).await?);
        self.skip = self.printed.clone();
        self.broke = false;
        Ok(true)
    }
}

async fn stream(
    client: &mut Client,
    request: &ReadLogsRequest,
) -> Result<Streaming<LogLine>, CallError> {
    let read = |ch| {
        let request = request.clone();
        async move { jobs(ch).read_logs(request).await }
    };
    client.call(read).await
}
