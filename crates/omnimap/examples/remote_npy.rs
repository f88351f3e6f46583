//! Takes some rows out of a two-dimensional .npy file of doubles in a bucket, or on a web server.
//!
//! ```text
//! cargo run --example remote_npy -- s3://bucket/matrix.npy 1000000 3
//! ```
#![expect(clippy::print_stdout, reason = "an example")]

use std::error::Error;
use std::sync::Arc;

use omnimap::{MapOptions, RemoteOptions, RemoteStore};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("usage: remote_npy URL ROW COUNT");
    let (url, first, count): (String, usize, usize) = (next()?, next()?.parse()?, next()?.parse()?);
    let store = Arc::new(RemoteStore::open(&url, &RemoteOptions::new())?);
    let file = MapOptions::new().map_shared(store.clone())?;
    // Magic, version (2 bytes), the header's length (2 bytes), the header (numpy.lib.format, version 1).
    let head = file
        .get(..10)
        .filter(|head| head.starts_with(b"\x93NUMPY\x01"))
        .ok_or("no .npy file of version 1")?;
    let length = usize::from(u16::from_le_bytes([head[8], head[9]]));
    let header = std::str::from_utf8(file.get(10..10 + length).ok_or("a header beyond the end")?)?;
    if !header.contains("'<f8'") || !header.contains("'fortran_order': False") {
        return Err("no rows of little-endian doubles".into());
    }
    let shape =
        header.split_once("'shape': (").and_then(|(_, rest)| rest.split(')').next()).ok_or("no shape")?;
    let shape: Vec<usize> = shape.split(',').map(|n| n.trim().parse()).collect::<Result<_, _>>()?;
    let [rows, columns] = shape[..] else { return Err("not two dimensions".into()) };
    let wanted =
        first..first.checked_add(count).filter(|end| *end <= rows).ok_or("there are not so many rows")?;
    for row in wanted {
        let start = 10 + length + row * columns * 8;
        let bytes = file.get(start..start + columns * 8).ok_or("a row beyond the end")?;
        let numbers: Vec<f64> = bytes.as_chunks::<8>().0.iter().map(|n| f64::from_le_bytes(*n)).collect();
        println!("{row}: {numbers:?}");
    }
    let counts = store.counts();
    println!("{} requests, {} bytes of {}", counts.requests, counts.bytes_fetched, file.len());
    Ok(())
}
