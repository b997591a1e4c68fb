//! Each Rust file opens with `//!`: what it owns and what it never does.

use crate::repo::Repo;

/// Words to please this check with.
const EMPTY: [&str; 3] = ["", "placeholder", "todo"];

/// The first line of every `.rs` file, `build.rs` included.
pub(crate) fn check(repo: &Repo) -> Vec<String> {
    let files = repo.files.iter().filter(|file| file.path.ends_with(".rs"));
    let silent = files.filter(|file| {
        let first = file.text.lines().next().unwrap_or_default();
        first.strip_prefix("//!").is_none_or(says_nothing)
    });
    silent.map(|file| format!("{}:1: open with //! and what the file owns", file.path)).collect()
}

fn says_nothing(sentence: &str) -> bool {
    EMPTY.contains(&sentence.trim().trim_end_matches('.').to_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::fixture::repo;

    #[test]
    fn a_file_without_a_head_is_found() {
        let good = "//! Owns the one thing that matters here.\nfn main() {}\n";
        let files = [
            ("a/src/good.rs", good),
            ("a/src/none.rs", "fn main() {}\n"),
            ("a/build.rs", "//! Placeholder.\n"),
            ("notes.md", "no head needed\n"),
        ];
        let found = check(&repo(&files));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("a/src/none.rs:1:") && found[1].starts_with("a/build.rs:1:"));
    }
}
