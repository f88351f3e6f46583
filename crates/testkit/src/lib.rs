//! Helpers for tests. Not published.
#![forbid(unsafe_code)]

mod bytes;
mod limits;

pub use bytes::{Prng, pattern, pattern_store};
pub use limits::within;
