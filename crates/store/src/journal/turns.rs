//! Whose turn it is: which transfers of a store may be under way together.
//!
//! No lock is held across a store's call; a call is marked here instead, and whoever cannot go along with it waits.
//! Turns are given in the order they were asked for, so that nobody waits for ever.
//!
//! |        | read   | write  | commit | alone |
//! |--------|--------|--------|--------|-------|
//! | read   | yes    | apart  | yes    | no    |
//! | write  | apart  | apart  | no     | no    |
//! | commit | yes    | no     | no     | no    |
//! | alone  | no     | no     | no     | no    |
//!
//! *apart*: if their blocks are apart.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What a turn is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    /// Everything that was written, while reads go on.
    Commit,
    Alone,
}

/// The blocks of any object.
pub(super) const EVERYTHING: Range<u64> = 0..u64::MAX;

struct Claim {
    ticket: u64,
    kind: Kind,
    blocks: Vec<Range<u64>>,
    /// Whether it has its turn.
    active: bool,
}

impl Claim {
    fn conflicts(&self, other: &Claim) -> bool {
        let harmless = |kind| matches!(kind, Kind::Read | Kind::Commit);
        let read = self.kind == Kind::Read || other.kind == Kind::Read;
        if read && harmless(self.kind) && harmless(other.kind) {
            return false;
        }
        let overlap = |a: &Range<u64>, b: &Range<u64>| a.start < b.end && b.start < a.end;
        self.blocks.iter().any(|ours| other.blocks.iter().any(|theirs| overlap(ours, theirs)))
    }
}

#[derive(Default)]
struct Line {
    /// By ticket.
    claims: Vec<Claim>,
    next: u64,
    waiting: usize,
}

impl Line {
    fn at(&self, ticket: u64) -> Option<usize> {
        self.claims.binary_search_by_key(&ticket, |c| c.ticket).ok()
    }
}

/// Gives turns.
#[derive(Default)]
pub(super) struct Turns {
    line: Mutex<Line>,
    moved: Condvar,
}

impl Turns {
    /// Waits until nobody who came before is in the way. Empty ranges are in nobody's way.
    pub(super) fn take(&self, kind: Kind, blocks: Range<u64>) -> Turn<'_> {
        self.take_each(kind, vec![blocks])
    }

    /// The same, of several ranges together.
    pub(super) fn take_each(&self, kind: Kind, blocks: Vec<Range<u64>>) -> Turn<'_> {
        let mut line = self.lock();
        let ticket = line.next;
        line.next += 1;
        line.claims.push(Claim { ticket, kind, blocks, active: false });
        let turn = Turn { turns: self, ticket };
        let mut line = self.wait_while(line, |line| {
            let Some(at) = line.at(ticket) else { return false };
            line.claims[..at].iter().any(|earlier| earlier.conflicts(&line.claims[at]))
        });
        if let Some(at) = line.at(ticket) {
            line.claims[at].active = true;
        }
        drop(line);
        turn
    }

    fn wait_while<'a>(
        &self,
        mut line: MutexGuard<'a, Line>,
        waits: impl Fn(&Line) -> bool,
    ) -> MutexGuard<'a, Line> {
        while waits(&line) {
            line.waiting += 1;
            line = self.moved.wait(line).unwrap_or_else(PoisonError::into_inner);
            line.waiting -= 1;
        }
        line
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self, line: &Line) {
        if line.waiting > 0 {
            self.moved.notify_all();
        }
    }
}

/// A turn; over when it is dropped.
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    ticket: u64,
}

impl Turn<'_> {
    /// Lets nobody else in, and waits until the reads are over that go along with a commit.
    pub(super) fn alone(&self) {
        let mut line = self.turns.lock();
        if let Some(at) = line.at(self.ticket) {
            line.claims[at].kind = Kind::Alone;
        }
        // Whoever came later and has no turn yet waits for this one.
        let others = |c: &Claim| c.ticket < self.ticket || (c.active && c.ticket != self.ticket);
        drop(self.turns.wait_while(line, |line| line.claims.iter().any(others)));
    }

    /// Lets reads in again.
    pub(super) fn along_with_reads(&self) {
        let mut line = self.turns.lock();
        if let Some(at) = line.at(self.ticket) {
            line.claims[at].kind = Kind::Commit;
        }
        self.turns.notify(&line);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut line = self.turns.lock();
        if let Some(at) = line.at(self.ticket) {
            line.claims.remove(at);
        }
        self.turns.notify(&line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Whether the second gets its turn while the first has it.
    fn together(first: (Kind, Range<u64>), second: (Kind, Range<u64>)) -> bool {
        let claim = |(kind, blocks): (Kind, Range<u64>), ticket| Claim {
            ticket,
            kind,
            blocks: vec![blocks],
            active: true,
        };
        let (a, b) = (claim(first, 0), claim(second, 1));
        assert_eq!(a.conflicts(&b), b.conflicts(&a));
        !a.conflicts(&b)
    }

    #[test]
    fn who_goes_along_with_whom() {
        use Kind::{Alone, Commit, Read, Write};
        assert!(together((Read, 0..4), (Read, 0..4)) && together((Read, 0..4), (Commit, EVERYTHING)));
        assert!(together((Write, 0..4), (Write, 4..5)) && together((Write, 0..4), (Read, 4..5)));
        for kinds in [(Write, Read), (Write, Write), (Write, Commit), (Commit, Commit), (Alone, Read)] {
            assert!(!together((kinds.0, 0..4), (kinds.1, 3..5)), "{kinds:?}");
        }
    }

    #[test]
    fn what_lies_between_scattered_writes_is_free() {
        let claim =
            |kind, blocks: &[Range<u64>]| Claim { ticket: 0, kind, blocks: blocks.to_vec(), active: true };
        let scattered = claim(Kind::Write, &[0..1, 4..6, 9..10]);
        for kind in [Kind::Read, Kind::Write] {
            assert!(!scattered.conflicts(&claim(kind, &[1..4, 6..9, 10..99])));
            assert!(scattered.conflicts(&claim(kind, &[1..4, 8..10])));
            assert!(scattered.conflicts(&claim(kind, &[2..4, 5..6])));
        }
    }

    #[test]
    fn a_commit_becomes_alone_when_the_reads_are_over_and_before_writers_that_wait() {
        let turns = Turns::default();
        let read = turns.take(Kind::Read, 0..1);
        let commit = turns.take(Kind::Commit, EVERYTHING);
        let (over, wrote) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _turn = turns.take(Kind::Write, 5..6);
                wrote.store(true, Ordering::SeqCst);
            });
            for _ in 0..10_000 {
                if turns.lock().waiting == 0 {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            }
            let over = &over;
            scope.spawn(move || {
                over.store(true, Ordering::SeqCst);
                drop(read);
            });
            commit.alone();
            assert!(over.load(Ordering::SeqCst) && !wrote.load(Ordering::SeqCst));
            drop(commit);
        });
        assert!(wrote.into_inner());
    }
}
