//! Lists the tensors of a safetensors file in a bucket, or on a web server, and adds up one of them.
//!
//! ```text
//! cargo run --example remote_safetensors -- s3://bucket/model.safetensors layer.weight
//! ```
#![expect(clippy::print_stdout, reason = "an example")]

use std::error::Error;
use std::sync::Arc;

use omnimap::{MapOptions, RemoteOptions, RemoteStore};
use serde_json::Value;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(url), Some(wanted)) = (arguments.next(), arguments.next()) else {
        return Err("usage: remote_safetensors URL TENSOR".into());
    };
    let store = Arc::new(RemoteStore::open(&url, &RemoteOptions::new())?);
    let file = MapOptions::new().map_shared(store.clone())?;
    // The header's length (8 bytes), the header (JSON), the tensors (github.com/huggingface/safetensors).
    let (length, rest) = file.split_first_chunk::<8>().ok_or("too short")?;
    let (header, tensors) = rest
        .split_at_checked(usize::try_from(u64::from_le_bytes(*length))?)
        .ok_or("a header beyond the end")?;
    let header: serde_json::Map<String, Value> = serde_json::from_slice(header)?;
    for (name, tensor) in header.iter().filter(|(name, _)| *name != "__metadata__") {
        println!("{name}: {} {}", tensor["dtype"], tensor["shape"]);
    }
    let tensor = header.get(&wanted).ok_or("there is no such tensor")?;
    let place = |n: usize| tensor["data_offsets"][n].as_u64().map(|at| at as usize);
    let (Some(from), Some(to)) = (place(0), place(1)) else { return Err("a tensor without a place".into()) };
    // A slice: what of it is not here comes when it is touched.
    let bytes = tensors.get(from..to).ok_or("a tensor beyond the end")?;
    let numbers = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    println!("{wanted} adds up to {}", numbers.map(f64::from).sum::<f64>());
    let counts = store.counts();
    println!("{} requests, {} bytes of {}", counts.requests, counts.bytes_fetched, file.len());
    Ok(())
}
