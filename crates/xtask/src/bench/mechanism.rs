//! The mechanism without the engine: what a fault costs that is served by one read, one fill and nothing else.
//!
//! No page has a state, nothing is known of who used what, and nobody else may fault. It is the floor of a fault mode on a
//! machine: what Omnimap takes above it, the engine costs; where it is slower than the kernel's mapping itself, the machine
//! makes signals, system calls, or waking a thread dear.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use omnimap::FaultMode;
use omnimap::store::{AlignedBytes, BackingStore};
use omnimap_host::linux::LinuxHost;
use omnimap_host::{
    Address, Counted, Fault, FaultServer, FaultStream, Host, Memory, Stores, Use, View, Waited, die,
};

use super::faults::scattered;

/// Pages evicted together.
const EVICTED_TOGETHER: usize = 16;

/// Longer than any store takes between two faults of one thread.
const SPIN_TIME: Duration = Duration::from_millis(2);

/// A file's bytes in memory, the oldest out first.
pub(super) struct Mechanism {
    view: Arc<dyn View>,
    server: Arc<Server>,
    /// Where faults are not served in the thread that raised them.
    worker: Option<JoinHandle<()>>,
}

struct Server {
    faults: Arc<dyn FaultStream>,
    memory: Arc<dyn Memory>,
    store: Arc<dyn BackingStore>,
    page_bytes: u64,
    pages_max: usize,
    start: OnceLock<usize>,
    /// Pages in memory, the oldest first; and where a page is read to.
    state: Mutex<(VecDeque<u64>, AlignedBytes)>,
}

impl Mechanism {
    /// The first `bytes` of a store, of which `budget_bytes` are in memory at the most.
    pub(super) fn new(
        mode: FaultMode,
        store: Arc<dyn BackingStore>,
        bytes: u64,
        budget_bytes: u64,
    ) -> Result<Mechanism> {
        let host = LinuxHost::open(Some(mode))?;
        let page_bytes = host.page_bytes();
        let (memory, _) = host.create_memory("mechanism", bytes, Use::ReadOnly)?;
        let pages_max = (budget_bytes / page_bytes) as usize;
        let oldest = VecDeque::with_capacity(pages_max + 1);
        let state = Mutex::new((oldest, AlignedBytes::new(page_bytes as usize)));
        let faults = host.faults();
        let server = Server { faults, memory, store, page_bytes, pages_max, start: OnceLock::new(), state };
        let server = Arc::new(server);
        let view = server.memory.map(0, bytes)?;
        server.start.set(view.start().0).ok().context("a view in two places")?;
        let worker = if mode == FaultMode::Worker {
            let server = server.clone();
            Some(std::thread::spawn(move || server.work()))
        } else {
            let weak: Weak<Server> = Arc::downgrade(&server);
            server.faults.serve_with(weak);
            None
        };
        Ok(Mechanism { view, server, worker })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.view.bytes()
    }
}

impl Drop for Mechanism {
    fn drop(&mut self) {
        self.server.faults.close();
        if let Some(worker) = self.worker.take() {
            // One that panics has said so, and the accesses that it left waiting wait for ever.
            let _said = worker.join();
        }
    }
}

impl Server {
    fn resolve(&self, address: usize) -> Result<()> {
        let start = self.start.get().context("a fault before there is a view")?;
        let offset = (address - start) as u64 / self.page_bytes * self.page_bytes;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (oldest, bytes) = &mut *state;
        if oldest.len() >= self.pages_max {
            for offset in oldest.drain(..EVICTED_TOGETHER.min(self.pages_max)) {
                self.memory.punch(offset, self.page_bytes, Counted::Exactly)?;
            }
        }
        let length = bytes.len().min((self.store.len() - offset) as usize);
        self.store.read_at(offset, &mut bytes[..length])?;
        self.memory.fill(offset, bytes, Stores::Trap)?;
        oldest.push_back(offset);
        Ok(self.faults.wake(Address(start + offset as usize), self.page_bytes)?)
    }
}

impl Server {
    /// Sleeps only where nobody else faults either: what waking it would cost is not the mechanism's.
    fn work(&self) {
        let mut served = Instant::now();
        loop {
            match self.faults.take() {
                Ok(Some(fault)) => {
                    self.resolve_or_die(fault);
                    served = Instant::now();
                }
                Ok(None) if served.elapsed() < SPIN_TIME => std::hint::spin_loop(),
                Ok(None) => match self.faults.wait(Duration::from_secs(1)) {
                    Ok(Waited::Closed) => return,
                    Ok(Waited::Ready | Waited::TimedOut) => {}
                    Err(error) => die(&format!("the mechanism alone: {error}")),
                },
                Err(error) => die(&format!("the mechanism alone: {error}")),
            }
        }
    }

    fn resolve_or_die(&self, fault: Fault) {
        if let Err(error) = self.resolve(fault.address.in_process()) {
            die(&format!("the mechanism alone: {error:#}"));
        }
    }
}

impl FaultServer for Server {
    fn serve(self: Arc<Self>, fault: Fault) {
        self.resolve_or_die(fault);
    }
}

/// Fills `pages` pages of a memory that nobody waits for: the system call that no fault can do without, and no more.
pub(super) fn fill_alone(pages: u64) -> Result<Duration> {
    let host = LinuxHost::open(Some(FaultMode::InThread))?;
    let page_bytes = host.page_bytes();
    let (memory, _) = host.create_memory("fills", pages * page_bytes, Use::ReadOnly)?;
    let _view = memory.map(0, pages * page_bytes)?;
    let bytes = vec![1; page_bytes as usize];
    let begin = Instant::now();
    for page in scattered(pages) {
        memory.fill(page * page_bytes, &bytes, Stores::Trap)?;
    }
    Ok(begin.elapsed())
}
