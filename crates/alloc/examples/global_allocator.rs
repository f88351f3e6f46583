//! A program all of whose memory comes from mappings, and what it does to an allocator: threads, growth, a fork.
#![allow(clippy::print_stdout, reason = "it is a program")]

use std::process::Command;
use std::thread;

use omnimap_alloc::MappedAllocator;

#[global_allocator]
static ALLOCATOR: MappedAllocator = MappedAllocator::new();

fn main() {
    let before = mapped_bytes();
    let large = vec![1_u8; 64 << 20];
    println!("a large block is a mapping: {}", mapped_bytes() >= before + large.len());
    drop(large);
    println!("and gone when it is freed: {}", mapped_bytes() < before + (8 << 20));

    let threads: Vec<_> = (0..8).map(|seed| thread::spawn(move || work(seed))).collect();
    let sums: Vec<u64> = threads.into_iter().map(|t| t.join().expect("a thread")).collect();
    println!("all threads agree: {}", sums.iter().all(|sum| *sum == sums[0]));

    let child = Command::new("true").status();
    println!("a child was started: {}", child.is_ok_and(|status| status.success()));
}

/// Strings of many sizes, some of which are large, made and dropped out of order.
fn work(seed: usize) -> u64 {
    let mut kept: Vec<String> = Vec::new();
    let mut sum = 0;
    for round in 0..4000_usize {
        let length = (round * 7919) % 3000 + if round % 97 == 0 { 300_000 } else { 0 };
        kept.push("x".repeat(length));
        if kept.len() > 50 {
            let gone = kept.swap_remove((round + seed) % kept.len());
            assert!(gone.bytes().all(|b| b == b'x'));
        }
        sum += length as u64;
    }
    sum
}

/// Bytes of this process's private anonymous mappings.
fn mapped_bytes() -> usize {
    let maps = std::fs::read_to_string("/proc/self/status").expect("proc(5)");
    let line = maps.lines().find(|line| line.starts_with("VmData:")).expect("proc_pid_status(5)");
    let kilobytes: usize = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
    kilobytes << 10
}
