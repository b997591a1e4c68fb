//! What every part of a world shares: time, chance, the events to come, the
//! trace of what happened, and the findings.

use std::{collections::VecDeque, fmt::Arguments};

use rowen_sim::Events;

use crate::{
    invariant::{Checked, Finding, Invariant},
    journal::Journal,
    message::{Event, Killed},
    rng::Rng,
    timeline::{Lane, Timeline},
};

/// Lines of the trace kept to be shown with a finding, unless more are asked for.
pub(crate) const TAIL: usize = 60;
/// Findings kept; one is enough to fail.
const FINDINGS: usize = 20;

/// Not 0: a node lease of 0 means "never held".
const START_MS: u64 = 1_000_000;

/// See the module.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) now_ms: u64,
    /// What it was at first.
    pub(crate) start_ms: u64,
    pub(crate) rng: Rng,
    pub(crate) events: Events<Event>,
    pub(crate) journal: Journal,
    /// Tasks killed since the world last looked.
    pub(crate) killed: Vec<Killed>,
    pub(crate) findings: Vec<Finding>,
    pub(crate) checked: Checked,
    pub(crate) timeline: Timeline,
    pub(crate) tail: VecDeque<String>,
    tail_lines: usize,
    digest: u64,
}

impl Context {
    pub(crate) fn new(seed: u64, tail_lines: usize) -> Context {
        Context {
            now_ms: START_MS,
            start_ms: START_MS,
            rng: Rng::new(seed),
            events: Events::default(),
            journal: Journal::default(),
            killed: Vec::new(),
            findings: Vec::new(),
            checked: Checked::default(),
            timeline: Timeline::default(),
            tail: VecDeque::new(),
            tail_lines: tail_lines.max(1),
            digest: 0xcbf2_9ce4_8422_2325,
        }
    }

    /// Something will happen `in_ms` from now.
    pub(crate) fn later(&mut self, in_ms: u64, event: Event) {
        self.events.add(self.now_ms + in_ms, event);
    }

    /// Something happened: a line of the trace.
    pub(crate) fn note(&mut self, what: Arguments<'_>) {
        let line = format!("{:>9} {what}", self.now_ms);
        for byte in line.bytes() {
            // FNV-1a: the same on every machine, and cheap.
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.tail.len() == self.tail_lines {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    /// An invariant does not hold.
    pub(crate) fn finding(&mut self, invariant: Invariant, what: impl Into<String>) {
        let finding = Finding::new(invariant, what);
        self.note(format_args!("FOUND {finding}"));
        self.timeline.mark(Lane::Control, finding.to_string(), self.now_ms);
        if self.findings.len() < FINDINGS {
            self.findings.push(finding);
        }
    }

    /// An invariant was checked; it holds unless something was found.
    pub(crate) fn check(&mut self, invariant: Invariant, found: Option<String>) {
        self.checked.add(invariant, 1);
        if let Some(what) = found {
            self.finding(invariant, what);
        }
    }

    /// Of the whole trace.
    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }
}
