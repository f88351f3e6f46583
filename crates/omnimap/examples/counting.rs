//! A parent and its child count in one anonymous page that they share.
//!
//! ```sh
//! cargo run --example counting -- 100000
//! ```
#![allow(clippy::print_stdout, reason = "a command talks")]

use std::error::Error;
use std::sync::atomic::Ordering;

use omnimap::{MapOptions, machine};

fn main() -> Result<(), Box<dyn Error>> {
    let times: u64 = std::env::args().nth(1).ok_or("a number is wanted")?.parse()?;
    let page = MapOptions::new().kernel_anonymous_shared(machine::page_bytes())?;
    let counter = page.atomic_u64(0).ok_or("a page has room for a number")?;

    // SAFETY: no other threads are here, so the child may do anything.
    let child = unsafe { libc::fork() };
    for _ in 0..times {
        counter.fetch_add(1, Ordering::Relaxed);
    }
    match child {
        -1 => return Err(std::io::Error::last_os_error().into()),
        0 => return Ok(()),
        _ => {}
    }
    let mut status = 0;
    // SAFETY: waits for our own child, and writes to `status`.
    if unsafe { libc::waitpid(child, &raw mut status, 0) } != child || status != 0 {
        return Err("the child did not count to the end".into());
    }
    println!("{} by two processes", counter.load(Ordering::Relaxed));
    Ok(())
}
