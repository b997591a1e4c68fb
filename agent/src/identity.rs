//! Whose folder this is: a name it gets once, and the machine it belongs to.
//!
//! Owns the files `folder` and `machine`. An agent that comes with another
//! folder cannot know the tasks of this one; a folder that comes to another
//! machine speaks of tasks that may run on the first. Never decides for an
//! operator which of two machines is the right one.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use crate::spec;

/// Set when a system is installed; where it is missing, nothing is checked.
const MACHINE_ID: &str = "/etc/machine-id";
/// Of the hardware, or of a virtual machine: clones of an image often keep the
/// id above and get another of these. Readable by root alone.
const PRODUCT_UUID: &str = "/sys/class/dmi/id/product_uuid";

/// The name of the folder.
pub(crate) fn folder_id(dir: &Path) -> io::Result<String> {
    if let Some(id) = read(&dir.join("folder"))? {
        return Ok(id);
    }
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_string();
    write(dir, "folder", &id)?;
    Ok(id)
}

/// Refuses a folder that another machine wrote: its boot id differs too, so it
/// would read as one that was restarted, and the tasks of the other as ended.
pub(crate) fn check_machine(dir: &Path) -> anyhow::Result<()> {
    check(dir, &Machine { id: known(MACHINE_ID), product: known(PRODUCT_UUID) })
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Machine {
    /// Empty: not known.
    id: String,
    product: String,
}

fn check(dir: &Path, here: &Machine) -> anyhow::Result<()> {
    let found = read(&dir.join("machine"))?.unwrap_or_default();
    let mut lines = found.lines().map(str::trim);
    let mut line = || lines.next().unwrap_or_default().to_string();
    let there = Machine { id: line(), product: line() };
    let other = |a: &str, b: &str| !a.is_empty() && !b.is_empty() && a != b;
    let (was, is) = match (other(&there.id, &here.id), other(&there.product, &here.product)) {
        (true, _) => (&there.id, &here.id),
        (_, true) => (&there.product, &here.product),
        (false, false) => return Ok(keep(dir, &there, here)?),
    };
    anyhow::bail!(
        "dir: {dir} belongs to machine {was}, this is {is}: a copied or cloned folder; \
         pass an empty --dir, or remove {dir}/machine if the folder moved here for good",
        dir = dir.display(),
    );
}

/// What is learnt is kept; what is not known now is not forgotten.
fn keep(dir: &Path, there: &Machine, here: &Machine) -> io::Result<()> {
    let either = |a: &str, b: &str| if a.is_empty() { b.to_string() } else { a.to_string() };
    let kept =
        Machine { id: either(&here.id, &there.id), product: either(&here.product, &there.product) };
    let known = !kept.id.is_empty() || !kept.product.is_empty();
    if known && kept != *there {
        write(dir, "machine", &format!("{}\n{}\n", kept.id, kept.product))?;
    }
    Ok(())
}

fn known(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    // systemd's word for "not yet".
    text.trim().trim_start_matches("uninitialized").to_string()
}

fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => Ok(Some(text.trim().to_string())),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(None),
    }
}

/// On disk, synced, when it returns.
fn write(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    let aside = dir.join(format!("{name}.new"));
    let mut file = spec::private_file(&aside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&aside, dir.join(name))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn machine(id: &str, product: &str) -> Machine {
        Machine { id: id.to_string(), product: product.to_string() }
    }

    #[test]
    fn a_folder_has_one_name() {
        let dir = TempDir::new().unwrap();
        let name = folder_id(dir.path()).unwrap();
        assert_eq!((folder_id(dir.path()).unwrap(), name.len()), (name, 36));
    }

    #[test]
    fn a_folder_belongs_to_one_machine() {
        let dir = TempDir::new().unwrap();
        let check = |id, product| check(dir.path(), &machine(id, product));
        check("", "").unwrap();
        assert!(!dir.path().join("machine").exists(), "a container may have neither");
        check("m1", "").unwrap();
        check("m1", "p1").unwrap();
        check("", "").unwrap();
        check("m1", "p1").unwrap();
        let error = check("m2", "p1").unwrap_err().to_string();
        let path = dir.path().display();
        assert_eq!(
            error,
            format!(
                "dir: {path} belongs to machine m1, this is m2: a copied or cloned folder; pass an \
                 empty --dir, or remove {path}/machine if the folder moved here for good"
            )
        );
        // A clone of an image that keeps the id of the system.
        assert!(check("m1", "p2").unwrap_err().to_string().contains("machine p1, this is p2"));
        fs::remove_file(dir.path().join("machine")).unwrap();
        check("m2", "p2").unwrap();
    }
}
