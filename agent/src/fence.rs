//! `fence.json`: the highest term and epochs, which outlive the agent.
//!
//! Owns that file. Never decides what is stale: `core` does.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::{
    core::{Epoch, Fence, Ordinal},
    spec,
};

const FILE: &str = "fence.json";

#[derive(Serialize, Deserialize)]
struct Saved {
    version: u32,
    boot_id: String,
    term: u64,
    /// GPU ordinal to (incarnation, index).
    epochs: BTreeMap<u32, (u64, u64)>,
}

/// The fence and the boot it was last written in; empty for a new folder. A
/// file that does not parse is an error: starting without it could launch
/// beside a newer owner.
pub(crate) fn load(dir: &Path) -> io::Result<(Fence, String)> {
    let bytes = match fs::read(dir.join(FILE)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
        Err(error) => return Err(error),
    };
    let saved: Saved = serde_json::from_slice(&bytes)?;
    let epoch = |(incarnation, index)| Epoch { incarnation, index };
    let epochs = saved.epochs.into_iter().map(|(gpu, pair)| (Ordinal(gpu), epoch(pair))).collect();
    Ok((Fence { term: saved.term, epochs }, saved.boot_id))
}

/// On disk, synced, when it returns.
pub(crate) fn save(dir: &Path, fence: &Fence, boot_id: &str) -> io::Result<()> {
    let pair = |epoch: &Epoch| (epoch.incarnation, epoch.index);
    let saved = Saved {
        version: 1,
        boot_id: boot_id.to_string(),
        term: fence.term,
        epochs: fence.epochs.iter().map(|(gpu, epoch)| (gpu.0, pair(epoch))).collect(),
    };
    let temporary = dir.join("fence.tmp");
    let mut file = spec::private_file(&temporary)?;
    file.write_all(&serde_json::to_vec(&saved)?)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(FILE))?;
    File::open(dir)?.sync_all()
}
