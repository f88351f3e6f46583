//! Looks words up in an ordered map (crate fst) that stays in a bucket, or on a web server.
//!
//! ```text
//! cargo run --example remote_fst -- s3://bucket/words.fst apple zebra
//! ```
#![expect(clippy::print_stdout, reason = "an example")]

use std::error::Error;
use std::sync::Arc;

use fst::raw::Fst;
use omnimap::{Advice, MapOptions, RemoteOptions, RemoteStore};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().ok_or("usage: remote_fst URL WORD…")?;
    let store = Arc::new(RemoteStore::open(&url, &RemoteOptions::new())?);
    let file = MapOptions::new().advice(Advice::Random).map_shared(store.clone())?;
    let words = Fst::new(&file[..])?;
    for word in arguments {
        match words.get(&word) {
            Some(value) => println!("{word}: {}", value.value()),
            None => println!("{word}: is not there"),
        }
    }
    let counts = store.counts();
    println!("{} requests, {} bytes of {}", counts.requests, counts.bytes_fetched, file.len());
    Ok(())
}
