//! Which hellos are heard now and which later, after a change of leader has sent every agent away.
//!
//! Pure: time is an argument, in milliseconds of the boot clock. Moments are given out one after
//! the other, a fixed time apart; an agent that comes when none is free is told when to come again,
//! and that moment is its own. So thousands that come at once are spread over what the leader can
//! bear, and none is sent away twice. Never looks at who the agent is.

use std::collections::BTreeMap;

use rowen_state::NodeId;

/// Hellos that may come at once after a quiet time.
const BURST: u64 = 64;
/// An agent may be so late for its moment; later it asks like any other.
const LATE_US: u64 = 10_000_000;
/// However small the fabric is.
const LEAST_PER_S: u64 = 1_000;

/// Hellos a second that let every agent of `nodes` be back in a quarter of its node lease: from the
/// rest of it come the election and what the lease had left when the old leader fell silent.
pub(crate) fn enough_per_s(nodes: usize, node_lease_ms: u64) -> u64 {
    (nodes as u64 * 4_000).div_ceil(node_lease_ms.max(1)).max(LEAST_PER_S)
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    /// The first moment that is nobody's.
    next_us: u64,
    /// Moments that are kept for agents, by their nodes.
    kept: BTreeMap<NodeId, u64>,
}

impl Admission {
    /// Whether the hello of a node's agent is heard now; if not, in how many milliseconds it
    /// will be.
    pub(crate) fn ask(&mut self, node: NodeId, now_ms: u64, per_s: u64) -> Result<(), u64> {
        let now_us = now_ms * 1_000;
        let wait_ms = |at_us: u64| (at_us - now_us).div_ceil(1_000);
        match self.kept.remove(&node) {
            Some(at_us) if at_us > now_us => {
                self.kept.insert(node, at_us);
                return Err(wait_ms(at_us)); // it may have restarted meanwhile
            }
            Some(at_us) if now_us - at_us <= LATE_US => return Ok(()),
            _ => {}
        }
        if now_us > self.next_us + LATE_US {
            self.kept.clear(); // nobody comes for these any more
        }
        let apart_us = 1_000_000_u64.div_ceil(per_s.max(1));
        let at_us = self.next_us.max(now_us.saturating_sub(BURST * apart_us));
        self.next_us = at_us + apart_us;
        if at_us <= now_us {
            return Ok(());
        }
        self.kept.insert(node, at_us);
        Err(wait_ms(at_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_000_000;

    /// When each agent is heard if all come at once and each comes again when it was told to.
    fn heard(nodes: u32, per_s: u64) -> Vec<u64> {
        let mut admission = Admission::default();
        let mut due: BTreeMap<(u64, u32), u32> = (0..nodes).map(|n| ((NOW_MS, n), 0)).collect();
        let mut heard = Vec::new();
        while let Some(((now_ms, node), asked)) = due.pop_first() {
            match admission.ask(NodeId(node), now_ms, per_s) {
                Ok(()) => heard.push(now_ms - NOW_MS),
                Err(after_ms) => {
                    assert_eq!(asked, 0, "node {node} was sent away twice");
                    due.insert((now_ms + after_ms, node), asked + 1);
                }
            }
        }
        heard
    }

    #[test]
    fn thousands_at_once_are_spread_at_the_rate_and_none_waits_in_vain() {
        for (nodes, per_s) in [(10, 500), (1_000, 500), (1_000, 2_000), (16_384, 6_554)] {
            let heard = heard(nodes, per_s);
            assert_eq!(heard.len(), nodes as usize);
            // Moments are whole microseconds apart, and agents wait whole milliseconds.
            let exact_ms = u64::from(nodes).saturating_sub(BURST) * 1_000 / per_s;
            let last_ms = exact_ms + exact_ms / 100 + 2;
            assert!(heard.iter().all(|at_ms| *at_ms <= last_ms), "{:?} {last_ms}", heard.last());
            for second in 0..=last_ms / 1_000 {
                let within = |at_ms: &&u64| **at_ms / 1_000 == second;
                let count = heard.iter().filter(within).count() as u64;
                assert!(count <= per_s + BURST + 2, "{count} in second {second} at {per_s}/s");
            }
        }
    }

    #[test]
    fn a_kept_moment_is_the_agents_own_until_it_is_long_over() {
        let mut admission = Admission::default();
        let fill = |admission: &mut Admission, now_ms: u64| {
            for node in 100..100 + BURST as u32 + 1 {
                let _ = admission.ask(NodeId(node), now_ms, 500);
            }
        };
        fill(&mut admission, NOW_MS);
        assert_eq!(admission.ask(NodeId(1), NOW_MS, 500), Err(2));
        assert_eq!(admission.ask(NodeId(2), NOW_MS, 500), Err(4));
        assert_eq!(admission.ask(NodeId(1), NOW_MS + 1, 500), Err(1), "too early: the same moment");
        assert_eq!(admission.ask(NodeId(2), NOW_MS + 5, 500), Ok(()));
        assert_eq!(admission.ask(NodeId(1), NOW_MS + 6, 500), Ok(()), "a little late");
        fill(&mut admission, NOW_MS + 1_000);
        assert!(admission.ask(NodeId(3), NOW_MS + 1_000, 500).is_err());
        let much_later = NOW_MS + 20_000;
        fill(&mut admission, much_later);
        assert!(admission.ask(NodeId(3), much_later, 500).is_err(), "it asks like any other");
        assert!(admission.kept.len() < 5, "forgotten: {:?}", admission.kept);
    }

    #[test]
    fn a_quiet_leader_hears_everybody_at_once() {
        let mut admission = Admission::default();
        for second in 0..100 {
            for node in 0..BURST as u32 {
                assert_eq!(admission.ask(NodeId(node), NOW_MS + second * 1_000, 500), Ok(()));
            }
        }
    }

    #[test]
    fn the_rate_grows_with_the_fabric() {
        assert_eq!(enough_per_s(1_000, 10_000), 1_000);
        assert_eq!(enough_per_s(16_384, 10_000), 6_554);
        assert_eq!(enough_per_s(16_384, 0), 65_536_000);
    }
}
