//! One period of the archive: a database in a folder of its own, so that dropping it gives its space
//! back. Never knows of other periods, nor which entries belong here.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    ArchiveError, ArchiveRecord, Indexed,
    db::{Db, Place},
};

const RECORD: u8 = b'r';
const APPLIED: &[u8] = b"m/applied";
const GAP: &[u8] = b"m/gap";
const PERIODS: &[u8] = b"m/periods";
const SUM: &[u8] = b"m/sum";
const SUMS: &[u8] = b"m/sums";

/// An open period. Dropping it lets go of the folder.
pub(super) struct Period {
    pub(super) start: u64,
    dir: PathBuf,
    db: Db,
}

/// What is noted beside the records.
#[derive(Default)]
pub(super) struct Notes {
    /// One more than the last index whose records are in.
    pub(super) next: Option<u64>,
    /// Records up to here are missing.
    pub(super) gap: Option<u64>,
    /// The first indexes of all periods that were kept.
    pub(super) periods: Vec<u64>,
    /// The state's digest of all records before `next`.
    pub(super) sum: Option<u128>,
    /// The same as of the beginning of each period of which it is known.
    pub(super) sums: Sums,
}

/// By the first index of a period.
pub(super) type Sums = BTreeMap<u64, u128>;

impl Period {
    /// Opens the period in `dir`, or begins it. `flush_every_ms`: how much a killed process may
    /// lose; none where nothing is written on its own.
    pub(super) fn open(
        place: &Place,
        start: u64,
        dir: &Path,
        cache_bytes: u64,
        flush_every_ms: Option<u64>,
    ) -> Result<Period, ArchiveError> {
        let db = place.open(dir, cache_bytes, flush_every_ms)?;
        Ok(Period { start, dir: dir.into(), db })
    }

    pub(super) fn notes(&self) -> Result<Notes, ArchiveError> {
        let read = |key| self.db.get(key).map_err(|e| self.sled(e));
        let number = |stored: sled::IVec| stored.as_ref().try_into().ok().map(u64::from_be_bytes);
        let periods = read(PERIODS)?.unwrap_or_default();
        let periods = periods
            .chunks_exact(8)
            .map(|start| u64::from_be_bytes(start.try_into().expect("eight bytes")));
        Ok(Notes {
            next: read(APPLIED)?.and_then(number),
            gap: read(GAP)?.and_then(number),
            periods: periods.collect(),
            sum: read(SUM)?
                .and_then(|stored| stored.as_ref().try_into().ok().map(u128::from_be_bytes)),
            sums: sums(&read(SUMS)?.unwrap_or_default()),
        })
    }

    /// Writes records and notes in one batch: after a crash either all are there or none.
    pub(super) fn write(
        &self,
        records: impl IntoIterator<Item = Indexed>,
        notes: &Notes,
    ) -> Result<(), ArchiveError> {
        let mut batch: Vec<_> = records
            .into_iter()
            .map(|Indexed { index, record }| {
                (record_key(&record.key), stored(index, &record.value))
            })
            .collect();
        for (key, number) in [(APPLIED, notes.next), (GAP, notes.gap)] {
            if let Some(number) = number {
                batch.push((key.to_vec(), number.to_be_bytes().to_vec()));
            }
        }
        if !notes.periods.is_empty() {
            let starts = notes.periods.iter().flat_map(|start| start.to_be_bytes()).collect();
            batch.push((PERIODS.to_vec(), starts));
        }
        if let Some(sum) = notes.sum {
            batch.push((SUM.to_vec(), sum.to_be_bytes().to_vec()));
        }
        if !notes.sums.is_empty() {
            let each = |(start, sum): (&u64, &u128)| {
                [&start.to_be_bytes()[..], &sum.to_be_bytes()[..]].concat()
            };
            batch.push((SUMS.to_vec(), notes.sums.iter().flat_map(each).collect()));
        }
        self.db.apply(batch).map_err(|e| self.sled(e))
    }

    /// Takes records from elsewhere; the greater index wins.
    pub(super) fn merge(&self, records: Vec<Indexed>) -> Result<(), ArchiveError> {
        let mut newer = Vec::new();
        for item in records {
            let held = self.get(&item.record.key)?;
            if held.is_none_or(|(index, _)| index < item.index) {
                newer.push(item);
            }
        }
        self.write(newer, &Notes::default())
    }

    pub(super) fn end_gap(&self) -> Result<(), ArchiveError> {
        self.db.remove(GAP).map_err(|e| self.sled(e))
    }

    /// The value under `key` and the index of the entry that wrote it.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<(u64, Vec<u8>)>, ArchiveError> {
        let found = self.db.get(record_key(key)).map_err(|e| self.sled(e))?;
        Ok(found.map(|stored| {
            let (index, value) = split(&stored);
            (index, value.to_vec())
        }))
    }

    /// The records whose keys begin with `prefix`, in key order. Holds on to the period.
    pub(super) fn scan(
        self: Arc<Self>,
        prefix: &[u8],
    ) -> impl Iterator<Item = Result<Indexed, ArchiveError>> + Send + use<> {
        self.db.scan_prefix(record_key(prefix)).map(move |found| {
            let (key, value) = found.map_err(|e| self.sled(e))?;
            let (index, value) = split(&value);
            let record = ArchiveRecord { key: key[1..].to_vec(), value: value.to_vec() };
            Ok(Indexed { index, record })
        })
    }

    /// Hands everything to the operating system.
    pub(super) fn flush(&self) -> Result<(), ArchiveError> {
        self.db.flush().map_err(|e| self.sled(e))
    }

    /// Makes everything durable.
    pub(super) fn sync(&self) -> Result<(), ArchiveError> {
        self.db.sync(&self.dir)
    }

    fn sled(&self, source: sled::Error) -> ArchiveError {
        ArchiveError::Sled { dir: self.dir.clone(), source }
    }
}

fn sums(stored: &[u8]) -> Sums {
    let each = stored.chunks_exact(24).map(|pair| {
        let (start, sum) = pair.split_at(8);
        let start = u64::from_be_bytes(start.try_into().expect("eight bytes"));
        (start, u128::from_be_bytes(sum.try_into().expect("sixteen bytes")))
    });
    each.collect()
}

fn record_key(key: &[u8]) -> Vec<u8> {
    [&[RECORD], key].concat()
}

fn stored(index: u64, value: &[u8]) -> Vec<u8> {
    [&index.to_be_bytes(), value].concat()
}

fn split(stored: &[u8]) -> (u64, &[u8]) {
    match stored.split_first_chunk() {
        Some((index, value)) => (u64::from_be_bytes(*index), value),
        None => (0, &[]),
    }
}
