//! The fence on disk: the highest term and epochs, which outlive the agent.
//!
//! Owns the file `fence`. Never decides what is stale: `core` does.
//!
//! Two slots are overwritten in turn, so that a torn write spoils only the one
//! whose launch has not happened. Replacing a file by renaming was the obvious
//! alternative: it costs two journal commits before every launch, 20 ms on a
//! busy disk, where overwriting costs one flush.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::core::{Epoch, Fence, Ordinal};

/// Room for 64 GPUs three times over.
const SLOT_BYTES: usize = 8192;
const SLOTS: u64 = 2;
/// Version, in the first bytes of a slot.
const MAGIC: &str = "rowen-fence-1";

#[derive(Serialize, Deserialize)]
struct Saved {
    sequence: u64,
    boot_id: String,
    term: u64,
    /// GPU ordinal to (incarnation, index).
    epochs: BTreeMap<u32, (u64, u64)>,
}

/// The open file.
#[derive(Debug)]
pub(crate) struct FenceFile {
    file: File,
    sequence: u64,
}

impl FenceFile {
    /// The fence, and the boot of the machine it was last written in; both
    /// empty in a new folder. A file without a slot that reads well is an
    /// error: starting without it could launch beside a newer owner.
    pub(crate) fn open(dir: &Path) -> io::Result<(Self, Fence, String)> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(dir.join("fence"))?;
        if file.metadata()?.len() < SLOTS * SLOT_BYTES as u64 {
            // New, or a crash came before the first save was through: nothing
            // was ever launched on it. Then it holds zeros at most.
            let mut held = Vec::new();
            io::Read::read_to_end(&mut &file, &mut held)?;
            if held.iter().any(|byte| *byte != 0) {
                return Err(io::Error::other("it was cut short"));
            }
            file.write_all_at(&vec![0; SLOT_BYTES * 2], 0)?;
            file.sync_all()?;
            File::open(dir)?.sync_all()?;
            return Ok((FenceFile { file, sequence: 0 }, Fence::default(), String::new()));
        }
        let slots = [read_slot(&file, 0)?, read_slot(&file, 1)?];
        if slots.iter().all(|slot| matches!(slot, Slot::Empty)) {
            return Ok((FenceFile { file, sequence: 0 }, Fence::default(), String::new()));
        }
        let whole = slots.into_iter().filter_map(|slot| match slot {
            Slot::Whole(saved) => Some(saved),
            Slot::Empty | Slot::Torn => None,
        });
        let saved = whole.max_by_key(|saved| saved.sequence);
        let saved = saved.ok_or_else(|| io::Error::other("no slot of it reads well"))?;
        let epoch = |(incarnation, index)| Epoch { incarnation, index };
        let epochs =
            saved.epochs.into_iter().map(|(gpu, pair)| (Ordinal(gpu), epoch(pair))).collect();
        let fence = Fence { term: saved.term, epochs };
        Ok((FenceFile { file, sequence: saved.sequence }, fence, saved.boot_id))
    }

    /// On disk, synced, when it returns.
    pub(crate) fn save(&mut self, fence: &Fence, boot_id: &str) -> io::Result<()> {
        self.sequence += 1;
        let pair = |epoch: &Epoch| (epoch.incarnation, epoch.index);
        let saved = Saved {
            sequence: self.sequence,
            boot_id: boot_id.to_string(),
            term: fence.term,
            epochs: fence.epochs.iter().map(|(gpu, epoch)| (gpu.0, pair(epoch))).collect(),
        };
        let json = serde_json::to_string(&saved)?;
        let mut slot = format!("{MAGIC} {:08x} {json}\n", crc32fast::hash(json.as_bytes()));
        if slot.len() > SLOT_BYTES {
            return Err(io::Error::other(format!("{} GPUs do not fit", fence.epochs.len())));
        }
        slot.extend(std::iter::repeat_n(' ', SLOT_BYTES - slot.len()));
        let offset = self.sequence % SLOTS * SLOT_BYTES as u64;
        self.file.write_all_at(slot.as_bytes(), offset)?;
        self.file.sync_data()
    }
}

enum Slot {
    /// Never written.
    Empty,
    Torn,
    Whole(Saved),
}

fn read_slot(file: &File, number: u64) -> io::Result<Slot> {
    let mut bytes = vec![0; SLOT_BYTES];
    file.read_exact_at(&mut bytes, number * SLOT_BYTES as u64)?;
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(Slot::Empty);
    }
    let saved = || -> Option<Saved> {
        let text = std::str::from_utf8(&bytes).ok()?.trim_end();
        let (sum, json) = text.strip_prefix(MAGIC)?.strip_prefix(' ')?.split_once(' ')?;
        let sum = u32::from_str_radix(sum, 16).ok()?;
        let whole = sum == crc32fast::hash(json.as_bytes());
        whole.then(|| serde_json::from_str(json).ok()).flatten()
    };
    Ok(saved().map_or(Slot::Torn, Slot::Whole))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use tempfile::TempDir;

    use super::*;

    fn fence(term: u64) -> Fence {
        let epoch = |gpu| (Ordinal(gpu), Epoch { incarnation: 1, index: u64::from(gpu) + term });
        Fence { term, epochs: (0..64).map(epoch).collect() }
    }

    #[test]
    fn survives_a_reopening_and_a_torn_write() {
        let dir = TempDir::new().unwrap();
        let (mut file, empty, boot) = FenceFile::open(dir.path()).unwrap();
        assert_eq!((empty, boot.as_str()), (Fence::default(), ""));
        for term in 1..=5 {
            file.save(&fence(term), "boot").unwrap();
        }
        let (mut file, read, boot) = FenceFile::open(dir.path()).unwrap();
        assert_eq!((read, boot.as_str()), (fence(5), "boot"));
        file.save(&fence(6), "boot").unwrap();
        // The sixth write, in the even slot, was torn in its middle.
        file.file.write_all_at(b"torn", 500).unwrap();
        let (mut file, read, _) = FenceFile::open(dir.path()).unwrap();
        assert_eq!(read, fence(5));
        file.save(&fence(7), "boot").unwrap();
        assert_eq!(FenceFile::open(dir.path()).unwrap().1, fence(7));
    }

    #[test]
    fn a_file_that_is_all_damage_is_refused() {
        let dir = TempDir::new().unwrap();
        let (mut file, ..) = FenceFile::open(dir.path()).unwrap();
        file.save(&fence(1), "boot").unwrap();
        file.file.write_all_at(b"x", SLOT_BYTES as u64 + 40).unwrap();
        let error = FenceFile::open(dir.path()).unwrap_err().to_string();
        assert_eq!(error, "no slot of it reads well");
        file.save(&fence(2), "boot").unwrap();
        file.file.set_len(SLOT_BYTES as u64).unwrap();
        let error = FenceFile::open(dir.path()).unwrap_err().to_string();
        assert_eq!(error, "it was cut short");
        file.file.set_len(0).unwrap();
        FenceFile::open(dir.path()).unwrap();
    }
}
