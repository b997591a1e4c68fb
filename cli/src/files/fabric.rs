//! The fabric file: read as `rowen_topology::Inventory`, which owns its schema and its checks.

use rowen_topology::{FabricRecord, Inventory};

use super::{FileError, Kind, Problem, Source};

/// The fabric that `source` describes, expanded, every limit and reference checked.
pub(crate) fn read_fabric(source: &Source) -> Result<FabricRecord, FileError> {
    let inventory: Inventory = source.decode_as(Kind::Fabric)?;
    inventory.expand().map_err(|error| {
        let text = format!("{}; {}", error.problem, error.fix);
        source.error(vec![Problem::new(error.field, text)])
    })
}
