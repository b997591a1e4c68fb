//! Whole records with any content, replayed.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rowen_raft::fuzz::wal_segment(bytes));
