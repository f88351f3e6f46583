//! Helpers for tests. Not published.
#![forbid(unsafe_code)]

mod bytes;
mod child;
mod limits;
mod simulated;
mod skip;
mod slow_link;
mod sync;
mod web;

pub use bytes::{Prng, pattern, pattern_store};
pub use child::{in_child, is_child};
pub use limits::within;
pub use simulated::{Outcome, SimulatedHost, SimulatedView};
pub use skip::{skip, skip_without_kernel_faults, skip_without_mappings};
pub use slow_link::SlowLink;
pub use sync::{explore, thread};
pub use web::{Asked, Misconduct, Validator, WebServer};
