//! The bodies of records.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rowen_raft::fuzz::codec(bytes));
