//! The policies that ours is compared with. Each is told of every access, which the kernel would not do.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// Decides which pages a cache keeps.
pub(super) trait Policy {
    /// Takes note of an access; whether the page was in the cache. It is afterwards.
    fn access(&mut self, page: u32) -> bool;
}

/// The page goes that was not used for the longest time.
pub(super) struct Lru {
    cache_pages: usize,
    now: u64,
    last_use: HashMap<u32, u64>,
    by_last_use: BTreeMap<u64, u32>,
}

impl Lru {
    pub(super) fn new(cache_pages: usize) -> Lru {
        Lru { cache_pages, now: 0, last_use: HashMap::new(), by_last_use: BTreeMap::new() }
    }
}

impl Policy for Lru {
    fn access(&mut self, page: u32) -> bool {
        self.now += 1;
        let before = self.last_use.insert(page, self.now);
        if let Some(before) = before {
            self.by_last_use.remove(&before);
        }
        self.by_last_use.insert(self.now, page);
        if self.last_use.len() > self.cache_pages
            && let Some((_, oldest)) = self.by_last_use.pop_first()
        {
            self.last_use.remove(&oldest);
        }
        before.is_some()
    }
}

/// First in, first out; but what was used since the hand came by stays for another round.
pub(super) struct Clock {
    cache_pages: usize,
    used: HashMap<u32, bool>,
    ring: VecDeque<u32>,
}

impl Clock {
    pub(super) fn new(cache_pages: usize) -> Clock {
        Clock { cache_pages, used: HashMap::new(), ring: VecDeque::new() }
    }
}

impl Policy for Clock {
    fn access(&mut self, page: u32) -> bool {
        if let Some(used) = self.used.get_mut(&page) {
            *used = true;
            return true;
        }
        while self.ring.len() >= self.cache_pages {
            let Some(first) = self.ring.pop_front() else { break };
            match self.used.insert(first, false) {
                Some(true) => self.ring.push_back(first),
                _ => {
                    self.used.remove(&first);
                }
            }
        }
        self.used.insert(page, false);
        self.ring.push_back(page);
        false
    }
}

/// S3-FIFO (Yang and others, SOSP 2023): a small queue of a tenth for what is new, a main queue, and a ghost queue of
/// as many pages as the main queue has.
pub(super) struct S3Fifo {
    small_pages: usize,
    main_pages: usize,
    /// Uses since the page came or was moved, at most 3.
    uses: HashMap<u32, u8>,
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    ghost: VecDeque<u32>,
    /// How often each page is in the ghost queue.
    ghosts: HashMap<u32, u32>,
}

impl S3Fifo {
    pub(super) fn new(cache_pages: usize) -> S3Fifo {
        let small_pages = (cache_pages / 10).max(1);
        S3Fifo {
            small_pages,
            main_pages: cache_pages - small_pages,
            uses: HashMap::new(),
            small: VecDeque::new(),
            main: VecDeque::new(),
            ghost: VecDeque::new(),
            ghosts: HashMap::new(),
        }
    }

    fn make_room(&mut self) {
        while self.uses.len() >= self.small_pages + self.main_pages {
            if self.small.len() >= self.small_pages || self.main.is_empty() {
                self.look_at_small();
            } else {
                self.look_at_main();
            }
        }
    }

    fn look_at_small(&mut self) {
        let Some(page) = self.small.pop_front() else { return };
        if self.uses[&page] > 1 {
            self.uses.insert(page, 0);
            self.main.push_back(page);
        } else {
            self.uses.remove(&page);
            self.ghost.push_back(page);
            *self.ghosts.entry(page).or_insert(0) += 1;
            if self.ghost.len() > self.main_pages
                && let Some(oldest) = self.ghost.pop_front()
            {
                self.forget_ghost(oldest);
            }
        }
    }

    fn look_at_main(&mut self) {
        let Some(page) = self.main.pop_front() else { return };
        match self.uses[&page] {
            0 => {
                self.uses.remove(&page);
            }
            uses => {
                self.uses.insert(page, uses - 1);
                self.main.push_back(page);
            }
        }
    }

    fn forget_ghost(&mut self, page: u32) {
        if let Some(times) = self.ghosts.get_mut(&page) {
            *times -= 1;
            if *times == 0 {
                self.ghosts.remove(&page);
            }
        }
    }
}

impl Policy for S3Fifo {
    fn access(&mut self, page: u32) -> bool {
        if let Some(uses) = self.uses.get_mut(&page) {
            *uses = (*uses + 1).min(3);
            return true;
        }
        let returns = self.ghosts.contains_key(&page);
        self.make_room();
        self.uses.insert(page, 0);
        let queue = if returns { &mut self.main } else { &mut self.small };
        queue.push_back(page);
        false
    }
}

/// Belady's optimum: the page goes whose next use is farthest away. It knows the future.
pub(super) struct Belady {
    cache_pages: usize,
    /// For each access, when its page is used next.
    next_use: Vec<usize>,
    now: usize,
    resident: HashMap<u32, usize>,
    by_next_use: BTreeSet<(usize, u32)>,
}

impl Belady {
    pub(super) fn new(cache_pages: usize, trace: &[u32]) -> Belady {
        let mut seen = HashMap::new();
        let mut next_use = vec![usize::MAX; trace.len()];
        for (now, page) in trace.iter().enumerate().rev() {
            next_use[now] = seen.insert(*page, now).unwrap_or(usize::MAX);
        }
        Belady { cache_pages, next_use, now: 0, resident: HashMap::new(), by_next_use: BTreeSet::new() }
    }
}

impl Policy for Belady {
    fn access(&mut self, page: u32) -> bool {
        let next = self.next_use[self.now];
        self.now += 1;
        let before = self.resident.get(&page).copied();
        if let Some(before) = before {
            self.by_next_use.remove(&(before, page));
        } else if self.resident.len() >= self.cache_pages
            && let Some((_, farthest)) = self.by_next_use.pop_last()
        {
            self.resident.remove(&farthest);
        }
        self.resident.insert(page, next);
        self.by_next_use.insert((next, page));
        before.is_some()
    }
}

/// Keeps those pages that the trace uses most, and no others: what can be had from knowing how often each page is used, but
/// not when.
pub(super) struct MostUsed {
    kept: BTreeSet<u32>,
    came: BTreeSet<u32>,
}

impl MostUsed {
    pub(super) fn new(cache_pages: usize, trace: &[u32]) -> MostUsed {
        let mut uses: HashMap<u32, usize> = HashMap::new();
        trace.iter().for_each(|page| *uses.entry(*page).or_default() += 1);
        let mut pages: Vec<(usize, u32)> = uses.into_iter().map(|(page, uses)| (uses, page)).collect();
        pages.sort_unstable_by(|a, b| b.cmp(a));
        let kept = pages.iter().take(cache_pages).map(|(_, page)| *page).collect();
        MostUsed { kept, came: BTreeSet::new() }
    }
}

impl Policy for MostUsed {
    fn access(&mut self, page: u32) -> bool {
        self.kept.contains(&page) && !self.came.insert(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which accesses hit, one character each.
    fn hits(mut policy: impl Policy, trace: &[u32]) -> String {
        trace.iter().map(|page| if policy.access(*page) { 'h' } else { '.' }).collect()
    }

    #[test]
    fn lru_drops_what_was_used_longest_ago() {
        // 1 2 3, 1 again: 2 is the oldest and goes for 4, then 3 for 2.
        assert_eq!(hits(Lru::new(3), &[1, 2, 3, 1, 4, 2, 1, 3]), "...h..h.");
    }

    #[test]
    fn clock_spares_what_was_used_since_the_hand_came_by() {
        // For 4 the hand passes 1, which was used, and takes 2; for 5 it takes 3, though 1 was not used since.
        assert_eq!(hits(Clock::new(3), &[1, 2, 3, 1, 4, 5, 1, 3]), "...h..h.");
        assert_eq!(hits(Clock::new(1), &[1, 1, 2, 1]), ".h..");
    }

    #[test]
    fn new_pages_pass_through_s3_fifo_and_what_returns_stays() {
        // Small queue: 1 page, main: 9. Pages 1 to 10 fill the cache, 11 drives 1 out (not used: a ghost); 1 returns to
        // main and drives 2 out; from then on new pages drive each other out, and 1 stays.
        let mut trace: Vec<u32> = (1..=11).collect();
        trace.push(1);
        trace.extend(12..=40);
        trace.push(1);
        let expected = ".".repeat(trace.len() - 1) + "h";
        assert_eq!(hits(S3Fifo::new(10), &trace), expected);
        // A page that is used twice while it is small is main when its turn comes; one that is used once goes.
        let trace = [&[1, 1, 1, 2, 2], &(3..=30).collect::<Vec<u32>>()[..], &[1, 2]].concat();
        let expected = [".hh.h", &".".repeat(28), "h."].concat();
        assert_eq!(hits(S3Fifo::new(10), &trace), expected);
    }

    #[test]
    fn pages_in_main_that_were_used_get_another_round_in_s3_fifo() {
        // Small: 1, main: 2. For 4, 1 is moved to main (two uses), and 2 becomes a ghost; 2 and 3 return to main. For 5 main
        // is looked at: 1 was used there, and stays; 2 goes.
        assert_eq!(hits(S3Fifo::new(3), &[1, 1, 1, 2, 3, 4, 1, 2, 3, 5, 1, 2]), ".hh...h...h.");
    }

    #[test]
    fn belady_drops_what_is_used_last() {
        // The example of the text books (Silberschatz): 9 faults with 3 frames.
        let trace = [7, 0, 1, 2, 0, 3, 0, 4, 2, 3, 0, 3, 2, 1, 2, 0, 1, 7, 0, 1];
        let optimum = hits(Belady::new(3, &trace), &trace);
        assert_eq!(optimum.matches('.').count(), 9, "{optimum}");
        let lru = hits(Lru::new(3), &trace);
        assert_eq!(lru.matches('.').count(), 12, "{lru}");
    }

    #[test]
    fn most_used_keeps_the_same_pages_always() {
        let trace = [1, 2, 1, 3, 1, 2, 3, 2];
        assert_eq!(hits(MostUsed::new(1, &trace[..7]), &trace[..7]), "..h.h..");
        assert_eq!(hits(MostUsed::new(2, &trace), &trace), "..h.hh.h");
    }
}
