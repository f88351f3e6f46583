//! A generator whose state is wiped in a child, so that parent and child never produce the same stream.
//!
//! ```sh
//! cargo run --example generator
//! ```
//!
//! A child made by fork has a copy of all memory, the state of every generator too, and goes on with the same numbers: keys
//! and nonces come twice. Memory that the kernel gives the child as zeros is how it finds out, whoever forked.
#![allow(clippy::print_stdout, reason = "a command talks")]

use std::error::Error;
use std::fs::File;
use std::io::Read;

use omnimap::kernel::AnonymousMemory;
use omnimap::{MapOptions, machine};

/// Numbers that look random (splitmix64); for secrets, use a generator that is made for them.
struct Generator {
    /// The state; zeros say that there is none, or that this is another process now.
    memory: AnonymousMemory,
}

impl Generator {
    fn new() -> omnimap::Result<Generator> {
        let memory = MapOptions::new().wipe_on_fork(true).kernel_anonymous(machine::page_bytes())?;
        Ok(Generator { memory })
    }

    fn next(&mut self) -> std::io::Result<u64> {
        let (is_seeded, state) = self.memory.split_at_mut(8);
        if is_seeded[0] == 0 {
            File::open("/dev/urandom")?.read_exact(&mut state[..8])?;
            is_seeded[0] = 1;
        }
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&state[..8]);
        let number = u64::from_ne_bytes(bytes).wrapping_add(0x9E37_79B9_7F4A_7C15);
        state[..8].copy_from_slice(&number.to_ne_bytes());
        let mixed = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Ok(mixed ^ (mixed >> 31))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut generator = Generator::new()?;
    println!("before {:016x}", generator.next()?);
    // SAFETY: no other threads are here, so the child may do anything.
    let child = unsafe { libc::fork() };
    let who = if child == 0 { "child" } else { "parent" };
    for _ in 0..3 {
        println!("{who} {:016x}", generator.next()?);
    }
    if child > 0 {
        let mut status = 0;
        // SAFETY: waits for our own child, and writes to `status`.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
    }
    Ok(())
}
