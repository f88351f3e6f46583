//! `omnimap patch` as people and scripts use it.

use std::path::PathBuf;
use std::process::{Command, Output};

fn patch(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_omnimap")).arg("patch").args(arguments).output().unwrap()
}

fn file(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, content).unwrap();
    (directory, file)
}

#[test]
fn x2_patch_changes_abc_to_adc() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    for atomic in [false, true] {
        let (directory, file) = file(b"abc");
        let mut arguments = vec![file.to_str().unwrap(), "1", "d"];
        arguments.extend(atomic.then_some("--atomic"));
        let output = patch(&arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout.is_empty() && output.stderr.is_empty());
        assert_eq!(std::fs::read(&file).unwrap(), b"adc");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "no journal stays");
    }
}

#[test]
fn bytes_are_text_with_escapes_or_hexadecimal() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let content = vec![b'.'; 10_000];
    let (_directory, file) = file(&content);
    let name = file.to_str().unwrap();
    for arguments in [[name, "0", "-\\x00\\xFFé"].as_slice(), &[name, "4094", "--hex", "01 02 03 04"]] {
        assert!(patch(arguments).status.success());
    }
    let mut expected = content;
    expected[..5].copy_from_slice(b"-\0\xFF\xC3\xA9");
    expected[4094..4098].copy_from_slice(&[1, 2, 3, 4]);
    assert_eq!(std::fs::read(&file).unwrap(), expected);
}

#[test]
fn what_does_not_fit_changes_nothing_and_is_said() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let (_directory, file) = file(b"abc");
    let name = file.to_str().unwrap();
    for (arguments, part) in [
        ([name, "2", "de"].as_slice(), "3 bytes"),
        (&[name, "4", "d"], "3 bytes"),
        (&[name, "0", "\\q"], "is no escape"),
        (&[name, "0", "--hex", "abc"], "two make a byte"),
        (&["/no/such/file", "0", "d"], "No such file"),
    ] {
        let output = patch(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(part), "{arguments:?}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"abc");
}
