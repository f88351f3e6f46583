//! What a page can be, and how it becomes something else.

/// The state of one page of an object. (Pinned is a count beside it.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum PageState {
    /// A hole.
    #[default]
    Absent = 0,
    /// A hole whose bytes somebody is fetching.
    Filling = 1,
    /// In memory, the same as in the store.
    Clean = 2,
    /// In memory still; somebody is making a hole of it.
    Evicting = 3,
    /// A hole whose last fill failed; accesses in some views may raise SIGBUS.
    Failed = 4,
    /// In memory, and newer than what the store has. In no other state (but that of a page that is being written back and
    /// was stored to meanwhile) does a store through a view go through without a fault.
    Dirty = 5,
    /// In memory; a copy of it is on its way to the store.
    WritingBack = 6,
}

/// What happens to a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// Somebody begins to fetch its bytes.
    BeginFill,
    /// The bytes are in memory.
    Filled,
    /// The bytes are in memory, and a store is about to change them.
    FilledForStore,
    /// Nobody fetches it any more, and nothing is known against it.
    FillAbandoned,
    /// The store did not give the bytes.
    FillFailed,
    /// Somebody begins to make a hole.
    BeginEviction,
    /// The hole is there.
    Evicted,
    /// The hole could not be made.
    EvictionAbandoned,
    /// A store is about to change it; or the store has lost what it was given.
    Dirtied,
    /// It was copied, to be written.
    BeginWriteBack,
    /// The store has the copy, and there is nothing newer.
    WrittenBack,
    /// The store did not take the copy, or it is old already.
    StillDirty,
    /// The object ends before it now.
    Discarded,
}

impl PageState {
    /// The transition table.
    ///
    /// # Panics
    /// On a transition that is not in it: that is a bug here, and going on would show wrong bytes.
    pub fn after(self, transition: Transition) -> PageState {
        use {PageState as S, Transition as T};
        match (self, transition) {
            (S::Absent | S::Failed, T::BeginFill) => S::Filling,
            (S::Filling, T::Filled) => S::Clean,
            (S::Filling, T::FilledForStore) => S::Dirty,
            (S::Filling, T::FillAbandoned) => S::Absent,
            (S::Filling, T::FillFailed) => S::Failed,
            (S::Clean, T::BeginEviction) => S::Evicting,
            (S::Evicting, T::Evicted) => S::Absent,
            (S::Evicting, T::EvictionAbandoned) => S::Clean,
            (S::Clean, T::Dirtied) => S::Dirty,
            (S::Dirty, T::BeginWriteBack) => S::WritingBack,
            (S::WritingBack, T::WrittenBack) => S::Clean,
            (S::WritingBack, T::StillDirty) => S::Dirty,
            (S::Clean | S::Dirty | S::Failed, T::Discarded) => S::Absent,
            (state, transition) => panic!("a page that is {state:?} cannot have {transition:?}"),
        }
    }

    /// Whether its bytes take memory.
    pub fn is_resident(self) -> bool {
        self.is_readable() || self == PageState::Evicting
    }

    /// Whether its bytes are in memory, and stay there unless somebody decides otherwise.
    pub fn is_readable(self) -> bool {
        matches!(self, PageState::Clean | PageState::Dirty | PageState::WritingBack)
    }

    /// Whether the store does not have its bytes yet.
    pub fn is_dirty(self) -> bool {
        matches!(self, PageState::Dirty | PageState::WritingBack)
    }

    /// Whether a fill may begin.
    pub fn is_fillable(self) -> bool {
        matches!(self, PageState::Absent | PageState::Failed)
    }

    pub(crate) fn from_bits(bits: u8) -> PageState {
        match bits {
            1 => PageState::Filling,
            2 => PageState::Clean,
            3 => PageState::Evicting,
            4 => PageState::Failed,
            5 => PageState::Dirty,
            6 => PageState::WritingBack,
            _ => PageState::Absent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{PageState as S, Transition as T};

    const STATES: [S; 7] =
        [S::Absent, S::Filling, S::Clean, S::Evicting, S::Failed, S::Dirty, S::WritingBack];
    const TRANSITIONS: [T; 13] = [
        T::BeginFill,
        T::Filled,
        T::FilledForStore,
        T::FillAbandoned,
        T::FillFailed,
        T::BeginEviction,
        T::Evicted,
        T::EvictionAbandoned,
        T::Dirtied,
        T::BeginWriteBack,
        T::WrittenBack,
        T::StillDirty,
        T::Discarded,
    ];

    #[test]
    fn exactly_the_written_transitions_are_possible() {
        let possible: Vec<_> = STATES
            .iter()
            .flat_map(|s| TRANSITIONS.iter().map(move |t| (*s, *t)))
            .filter(|(s, t)| std::panic::catch_unwind(|| s.after(*t)).is_ok())
            .collect();
        assert_eq!(
            possible,
            [
                (S::Absent, T::BeginFill),
                (S::Filling, T::Filled),
                (S::Filling, T::FilledForStore),
                (S::Filling, T::FillAbandoned),
                (S::Filling, T::FillFailed),
                (S::Clean, T::BeginEviction),
                (S::Clean, T::Dirtied),
                (S::Clean, T::Discarded),
                (S::Evicting, T::Evicted),
                (S::Evicting, T::EvictionAbandoned),
                (S::Failed, T::BeginFill),
                (S::Failed, T::Discarded),
                (S::Dirty, T::BeginWriteBack),
                (S::Dirty, T::Discarded),
                (S::WritingBack, T::WrittenBack),
                (S::WritingBack, T::StillDirty),
            ]
        );
    }

    #[test]
    fn states_survive_being_stored_in_bits() {
        for state in STATES {
            assert_eq!(S::from_bits(state as u8), state);
        }
    }
}
