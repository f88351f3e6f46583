//! `omnimap sort` on real files, many times its budget.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use omnimap_testkit::Prng;

fn omnimap(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_omnimap")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A file of its own, beside which nothing may be left.
struct Sorted {
    directory: tempfile::TempDir,
    file: PathBuf,
}

impl Sorted {
    fn new(bytes: &[u8]) -> Sorted {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("records");
        std::fs::write(&file, bytes).unwrap();
        Sorted { directory, file }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        omnimap(&[&["sort", self.path()], arguments].concat())
    }

    fn path(&self) -> &str {
        Path::to_str(&self.file).unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        assert_eq!(std::fs::read_dir(self.directory.path()).unwrap().count(), 1, "nothing is left behind");
        std::fs::read(&self.file).unwrap()
    }
}

fn random(length: usize) -> Vec<u8> {
    let mut prng = Prng::new(length as u64);
    let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| prng.next_u64().to_le_bytes()).collect();
    bytes.truncate(length);
    bytes
}

/// What a stable sort by a part of each record makes of them.
fn reference(bytes: &[u8], record: usize, key: std::ops::Range<usize>) -> Vec<u8> {
    let mut records: Vec<&[u8]> = bytes.chunks_exact(record).collect();
    records.sort_by_key(|r| &r[key.clone()]);
    records.concat()
}

/// Sorts, and compares with the reference; then it is sorted, for `--check` too, and sorting it again changes nothing.
fn assert_sorts(bytes: &[u8], record: usize, key: std::ops::Range<usize>, budget: &str) {
    let file = Sorted::new(bytes);
    let (size, offset, length) = (record.to_string(), key.start.to_string(), key.len().to_string());
    let options =
        ["--record-bytes", &size, "--key-offset", &offset, "--key-bytes", &length, "--budget", budget];
    let output = file.run(&options);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let line = text(&output.stdout);
    let told = format!("{} records", bytes.len() / record);
    assert!(line.lines().count() == 1 && line.contains(&told), "{line}");
    let expected = reference(bytes, record, key);
    assert!(file.bytes() == expected, "{} bytes in records of {record}", bytes.len());
    let check = file.run(&[&options[..], &["--check"]].concat());
    assert!(check.status.success() && text(&check.stdout).contains("in order"), "{}", text(&check.stderr));
    let again = file.run(&options);
    assert!(again.status.success() && file.bytes() == expected, "{}", text(&again.stderr));
}

#[test]
fn random_records_are_sorted_under_a_budget_of_a_sixteenth() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    assert_sorts(&random(16 << 20), 16, 0..16, "1MiB");
    assert_sorts(&random((16 << 20) / 100 * 100), 100, 0..100, "1MiB");
}

#[test]
fn records_of_any_size_are_sorted() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    assert_sorts(&random(1_000_003), 1, 0..1, "256KiB");
    assert_sorts(&random(300 * 8191), 8191, 0..8191, "256KiB");
    assert_sorts(&random(5 * 4096), 4096, 0..4096, "64MiB");
}

#[test]
fn by_a_key_records_with_equal_keys_keep_their_order() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let bytes = random(200_001 * 20);
    for key in [5..6, 18..20, 3..15] {
        assert_sorts(&bytes, 20, key, "512KiB");
    }
    // The key's first eight bytes are all equal: what comes after them decides.
    let mut bytes = bytes;
    bytes.chunks_exact_mut(20).for_each(|record| record[2..10].fill(7));
    assert_sorts(&bytes, 20, 2..11, "512KiB");
}

#[test]
fn sorted_reverse_and_equal_records_are_sorted() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    const COUNT: u64 = 250_001;
    let sorted: Vec<u8> = (0..COUNT).flat_map(|i| (i * 3).to_be_bytes()).collect();
    let reverse: Vec<u8> = (0..COUNT).flat_map(|i| ((COUNT - i) * 3).to_be_bytes()).collect();
    for bytes in [sorted, reverse, vec![9; 8 * COUNT as usize]] {
        assert_sorts(&bytes, 8, 0..8, "256KiB");
    }
}

#[test]
fn no_record_and_one_are_sorted() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    assert_sorts(b"", 16, 0..16, "1MiB");
    assert_sorts(&random(16), 16, 0..16, "1MiB");
}

#[test]
fn check_tells_which_record_is_not_in_order_and_changes_nothing() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let mut bytes: Vec<u8> = (0..100_000u32).flat_map(u32::to_be_bytes).collect();
    bytes[4 * 70_000..][..4].copy_from_slice(&69_998u32.to_be_bytes());
    let file = Sorted::new(&bytes);
    let check = file.run(&["--record-bytes", "4", "--check"]);
    assert_eq!(check.status.code(), Some(1), "{}", text(&check.stderr));
    assert!(text(&check.stdout).contains("record 70000 is less"), "{}", text(&check.stdout));
    assert!(file.bytes() == bytes);
    let low = file.run(&["--record-bytes", "4", "--key-bytes", "1", "--check"]);
    assert!(low.status.success(), "by its first byte it is sorted");
}

#[test]
fn what_cannot_be_sorted_is_told_and_left_as_it_was() {
    if omnimap_testkit::skip_without_mappings() {
        return;
    }
    let bytes = random(1001);
    let file = Sorted::new(&bytes);
    for (arguments, parts) in [
        (vec!["--record-bytes", "10"], ["1001 bytes", "1 are left over"]),
        (vec!["--record-bytes", "10", "--check"], ["1001 bytes", "1 are left over"]),
        (vec!["--record-bytes", "0"], ["--record-bytes", "at least 1"]),
        (vec!["--record-bytes", "7", "--key-offset", "7"], ["--key-offset 7", "the record's 7"]),
        (vec!["--record-bytes", "7", "--key-offset", "3", "--key-bytes", "5"], ["--key-bytes 5", "within"]),
        (vec!["--record-bytes", "7", "--key-bytes", "0"], ["--key-bytes 0", "at least 1 byte"]),
        (vec!["--record-bytes", "7", "--budget", "1000"], ["--budget", "256 KiB"]),
        (vec!["--record-bytes", "1MiB", "--budget", "1MiB"], ["--budget", "33554432"]),
    ] {
        let output = file.run(&arguments);
        let errors = text(&output.stderr);
        assert!(output.status.code() == Some(1) && output.stdout.is_empty(), "{arguments:?}: {errors}");
        assert!(errors.lines().count() == 1 && !errors.contains("panicked"), "{errors}");
        assert!(parts.iter().all(|part| errors.contains(part)), "{arguments:?}: {errors}");
        assert!(file.bytes() == bytes);
    }
    let missing = omnimap(&["sort", "/no/such/file", "--record-bytes", "1"]);
    assert!(!missing.status.success() && text(&missing.stderr).contains("/no/such/file"));
}

/// Killed again and again at random moments: the file has all its records after each, and in the end they are sorted.
#[test]
fn an_atomic_sort_that_is_killed_loses_no_record_and_goes_on() {
    const RECORD: usize = 16;
    let bytes = random(6 << 20);
    let expected = reference(&bytes, RECORD, 0..RECORD);
    let file = Sorted::new(&bytes);
    let arguments = ["--record-bytes", "16", "--budget", "1MiB", "--atomic"];
    let mut prng = Prng::new(8);
    for _ in 0..8 {
        let mut child = Command::new(env!("CARGO_BIN_EXE_omnimap"))
            .args([&["sort", file.path()], &arguments[..]].concat())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20 + prng.below(400)));
        let _ = child.kill();
        child.wait().unwrap();
        let recovered = omnimap(&["recover", file.path()]);
        assert!(recovered.status.success(), "{}", text(&recovered.stderr));
        let now = std::fs::read(&file.file).unwrap();
        assert!(reference(&now, RECORD, 0..RECORD) == expected, "the records are those that were there");
    }
    let output = file.run(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(file.bytes() == expected);
}
