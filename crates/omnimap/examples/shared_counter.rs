//! A parent and its children count in one page that they share, and wait for each other in it.
//!
//! ```sh
//! cargo run --example shared_counter
//! ```
#![allow(clippy::print_stdout, reason = "a command talks")]

use std::error::Error;
use std::io;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;

use omnimap::shm::SharedMemory;

const CHILDREN: u32 = 3;
const ROUNDS: u64 = 100_000;

/// Where what is in the page.
const COUNTER: u64 = 0;
const BEGUN: u64 = 8;
const DONE: u64 = 12;

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1).as_deref() {
        // A child: the page is its standard input.
        Some("child") => count(&SharedMemory::from_fd(io::stdin().as_fd().try_clone_to_owned()?)?),
        _ => parent(),
    }
}

fn parent() -> Result<(), Box<dyn Error>> {
    let page = SharedMemory::anonymous("counter", 4096)?;
    let mut children = Vec::new();
    for _ in 0..CHILDREN {
        let descriptor = page.as_fd().try_clone_to_owned()?;
        let child =
            Command::new(std::env::current_exe()?).arg("child").stdin(Stdio::from(descriptor)).spawn()?;
        children.push(child);
    }

    page.atomic_u32(BEGUN).ok_or("inside")?.store(1, Ordering::Release);
    page.wake(BEGUN, u32::MAX)?;
    count(&page)?;

    let done = page.atomic_u32(DONE).ok_or("inside")?;
    while done.load(Ordering::Acquire) <= CHILDREN {
        page.wait(DONE, done.load(Ordering::Acquire).min(CHILDREN), None)?;
    }
    println!("{}", page.read::<u64>(COUNTER)?);
    for mut child in children {
        child.wait()?;
    }
    Ok(())
}

fn count(page: &SharedMemory) -> Result<(), Box<dyn Error>> {
    let begun = page.atomic_u32(BEGUN).ok_or("inside")?;
    while begun.load(Ordering::Acquire) == 0 {
        page.wait(BEGUN, 0, None)?;
    }
    let counter = page.atomic_u64(COUNTER).ok_or("inside")?;
    for _ in 0..ROUNDS {
        counter.fetch_add(1, Ordering::Relaxed);
    }
    page.atomic_u32(DONE).ok_or("inside")?.fetch_add(1, Ordering::Release);
    page.wake(DONE, 1)?;
    Ok(())
}
