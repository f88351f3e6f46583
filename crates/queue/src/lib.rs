//! Direct transfers to and from a file: several at a time, and their end looked for before it is slept for.
//!
//! A disk of today answers about as soon as a processor that has gone to sleep wakes up, so that a read which sleeps takes a
//! fifth longer than one that is looked for; and writes that are submitted together cost one request to the device, where
//! each alone costs one and a sleep. By io_submit(2), which containers allow where they refuse io_uring(7).
//!
//! Where the kernel has no queues, or no more of them (`fs.aio-max-nr`), every function does the same one by one, by pread(2)
//! and pwrite(2). Files that are not open with O_DIRECT may be given too, and gain nothing.

mod look;
mod transfers;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use transfers::{Queue, Request};

/// The most transfers that are under way at a time by one call.
pub const TRANSFERS_MAX: usize = 64;
/// The longest read whose end is looked for: longer ones take so long that waking up is nothing.
const LOOKED_FOR_BYTES_MAX: usize = 64 << 10;

/// One of several writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write<'a> {
    /// Where, in bytes from the file's start.
    pub offset: u64,
    /// What.
    pub bytes: &'a [u8],
}

/// Reads as pread(2) does, once; gives how many bytes came. For an access that somebody waits for.
///
/// # Errors
/// Those of pread(2), but for EINTR.
///
/// # Example
/// ```
/// # fn main() -> std::io::Result<()> {
/// let file = std::fs::File::open("Cargo.toml")?;
/// let mut name = [0; 9];
/// assert_eq!(omnimap_queue::read_at(&file, &mut name, 0)?, 9);
/// assert_eq!(&name, b"[package]");
/// # Ok(())
/// # }
/// ```
pub fn read_at(file: &File, into: &mut [u8], offset: u64) -> io::Result<usize> {
    read_awaited(file, into, offset, &mut || {})
}

/// As [`read_at`]; calls `meanwhile` again and again while it looks for the end. If it sleeps, it does not.
///
/// # Errors
/// As there.
pub fn read_awaited(
    file: &File,
    into: &mut [u8],
    offset: u64,
    meanwhile: &mut dyn FnMut(),
) -> io::Result<usize> {
    if into.len() <= LOOKED_FOR_BYTES_MAX
        && let Some(looking) = look::begin(meanwhile)
        && let Some(mut queue) = Queue::take()
    {
        let mut outcome = None;
        let submitted = queue.transfer(&mut [Request::read(file, into, offset)], Some(looking), |_, end| {
            outcome = Some(end);
        });
        if let (Ok(()), Some(outcome)) = (submitted, outcome) {
            return outcome;
        }
    }
    read_once(file, into, offset)
}

fn read_once(file: &File, into: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        match file.read_at(into, offset) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// One of several reads.
#[derive(Debug)]
pub struct Read<'a> {
    /// Where, in bytes from the file's start.
    pub offset: u64,
    /// What is to be filled.
    pub into: &'a mut [u8],
}

/// Makes several reads, each as pread(2) does, once, and calls `came` with the number and the outcome of each: once, in any
/// order. They are made in any order too.
///
/// # Errors
/// `came` is told those of pread(2), but for EINTR.
pub fn read_each(file: &File, reads: &mut [Read<'_>], mut came: impl FnMut(usize, io::Result<usize>)) {
    for (first, part) in (0..).step_by(TRANSFERS_MAX).zip(reads.chunks_mut(TRANSFERS_MAX)) {
        let mut left: Vec<usize> = (0..part.len()).collect();
        if part.len() > 1
            && let Some(mut queue) = Queue::take()
        {
            let mut requests: Vec<Request<'_>> =
                part.iter_mut().map(|read| Request::read(file, read.into, read.offset)).collect();
            // What could not be submitted is left.
            let _ = queue.transfer(&mut requests, None, |number, outcome| {
                left.retain(|waiting| *waiting != number);
                came(first + number, outcome);
            });
        }
        for number in left {
            let Read { offset, into } = &mut part[number];
            came(first + number, read_once(file, into, *offset));
        }
    }
}

/// Makes writes that do not overlap, each whole, and calls `written` with the number and the outcome of each: once, in any
/// order. They are made in any order too.
///
/// # Errors
/// `written` is told those of pwrite(2), but for EINTR; WriteZero if nothing more can be written.
pub fn write_each(file: &File, writes: &[Write<'_>], mut written: impl FnMut(usize, io::Result<()>)) {
    for (first, part) in (0..).step_by(TRANSFERS_MAX).zip(writes.chunks(TRANSFERS_MAX)) {
        let mut finish = |number: usize, begun: io::Result<usize>| {
            let Write { offset, bytes } = part[number];
            let outcome = match begun {
                Ok(done) if done == bytes.len() => Ok(()),
                Ok(done) => file.write_all_at(&bytes[done..], offset + done as u64),
                Err(error) => Err(error),
            };
            written(first + number, outcome);
        };
        let mut left: Vec<usize> = (0..part.len()).collect();
        // One alone is best made by the call for it.
        if part.len() > 1
            && let Some(mut queue) = Queue::take()
        {
            let mut requests: Vec<Request<'_>> =
                part.iter().map(|write| Request::write(file, write.bytes, write.offset)).collect();
            // What could not be submitted is left.
            let _ = queue.transfer(&mut requests, None, |number, outcome| {
                left.retain(|waiting| *waiting != number);
                finish(number, outcome);
            });
        }
        left.into_iter().for_each(|number| finish(number, Ok(0)));
    }
}
