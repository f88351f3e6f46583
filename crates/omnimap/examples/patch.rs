//! A file that holds `abc` is mapped, its byte 1 is changed to `d`, and the file holds `adc`.
//!
//! ```sh
//! cargo run --example patch -- FILE
//! ```
#![allow(clippy::print_stdout, reason = "a command talks")]

use std::error::Error;

use omnimap::{MapOptions, MappingMut};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: patch FILE")?;
    std::fs::write(&path, b"abc")?;

    let mut mapping: MappingMut = MapOptions::new().open_mut(&path)?;
    mapping[1] = b'd';
    mapping.sync()?; // durable; without it, when the mapping is dropped

    println!("{}", std::fs::read_to_string(&path)?);
    Ok(())
}
