//! Maps a file, asks for an index, prints the byte there; -1 ends.
//!
//! ```sh
//! cargo run --example view -- FILE
//! ```
#![allow(clippy::print_stdout, reason = "a command talks")]

use std::error::Error;
use std::io::{self, BufRead, Write};

use omnimap::{MapOptions, Mapping};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: view FILE")?;
    let bytes: Mapping = MapOptions::new().budget(16 << 20).open(path)?;

    print!("index? ");
    io::stdout().flush()?;
    for line in io::stdin().lock().lines() {
        match line?.trim().parse::<i64>() {
            Ok(-1) => break,
            Ok(index) => match usize::try_from(index).ok().and_then(|index| bytes.get(index)) {
                Some(byte) => println!("{byte}"),
                None => println!("invalid index"),
            },
            Err(_) => println!("invalid index"),
        }
        print!("index? ");
        io::stdout().flush()?;
    }
    Ok(())
}
