//! The cluster version rises, one step at a time, when every replica has said that it can follow.

use super::Answer;
use crate::{Cluster, Code, Command, Refusal, ReplicaId, Reply, codec::READS_VERSION};

impl Cluster {
    /// Refuses what belongs to a version that the cluster has not risen to: some replica could
    /// neither read it nor keep it.
    pub(super) fn since_passed(&self, command: &Command) -> Result<(), Refusal> {
        let (version, needs) = (self.meta.version, command.since());
        if needs <= version {
            return Ok(());
        }
        Err(Refusal::new(Code::Conflict, older(version, needs)))
    }

    pub(super) fn raise_version(&mut self, to: u32, asked: &[ReplicaId]) -> Answer {
        let version = self.meta.version;
        if to != version + 1 {
            return Err(Refusal::new(
                Code::Conflict,
                format!("cluster version is {version}; {} is next, not {to}", version + 1),
            ));
        }
        let unasked = self.replicas.iter().find(|(id, _)| !asked.contains(id));
        if let Some((id, _)) = unasked {
            return Err(Refusal::new(
                Code::Conflict,
                format!("replica {id} has joined meanwhile; ask it which version it reads"),
            ));
        }
        // Its record is of that version, so a build that does not read it never comes here.
        assert!(to <= READS_VERSION, "this build reads versions up to {READS_VERSION}, not {to}");
        self.rise(to);
        Ok(Reply::Done)
    }
}

fn older(version: u32, needs: u32) -> String {
    crate::codec::CodecError::Older { version, needs }.to_string()
}
