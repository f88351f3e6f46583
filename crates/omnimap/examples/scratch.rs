//! Scratch memory from /dev/zero: as large as one likes, zeros where nothing was stored, gone when it is dropped.
//!
//! ```sh
//! cargo run --example scratch -- 1000000
//! ```
//!
//! It counts the primes below a number with a sieve in such memory.
#![allow(clippy::print_stdout, reason = "a command talks")]

use std::error::Error;

use omnimap::MapOptions;

fn main() -> Result<(), Box<dyn Error>> {
    let below: usize = std::env::args().nth(1).ok_or("a number is wanted")?.parse()?;
    // One byte a number; 0 says that nothing divides it.
    let mut divided = MapOptions::new().kernel_zero_device(below.max(1) as u64)?;
    let mut primes = 0;
    for number in 2..below {
        if divided[number] == 0 {
            primes += 1;
            for multiple in (number * 2..below).step_by(number) {
                divided[multiple] = 1;
            }
        }
    }
    println!("{primes}");
    Ok(())
}
