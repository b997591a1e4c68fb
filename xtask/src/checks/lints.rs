//! Each crate inherits the workspace's lints: one that forgets to is unlinted.

use crate::repo::Repo;

/// `[lints]` with `workspace = true` in every manifest.
pub(crate) fn check(repo: &Repo) -> Vec<String> {
    let without = repo.crates.iter().filter(|member| !inherits(repo.text(&member.manifest)));
    without
        .map(|member| format!("{}: add [lints] with workspace = true", member.manifest))
        .collect()
}

fn inherits(manifest: &str) -> bool {
    let mut lines = manifest.lines().map(str::trim).skip_while(|line| *line != "[lints]").skip(1);
    lines.by_ref().take_while(|line| !line.starts_with('[')).any(|line| line == "workspace = true")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::fixture::{repo, with_crate};

    #[test]
    fn a_crate_without_lints_is_found() {
        let check =
            |manifest| check(&with_crate(repo(&[("a/Cargo.toml", manifest)]), "a", &[], &[])).len();
        assert_eq!(check("[package]\nname = \"a\"\n[lints]\nworkspace = true\n"), 0);
        assert_eq!(check("[package]\nname = \"a\"\n"), 1);
        assert_eq!(check("[lints]\n[dependencies]\nworkspace = true\n"), 1);
    }
}
