//! Clients that submit one-GPU jobs without a break, several requests under way on each connection,
//! each with one job or with several.
//!
//! Each request keeps its id through all its retries. A client waits for room in the journal before
//! it submits: what is under way is bounded, so a run can go on for ever.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use rowen_api::v1::job_service_client::JobServiceClient;
use rowen_api::v1::{
    JobSpec, RequestId, Resources, SubmitJobRequest, SubmitJobResponse, SubmitJobResult,
    SubmitJobsRequest,
};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::journal::{self, Journal};
use crate::client::may_pass;

/// Jobs of one client that are under way, in one request or in several; the state remembers the
/// answers of 64.
const UNDER_WAY: u32 = 16;
/// A request that has no answer for so long has met a bug.
const GIVE_UP: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// The running clients.
pub(super) struct Load {
    shared: Arc<Shared>,
    batch: u32,
    tasks: Vec<tokio::task::JoinHandle<Result<()>>>,
}

struct Shared {
    journal: Arc<Journal>,
    stop: AtomicBool,
    /// Between two jobs of one request's place, in microseconds.
    pause_us: AtomicU64,
}

impl Load {
    pub(super) async fn start(
        addrs: &[String],
        (clients, batch): (u32, u32),
        journal: &Arc<Journal>,
    ) -> Result<Load> {
        let shared = Arc::new(Shared {
            journal: journal.clone(),
            stop: AtomicBool::new(false),
            pause_us: AtomicU64::new(0),
        });
        let unique = crate::demo::boottime_ns();
        let mut tasks = Vec::new();
        for number in 0..clients {
            let client = Arc::new(Client {
                line: Line::new(addrs)?,
                id: format!("bench-{unique}-{number}"),
                batch,
                seq: AtomicU64::new(0),
                shared: shared.clone(),
            });
            // A client that is not known yet begins with its first jobs, alone.
            client.submit().await?;
            tasks.extend(
                (0..(UNDER_WAY / batch).max(1)).map(|_| tokio::spawn(client.clone().run())),
            );
        }
        Ok(Load { shared, batch, tasks })
    }

    /// About so many jobs a second from now on, at most.
    pub(super) fn slow_down(&self, per_s: u64) {
        let jobs = self.tasks.len() as u64 * u64::from(self.batch);
        self.shared.pause_us.store(jobs * 1_000_000 / per_s.max(1), Ordering::Relaxed);
    }

    pub(super) async fn stop(self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await??;
        }
        Ok(())
    }
}

struct Client {
    line: Line,
    id: String,
    /// Jobs of one request.
    batch: u32,
    seq: AtomicU64,
    shared: Arc<Shared>,
}

impl Client {
    async fn run(self: Arc<Self>) -> Result<()> {
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.submit().await?;
            match self.shared.pause_us.load(Ordering::Relaxed) {
                0 => {}
                pause_us => tokio::time::sleep(Duration::from_micros(pause_us)).await,
            }
        }
        Ok(())
    }

    /// One request's jobs, each under one request id until it is acknowledged.
    async fn submit(&self) -> Result<()> {
        let journal = &self.shared.journal;
        // Given back when the jobs are over.
        journal.room.acquire_many(self.batch).await?.forget();
        let mut jobs: Vec<Sent> = (0..self.batch).map(|_| self.job(journal.submits())).collect();
        let begun = Instant::now();
        loop {
            let (turn, channel) = self.line.channel();
            match send(channel, &jobs).await {
                Ok(results) => jobs = self.taken(jobs, results)?,
                Err(status) if begun.elapsed() > GIVE_UP || !may_pass(&status) => {
                    let name = journal::name(jobs[0].0);
                    bail!("{name} was not acknowledged: {}", status.message())
                }
                Err(status) => self.line.turn_away(turn, &status),
            }
            let Some((first, _)) = jobs.first() else { return Ok(()) };
            ensure!(begun.elapsed() < GIVE_UP, "{} was not acknowledged", journal::name(*first));
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn job(&self, number: usize) -> Sent {
        let seq = self.seq.fetch_add(1, Ordering::Relaxed) + 1;
        let request = Some(RequestId { client: self.id.clone(), seq });
        (number, SubmitJobRequest { request, spec: Some(spec(number)) })
    }

    /// The jobs that must be sent again.
    fn taken(&self, jobs: Vec<Sent>, results: Vec<SubmitJobResult>) -> Result<Vec<Sent>> {
        let mut again = Vec::new();
        for ((number, request), result) in jobs.into_iter().zip(results) {
            match Code::from_i32(result.code) {
                Code::Ok => self.shared.journal.acknowledged(number, result.id),
                Code::Unavailable => again.push((number, request)),
                _ => bail!("{} was refused: {}", journal::name(number), result.why),
            }
        }
        Ok(again)
    }
}

/// A job's number, and what asks for it.
type Sent = (usize, SubmitJobRequest);

/// One job goes as `rowen submit` sends it.
async fn send(channel: Channel, jobs: &[Sent]) -> Result<Vec<SubmitJobResult>, Status> {
    let mut client = JobServiceClient::new(channel);
    if let [(_, job)] = jobs {
        let SubmitJobResponse { id, index } = client.submit_job(job.clone()).await?.into_inner();
        return Ok(vec![SubmitJobResult { id, index, ..Default::default() }]);
    }
    let jobs = jobs.iter().map(|(_, job)| job.clone()).collect();
    Ok(client.submit_jobs(SubmitJobsRequest { jobs }).await?.into_inner().jobs)
}

/// A job that asks for little and says little.
fn spec(number: usize) -> JobSpec {
    JobSpec {
        name: journal::name(number),
        priority: 50,
        workers: 1,
        resources: Some(Resources { gpus: 1, ..Default::default() }),
        command: vec!["/bin/true".into()],
        ..Default::default()
    }
}

/// A connection that all requests of a client share, to whichever replica leads.
struct Line {
    addrs: Vec<String>,
    now: Mutex<(u64, Channel)>,
}

impl Line {
    fn new(addrs: &[String]) -> Result<Line> {
        Ok(Line { addrs: addrs.to_vec(), now: Mutex::new((0, connect(&addrs[0])?)) })
    }

    fn channel(&self) -> (u64, Channel) {
        self.lock().clone()
    }

    /// To the leader that is named, else to the next replica; once for all requests that met it.
    fn turn_away(&self, turn: u64, status: &Status) {
        let mut now = self.lock();
        if now.0 != turn {
            return;
        }
        let next = &self.addrs[(turn + 1) as usize % self.addrs.len()];
        let leader = status.metadata().get("rowen-leader").and_then(|addr| addr.to_str().ok());
        if let Ok(channel) = connect(leader.unwrap_or(next)) {
            *now = (turn + 1, channel);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (u64, Channel)> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn connect(addr: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))?;
    Ok(endpoint.connect_timeout(Duration::from_secs(1)).tcp_nodelay(true).connect_lazy())
}
