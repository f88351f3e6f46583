//! Processes that share paged objects, because one was forked by another.
//!
//! One of them serves: the one that holds a lock which the kernel takes away when it dies. The others pass it the
//! userfaultfds of their views and wait for that lock. Whoever gets it goes on: what is in an object's memory is the
//! truth, and what is not is in its store.
//!
//! ```text
//! fork:   child maps, registers ── Join + userfaultfd ──▶ the one that serves ── answer ──▶ fork returns
//!                                └─ the same, as a will ─▶ a queue that nobody reads
//! death:  the lock is free ─▶ the next one makes an engine, reads the wills, answers what was asked
//! ```

mod join;
mod message;
mod serve;

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use omnimap_core::CachesHeld;
use omnimap_host::linux::HeldForFork;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, MemfdFlags, fcntl_lock, memfd_create};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Flock, FlockOffsetType, FlockType, Pid, fcntl_getlk};

use self::join::Inherited;
pub(crate) use self::join::Joining;
use self::message::Ask;
pub(crate) use self::message::SyncKind;
use crate::errno::{Errno, Result};
use crate::object::Object;

/// The objects of one process, and all processes that have them by fork.
pub(crate) struct Family {
    /// Its lock is the serving process's. Never closed, for that would give it up (fcntl(2)).
    lock: File,
    /// One end for those who ask, one for the one that serves.
    ask: OwnedFd,
    serve: OwnedFd,
    /// What each has joined with, for the next one that serves: written and read here.
    will: OwnedFd,
    wills: OwnedFd,
    /// The process that serves, as far as this one knows.
    served_in: AtomicU32,
}

/// Objects of this process and of its parents, by cookie.
static OBJECTS: Mutex<Option<HashMap<u64, Weak<Object>>>> = Mutex::new(None);

/// The objects, locked; the lock goes along with a fork.
struct Objects(MutexGuard<'static, Option<HashMap<u64, Weak<Object>>>>);

fn objects() -> Objects {
    Objects(OBJECTS.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Objects {
    fn get(&self, cookie: u64) -> Option<Arc<Object>> {
        self.0.as_ref()?.get(&cookie)?.upgrade()
    }
}

/// Makes an object known to those who ask for it by its cookie.
pub(crate) fn note_object(object: &Arc<Object>) {
    let mut all = objects();
    let all = all.0.get_or_insert_default();
    if all.len().is_power_of_two() {
        all.retain(|_, object| object.strong_count() > 0);
    }
    all.insert(object.cookie, Arc::downgrade(object));
}

/// Objects that a child is about to join, by the number of its fork: their last mapping may go before it does. Those that
/// this process serves: another one keeps its own.
type Kept = Vec<(u64, Instant, Vec<Arc<Object>>)>;
static KEPT: Mutex<Kept> = Mutex::new(Vec::new());
/// A child that has not joined after so long never will.
const KEPT_TIME_MAX: Duration = Duration::from_secs(60);

/// How often who waits for an answer looks whether there can be one.
const LOOK_TIME: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// How long a process that has begun to serve may take for what was asked of the one before it.
const HEIR_TIME_MAX: Duration = Duration::from_secs(5);

/// What must not be locked by other threads when a process is forked: the child has no such threads.
pub(crate) struct Held {
    _objects: Objects,
    _kept: MutexGuard<'static, Kept>,
    inherited: MutexGuard<'static, Vec<Inherited>>,
    _caches: CachesHeld,
    host: Option<HeldForFork>,
}

impl Held {
    /// Locks it, and keeps objects until a child has joined.
    pub(crate) fn new(fork: u64, objects: Vec<Arc<Object>>) -> Held {
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        if !objects.is_empty() {
            kept.push((fork, Instant::now(), objects));
        }
        Held {
            _objects: self::objects(),
            _kept: kept,
            inherited: join::inherited(),
            _caches: CachesHeld::new(),
            host: Some(HeldForFork::new()),
        }
    }

    /// In a new child: lets it make views, and forgets what its parent had inherited, which was for the parent's addresses.
    pub(crate) fn begin_child(&mut self) {
        self.host = None;
        self.inherited.drain(..).for_each(Inherited::forget);
    }
}

/// Forgets the objects that were kept for a fork whose child has joined.
fn forget_kept(fork: u64) {
    forget_kept_if(|number, _| number == fork);
}

/// Forgets the objects of children that have ended before they joined.
fn forget_old() {
    forget_kept_if(|_, since| since.elapsed() >= KEPT_TIME_MAX);
}

fn forget_kept_if(is_gone: impl Fn(u64, Instant) -> bool) {
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let gone: Vec<_> = kept.extract_if(.., |(number, since, _)| is_gone(*number, *since)).collect();
    drop(kept);
    if !gone.is_empty() {
        serve::aside(move || drop(gone));
    }
}

/// The family of the objects that this process makes, from the first fork on.
static OWN: Mutex<Option<(u32, Arc<Family>)>> = Mutex::new(None);

impl Family {
    /// That of the objects that this process has made.
    pub(crate) fn own() -> Result<Arc<Family>> {
        let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, family)) = own.as_ref().filter(|(made_in, _)| *made_in == std::process::id()) {
            return Ok(family.clone());
        }
        let family = Arc::new(Family::new().map_err(|error| Errno(error.raw_os_error()))?);
        serve::start(&family)?;
        *own = Some((std::process::id(), family.clone()));
        Ok(family)
    }

    fn new() -> Result<Family, rustix::io::Errno> {
        let lock = File::from(memfd_create("omnimap-family", MemfdFlags::CLOEXEC)?);
        fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        let pair = || socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (ask, serve) = pair()?;
        let (will, wills) = pair()?;
        // As much as it may have: a will stays in it as long as its process lives.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&will, 4 << 20);
        Ok(Family { lock, ask, serve, will, wills, served_in: AtomicU32::new(std::process::id()) })
    }

    /// Whether this process serves it.
    pub(crate) fn is_served_here(&self) -> bool {
        self.served_in.load(Ordering::Acquire) == std::process::id()
    }

    /// Tries to become the one that serves; `false` if another is.
    fn try_lock(&self) -> bool {
        fcntl_lock(&self.lock, FlockOperation::NonBlockingLockExclusive).is_ok()
    }

    /// Waits until nobody else serves, and becomes the one that does; `false` if this process has closed what is waited at.
    fn wait_for_lock(&self) -> bool {
        loop {
            match fcntl_lock(&self.lock, FlockOperation::LockExclusive) {
                Ok(()) => return true,
                Err(rustix::io::Errno::BADF) => return false,
                // A signal that was handled on this thread.
                Err(_) => std::thread::yield_now(),
            }
        }
    }

    /// Who serves, if that is another process.
    fn server(&self) -> Option<Pid> {
        let all = Flock {
            start: 0,
            length: 0,
            pid: None,
            typ: FlockType::WriteLock,
            offset_type: FlockOffsetType::Set,
        };
        fcntl_getlk(&self.lock, &all).ok().flatten()?.pid
    }

    /// Asks for a range of an object to be brought into step with its store.
    ///
    /// # Errors
    /// As who serves says; `EIO` if that process is gone, and another does not answer in its place: it has all of it as dirty.
    pub(crate) fn ask_sync(&self, cookie: u64, bytes: Range<u64>, how: SyncKind) -> Result<()> {
        let ask = Ask::Sync { cookie, start: bytes.start, end: bytes.end, how };
        let (answer, into) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| Errno(e.raw_os_error()))?;
        // Known before it is asked: whoever comes after it may not have the question.
        let asked = self.server();
        ask.send(&self.ask, &[into.as_fd()]).map_err(|e| Errno(e.raw_os_error()))?;
        drop(into);
        let mut gone_at: Option<Instant> = None;
        // The pipe ends with who serves, but not while a child lives that was forked in the middle of its answer.
        while poll(&mut [PollFd::new(&answer, PollFlags::IN)], Some(&LOOK_TIME)) != Ok(1) {
            if self.server() != asked && gone_at.get_or_insert_with(Instant::now).elapsed() > HEIR_TIME_MAX {
                return Err(Errno::EIO);
            }
        }
        let mut number = [0; 4];
        File::from(answer).read_exact(&mut number).map_err(|_| Errno::EIO)?;
        match i32::from_ne_bytes(number) {
            0 => Ok(()),
            number => Err(Errno(number)),
        }
    }
}
