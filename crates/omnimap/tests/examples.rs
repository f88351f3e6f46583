//! The examples do what they say. They are built by the `cargo test` that builds this.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use omnimap_testkit::within;

const LIMIT: Duration = Duration::from_secs(60);

fn run(name: &str, arguments: &[&str], input: &[u8]) -> Output {
    let here = std::env::current_exe().unwrap();
    let example: PathBuf = here.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(example.exists(), "{}: cargo build -p omnimap --examples", example.display());
    let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
    let input = input.to_vec();
    within(LIMIT, move || {
        let mut child = Command::new(example)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may not want all of it.
        let _ = child.stdin.take().unwrap().write_all(&input);
        child.wait_with_output().unwrap()
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn x1_view() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [7, 8, 200]).unwrap();
    let output = run("view", &[file.path().to_str().unwrap()], b"0\n2\n3\n-2\nx\n1\n-1\n0\n");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    let answers: Vec<&str> = shown.split("index? ").skip(1).map(str::trim).collect();
    assert_eq!(answers, ["7", "200", "invalid index", "invalid index", "invalid index", "8", ""]);
}

#[test]
fn x2_patch() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = run("patch", &[file.path().to_str().unwrap()], b"");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(
        (text(&output.stdout).as_str(), std::fs::read(file.path()).unwrap()),
        ("adc\n", b"adc".to_vec())
    );
}

#[test]
fn x4_shared_counter() {
    let output = run("shared_counter", &[], b"");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "400000\n");
}
