//! How a state goes on after a restore from backup. Changes nothing that runs: the tasks of before
//! are found, and fenced, by their nodes.

use crate::{Cluster, InForce, Replica, ReplicaId, Timing, codec::READS_VERSION};

impl Cluster {
    /// The state as a cluster restored from a backup begins with it: a new incarnation, so that
    /// epochs of before are older than any of after, one replica with an id never used, and a timing
    /// that remembers leases of `longest_lease_ms`: granted after the backup, it says nothing of
    /// them. `configured` counts where the backup has no timing.
    #[must_use]
    pub fn reincarnate(
        mut self,
        addr: &str,
        unix_s: u64,
        configured: Timing,
        longest_lease_ms: u64,
    ) -> (Cluster, ReplicaId) {
        // Two restores of one backup must not be one incarnation: what one of them gave away, agents
        // would take for the other's. In a fence it has 32 bits: enough until 2106.
        let unix_s = unix_s.min(u32::MAX.into());
        self.meta.incarnation = (self.meta.incarnation + 1).max(unix_s);
        for id in self.replicas.iter().map(|(id, _)| id).collect::<Vec<_>>() {
            self.replicas.remove(id);
        }
        self.meta.last_replica += 1;
        let id = ReplicaId(self.meta.last_replica);
        let admitted_ms = self.meta.now_ms;
        self.replicas.insert(id, Replica { id, addr: addr.to_owned(), admitted_ms });
        // Its one replica is of this build; and what the timing remembers needs version 2.
        (self.meta.version + 1..=READS_VERSION).for_each(|version| self.rise(version));
        self.settle_tables();
        let before = self.meta.timing;
        let (timing, since) =
            before.map_or((configured, self.meta.applied), |before| (before.timing, before.since));
        let granted = before.map_or(configured, |before| before.widest());
        let longest = Timing { node_lease_ms: longest_lease_ms, ..granted };
        let earlier = Some(granted.widest(longest)).filter(|earlier| *earlier != timing);
        self.meta.timing = Some(InForce { timing, since, earlier });
        (self, id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command, Entry};

    const TIMING: Timing =
        Timing { node_lease_ms: 10_000, heartbeat_ms: 1_000, kill_ms: 2_000, drift_ppm: 1_000 };

    /// One of the first version rises, and its hash is that of what it is then.
    #[test]
    fn a_backup_of_the_first_version_goes_on_in_the_newest() {
        let mut old = Cluster::new(1);
        let commands = [
            Command::AdmitReplica { id: None, addr: "r1:7077".into() },
            Command::SetFabric(rowen_topology::drawing::parse("block a: n[1-3] x8").unwrap()),
        ];
        for (index, command) in (1..).zip(commands) {
            let principal = "operator".to_owned();
            let entry = Entry { at_ms: 1_000, principal, request: None, command };
            old.apply(index, &entry).answer.unwrap().unwrap();
        }
        let (new, id) = old.reincarnate("r9:7077", 7, TIMING, 3_600_000);
        assert_eq!((new.meta().version, id), (READS_VERSION, ReplicaId(2)));
        let again = Cluster::from_snapshot(&new.to_snapshot().unwrap()).unwrap();
        assert_eq!(again.state_hash(), new.state_hash());
        assert!(new.verify().is_empty(), "{:?}", new.verify());
    }
}
