//! The examples about memory do what they say. They are built by the `cargo test` that builds this.

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use omnimap_testkit::within;

const LIMIT: Duration = Duration::from_secs(60);

/// What an example prints.
fn shown(name: &'static str, arguments: &'static [&'static str]) -> String {
    let here = std::env::current_exe().unwrap();
    let example: PathBuf = here.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(example.exists(), "{}: cargo build -p omnimap --examples", example.display());
    let output = within(LIMIT, move || Command::new(example).args(arguments).output().unwrap());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn x3_scratch() {
    assert_eq!(shown("scratch", &["1000000"]), "78498\n");
}

#[test]
fn x4_counting() {
    assert_eq!(shown("counting", &["200000"]), "400000 by two processes\n");
}

#[test]
fn x5_generator() {
    let shown = shown("generator", &[]);
    let of = |who: &str| -> Vec<String> {
        shown.lines().filter_map(|line| line.strip_prefix(who)).map(|n| n.trim().to_owned()).collect()
    };
    let (parent, child) = (of("parent"), of("child"));
    assert_eq!((of("before").len(), parent.len(), child.len()), (1, 3, 3), "{shown}");
    let all: HashSet<&String> = parent.iter().chain(&child).collect();
    assert_eq!(all.len(), 6, "no number comes twice:\n{shown}");
}
