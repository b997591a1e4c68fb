//! Periods: where records go, what is dropped, and what comes back from a peer.

use std::{fs, path::Path};

use tempfile::TempDir;

use super::{Archive, ArchiveRecord, Indexed, Retention};

const SMALL: Retention = Retention { period_entries: 10, periods: 3 };

fn record(key: &str, index: u64) -> Indexed {
    let record =
        ArchiveRecord { key: key.as_bytes().to_vec(), value: format!("at {index}").into_bytes() };
    Indexed { index, record }
}

/// One record an entry, under a key that sorts otherwise, and one key that all write.
fn entry(index: u64) -> Vec<Indexed> {
    vec![record(&format!("job/{:03}", 1_000 - index), index), record("last", index)]
}

fn fill(archive: &Archive, from: u64, to: u64) {
    for index in from..=to {
        archive.write(index, entry(index), None).unwrap();
    }
}

fn keys(archive: &Archive) -> Vec<String> {
    let records = archive.scan(b"").unwrap();
    records.map(|record| String::from_utf8(record.unwrap().key).unwrap()).collect()
}

/// What an archive holds that has the entries `from..=to`.
fn expected(from: u64, to: u64) -> Vec<String> {
    let jobs = (from..=to).rev().map(|index| format!("job/{:03}", 1_000 - index));
    jobs.chain(["last".to_owned()]).collect()
}

fn folders(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_by_key(|name| (name.len(), name.clone()));
    names
}

fn open(dir: &TempDir) -> Archive {
    Archive::open(dir.path(), SMALL).unwrap()
}

fn reopen(dir: &TempDir, archive: Archive) -> Archive {
    archive.close();
    drop(archive);
    reopen_closed(dir)
}

fn reopen_closed(dir: &TempDir) -> Archive {
    for _ in 0..500 {
        match Archive::open(dir.path(), SMALL) {
            Err(error) if error.is_locked() => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            opened => return opened.unwrap(),
        }
    }
    panic!("sled holds on to its lock");
}

fn damage(period: &Path) {
    let db = period.join("db");
    let bytes = fs::read(&db).unwrap();
    fs::write(db, vec![0x5a; bytes.len()]).unwrap();
}

fn everything(archive: &Archive) -> Vec<Indexed> {
    archive.scan_indexed(b"").unwrap().map(Result::unwrap).collect()
}

#[test]
fn records_go_to_the_period_of_their_index_and_reads_span_periods() {
    let dir = tempfile::tempdir().unwrap();
    let archive = open(&dir);
    fill(&archive, 1, 24);
    // One batch may reach over an end.
    archive.write(33, (25..=33).flat_map(entry).collect(), None).unwrap();
    assert_eq!(folders(dir.path()), ["10", "20", "30"], "three are kept");
    assert_eq!(keys(&archive), expected(10, 33));
    assert_eq!(archive.get(b"last").unwrap().unwrap(), b"at 33");
    assert_eq!(archive.get(b"job/985").unwrap().unwrap(), b"at 15");
    assert_eq!(archive.get(b"job/995").unwrap(), None, "dropped with its period");
    assert!(archive.is_synced_to(29), "a period is durable before the next one begins");
    assert!(!archive.is_synced_to(30));

    let archive = reopen(&dir, archive);
    assert_eq!(archive.applied(), Some(33));
    assert!(!archive.has_gap().unwrap());
    assert_eq!(keys(&archive), expected(10, 33));
    fill(&archive, 30, 41);
    assert_eq!(keys(&archive), expected(20, 41));
    archive.close();
}

#[test]
fn a_reader_of_a_period_that_is_dropped_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let archive = open(&dir);
    fill(&archive, 1, 12);
    let mut reading = archive.scan(b"job/").unwrap();
    reading.next().unwrap().unwrap();
    fill(&archive, 13, 45);
    assert_eq!(folders(dir.path()), ["20", "30", "40"]);
    assert_eq!(reading.map(Result::unwrap).count(), 11);
    assert_eq!(keys(&archive), expected(20, 45));
}

#[test]
fn the_one_folder_of_the_first_release_is_a_period() {
    let dir = tempfile::tempdir().unwrap();
    let wide = Retention { period_entries: 1_000, periods: 3 };
    let archive = Archive::open(dir.path(), wide).unwrap();
    fill(&archive, 1, 25);
    assert_eq!(folders(dir.path()), ["0"]);
    let archive = reopen(&dir, archive);
    fill(&archive, 26, 28);
    assert_eq!(folders(dir.path()), ["0", "20"]);
    assert_eq!(keys(&archive), expected(1, 28));
    fill(&archive, 29, 45);
    assert_eq!(folders(dir.path()), ["20", "30", "40"]);
}

#[test]
fn a_period_that_is_gone_or_damaged_comes_from_a_peer() {
    let (dir, peer_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut archive, peer) = (open(&dir), open(&peer_dir));
    fill(&archive, 1, 35);
    fill(&peer, 1, 40);
    let damage: [fn(&Path); 2] = [|period| fs::remove_dir_all(period).unwrap(), damage];
    for damage in damage {
        archive.close();
        drop(archive);
        damage(&dir.path().join("20"));
        archive = loop {
            match Archive::open(dir.path(), SMALL) {
                Err(error) if error.is_locked() => continue,
                opened => break opened.unwrap(),
            }
        };
        // Damage is found by whoever reads.
        let _ = archive.get(b"job/975");
        assert!(archive.has_gap().unwrap());
        assert_eq!(archive.get(b"job/975").unwrap(), None);

        archive.merge(everything(&peer)).unwrap();
        assert!(
            !archive.close_gap(34, archive.gaps()).unwrap(),
            "a peer that is behind does not cover it"
        );
        assert!(archive.close_gap(peer.applied().unwrap(), archive.gaps()).unwrap());
        // The peer kept 20 to 40, and what comes after 35 is still to be applied here.
        assert_eq!(keys(&archive)[..16], expected(20, 35)[..16]);
        archive = reopen(&dir, archive);
        assert!(!archive.has_gap().unwrap());
        assert_eq!(archive.get(b"job/975").unwrap().unwrap(), b"at 25");
    }
}

#[test]
fn a_period_found_damaged_by_a_fetch_is_begun_anew_by_the_next() {
    let (dir, peer_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (archive, peer) = (open(&dir), open(&peer_dir));
    fill(&archive, 1, 35);
    fill(&peer, 1, 35);
    // sled notes how far it has read, and takes a log that is all noise for an empty one without it.
    assert_eq!(keys(&archive), expected(10, 35));
    archive.close();
    drop(archive);
    damage(&dir.path().join("20"));
    let archive = reopen_closed(&dir);
    assert!(!archive.has_gap().unwrap(), "nobody has read it");
    assert!(archive.merge(everything(&peer)).is_err(), "what it took before is lost with it");
    assert!(archive.has_gap().unwrap());
    archive.merge(everything(&peer)).unwrap();
    assert!(archive.close_gap(35, archive.gaps()).unwrap());
    assert_eq!(keys(&archive), expected(10, 35));
}

#[test]
fn what_is_put_aside_during_a_fetch_is_fetched_again() {
    let (dir, peer_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (archive, peer) = (open(&dir), open(&peer_dir));
    fill(&archive, 1, 35);
    fill(&peer, 1, 35);
    assert_eq!(keys(&archive), expected(10, 35));
    archive.close();
    drop(archive);
    fs::remove_dir_all(dir.path().join("10")).unwrap();
    damage(&dir.path().join("20"));
    let archive = reopen_closed(&dir);
    assert!(archive.has_gap().unwrap(), "one is gone");
    let gaps = archive.gaps();
    let (before, after): (Vec<_>, Vec<_>) =
        everything(&peer).into_iter().partition(|item| item.index < 25);
    archive.merge(before.into_iter().filter(|item| item.index < 20).collect()).unwrap();
    // Somebody reads while the rest is under way, and finds the other one damaged.
    assert_eq!(archive.get(b"job/978").unwrap(), None);
    archive.merge(after).unwrap();
    assert!(!archive.close_gap(35, gaps).unwrap(), "20 to 24 went with what was put aside");
    assert!(archive.has_gap().unwrap());
    let gaps = archive.gaps();
    archive.merge(everything(&peer)).unwrap();
    assert!(archive.close_gap(35, gaps).unwrap());
    assert_eq!(keys(&archive), expected(10, 35));
}

#[test]
fn a_gap_outlives_the_period_it_was_found_in() {
    let (dir, peer_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (archive, peer) = (open(&dir), open(&peer_dir));
    fill(&archive, 1, 3);
    archive.skip_to(27, None).unwrap();
    fill(&archive, 28, 31);
    let archive = reopen(&dir, archive);
    assert!(archive.has_gap().unwrap());
    assert_eq!(archive.applied(), Some(31));

    fill(&peer, 1, 31);
    archive.merge(everything(&peer)).unwrap();
    assert!(archive.close_gap(31, archive.gaps()).unwrap());
    assert_eq!(keys(&peer), expected(10, 31));
    assert!(keys(&peer).iter().all(|key| keys(&archive).contains(key)));
    assert_eq!(folders(dir.path()), ["0", "10", "20", "30"], "an old one goes with the next");
    fill(&archive, 32, 45);
    assert_eq!(keys(&archive), expected(20, 45));
}

#[test]
fn a_period_begun_by_a_process_that_died_is_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let archive = open(&dir);
    fill(&archive, 1, 15);
    archive.close();
    drop(archive);
    // As if it had died right after making the folder.
    fs::create_dir(dir.path().join("20")).unwrap();
    fs::create_dir(dir.path().join("0.dropped")).unwrap();
    let archive = loop {
        match Archive::open(dir.path(), SMALL) {
            Err(error) if error.is_locked() => continue,
            opened => break opened.unwrap(),
        }
    };
    assert_eq!(archive.applied(), Some(15));
    fill(&archive, 16, 22);
    assert_eq!(keys(&archive), expected(1, 22));
    assert_eq!(folders(dir.path()), ["0", "10", "20"]);
}

/// What is kept may take more room on disk, but not ten times as much.
#[test]
fn space_is_in_proportion() {
    let dir = tempfile::tempdir().unwrap();
    let archive =
        Archive::open(dir.path(), Retention { period_entries: 1 << 40, periods: 1 }).unwrap();
    let (jobs, lines, live) = (20_000_u64, 8, 500);
    let (mut index, mut bytes) = (0, 0);
    // As a cluster writes it: each of the live jobs a line, one after the other.
    for first in (0..jobs).step_by(live) {
        for line in 0..lines {
            for job in first..(first + live as u64).min(jobs) {
                index += 1;
                let record = ArchiveRecord {
                    key: [&b"story/"[..], &job.to_be_bytes(), &[line]].concat(),
                    value: vec![b'.'; 100],
                };
                bytes += (record.key.len() + record.value.len()) as u64;
                archive.write(index, vec![Indexed { index, record }], None).unwrap();
            }
        }
        if first % 5_000 == 0 {
            archive.checkpoint().unwrap();
        }
    }
    archive.close();
    let db = fs::metadata(dir.path().join("0/db")).unwrap().len();
    println!("{bytes} bytes of records take {db}: {:.1} times", db as f64 / bytes as f64);
    assert!(db < 5 * bytes, "{bytes} bytes of records take {db}");
}
