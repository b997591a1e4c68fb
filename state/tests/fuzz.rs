//! The fuzz targets' corpora and many small changes of them, without libFuzzer; what a reader takes
//! of memory is counted. The only test of this file, so that nobody else's memory is in the count.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use rowen_state::fuzz;

/// Bytes taken now, and the most since [`Counting::begin`].
struct Counting {
    now: AtomicUsize,
    most: AtomicUsize,
}

#[global_allocator]
static MEMORY: Counting = Counting { now: AtomicUsize::new(0), most: AtomicUsize::new(0) };

impl Counting {
    fn begin(&self) -> usize {
        let now = self.now.load(Ordering::Relaxed);
        self.most.store(now, Ordering::Relaxed);
        now
    }

    fn add(&self, bytes: usize) {
        let now = self.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.most.fetch_max(now, Ordering::Relaxed);
    }
}

#[expect(unsafe_code, reason = "an allocator that counts is one")]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.add(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.now.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

type Target = fn(&[u8]);

/// How often each seed is changed.
const CHANGES: u32 = 4_000;

/// Changes a few bytes, lengths included; splitmix64.
fn mutate(bytes: &mut Vec<u8>, seed: &mut u64) {
    let mut random = |below: usize| {
        *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed >> 33) as usize % below.max(1)
    };
    for _ in 0..=random(4) {
        let at = random(bytes.len() + 1);
        match random(6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random(256) as u8),
            2 => bytes.extend_from_within(at..),
            // A length that nothing can have.
            3 => bytes.iter_mut().skip(at).take(8).for_each(|byte| *byte = 0xff),
            // A length that something could have.
            4 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random(8)),
            _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = random(256) as u8),
        }
        bytes.truncate(8_192);
    }
}

/// The most that one input took beyond its own length, by times and bytes.
fn run(name: &str, target: Target, bytes: &[u8]) -> usize {
    let before = MEMORY.begin();
    target(bytes);
    let took = MEMORY.most.load(Ordering::Relaxed) - before;
    let bound = fuzz::MOST_TIMES * bytes.len() + fuzz::MOST_BYTES;
    assert!(took <= bound, "{name}: {} bytes took {took}, more than {bound}", bytes.len());
    took
}

#[test]
fn corpora_and_their_neighbours_are_read_or_refused() {
    let targets: [(&str, Target); 4] = [
        ("entry", fuzz::entry),
        ("answer", fuzz::answer),
        ("archive", fuzz::archive),
        ("snapshot", fuzz::snapshot),
    ];
    for (name, target) in targets {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let files = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        let mut paths: Vec<_> = files.map(|file| file.expect("readable").path()).collect();
        paths.sort();
        assert!(!paths.is_empty(), "{} is empty", dir.display());
        let (mut runs, mut most) = (0, 0);
        for path in paths {
            let bytes = fs::read(&path).expect("readable");
            most = most.max(run(name, target, &bytes));
            let mut seed = bytes.len() as u64;
            for _ in 0..CHANGES {
                let mut changed = bytes.clone();
                mutate(&mut changed, &mut seed);
                most = most.max(run(name, target, &changed));
                runs += 1;
            }
        }
        println!("{name}: {runs} inputs, at most {most} bytes of memory for one");
    }
}
