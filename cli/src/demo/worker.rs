//! `rowen demo-worker` (hidden): one rank of the demo's training gang.
//!
//! It stands in for a training step: a ring all-reduce over real TCP, checked exactly, again and
//! again. Never does arithmetic on a GPU: the demo's GPUs are simulated.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};

use super::journal::{Journal, What, boottime_ns};
use super::ring::{Place, Ring};
use crate::output::note;

/// 128 + SIGTERM, as a process that had no handler.
const STOPPED: u8 = 143;

/// Reads its arguments itself: the time until a task's first instruction is measured.
pub(crate) fn run() -> ExitCode {
    let started_ns = boottime_ns();
    match Work::parse(std::env::args().skip(2)).and_then(|work| work.run(started_ns)) {
        Ok(code) => code,
        Err(error) => {
            note(&format!("demo-worker: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, PartialEq)]
struct Work {
    /// Elements of the vector, without the vote.
    elements: usize,
    rounds: u32,
    pause: Duration,
    /// It goes on until this file is there.
    until: Option<PathBuf>,
    /// It writes its first moment to a file named after its job here, and ends.
    stamp: Option<PathBuf>,
}

impl Work {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Work> {
        let (elements, pause) = (mib(2)?, Duration::ZERO);
        let mut work = Work { elements, rounds: 5, pause, until: None, stamp: None };
        while let Some(flag) = args.next() {
            let value = args.next().with_context(|| format!("{flag} wants a value"))?;
            match flag.as_str() {
                "--mib" => work.elements = mib(value.parse()?)?,
                "--rounds" => work.rounds = value.parse()?,
                "--pause-ms" => work.pause = Duration::from_millis(value.parse()?),
                "--until" => work.until = Some(value.into()),
                "--stamp" => work.stamp = Some(value.into()),
                _ => bail!("no option {flag}"),
            }
        }
        Ok(work)
    }

    fn run(self, started_ns: u64) -> Result<ExitCode> {
        if let Some(folder) = &self.stamp {
            let name = std::env::var("ROWEN_JOB_ID").unwrap_or_else(|_| "bare".into());
            let temporary = folder.join(format!("{name}.new"));
            std::fs::write(&temporary, started_ns.to_string())?;
            std::fs::rename(temporary, folder.join(name))?;
            return Ok(ExitCode::SUCCESS);
        }
        let journal = Journal::begin()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.train(journal))
    }

    async fn train(self, mut journal: Option<Journal>) -> Result<ExitCode> {
        let place = Place::from_env()?;
        let mut term = signal(SignalKind::terminate())?;
        let done = tokio::select! {
            done = self.rounds(&place) => Some(done),
            _ = term.recv() => None,
        };
        let code = match done {
            Some(Ok(line)) => {
                crate::output::line(&line)?;
                ExitCode::SUCCESS
            }
            Some(Err(error)) => {
                // As a collective does when a peer is gone: it hangs, until somebody ends it.
                note(&format!("rank {}: {error:#}; waiting to be stopped", place.rank));
                let _ = tokio::time::timeout(Duration::from_secs(60), term.recv()).await;
                write(&mut journal, What::Term)?;
                ExitCode::from(STOPPED)
            }
            None => {
                write(&mut journal, What::Term)?;
                ExitCode::from(STOPPED)
            }
        };
        write(&mut journal, What::End)?;
        Ok(code)
    }

    /// All rounds, and a line that tells of them.
    async fn rounds(&self, place: &Place) -> Result<String> {
        let mut ring = Ring::join(place.clone()).await?;
        let mut vector = vec![0u64; self.elements + 1];
        let (mut round, mut busy) = (0u32, Duration::ZERO);
        loop {
            round += 1;
            fill(&mut vector, place.rank, round);
            // The last element carries votes to end, so that all ranks end after the same round.
            let enough = round >= self.rounds && self.until.as_ref().is_none_or(|f| f.exists());
            vector[self.elements] = u64::from(enough);
            let begun = Instant::now();
            ring.all_reduce(&mut vector).await?;
            busy += begun.elapsed();
            check(&vector[..self.elements], place.world, round)?;
            if vector[self.elements] > 0 {
                break;
            }
            tokio::time::sleep(self.pause).await;
        }
        let (rank, world, bytes) = (place.rank, place.world, vector.len() * 8);
        // What each rank sends and receives, as NCCL's "bus bandwidth" counts it.
        let moved = 2.0 * f64::from(world - 1) / f64::from(world) * bytes as f64 * f64::from(round);
        let gbs = moved / busy.as_secs_f64() / 1e9;
        let node = std::env::var("ROWEN_NODE").unwrap_or_default();
        Ok(format!(
            "rank={rank} world={world} node={node} rounds={round} bytes={bytes} sum=exact busbw_gbs={gbs:.3}"
        ))
    }
}

fn mib(mib: usize) -> Result<usize> {
    ensure!((1..=1024).contains(&mib), "--mib: {mib} is not within 1 to 1024");
    Ok(mib << 17)
}

fn fill(vector: &mut [u64], rank: u32, round: u32) {
    let (factor, term) = (u64::from(rank) + 1, u64::from(round));
    for (i, value) in vector.iter_mut().enumerate() {
        *value = factor * (i as u64) + term;
    }
}

fn check(vector: &[u64], world: u32, round: u32) -> Result<()> {
    let (world, round) = (u64::from(world), u64::from(round));
    let wrong = vector
        .iter()
        .enumerate()
        .find(|(i, value)| **value != world * (world + 1) / 2 * (*i as u64) + world * round);
    match wrong {
        None => Ok(()),
        Some((i, value)) => bail!("round {round}: element {i} is {value}, a wrong sum"),
    }
}

fn write(journal: &mut Option<Journal>, what: What) -> Result<()> {
    journal.as_mut().map_or(Ok(()), |journal| journal.write(what, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_sum_is_found() {
        let mut sum = vec![0u64; 10];
        for rank in 0..4 {
            let mut mine = vec![0u64; 10];
            fill(&mut mine, rank, 3);
            sum.iter_mut().zip(mine).for_each(|(a, b)| *a += b);
        }
        check(&sum, 4, 3).unwrap();
        sum[7] += 1;
        let error = check(&sum, 4, 3).unwrap_err().to_string();
        assert!(error.contains("element 7"), "{error}");
    }
}
