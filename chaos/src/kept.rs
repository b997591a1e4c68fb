//! The archive of every replica against what apply gave away: nothing of what is to be kept is
//! missing, nothing is there that was never given away, and a job's story is told whole.

use rowen_api::v1;
use rowen_state::{Cluster, JobEvent, JobId, codec};

use crate::{
    control::Control, invariant::Invariant, message::ReplicaAt, setup::Timing, world::World,
};

/// Lines of a story that a replica tells.
const STORY_LINES: usize = 100;

impl World {
    /// Looks through the archive of one replica. `settled`: it had the time to fetch what it lacks.
    pub(crate) fn check_archive(&mut self, at: ReplicaAt, settled: bool) {
        let Some(shell) = &self.group.seats[at].shell else { return };
        let archive = shell.replica().archive();
        let whole = archive.has_gap().is_ok_and(|gap| !gap);
        if !whole && !settled {
            return;
        }
        let found = match whole {
            true => self.archive_differs(at),
            // Each has a part of it and nobody all: see docs/chaos-findings.md, what is open.
            false if self.no_archive_is_whole() => {
                self.count("no archive left whole", None);
                None
            }
            false => Some("it lacks records and fetches them from nobody".to_owned()),
        };
        let found = found.map(|what| format!("the archive of replica {at}: {what}"));
        self.context.check(Invariant::SnapshotReplays, found);
    }

    fn no_archive_is_whole(&self) -> bool {
        let mut shells = self.group.seats.iter().filter_map(|seat| seat.shell.as_ref());
        shells.all(|shell| shell.replica().archive().has_gap().is_ok_and(|gap| gap))
    }

    /// Whether no replica lacks records.
    pub(crate) fn archives_are_whole(&self) -> bool {
        let mut shells = self.group.seats.iter().filter_map(|seat| seat.shell.as_ref());
        shells.all(|shell| shell.replica().archive().has_gap().is_ok_and(|gap| !gap))
    }

    fn archive_differs(&self, at: ReplicaAt) -> Option<String> {
        let archive = self.group.seats[at].shell.as_ref()?.replica().archive();
        let applied = archive.applied()?;
        let floor = floor(&self.timing, applied);
        let records = match archive.scan(b"") {
            Ok(records) => records,
            Err(error) => return Some(error.to_string()),
        };
        let mut kept = self.control.kept.iter().peekable();
        for record in records {
            let record = match record {
                Ok(record) => record,
                Err(error) => return Some(error.to_string()),
            };
            while let Some((key, (index, _))) = kept.next_if(|(key, _)| **key < record.key) {
                if (floor..=applied).contains(index) {
                    return Some(missing(key, *index, applied));
                }
            }
            match kept.next_if(|(key, _)| **key == record.key) {
                None => return Some(format!("nobody gave away {}", name(&record.key))),
                Some((_, (index, value))) if *index <= applied && *value != record.value => {
                    return Some(format!("{} of #{index} is not what it was", name(&record.key)));
                }
                Some(_) => {}
            }
        }
        let rest = kept.find(|(_, (index, _))| (floor..=applied).contains(index));
        rest.map(|(key, (index, _))| missing(key, *index, applied))
    }

    /// A replica has told a job's story, at `index`.
    pub(crate) fn check_story(&mut self, at: ReplicaAt, job: JobId, told: &v1::Job) {
        let (index, floor) = (told.index, floor(&self.timing, self.truth.last()));
        let story = story(&self.control, job);
        // One that caught up by a snapshot does not have it all yet.
        let archive = self.group.seats[at].shell.as_ref().map(|shell| shell.replica().archive());
        let whole = archive.is_some_and(|archive| archive.has_gap().is_ok_and(|gap| !gap));
        let must = story.iter().filter(|event| (floor..=index).contains(&event.index));
        let wrong = told.events.iter().find(|event| !story.contains(event));
        let room = told.events.len() < STORY_LINES;
        let missing = must.clone().find(|event| !told.events.contains(event));
        let order = told.events.windows(2).find(|pair| pair[0].index > pair[1].index);
        let found = match (wrong, missing, order) {
            (Some(event), ..) => Some(format!("never happened: {event:?}")),
            (_, Some(event), _) if whole && room => Some(format!("is not told: {event:?}")),
            (.., Some(pair)) => Some(format!("is out of order: {pair:?}")),
            _ => None,
        };
        let found = found.map(|what| format!("the story of job {job} at #{index}: {what}"));
        self.context.check(Invariant::StreamsOrdered, found);
    }
}

/// The oldest index of which a replica that has applied so much keeps records.
fn floor(timing: &Timing, applied: u64) -> u64 {
    let entries = timing.archive_period_entries;
    (applied - applied % entries).saturating_sub(entries * (timing.archive_retain - 1))
}

fn story(control: &Control, job: JobId) -> Vec<v1::JobEvent> {
    let prefix = Cluster::story_prefix(job);
    let lines = control.kept.range(prefix.clone()..);
    let lines = lines.take_while(|(key, _)| key.starts_with(&prefix));
    let events = lines.map(|(_, (_, value))| {
        let event: JobEvent = codec::decode(value).expect("apply wrote it");
        v1::JobEvent { index: event.index, at_ms: event.at_ms, what: event.what }
    });
    events.collect()
}

fn missing(key: &[u8], index: u64, applied: u64) -> String {
    format!("it has #{applied} and not {} of #{index}", name(key))
}

fn name(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}
