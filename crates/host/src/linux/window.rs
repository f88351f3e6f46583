//! The view that a memory has to itself: it is filled through it where no other view shows the bytes.
//!
//! A private view will not do: UFFDIO_COPY would fill its copies. Nor will write(2), which publishes pages before they are
//! whole, and with `shmem_enabled=always` 2 MiB of zeros around them.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::large_pages::kernel_collapses;
use super::view::LinuxView;
use super::view_list::ViewList;
use crate::{Place, Protection, Result, Sharing, View, ViewRequest};

/// A view that nobody has the address of. It is made when it is needed, and goes with the last private view or the memory.
#[derive(Default)]
pub(super) struct Window {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    view: Option<LinuxView>,
    fills: u32,
    private_views: usize,
}

/// A view that was filled through so often is made anew: page tables, one for each 2 MiB, stay until it is unmapped.
const FILLS_MAX: u32 = 1024;

impl Window {
    /// Calls `fill` when some view shows the bytes of a memory of `length` bytes: maps one by `map`, if need be. `None` if
    /// there can be none.
    ///
    /// # Errors
    /// Those of `fill`; as mmap(2), where only a view will do.
    pub(super) fn fill<T>(
        &self,
        bytes: Range<u64>,
        length: u64,
        views: &ViewList,
        map: impl Fn(&ViewRequest) -> Result<LinuxView>,
        fill: impl Fn() -> Option<Result<T>>,
    ) -> Result<Option<T>> {
        let mut state = self.state();
        if let Some(filled) = fill() {
            return filled.map(Some); // Somebody was faster.
        }
        let shared = |shown: Range<u64>| {
            map(&ViewRequest {
                offset: shown.start,
                length: shown.end - shown.start,
                place: Place::anywhere(),
                protection: Protection::NONE,
                sharing: Sharing::Shared,
            })
        };
        // Once for all; where there is no room for that (RLIMIT_AS), for this time.
        let view = match shared(0..length.max(bytes.end)).or_else(|_| shared(bytes)) {
            Ok(view) => view,
            // A write would bring 2 MiB of zeros along.
            Err(error) if kernel_collapses() => return Err(error),
            Err(_) => return Ok(None),
        };
        view.unlock();
        views.hide(view.start());
        state.view = Some(view);
        state.fills = 0;
        // Under the lock: nobody takes it away before.
        fill().transpose()
    }

    /// It was filled through.
    pub(super) fn count_fill(&self) {
        let mut state = self.state();
        state.fills += 1;
        let worn = if state.fills >= FILLS_MAX { state.view.take() } else { None };
        drop(state);
        drop(worn);
    }

    /// There is one more private view.
    pub(super) fn add_private_view(&self) {
        self.state().private_views += 1;
    }

    /// There is one less.
    pub(super) fn remove_private_view(&self) {
        let mut state = self.state();
        state.private_views -= 1;
        let gone = if state.private_views == 0 { state.view.take() } else { None };
        drop(state);
        drop(gone);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use crate::linux::LinuxHost;
    use crate::{
        Address, Counted, FaultMode, Host, Memory, Place, Protection, Sharing, Stores, Use, ViewRequest,
    };

    fn host() -> Option<LinuxHost> {
        let host = LinuxHost::open(Some(FaultMode::Worker));
        if let Err(error) = &host {
            eprintln!("SKIPPED: {error}");
        }
        host.ok()
    }

    fn private(memory: &dyn Memory, offset: u64, length: u64) -> crate::Result<Arc<dyn crate::View>> {
        memory.map_as(&ViewRequest {
            offset,
            length,
            place: Place::anywhere(),
            protection: Protection::READ,
            sharing: Sharing::Private,
        })
    }

    /// Mappings of this process that show a memory, by its name.
    fn mappings_of(name: &str) -> usize {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().filter(|line| line.contains(name)).count()
    }

    #[test]
    fn private_views_share_one_window_which_goes_with_the_last_of_them() {
        let Some(host) = host() else { return };
        let page = host.page_bytes();
        let (memory, _) = host.create_memory("one-window", 64 * page, Use::ReadOnly).unwrap();
        let views: Vec<_> = (0..3).map(|_| private(&*memory, 0, 8 * page).unwrap()).collect();
        assert_eq!(mappings_of("one-window"), 3, "none before it is needed");
        for number in 0..3 {
            memory.fill(number * page, &vec![7; page as usize], Stores::Let).unwrap();
            assert_eq!(mappings_of("one-window"), 4);
        }
        drop(views);
        assert_eq!(mappings_of("one-window"), 0);
        let mut bytes = vec![0; 3 * page as usize];
        memory.read(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn what_is_filled_may_be_shown_by_several_mappings() {
        let Some(host) = host() else { return };
        let page = host.page_bytes();
        let (memory, _) = host.create_memory("several", 16 * page, Use::ReadOnly).unwrap();
        let view = memory.map(0, 16 * page).unwrap();
        for protected in [3, 8, 9] {
            let address = (view.start().0 + protected * page as usize) as *mut _;
            // SAFETY: a page of the view, of which nobody has borrowed anything.
            unsafe { rustix::mm::mprotect(address, page as usize, rustix::mm::MprotectFlags::empty()) }
                .unwrap();
        }
        memory.fill(0, &vec![7; 16 * page as usize], Stores::Trap).unwrap();
        assert_eq!(memory.resident_bytes().unwrap(), 16 * page);
    }

    #[test]
    fn page_tables_of_a_memory_that_nobody_maps_are_bounded() {
        let Some(host) = host() else { return };
        let table_kib = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmPTE:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let (page, step) = (host.page_bytes(), 2 << 20);
        let (memory, _) = host.create_memory("page-tables", 8192 * step, Use::ReadOnly).unwrap();
        let before = table_kib();
        for number in 0..8192 {
            memory.fill(number * step, &vec![7; page as usize], Stores::Let).unwrap();
            memory.punch(number * step, page, Counted::Exactly).unwrap();
        }
        let grown = table_kib().saturating_sub(before);
        assert!(grown < 8 << 10, "{grown} KiB of page tables for 8192 fills");
    }

    #[test]
    fn stores_are_trapped_although_a_window_comes_between() {
        let Some(host) = host() else { return };
        const ROUNDS: u64 = 20_000;
        let page = host.page_bytes();
        let (memory, _) = host.create_memory("comes-between", 512 * page, Use::Shared).unwrap();
        // Below all that is free: a window is yet below it then, and comes first wherever it is looked for by address.
        for _ in 0..512 {
            let flags = rustix::mm::MapFlags::PRIVATE | rustix::mm::MapFlags::NORESERVE;
            let none = rustix::mm::ProtFlags::empty();
            // SAFETY: new mappings at places of the kernel's choice, which nobody uses.
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), 512 * page as usize, none, flags) }
                .unwrap();
        }
        let view = memory.map(0, 256 * page).unwrap();
        let stop = AtomicBool::new(false);
        let bytes = vec![7; page as usize];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _for_a_window = private(&*memory, 256 * page, page).unwrap();
                    memory.fill(300 * page, &bytes, Stores::Let).unwrap();
                    memory.punch(300 * page, page, Counted::Exactly).unwrap();
                }
            });
            // Whoever fills waits for those who punch.
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    memory.punch(400 * page, page, Counted::Exactly).unwrap();
                }
            });
            let pagemap = File::open("/proc/self/pagemap").unwrap();
            let is_trapped = |address: Address| {
                const WRITE_PROTECTED: u64 = 1 << 57;
                let mut entry = [0; 8];
                pagemap.read_exact_at(&mut entry, address.0 as u64 / page * 8).unwrap();
                u64::from_ne_bytes(entry) & WRITE_PROTECTED != 0
            };
            let untrapped = (0..ROUNDS).map(|round| round % 256 * page).find(|at| {
                memory.fill(*at, &bytes, Stores::Trap).unwrap();
                let trapped = is_trapped(Address(view.start().0 + *at as usize));
                memory.punch(*at, page, Counted::Exactly).unwrap();
                // The marker stays behind, and the next round is to set its own.
                view.let_stores(*at..*at + page).unwrap();
                !trapped
            });
            stop.store(true, Ordering::Relaxed);
            assert_eq!(untrapped, None, "a store there would be lost");
        });
    }
}
