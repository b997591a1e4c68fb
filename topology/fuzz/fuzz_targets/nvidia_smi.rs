//! Any text as a file for the importer of `nvidia_smi`.

#![no_main]

use rowen_topology::import::{Format, Options, import};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(imported) = import(Format::NvidiaSmi, text, &Options::default()) {
        imported.inventory.fabric().expect("what was imported is sound").irregularities();
    }
});
