//! The repository as values: its files and its crates. The checks look at these
//! alone, so that a test can hand them a repository with a mistake in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};
use cargo_metadata::{DependencyKind, MetadataCommand, PackageId};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Repo {
    pub(crate) files: Vec<File>,
    pub(crate) crates: Vec<Crate>,
}

/// A file that is tracked, or would be by `git add .`.
#[derive(Debug)]
pub(crate) struct File {
    /// From the root, with `/`.
    pub(crate) path: String,
    pub(crate) bytes: u64,
    /// Empty where it is no text.
    pub(crate) text: String,
}

/// A crate of the workspace.
#[derive(Debug, Default)]
pub(crate) struct Crate {
    pub(crate) name: String,
    /// Path of its Cargo.toml.
    pub(crate) manifest: String,
    /// Packages it names, of any kind.
    pub(crate) names: BTreeSet<String>,
    /// Packages in its binary, its own and theirs.
    pub(crate) links: BTreeSet<String>,
}

impl Repo {
    /// The repository this tool was built from.
    pub(crate) fn load() -> anyhow::Result<Repo> {
        let root = root();
        Ok(Repo { files: files(&root)?, crates: crates(&root)? })
    }

    /// The text of a file; empty when there is none, which its check will say.
    pub(crate) fn text(&self, path: &str) -> &str {
        self.files.iter().find(|file| file.path == path).map_or("", |file| file.text.as_str())
    }
}

/// The folder of the workspace.
pub(crate) fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().expect("xtask lies in the workspace").to_owned()
}

fn files(root: &Path) -> anyhow::Result<Vec<File>> {
    let list = Command::new("git")
        .current_dir(root)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("cannot run git")?;
    ensure!(list.status.success(), "git ls-files: {}", String::from_utf8_lossy(&list.stderr));
    let list = String::from_utf8(list.stdout).context("a file name is not UTF-8")?;
    let paths: BTreeSet<&str> = list.split('\0').filter(|path| !path.is_empty()).collect();
    // A file that is tracked and deleted is gone all the same.
    Ok(paths.into_iter().filter_map(|path| file(root, path)).collect())
}

fn file(root: &Path, path: &str) -> Option<File> {
    let bytes = fs::read(root.join(path)).ok()?;
    let length = bytes.len() as u64;
    let text = String::from_utf8(bytes).unwrap_or_default();
    Some(File { path: path.to_owned(), bytes: length, text })
}

fn crates(root: &Path) -> anyhow::Result<Vec<Crate>> {
    let metadata =
        MetadataCommand::new().current_dir(root).exec().context("cargo metadata failed")?;
    let resolve = metadata.resolve.as_ref().context("cargo metadata gave no dependency graph")?;
    let linked: BTreeMap<&PackageId, Vec<&PackageId>> = resolve
        .nodes
        .iter()
        .map(|node| {
            let normal = node
                .deps
                .iter()
                .filter(|dep| dep.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal));
            (&node.id, normal.map(|dep| &dep.pkg).collect())
        })
        .collect();
    let mut crates = Vec::new();
    for package in metadata.workspace_packages() {
        let manifest = package.manifest_path.strip_prefix(&metadata.workspace_root)?;
        crates.push(Crate {
            name: package.name.to_string(),
            manifest: manifest.to_string(),
            names: package.dependencies.iter().map(|dep| dep.name.clone()).collect(),
            links: closure(&package.id, &linked)
                .into_iter()
                .map(|id| metadata[id].name.to_string())
                .collect(),
        });
    }
    crates.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(crates)
}

fn closure<'a>(
    from: &'a PackageId,
    linked: &BTreeMap<&'a PackageId, Vec<&'a PackageId>>,
) -> BTreeSet<&'a PackageId> {
    let mut seen = BTreeSet::new();
    let mut next = vec![from];
    while let Some(id) = next.pop() {
        for dep in linked.get(id).into_iter().flatten() {
            if seen.insert(*dep) {
                next.push(dep);
            }
        }
    }
    seen
}
