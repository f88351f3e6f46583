//! Helpers for tests. Not published.
#![forbid(unsafe_code)]

mod bytes;
mod child;
mod limits;

pub use bytes::{Prng, pattern, pattern_store};
pub use child::in_child;
pub use limits::within;
