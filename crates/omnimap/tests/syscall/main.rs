//! The calls, statement by statement, each test on the kernel's own mapping and on ours by the same code.
//!
//! A test's name is `<call>::<statement>_<what>::<column>`; `cargo xtask conformance` makes docs/conformance.md from the
//! results.

mod child;
mod probe;
mod subject;

mod brk;
mod device;
mod errors;
mod exec;
mod flags;
mod fork;
mod fork_programs;
mod inherited;
mod madvise;
mod mincore;
mod minherit;
mod mlock;
mod mlockall;
mod mmap;
mod mprotect;
mod mremap;
mod msync;
mod munmap;
mod place;
mod remap_file_pages;
mod shm;
mod size;
mod times;

/// Defines a test that runs once for each column: `on!(m01_what, [kernel, paged], |s| { … });`.
macro_rules! on {
    ($($test:tt)*) => { $crate::define!(run, $($test)*); };
}
pub(crate) use on;

/// As [`on`], each in a process of its own: for what changes limits, or locks everything.
macro_rules! on_alone {
    ($($test:tt)*) => { $crate::define!(run_alone, $($test)*); };
}
pub(crate) use on_alone;

macro_rules! define {
    ($how:ident, $(#[$meta:meta])* $name:ident, [$($column:ident),+ $(,)?], |$subject:ident| $body:block) => {
        $(#[$meta])*
        mod $name {
            #[allow(unused_imports, reason = "not every test needs all")]
            use super::*;

            fn check($subject: &$crate::subject::Subject) $body

            const COLUMNS: &[&str] = &[$(stringify!($column)),+];

            $(
                #[test]
                fn $column() {
                    $crate::subject::$how(stringify!($column), COLUMNS, check);
                }
            )+
        }
    };
}
pub(crate) use define;
