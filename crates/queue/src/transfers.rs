//! The kernel's queue (io_setup(2), io_submit(2), io_getevents(2)), safe: no transfer outlives the borrow of its bytes.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::sync::Mutex;

use crate::TRANSFERS_MAX;
use crate::look::Looking;

/// Queues that nobody uses, which are kept: more are made when more threads transfer at a time.
const UNUSED_MAX: usize = 32;

/// `IOCB_CMD_PREAD` and `IOCB_CMD_PWRITE` (`linux/aio_abi.h`).
const PREAD: u16 = 0;
const PWRITE: u16 = 1;

/// `struct iocb`.
#[repr(C)]
#[derive(Default)]
struct ControlBlock {
    data: u64,
    key_and_flags: u64,
    opcode: u16,
    priority: i16,
    descriptor: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    eventfd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

/// A transfer, and the borrow of its bytes.
pub(crate) struct Request<'a> {
    block: ControlBlock,
    _bytes: PhantomData<&'a mut [u8]>,
}

impl<'a> Request<'a> {
    pub(crate) fn read(file: &'a File, into: &'a mut [u8], offset: u64) -> Request<'a> {
        Self::new(PREAD, file, into.as_mut_ptr(), into.len(), offset)
    }

    pub(crate) fn write(file: &'a File, bytes: &'a [u8], offset: u64) -> Request<'a> {
        Self::new(PWRITE, file, bytes.as_ptr(), bytes.len(), offset)
    }

    fn new(opcode: u16, file: &'a File, buffer: *const u8, bytes: usize, offset: u64) -> Request<'a> {
        let block = ControlBlock {
            opcode,
            descriptor: file.as_raw_fd() as u32,
            buffer: buffer as u64,
            bytes: bytes as u64,
            offset: offset as i64,
            ..ControlBlock::default()
        };
        Request { block, _bytes: PhantomData }
    }
}

/// A queue of this process, this thread's as long as it has it.
pub(crate) struct Queue {
    id: libc::c_ulong,
    process: u32,
}

/// A child has its parent's list, and none of the queues.
static UNUSED: Mutex<Vec<Queue>> = Mutex::new(Vec::new());

impl Queue {
    /// One that nobody uses; nothing if there are none to be had.
    pub(crate) fn take() -> Option<Queue> {
        let process = std::process::id();
        // Never waited for: a forked child may have the lock as another thread held it.
        if let Ok(mut unused) = UNUSED.try_lock() {
            while let Some(queue) = unused.pop() {
                if queue.process == process {
                    return Some(queue);
                }
            }
        }
        let mut id: libc::c_ulong = 0;
        // SAFETY: the kernel writes the new queue's number.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, TRANSFERS_MAX as libc::c_long, &raw mut id) };
        (made == 0).then_some(Queue { id, process })
    }

    /// Submits all, and calls `ended` with the number and the outcome of each of them as they end: bytes, or why not.
    ///
    /// # Errors
    /// If not all could be submitted; those that were have ended.
    pub(crate) fn transfer(
        &mut self,
        requests: &mut [Request<'_>],
        mut looking: Option<Looking<'_>>,
        mut ended: impl FnMut(usize, io::Result<usize>),
    ) -> io::Result<()> {
        assert!(requests.len() <= TRANSFERS_MAX, "no more transfers than the queue has places");
        for (number, request) in requests.iter_mut().enumerate() {
            request.block.data = number as u64;
        }
        let mut blocks = [std::ptr::null_mut::<ControlBlock>(); TRANSFERS_MAX];
        for (block, request) in blocks.iter_mut().zip(requests.iter_mut()) {
            *block = &raw mut request.block;
        }
        let mut under_way = UnderWay { queue: self, count: 0 };
        let mut submitted = 0;
        let mut outcome = Ok(());
        while submitted < requests.len() {
            match under_way.submit(&mut blocks[submitted..requests.len()]) {
                Ok(count) => submitted += count,
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        while under_way.count > 0 {
            let mut events = [Event::default(); TRANSFERS_MAX];
            for event in under_way.next(&mut events, looking.take()) {
                let failed = || Err(io::Error::from_raw_os_error(-event.result as i32));
                let outcome = usize::try_from(event.result).map_or_else(|_| failed(), Ok);
                ended(event.data as usize, outcome);
            }
        }
        outcome
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return; // The number may be another queue's here.
        }
        if let Ok(mut unused) = UNUSED.try_lock()
            && unused.len() < UNUSED_MAX
        {
            unused.push(Queue { id: self.id, process: self.process });
            return;
        }
        // SAFETY: nothing is under way, and nobody else has the number.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.id) };
    }
}

/// Transfers that the kernel is making: waited for even if this is dropped early, for their bytes are borrowed.
struct UnderWay<'a> {
    queue: &'a Queue,
    count: usize,
}

impl UnderWay<'_> {
    /// Gives how many of the blocks were taken: at least one.
    fn submit(&mut self, blocks: &mut [*mut ControlBlock]) -> io::Result<usize> {
        let (id, length) = (self.queue.id, blocks.len() as libc::c_long);
        // SAFETY: the blocks, and the bytes that they are about, are borrowed until the last transfer has ended.
        let count = unsafe { libc::syscall(libc::SYS_io_submit, id, length, blocks.as_mut_ptr()) };
        match usize::try_from(count) {
            Ok(0) => Err(io::ErrorKind::WouldBlock.into()),
            Ok(count) => {
                self.count += count;
                Ok(count)
            }
            Err(_) => Err(io::Error::last_os_error()),
        }
    }

    /// Those that have ended: at least one, which is waited for.
    fn next<'e>(
        &mut self,
        events: &'e mut [Event; TRANSFERS_MAX],
        looking: Option<Looking<'_>>,
    ) -> &'e [Event] {
        let mut found = 0;
        if let Some(mut looking) = looking {
            // Some file systems do a transfer while it is submitted.
            found = self.ended(events, 0);
            while found == 0 && looking.goes_on() {
                found = self.ended(events, 0);
            }
            looking.ended(found > 0);
        }
        while found == 0 {
            found = self.ended(events, 1);
        }
        self.count -= found;
        &events[..found]
    }

    /// How many have ended, waiting for `least`; none if a signal came first.
    fn ended(&self, events: &mut [Event; TRANSFERS_MAX], least: libc::c_long) -> usize {
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let limit = if least == 0 { &raw const at_once } else { std::ptr::null() };
        let (id, most) = (self.queue.id, TRANSFERS_MAX as libc::c_long);
        // SAFETY: the kernel writes at most so many events, and reads the time.
        let count =
            unsafe { libc::syscall(libc::SYS_io_getevents, id, least, most, events.as_mut_ptr(), limit) };
        usize::try_from(count).unwrap_or(0)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut events = [Event::default(); TRANSFERS_MAX];
        while self.count > 0 {
            self.next(&mut events, None);
        }
    }
}
