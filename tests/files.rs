//! Good and bad job, filler and fabric files against the real binary: one file, one case.
//!
//! A case is a file under `files/good` or `files/bad` whose name begins with its kind. What
//! `rowen` says of it stands beside it, with `.expect` added; UPDATE_EXPECT=1 writes that.
//! Nothing here needs a server, and none is asked: bad files must fail before that.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use expect_test::expect_file;

datatest_stable::harness! {
    { test = bad, root = "../tests/files/bad", pattern = r"(job|filler|fabric)-[^/]*\.(toml|yaml|json|txt)$" },
    { test = good, root = "../tests/files/good", pattern = r"(job|filler|fabric)-[^/]*\.(toml|yaml|json)$" },
}

/// Exit code 2, nothing on standard output, one line a problem that begins with the file's name;
/// and the verb that would have sent it says the same, without a server to ask.
fn bad(file: &Path) -> datatest_stable::Result<()> {
    let name = name_of(file);
    let checked = rowen(file, &[verbs(name).0, &[name]].concat());
    let sent = rowen(file, &[verbs(name).1, &[name]].concat());
    let (said, sent_said) = (text(&checked.stderr), text(&sent.stderr));
    assert_eq!(checked.status.code(), Some(2), "{said}");
    assert_eq!(sent.status.code(), Some(2), "{sent_said}");
    assert_eq!(text(&checked.stdout) + &text(&sent.stdout), "");
    assert_eq!(said, sent_said, "checking and sending disagree");
    assert!(!said.is_empty());
    for line in said.lines() {
        assert!(line.starts_with(&format!("{name}: ")), "{line:?}");
        assert!(line.len() < 200, "too long for one line: {line}");
    }
    expect_file![beside(file)].assert_eq(&said);
    Ok(())
}

/// Exit code 0, and what it is read as.
fn good(file: &Path) -> datatest_stable::Result<()> {
    let name = name_of(file);
    let plain = rowen(file, &[verbs(name).0, &[name]].concat());
    let json = rowen(file, &[verbs(name).0, &[name, "-o", "json"]].concat());
    assert_eq!(plain.status.code(), Some(0), "{}", text(&plain.stderr));
    assert_eq!(text(&plain.stderr) + &text(&json.stderr), "");
    let folder = folder_of(file);
    let said = text(&plain.stdout) + &text(&json.stdout);
    let said = said.replace(folder.to_str().ok_or("a folder in UTF-8")?, "CWD");
    expect_file![beside(file)].assert_eq(&said);
    Ok(())
}

/// How a kind of file is checked, and how it is sent.
fn verbs(name: &str) -> (&'static [&'static str], &'static [&'static str]) {
    match name.split('-').next() {
        Some("job") => (&["job", "validate"], &["submit"]),
        Some("filler") => (&["filler", "validate"], &["filler", "deploy"]),
        _ => (&["fabric", "check"], &["fabric", "set"]),
    }
}

fn rowen(file: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rowen"))
        .args(args)
        .current_dir(folder_of(file))
        // Closed on any machine: whoever asks a server here fails with another exit code.
        .env("ROWEN_ADDR", "127.0.0.1:1")
        .output()
        .expect("the binary was built with this test")
}

fn folder_of(file: &Path) -> PathBuf {
    let folder = file.parent().expect("a case lies in a folder");
    folder.canonicalize().expect("the folder of a case exists")
}

fn beside(file: &Path) -> PathBuf {
    folder_of(file).join(format!("{}.expect", name_of(file)))
}

fn name_of(file: &Path) -> &str {
    file.file_name().and_then(|name| name.to_str()).expect("cases have names in UTF-8")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
