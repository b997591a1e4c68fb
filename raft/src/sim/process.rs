//! A simulated process: the tasks that were spawned in it, whether they may run, and the clock
//! of its machine. Knows nothing of what the tasks do.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{
    task::{AbortHandle, JoinError, JoinHandle},
    time::Instant,
};

use super::splitmix64;

tokio::task_local! {
    static CURRENT: Process;
}

/// Spawns a task in the process that the caller runs in; where that is no simulated one, on the
/// runtime as ever.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match Process::current() {
        Some(process) => process.spawn(future),
        None => tokio::spawn(future),
    }
}

/// Runs what blocks or computes for long: on a thread of its own, or, in a simulated process, here
/// and now, for a thread would end the run's repeatability. There too it takes its time: what it
/// looked at may be old when it is done.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    match Process::current() {
        Some(process) => {
            let (done, took) = (work(), process.work_time());
            tokio::time::sleep(took).await;
            Ok(done)
        }
        None => tokio::task::spawn_blocking(work).await,
    }
}

/// A simulated process. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Process {
    state: Arc<Mutex<State>>,
    clock: MachineClock,
}

#[derive(Debug)]
struct State {
    random: u64,
    frozen: bool,
    dead: bool,
    /// Of tasks that were to be polled while it was frozen.
    waiting: Vec<Waker>,
    tasks: Vec<AbortHandle>,
    /// Tasks that have ended leave the list when it reaches this.
    tidy_at: usize,
}

const TIDY_AT: usize = 64;

impl Process {
    /// A process on the machine of `clock`, all of whose chances follow from `seed`.
    pub fn new(seed: u64, clock: MachineClock) -> Process {
        let state = State {
            random: seed,
            frozen: false,
            dead: false,
            waiting: Vec::new(),
            tasks: Vec::new(),
            tidy_at: TIDY_AT,
        };
        Process { state: Arc::new(Mutex::new(state)), clock }
    }

    /// The one that the calling task runs in.
    pub fn current() -> Option<Process> {
        CURRENT.try_with(Process::clone).ok()
    }

    /// Spawns a task in it. In a dead process nothing runs.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let mut state = self.state();
        let seed = state.next_random();
        let handle = tokio::spawn(self.gated(seed, future));
        if state.dead {
            handle.abort();
        }
        state.tasks.push(handle.abort_handle());
        if state.tasks.len() >= state.tidy_at {
            state.tasks.retain(|task| !task.is_finished());
            state.tidy_at = TIDY_AT.max(state.tasks.len() * 2);
        }
        handle
    }

    #[cfg(tokio_unstable)]
    fn gated<F: Future + Send + 'static>(&self, seed: u64, future: F) -> Gated<F::Output> {
        let future = Box::pin(super::runtime::Seeded::scope(seed, future));
        Gated { process: self.clone(), future }
    }

    #[cfg(not(tokio_unstable))]
    fn gated<F: Future + Send + 'static>(&self, _seed: u64, future: F) -> Gated<F::Output> {
        Gated { process: self.clone(), future: Box::pin(future) }
    }

    /// SIGSTOP: time goes on and none of its tasks runs.
    pub fn freeze(&self) {
        self.state().frozen = true;
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        let mut state = self.state();
        state.frozen = false;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// SIGKILL: its tasks end where they are.
    pub fn kill(&self) {
        let mut state = self.state();
        state.dead = true;
        let tasks = std::mem::take(&mut state.tasks);
        state.waiting.clear();
        drop(state);
        tasks.into_iter().for_each(|task| task.abort());
    }

    /// Whether it is frozen.
    pub fn is_frozen(&self) -> bool {
        self.state().frozen
    }

    /// The clock of its machine.
    pub fn clock(&self) -> &MachineClock {
        &self.clock
    }

    /// How long a computation takes: now and then the machine has other things to do.
    fn work_time(&self) -> Duration {
        let random = self.state().next_random();
        let most_ms = if random.is_multiple_of(8) { 1_500 } else { 30 };
        Duration::from_millis((random >> 8) % most_ms)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next_random(&mut self) -> u64 {
        splitmix64(&mut self.random)
    }
}

/// A task's future, polled only while its process runs.
struct Gated<T> {
    process: Process,
    future: Pin<Box<dyn Future<Output = T> + Send>>,
}

impl<T> Future for Gated<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        {
            let mut state = self.process.state();
            if state.dead {
                return Poll::Pending; // it is aborted
            }
            if state.frozen {
                state.waiting.push(context.waker().clone());
                return Poll::Pending;
            }
        }
        let process = self.process.clone();
        CURRENT.sync_scope(process, || self.future.as_mut().poll(context))
    }
}

/// A machine's clocks, in simulated time. Clones are the same ones.
#[derive(Clone, Debug)]
pub struct MachineClock {
    inner: Arc<Mutex<ClockState>>,
}

#[derive(Debug)]
struct ClockState {
    /// When the clocks showed what follows.
    at: Instant,
    boot_ms: u64,
    wall_ms: u64,
    drift_ppm: i64,
}

impl MachineClock {
    /// A machine that shows `boot_ms` since its boot and the wall time `wall_ms` now, and whose
    /// clocks run `drift_ppm` millionths too fast. Made within a tokio runtime.
    pub fn new(boot_ms: u64, wall_ms: u64, drift_ppm: i64) -> MachineClock {
        let state = ClockState { at: Instant::now(), boot_ms, wall_ms, drift_ppm };
        MachineClock { inner: Arc::new(Mutex::new(state)) }
    }

    /// CLOCK_BOOTTIME.
    pub fn boot_ms(&self) -> u64 {
        let state = self.state();
        state.boot_ms + state.elapsed_ms()
    }

    /// Unix time, as far as this machine knows.
    pub fn wall_ms(&self) -> u64 {
        let state = self.state();
        state.wall_ms + state.elapsed_ms()
    }

    /// Somebody sets the wall clock.
    pub fn set_wall_ms(&self, wall_ms: u64) {
        self.state().settle().wall_ms = wall_ms;
    }

    /// From now on it runs so many millionths too fast.
    pub fn set_drift_ppm(&self, drift_ppm: i64) {
        self.state().settle().drift_ppm = drift_ppm;
    }

    /// The machine boots: its boot clock starts again.
    pub fn reboot(&self) {
        self.state().settle().boot_ms = 0;
    }

    fn state(&self) -> MutexGuard<'_, ClockState> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClockState {
    fn elapsed_ms(&self) -> u64 {
        let elapsed_us = Instant::now().duration_since(self.at).as_micros();
        let elapsed_us = i128::try_from(elapsed_us).expect("a run is shorter than an age");
        let shown_us = elapsed_us + elapsed_us * i128::from(self.drift_ppm) / 1_000_000;
        u64::try_from(shown_us / 1_000).unwrap_or(0)
    }

    fn settle(&mut self) -> &mut ClockState {
        let elapsed_ms = self.elapsed_ms();
        self.at = Instant::now();
        self.boot_ms += elapsed_ms;
        self.wall_ms += elapsed_ms;
        self
    }
}
