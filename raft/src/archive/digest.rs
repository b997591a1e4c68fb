//! Whether the archive holds what the state says it gave away: the state's digest grows by every
//! record, so that between two indexes it must have grown by what the period between them holds.
//! Notes what each period must come to and finds the one that does not. Never says what a record is.

use std::{collections::BTreeSet, sync::atomic::Ordering};

use super::{Archive, ArchiveError, ArchiveRecord, Writing};

/// What a record adds.
pub(crate) type RecordDigest = fn(&ArchiveRecord) -> u128;

/// Which periods were held against the state.
#[derive(Default)]
pub(super) struct Trust {
    /// Of those that are no longer written to.
    checked: BTreeSet<u64>,
    newest_checked: bool,
    /// Put aside once because they differed: a peer's copy that differs too is kept.
    distrusted: BTreeSet<u64>,
}

impl Trust {
    /// It took records from a peer.
    pub(super) fn forget(&mut self, start: u64) {
        self.checked.remove(&start);
    }
}

/// A period and what it must come to.
struct Case {
    start: u64,
    is_newest: bool,
    /// Records of entries before this one count; later ones are being written.
    end: u64,
    expected: u128,
}

impl Archive {
    /// What a record adds to the digest. Said once, by whoever applies.
    pub(crate) fn sum_by(&self, digest: RecordDigest) {
        let _ = self.record_digest.set(digest);
    }

    pub(super) fn add(&self, writing: &mut Writing, record: &ArchiveRecord) {
        if let (Some(sum), Some(digest)) = (&mut writing.sum, self.record_digest.get()) {
            *sum = sum.wrapping_add(digest(record));
        }
    }

    /// All records up to `upto` were written, and the state says what they come to. A period of
    /// which the beginning is not known ends here: the next can be checked.
    pub(super) fn compare(
        &self,
        upto: u64,
        digest: Option<u128>,
        writing: &mut Writing,
    ) -> Result<(), ArchiveError> {
        let sum = std::mem::replace(&mut writing.sum, digest);
        let Some(digest) = digest else { return Ok(()) };
        if sum.is_some_and(|sum| sum != digest) {
            tracing::error!(upto, "the archive was not given what the state says; a peer is asked");
            self.note_gap(writing)?;
        }
        if !writing.sums.contains_key(&self.periods.newest()?.start) {
            self.spill(writing)?;
            self.reach(upto + 1, writing)?;
        }
        Ok(())
    }

    /// Holds the next period that was not held against the state yet against it. One that differs
    /// is put aside, to be fetched from a peer. Says whether it was so. Reads the whole period.
    pub(crate) fn check_next(&self) -> Result<bool, ArchiveError> {
        let Some(case) = self.next_case()? else { return Ok(true) };
        let holds = self.come_to(&case)? == case.expected;
        let mut writing = self.writing();
        if !holds {
            self.distrust(&case, &mut writing)?;
        } else if case.is_newest {
            writing.trust.newest_checked = true;
        } else {
            writing.trust.checked.insert(case.start);
        }
        Ok(holds)
    }

    /// Oldest first; the one that is written to once.
    fn next_case(&self) -> Result<Option<Case>, ArchiveError> {
        let mut writing = self.writing();
        if writing.gap.is_some() || self.record_digest.get().is_none() {
            return Ok(None);
        }
        let starts = self.periods.starts()?;
        for pair in starts.windows(2) {
            let sums = (writing.sums.get(&pair[0]), writing.sums.get(&pair[1]));
            if let (Some(first), Some(last)) = sums
                && !writing.trust.checked.contains(&pair[0])
            {
                let (start, expected) = (pair[0], last.wrapping_sub(*first));
                return Ok(Some(Case { start, is_newest: false, end: pair[1], expected }));
            }
        }
        let start = self.periods.newest()?.start;
        let (Some(first), Some(last)) = (writing.sums.get(&start).copied(), writing.sum) else {
            return Ok(None);
        };
        if writing.trust.newest_checked {
            return Ok(None);
        }
        self.spill(&mut writing)?;
        let end = self.next.load(Ordering::Acquire);
        Ok(Some(Case { start, is_newest: true, end, expected: last.wrapping_sub(first) }))
    }

    fn come_to(&self, case: &Case) -> Result<u128, ArchiveError> {
        let digest = self.record_digest.get().expect("asked before");
        let Some(period) = self.open_or_set_aside(case.start)? else { return Ok(0) };
        let mut sum = 0u128;
        for item in period.scan(b"") {
            match item {
                Ok(item) if item.index < case.end => sum = sum.wrapping_add(digest(&item.record)),
                Ok(_) => {}
                Err(error) => {
                    self.judge(case.start, error)?;
                    break;
                }
            }
        }
        Ok(sum)
    }

    fn distrust(&self, case: &Case, writing: &mut Writing) -> Result<(), ArchiveError> {
        let start = case.start;
        if !self.periods.is_kept(start) {
            writing.trust.checked.insert(start); // it is about to go
            return Ok(());
        }
        if !writing.trust.distrusted.insert(start) {
            tracing::error!(
                start,
                "a period of the archive is not what the state says, nor is a peer's; it is kept"
            );
            writing.sums.remove(&start);
            return Ok(());
        }
        tracing::error!(
            start,
            "a period of the archive is not what the state says; it is put aside and comes from a peer"
        );
        if case.is_newest && self.periods.newest()?.start == start {
            self.spill(writing)?;
            self.reach(self.next.load(Ordering::Acquire), writing)?;
        }
        self.periods.set_aside(start)?;
        self.note_gap(writing)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Archive, ArchiveRecord, Indexed, Retention};

    const SMALL: Retention = Retention { period_entries: 10, periods: 6 };

    /// FNV: any will do.
    fn digest(record: &ArchiveRecord) -> u128 {
        let bytes = record.key.iter().chain(&record.value);
        bytes.fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |sum, byte| {
            (sum ^ u128::from(*byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b)
        })
    }

    fn record(index: u64) -> ArchiveRecord {
        ArchiveRecord { key: format!("job/{index:03}").into_bytes(), value: vec![7; 20] }
    }

    /// The state's digest after the entry at `index`.
    fn state(index: u64) -> Option<u128> {
        Some((1..=index).map(|index| digest(&record(index))).fold(41, u128::wrapping_add))
    }

    fn open(dir: &Path) -> Archive {
        for _ in 0..500 {
            match Archive::open(dir, SMALL) {
                Err(error) if error.is_locked() => {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                opened => {
                    let archive = opened.unwrap();
                    archive.sum_by(digest);
                    return archive;
                }
            }
        }
        panic!("sled holds on to its lock");
    }

    fn reopen(dir: &Path, archive: Archive) -> Archive {
        archive.close();
        drop(archive);
        open(dir)
    }

    fn write(archive: &Archive, index: u64, digest: Option<u128>) {
        let item = Indexed { index, record: record(index) };
        archive.write(index, vec![item], digest).unwrap();
    }

    fn fill(archive: &Archive, from: u64, to: u64) {
        (from..=to).for_each(|index| write(archive, index, state(index)));
    }

    /// How many periods hold, and how many do not, until all were looked at once.
    fn check_all(archive: &Archive) -> Vec<bool> {
        let mut found = Vec::new();
        while archive.next_case().unwrap().is_some() {
            found.push(archive.check_next().unwrap());
        }
        found
    }

    fn count(archive: &Archive) -> usize {
        archive.scan(b"").unwrap().map(Result::unwrap).count()
    }

    fn fetch(archive: &Archive, peer: &Archive) {
        let gaps = archive.gaps();
        archive.merge(peer.scan_indexed(b"").unwrap().map(Result::unwrap).collect()).unwrap();
        assert!(archive.close_gap(peer.applied().unwrap(), gaps).unwrap());
    }

    /// Takes a record out of a period's database, which sees nothing wrong with that.
    fn take_out(dir: &Path, period: &str, index: u64) {
        let db = sled::open(dir.join(period)).unwrap();
        let key = [&b"r"[..], &record(index).key].concat();
        assert!(db.remove(key).unwrap().is_some());
        db.flush().unwrap();
    }

    #[test]
    fn a_period_that_lacks_a_record_is_noticed_and_comes_from_a_peer() {
        let (dir, peer_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut archive, peer) = (open(dir.path()), open(peer_dir.path()));
        // The state begins to keep its digest on the way, as a cluster's version rises.
        for archive in [&archive, &peer] {
            (1..4).for_each(|index| write(archive, index, None));
            fill(archive, 4, 36);
        }
        assert_eq!(check_all(&archive), [true; 4], "from 5, 10, 20 and 30");
        for (period, index) in [("10", 14), ("5", 9), ("30", 33)] {
            archive.close();
            drop(archive);
            take_out(dir.path(), period, index);
            archive = open(dir.path());
            assert_eq!(count(&archive), 35);
            let found = check_all(&archive);
            assert_eq!(found.iter().filter(|holds| !**holds).count(), 1, "{period}: {found:?}");
            assert!(archive.has_gap().unwrap(), "{period}");
            fetch(&archive, &peer);
            assert_eq!(count(&archive), 36, "{period}");
            assert!(check_all(&archive).iter().all(|holds| *holds), "{period}");
            archive = reopen(dir.path(), archive);
            assert!(check_all(&archive).iter().all(|holds| *holds), "{period}, reopened");
            assert!(!archive.has_gap().unwrap());
        }
        fill(&archive, 37, 45);
        assert!(check_all(&archive).iter().all(|holds| *holds));
    }

    #[test]
    fn a_peer_that_differs_too_is_asked_once() {
        let (dir, peer_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (archive, peer) = (open(dir.path()), open(peer_dir.path()));
        fill(&archive, 1, 25);
        fill(&peer, 1, 25);
        for (archive, dir) in [(archive, &dir), (peer, &peer_dir)] {
            archive.close();
            drop(archive);
            take_out(dir.path(), "10", 14);
        }
        let (archive, peer) = (open(dir.path()), open(peer_dir.path()));
        assert!(check_all(&archive).contains(&false));
        fetch(&archive, &peer);
        assert!(check_all(&archive).contains(&false));
        assert!(!archive.has_gap().unwrap(), "nobody has it");
        assert_eq!(check_all(&archive), []);
        assert_eq!(count(&archive), 24);
    }

    #[test]
    fn a_record_that_never_came_is_missed_at_once() {
        let (dir, peer_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (archive, peer) = (open(dir.path()), open(peer_dir.path()));
        fill(&archive, 1, 6);
        fill(&peer, 1, 8);
        archive.write(7, Vec::new(), state(7)).unwrap();
        assert!(archive.has_gap().unwrap());
        fill(&archive, 8, 8);
        fetch(&archive, &peer);
        assert_eq!(count(&archive), 8);
        assert!(check_all(&archive).iter().all(|holds| *holds));
    }

    #[test]
    fn what_a_snapshot_jumped_over_is_checked_once_it_is_fetched() {
        let (dir, peer_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (archive, peer) = (open(dir.path()), open(peer_dir.path()));
        fill(&peer, 1, 25);
        fill(&archive, 1, 12);
        archive.skip_to(17, state(17)).unwrap();
        assert!(archive.next_case().unwrap().is_none(), "not before");
        fill(&archive, 18, 25);
        fetch(&archive, &peer);
        assert_eq!(check_all(&archive), [true; 3]);
        assert_eq!(count(&archive), 25);
    }
}
