//! `rowen demo-filler` (hidden): one instance of the demo's inference fillers.
//!
//! A real, if tiny, HTTP server on the port it was given: `/health` for its readiness probe,
//! anything else a greeting. On SIGTERM it refuses new work, drains and ends.

use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

use super::journal::{Journal, What};
use crate::output::note;

/// A request line longer than this is nobody's we know.
const REQUEST_LIMIT: u64 = 8192;

/// Reads its arguments itself, like the worker.
pub(crate) fn run() -> ExitCode {
    match Filler::parse(std::env::args().skip(2)).and_then(Filler::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note(&format!("demo-filler: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

struct Filler {
    /// Loading its model.
    warm: Duration,
    /// Finishing the requests it has, once it was told to stop.
    drain: Duration,
}

impl Filler {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Filler> {
        let mut filler = Filler { warm: Duration::ZERO, drain: Duration::from_millis(150) };
        while let Some(flag) = args.next() {
            let value = args.next().with_context(|| format!("{flag} wants a value"))?;
            match flag.as_str() {
                "--warm-ms" => filler.warm = Duration::from_millis(value.parse()?),
                "--drain-ms" => filler.drain = Duration::from_millis(value.parse()?),
                _ => bail!("no option {flag}"),
            }
        }
        Ok(filler)
    }

    fn run(self) -> Result<()> {
        let mut journal = Journal::begin()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.serve(&mut journal))?;
        journal.as_mut().map_or(Ok(()), |journal| journal.write(What::End, ""))
    }

    async fn serve(&self, journal: &mut Option<Journal>) -> Result<()> {
        let mut term = signal(SignalKind::terminate())?;
        tokio::select! {
            _ = term.recv() => {}
            failed = self.accept() => return failed,
        }
        // The listener is closed now; requests that are under way go on until the drain ends.
        if let Some(journal) = journal {
            journal.write(What::Term, "")?;
        }
        tokio::time::sleep(self.drain).await;
        Ok(())
    }

    async fn accept(&self) -> Result<()> {
        tokio::time::sleep(self.warm).await;
        let port = std::env::var("ROWEN_PORT").context("ROWEN_PORT is not set")?;
        let port: u16 = port.parse().context("ROWEN_PORT is no port")?;
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await;
        let listener = listener.with_context(|| format!("cannot listen on port {port}"))?;
        loop {
            let (stream, _) = listener.accept().await?;
            // A client that says nothing is not waited for.
            tokio::spawn(tokio::time::timeout(Duration::from_secs(5), answer(stream)));
        }
    }
}

async fn answer(stream: TcpStream) -> Result<()> {
    let mut reader = BufReader::new(tokio::io::AsyncReadExt::take(stream, REQUEST_LIMIT));
    let mut request = String::new();
    reader.read_line(&mut request).await?;
    let mut header = String::new();
    while reader.read_line(&mut header).await? > 2 {
        header.clear();
    }
    let filler = std::env::var("ROWEN_FILLER").unwrap_or_default();
    let instance = std::env::var("ROWEN_INSTANCE").unwrap_or_default();
    let (status, body) = match request.split(' ').nth(1) {
        Some("/health") => ("200 OK", "ok\n".to_string()),
        Some(_) => ("200 OK", format!("{filler} instance {instance}\n")),
        None => ("400 Bad Request", "no path\n".to_string()),
    };
    let length = body.len();
    let text =
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
    let mut stream = reader.into_inner().into_inner();
    stream.write_all(text.as_bytes()).await?;
    Ok(stream.shutdown().await?)
}
