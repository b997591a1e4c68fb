//! The fabric file: read as `rowen_topology::Inventory`, which owns its schema and its checks.

use rowen_topology::{FabricRecord, Inventory, InventoryError};

use super::{FileError, Kind, Problem, Source};

/// The fabric that `source` describes, expanded, every limit and reference checked.
pub(crate) fn read_fabric(source: &Source) -> Result<FabricRecord, FileError> {
    read_inventory(source)?.expand().map_err(|error| refused(source, error))
}

/// The inventory itself, with what it says of links, every limit and reference checked.
pub(crate) fn read_inventory(source: &Source) -> Result<Inventory, FileError> {
    let inventory: Inventory = source.decode_as(Kind::Fabric)?;
    inventory.fabric().map_err(|error| refused(source, error))?;
    Ok(inventory)
}

fn refused(source: &Source, error: InventoryError) -> FileError {
    let text = format!("{}; {}", error.problem, error.fix);
    source.error(vec![Problem::new(error.field, text)])
}
