//! The checks, one file each. A check takes a repository as values and gives the
//! mistakes it found.

pub(crate) mod blobs;
pub(crate) mod glossary;
pub(crate) mod heads;
pub(crate) mod imports;
pub(crate) mod lengths;
pub(crate) mod lints;
pub(crate) mod purity;

#[cfg(test)]
pub(crate) mod fixture {
    //! Small repositories with a mistake in them.

    use crate::repo::{Crate, File, Repo};

    pub(crate) fn repo(files: &[(&str, &str)]) -> Repo {
        let files = files.iter().map(|(path, text)| File {
            path: (*path).to_owned(),
            bytes: text.len() as u64,
            text: (*text).to_owned(),
        });
        Repo { files: files.collect(), crates: Vec::new() }
    }

    pub(crate) fn with_crate(mut repo: Repo, name: &str, names: &[&str], links: &[&str]) -> Repo {
        let all = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        repo.crates.push(Crate {
            name: name.to_owned(),
            manifest: format!("{name}/Cargo.toml"),
            names: all(names),
            links: all(links),
        });
        repo
    }
}
