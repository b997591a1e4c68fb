//! What the fuzz targets in `fuzz/` call: bytes in, no panic, and what was read means the same when
//! it is written again. Not for anything else.

use std::{path::Path, sync::Arc};

use crate::{
    codec,
    disk::{Disk, DiskFile},
    sim_disk::SimDisk,
    snapshots,
    wal::{
        record::{self, Kind, Parsed},
        recover::{self, Replay},
    },
};

/// The records of a segment as they lie in a file, damage and all.
pub fn wal_record(bytes: &[u8]) {
    let mut offset = 0;
    while let Parsed::Record(record) = record::parse(bytes, offset) {
        let mut again = Vec::new();
        record::push(&mut again, record.kind, record.schema, record.index, record.body);
        assert_eq!(again, bytes[offset..offset + record.len()], "a record has one form");
        offset += record.len();
    }
    replay(bytes);
}

/// A segment with whole records whose content is anything: their checksums do not protect the
/// replay from it.
pub fn wal_segment(bytes: &[u8]) {
    let mut segment = recover::segment_head(1, 1);
    for (number, batch) in bytes.chunks(200).enumerate() {
        let mut records = Vec::new();
        for part in batch.chunks(50) {
            let (head, body) = part.split_at(part.len().min(10));
            let kind = head.first().map_or(1, |byte| byte % 8 + 1);
            let kind = [Kind::Entry, Kind::Vote, Kind::Truncate, Kind::Purge, Kind::Committed]
                .into_iter()
                .find(|known| *known as u8 == kind)
                .unwrap_or(Kind::Entry);
            let mut index = [0; 8];
            index[..head.len().saturating_sub(2)].copy_from_slice(head.get(2..).unwrap_or(&[]));
            let schema = head.get(1).map_or(1, |byte| byte % 2 + 1);
            record::push(&mut records, kind, schema, u64::from_le_bytes(index), body);
        }
        let length = records.len() as u32;
        let number = number as u64 + 1;
        record::push(&mut segment, Kind::Batch, codec::SCHEMA, number, &length.to_le_bytes());
        segment.extend_from_slice(&records);
    }
    replay(&segment);
}

/// A snapshot's file, and its head alone.
pub fn snapshot(bytes: &[u8]) {
    snapshots::parse(Path::new("fuzz"), bytes.to_vec()).ok();
    if let Ok(head) = codec::read_snapshot_head(codec::SCHEMA, bytes) {
        let again = codec::read_snapshot_head(codec::SCHEMA, &codec::write_snapshot_head(&head));
        let again = again.expect("what was written can be read");
        assert_eq!((again.meta, again.body_crc), (head.meta, head.body_crc));
    }
}

/// The body of each kind of record.
pub fn codec(bytes: &[u8]) {
    let schema = codec::SCHEMA;
    if let Ok(entry) = codec::read_entry(schema, bytes) {
        let again = codec::read_entry(schema, &codec::write_entry(&entry));
        assert_eq!(again.expect("what was written can be read"), entry);
    }
    if let Ok(vote) = codec::read_vote(schema, bytes) {
        assert_eq!(codec::write_vote(&vote), bytes);
    }
    if let Ok(id) = codec::read_log_id(schema, bytes) {
        assert_eq!(codec::write_log_id(&id), bytes);
    }
}

/// Reads a segment back and looks at what it says is there.
fn replay(bytes: &[u8]) {
    let disk = SimDisk::new(1);
    let path = Path::new("0000000000000001.wal");
    let file: Arc<dyn DiskFile> = disk.create(path).expect("a simulated disk has room");
    for keeps_purged in [false, true] {
        let mut replay = Replay { keeps_purged, ..Replay::default() };
        let Ok(scan) = replay.segment(1, path, &file, bytes) else { continue };
        assert!(scan.end as usize <= bytes.len());
        let mut last = None;
        for slot in replay.content.range(0, u64::MAX) {
            let at = slot.at.expect("it lies in the file");
            let Parsed::Record(record) = record::parse(bytes, at.offset as usize) else {
                panic!("no record where one was read")
            };
            let entry = codec::read_entry(record.schema, record.body).expect("read before");
            assert_eq!(entry.log_id, slot.id);
            let index = slot.id.index();
            assert!(last.is_none_or(|last| index == last + 1), "entries without a hole");
            last = Some(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// Changes a few bytes, lengths included; splitmix64.
    fn mutate(bytes: &mut Vec<u8>, seed: &mut u64) {
        let mut random = |below: usize| {
            *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (mixed >> 33) as usize % below.max(1)
        };
        for _ in 0..=random(4) {
            let at = random(bytes.len() + 1);
            match random(5) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, random(256) as u8),
                2 => bytes.extend_from_within(at..),
                3 => bytes.iter_mut().skip(at).take(8).for_each(|byte| *byte = 0xff),
                _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = random(256) as u8),
            }
            bytes.truncate(4_096);
        }
    }

    fn replay_corpus(name: &str, target: fn(&[u8])) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let files = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        let mut seeds = 0;
        for file in files {
            let bytes = fs::read(file.unwrap().path()).unwrap();
            target(&bytes);
            let mut seed = bytes.len() as u64;
            for _ in 0..2_000 {
                let mut changed = bytes.clone();
                mutate(&mut changed, &mut seed);
                target(&changed);
            }
            seeds += 1;
        }
        assert!(seeds > 0, "{} is empty", dir.display());
    }

    #[test]
    fn wal_record_corpus() {
        replay_corpus("wal_record", super::wal_record);
    }

    #[test]
    fn wal_segment_corpus() {
        replay_corpus("wal_segment", super::wal_segment);
    }

    #[test]
    fn snapshot_corpus() {
        replay_corpus("snapshot", super::snapshot);
    }

    #[test]
    fn codec_corpus() {
        replay_corpus("codec", super::codec);
    }
}
