//! Answers to commands.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rowen_state::fuzz::answer(bytes));
