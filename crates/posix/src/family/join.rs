//! A forked child: it shows what its parent showed, joins the one that serves, and goes on when that is gone.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use omnimap_host::linux::ChildViews;
use omnimap_host::{Address, Place, ViewRequest, start_thread};
use omnimap_store::{BackingStore, StoreError, catch};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use super::message::{Ask, JoinedView, VIEWS_MAX};
use super::serve::Serving;
use super::{Family, Ordering};
use crate::address_space::space;
use crate::errno::{Errno, Result};
use crate::mmap::protection_of;
use crate::object::{Live, Object};

/// How often a child that waits to be taken in looks whether it has to serve itself.
const LOOK_TIME: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// How long it waits before it asks again.
const AGAIN_TIME: Duration = Duration::from_millis(20);

/// The objects of one cache that a child has inherited, and its views of them.
pub(crate) struct Inherited {
    family: Arc<Family>,
    views: Option<ChildViews>,
    objects: Vec<Arc<Object>>,
    /// Closed when the views are gone: at the end of this process, or when it becomes another program.
    lasting: OwnedFd,
}

/// What this process has inherited and does not serve.
static INHERITED: Mutex<Vec<Inherited>> = Mutex::new(Vec::new());

/// Views that are being made in a child, before fork returns in it.
pub(crate) struct Joining {
    family: Arc<Family>,
    views: ChildViews,
    objects: Vec<Arc<Object>>,
    joined: Vec<JoinedView>,
    /// The ends of a pipe that is open as long as the views are: for who serves them, and for this process.
    lasts: OwnedFd,
    lasting: OwnedFd,
}

fn failed(error: rustix::io::Errno) -> Errno {
    Errno(error.raw_os_error())
}

impl Joining {
    pub(crate) fn new(family: Arc<Family>) -> Result<Joining> {
        let views = ChildViews::new().map_err(|e| Errno(e.errno()))?;
        let (lasts, lasting) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
        Ok(Joining { family, views, objects: Vec::new(), joined: Vec::new(), lasts, lasting })
    }

    /// Shows a part of an object as the parent did.
    pub(crate) fn show(&mut self, object: &Arc<Object>, request: &ViewRequest, at: Address) -> Result<()> {
        let memory = object.live().object.memory();
        let file = memory.descriptor().ok_or(Errno::EOPNOTSUPP)?;
        self.views.show(file, request, memory.used_as()).map_err(|e| Errno(e.errno()))?;
        self.joined.push(JoinedView::of(object.cookie, request, at));
        if !self.objects.iter().any(|known| Arc::ptr_eq(known, object)) {
            self.objects.push(object.clone());
        }
        Ok(())
    }

    /// Whether nothing is shown.
    pub(crate) fn is_empty(&self) -> bool {
        self.joined.is_empty()
    }

    /// The objects that it is about.
    pub(crate) fn objects(&self) -> Vec<Arc<Object>> {
        self.objects.clone()
    }

    /// Lets the one that serves know. From here on this process may have to serve all that was asked for so far.
    ///
    /// `nonce` is this child's alone; `fork` is what its parent has kept the objects under, and need not any more.
    pub(crate) fn ask(self, nonce: u64, fork: u64) -> Result<Asked> {
        let parts: Vec<&[JoinedView]> = self.joined.chunks(VIEWS_MAX).collect();
        let ask = |(i, part): (usize, &&[JoinedView])| Ask::Join {
            process: std::process::id(),
            nonce,
            fork,
            part: i as u64,
            is_last: i + 1 == parts.len(),
            views: part.to_vec(),
        };
        let asks: Vec<Ask> = parts.iter().enumerate().map(ask).collect();
        for ask in &asks {
            // Without a will, nobody would serve this process after the present one's end.
            ask.send(&self.family.will, &[self.views.descriptor(), self.lasts.as_fd()]).map_err(failed)?;
        }
        let cannot = |e: std::io::Error| Errno(e.raw_os_error().unwrap_or(libc::EMFILE));
        let userfaultfd = self.views.descriptor().try_clone_to_owned().map_err(cannot)?;
        let Joining { family, views, objects, lasts, lasting, .. } = self;
        let descriptors = [userfaultfd, lasts];
        let answer = send(&asks, &family, &descriptors)?;
        inherited().push(Inherited { family: family.clone(), views: Some(views), objects, lasting });
        Ok(Asked { family, asks, descriptors, answer })
    }
}

/// Views that the one that serves has been told of.
pub(crate) struct Asked {
    family: Arc<Family>,
    asks: Vec<Ask>,
    descriptors: [OwnedFd; 2],
    answer: OwnedFd,
}

impl Asked {
    /// Waits until it serves them. If nobody serves any more, this process does from now on; all that it inherits must have
    /// been asked for.
    ///
    /// # Errors
    /// `EAGAIN` if whoever serves has no descriptors left, again and again; as who serves says.
    pub(crate) fn wait(mut self) -> Result<()> {
        const TRIES_MAX: u32 = 250;
        let mut tries = 0;
        loop {
            if matches!(poll(&mut [PollFd::new(&self.answer, PollFlags::IN)], Some(&LOOK_TIME)), Ok(1)) {
                match received(&self.answer) {
                    Some(outcome) => return outcome,
                    // Whoever had the question died with it. The next one may know the answer by the will.
                    None if tries < TRIES_MAX => {
                        tries += 1;
                        thread::sleep(AGAIN_TIME);
                        self.answer = send(&self.asks, &self.family, &self.descriptors)?;
                    }
                    None => return Err(Errno::EAGAIN),
                }
            }
            if self.family.try_lock() {
                go_on(&self.family);
                return Ok(());
            }
        }
    }
}

/// Asks the one that serves; gives where its answer will be.
fn send(asks: &[Ask], family: &Family, [userfaultfd, lasts]: &[OwnedFd; 2]) -> Result<OwnedFd> {
    let (answer, into) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
    for ask in asks {
        send_patiently(ask, family, &[userfaultfd.as_fd(), lasts.as_fd(), into.as_fd()])?;
    }
    Ok(answer)
}

/// The queue of the one that serves may be full for a moment.
fn send_patiently(ask: &Ask, family: &Family, descriptors: &[std::os::fd::BorrowedFd<'_>]) -> Result<()> {
    const TRIES_MAX: u32 = 10_000;
    for _ in 0..TRIES_MAX {
        match ask.send(&family.ask, descriptors) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS) => {
                thread::sleep(Duration::from_millis(1));
            }
            outcome => return outcome.map_err(failed),
        }
    }
    Err(Errno::EAGAIN)
}

/// The answer; `None` if there will be none.
fn received(answer: &OwnedFd) -> Option<Result<()>> {
    let mut number = [0; 4];
    match rustix::io::read(answer, &mut number) {
        Ok(4) if number == [0; 4] => Some(Ok(())),
        Ok(4) => Some(Err(Errno(i32::from_ne_bytes(number)))),
        _ => None,
    }
}

pub(super) fn inherited() -> std::sync::MutexGuard<'static, Vec<Inherited>> {
    INHERITED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Family {
    /// Waits, on a thread of its own, for the end of the one that serves.
    pub(crate) fn watch(self: &Arc<Self>) -> Result<()> {
        let family = self.clone();
        let watch = move || {
            if family.wait_for_lock() {
                go_on(&family);
            }
        };
        start_thread("omnimap-kin", watch).map_err(|e| Errno(e.raw_os_error().unwrap_or(libc::EAGAIN)))
    }
}

/// Serves from now on. The lock is ours.
fn go_on(family: &Arc<Family>) {
    if family.is_served_here() {
        return;
    }
    let mine: Vec<Inherited> = {
        let mut all = inherited();
        all.extract_if(.., |one| Arc::ptr_eq(&one.family, family)).collect()
    };
    for one in mine {
        if let Err(error) = one.take_over() {
            // Threads of this process wait for pages that nobody will bring.
            omnimap_host::die(&format!(
                "the process that served an inherited mapping is gone, and going on failed: {error}"
            ));
        }
    }
    family.served_in.store(std::process::id(), Ordering::Release);
    let mut serving = Serving::new(family.clone());
    serving.read_wills();
    if start_thread("omnimap-kin", move || serving.run()).is_err() {
        omnimap_host::die(
            "the process that served an inherited mapping is gone, and no thread can be had to go on",
        );
    }
}

impl Inherited {
    /// In a child of this process: it has none of these views, and must not keep them from ending.
    pub(super) fn forget(self) {
        let Inherited { family, views, objects, lasting } = self;
        drop(lasting);
        std::mem::forget((family, views, objects));
    }

    fn take_over(mut self) -> Result<(), omnimap_core::Error> {
        let Some(views) = self.views.take() else { return Ok(()) };
        let Some(first) = self.objects.first().cloned() else { return Ok(()) };
        let refused = |e| omnimap_core::Error::Host { object: first.name().into(), source: Arc::new(e) };
        let host = Arc::new(views.into_host().map_err(refused)?);
        let cache = first.live().cache.anew(host.clone())?;
        let mut lives = Vec::new();
        for object in &self.objects {
            let old = object.live();
            let memory = old.object.memory();
            let file = memory.descriptor().and_then(|fd| fd.try_clone_to_owned().ok()).map(File::from);
            let Some(file) = file else { continue };
            let length = file.metadata().map_or(object.len(), |metadata| metadata.len());
            let memory = host.inherit_memory(file, memory.used_as()).map_err(refused)?;
            let store = old.object.store();
            let store = match catch(|| store.reopen()) {
                Ok(Ok(store)) => store,
                Ok(Err(error)) | Err(error) => {
                    Arc::new(Lost { name: object.name().into(), length, error: error.to_string() })
                }
            };
            let new = cache.inherit(store, length, memory)?;
            lives.push((object, Live::new(cache.clone(), new, object.readahead_bytes_max)));
        }
        // As they are by now: the program may have unmapped or protected some. From here on it may map others.
        let space = space();
        lives.into_iter().for_each(|(object, live)| object.inherit(live));
        for mapping in space.mappings.iter() {
            let Some(object) =
                mapping.paged().filter(|o| self.objects.iter().any(|mine| Arc::ptr_eq(mine, o)))
            else {
                continue;
            };
            let start = Address(mapping.addresses().start);
            let request = ViewRequest {
                offset: mapping.offset(),
                length: mapping.addresses().len() as u64,
                // SAFETY: mapped when this process was forked, and not unmapped since.
                place: unsafe { Place::there(start) },
                protection: protection_of(mapping.prot()),
                sharing: mapping.sharing,
            };
            let live = object.live();
            live.cache.place_as(&live.object, &request, object.readahead_bytes_max)?;
            // Their faults were taken by the process that is gone.
            live.cache.wake_all(start, request.length);
        }
        Ok(())
    }
}

/// The store of an object whose bytes went with the process that served it: what is in memory is there, the rest fails.
struct Lost {
    name: String,
    length: u64,
    error: String,
}

impl Lost {
    fn error(&self) -> StoreError {
        StoreError::Unusable { name: self.name.clone(), reason: self.error.clone() }
    }
}

impl BackingStore for Lost {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.length
    }

    fn read_at(&self, _offset: u64, _into: &mut [u8]) -> Result<usize, StoreError> {
        Err(self.error())
    }

    fn writability(&self) -> omnimap_store::Writability {
        omnimap_store::Writability::ReadWrite
    }

    fn write_at(&self, _offset: u64, _bytes: &[u8]) -> Result<(), StoreError> {
        Err(self.error())
    }

    fn sync(&self) -> Result<(), StoreError> {
        Err(self.error())
    }
}
