//! Which transfers overlap, in blocks and in time.

use std::ops::Range;

/// What a transfer does to its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Read,
    Write,
    /// It may change any block: another length, or another object altogether.
    ChangeAll,
}

/// The transfers under way.
///
/// Each of them keeps which of its blocks a change met, at whatever time: only those of the others are known to have
/// held one thing all the while. (A count and a generation for each block would say the same, and would have to be
/// kept for blocks that nobody transfers.)
#[derive(Default)]
pub(super) struct Flights {
    under_way: Vec<Flight>,
    next_id: u64,
}

/// One transfer.
pub(super) struct Flight {
    id: u64,
    pub(super) purpose: Purpose,
    pub(super) blocks: Range<u64>,
    /// For each of `blocks`; empty if it is none of them.
    met: Vec<bool>,
}

impl Flights {
    /// Notes that a transfer begins, and whom it meets.
    pub(super) fn begin(&mut self, purpose: Purpose, blocks: Range<u64>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let mut new = Flight { id, purpose, blocks, met: Vec::new() };
        for other in &mut self.under_way {
            let common = new.blocks.start.max(other.blocks.start)..new.blocks.end.min(other.blocks.end);
            if new.purpose != Purpose::Read {
                other.meet(&common);
            }
            if other.purpose != Purpose::Read {
                new.meet(&common);
            }
        }
        self.under_way.push(new);
        id
    }

    /// Notes that a transfer is over.
    ///
    /// # Panics
    /// If it is not under way.
    pub(super) fn end(&mut self, id: u64) -> Flight {
        let place = self.under_way.iter().position(|flight| flight.id == id);
        self.under_way.swap_remove(place.expect("a flight ends once"))
    }
}

impl Flight {
    fn meet(&mut self, common: &Range<u64>) {
        // Whoever may change any block says nothing about a single one afterwards.
        if common.is_empty() || self.purpose == Purpose::ChangeAll {
            return;
        }
        let start = self.blocks.start;
        self.met.resize((self.blocks.end - start) as usize, false);
        self.met[(common.start - start) as usize..(common.end - start) as usize].fill(true);
    }

    /// Whether nobody else changed a block of this transfer while it was under way.
    pub(super) fn was_alone_at(&self, block: u64) -> bool {
        debug_assert!(self.blocks.contains(&block));
        self.met.get((block - self.blocks.start) as usize) != Some(&true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alone(flight: &Flight) -> Vec<u64> {
        flight.blocks.clone().filter(|block| flight.was_alone_at(*block)).collect()
    }

    /// ```text
    /// read    0 1 2 3 4 5
    /// write         3 4 5 6 7
    /// write               6 7 8
    /// ```
    #[test]
    fn each_knows_where_changes_met_it_and_reads_meet_nobody() {
        let mut flights = Flights::default();
        let read = flights.begin(Purpose::Read, 0..6);
        let first = flights.begin(Purpose::Write, 3..8);
        let second = flights.begin(Purpose::Write, 6..9);
        let late = flights.begin(Purpose::Read, 0..6);
        assert_eq!(alone(&flights.end(first)), [3, 4, 5], "only the other write counts");
        assert_eq!(alone(&flights.end(read)), [0, 1, 2], "although the write is over");
        assert_eq!(alone(&flights.end(late)), [0, 1, 2], "although the write was there before");
        assert_eq!(alone(&flights.end(second)), [8]);
        let after = flights.begin(Purpose::Read, 0..6);
        assert_eq!(alone(&flights.end(after)), [0, 1, 2, 3, 4, 5]);
        assert!(flights.under_way.is_empty());
    }

    #[test]
    fn a_change_of_all_meets_everybody() {
        let mut flights = Flights::default();
        let before = flights.begin(Purpose::Read, 0..3);
        let all = flights.begin(Purpose::ChangeAll, 0..u64::MAX);
        let after = flights.begin(Purpose::Write, 5..7);
        assert!(flights.end(all).met.is_empty(), "it keeps no note of a whole object");
        assert_eq!(alone(&flights.end(before)), [0u64; 0]);
        assert_eq!(alone(&flights.end(after)), [0u64; 0]);
    }
}
