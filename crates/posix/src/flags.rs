//! The flags of the calls, with the numbers of the C library.

macro_rules! flags {
    ($(#[$meta:meta])* $type:ident: $integer:ty { $($(#[$doc:meta])* $name:ident = $value:expr;)* }) => {
        $(#[$meta])*
        ///
        /// Any bits may be set: what the kernel refuses is refused with its error.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $type(pub $integer);

        impl $type {
            $($(#[$doc])* pub const $name: $type = $type($value);)*

            /// Whether all bits of `other` are set.
            pub const fn contains(self, other: $type) -> bool {
                self.0 & other.0 == other.0
            }

            /// Whether some bits of `other` are set.
            pub const fn intersects(self, other: $type) -> bool {
                self.0 & other.0 != 0
            }

            /// Without the bits of `other`.
            #[must_use]
            pub const fn without(self, other: $type) -> $type {
                $type(self.0 & !other.0)
            }
        }

        impl std::ops::BitOr for $type {
            type Output = $type;
            fn bitor(self, other: $type) -> $type {
                $type(self.0 | other.0)
            }
        }

        impl std::ops::BitOrAssign for $type {
            fn bitor_assign(&mut self, other: $type) {
                self.0 |= other.0;
            }
        }
    };
}

flags! {
    /// What accesses are allowed: `PROT_*` of mmap(2) and mprotect(2).
    Prot: i32 {
        /// None.
        NONE = libc::PROT_NONE;
        /// Loads.
        READ = libc::PROT_READ;
        /// Stores.
        WRITE = libc::PROT_WRITE;
        /// Instructions may be fetched.
        EXEC = libc::PROT_EXEC;
    }
}

flags! {
    /// How to map: `MAP_*` of mmap(2).
    MapFlags: i32 {
        /// Stores are seen by all, and reach the object.
        SHARED = libc::MAP_SHARED;
        /// As `SHARED`, and flags that are not known are refused.
        SHARED_VALIDATE = libc::MAP_SHARED_VALIDATE;
        /// Copy on write.
        PRIVATE = libc::MAP_PRIVATE;
        /// No object; zeros.
        ANONYMOUS = libc::MAP_ANONYMOUS;
        /// The same.
        ANON = libc::MAP_ANON;
        /// Exactly at the address, in the place of what is there.
        FIXED = libc::MAP_FIXED;
        /// Exactly at the address, where nothing may be.
        FIXED_NOREPLACE = libc::MAP_FIXED_NOREPLACE;
        /// Below 2 GiB.
        BELOW_2GIB = libc::MAP_32BIT;
        /// Grows towards lower addresses.
        GROWSDOWN = libc::MAP_GROWSDOWN;
        /// Of reserved huge pages.
        HUGETLB = libc::MAP_HUGETLB;
        /// Locked, best effort.
        LOCKED = libc::MAP_LOCKED;
        /// Fetched at once, best effort.
        POPULATE = libc::MAP_POPULATE;
        /// With `POPULATE`: only what is in memory.
        NONBLOCK = libc::MAP_NONBLOCK;
        /// No room is set aside.
        NORESERVE = libc::MAP_NORESERVE;
        /// For a stack; no effect.
        STACK = libc::MAP_STACK;
        /// Persistent memory only.
        SYNC = libc::MAP_SYNC;
        /// Ignored.
        DENYWRITE = libc::MAP_DENYWRITE;
        /// Ignored.
        EXECUTABLE = libc::MAP_EXECUTABLE;
        /// Ignored.
        FILE = libc::MAP_FILE;
        /// Accepted; zeros all the same (mmap(2): only for embedded kernels).
        UNINITIALIZED = 0x400_0000;
    }
}

flags! {
    /// How to sync: `MS_*` of msync(2).
    SyncFlags: i32 {
        /// Wait until it is durable.
        SYNC = libc::MS_SYNC;
        /// Begin, and do not wait.
        ASYNC = libc::MS_ASYNC;
        /// Let later accesses see what the object has.
        INVALIDATE = libc::MS_INVALIDATE;
    }
}

flags! {
    /// `MLOCK_*` of mlock2(2).
    LockOn: u32 {
        /// Lock pages as they come, and bring none.
        ONFAULT = libc::MLOCK_ONFAULT;
    }
}

flags! {
    /// `MCL_*` of mlockall(2).
    LockAll: i32 {
        /// What is mapped now.
        CURRENT = libc::MCL_CURRENT;
        /// What is mapped later.
        FUTURE = libc::MCL_FUTURE;
        /// Lock pages as they come, and bring none.
        ONFAULT = libc::MCL_ONFAULT;
    }
}

flags! {
    /// `MREMAP_*` of mremap(2).
    RemapFlags: i32 {
        /// It may move.
        MAYMOVE = libc::MREMAP_MAYMOVE;
        /// To the given address, in the place of what is there.
        FIXED = libc::MREMAP_FIXED;
        /// The old range stays mapped, without its private pages.
        DONTUNMAP = libc::MREMAP_DONTUNMAP;
    }
}

flags! {
    /// `MADV_*` of madvise(2): a value, not a set.
    Advice: i32 {
        /// Nothing is known.
        NORMAL = libc::MADV_NORMAL;
        /// Single pages.
        RANDOM = libc::MADV_RANDOM;
        /// From the first to the last.
        SEQUENTIAL = libc::MADV_SEQUENTIAL;
        /// Soon.
        WILLNEED = libc::MADV_WILLNEED;
        /// Drops private pages; shared ones keep their bytes.
        DONTNEED = libc::MADV_DONTNEED;
        /// Anonymous pages may be dropped when there is no room.
        FREE = libc::MADV_FREE;
        /// The object has zeros there.
        REMOVE = libc::MADV_REMOVE;
        /// Not for the child.
        DONTFORK = libc::MADV_DONTFORK;
        /// For the child.
        DOFORK = libc::MADV_DOFORK;
        /// Zeros for the child.
        WIPEONFORK = libc::MADV_WIPEONFORK;
        /// Takes `WIPEONFORK` back.
        KEEPONFORK = libc::MADV_KEEPONFORK;
        /// Huge pages, please.
        HUGEPAGE = libc::MADV_HUGEPAGE;
        /// No huge pages.
        NOHUGEPAGE = libc::MADV_NOHUGEPAGE;
        /// Huge pages now.
        COLLAPSE = 25;
        /// Not soon.
        COLD = libc::MADV_COLD;
        /// Out of memory with it.
        PAGEOUT = libc::MADV_PAGEOUT;
        /// Make it resident, to be read.
        POPULATE_READ = libc::MADV_POPULATE_READ;
        /// Make it resident, to be stored to.
        POPULATE_WRITE = libc::MADV_POPULATE_WRITE;
        /// Not in a core dump.
        DONTDUMP = libc::MADV_DONTDUMP;
        /// In a core dump.
        DODUMP = libc::MADV_DODUMP;
    }
}
