//! Helpers for tests. Not published.
#![forbid(unsafe_code)]

mod bytes;
mod child;
mod limits;
mod simulated;
mod sync;

pub use bytes::{Prng, pattern, pattern_store};
pub use child::in_child;
pub use limits::within;
pub use simulated::{Outcome, SimulatedHost, SimulatedView};
pub use sync::{explore, thread};
