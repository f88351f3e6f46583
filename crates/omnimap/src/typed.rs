//! Values and numbers in bytes that several share: by copies, and as atomics.

/// Ways to use shared bytes, for types that have `read_at`, `write_at` and `part` (the cells of a range).
macro_rules! typed_access {
    () => {
        /// Copies a value out. It may be half of one that somebody is just writing.
        ///
        /// # Errors
        /// As [`read_at`](Self::read_at).
        pub fn read<T: zerocopy::FromBytes + zerocopy::IntoBytes>(
            &self,
            offset: u64,
        ) -> omnimap_core::Result<T> {
            let mut value = T::new_zeroed();
            self.read_at(offset, zerocopy::IntoBytes::as_mut_bytes(&mut value))?;
            Ok(value)
        }

        /// Copies a value in.
        ///
        /// # Errors
        /// As [`write_at`](Self::write_at).
        pub fn write<T: zerocopy::IntoBytes + zerocopy::Immutable>(
            &self,
            offset: u64,
            value: &T,
        ) -> omnimap_core::Result<()> {
            self.write_at(offset, zerocopy::IntoBytes::as_bytes(value))
        }

        /// The 32-bit number at an offset, in the machine's byte order; `None` if it is not inside, or not at a multiple of 4
        /// bytes of the address.
        pub fn atomic_u32(&self, offset: u64) -> Option<&std::sync::atomic::AtomicU32> {
            omnimap_host::as_u32(self.part(offset, 4)?)?.first()
        }

        /// As [`atomic_u32`](Self::atomic_u32), with 64 bits and 8 bytes.
        pub fn atomic_u64(&self, offset: u64) -> Option<&std::sync::atomic::AtomicU64> {
            omnimap_host::as_u64(self.part(offset, 8)?)?.first()
        }
    };
}
pub(crate) use typed_access;
