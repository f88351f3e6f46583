//! A machine without a kernel: memory, views and faults as plain data, so that the engine above runs anywhere, under
//! any scheduler, and every rule that it must keep is asserted.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU8;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use omnimap_host::{
    Access, Address, Collapsed, Counted, Exclusive, Fault, FaultServer, FaultStream, Host, HostError, Memory,
    Place, Result, Sharing, Stores, Use, View, ViewRequest, Waited,
};

use crate::sync::{Condvar, Mutex, MutexGuard, either};

/// A simulated machine.
///
/// Whether threads serve the faults that they raise, where they can, is drawn for each machine anew.
///
/// It asserts: resident bytes are never above the budget; a byte is filled only into a hole, and again only with the
/// value that it had last; failures are marked only on holes' addresses that are mapped; a large page is made where all is
/// resident, and goes as a whole.
pub struct SimulatedHost {
    machine: Arc<Machine>,
}

/// What an access came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The page's bytes.
    Bytes(Vec<u8>),
    /// SIGBUS.
    Failed(String),
    /// SIGSEGV.
    Unmapped,
}

struct Machine {
    page_bytes: u64,
    budget_bytes: u64,
    in_thread: bool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    closed: bool,
    server: Option<Weak<dyn FaultServer>>,
    all_in_use: bool,
    tickets: u64,
    /// Threads that sleep in a fault.
    waiting: HashMap<u64, Address>,
    /// Those whose fault nobody has taken.
    pending: VecDeque<(u64, Fault)>,
    next_address: usize,
    resident_bytes: u64,
    memories: Vec<MemoryState>,
    views: BTreeMap<Address, ViewState>,
}

struct MemoryState {
    length: u64,
    used_as: Use,
    pages: BTreeMap<u64, Vec<u8>>,
    /// What each page held last, in memory or not.
    seen: HashMap<u64, Vec<u8>>,
    /// The first pages of large ones.
    large: BTreeSet<u64>,
}

impl MemoryState {
    /// Nothing is left of the large pages that begin or end in what goes.
    fn drop_large(&mut self, gone: &Range<u64>) {
        self.large.retain(|first| {
            let large = *first..first + LARGE_PAGE_PAGES;
            let whole = gone.start <= large.start && large.end <= gone.end;
            let apart = large.end <= gone.start || gone.end <= large.start;
            assert!(whole || apart, "of a large page, a part cannot be dropped: {large:?}, {gone:?}");
            apart
        });
    }
}

/// Small pages in a large one.
const LARGE_PAGE_PAGES: u64 = 4;

struct ViewState {
    memory: usize,
    first_page: u64,
    pages: u64,
    touched: BTreeSet<u64>,
    /// Pages of the view whose stores fault.
    trapped: BTreeSet<u64>,
    /// Failed pages by address: why, and whether somebody has been told.
    failed: BTreeMap<Address, (String, bool)>,
}

impl SimulatedHost {
    /// A machine whose engine has a budget.
    pub fn new(page_bytes: u64, budget_bytes: u64) -> SimulatedHost {
        let state = State { next_address: 1 << 20, ..State::default() };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let machine = Machine { page_bytes, budget_bytes, in_thread: either(), state, changed };
        SimulatedHost { machine: Arc::new(machine) }
    }

    /// A thread touches an address: what it sees, when it sees it.
    pub fn touch(&self, address: Address) -> Outcome {
        self.machine.touch(address, Access::Read, |_| ())
    }

    /// A thread changes the byte at an address; what it saw of the page before.
    pub fn store(&self, address: Address, change: impl Fn(&mut u8)) -> Outcome {
        self.machine.touch(address, Access::Write, change)
    }

    /// From now on every page seems to have been touched, always.
    pub fn pretend_all_is_in_use(&self) {
        self.machine.lock().all_in_use = true;
    }

    /// The addresses that are mapped now: where each view begins.
    pub fn views(&self) -> Vec<Address> {
        self.machine.lock().views.keys().copied().collect()
    }

    /// Bytes in memory now.
    pub fn resident_bytes(&self) -> u64 {
        self.machine.lock().resident_bytes
    }
}

impl Host for SimulatedHost {
    fn large_page_bytes(&self) -> Option<u64> {
        Some(LARGE_PAGE_PAGES * self.machine.page_bytes)
    }

    fn page_bytes(&self) -> u64 {
        self.machine.page_bytes
    }

    fn create_memory(
        &self,
        _name: &str,
        length: u64,
        used_as: Use,
    ) -> Result<(Arc<dyn Memory>, Option<Exclusive>)> {
        let mut state = self.machine.lock();
        state.memories.push(MemoryState {
            length,
            used_as,
            pages: BTreeMap::new(),
            seen: HashMap::new(),
            large: BTreeSet::new(),
        });
        let index = state.memories.len() - 1;
        let exclusive = (used_as == Use::Exclusive).then(|| Exclusive::new().0);
        Ok((Arc::new(SimulatedMemory { machine: self.machine.clone(), index, used_as }), exclusive))
    }

    fn add_kin(&self, _userfaultfd: OwnedFd) -> Result<u16> {
        Err(no_kin())
    }

    fn remove_kin(&self, _kin: u16) {}

    fn faults(&self) -> Arc<dyn FaultStream> {
        self.machine.clone()
    }
}

impl Machine {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self, address: Address, access: Access, change: impl Fn(&mut u8)) -> Outcome {
        let mut state = self.lock();
        loop {
            match state.look(address, access, self.page_bytes) {
                Looked::Seen(outcome) => {
                    if access == Access::Write && matches!(outcome, Outcome::Bytes(_)) {
                        state.change(address, self.page_bytes, &change);
                    }
                    return outcome;
                }
                Looked::Again => {}
                Looked::Waits(access) => {
                    state.tickets += 1;
                    let ticket = state.tickets;
                    state.waiting.insert(ticket, address);
                    let fault = Fault { address, access };
                    if let Some(server) = state.server.as_ref().and_then(Weak::upgrade) {
                        drop(state);
                        server.serve(fault);
                        state = self.lock();
                    } else {
                        state.pending.push_back((ticket, fault));
                        self.changed.notify_all();
                    }
                    while state.waiting.contains_key(&ticket) {
                        state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    }
                }
            }
        }
    }
}

enum Looked {
    Seen(Outcome),
    Again,
    Waits(Access),
}

impl State {
    fn view_at(&mut self, address: Address, page_bytes: u64) -> Option<(&mut ViewState, u64)> {
        let (start, view) = self.views.range_mut(..=address).next_back()?;
        let page = (address.0 - start.0) as u64 / page_bytes;
        (page < view.pages).then_some((view, page))
    }

    fn change(&mut self, address: Address, page_bytes: u64, change: impl Fn(&mut u8)) {
        let Some((view, page)) = self.view_at(address, page_bytes) else { return };
        let (memory, index) = (view.memory, view.first_page + page);
        let memory = &mut self.memories[memory];
        assert!(memory.used_as.is_writable(), "stores to what can be stored to");
        let bytes = memory.pages.get_mut(&index).expect("a page that was just seen");
        change(&mut bytes[address.0 % page_bytes as usize]);
        let mut kept = bytes.clone();
        // What lies behind the end does not come back.
        let inside = memory.length.saturating_sub(index * page_bytes).min(page_bytes) as usize;
        kept[inside..].fill(0);
        memory.seen.insert(index, kept);
    }

    fn look(&mut self, address: Address, access: Access, page_bytes: u64) -> Looked {
        let Some((view, page)) = self.view_at(address, page_bytes) else {
            return Looked::Seen(Outcome::Unmapped);
        };
        let of_page = Address(address.0 - address.0 % page_bytes as usize);
        if let Some((why, told)) = view.failed.get_mut(&of_page) {
            // As the signal handler does: the first access is told, a later one tries again.
            if std::mem::replace(told, true) {
                view.failed.remove(&of_page);
                return Looked::Again;
            }
            return Looked::Seen(Outcome::Failed(why.clone()));
        }
        let (memory, index) = (view.memory, view.first_page + page);
        let trapped = view.trapped.contains(&page);
        let Some(bytes) = self.memories[memory].pages.get(&index).cloned() else {
            return Looked::Waits(access);
        };
        if access == Access::Write && trapped {
            return Looked::Waits(Access::WriteTrapped);
        }
        if let Some((view, page)) = self.view_at(address, page_bytes) {
            view.touched.insert(page);
        }
        Looked::Seen(Outcome::Bytes(bytes))
    }
}

impl FaultStream for Machine {
    fn take(&self) -> Result<Option<Fault>> {
        let mut state = self.lock();
        Ok(state.pending.pop_front().map(|(_, fault)| fault))
    }

    fn is_pending(&self) -> bool {
        !self.lock().pending.is_empty()
    }

    fn wait(&self, _limit: Duration) -> Result<Waited> {
        let mut state = self.lock();
        while !state.closed && state.pending.is_empty() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(if state.closed { Waited::Closed } else { Waited::Ready })
    }

    fn serve_with(&self, server: Weak<dyn FaultServer>) {
        if self.in_thread {
            self.lock().server = Some(server);
        }
    }

    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.server = None;
        drop(state);
        self.changed.notify_all();
    }

    fn refuse(&self, start: Address, bytes: u64) -> Result<()> {
        self.wake(start, bytes)
    }

    fn wake(&self, start: Address, bytes: u64) -> Result<()> {
        let page = self.page_bytes as usize;
        let range = start.0 - start.0 % page..(start.0 + bytes as usize).next_multiple_of(page);
        let mut state = self.lock();
        state.waiting.retain(|_, address| !range.contains(&address.0));
        state.pending.retain(|(_, fault)| !range.contains(&fault.address.0));
        self.changed.notify_all();
        Ok(())
    }
}

struct SimulatedMemory {
    machine: Arc<Machine>,
    index: usize,
    used_as: Use,
}

fn no_kin() -> HostError {
    HostError::MissingFeature { missing: "fork (a simulated machine has one process)", since: "none" }
}

impl Memory for SimulatedMemory {
    fn fill(&self, offset: u64, bytes: &[u8], stores: Stores) -> Result<()> {
        let page_bytes = self.machine.page_bytes;
        assert!(offset.is_multiple_of(page_bytes), "fills begin at a page");
        // Page by page, as the kernel does: others may see the first before the last is there.
        for (page, chunk) in (offset / page_bytes..).zip(bytes.chunks(page_bytes as usize)) {
            let mut state = self.machine.lock();
            let index = self.index;
            for view in state.views.values_mut().filter(|v| v.memory == index && stores == Stores::Trap) {
                if let Some(shown) = page.checked_sub(view.first_page) {
                    view.trapped.insert(shown);
                }
            }
            state.resident_bytes += page_bytes;
            assert!(state.resident_bytes <= self.machine.budget_bytes, "the budget is never exceeded");
            let memory = &mut state.memories[self.index];
            assert_eq!(chunk.len() as u64, page_bytes, "pages are filled as a whole");
            let inside = memory.length.saturating_sub(page * page_bytes).min(page_bytes) as usize;
            assert!(chunk[inside..].iter().all(|b| *b == 0), "behind the end of the object are zeros");
            let seen = memory.seen.entry(page).or_insert_with(|| chunk.to_vec());
            assert_eq!(seen, chunk, "a page comes back with the bytes that it had last");
            let before = memory.pages.insert(page, chunk.to_vec());
            assert!(before.is_none(), "only holes are filled");
        }
        Ok(())
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let page_bytes = self.machine.page_bytes;
        let state = self.machine.lock();
        for (at, byte) in (offset..).zip(into) {
            let page = state.memories[self.index].pages.get(&(at / page_bytes));
            *byte = page.expect("what is read is in memory")[(at % page_bytes) as usize];
        }
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let page_bytes = self.machine.page_bytes;
        let mut state = self.machine.lock();
        let memory = &mut state.memories[self.index];
        let mut at = offset;
        while let Some(rest) = bytes.get((at - offset) as usize..).filter(|rest| !rest.is_empty()) {
            let page = memory.pages.get_mut(&(at / page_bytes)).expect("what is written is in memory");
            let inside = &mut page[(at % page_bytes) as usize..];
            let count = inside.len().min(rest.len());
            inside[..count].copy_from_slice(&rest[..count]);
            memory.seen.insert(at / page_bytes, page.clone());
            at += count as u64;
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> Result<()> {
        let page_bytes = self.machine.page_bytes;
        let mut state = self.machine.lock();
        let memory = &mut state.memories[self.index];
        let before = memory.pages.len();
        let pages = length.div_ceil(page_bytes);
        memory.drop_large(&(pages..u64::MAX));
        memory.pages.retain(|page, _| *page < pages);
        memory.seen.retain(|page, _| *page < pages);
        if length < memory.length && !length.is_multiple_of(page_bytes) {
            for bytes in
                [memory.pages.get_mut(&(pages - 1)), memory.seen.get_mut(&(pages - 1))].into_iter().flatten()
            {
                bytes[(length % page_bytes) as usize..].fill(0);
            }
        }
        memory.length = length;
        let freed = (before - memory.pages.len()) as u64;
        state.resident_bytes -= freed * page_bytes;
        Ok(())
    }

    fn used_as(&self) -> Use {
        self.used_as
    }

    fn punch(&self, offset: u64, bytes: u64, _counted: Counted) -> Result<()> {
        let page_bytes = self.machine.page_bytes;
        let mut state = self.machine.lock();
        let pages = offset / page_bytes..(offset + bytes).div_ceil(page_bytes);
        let memory = &mut state.memories[self.index];
        memory.drop_large(&pages);
        let before = memory.pages.len();
        memory.pages.retain(|page, _| !pages.contains(page));
        let punched = (before - memory.pages.len()) as u64;
        state.resident_bytes -= punched * page_bytes;
        Ok(())
    }

    fn resident_bytes(&self) -> Result<u64> {
        Ok(self.machine.lock().memories[self.index].pages.len() as u64 * self.machine.page_bytes)
    }

    fn view_of_kin(&self, _request: &ViewRequest, _start: Address) -> Result<Arc<dyn View>> {
        Err(no_kin())
    }

    fn present(&self) -> Result<Vec<Range<u64>>> {
        Err(no_kin())
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn map_as(&self, request: &ViewRequest) -> Result<Arc<dyn View>> {
        assert!(
            request.place == Place::anywhere() && request.sharing == Sharing::Shared,
            "the simulated machine chooses addresses, and has no private views"
        );
        let (offset, length) = (request.offset, request.length);
        let page_bytes = self.machine.page_bytes;
        let pages = length.div_ceil(page_bytes);
        let mut state = self.machine.lock();
        let start = Address(state.next_address);
        // A gap between views; and no address is used twice.
        state.next_address += ((pages + 1) * page_bytes) as usize;
        let view = ViewState {
            memory: self.index,
            first_page: offset / page_bytes,
            pages,
            touched: BTreeSet::new(),
            trapped: BTreeSet::new(),
            failed: BTreeMap::new(),
        };
        state.views.insert(start, view);
        Ok(Arc::new(SimulatedView { machine: self.machine.clone(), start, length }))
    }
}

/// A view of the simulated machine; its bytes are seen through [`SimulatedHost::touch`].
pub struct SimulatedView {
    machine: Arc<Machine>,
    start: Address,
    length: u64,
}

impl SimulatedView {
    fn with_state<T>(&self, work: impl FnOnce(&mut ViewState, u64) -> T) -> T {
        let mut state = self.machine.lock();
        let view = state.views.get_mut(&self.start).expect("a view is used while it is mapped");
        work(view, self.machine.page_bytes)
    }

    fn address(&self, offset: u64) -> Address {
        Address(self.start.0 + offset as usize)
    }
}

impl View for SimulatedView {
    fn start(&self) -> Address {
        self.start
    }

    fn length(&self) -> u64 {
        self.length
    }

    fn sharing(&self) -> Sharing {
        Sharing::Shared
    }

    fn give_up(&self, _range: Range<u64>) {}

    fn end_faults(&self, _range: Range<u64>) -> Result<()> {
        Ok(())
    }

    fn bytes(&self) -> &[u8] {
        &[]
    }

    fn bytes_mut<'a>(&'a self, _exclusive: &'a mut Exclusive) -> &'a mut [u8] {
        &mut []
    }

    fn bytes_of<'a>(&'a self, _exclusive: &'a Exclusive) -> &'a [u8] {
        &[]
    }

    fn cells(&self) -> &[AtomicU8] {
        &[]
    }

    fn trap_stores(&self, ranges: &[Range<u64>]) -> Result<()> {
        // Page by page, as the kernel does: stores to the last go through when the first are trapped already.
        for offset in ranges.iter().flat_map(|range| range.clone().step_by(self.machine.page_bytes as usize))
        {
            self.with_state(|view, page_bytes| view.trapped.insert(offset / page_bytes));
        }
        Ok(())
    }

    fn let_stores(&self, range: Range<u64>) -> Result<()> {
        self.with_state(|view, page_bytes| {
            let pages = range.start / page_bytes..range.end.div_ceil(page_bytes);
            view.trapped.retain(|page| !pages.contains(page));
        });
        self.machine.wake(self.address(range.start), range.end - range.start)
    }

    fn fail(&self, range: Range<u64>, why: &str) -> Result<()> {
        self.with_state(|view, page_bytes| {
            for offset in range.step_by(page_bytes as usize) {
                view.failed.insert(self.address(offset), (why.to_owned(), false));
            }
        });
        Ok(())
    }

    fn clear_failure(&self, range: Range<u64>) -> Result<()> {
        let addresses = self.address(range.start)..self.address(range.end);
        self.with_state(|view, _| view.failed.retain(|address, _| !addresses.contains(address)));
        Ok(())
    }

    fn forget_touches(&self, ranges: &[Range<u64>]) -> Result<()> {
        self.with_state(|view, page_bytes| {
            for range in ranges {
                let pages = range.start / page_bytes..range.end.div_ceil(page_bytes);
                view.touched.retain(|page| !pages.contains(page));
            }
        });
        Ok(())
    }

    fn touched(&self, range: Range<u64>, parts: &mut Vec<Range<u64>>) -> Result<()> {
        if self.machine.lock().all_in_use {
            parts.push(range);
            return Ok(());
        }
        self.with_state(|view, page_bytes| {
            let pages = range.start / page_bytes..range.end.div_ceil(page_bytes);
            parts.extend(view.touched.range(pages).map(|p| p * page_bytes..(p + 1) * page_bytes));
        });
        Ok(())
    }

    fn collapse(&self, range: Range<u64>) -> Collapsed {
        let (memory, first) =
            self.with_state(|view, page_bytes| (view.memory, view.first_page + range.start / page_bytes));
        assert!(first.is_multiple_of(LARGE_PAGE_PAGES), "large pages are aligned");
        let mut state = self.machine.lock();
        let memory = &mut state.memories[memory];
        let pages = first..first + LARGE_PAGE_PAGES;
        assert!(pages.clone().all(|page| memory.pages.contains_key(&page)), "a hole would read as zeros");
        memory.large.insert(first);
        Collapsed::Done
    }
}

impl Drop for SimulatedView {
    fn drop(&mut self) {
        self.machine.lock().views.remove(&self.start);
        let pages = self.length.next_multiple_of(self.machine.page_bytes);
        let _ = self.machine.wake(self.start, pages);
    }
}
