//! Compiles `proto/raft.proto` with protox: no system protoc is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    // Only the chaos build sets it (types.rs).
    println!("cargo:rustc-check-cfg=cfg(tokio_unstable)");
    let descriptors = protox::compile(["raft.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
