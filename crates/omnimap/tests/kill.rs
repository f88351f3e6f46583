//! A process that writes transactions and is killed: after it, the file is exactly one transaction boundary, and not an
//! older one than the last that was answered.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use omnimap::{MapOptions, MappingMut};
use omnimap_testkit::{Prng, skip_without_mappings};

const PAGES: u64 = 96;
const PAGES_A_TRANSACTION: u64 = 14;
/// Less than what a few transactions touch, so that pages are evicted in between.
const BUDGET_PAGES: u64 = 24;
const VARIABLE: &str = "OMNIMAP_KILL_FILE";

fn page() -> u64 {
    omnimap::machine::page_bytes()
}

fn open(path: &Path) -> MappingMut {
    MapOptions::new().budget(BUDGET_PAGES * page()).atomic(true).open_mut(path).unwrap()
}

/// The pages that a transaction writes, with its number; page 0 is always one.
fn pages_of(transaction: u64) -> impl Iterator<Item = u64> {
    let mut random = Prng::new(transaction);
    std::iter::once(0).chain((1..PAGES_A_TRANSACTION).map(move |_| 1 + random.below(PAGES - 1)))
}

fn number_at(mapping: &MappingMut, at: u64) -> u64 {
    let mut bytes = [0; 8];
    mapping.read_at(at, &mut bytes).unwrap();
    u64::from_ne_bytes(bytes)
}

/// The transaction that the file is at the end of.
///
/// # Panics
/// If it is at the end of none.
fn check(mapping: &MappingMut) -> u64 {
    let last = number_at(mapping, 0);
    let mut expected = vec![0; PAGES as usize];
    for transaction in 1..=last {
        pages_of(transaction).for_each(|page| expected[page as usize] = transaction);
    }
    for (index, transaction) in expected.iter().enumerate() {
        let start = index as u64 * page();
        for at in [start, start + page() - 8] {
            assert_eq!(number_at(mapping, at), *transaction, "page {index} at transaction {last}");
        }
    }
    last
}

/// Writes transactions until it is killed, and says which are durable.
fn child(path: &Path) {
    let mut mapping = open(path);
    let mut last = check(&mapping);
    loop {
        last += 1;
        for index in pages_of(last) {
            let start = (index * page()) as usize;
            mapping[start..start + 8].copy_from_slice(&last.to_ne_bytes());
            let end = start + page() as usize;
            mapping[end - 8..end].copy_from_slice(&last.to_ne_bytes());
        }
        mapping.sync_atomic().unwrap();
        let line = format!("durable {last}\n");
        std::io::stdout().write_all(line.as_bytes()).unwrap();
    }
}

#[test]
fn y05_after_a_kill_the_file_is_a_transaction_boundary() {
    if skip_without_mappings() {
        return;
    }
    if let Some(path) = std::env::var_os(VARIABLE) {
        return child(Path::new(&path));
    }
    let kills = if std::env::var_os("OMNIMAP_LONG").is_some() { 1000 } else { 50 };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger");
    std::fs::File::create(&path).unwrap().set_len(PAGES * page()).unwrap();
    let mut random = Prng::new(99);
    let (mut answered, mut recovered) = (0, 0);
    for kill in 0..kills {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["y05_after_a_kill_the_file_is_a_transaction_boundary", "--exact", "--nocapture"])
            .env(VARIABLE, &path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let reader = std::thread::spawn(move || {
            let numbers = output.lines().map_while(Result::ok);
            numbers.filter_map(|line| line.strip_prefix("durable ")?.parse::<u64>().ok()).last()
        });
        // Also before it is open, and while it recovers.
        std::thread::sleep(Duration::from_micros(3_000 + random.below(120_000)));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert!(status.code().is_none(), "killed, and not failed by itself: {status}");
        answered = reader.join().unwrap().unwrap_or(answered).max(answered);
        let pending = std::fs::metadata(omnimap::store::journal::path_for(&path)).is_ok();
        recovered += u64::from(pending);
        // Sometimes the next child recovers, and may be killed meanwhile.
        if kill % 3 == 0 || kill == kills - 1 {
            let last = check(&open(&path));
            assert!(last >= answered, "transaction {answered} was answered, and {last} is there");
        }
    }
    assert!(answered > kills / 10, "only {answered} transactions in {kills} lives");
    writeln!(std::io::stderr(), "{kills} kills, {answered} transactions, {recovered} left a journal")
        .unwrap();
}
