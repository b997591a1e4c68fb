//! Reading the logs of a task, from the end or from the start, while it writes.
//!
//! Owns finding a task's logs and cutting them into chunks. Never writes them:
//! shims do.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rowen_api::v1::{LogChunk, ReadLog};

use crate::{
    shim::segments,
    spec::{self, Spec},
    tasks, wire,
};

/// Bytes of one chunk.
const CHUNK_BYTES: usize = 64 * 1024;
/// Between two looks at a log that is followed.
const FOLLOW: Duration = Duration::from_millis(40);

/// Reads as `request` says, handing chunks to `send` (false: nobody takes them)
/// as long as somebody is `wanted`. Blocks; the last chunk has `end`.
pub(crate) fn read(
    tasks: &Path,
    request: &ReadLog,
    send: impl Fn(LogChunk) -> bool,
    wanted: impl Fn() -> bool,
) {
    let end =
        |error: String| LogChunk { read: request.read, end: true, error, ..LogChunk::default() };
    let Some(dir) = find(tasks, request) else {
        send(end(format!(
            "rank {}: no such task on this node, or its logs are deleted",
            request.rank
        )));
        return;
    };
    let mut logs: Vec<Log> = Vec::new();
    while wanted() {
        // Asked before reading: what was written before the exit is then read.
        let ended = tasks::exit_of(&dir).is_some();
        add_new(&mut logs, &dir, request);
        let mut any = false;
        for log in &mut logs {
            while let Some(data) = log.next(ended || !request.follow) {
                any = true;
                let stream = log.stream.clone();
                let chunk = LogChunk { read: request.read, stream, data, ..LogChunk::default() };
                if !send(chunk) {
                    return;
                }
            }
        }
        if !any && (ended || !request.follow) {
            send(end(String::new()));
            return;
        }
        if !any {
            thread::sleep(FOLLOW);
        }
    }
}

/// The newest folder of the task.
fn find(tasks: &Path, request: &ReadLog) -> Option<PathBuf> {
    let owner = wire::owner(request.owner.as_ref());
    let name = tasks::dir_name(&owner, request.rank);
    let fits = |file: &str| {
        file.strip_prefix(&name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let dirs = fs::read_dir(tasks).ok()?.flatten();
    let dirs =
        dirs.filter(|entry| entry.file_name().to_str().is_some_and(fits)).map(|entry| entry.path());
    dirs.filter_map(|dir| Some((spec::read::<Spec>(&dir.join(spec::SPEC_FILE)).ok()?.index, dir)))
        .max()
        .map(|(_, dir)| dir)
}

/// Logs of the task that are not read yet: `stdout.log`, or one a process.
fn add_new(logs: &mut Vec<Log>, dir: &Path, request: &ReadLog) {
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".log").map(str::to_string));
    }
    names.sort_by_key(|name| (name.len(), name.clone()));
    for stream in names {
        let kind = stream.split('.').next().unwrap_or_default();
        let asked = request.stream.is_empty() || request.stream == kind || request.stream == stream;
        let known = logs.iter().any(|log| log.stream == stream);
        if asked && !known && ["stdout", "stderr"].contains(&kind) {
            logs.extend(Log::open(dir, stream, request.tail_lines).ok());
        }
    }
}

/// One log, read across its segments.
struct Log {
    stream: String,
    path: PathBuf,
    file: File,
    /// Number of the last segment known to be older than `file`.
    older: u64,
    /// A line that has not ended yet.
    rest: Vec<u8>,
}

impl Log {
    fn open(dir: &Path, stream: String, tail_lines: u32) -> io::Result<Self> {
        let path = dir.join(format!("{stream}.log"));
        let mut parts = segments(&path);
        parts.push((u64::MAX, path.clone()));
        let (at, offset) = match tail_lines {
            0 => (0, 0),
            lines => tail(&parts, lines)?,
        };
        let mut file = File::open(&parts[at].1)?;
        file.seek(SeekFrom::Start(offset))?;
        let older = match parts[at].0 {
            u64::MAX => at.checked_sub(1).map_or(0, |before| parts[before].0),
            number => number - 1,
        };
        Ok(Log { stream, path, file, older, rest: Vec::new() })
    }

    /// Whole lines; with `last`, also a line without an end. `None`: no more
    /// for now.
    fn next(&mut self, last: bool) -> Option<Vec<u8>> {
        loop {
            let mut data = vec![0; CHUNK_BYTES];
            // Asked before reading: what was written before is then read.
            let rotated = self.rotated();
            let length = self.file.read(&mut data).unwrap_or(0);
            self.rest.extend_from_slice(&data[..length]);
            if length == 0 {
                if rotated && self.advance() {
                    continue;
                }
                let rest = std::mem::take(&mut self.rest);
                if last && !rest.is_empty() {
                    return Some(rest);
                }
                self.rest = rest;
                return None;
            }
            let lines = self.rest.iter().rposition(|byte| *byte == b'\n').map(|at| at + 1);
            let cut = lines.or((self.rest.len() >= CHUNK_BYTES).then_some(self.rest.len()));
            if let Some(cut) = cut {
                let rest = self.rest.split_off(cut);
                return Some(std::mem::replace(&mut self.rest, rest));
            }
        }
    }

    /// Whether the open segment is no longer the one being written.
    fn rotated(&self) -> bool {
        let current = fs::metadata(&self.path).map(|file| file.ino());
        let own = self.file.metadata().map(|file| file.ino());
        matches!((current, own), (Ok(current), Ok(own)) if current != own)
    }

    /// Opens the segment after the one just read to its end.
    fn advance(&mut self) -> bool {
        let own = self.older + 1;
        let next = segments(&self.path).into_iter().find(|(number, _)| *number > own);
        let (older, path) = match next {
            Some((number, path)) => (number - 1, path),
            None => (own, self.path.clone()),
        };
        let Ok(file) = File::open(path) else { return false };
        (self.file, self.older) = (file, older);
        true
    }
}

/// Segment and offset where the last `lines` lines start.
fn tail(parts: &[(u64, PathBuf)], lines: u32) -> io::Result<(usize, u64)> {
    let mut left = u64::from(lines) + 1; // The line ends before and after them.
    for (at, (_, path)) in parts.iter().enumerate().rev() {
        let mut file = File::open(path)?;
        let mut end = file.seek(SeekFrom::End(0))?;
        if end > 0 && left > u64::from(lines) && !ends_line(&mut file, end)? {
            left -= 1; // An unfinished last line counts as one.
        }
        while end > 0 {
            let start = end.saturating_sub(CHUNK_BYTES as u64);
            let mut data = vec![0; usize::try_from(end - start).expect("one chunk")];
            file.seek(SeekFrom::Start(start))?;
            file.read_exact(&mut data)?;
            for (index, _) in data.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
                left -= 1;
                if left == 0 {
                    return Ok((at, start + index as u64 + 1));
                }
            }
            end = start;
        }
    }
    Ok((0, 0))
}

fn ends_line(file: &mut File, end: u64) -> io::Result<bool> {
    let mut last = [0];
    file.seek(SeekFrom::Start(end - 1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tempfile::TempDir;

    use super::*;

    fn dir() -> TempDir {
        let dir = TempDir::new().unwrap();
        // Segments 1 and 2 were deleted already.
        for (name, text) in [(".3", "a\nb\n"), (".4", "c\nd\n"), ("", "e\nf")] {
            fs::write(dir.path().join(format!("stdout.log{name}")), text).unwrap();
        }
        dir
    }

    fn all(log: &mut Log, last: bool) -> String {
        let chunks = std::iter::from_fn(|| log.next(last));
        String::from_utf8(chunks.collect::<Vec<_>>().concat()).unwrap()
    }

    #[test]
    fn reads_across_segments_from_any_line_of_the_end() {
        let dir = dir();
        let check = |tail_lines, expect: &str| {
            let mut log = Log::open(dir.path(), "stdout".to_string(), tail_lines).unwrap();
            assert_eq!(all(&mut log, true), expect, "the last {tail_lines}");
        };
        check(0, "a\nb\nc\nd\ne\nf");
        check(1, "f");
        check(2, "e\nf");
        check(3, "d\ne\nf");
        check(5, "b\nc\nd\ne\nf");
        check(50, "a\nb\nc\nd\ne\nf");
    }

    #[test]
    fn follows_a_rotation_and_keeps_lines_whole() {
        let dir = dir();
        let current = dir.path().join("stdout.log");
        let mut log = Log::open(dir.path(), "stdout".to_string(), 1).unwrap();
        assert_eq!(all(&mut log, false), "", "the line has not ended");
        let mut file = File::options().append(true).open(&current).unwrap();
        file.write_all(b"g\nh\n").unwrap();
        // Two rotations between two looks.
        fs::rename(&current, dir.path().join("stdout.log.5")).unwrap();
        fs::write(dir.path().join("stdout.log.6"), "i\n").unwrap();
        fs::write(&current, "j\nk").unwrap();
        assert_eq!(all(&mut log, false), "fg\nh\ni\nj\n");
        assert_eq!(all(&mut log, true), "k");
    }
}
