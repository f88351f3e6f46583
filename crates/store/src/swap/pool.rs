//! Compressed blocks in memory, bounded, in the order in which they came.

use std::sync::Arc;

use super::place::NUMBER_END;

/// What an entry costs beside its compressed bytes: the entry itself (twice, for the vector doubles), the header of
/// the counted bytes, and what the allocator rounds up.
pub(super) const ENTRY_OVERHEAD_BYTES: u64 = 112;

const NONE: u32 = u32::MAX;

/// One block.
struct Entry {
    block: u64,
    bytes: Arc<[u8]>,
    older: u32,
    newer: u32,
    /// Whether it stands in the queue; if not, somebody moves it to the file.
    queued: bool,
}

/// An entry that is on its way to the file. It stays readable until it is there.
pub(super) struct Leaving {
    pub(super) entry: u32,
    pub(super) block: u64,
    pub(super) bytes: Arc<[u8]>,
}

/// Compressed blocks, and the queue in which they wait for their move to the file.
pub(super) struct Pool {
    bytes_max: u64,
    bytes: u64,
    entries: Vec<Option<Entry>>,
    vacant: Vec<u32>,
    oldest: u32,
    newest: u32,
    /// Entries in the queue.
    pub(super) queued: usize,
}

impl Pool {
    /// A pool that never holds more than `bytes_max` bytes.
    pub(super) fn new(bytes_max: u64) -> Pool {
        Pool {
            bytes_max,
            bytes: 0,
            entries: Vec::new(),
            vacant: Vec::new(),
            oldest: NONE,
            newest: NONE,
            queued: 0,
        }
    }

    /// What a block of so many compressed bytes takes.
    pub(super) fn cost(bytes: &[u8]) -> u64 {
        bytes.len() as u64 + ENTRY_OVERHEAD_BYTES
    }

    /// Bytes that the entries take, overhead included.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that must go before `more` can come.
    pub(super) fn excess(&self, more: u64) -> u64 {
        (self.bytes + more).saturating_sub(self.bytes_max)
    }

    /// An entry's compressed bytes.
    pub(super) fn get(&self, entry: u32) -> Option<&Arc<[u8]>> {
        self.entries.get(entry as usize)?.as_ref().map(|entry| &entry.bytes)
    }

    /// Whether an entry is still the one that holds `bytes`: numbers are reused, memory that is held is not.
    pub(super) fn is_same(&self, entry: u32, bytes: &Arc<[u8]>) -> bool {
        self.get(entry).is_some_and(|there| Arc::ptr_eq(there, bytes))
    }

    /// Adds a block as the newest; the caller has made sure that there is room.
    pub(super) fn insert(&mut self, block: u64, bytes: Arc<[u8]>) -> u32 {
        self.bytes += Self::cost(&bytes);
        debug_assert!(self.bytes <= self.bytes_max, "the caller made room");
        let entry = Some(Entry { block, bytes, older: NONE, newer: NONE, queued: false });
        let number = match self.vacant.pop() {
            Some(number) => {
                self.entries[number as usize] = entry;
                number
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as u32
            }
        };
        // An entry takes more than 64 bytes: the memory for so many is not to be had.
        debug_assert!(number < NUMBER_END);
        self.enqueue_newest(number);
        number
    }

    /// Removes an entry, wherever it stands.
    pub(super) fn remove(&mut self, number: u32) {
        self.dequeue(number);
        if let Some(entry) = self.entries.get_mut(number as usize).and_then(Option::take) {
            self.bytes -= Self::cost(&entry.bytes);
            self.vacant.push(number);
        }
    }

    /// Takes the oldest entries out of the queue, oldest first: enough to free `bytes`, or `count`, but not more than
    /// a quarter of all for that.
    pub(super) fn take_oldest(&mut self, bytes: u64, count: usize) -> Vec<Leaving> {
        let count = count.min(self.queued / 4);
        let mut freed = 0;
        let mut leaving = Vec::new();
        while self.oldest != NONE && (freed < bytes || leaving.len() < count) {
            let number = self.oldest;
            self.dequeue(number);
            let Some(entry) = &self.entries[number as usize] else { break };
            freed += Self::cost(&entry.bytes);
            leaving.push(Leaving { entry: number, block: entry.block, bytes: Arc::clone(&entry.bytes) });
        }
        leaving
    }

    /// Puts an entry back as the oldest, if it is still there.
    pub(super) fn give_back(&mut self, leaving: &Leaving) {
        if !self.is_same(leaving.entry, &leaving.bytes) {
            return;
        }
        let next = self.oldest;
        if let Some(entry) = &mut self.entries[leaving.entry as usize] {
            (entry.older, entry.newer, entry.queued) = (NONE, next, true);
        }
        self.link(next, |entry| &mut entry.older, leaving.entry);
        self.queued += 1;
    }

    fn enqueue_newest(&mut self, number: u32) {
        let before = self.newest;
        if let Some(entry) = &mut self.entries[number as usize] {
            (entry.older, entry.newer, entry.queued) = (before, NONE, true);
        }
        self.link(before, |entry| &mut entry.newer, number);
        self.queued += 1;
    }

    /// Takes an entry out of the queue, if it stands there.
    fn dequeue(&mut self, number: u32) {
        let Some(Some(entry)) = self.entries.get_mut(number as usize) else { return };
        if !std::mem::take(&mut entry.queued) {
            return;
        }
        let (older, newer) = (entry.older, entry.newer);
        self.queued -= 1;
        match self.entry_mut(older) {
            Some(entry) => entry.newer = newer,
            None => self.oldest = newer,
        }
        match self.entry_mut(newer) {
            Some(entry) => entry.older = older,
            None => self.newest = older,
        }
    }

    /// Lets the end of the queue at `neighbour`, or the queue's own ends, lead to `number`.
    fn link(&mut self, neighbour: u32, side: impl Fn(&mut Entry) -> &mut u32, number: u32) {
        if let Some(entry) = self.entry_mut(neighbour) {
            *side(entry) = number;
        }
        let Some(entry) = &self.entries[number as usize] else { return };
        let (is_oldest, is_newest) = (entry.older == NONE, entry.newer == NONE);
        if is_oldest {
            self.oldest = number;
        }
        if is_newest {
            self.newest = number;
        }
    }

    fn entry_mut(&mut self, number: u32) -> Option<&mut Entry> {
        self.entries.get_mut(number as usize)?.as_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(leaving: &[Leaving]) -> Vec<u64> {
        leaving.iter().map(|leaving| leaving.block).collect()
    }

    #[test]
    fn the_oldest_go_first_and_come_back_as_the_oldest() {
        let mut pool = Pool::new(1 << 20);
        let numbers: Vec<u32> = (0..10).map(|block| pool.insert(block, vec![0; 100].into())).collect();
        pool.remove(numbers[1]);
        let leaving = pool.take_oldest(2 * (100 + ENTRY_OVERHEAD_BYTES), 0);
        assert_eq!(blocks(&leaving), [0, 2]);
        assert_eq!(pool.bytes(), 9 * (100 + ENTRY_OVERHEAD_BYTES), "those on their way still count");
        for leaving in leaving.iter().rev() {
            pool.give_back(leaving);
        }
        assert_eq!(pool.insert(11, vec![0; 100].into()), numbers[1], "numbers are reused");
        assert_eq!(blocks(&pool.take_oldest(u64::MAX, 0)), [0, 2, 3, 4, 5, 6, 7, 8, 9, 11]);
        assert!(pool.take_oldest(u64::MAX, 0).is_empty());
        for number in 0..10 {
            pool.remove(number);
        }
        assert_eq!(pool.bytes(), 0);
    }

    #[test]
    fn an_entry_that_was_replaced_meanwhile_does_not_come_back() {
        let mut pool = Pool::new(1 << 20);
        let number = pool.insert(5, vec![1; 10].into());
        let leaving = pool.take_oldest(1, 0);
        pool.remove(number);
        assert_eq!(pool.insert(6, vec![1; 10].into()), number);
        assert!(!pool.is_same(number, &leaving[0].bytes), "equal bytes are not the same entry");
        pool.give_back(&leaving[0]);
        assert_eq!(blocks(&pool.take_oldest(u64::MAX, 0)), [6]);
    }
}
