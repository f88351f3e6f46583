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
}

/// What happens to a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// Somebody begins to fetch its bytes.
    BeginFill,
    /// The bytes are in memory.
    Filled,
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
            (S::Filling, T::FillAbandoned) => S::Absent,
            (S::Filling, T::FillFailed) => S::Failed,
            (S::Clean, T::BeginEviction) => S::Evicting,
            (S::Evicting, T::Evicted) => S::Absent,
            (S::Evicting, T::EvictionAbandoned) => S::Clean,
            (state, transition) => panic!("a page that is {state:?} cannot have {transition:?}"),
        }
    }

    /// Whether its bytes take memory.
    pub fn is_resident(self) -> bool {
        matches!(self, PageState::Clean | PageState::Evicting)
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
            _ => PageState::Absent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{PageState as S, Transition as T};

    const STATES: [S; 5] = [S::Absent, S::Filling, S::Clean, S::Evicting, S::Failed];
    const TRANSITIONS: [T; 7] = [
        T::BeginFill,
        T::Filled,
        T::FillAbandoned,
        T::FillFailed,
        T::BeginEviction,
        T::Evicted,
        T::EvictionAbandoned,
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
                (S::Filling, T::FillAbandoned),
                (S::Filling, T::FillFailed),
                (S::Clean, T::BeginEviction),
                (S::Evicting, T::Evicted),
                (S::Evicting, T::EvictionAbandoned),
                (S::Failed, T::BeginFill),
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
