//! When what was done is made to last.

use omnimap::{MappingMut, Result};

type How<'a> = dyn FnMut(&MappingMut) -> Result<()> + 'a;

/// Makes a mapping durable every so many bytes of changes. Whoever asks it to has made the mapping a permutation of its
/// records before.
pub(super) struct Saver<'a> {
    changed_bytes_max: u64,
    changed_bytes: u64,
    how: Option<Box<How<'a>>>,
}

impl<'a> Saver<'a> {
    /// Leaves it to the end.
    pub(super) fn never() -> Saver<'a> {
        Saver { changed_bytes_max: u64::MAX, changed_bytes: 0, how: None }
    }

    /// Saves, as it is told how to, after so many bytes of changes and at the end of each pass.
    pub(super) fn every(
        changed_bytes_max: u64,
        how: impl FnMut(&MappingMut) -> Result<()> + 'a,
    ) -> Saver<'a> {
        Saver { changed_bytes_max, changed_bytes: 0, how: Some(Box::new(how)) }
    }

    /// So many bytes were stored to; whether it is time to save.
    pub(super) fn note(&mut self, bytes: usize) -> bool {
        self.changed_bytes += bytes as u64;
        self.how.is_some() && self.changed_bytes >= self.changed_bytes_max
    }

    /// Saves, if that is its task. The mapping holds exactly its records now.
    pub(super) fn save(&mut self, mapping: &MappingMut) -> Result<()> {
        self.changed_bytes = 0;
        self.how.as_mut().map_or(Ok(()), |how| how(mapping))
    }
}
