//! A snapshot's file and its head.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rowen_raft::fuzz::snapshot(bytes));
