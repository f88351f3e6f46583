//! The command as people and scripts use it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use omnimap_testkit::pattern;

fn omnimap(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_omnimap"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may not want all of it.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn bytes(length: u64) -> Vec<u8> {
    (0..length).map(|at| pattern(at) & 0x3F).collect()
}

struct Files {
    _directory: tempfile::TempDir,
    plain: PathBuf,
    packed: PathBuf,
}

impl Files {
    fn new(length: u64) -> Files {
        let directory = tempfile::tempdir().unwrap();
        let (plain, packed) = (directory.path().join("plain"), directory.path().join("packed.zst"));
        std::fs::write(&plain, bytes(length)).unwrap();
        let output = omnimap(&["pack", path(&plain), path(&packed)], b"");
        assert!(output.status.success(), "{}", text(&output.stderr));
        Files { _directory: directory, plain, packed }
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn what_is_packed_is_printed_by_cat() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let files = Files::new(3_000_000);
    assert!(std::fs::metadata(&files.packed).unwrap().len() < 2_900_000);
    for source in [&files.plain, &files.packed] {
        let all = omnimap(&["cat", path(source), "--budget", "1MiB"], b"");
        assert!(all.status.success() && all.stdout == bytes(3_000_000), "{}", text(&all.stderr));
        let part = omnimap(&["cat", path(source), "--offset", "1MB", "--length", "100"], b"");
        assert_eq!(part.stdout, bytes(3_000_000)[1_000_000..1_000_100]);
        let rest = omnimap(&["cat", path(source), "--offset", "2999990", "--length", "1GiB"], b"");
        assert_eq!(rest.stdout, bytes(3_000_000)[2_999_990..]);
        let beyond = omnimap(&["cat", path(source), "--offset", "3000001"], b"");
        assert!(!beyond.status.success() && text(&beyond.stderr).contains("3000000 bytes"));
    }
}

#[test]
fn pack_reads_standard_input_and_writes_standard_output() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let packed = omnimap(&["pack", "-", "-", "--chunk", "64KiB", "-l", "1"], &bytes(500_000));
    assert!(packed.status.success(), "{}", text(&packed.stderr));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("from a pipe");
    std::fs::write(&file, packed.stdout).unwrap();
    let cat = omnimap(&["cat", path(&file)], b"");
    assert_eq!(cat.stdout, bytes(500_000));
}

#[test]
fn pack_overwrites_only_when_told_and_keeps_what_is_private() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let files = Files::new(10_000);
    let again = omnimap(&["pack", path(&files.plain), path(&files.packed)], b"");
    assert!(!again.status.success() && text(&again.stderr).contains("--force"));
    std::fs::set_permissions(&files.packed, std::fs::Permissions::from_mode(0o600)).unwrap();
    let forced = omnimap(&["pack", "--force", path(&files.plain), path(&files.packed)], b"");
    assert!(forced.status.success());
    assert_eq!(std::fs::metadata(&files.packed).unwrap().permissions().mode() & 0o777, 0o600);
    // A failure leaves what was there, and nothing else.
    let failed = omnimap(&["pack", "--force", "/no/such/file", path(&files.packed)], b"");
    assert!(!failed.status.success() && text(&failed.stderr).contains("/no/such/file"));
    assert_eq!(omnimap(&["cat", path(&files.packed)], b"").stdout, bytes(10_000));
    assert_eq!(std::fs::read_dir(files.plain.parent().unwrap()).unwrap().count(), 2);
}

#[test]
fn x1_view_prints_the_byte_at_an_index() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let files = Files::new(100);
    let expected = bytes(100);
    for source in [&files.plain, &files.packed] {
        let output = omnimap(&["view", path(source)], b"0\n99\n100\n-2\nx\n\xFF\n 7 \n-1\n5\n");
        assert!(output.status.success());
        let lines: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), 7, "{lines:?}");
        for (line, index) in [(0, 0), (1, 99), (6, 7)] {
            assert!(lines[line].starts_with(&format!("{} ", expected[index])), "{lines:?}");
        }
        assert!(lines[2..6].iter().all(|l| l == "invalid index"), "{lines:?}");
    }
}

#[test]
fn stat_and_doctor_speak_json_too() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let files = Files::new(600_000);
    let stat = omnimap(&["stat", "--json", path(&files.packed)], b"");
    let stat: serde_json::Value = serde_json::from_slice(&stat.stdout).unwrap();
    assert_eq!((stat["bytes"].as_u64(), stat["chunks"].as_u64()), (Some(600_000), Some(3)));
    assert!(text(&omnimap(&["stat", path(&files.plain)], b"").stdout).contains("600000 bytes"));
    let doctor = omnimap(&["doctor", "--json"], b"");
    let doctor: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    assert_eq!(doctor["usable"], true);
    for finding in doctor["findings"].as_array().unwrap() {
        assert!(finding["good"] == true || finding["remedy"].is_string(), "a no says what to do: {finding}");
    }
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let files = Files::new(3_000_000);
    let mut cat = Command::new(env!("CARGO_BIN_EXE_omnimap"))
        .args(["cat", path(&files.plain)])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(cat.stdout.take());
    let output = cat.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(141), String::new()));
}

#[test]
fn errors_name_the_file_and_the_reason_in_one_line() {
    let files = Files::new(1000);
    std::fs::write(&files.plain, zstd_without_table()).unwrap();
    for (arguments, parts) in [
        (vec!["cat", "/no/such/file"], ["/no/such/file", "No such file"]),
        (vec!["stat", "/"], ["/", "is a directory"]),
        (vec!["cat", path(&files.plain)], ["seek table", "omnimap pack"]),
        (vec!["cat", "--budget", "1", path(&files.packed)], ["a budget of 1 bytes", "are needed"]),
        (vec!["cat", "--budget", "much", path(&files.packed)], ["much", "64KiB"]),
    ] {
        let output = omnimap(&arguments, b"");
        let errors = text(&output.stderr);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(parts.iter().all(|p| errors.contains(p)), "{arguments:?}: {errors}");
        assert!(output.stdout.is_empty() && !errors.contains("panicked"), "{errors}");
    }
}

/// What `zstd` makes of no bytes (RFC 8878): a frame, and no table.
fn zstd_without_table() -> Vec<u8> {
    vec![0x28, 0xB5, 0x2F, 0xFD, 0x20, 0x00, 0x01, 0x00, 0x00]
}

#[test]
fn completions_and_the_man_page_are_made() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(text(&omnimap(&["completions", shell], b"").stdout).contains("omnimap"));
    }
    let man = text(&omnimap(&["man"], b"").stdout);
    assert!(man.contains(".TH") && man.contains("seekable"), "{man}");
}

#[test]
fn the_demo_checks_every_byte() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let sources = tempfile::tempdir().unwrap();
    for i in 0..40u64 {
        std::fs::write(sources.path().join(i.to_string()), bytes(100_000 + i * 999)).unwrap();
    }
    let arguments =
        ["demo", "--bytes", "3MiB", "--from", path(sources.path()), "--directory", path(directory.path())];
    let output = omnimap(&arguments, b"");
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{shown}{}", text(&output.stderr));
    assert_eq!(shown.matches("equal").count(), 4, "three tables rows and the verdict: {shown}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left behind");
}
