//! Reads the footer of a Parquet file in a bucket, or on a web server, and nothing else of it.
//!
//! ```text
//! cargo run --example remote_parquet -- s3://bucket/table.parquet
//! ```
#![expect(clippy::print_stdout, reason = "an example")]

use std::error::Error;
use std::sync::Arc;

use omnimap::{Advice, MapOptions, RemoteOptions, RemoteStore};

fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1).ok_or("usage: remote_parquet URL")?;
    let store = Arc::new(RemoteStore::open(&url, &RemoteOptions::new())?);
    let file = MapOptions::new().advice(Advice::Random).map_shared(store.clone())?;
    // PAR1 … footer, its length (4 bytes), PAR1 (parquet.apache.org/docs/file-format).
    let (rest, end) = file.split_last_chunk::<8>().ok_or("too short")?;
    if !file.starts_with(b"PAR1") || end[4..] != *b"PAR1" {
        return Err("no Parquet file".into());
    }
    let length = u32::from_le_bytes(end[..4].try_into()?) as usize;
    let start = rest.len().checked_sub(length).ok_or("a footer that is longer than the file")?;
    let mut footer = vec![0; length];
    file.read_at(start as u64, &mut footer)?;
    println!("a footer of {length} bytes at {start}, which begins {:02x?}", &footer[..length.min(8)]);
    let counts = store.counts();
    println!("{} requests, {} bytes of {}", counts.requests, counts.bytes_fetched, file.len());
    Ok(())
}
