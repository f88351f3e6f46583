//! Makes the sync of a store all or nothing, by a journal.
//!
//! Owns: the [`Journaled`] decorator, the journal's format and its recovery, the journal's file beside an object's
//! file, and the lock on it. `docs/journal.md` has the format byte for byte, and what is there after each crash.
//!
//! Does not own: the object. Whoever writes to it past the journal is seen by nobody here.
//!
//! # Life of a transaction
//! A write puts whole blocks into slots of the journal; the object is not touched. A sync writes a table of the slots
//! and the commit record, makes the journal durable, and then writes the blocks to the object and makes that durable.
//! A journal that is opened with a committed transaction in it brings that to the object first.
//!
//! # Locks
//! ```text
//! turns      who may transfer what (turns.rs); held across calls of the stores, as a mark and not as a lock
//! └─ growth  one thread makes the journal longer
//!    └─ ledger  the state (ledger.rs); never held across a call of a store
//! ```

mod apply;
mod commit;
mod file;
mod journaled;
mod ledger;
mod record;
mod recover;
mod turns;
mod write;

pub use file::{make_way, open_file, path_for, refuse_half_written};
pub use journaled::{JournalOptions, Journaled};
pub use recover::{Pending, Recovered, pending};
