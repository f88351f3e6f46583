//! Random programs of processes that fork, store, evict, unmap, exit and are killed: each load must give what it gives on
//! the kernel's mapping.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicI32, AtomicU16, Ordering};
use std::time::Duration;

use omnimap::posix::{Inheritance, MapFlags, SyncFlags};
use omnimap_testkit::Prng;

use crate::child::fork;
use crate::probe::{Raised, load, store};
use crate::subject::{Column, Subject, Thing, page, pattern};

const PAGES: u64 = 100;
const ACTORS: usize = 5;
const STEPS: usize = 60;

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Load(u8),
    Store(u8, u8),
    Evict,
    Sync,
    Unmap(u8),
    Fork(u8),
    Exit,
    Killed,
}

/// Which process, and what.
type Step = (usize, Act);

fn program(seed: u64) -> (MapFlags, Inheritance, Vec<Step>) {
    let mut random = Prng::new(seed);
    let flags = if random.below(3) == 0 { MapFlags::PRIVATE } else { MapFlags::SHARED };
    let inheritance = match random.below(8) {
        0 => Inheritance::Copy,
        1 => Inheritance::Zero,
        2 => Inheritance::None,
        3 => Inheritance::Share,
        _ => Inheritance::Natural,
    };
    let mut alive = vec![0];
    let mut forked = 1;
    let mut steps = Vec::new();
    while steps.len() < STEPS {
        let actor = alive[random.below(alive.len() as u64) as usize];
        let page = random.below(PAGES) as u8;
        let act = match random.below(24) {
            0..=9 => Act::Load(page),
            10..=17 => Act::Store(page, random.below(255) as u8 + 1),
            18 => Act::Evict,
            19 => Act::Sync,
            20 => Act::Unmap(page),
            21 | 22 if forked < ACTORS => {
                alive.push(forked);
                forked += 1;
                Act::Fork(forked as u8 - 1)
            }
            23 if alive.len() > 1 => {
                alive.retain(|a| *a != actor);
                if random.below(2) == 0 { Act::Exit } else { Act::Killed }
            }
            _ => Act::Load(page),
        };
        steps.push((actor, act));
    }
    // In the end all who live look at everything.
    steps.extend(alive.iter().flat_map(|actor| (0..PAGES as u8).map(|page| (*actor, Act::Load(page)))));
    (flags, inheritance, steps)
}

/// What all processes of a program have in common, whatever they do to their mappings.
struct Stage {
    commands: Vec<(File, File)>,
    replies: (File, File),
    /// Shared memory: the processes' numbers.
    pids: &'static [AtomicI32; ACTORS],
    /// Of the last step.
    result: &'static AtomicU16,
}

fn pipe() -> (File, File) {
    let (read, write) = rustix::pipe::pipe().unwrap();
    (read.into(), write.into())
}

impl Stage {
    fn new() -> Stage {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping; it is never unmapped.
        let shared = unsafe {
            libc::mmap(std::ptr::null_mut(), page(), libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        assert_ne!(shared, libc::MAP_FAILED);
        // SAFETY: zeros at the beginning of a page, never unmapped.
        let pids = unsafe { &*shared.cast::<[AtomicI32; ACTORS]>() };
        let behind = shared.cast::<AtomicU16>().wrapping_add(64);
        // SAFETY: the same page, behind the numbers.
        let result = unsafe { &*behind };
        Stage { commands: (0..ACTORS).map(|_| pipe()).collect(), replies: pipe(), pids, result }
    }

    /// Lets a process do something, and gives what came of it.
    fn step(&self, step: Step) -> u16 {
        let (actor, act) = step;
        if act == Act::Killed {
            // SAFETY: a process of this program.
            unsafe { libc::kill(self.pids[actor].load(Ordering::Acquire), libc::SIGKILL) };
            return 0;
        }
        let (kind, page, value) = match act {
            Act::Load(page) => (0, page, 0),
            Act::Store(page, value) => (1, page, value),
            Act::Evict => (2, 0, 0),
            Act::Sync => (3, 0, 0),
            Act::Unmap(page) => (4, page, 0),
            Act::Fork(number) => (5, number, 0),
            Act::Exit => (6, 0, 0),
            Act::Killed => unreachable!("not told, but done"),
        };
        (&self.commands[actor].1).write_all(&[kind, page, value]).unwrap();
        let mut polled = libc::pollfd {
            fd: std::os::fd::AsRawFd::as_raw_fd(&self.replies.0),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one descriptor of ours.
        let ready = unsafe { libc::poll(&raw mut polled, 1, 20_000) };
        assert_eq!(ready, 1, "no answer to {step:?} of a program");
        (&self.replies.0).read_exact(&mut [0]).unwrap();
        self.result.load(Ordering::Acquire)
    }

    /// A process: does what it is told, until it ends.
    fn act(&self, s: &Subject, actor: usize, start: usize, thing: &Thing) {
        self.pids[actor].store(std::process::id() as i32, Ordering::Release);
        (&self.replies.1).write_all(&[1]).unwrap();
        loop {
            let mut command = [0; 3];
            (&self.commands[actor].0).read_exact(&mut command).unwrap();
            let [kind, number, value] = command;
            let at = start + usize::from(number) * page() + usize::from(number);
            let told = |outcome: Result<u8, Raised>| match outcome {
                Ok(byte) => u16::from(byte),
                Err(raised) => 0x100 | raised.signal as u16,
            };
            let result = match kind {
                0 => told(load(at)),
                1 => told(store(at, value).map(|()| 0)),
                2 => {
                    if let Thing::Paged(object, _) = thing {
                        let _not_by_this_process = object.evict();
                    }
                    0
                }
                3 => {
                    // Where pages were unmapped, it says so; the rest is done.
                    let _ = s.msync(start, page() * PAGES as usize, SyncFlags::SYNC);
                    0
                }
                4 => u16::from(s.munmap(at - at % page(), page()).is_err()),
                5 => {
                    let _ = fork(|| self.act(s, usize::from(number), start, thing));
                    continue; // The child answers.
                }
                _ => 0,
            };
            self.result.store(result, Ordering::Release);
            (&self.replies.1).write_all(&[1]).unwrap();
            if kind == 6 {
                return;
            }
        }
    }
}

fn run(column: Column, seed: u64) -> Vec<(Step, u16)> {
    let (flags, inheritance, steps) = program(seed);
    let s = &Subject::new(column, false);
    let stage = Stage::new();
    let first = fork(|| {
        let object = s.object(&pattern((PAGES as usize) * page()));
        let start = s.map(PAGES as usize * page(), flags, Some(&object));
        s.minherit(start, PAGES as usize * page(), inheritance);
        stage.act(s, 0, start, &object);
    });
    (&stage.replies.0).read_exact(&mut [0]).unwrap();
    let results = steps.iter().map(|step| (*step, stage.step(*step))).collect();
    for pid in stage.pids {
        if let pid @ 1.. = pid.load(Ordering::Acquire) {
            // SAFETY: a process of this program, which may be gone already; its number is not used again so soon.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
    first.ends();
    results
}

#[test]
fn f01_random_programs_see_what_they_see_on_the_kernels_mapping() {
    crate::probe::install();
    let long = std::env::var_os("OMNIMAP_LONG").is_some();
    let programs = if long { 1000 } else { 40 };
    let first: u64 = std::env::var("OMNIMAP_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let limit = Duration::from_secs(if long { 900 } else { 120 });
    omnimap_testkit::within(limit, move || (first..first + programs).for_each(compare));
}

fn compare(seed: u64) {
    let (flags, inheritance, _) = program(seed);
    let natural = inheritance == Inheritance::Natural;
    // The kernel has no other inheritance for all of these: there, our calls on its own mapping are the oracle.
    let oracle = run(if natural { Column::Kernel } else { Column::Device }, seed);
    let ours = run(Column::Paged, seed);
    let differs = oracle.iter().zip(&ours).position(|(a, b)| a != b);
    if let Some(at) = differs {
        panic!(
            "program {seed} ({flags:?}, {inheritance:?}) differs at step {at}: {:?}, the oracle has {:#x}; before:\n{:#?}",
            ours[at],
            oracle[at].1,
            &ours[..at]
        );
    }
}
