//! Random operations on the kernel's mappings and on ours, compared after each.
//!
//! Objects of a few pages under a budget of fewer: what is not locked or private is evicted all the time.

mod compare;
mod operation;
#[path = "../syscall/probe.rs"]
#[allow(dead_code, reason = "shared with the tests by statement")]
mod probe;
mod side;
#[path = "../syscall/subject.rs"]
#[allow(dead_code, reason = "shared with the tests by statement")]
mod subject;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use omnimap_testkit::Prng;

use compare::Both;
use operation::{Operation, draw};
use side::{Bug, Side};
use subject::{Column, page};

/// Operations on one pair of arenas.
const SEQUENCE: usize = 250;
/// Sequences tried to make one that fails shorter.
const ATTEMPTS_MAX: usize = 400;

/// Where our files are: in memory, where that can be had, for the disk is not what is tested. The kernel's are not: tmpfs
/// shows what was stored behind the end when the file grows.
fn directory() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

fn drawn(seed: u64) -> Vec<Operation> {
    let mut prng = Prng::new(seed);
    (0..SEQUENCE).map(|_| draw(&mut prng, page() as u64)).collect()
}

/// What differs first, and after how many operations.
fn difference(operations: &[Operation], bug: Option<Bug>) -> Option<(usize, String)> {
    let mut both = Both {
        kernel: Side::new(Column::Kernel, &std::env::temp_dir(), None),
        ours: Side::new(Column::Paged, &directory(), bug),
    };
    for (done, operation) in operations.iter().enumerate() {
        if let Err(what) = both.apply(*operation) {
            return Some((done + 1, what));
        }
    }
    both.compare().and_then(|()| both.apply(Operation::Stored)).err().map(|what| (operations.len(), what))
}

/// Leaves operations out as long as something still differs.
fn shorter(mut operations: Vec<Operation>) -> (Vec<Operation>, String) {
    let mut what = String::new();
    let mut piece = operations.len() / 2;
    let mut attempts = 0;
    while piece > 0 {
        let mut at = 0;
        while at < operations.len() && attempts < ATTEMPTS_MAX {
            let mut fewer = operations.clone();
            fewer.drain(at..(at + piece).min(fewer.len()));
            attempts += 1;
            match difference(&fewer, None) {
                Some((needed, found)) => {
                    fewer.truncate(needed);
                    (operations, what) = (fewer, found);
                }
                None => at += piece,
            }
        }
        piece /= 2;
    }
    (operations, what)
}

fn explain(seed: u64, operations: Vec<Operation>, what: &str) -> String {
    let (few, found) = shorter(operations);
    let mut text = format!("seed {seed}: {what}\nshortened: {found}\n");
    few.iter().for_each(|operation| {
        let _ = writeln!(text, "  {operation:?}");
    });
    text
}

/// Runs one sequence on a thread of its own; what differs.
fn run(seed: u64, bug: Option<Bug>) -> Option<String> {
    probe::install();
    let done = std::panic::catch_unwind(|| {
        omnimap_testkit::within(Duration::from_secs(60), move || {
            let operations = drawn(seed);
            let (needed, what) = difference(&operations, bug)?;
            if bug.is_some() {
                return Some(what);
            }
            Some(explain(seed, operations[..needed].to_vec(), &what))
        })
    });
    done.unwrap_or_else(|_| panic!("seed {seed}: it panicked, or was not done"))
}

#[test]
fn m01_random_operations_are_as_the_kernels() {
    let long = std::env::var_os("OMNIMAP_LONG").is_some();
    let first: u64 = std::env::var("OMNIMAP_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let sequences_max = if long { 1_000_000 / SEQUENCE as u64 } else { u64::MAX };
    let deadline = Instant::now() + Duration::from_secs(20);
    for seed in (first..).take(sequences_max as usize) {
        if let Some(what) = run(seed, None) {
            panic!("{what}");
        }
        if !long && Instant::now() > deadline {
            break;
        }
    }
}

/// Every mistake that is made on purpose is found.
#[test]
fn m01_the_fuzzer_finds_bugs() {
    let bugs =
        [Bug::RoundsDown, Bug::ForgetsProtection, Bug::KeepsPrivatePages, Bug::WrongErrno, Bug::DropsDirty];
    for bug in bugs {
        let found = (1..100).find_map(|seed| run(seed, Some(bug)));
        assert!(found.is_some(), "{bug:?}");
    }
}
