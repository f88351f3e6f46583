//! The process that serves: it takes children in, answers what they ask, and notices their end.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use omnimap_core::PageCache;
use omnimap_host::linux::maps_something;
use omnimap_host::{Address, start_thread};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::message::{Ask, JoinedView, SyncKind};
use super::{Family, objects};
use crate::errno::{Errno, Result};
use crate::object::Object;

/// How long the objects of a child that is gone are kept for children of its own that have not joined yet.
const ORPHANS_TIME: Duration = Duration::from_secs(5);

/// Starts the thread that serves.
pub(super) fn start(family: &Arc<Family>) -> Result<()> {
    let family = family.clone();
    start_thread("omnimap-kin", move || Serving::new(family).run())
        .map_err(|e| Errno(e.raw_os_error().unwrap_or(libc::EAGAIN)))
}

/// Goes through the wills: those of the dead are dropped, the others go back into the queue.
fn for_wills(family: &Family, mut work: impl FnMut(Ask, Vec<OwnedFd>)) {
    let mut seen = HashSet::new();
    while let Ok(Some((ask, descriptors))) = Ask::peek(&family.wills) {
        let Ask::Join { process, nonce, part, .. } = &ask else { return };
        if seen.contains(&(*nonce, *part)) {
            return; // Once round.
        }
        if open_process(*process).is_err_and(|error| error == rustix::io::Errno::SRCH) {
            let _ = Ask::receive(&family.wills);
            continue;
        }
        if descriptors.len() < 2 {
            // The kernel drops what there is no room for.
            tracing::warn!(process, "wills cannot be gone through without descriptors");
            return;
        }
        // Back into the queue before it is taken out of it: whoever serves after us may find it twice, but not lost. Where
        // the queue is full, the other way round.
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let is_back = ask.send(&family.will, &borrowed).is_ok();
        let _ = Ask::receive(&family.wills);
        if !is_back && let Err(error) = ask.send(&family.will, &borrowed) {
            tracing::error!(%error, "a child that has outlived us all will not be served");
        }
        seen.insert((*nonce, *part));
        work(ask, descriptors);
    }
}

/// A child that has joined.
struct Member {
    process: u32,
    /// Readable when it ends; `None` from then on.
    end: Option<OwnedFd>,
    /// Ends when it becomes another program, or closes all descriptors; `None` from then on.
    lasts: Option<OwnedFd>,
    nonce: u64,
    gone_at: Option<Instant>,
    cache: Arc<PageCache>,
    kin: u16,
    /// Kept as long as it may touch them.
    _objects: Vec<Arc<Object>>,
}

impl Member {
    /// Whether its views are gone, because it has ended or become another program.
    fn has_ended(&mut self) -> bool {
        if self.end.as_ref().is_some_and(is_readable) {
            return true;
        }
        if !self.lasts.as_ref().is_some_and(is_readable) {
            return false;
        }
        self.lasts = None;
        // It may have closed all that it had open. Where nothing can be known, its end is waited for.
        matches!(maps_something(self.process), Ok(false))
    }
}

pub(super) struct Serving {
    family: Arc<Family>,
    members: Vec<Member>,
    /// Parts of long lists.
    parts: HashMap<u64, Vec<JoinedView>>,
}

impl Serving {
    pub(super) fn new(family: Arc<Family>) -> Serving {
        Serving { family, members: Vec::new(), parts: HashMap::new() }
    }

    pub(super) fn run(mut self) {
        loop {
            self.wait();
            // What a child's children ask comes before its end.
            while let Ok(Some((ask, descriptors))) = Ask::receive(&self.family.serve) {
                self.answer(ask, descriptors);
            }
            self.bury();
        }
    }

    /// Waits until something is asked, or a child ends, or something that is kept may have had its time.
    fn wait(&self) {
        let mut polled = vec![PollFd::new(&self.family.serve, PollFlags::IN)];
        let ends = self.members.iter().flat_map(|member| member.end.iter().chain(&member.lasts));
        polled.extend(ends.map(|end| PollFd::new(end, PollFlags::IN)));
        let has_orphans = self.members.iter().any(|member| member.gone_at.is_some());
        let limit = if has_orphans { Duration::from_secs(1) } else { super::KEPT_TIME_MAX };
        // A signal is no reason to do anything else.
        let _ = poll(&mut polled, Some(&Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: 0 }));
    }

    /// Takes in those that the one before has served, by their wills.
    pub(super) fn read_wills(&mut self) {
        for_wills(&self.family.clone(), |ask, descriptors| {
            // What cannot be taken in waits for ever, and its process is told to end by nobody.
            if let Some(Err(error)) = self.take_in(ask, descriptors) {
                tracing::error!(%error, "a child of the process that is gone cannot be served");
            }
        });
    }

    /// A part of a list of views, or the last one: then all of them join.
    fn take_in(&mut self, ask: Ask, descriptors: Vec<OwnedFd>) -> Option<Result<()>> {
        let Ask::Join { process, nonce, fork, is_last, views, .. } = ask else { return None };
        self.parts.entry(nonce).or_default().extend(views);
        if !is_last {
            return None;
        }
        let views = self.parts.remove(&nonce).unwrap_or_default();
        if process == std::process::id() {
            return None; // Our own will.
        }
        let outcome = match <[OwnedFd; 2]>::try_from(descriptors) {
            Ok(descriptors) => self.join(process, nonce, &views, descriptors),
            Err(_) => Err(Errno::EMFILE), // The kernel drops what there is no room for.
        };
        super::forget_kept(fork);
        Some(outcome)
    }

    fn bury(&mut self) {
        let living = self.members.iter().filter(|member| member.gone_at.is_none()).count();
        for member in &mut self.members {
            if member.has_ended() {
                let (cache, kin) = (member.cache.clone(), member.kin);
                aside(move || cache.remove_kin(kin));
                member.gone_at = Some(Instant::now());
                (member.end, member.lasts) = (None, None);
            }
        }
        if self.members.iter().filter(|member| member.gone_at.is_none()).count() < living {
            for_wills(&self.family, |_, _| ());
        }
        super::forget_old();
        let is_over = |member: &mut Member| member.gone_at.is_some_and(|at| at.elapsed() >= ORPHANS_TIME);
        let over: Vec<Member> = self.members.extract_if(.., is_over).collect();
        if !over.is_empty() {
            aside(move || drop(over));
        }
    }

    pub(super) fn answer(&mut self, ask: Ask, mut descriptors: Vec<OwnedFd>) {
        let Some(into) = descriptors.pop() else { return };
        match ask {
            Ask::Join { .. } => {
                if let Some(outcome) = self.take_in(ask, descriptors) {
                    reply(&into, outcome);
                }
            }
            Ask::Sync { cookie, start, end, how } => {
                // It may take long, and others ask as well.
                let into = Arc::new(into);
                let asked = into.clone();
                let answer = move || reply(&asked, sync(cookie, start, end, how));
                if start_thread("omnimap-kin", answer).is_err() {
                    reply(&into, Err(Errno::EAGAIN)); // No more threads: for the child to try again.
                }
            }
        }
    }

    fn join(
        &mut self,
        process: u32,
        nonce: u64,
        views: &[JoinedView],
        [userfaultfd, lasts]: [OwnedFd; 2],
    ) -> Result<()> {
        if self.members.iter().any(|member| member.nonce == nonce) {
            return Ok(()); // Known by its will.
        }
        let end = open_process(process).map_err(|error| Errno(error.raw_os_error()))?;
        let known: Vec<Arc<Object>> = {
            let all = objects();
            views.iter().map(|view| all.get(view.cookie)).collect::<Option<_>>().ok_or(Errno::ENOENT)?
        };
        let Some(first) = known.first() else { return Ok(()) };
        let cache = first.live().cache.clone();
        let kin = cache.add_kin(userfaultfd)?;
        for (object, view) in known.iter().zip(views) {
            let start = Address(view.start as usize).of_kin(kin);
            let live = object.live();
            let made =
                live.cache.view_of_kin(&live.object, &view.request(), start, object.readahead_bytes_max);
            if let Err(error) = made {
                cache.remove_kin(kin);
                return Err(error.into());
            }
        }
        for view in views {
            // After another one served it: threads may wait whose faults that one has taken.
            cache.wake_all(Address(view.start as usize).of_kin(kin), view.length);
        }
        let (end, lasts) = (Some(end), Some(lasts));
        self.members.push(Member { process, end, lasts, nonce, gone_at: None, cache, kin, _objects: known });
        Ok(())
    }
}

fn open_process(process: u32) -> std::result::Result<OwnedFd, rustix::io::Errno> {
    pidfd_open(Pid::from_raw(process as i32).ok_or(rustix::io::Errno::SRCH)?, PidfdFlags::empty())
}

fn is_readable(end: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(end, PollFlags::IN)], Some(&now)) == Ok(1)
}

/// Does what may write to stores, for which no child that is being forked can wait.
pub(super) fn aside(work: impl FnOnce() + Send + 'static) {
    let work = Arc::new(Mutex::new(Some(work)));
    let theirs = work.clone();
    if start_thread("omnimap-kin", move || once(&theirs)).is_err() {
        once(&work);
    }
}

fn once(work: &Mutex<Option<impl FnOnce()>>) {
    let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
    work.into_iter().for_each(|work| work());
}

fn sync(cookie: u64, start: u64, end: u64, how: SyncKind) -> Result<()> {
    let object = objects().get(cookie).ok_or(Errno::ENOENT)?;
    let end = end.min(object.len());
    object.sync_range(start.min(end)..end, how)
}

fn reply(into: &OwnedFd, outcome: Result<()>) {
    let number = outcome.err().map_or(0, |errno| errno.0);
    // Who asked may be gone.
    let _ = rustix::io::write(into, &number.to_ne_bytes());
}
