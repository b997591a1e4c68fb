//! Compiles the protobuf files with protox: no system protoc is needed.

use std::{env, error::Error, fs, path::PathBuf};

const FILES: [&str; 6] = [
    "rowen/v1/agent.proto",
    "rowen/v1/cluster.proto",
    "rowen/v1/common.proto",
    "rowen/v1/filler.proto",
    "rowen/v1/job.proto",
    "rowen/v1/queue.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // Reflection and the test that enumerates every RPC read this file.
    fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure()
        .btree_map(".")
        .type_attribute(".", "#[derive(serde::Serialize)] #[serde(rename_all = \"snake_case\")]")
        .compile_fds(descriptors)?;
    Ok(())
}
