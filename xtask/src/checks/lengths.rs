//! A file past 800 lines is two ideas.

use crate::repo::Repo;

const MOST_LINES: usize = 800;
/// What people write and read.
const ENDINGS: [&str; 6] = [".rs", ".proto", ".md", ".py", ".sh", ".toml"];

/// Every written file; generated ones (Cargo.lock) and data end otherwise.
pub(crate) fn check(repo: &Repo) -> Vec<String> {
    let written =
        repo.files.iter().filter(|file| ENDINGS.iter().any(|ending| file.path.ends_with(ending)));
    let counted = written.map(|file| (&file.path, file.text.lines().count()));
    counted
        .filter(|(_, lines)| *lines > MOST_LINES)
        .map(|(path, lines)| format!("{path}: {lines} lines; split it below {MOST_LINES}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::fixture::repo;

    #[test]
    fn a_long_file_is_found() {
        let long = "x\n".repeat(MOST_LINES + 1);
        let files = [("a.rs", long.as_str()), ("Cargo.lock", long.as_str()), ("b.rs", &long[2..])];
        assert_eq!(check(&repo(&files)), ["a.rs: 801 lines; split it below 800"]);
    }
}
