//! A failing seed made small: faults and operations are left out one after the
//! other, as long as the same invariant still fails.
//!
//! Owns the search (delta debugging). It knows a run only as what was drawn and
//! what was found.

use std::{collections::BTreeSet, fmt::Write as _};

use crate::{
    draws::{self, Draw},
    invariant::Invariant,
    world::{Options, Outcome},
};

/// Runs before it is good enough.
const RUNS: u32 = 400;

/// The smallest run that was found.
#[derive(Debug)]
pub(crate) struct Minimised {
    pub(crate) invariant: Invariant,
    pub(crate) dropped: BTreeSet<Draw>,
    pub(crate) outcome: Outcome,
    /// Draws before, and runs it took.
    pub(crate) before: usize,
    pub(crate) runs: u32,
}

/// Makes a failed run smaller; `None` if it did not fail.
pub(crate) fn minimise(
    options: &Options,
    mut run: impl FnMut(&Options) -> Outcome,
) -> Option<Minimised> {
    let outcome = run(options);
    let invariant = outcome.findings.first()?.invariant;
    let before = outcome.draws.len();
    let mut least =
        Minimised { invariant, dropped: options.drop.clone(), outcome, before, runs: 1 };
    let mut chunk = before.div_ceil(2).max(1);
    loop {
        let smaller = pass(&mut least, options, chunk, &mut run);
        if least.runs >= RUNS || (chunk == 1 && !smaller) {
            return Some(least);
        }
        // Once single draws can be left out, others may be that could not before.
        chunk =
            if smaller { chunk } else { chunk.div_ceil(2) }.min(least.outcome.draws.len()).max(1);
    }
}

/// Tries to leave out each chunk of what is left; whether any could be.
fn pass(
    least: &mut Minimised,
    options: &Options,
    chunk: usize,
    run: &mut impl FnMut(&Options) -> Outcome,
) -> bool {
    let mut smaller = false;
    // Late draws first: they are the least likely to be needed.
    let mut end = least.outcome.draws.len();
    while end > 0 && least.runs < RUNS {
        let start = end.saturating_sub(chunk);
        let mut drop = least.dropped.clone();
        drop.extend(&least.outcome.draws[start..end]);
        let outcome = run(&Options { drop: drop.clone(), ..options.clone() });
        least.runs += 1;
        let same = outcome.findings.iter().any(|finding| finding.invariant == least.invariant);
        if same && outcome.draws.len() < least.outcome.draws.len() {
            (least.dropped, least.outcome, smaller) = (drop, outcome, true);
            end = start.min(least.outcome.draws.len());
        } else {
            end = start;
        }
    }
    smaller
}

impl Minimised {
    /// What is left of the run, and how to see it again.
    pub(crate) fn report(&self) -> String {
        let kept: Vec<String> = self.outcome.draws.iter().map(Draw::to_string).collect();
        let mut text = format!(
            "{} of {} draws are left after {} runs: {}\n",
            kept.len(),
            self.before,
            self.runs,
            kept.join(" ")
        );
        for finding in &self.outcome.findings {
            let _ = writeln!(text, "  {finding}");
        }
        let _ = writeln!(text, "what clients asked:");
        for operation in &self.outcome.history.operations {
            let line = serde_json::to_string(operation).expect("plain values serialise");
            let _ = writeln!(text, "  {line}");
        }
        let _ = writeln!(text, "the end of the trace:");
        self.outcome.tail.iter().for_each(|line| text += &format!("  {line}\n"));
        let command = format!("cargo xtask chaos sim {}", self.outcome.arguments());
        let _ = match self.dropped.is_empty() {
            true => writeln!(text, "replay: {command}"),
            false => writeln!(text, "replay: {command} --drop {}", draws::format(&self.dropped)),
        };
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariant::Finding;

    /// A run of 40 faults and 40 operations that fails if these are all in it.
    fn world(needs: &str) -> impl FnMut(&Options) -> Outcome {
        let needs = draws::parse(needs).unwrap();
        move |options| {
            let all = draws::parse("f1-40,o1-40").unwrap();
            let draws: Vec<Draw> = all.difference(&options.drop).copied().collect();
            let fails = needs.is_disjoint(&options.drop);
            let finding = Finding::new(Invariant::OneOwner, "two");
            let other = Finding::new(Invariant::Converges, "without those it fails otherwise");
            let findings = vec![if fails { finding } else { other }];
            Outcome { seed: options.seed, draws, findings, ..Outcome::default() }
        }
    }

    #[test]
    fn only_what_is_needed_is_left() {
        for needs in ["f7", "f1,o40", "f3,f29,o11-13", "o1-5,f40"] {
            let options = Options { seed: 5, ..Options::default() };
            let least = minimise(&options, world(needs)).unwrap();
            let left: BTreeSet<Draw> = least.outcome.draws.iter().copied().collect();
            assert_eq!(left, draws::parse(needs).unwrap());
            assert!(least.runs < 200, "{needs}: {} runs", least.runs);
            assert!(least.report().contains("replay: cargo xtask chaos sim --seed 5 --drop f"));
        }
    }

    #[test]
    fn a_run_that_holds_is_not_minimised() {
        assert!(minimise(&Options::default(), |_| Outcome::default()).is_none());
    }
}
