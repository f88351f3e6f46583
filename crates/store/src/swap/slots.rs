//! Which slots of the swap file are free; pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use super::place::NUMBER_END;

/// Free slots beyond which the file does not grow for the sake of contiguity: this, and an eighth of those in use.
const SLACK_SLOTS: u32 = 256;

/// Free ranges from this length on are worth giving back to the file system.
const IDLE_SLOTS_MIN: u32 = 256;

/// A slot that is being read.
struct Pin {
    readers: u32,
    /// Whether it is to be free when the last reader has gone.
    freed: bool,
}

/// The slots of the file.
///
/// ```text
/// 0        end      greatest                slots_max
/// |used and free|never used or idle| not there yet |
/// ```
/// A slot that is read is not given to another block before the reader has gone: readers need no lock, and what they
/// read is the block that they looked up.
pub(super) struct Slots {
    slots_max: u32,
    /// No slot at or behind it is in use.
    end: u32,
    /// The greatest that `end` has ever been.
    greatest: u32,
    /// Free ranges below `end`, none adjacent to another: length by start.
    free: BTreeMap<u32, u32>,
    /// The same by length.
    by_length: BTreeSet<(u32, u32)>,
    free_slots: u32,
    pins: HashMap<u32, Pin>,
}

impl Slots {
    /// No slots yet, and never more than `slots_max`.
    pub(super) fn new(slots_max: u64) -> Slots {
        Slots {
            slots_max: slots_max.min(u64::from(NUMBER_END)) as u32,
            end: 0,
            greatest: 0,
            free: BTreeMap::new(),
            by_length: BTreeSet::new(),
            free_slots: 0,
            pins: HashMap::new(),
        }
    }

    /// Slots that are in use, being written, or waiting for their last reader.
    pub(super) fn used(&self) -> u32 {
        self.end - self.free_slots
    }

    /// Takes up to `count` slots: in one range if that can be had, else in few; fewer where no more may be used.
    pub(super) fn take(&mut self, count: u32) -> Vec<u32> {
        let mut taken = Vec::with_capacity(count as usize);
        while (taken.len() as u32) < count {
            let Some(range) = self.take_range(count - taken.len() as u32) else { break };
            taken.extend(range);
        }
        taken
    }

    fn take_range(&mut self, count: u32) -> Option<Range<u32>> {
        if let Some(&(length, start)) = self.by_length.range((count, 0)..).next() {
            return Some(self.take_from(start, length, count));
        }
        let room = self.slots_max - self.end;
        let is_slack = self.free_slots < SLACK_SLOTS + self.used() / 8;
        if room >= count && is_slack {
            return Some(self.grow(count));
        }
        match self.by_length.last() {
            Some(&(length, start)) => Some(self.take_from(start, length, length)),
            None if room > 0 => Some(self.grow(count.min(room))),
            None => None,
        }
    }

    fn take_from(&mut self, start: u32, length: u32, count: u32) -> Range<u32> {
        self.forget_free(start, length);
        if length > count {
            self.note_free(start + count, length - count);
        }
        start..start + count
    }

    fn grow(&mut self, count: u32) -> Range<u32> {
        let range = self.end..self.end + count;
        self.end = range.end;
        self.greatest = self.greatest.max(self.end);
        range
    }

    /// Frees a slot, at once or when its last reader has gone.
    pub(super) fn free(&mut self, slot: u32) {
        match self.pins.get_mut(&slot) {
            Some(pin) => pin.freed = true,
            None => self.free_range(slot..slot + 1),
        }
    }

    /// Frees slots that nobody can be reading.
    ///
    /// ```text
    /// before  ..ffff....|ffff      after  ..ffffffffffff
    /// freed         xxxx
    /// ```
    pub(super) fn free_range(&mut self, range: Range<u32>) {
        let Range { mut start, mut end } = range;
        if let Some((&before, &length)) = self.free.range(..start).next_back()
            && before + length == start
        {
            self.forget_free(before, length);
            start = before;
        }
        if let Some(&length) = self.free.get(&end) {
            self.forget_free(end, length);
            end += length;
        }
        if end == self.end {
            self.end = start;
        } else {
            self.note_free(start, end - start);
        }
    }

    /// Keeps a slot from being reused.
    pub(super) fn pin(&mut self, slot: u32) {
        self.pins.entry(slot).or_insert(Pin { readers: 0, freed: false }).readers += 1;
    }

    /// Ends one [`pin`](Self::pin).
    pub(super) fn unpin(&mut self, slot: u32) {
        let Some(pin) = self.pins.get_mut(&slot) else { return };
        pin.readers -= 1;
        if pin.readers == 0 {
            let freed = pin.freed;
            self.pins.remove(&slot);
            if freed {
                self.free_range(slot..slot + 1);
            }
        }
    }

    /// Takes long free ranges, to give their disk space back; [`free_range`](Self::free_range) ends that.
    pub(super) fn take_idle(&mut self) -> Vec<Range<u32>> {
        if self.end < self.greatest {
            let tail = self.end;
            self.end = self.greatest;
            // What was used once may still have disk space; freeing it afterwards lowers `end` again.
            self.note_free(tail, self.greatest - tail);
        }
        let long: Vec<(u32, u32)> = self.by_length.range((IDLE_SLOTS_MIN, 0)..).copied().collect();
        long.into_iter().map(|(length, start)| self.take_from(start, length, length)).collect()
    }

    fn note_free(&mut self, start: u32, length: u32) {
        self.free.insert(start, length);
        self.by_length.insert((length, start));
        self.free_slots += length;
    }

    fn forget_free(&mut self, start: u32, length: u32) {
        self.free.remove(&start);
        self.by_length.remove(&(length, start));
        self.free_slots -= length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contiguous_where_it_can_be_had() {
        let mut slots = Slots::new(1 << 20);
        assert_eq!(slots.take(8), Vec::from_iter(0..8));
        assert_eq!(slots.take(8), Vec::from_iter(8..16));
        for slot in [1, 3, 2, 10] {
            slots.free(slot);
        }
        assert_eq!(slots.take(3), [1, 2, 3], "freed ones join");
        assert_eq!(slots.take(2), [16, 17], "rather a new range than two pieces");
        assert_eq!(slots.take(1), [10]);
        assert_eq!(slots.used(), 18);
    }

    #[test]
    fn pieces_where_the_file_would_grow_beyond_its_slack() {
        let mut slots = Slots::new(1 << 20);
        let all = slots.take(4 * SLACK_SLOTS);
        for slot in all.iter().step_by(2) {
            slots.free(*slot);
        }
        let end = slots.end;
        let taken = slots.take(SLACK_SLOTS / 2);
        assert!(taken.iter().all(|slot| slot % 2 == 0 && *slot < end), "{taken:?}");
        let taken = slots.take(2 * SLACK_SLOTS);
        assert_eq!(taken.len() as u32, 2 * SLACK_SLOTS);
        assert!(slots.free_slots <= SLACK_SLOTS + slots.used() / 8);
    }

    #[test]
    fn a_pinned_slot_is_not_given_away_until_its_last_reader_has_gone() {
        let mut slots = Slots::new(1);
        assert_eq!(slots.take(5), [0], "no more than there may be");
        slots.pin(0);
        slots.pin(0);
        slots.free(0);
        slots.unpin(0);
        assert!(slots.take(1).is_empty());
        slots.unpin(0);
        assert_eq!(slots.take(1), [0]);
        slots.pin(0);
        slots.unpin(0);
        assert!(slots.take(1).is_empty(), "a reader alone frees nothing");
    }

    #[test]
    fn idle_ranges_are_taken_whole_and_come_back() {
        let mut slots = Slots::new(1 << 20);
        slots.take(1000);
        slots.free_range(100..110);
        slots.free_range(300..1000);
        assert_eq!(slots.end, 300);
        let idle = slots.take_idle();
        assert_eq!((idle.len(), idle[0].clone()), (1, 300..1000));
        assert_eq!(slots.take(50), Vec::from_iter(1000..1050), "nobody else gets them meanwhile");
        slots.free_range(300..1000);
        assert_eq!(slots.used(), 1000 - 10 - 700 + 50);
        slots.free_range(1000..1050);
        assert_eq!((slots.end, slots.used()), (300, 290));
    }
}
