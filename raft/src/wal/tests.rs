//! The log against a simulated disk: what was acknowledged survives every way to die, damage is
//! refused by name, a failed sync is final.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use openraft::EntryPayload;

use super::*;
use crate::{
    sim_disk::SimDisk,
    types::{EntryBytes, log_id},
};

const DIR: &str = "/log";

fn options(segment_bytes: u64) -> WalOptions {
    WalOptions {
        dir: DIR.into(),
        segment_bytes,
        cache_bytes: 4_000,
        retain_bytes: 20_000,
        accept_torn_tail: false,
    }
}

fn open(disk: &SimDisk, segment_bytes: u64) -> Wal {
    Wal::open(Arc::new(disk.clone()), options(segment_bytes)).unwrap()
}

fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let body: Vec<u8> = (0..bytes).map(|at| (at as u64 + index * 7 + term) as u8 | 1).collect();
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(EntryBytes(body.into())) }
}

/// Submits something and waits until it is on disk.
async fn durable(submit: impl FnOnce(Done) -> Result<(), WalError>) -> Result<(), WalError> {
    let (sender, receiver) = oneshot::channel();
    submit(Box::new(move |result| sender.send(result).unwrap_or_default()))?;
    receiver.await.unwrap_or(Err(WalError::Closed))
}

async fn append(wal: &Wal, entries: Vec<Entry>) -> Result<(), WalError> {
    durable(|done| wal.append(entries, done)).await
}

/// All that a log holds, for comparison.
#[derive(Debug, Clone, Default, PartialEq)]
struct Content {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, Entry>,
}

impl Content {
    fn of(wal: &Wal) -> Content {
        let entries = wal.read(0, u64::MAX, usize::MAX).unwrap();
        let entries = entries.into_iter().map(|entry| (entry.log_id.index(), entry)).collect();
        Content { vote: wal.vote(), purged: wal.purged(), entries }
    }

    /// Short enough to be read when a seed fails.
    fn summary(&self) -> String {
        let ids = self.entries.values().map(|entry| entry.log_id.to_string());
        let vote = self.vote.map(|vote| vote.to_string());
        format!("vote {vote:?} purged {:?} {}", self.purged, ids.collect::<Vec<_>>().join(" "))
    }

    fn next_index(&self) -> u64 {
        let last = self.entries.last_key_value().map(|(index, _)| *index);
        last.or(self.purged.map(|id| id.index())).map_or(0, |last| last + 1)
    }
}

#[tokio::test]
async fn everything_is_there_after_reopening() {
    let disk = SimDisk::new(1);
    let mut expected = Content::default();
    for life in 1..=20_u64 {
        let wal = open(&disk, 2_000);
        assert_eq!(Content::of(&wal), expected, "life {life}");
        let vote = Vote::new_committed(life, life % 3);
        durable(|done| wal.save_vote(vote, done)).await.unwrap();
        let next = expected.next_index();
        let entries: Vec<Entry> = (next..next + 20).map(|i| entry(life, i, 100)).collect();
        append(&wal, entries.clone()).await.unwrap();
        expected.vote = Some(vote);
        expected.entries.extend(entries.into_iter().map(|e| (e.log_id.index(), e)));
        if life % 3 == 0 {
            durable(|done| wal.truncate_from(next + 10, done)).await.unwrap();
            expected.entries.split_off(&(next + 10));
        }
        if life % 4 == 0 {
            let upto = *expected.entries.get(&(next - 20)).map(|e| &e.log_id).unwrap();
            durable(|done| wal.purge(upto, upto.index().saturating_sub(60), done)).await.unwrap();
            expected.purged = Some(upto);
            expected.entries = expected.entries.split_off(&(upto.index() + 1));
        }
        wal.save_committed(wal.last());
        assert_eq!(Content::of(&wal), expected, "life {life}");
        wal.close().await;
        disk.kill_process();
    }
    let segments = disk.list(Path::new(DIR)).unwrap();
    assert!(segments.len() > 3 && segments.len() < 40, "rolled and purged: {segments:?}");
}

#[tokio::test]
async fn an_entry_out_of_order_changes_nothing() {
    let disk = SimDisk::new(1);
    let wal = open(&disk, 2_000);
    append(&wal, vec![entry(1, 0, 10), entry(1, 1, 10)]).await.unwrap();
    let before = Content::of(&wal);
    let refused = append(&wal, vec![entry(1, 2, 10), entry(1, 4, 10)]).await;
    let why = refused.unwrap_err().to_string();
    assert_eq!(why, "entry 4 does not follow the log, which goes on at 3");
    assert_eq!(Content::of(&wal), before);
}

#[tokio::test]
async fn the_cache_is_bounded_and_the_rest_is_read_from_disk() {
    let disk = SimDisk::new(1);
    let wal = open(&disk, 10_000);
    let entries: Vec<Entry> = (0..200).map(|index| entry(1, index, 300)).collect();
    for chunk in entries.chunks(10) {
        append(&wal, chunk.to_vec()).await.unwrap();
    }
    assert!(wal.cached_bytes() <= 4_000, "{} bytes cached", wal.cached_bytes());
    assert_eq!(wal.read(0, 200, usize::MAX).unwrap(), entries);
    let limited = wal.read(50, 200, 1_000).unwrap();
    assert!(!limited.is_empty() && limited.len() < 6);
    assert_eq!(limited[0], entries[50]);
}

#[tokio::test]
async fn a_failed_sync_is_final() {
    let disk = SimDisk::new(1);
    let wal = open(&disk, 2_000);
    append(&wal, vec![entry(1, 0, 10)]).await.unwrap();
    let kept = Content::of(&wal);
    disk.fail_syncs(true);
    assert!(append(&wal, vec![entry(1, 1, 10)]).await.is_err());
    disk.fail_syncs(false);
    let again = append(&wal, vec![entry(1, 2, 10)]).await.unwrap_err().to_string();
    assert!(again.contains("cannot sync /log/0000000000000001.wal"), "{again}");
    assert!(durable(|done| wal.save_vote(Vote::new(2, 2), done)).await.is_err());
    assert!(wal.failed().borrow().is_some());
    // Power goes before anything could reach the medium some other way.
    disk.cut_power();
    let reopened =
        Wal::open(Arc::new(disk.clone()), WalOptions { accept_torn_tail: true, ..options(2_000) });
    let content = Content::of(&reopened.unwrap());
    assert_eq!(content.entries.get(&0), kept.entries.get(&0));
}

/// Flips each bit position's worth of each used byte, one byte at a time.
async fn flip_every_byte(prepare: impl AsyncFn(&SimDisk), is_right: impl Fn(&WalError) -> bool) {
    let disk = SimDisk::new(7);
    prepare(&disk).await;
    let segments = disk.list(Path::new(DIR)).unwrap();
    let segments: Vec<_> = segments.iter().filter(|name| name.ends_with(".wal")).collect();
    assert!(segments.len() > 1, "the log rolled");
    for name in segments {
        let path = Path::new(DIR).join(name);
        let bytes = disk.contents(&path).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        for at in 0..used {
            let mask = 1 << (at % 8);
            disk.flip(&path, at, mask);
            let refused = Wal::open(Arc::new(disk.clone()), options(1_500)).err();
            let error = refused.unwrap_or_else(|| panic!("{name}: byte {at} flipped unnoticed"));
            assert!(is_right(&error), "{name}: byte {at}: {error}");
            let said = error.to_string();
            assert!(said.contains(name.as_str()) && said.contains("offset"), "{said}");
            disk.flip(&path, at, mask);
            disk.kill_process();
        }
    }
    Wal::open(Arc::new(disk.clone()), options(1_500)).expect("whole again");
}

async fn some_batches(disk: &SimDisk) -> Wal {
    let wal = open(disk, 1_500);
    durable(|done| wal.save_vote(Vote::new(1, 1), done)).await.unwrap();
    for index in 0..12 {
        append(&wal, vec![entry(1, index * 2, 150), entry(1, index * 2 + 1, 50)]).await.unwrap();
    }
    wal
}

fn is_corrupt(error: &WalError) -> bool {
    matches!(error, WalError::Corrupt { .. })
}

#[tokio::test]
async fn every_flipped_byte_is_refused_after_a_clean_stop() {
    let prepare = async |disk: &SimDisk| {
        some_batches(disk).await.close().await;
        disk.cut_power();
    };
    flip_every_byte(prepare, is_corrupt).await;
}

#[tokio::test]
async fn every_flipped_byte_is_refused_after_a_kill() {
    let prepare = async |disk: &SimDisk| {
        let _wal = some_batches(disk).await;
        disk.kill_process();
    };
    flip_every_byte(prepare, is_corrupt).await;
}

#[tokio::test]
async fn every_flipped_byte_is_refused_after_a_power_cut() {
    let prepare = async |disk: &SimDisk| {
        let _wal = some_batches(disk).await;
        disk.cut_power();
    };
    let refused =
        |error: &WalError| is_corrupt(error) || matches!(error, WalError::TornTail { .. });
    flip_every_byte(prepare, refused).await;
}

/// `recovering` stands on this: a tail that may be dropped never holds the only copy of a promise.
#[tokio::test]
async fn a_vote_outlives_the_loss_of_the_last_write() {
    for batches in 0..12 {
        let disk = SimDisk::new(batches);
        let wal = open(&disk, 1_500);
        for index in 0..batches {
            append(&wal, vec![entry(1, index, 250)]).await.unwrap();
        }
        let vote = Vote::new(3, 2);
        durable(|done| wal.save_vote(vote, done)).await.unwrap();
        disk.cut_power();
        let names = disk.list(Path::new(DIR)).unwrap();
        let last = Path::new(DIR).join(names.iter().rfind(|n| n.ends_with(".wal")).unwrap());
        let bytes = disk.contents(&last).unwrap();
        disk.flip(&last, bytes.iter().rposition(|byte| *byte != 0).unwrap(), 1);
        let mark = disk.open(&Path::new(DIR).join("synced")).unwrap();
        mark.write_at(&[0; 1_024], 0).unwrap(); // it is never synced on the way
        let torn = Wal::open(Arc::new(disk.clone()), options(1_500)).err().unwrap();
        assert!(matches!(torn, WalError::TornTail { bytes: 1.., .. }), "{batches}: {torn}");
        let accepting = WalOptions { accept_torn_tail: true, ..options(1_500) };
        let wal = Wal::open(Arc::new(disk.clone()), accepting).unwrap();
        assert_eq!(wal.vote(), Some(vote), "after {batches} batches");
        assert_eq!(wal.last().map(|id| id.index() + 1).unwrap_or(0), batches);
    }
}

#[tokio::test]
async fn a_missing_segment_and_missing_records_are_refused() {
    let disk = SimDisk::new(7);
    some_batches(&disk).await.close().await;
    let segments = disk.list(Path::new(DIR)).unwrap();
    let last = Path::new(DIR).join(segments.iter().rfind(|name| name.ends_with(".wal")).unwrap());
    let whole = disk.contents(&last).unwrap();
    let file = disk.open(&last).unwrap();
    // As if the medium had never written the last segment's batches.
    file.write_at(&vec![0; whole.len() - 34], 34).unwrap();
    let error = Wal::open(Arc::new(disk.clone()), options(1_500)).err().unwrap();
    assert!(is_corrupt(&error) && error.to_string().contains("records are missing"), "{error}");
    disk.remove(&last).unwrap();
    let error = Wal::open(Arc::new(disk.clone()), options(1_500)).err().unwrap();
    assert!(is_corrupt(&error) && error.to_string().contains("records are missing"), "{error}");
    disk.remove(&Path::new(DIR).join(&segments[1])).unwrap();
    let error = Wal::open(Arc::new(disk.clone()), options(1_500)).err().unwrap();
    assert!(is_corrupt(&error) && error.to_string().contains("missing"), "{error}");
}

/// A seeded life of a log: what was asked of it, and what was acknowledged.
struct Life {
    seed: u64,
    random: u64,
    term: u64,
    /// The content after each operation, beginning with that at the start.
    states: Vec<Content>,
    acknowledged: Arc<AtomicUsize>,
}

impl Life {
    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    /// One random operation. The callback notes that all operations up to it are acknowledged.
    fn operate(&mut self, wal: &Wal) -> Result<(), WalError> {
        let mut state = self.states.last().unwrap().clone();
        let number = self.states.len();
        let acknowledged = Arc::clone(&self.acknowledged);
        let done: Done = Box::new(move |result| {
            if result.is_ok() {
                let before = acknowledged.fetch_max(number, Ordering::SeqCst);
                assert!(before <= number, "acknowledged in order");
            }
        });
        let (next, kind) = (state.next_index(), self.random(20));
        let held = state.entries.len() as u64;
        let submitted = match kind {
            0..=1 => {
                self.term += 1;
                let vote = Vote::new(self.term, self.random(3));
                state.vote = Some(vote);
                wal.save_vote(vote, done)
            }
            2 if held > 0 => {
                let from = next - 1 - self.random(held);
                state.entries.split_off(&from);
                wal.truncate_from(from, done)
            }
            3 => {
                // Mostly inside the log, sometimes past its end, as a snapshot does.
                let inside = next - held + self.random(held.max(1));
                let past_the_end = log_id(self.term, next + self.random(5));
                let upto = match state.entries.get(&inside) {
                    Some(entry) if self.random(4) > 0 => entry.log_id,
                    _ => past_the_end,
                };
                state.purged = Some(upto);
                state.entries = state.entries.split_off(&(upto.index() + 1));
                wal.purge(upto, upto.index().saturating_sub(30), done)
            }
            _ => {
                let count = 1 + self.random(5);
                let sizes: Vec<u64> = (0..count).map(|_| self.random(900)).collect();
                let entries = sizes.iter().zip(next..);
                let entries: Vec<Entry> =
                    entries.map(|(size, index)| entry(self.term, index, *size as usize)).collect();
                state.entries.extend(entries.iter().map(|e| (e.log_id.index(), e.clone())));
                wal.append(entries, done)
            }
        };
        if submitted.is_ok() {
            self.states.push(state);
        }
        submitted
    }
}

#[derive(Debug, Default)]
struct Tally {
    lives: u64,
    acknowledged: usize,
    kills: u64,
    power_cuts: u64,
    torn: u64,
    died_while_opening: u64,
}

/// Opens after a death, through torn tails and deaths while opening.
fn reopen(disk: &SimDisk, life: &mut Life, tally: &mut Tally, after_power_cut: bool) -> Wal {
    let mut was_cut = after_power_cut;
    if life.random(3) == 0 {
        disk.die_after(1 + life.random(4));
        if Wal::open(Arc::new(disk.clone()), options(3_000)).is_err() && disk.is_dead() {
            tally.died_while_opening += 1;
        }
        was_cut |= life.random(2) == 0;
        if was_cut { disk.cut_power() } else { disk.kill_process() }
    }
    match Wal::open(Arc::new(disk.clone()), options(3_000)) {
        Ok(wal) => wal,
        Err(WalError::TornTail { .. }) if was_cut => {
            tally.torn += 1;
            let accepting = WalOptions { accept_torn_tail: true, ..options(3_000) };
            Wal::open(Arc::new(disk.clone()), accepting).expect("a torn tail can be dropped")
        }
        Err(error) => panic!("seed {}: {error}", life.seed),
    }
}

async fn live_and_die(seed: u64, tally: &mut Tally) {
    let disk = SimDisk::new(seed);
    let mut life = Life {
        seed,
        random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        term: 1,
        states: vec![Content::default()],
        acknowledged: Arc::default(),
    };
    let mut wal = open(&disk, 3_000);
    for _ in 0..5 {
        if life.random(4) > 0 {
            disk.die_after(1 + life.random(80));
        }
        for _ in 0..life.random(40) {
            if life.operate(&wal).is_err() {
                break;
            }
            if life.random(2) == 0 {
                tokio::task::yield_now().await; // lets the writer write a batch
            }
            if life.random(5) == 0 {
                wal.save_committed(wal.last());
            }
        }
        let power_cut = life.random(2) == 0;
        if power_cut {
            disk.cut_power()
        } else {
            disk.kill_process()
        }
        drop(wal);
        tokio::task::yield_now().await;
        wal = reopen(&disk, &mut life, tally, power_cut);

        let acknowledged = life.acknowledged.swap(0, Ordering::SeqCst);
        let found = Content::of(&wal);
        let survived = life.states[acknowledged..].contains(&found);
        let summaries: Vec<String> = life.states.iter().map(Content::summary).collect();
        assert!(
            survived,
            "seed {seed}: found {}, expected one of {summaries:#?} from number {acknowledged} on",
            found.summary()
        );
        assert!(wal.committed() <= wal.last());
        life.states = vec![found];
        tally.lives += 1;
        tally.acknowledged += acknowledged;
        *(if power_cut { &mut tally.power_cuts } else { &mut tally.kills }) += 1;
    }
}

#[tokio::test]
async fn nothing_acknowledged_is_ever_lost() {
    let mut tally = Tally::default();
    for seed in 1..=800 {
        live_and_die(seed, &mut tally).await;
    }
    println!("{tally:?}");
    assert_eq!(tally.lives, 4_000);
    assert!(tally.acknowledged > 10_000, "the lives did something");
    assert!(tally.torn > 20 && tally.died_while_opening > 100, "and died in many ways");
}
