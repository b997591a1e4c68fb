//! Records as they lie in a log segment.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rowen_raft::fuzz::wal_record(bytes));
