//! No blob in the repository: data is fetched or made by the test that needs it.

use crate::repo::Repo;

const MOST_BYTES: u64 = 1 << 20;

/// Every file, tracked or about to be.
pub(crate) fn check(repo: &Repo) -> Vec<String> {
    let large = repo.files.iter().filter(|file| file.bytes > MOST_BYTES);
    large
        .map(|file| {
            format!(
                "{}: {} bytes; keep files below {MOST_BYTES} or ignore it",
                file.path, file.bytes
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::File;

    #[test]
    fn a_blob_is_found() {
        let file = |bytes| File { path: format!("{bytes}.bin"), bytes, text: String::new() };
        let repo = Repo { files: vec![file(MOST_BYTES), file(MOST_BYTES + 1)], crates: vec![] };
        let found = check(&repo);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("1048577.bin: 1048577 bytes"), "{found:?}");
    }
}
