//! Reads the log back when a replica starts, and decides what damage means.
//!
//! What can be told, and from what:
//! - Damage before the last batch of the last segment is corruption: a batch is written only after
//!   the one before it was synced. So is damage below the *synced mark*, a small file that is
//!   written after every sync and before anybody is told, and is itself never synced on the way.
//! - Damage above the mark while the machine has not lost its page cache since (same boot id) is a
//!   write that a killed process left half done. The mark is exact then, so nobody was told, and
//!   the batch is dropped.
//! - Damage above the mark after a power cut cannot be told apart: the mark may be older than the
//!   last sync, so the batch may have been torn in flight or acknowledged and flipped. It is
//!   refused ([`WalError::TornTail`]); `accept_torn_tail` is the operator's word that it was torn.
//!
//!   A member of a larger group drops it too and gives up its vote until the leader has sent it
//!   again (`crate::recovering`, where it says why that is sound).
//!
//! A tail of zeros is an end. A disk that loses a whole last batch that it said was synced is seen
//! only through the mark.

use std::{path::Path, sync::Arc};

use openraft::EntryPayload;
use rowen_planted::{Bug, planted};

use super::{
    WalError, WalOptions,
    record::{self, HEADER_BYTES, Kind, Parsed, Record},
    state::{Location, LogContent, Segment},
    synced::SyncedMark,
    writer::Tail,
};
use crate::{
    codec,
    disk::{Disk, DiskFile},
    types::{Membership, Vote},
};

const MAGIC: &[u8; 8] = b"ROWENWAL";
/// Where the first batch of a segment starts.
pub(crate) const SEGMENT_HEAD_BYTES: u64 = (HEADER_BYTES + MAGIC.len() + 8) as u64;

/// What a log that was read back goes on from.
pub(crate) struct Recovered {
    pub(crate) content: LogContent,
    /// None for a log that has no segment yet.
    pub(crate) tail: Option<Tail>,
    pub(crate) mark: SyncedMark,
    pub(crate) next_batch: u64,
}

/// Reads all segments of the log in `options.dir`.
pub(crate) fn recover(disk: &dyn Disk, options: &WalOptions) -> Result<Recovered, WalError> {
    let dir = options.dir.as_path();
    let mark = SyncedMark::open(disk, dir)?;
    let mut replay = Replay::default();
    let numbers = segment_numbers(disk, dir)?;
    let mut tail = None;
    for (position, number) in numbers.iter().enumerate() {
        let is_last = position + 1 == numbers.len();
        let path = dir.join(segment_name(*number));
        let file = disk.open(&path).map_err(WalError::io("open", &path))?;
        let bytes = read_all(&*file, &path)?;
        if is_last && is_unfinished(*number, &bytes, mark.synced) {
            disk.remove(&path).map_err(WalError::io("remove", &path))?;
            break;
        }
        let scan = replay.segment(*number, &path, &file, &bytes)?;
        let end = match scan.damage {
            None => scan.end,
            Some(damage) if !is_last => return Err(damage.corrupt(&path)),
            Some(damage) => {
                if !planted(Bug::CorruptionTruncated) {
                    judge(&damage, &mark, disk, options, &path, &bytes, replay.next_batch())?;
                }
                tracing::warn!(file = %path.display(), offset = damage.batch_start, why = damage.why,
                    "dropped the torn end of the log; nobody was told that it was kept");
                erase(&*file, &path, damage.batch_start, &bytes)?;
                damage.batch_start
            }
        };
        tail = Some(Tail { segment: *number, path, file, end, filled: bytes.len() as u64 });
    }
    let mut recovered =
        Recovered { next_batch: replay.next_batch(), content: replay.content, tail, mark };
    recovered.check_end(dir)?;
    recovered.settle(disk, dir)?;
    Ok(recovered)
}

/// What is certain in a log whose end is not.
pub(crate) struct Survey {
    pub(crate) last: Option<u64>,
    /// The last membership in it, and where.
    pub(crate) membership: Option<(u64, Membership)>,
    pub(crate) vote: Option<Vote>,
}

/// Reads the log up to the damage at its end. Changes nothing.
pub(crate) fn survey(disk: &dyn Disk, options: &WalOptions) -> Result<Survey, WalError> {
    let dir = options.dir.as_path();
    let mut replay = Replay::default();
    for number in segment_numbers(disk, dir)? {
        let path = dir.join(segment_name(number));
        let file = disk.open(&path).map_err(WalError::io("open", &path))?;
        let bytes = read_all(&*file, &path)?;
        if replay.segment(number, &path, &file, &bytes)?.damage.is_some() {
            break;
        }
    }
    let last = replay.content.last().map(|id| id.index());
    Ok(Survey { last, membership: replay.memberships.pop(), vote: replay.content.vote })
}

impl Recovered {
    /// What was synced must be there, and the entries must join the purge point.
    fn check_end(&self, dir: &Path) -> Result<(), WalError> {
        let end = self.tail.as_ref().map_or((0, 0), |tail| (tail.segment, tail.end));
        if self.mark.synced > end && !planted(Bug::CorruptionTruncated) {
            let (segment, offset) = self.mark.synced;
            let why = format!("records are missing: it was synced up to offset {offset}");
            let at = if segment == end.0 { end.1 } else { 0 };
            return Err(WalError::corrupt(&dir.join(segment_name(segment)), at, why));
        }
        let expected = self.content.purged.map_or(0, |id| id.index() + 1);
        match self.content.first_index() {
            Some(first) if first > expected => {
                let why = format!("entries {expected} to {} are missing", first - 1);
                Err(WalError::corrupt(dir, 0, why))
            }
            _ => Ok(()),
        }
    }

    /// Writes the last batch once more and syncs it. Its bytes may be in the page cache alone, and
    /// a cache page whose sync failed once counts as clean: a bare sync would promise too much.
    /// The folder too: a killed process may have created the segment and not got to that.
    fn settle(&mut self, disk: &dyn Disk, dir: &Path) -> Result<(), WalError> {
        disk.sync_dir(dir).map_err(WalError::io("sync", dir))?;
        let Some(tail) = &self.tail else {
            return self.mark.advance(0, 0); // of this boot: the first batch can be torn too
        };
        let (segment, offset) = self.mark.synced;
        let from = if segment == tail.segment { offset } else { 0 };
        if from < tail.end {
            let mut bytes = vec![0; (tail.end - from) as usize];
            tail.file.read_at(&mut bytes, from).map_err(WalError::io("read", &tail.path))?;
            tail.file.write_at(&bytes, from).map_err(WalError::io("write", &tail.path))?;
        }
        tail.file.sync_data().map_err(WalError::io("sync", &tail.path))?;
        self.mark.advance(tail.segment, tail.end)
    }
}

/// Whether a segment's creation was cut short: no whole head, no batch after it, and nothing that
/// was ever synced. It is made anew when it is needed.
pub(crate) fn is_unfinished(number: u64, bytes: &[u8], synced: (u64, u64)) -> bool {
    let has_head = matches!(record::parse(bytes, 0), Parsed::Record(_));
    let batches = bytes.get(SEGMENT_HEAD_BYTES as usize..).unwrap_or_default();
    !has_head && synced.0 < number && batches.iter().all(|byte| *byte == 0)
}

pub(crate) fn segment_name(number: u64) -> String {
    format!("{number:016}.wal")
}

/// The first record of a segment's file.
pub(crate) fn segment_head(number: u64, first_batch: u64) -> Vec<u8> {
    let mut body = MAGIC.to_vec();
    body.extend_from_slice(&first_batch.to_le_bytes());
    let mut head = Vec::new();
    record::push(&mut head, Kind::File, codec::SCHEMA, number, &body);
    head
}

/// The numbers of the segments in `dir`, refused where one in between is missing.
fn segment_numbers(disk: &dyn Disk, dir: &Path) -> Result<Vec<u64>, WalError> {
    let names = disk.list(dir).map_err(WalError::io("list", dir))?;
    let mut numbers: Vec<u64> =
        names.iter().filter_map(|name| name.strip_suffix(".wal")?.parse().ok()).collect();
    numbers.sort_unstable();
    match numbers.windows(2).find(|pair| pair[1] != pair[0] + 1) {
        Some(pair) => {
            let path = dir.join(segment_name(pair[0] + 1));
            Err(WalError::corrupt(&path, 0, "this segment is missing".into()))
        }
        None => Ok(numbers),
    }
}

pub(crate) fn read_all(file: &dyn DiskFile, path: &Path) -> Result<Vec<u8>, WalError> {
    let length = file.len().map_err(WalError::io("stat", path))?;
    let mut bytes = vec![0; length as usize];
    file.read_at(&mut bytes, 0).map_err(WalError::io("read", path))?;
    Ok(bytes)
}

pub(crate) struct Damage {
    /// Where the batch starts that the damage is in.
    pub(crate) batch_start: u64,
    pub(crate) offset: u64,
    pub(crate) why: &'static str,
}

impl Damage {
    pub(crate) fn corrupt(&self, path: &Path) -> WalError {
        WalError::corrupt(path, self.offset, self.why.to_string())
    }
}

pub(crate) struct Scan {
    pub(crate) end: u64,
    pub(crate) damage: Option<Damage>,
}

/// The log being rebuilt, one batch after the other.
#[derive(Default)]
pub(crate) struct Replay {
    pub(crate) content: LogContent,
    pub(crate) next_batch: Option<u64>,
    /// Those that were not truncated, with their indexes.
    pub(crate) memberships: Vec<(u64, Membership)>,
    /// For an offline reader: entries that were purged and still lie there stay.
    pub(crate) keeps_purged: bool,
}

impl Replay {
    pub(crate) fn next_batch(&self) -> u64 {
        self.next_batch.unwrap_or(1)
    }

    pub(crate) fn segment(
        &mut self,
        number: u64,
        path: &Path,
        file: &Arc<dyn DiskFile>,
        bytes: &[u8],
    ) -> Result<Scan, WalError> {
        let first_batch = read_segment_head(number, path, bytes)?;
        if self.next_batch.is_some_and(|next| next != first_batch) {
            let why = format!("begins with batch {first_batch}, expected {}", self.next_batch());
            return Err(WalError::corrupt(path, 0, why));
        }
        self.next_batch = Some(first_batch);
        self.content.segments.insert(number, Segment { file: Arc::clone(file), max_index: None });
        let mut offset = SEGMENT_HEAD_BYTES as usize;
        loop {
            match self.read_batch(bytes, offset) {
                Ok(Some((records, end))) => {
                    for (at, record) in records {
                        self.replay(number, path, at, &record)?;
                    }
                    self.next_batch = Some(self.next_batch() + 1);
                    offset = end;
                }
                Ok(None) => return Ok(Scan { end: offset as u64, damage: None }),
                Err((at, why)) => {
                    let (batch_start, at) = (offset as u64, at as u64);
                    let damage = Some(Damage { batch_start, offset: at, why });
                    return Ok(Scan { end: batch_start, damage });
                }
            }
        }
    }

    /// The records of the batch at `offset` with where they lie, and where it ends. None at the
    /// end of what was written.
    #[expect(clippy::type_complexity, reason = "used once, right above")]
    fn read_batch<'a>(
        &self,
        bytes: &'a [u8],
        offset: usize,
    ) -> Result<Option<(Vec<(usize, Record<'a>)>, usize)>, (usize, &'static str)> {
        let head = match record::parse(bytes, offset) {
            Parsed::Record(head) => head,
            Parsed::Bad(why) => return Err((offset, why)),
            Parsed::End => {
                let stray = bytes[offset..].iter().position(|byte| *byte != 0);
                return stray.map_or(Ok(None), |at| Err((offset + at, "bytes after the end")));
            }
        };
        let Some(length) = record::batch_bytes(&head) else {
            return Err((offset, "a record outside a batch"));
        };
        if head.index != self.next_batch() {
            return Err((offset, "a batch out of order"));
        }
        let mut at = offset + head.len();
        let end = at + length;
        let mut records = Vec::new();
        while at < end {
            match record::parse(bytes, at) {
                Parsed::Record(record) if at + record.len() <= end => {
                    records.push((at, record));
                    at += record.len();
                }
                Parsed::Record(_) => return Err((at, "a record beyond its batch")),
                Parsed::End => return Err((at, "zeros inside a batch")),
                Parsed::Bad(why) => return Err((at, why)),
            }
        }
        Ok(Some((records, end)))
    }

    fn replay(
        &mut self,
        segment: u64,
        path: &Path,
        offset: usize,
        record: &Record<'_>,
    ) -> Result<(), WalError> {
        let bad = |why: String| WalError::corrupt(path, offset as u64, why);
        let undecodable = |error: codec::CodecError| bad(error.to_string());
        let content = &mut self.content;
        match record.kind {
            Kind::Entry => {
                let entry = codec::read_entry(record.schema, record.body).map_err(undecodable)?;
                let index = entry.log_id.index();
                let held = content.segments.get_mut(&segment).expect("inserted before its records");
                held.max_index = held.max_index.max(Some(index));
                if content.purged.is_some_and(|purged| index <= purged.index()) {
                    return Ok(());
                }
                // A gap is fine only where older segments are gone; `check_end` looks at that.
                match content.next_index() {
                    Some(next) if index != next && content.first_index().is_some() => {
                        return Err(bad(format!("entry {index} where {next} was expected")));
                    }
                    _ => {}
                }
                if let EntryPayload::Membership(membership) = entry.payload {
                    self.memberships.push((index, membership));
                }
                let len = record.len() as u32;
                let at = Location { segment, offset: offset as u64, len };
                content.push_recovered(entry.log_id, at);
            }
            Kind::Vote => {
                let vote = codec::read_vote(record.schema, record.body).map_err(undecodable)?;
                content.vote = Some(vote);
            }
            Kind::Truncate => {
                content.truncate_from(record.index);
                self.memberships.retain(|(index, _)| *index < record.index);
            }
            Kind::Purge => {
                let upto = codec::read_log_id(record.schema, record.body).map_err(undecodable)?;
                // Past the end it is a jump by snapshot: what lies before joins nothing after it.
                let is_jump = content.last().is_none_or(|last| last.index() < upto.index());
                if is_jump || !self.keeps_purged {
                    content.purge(upto);
                }
            }
            Kind::Committed => {
                let id = codec::read_log_id(record.schema, record.body).map_err(undecodable)?;
                content.committed = Some(id);
            }
            Kind::Batch | Kind::File | Kind::Synced => {
                return Err(bad("a record of a kind that does not belong into a batch".into()));
            }
        }
        Ok(())
    }
}

fn read_segment_head(number: u64, path: &Path, bytes: &[u8]) -> Result<u64, WalError> {
    let bad = |why: &str| Err(WalError::corrupt(path, 0, why.to_string()));
    match record::parse(bytes, 0) {
        Parsed::Record(Record { kind: Kind::File, index, body, .. }) if body.starts_with(MAGIC) => {
            if index != number {
                return bad("the file's name and its head disagree");
            }
            match body[MAGIC.len()..].try_into() {
                Ok(first_batch) => Ok(u64::from_le_bytes(first_batch)),
                Err(_) => bad("a segment head of the wrong length"),
            }
        }
        Parsed::Record(_) => bad("not a segment"),
        Parsed::End => bad("the segment head is missing"),
        Parsed::Bad(why) => bad(why),
    }
}

/// Whether damage in the last segment may be dropped; see the head of this file.
fn judge(
    damage: &Damage,
    mark: &SyncedMark,
    disk: &dyn Disk,
    options: &WalOptions,
    path: &Path,
    bytes: &[u8],
    batch: u64,
) -> Result<(), WalError> {
    let segment = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok()).unwrap_or(0);
    let below_mark = (segment, damage.batch_start) < mark.synced;
    if below_mark || has_later_batch(bytes, damage.batch_start as usize, batch) {
        return Err(damage.corrupt(path));
    }
    let same_boot = mark.boot_id == disk.boot_id() && mark.boot_id != [0; 16];
    if same_boot || options.accept_torn_tail {
        return Ok(());
    }
    let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
    let bytes = written.saturating_sub(damage.batch_start);
    Err(WalError::TornTail { file: path.into(), offset: damage.offset, why: damage.why, bytes })
}

/// Whether a batch after number `batch` was begun. Looks at every byte: the damaged record's length
/// cannot be trusted.
pub(crate) fn has_later_batch(bytes: &[u8], from: usize, batch: u64) -> bool {
    let kind_at = 8;
    (from..bytes.len().saturating_sub(HEADER_BYTES)).any(|at| {
        bytes[at + kind_at] == Kind::Batch as u8
            && bytes[at] == 4
            && matches!(record::parse(bytes, at), Parsed::Record(later)
                if later.kind == Kind::Batch && later.index > batch)
    })
}

/// Puts zeros over everything from `from` on, so that no later start meets it again.
fn erase(file: &dyn DiskFile, path: &Path, from: u64, bytes: &[u8]) -> Result<(), WalError> {
    let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
    if written > from {
        let zeros = vec![0; (written - from) as usize];
        file.write_at(&zeros, from).map_err(WalError::io("write", path))?;
        file.sync_data().map_err(WalError::io("sync", path))?;
    }
    Ok(())
}
