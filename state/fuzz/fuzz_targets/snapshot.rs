//! Snapshots of the whole state.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rowen_state::fuzz::snapshot(bytes));
