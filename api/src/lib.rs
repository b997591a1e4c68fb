//! The wire: messages and services generated from `proto/rowen/v1`.
//!
//! Owns the shapes that travel between processes and nothing else: no logic,
//! no defaults, no checks. `server` and `agent` convert to the domain's types.

/// Version 1 of the wire.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::large_enum_variant,
    reason = "generated; the .proto files carry the documentation"
)]
pub mod v1 {
    tonic::include_proto!("rowen.v1");
}

/// The compiled descriptors, a `FileDescriptorSet`, of every service here.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
