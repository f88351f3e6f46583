//! Our own small bindings to userfaultfd(2): the crates lack POISON and need libclang.
//!
//! Source: `linux/userfaultfd.h`, ioctl_userfaultfd(2), kernel `fs/userfaultfd.c`.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;

use rustix::mm::UserfaultfdFlags;

use crate::error::During;
use crate::{Access, Address, Fault, HostError, Result, Stores};

const UFFD_API: u64 = 0xAA;

const fn ioctl_number(direction: u64, kind: u8, number: u64, bytes: usize) -> libc::Ioctl {
    (direction << 30 | (bytes as u64) << 16 | (kind as u64) << 8 | number) as libc::Ioctl
}
const READ: u64 = 2;
const READ_WRITE: u64 = 3;

/// `_IOWR`, for this file and the pagemap's.
pub(super) const fn ioctl_read_write(kind: u8, number: u64, bytes: usize) -> libc::Ioctl {
    ioctl_number(READ_WRITE, kind, number, bytes)
}

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct UffdRange {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    range: UffdRange,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Poison {
    range: UffdRange,
    mode: u64,
    updated: i64,
}

#[repr(C)]
struct WriteProtect {
    range: UffdRange,
    mode: u64,
}

#[repr(C)]
struct CopyIn {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u64,
}

const IOCTL_API: libc::Ioctl = ioctl_number(READ_WRITE, 0xAA, 0x3F, size_of::<Api>());
const IOCTL_REGISTER: libc::Ioctl = ioctl_number(READ_WRITE, 0xAA, 0x00, size_of::<Register>());
const IOCTL_UNREGISTER: libc::Ioctl = ioctl_number(READ, 0xAA, 0x01, size_of::<UffdRange>());
const IOCTL_WAKE: libc::Ioctl = ioctl_number(READ, 0xAA, 0x02, size_of::<UffdRange>());
const IOCTL_COPY: libc::Ioctl = ioctl_number(READ_WRITE, 0xAA, 0x03, size_of::<CopyIn>());
const IOCTL_WRITE_PROTECT: libc::Ioctl = ioctl_number(READ_WRITE, 0xAA, 0x06, size_of::<WriteProtect>());
const IOCTL_POISON: libc::Ioctl = ioctl_number(READ_WRITE, 0xAA, 0x08, size_of::<Poison>());
/// `USERFAULTFD_IOC_NEW` of /dev/userfaultfd.
const IOCTL_NEW: libc::Ioctl = ioctl_number(0, 0xAA, 0x00, 0);

const REGISTER_MODE_MISSING: u64 = 1;
const REGISTER_MODE_WP: u64 = 1 << 1;
const COPY_MODE_DONTWAKE: u64 = 1;
const COPY_MODE_WP: u64 = 1 << 1;
const WRITE_PROTECT_MODE_WP: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;
const PAGEFAULT_FLAG_WRITE: u64 = 1;
const PAGEFAULT_FLAG_WP: u64 = 1 << 1;

/// The optional abilities of the kernel's userfaultfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features(u64);

impl Features {
    /// Missing pages of shared memory (memfd) are reported; Linux 4.11.
    pub const MISSING_SHMEM: Features = Features(1 << 5);
    /// Shared memory can be write-protected; Linux 5.19.
    pub const WP_SHMEM: Features = Features(1 << 0 | 1 << 12);
    /// A fault raises SIGBUS instead of sending a message; Linux 4.14.
    pub const SIGBUS: Features = Features(1 << 7);
    /// A page can be made to fail with SIGBUS; Linux 6.6.
    pub const POISON: Features = Features(1 << 14);
    /// All of them by name in `linux/userfaultfd.h`.
    pub const NAMES: [(&'static str, Features); 17] = [
        ("PAGEFAULT_FLAG_WP", Features(1 << 0)),
        ("EVENT_FORK", Features(1 << 1)),
        ("EVENT_REMAP", Features(1 << 2)),
        ("EVENT_REMOVE", Features(1 << 3)),
        ("MISSING_HUGETLBFS", Features(1 << 4)),
        ("MISSING_SHMEM", Self::MISSING_SHMEM),
        ("EVENT_UNMAP", Features(1 << 6)),
        ("SIGBUS", Self::SIGBUS),
        ("THREAD_ID", Features(1 << 8)),
        ("MINOR_HUGETLBFS", Features(1 << 9)),
        ("MINOR_SHMEM", Features(1 << 10)),
        ("EXACT_ADDRESS", Features(1 << 11)),
        ("WP_HUGETLBFS_SHMEM", Features(1 << 12)),
        ("WP_UNPOPULATED", Features(1 << 13)),
        ("POISON", Self::POISON),
        ("WP_ASYNC", Features(1 << 15)),
        ("MOVE", Features(1 << 16)),
    ];

    /// Whether all of `other` are among these.
    pub fn contains(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }
}

/// By which way a userfaultfd was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// /dev/userfaultfd; serves the kernel's own accesses too.
    Device,
    /// userfaultfd(2); serves the kernel's own accesses too.
    Syscall,
    /// userfaultfd(2) with USER_MODE_ONLY: a system call on a page that is not resident answers EFAULT.
    UserModeOnly,
}

/// Who is told of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    /// Whoever reads the descriptor; the thread sleeps.
    Message,
    /// The thread, by SIGBUS.
    Signal,
}

/// An open userfaultfd.
pub(super) struct Userfaultfd {
    fd: OwnedFd,
    /// Whether shared memory can be registered for write-protection.
    exact_touches: bool,
    /// It is about the memory of another process, which may unmap it, or be gone, without a word.
    of_kin: bool,
}

impl Userfaultfd {
    /// Opens one with what the engine needs, or says which of its needs is not met.
    pub(super) fn open(notice: Notice) -> Result<Userfaultfd> {
        static SUPPORTED: OnceLock<Features> = OnceLock::new();
        let features = match SUPPORTED.get() {
            Some(known) => *known,
            None => {
                // UFFDIO_API can be called once on a descriptor, so asking costs one of its own.
                let (_, features) = Self::supported()?;
                *SUPPORTED.get_or_init(|| features)
            }
        };
        if !features.contains(Features::MISSING_SHMEM) {
            return Err(HostError::MissingFeature { missing: "MISSING_SHMEM", since: "4.11" });
        }
        if !features.contains(Features::POISON) {
            return Err(HostError::MissingFeature { missing: "POISON", since: "6.6" });
        }
        let (fd, _) = create()?;
        let exact_touches = features.contains(Features::WP_SHMEM);
        let mut wanted = Features::MISSING_SHMEM.0 | Features::POISON.0;
        if exact_touches {
            wanted |= Features::WP_SHMEM.0;
        }
        if notice == Notice::Signal {
            if !features.contains(Features::SIGBUS) || !cfg!(target_arch = "x86_64") {
                return Err(HostError::MissingFeature { missing: "SIGBUS", since: "4.14 (x86-64)" });
            }
            wanted |= Features::SIGBUS.0;
        }
        handshake(&fd, Features(wanted))?;
        Ok(Userfaultfd { fd, exact_touches, of_kin: false })
    }

    /// One that a forked child of ours has opened, for its own memory, as [`open`](Self::open) does.
    pub(super) fn of_kin(fd: OwnedFd) -> Userfaultfd {
        Userfaultfd { fd, exact_touches: true, of_kin: true }
    }

    /// Whether it failed because the other process has nothing there any more.
    fn is_gone(&self, error: &io::Error) -> bool {
        self.of_kin && matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT))
    }

    /// By which way one can be had here, and what it can do.
    pub(super) fn supported() -> Result<(Origin, Features)> {
        let (fd, origin) = create()?;
        let features = handshake(&fd, Features(0))?;
        Ok((origin, features))
    }

    /// Reports accesses to holes of the range from now on.
    ///
    /// Where it can be had, write-protection is registered too although nothing is written here: it keeps the kernel
    /// from mapping the neighbours of a page that is touched, so that it can be told which pages were
    /// (`uffd_disable_fault_around`).
    pub(super) fn register(&self, start: Address, bytes: u64) -> Result<()> {
        self.register_as(start, bytes, if self.exact_touches { REGISTER_MODE_WP } else { 0 })
    }

    /// As [`register`](Self::register), without write-protection, in place of what is registered: as long as it is so, the
    /// range can be collapsed (`collapse_pte_mapped_thp`). There are no holes in it meanwhile.
    pub(super) fn register_for_collapse(&self, start: Address, bytes: u64) -> Result<()> {
        // The kernel takes nothing away from what is registered.
        self.unregister(start, bytes)?;
        self.register_as(start, bytes, 0)
    }

    fn register_as(&self, start: Address, bytes: u64, more: u64) -> Result<()> {
        let range = UffdRange { start: start.in_process() as u64, len: bytes };
        let mode = REGISTER_MODE_MISSING | more;
        let mut request = Register { range, mode, ioctls: 0 };
        ioctl(&self.fd, IOCTL_REGISTER, &mut request).during("UFFDIO_REGISTER")
    }

    /// Reports no accesses to the range any more: holes there read as zeros, for everybody, unless nobody may access it.
    pub(super) fn unregister(&self, start: Address, bytes: u64) -> Result<()> {
        let mut range = UffdRange { start: start.in_process() as u64, len: bytes };
        ioctl(&self.fd, IOCTL_UNREGISTER, &mut range).during("UFFDIO_UNREGISTER")
    }

    /// Whether stores can be trapped; an error that says what is missing, if not.
    pub(super) fn check_traps(&self) -> Result<()> {
        if self.exact_touches {
            return Ok(());
        }
        Err(HostError::MissingFeature { missing: "WP_HUGETLBFS_SHMEM", since: "5.19" })
    }

    /// Write-protects the pages of the range, those that are not there too (by markers in the page table), or takes that
    /// back and wakes who waits for it.
    pub(super) fn protect(&self, start: Address, bytes: u64, stores: Stores) -> Result<()> {
        let mode = if stores == Stores::Trap { WRITE_PROTECT_MODE_WP } else { 0 };
        let mut request =
            WriteProtect { range: UffdRange { start: start.in_process() as u64, len: bytes }, mode };
        loop {
            match ioctl(&self.fd, IOCTL_WRITE_PROTECT, &mut request) {
                Ok(()) => return Ok(()),
                // The address space is just being changed by another thread.
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => std::thread::yield_now(),
                Err(e) if self.of_kin && e.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
                Err(e) if self.is_gone(&e) => return self.protect_what_is_left(start, bytes, stores),
                Err(e) => return Err(e).during("UFFDIO_WRITEPROTECT"),
            }
        }
    }

    /// The child has mapped something else in the range, where the kernel stops: what lies behind it is protected part by
    /// part.
    fn protect_what_is_left(&self, start: Address, bytes: u64, stores: Stores) -> Result<()> {
        let page_bytes = super::page_bytes();
        if bytes <= page_bytes {
            return Ok(());
        }
        let half = (bytes / 2).next_multiple_of(page_bytes);
        self.protect(start, half, stores)?;
        self.protect(Address(start.0 + half as usize), bytes - half, stores)
    }

    /// Puts bytes into holes, whole pages of the range, without waking anybody; each page appears at once.
    pub(super) fn copy(&self, start: Address, bytes: &[u8], stores: Stores) -> Result<()> {
        let trap = if stores == Stores::Trap { COPY_MODE_WP } else { 0 };
        let page_bytes = super::page_bytes() as usize;
        let mut done = 0;
        while done < bytes.len() {
            let mut request = CopyIn {
                to: (start.in_process() + done) as u64,
                from: bytes[done..].as_ptr() as u64,
                len: (bytes.len() - done) as u64,
                mode: COPY_MODE_DONTWAKE | trap,
                copied: 0,
            };
            match ioctl(&self.fd, IOCTL_COPY, &mut request) {
                Ok(()) => return Ok(()),
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => done += request.copied.max(0) as usize,
                // Two mappings of the kernel's, protected in different ways: a part at a time.
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) && bytes.len() - done > page_bytes => {
                    let half = ((bytes.len() - done) / 2).next_multiple_of(page_bytes);
                    self.copy(Address(start.0 + done), &bytes[done..done + half], stores)?;
                    done += half;
                }
                Err(e) => return Err(e).during("UFFDIO_COPY"),
            }
        }
        Ok(())
    }

    pub(super) fn wake(&self, start: Address, bytes: u64) -> Result<()> {
        let mut range = UffdRange { start: start.in_process() as u64, len: bytes };
        ioctl(&self.fd, IOCTL_WAKE, &mut range).during("UFFDIO_WAKE")
    }

    /// Makes each hole in the range a poisoned page; pages that are there, or poisoned already, stay as they are.
    pub(super) fn poison(&self, start: Address, bytes: u64, page_bytes: u64) -> Result<()> {
        let mut done = 0;
        while done < bytes {
            let mut request = Poison {
                range: UffdRange { start: start.in_process() as u64 + done, len: bytes - done },
                mode: 0,
                updated: 0,
            };
            match ioctl(&self.fd, IOCTL_POISON, &mut request) {
                Ok(()) => return Ok(()),
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => done += request.updated.max(0) as u64,
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => done += page_bytes,
                Err(e) if self.is_gone(&e) => return Ok(()),
                Err(e) => return Err(e).during("UFFDIO_POISON"),
            }
        }
        Ok(())
    }

    /// Poisons a page that is a hole; `false`, if something is there.
    pub(super) fn poison_one(&self, page: Address, page_bytes: u64) -> Result<bool> {
        loop {
            let range = UffdRange { start: page.in_process() as u64, len: page_bytes };
            match ioctl(&self.fd, IOCTL_POISON, &mut Poison { range, mode: 0, updated: 0 }) {
                Ok(()) => return Ok(true),
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => std::thread::yield_now(),
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => return Ok(false),
                Err(e) => return Err(e).during("UFFDIO_POISON"),
            }
        }
    }

    /// Reads one message, without waiting.
    pub(super) fn take(&self) -> Result<Option<Fault>> {
        let mut message = Message::default();
        loop {
            // SAFETY: `message` is 32 writable bytes, the size of `struct uffd_msg`, and any bit pattern is valid.
            let got =
                unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut message).cast(), size_of::<Message>()) };
            if got == size_of::<Message>() as isize {
                if message.event != EVENT_PAGEFAULT {
                    continue; // We ask for no other events; a kernel that sends one anyway is not obeyed.
                }
                let access = if message.flags & PAGEFAULT_FLAG_WP != 0 {
                    Access::WriteTrapped
                } else if message.flags & PAGEFAULT_FLAG_WRITE != 0 {
                    Access::Write
                } else {
                    Access::Read
                };
                return Ok(Some(Fault { address: Address(message.address as usize), access }));
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EAGAIN) => return Ok(None),
                Some(libc::EINTR) => {}
                _ => return Err(error).during("read(userfaultfd)"),
            }
        }
    }
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn ioctl<T>(fd: &OwnedFd, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    // SAFETY: every caller pairs a request with the struct that the kernel declares for it; the kernel writes at
    // most that struct. None of the requests used here changes bytes that Rust code can hold a reference to.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn handshake(fd: &OwnedFd, wanted: Features) -> Result<Features> {
    let mut api = Api { api: UFFD_API, features: wanted.0, ioctls: 0 };
    ioctl(fd, IOCTL_API, &mut api).during("UFFDIO_API")?;
    Ok(Features(api.features))
}

fn create() -> Result<(OwnedFd, Origin)> {
    let device = match create_by_device() {
        Ok(fd) => return Ok((fd, Origin::Device)),
        Err(e) => e,
    };
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    if let Ok(fd) = create_by_syscall(flags) {
        return Ok((fd, Origin::Syscall));
    }
    match create_by_syscall(flags | UserfaultfdFlags::from_bits_retain(1)) {
        Ok(fd) => Ok((fd, Origin::UserModeOnly)),
        // A limit of the process, and no refusal.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)) => {
            Err(e).during("userfaultfd(2)")
        }
        Err(syscall) => Err(HostError::NoUserfaultfd { device, syscall }),
    }
}

fn create_by_syscall(flags: UserfaultfdFlags) -> io::Result<OwnedFd> {
    // SAFETY: creating a userfaultfd changes no memory; the obligations arise where ranges are registered.
    unsafe { rustix::mm::userfaultfd(flags) }.map_err(Into::into)
}

fn create_by_device() -> io::Result<OwnedFd> {
    let device =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open("/dev/userfaultfd")?;
    // SAFETY: the request takes open flags by value and answers with a new descriptor.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), IOCTL_NEW, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just created for us and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
