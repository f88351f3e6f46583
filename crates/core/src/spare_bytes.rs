//! SpareBytes for bytes on their way, kept by a thread that fills again and again.

use omnimap_store::AlignedBytes;

/// Bytes that a thread keeps at the most; more than one transfer of a store that is read in large pieces.
const KEPT_BYTES_MAX: usize = 2 << 20;

/// What a thread has left of earlier transfers: a new buffer has to be zeroed, which costs a tenth of what a fill takes.
#[derive(Default)]
pub(crate) struct SpareBytes {
    kept: Vec<AlignedBytes>,
}

impl SpareBytes {
    /// A buffer of so many bytes, with any content.
    pub(crate) fn take(&mut self, bytes: usize) -> AlignedBytes {
        match self.kept.iter().position(|buffer| buffer.len() == bytes) {
            Some(at) => self.kept.swap_remove(at),
            None => AlignedBytes::new(bytes),
        }
    }

    /// Keeps a buffer for the next transfer, in the place of older ones.
    pub(crate) fn keep(&mut self, buffer: AlignedBytes) {
        self.kept.push(buffer);
        let bytes = |kept: &[AlignedBytes]| kept.iter().map(|buffer| buffer.len()).sum::<usize>();
        while bytes(&self.kept) > KEPT_BYTES_MAX {
            self.kept.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_and_not_too_many_are_kept() {
        let mut buffers = SpareBytes::default();
        let mut first = buffers.take(4096);
        first[7] = 1;
        let address = first.as_ptr();
        buffers.keep(first);
        assert_ne!(buffers.take(8192).as_ptr(), address);
        assert_eq!(buffers.take(4096).as_ptr(), address);
        for _ in 0..10 {
            buffers.keep(AlignedBytes::new(1 << 20));
        }
        assert_eq!(buffers.kept.len(), 2);
    }
}
