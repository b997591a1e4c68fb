//! CPU time of the two sides of a measurement: where everything shares few cores, it bounds the
//! rate, and unlike the rate it hardly changes with what else the machine does.
//!
//! Never reads /proc itself: see [`proc`].

use anyhow::Result;

use super::proc;

/// The processes of one side of a measurement; whoever reads is its client.
#[derive(Clone, Debug)]
pub(super) struct Side {
    pub(super) leader: u32,
    pub(super) followers: Vec<u32>,
}

/// CPU time in microseconds, user and system.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Cpu {
    pub(super) leader_us: f64,
    /// Of all of them together.
    pub(super) followers_us: f64,
    pub(super) client_us: f64,
}

impl Side {
    /// What each has used since it started.
    pub(super) fn used(&self) -> Result<Cpu> {
        let followers = self.followers.iter().map(|pid| used_us(*pid));
        Ok(Cpu {
            leader_us: used_us(self.leader)?,
            followers_us: followers.sum::<Result<f64>>()?,
            client_us: used_us(std::process::id())?,
        })
    }
}

impl Cpu {
    /// Adds what was used between two readings.
    pub(super) fn add_between(&mut self, before: Cpu, after: Cpu) {
        self.leader_us += after.leader_us - before.leader_us;
        self.followers_us += after.followers_us - before.followers_us;
        self.client_us += after.client_us - before.client_us;
    }
}

fn used_us(pid: u32) -> Result<f64> {
    Ok(proc::cpu_s(pid)? * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_counted() {
        let own = Side { leader: std::process::id(), followers: Vec::new() };
        let before = own.used().unwrap();
        let begun = std::time::Instant::now();
        let mut sum = 0_u64;
        // At least some ticks of 10 ms, however busy the machine is.
        while own.used().unwrap().leader_us - before.leader_us < 50_000.0 {
            sum = (0..100_000).fold(sum, |sum, n| sum.wrapping_mul(31).wrapping_add(n));
            assert!(begun.elapsed().as_secs() < 60, "no CPU time was counted ({sum})");
        }
        let mut used = Cpu::default();
        used.add_between(before, own.used().unwrap());
        assert!(used.leader_us >= 50_000.0 && used.followers_us == 0.0, "{used:?}");
    }
}
