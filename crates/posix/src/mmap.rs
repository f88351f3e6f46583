//! mmap(2).

use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use omnimap_host::linux::calls;
use omnimap_host::{Address, Place, Protection, Sharing, ViewRequest};

use crate::address_space::{Leaving, space};
use crate::errno::{Errno, Result};
use crate::flags::{Advice, LockAll, MapFlags, Prot};
use crate::mapping::{Inheritance, Kind, Lock, Mapping};
use crate::mlock::{keep_new, may_lock};
use crate::object::{Object, Rights};
use crate::range::{addresses_end, is_aligned, pointer, whole_pages};

/// What is to be mapped.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// Nothing: zeros. [`MapFlags::ANONYMOUS`] is set by it.
    Anonymous,
    /// What a descriptor of the kernel's is of: a file, a device, shared memory. One that is not open is `EBADF`.
    Descriptor(RawFd),
    /// A paged object.
    Object(&'a Arc<Object>),
}

impl<'a> From<BorrowedFd<'a>> for Source<'a> {
    fn from(fd: BorrowedFd<'a>) -> Source<'a> {
        Source::Descriptor(fd.as_raw_fd())
    }
}

impl<'a> From<&'a Arc<Object>> for Source<'a> {
    fn from(object: &'a Arc<Object>) -> Source<'a> {
        Source::Object(object)
    }
}

/// Maps `length` bytes of an object, from `offset` on, and gives the address (mmap(2)).
///
/// The address is a hint, unless `flags` has [`FIXED`](MapFlags::FIXED) or
/// [`FIXED_NOREPLACE`](MapFlags::FIXED_NOREPLACE); null leaves it to the kernel. `offset` is a multiple of the page size; the
/// length is rounded up to pages. The range may lie behind the object's end, where accesses raise SIGBUS until the object
/// is that long. With a paged object, `POPULATE` fetches the range, as far as it fits in the budget, and `LOCKED` keeps it.
///
/// # Errors
/// The kernel's (mmap(2), "ERRORS"), of a paged object as of a file: `EINVAL` for a length of 0, an offset or a fixed
/// address that is not aligned, no sharing; `EACCES` for a shared writable mapping of an object that was opened read-only;
/// `EBADF`, `EEXIST`, `ENODEV`, `ENOMEM`, `EOVERFLOW`, `EPERM`; `EAGAIN` where too much would be locked.
///
/// # Safety
/// With [`FIXED`](MapFlags::FIXED), nothing that is mapped in the range is used by code that does not know of it.
pub unsafe fn mmap<'a>(
    address: *mut c_void,
    length: usize,
    prot: Prot,
    flags: MapFlags,
    source: impl Into<Source<'a>>,
    offset: i64,
) -> Result<*mut c_void> {
    let asked = Asked { address: crate::range::address(address), length, prot, flags, offset };
    match source.into() {
        Source::Object(object) if !flags.contains(MapFlags::ANONYMOUS) => asked.paged(object),
        Source::Descriptor(fd) if !flags.contains(MapFlags::ANONYMOUS) => asked.kernel(Some(fd)),
        _ => Asked { flags: flags | MapFlags::ANONYMOUS, ..asked }.kernel(None),
    }
    .map(pointer)
}

/// The flags that `SHARED_VALIDATE` lets pass: older than itself (`LEGACY_MAP_MASK`).
const KNOWN: MapFlags = MapFlags(
    libc::MAP_TYPE
        | libc::MAP_FIXED
        | libc::MAP_ANONYMOUS
        | libc::MAP_GROWSDOWN
        | libc::MAP_DENYWRITE
        | libc::MAP_EXECUTABLE
        | libc::MAP_LOCKED
        | libc::MAP_NORESERVE
        | libc::MAP_POPULATE
        | libc::MAP_NONBLOCK
        | libc::MAP_STACK
        | libc::MAP_HUGETLB
        | MapFlags::UNINITIALIZED.0
        | MapFlags::BELOW_2GIB.0
        // MAP_ABOVE4G; sizes of huge pages.
        | 0x80
        | libc::MAP_HUGE_2MB
        | libc::MAP_HUGE_1GB,
);

/// Numbers for bytes of shared anonymous memory that no others have, with some between two objects.
pub(crate) fn number(length: usize) -> u64 {
    static NUMBERED: AtomicU64 = AtomicU64::new(0);
    NUMBERED.fetch_add(2 * whole_pages(length).unwrap_or(0) as u64, Ordering::Relaxed)
}

/// The arguments.
struct Asked {
    address: Address,
    length: usize,
    prot: Prot,
    flags: MapFlags,
    offset: i64,
}

impl Asked {
    fn is_fixed(&self) -> bool {
        self.flags.contains(MapFlags::FIXED) && !self.flags.contains(MapFlags::FIXED_NOREPLACE)
    }

    fn sharing(&self) -> Result<Sharing> {
        match MapFlags(self.flags.0 & libc::MAP_TYPE) {
            MapFlags::SHARED | MapFlags::SHARED_VALIDATE => Ok(Sharing::Shared),
            MapFlags::PRIVATE => Ok(Sharing::Private),
            _ => Err(Errno::EINVAL),
        }
    }

    /// The kernel's own mapping.
    fn kernel(&self, fd: Option<RawFd>) -> Result<Address> {
        let mut space = space();
        let range = self.address.0..self.address.0.saturating_add(whole_pages(self.length).unwrap_or(0));
        let over_paged = self.is_fixed() && is_aligned(range.start) && space.has_paged(&range);
        if over_paged && range.end > addresses_end() {
            return Err(Errno::ENOMEM);
        }
        // In the place of a paged view it is made elsewhere first: an error must leave that as it is.
        let flags = if over_paged { self.flags.without(MapFlags::FIXED) } else { self.flags };
        let made = self.call(fd, flags)?;
        let (made, leaving) = if over_paged {
            let mut leaving = space.give_up(&range);
            let how = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            // SAFETY: nobody knows the new mapping yet; the caller answers for what is replaced.
            match unsafe { calls::mremap(made, range.len(), range.len(), how, self.address) } {
                Ok(made) => (made, leaving),
                Err(error) => {
                    // SAFETY: made here, and not known to anybody.
                    let _ = unsafe { calls::munmap(made, range.len()) };
                    leaving.stays(&mut space);
                    drop(space);
                    leaving.is_gone();
                    return Err(error.into());
                }
            }
        } else {
            let length = whole_pages(self.length).unwrap_or(self.length);
            (made, space.give_up(&(made.0..made.0.saturating_add(length))))
        };
        let kind = if fd.is_some() { Kind::Kernel } else { Kind::Anonymous };
        // A kind that the kernel knows, and we do not, is private (MAP_DROPPABLE).
        let sharing = self.sharing().unwrap_or(Sharing::Private);
        let offset = match (fd, sharing) {
            (Some(_), _) => self.offset as u64,
            (None, Sharing::Shared) => number(self.length),
            (None, Sharing::Private) => 0,
        };
        let lock = self.lock(space.lock_future);
        space.insert(Mapping { lock, ..self.mapping(made, kind, offset, sharing) });
        drop(space);
        leaving.is_gone();
        Ok(made)
    }

    fn call(&self, fd: Option<RawFd>, flags: MapFlags) -> Result<Address> {
        // SAFETY: only passed through to the kernel, which checks it; the caller answers for what is replaced.
        let answer = unsafe {
            calls::mmap(self.address, self.length, self.prot.0, flags.0, fd.unwrap_or(-1), self.offset)
        };
        Ok(answer?)
    }

    fn paged(&self, object: &Arc<Object>) -> Result<Address> {
        let mut space = space();
        let lock = self.lock(space.lock_future);
        let request = self.request(object, lock)?;
        object.check_served_here()?;
        let length = request.length as usize;
        let mut mapping =
            self.mapping(Address(0), Kind::Paged(object.clone()), request.offset, request.sharing);
        if lock != Lock::No {
            // Whether it is too much for the budget: an error must leave what is to be replaced.
            let taken = object.live().bytes.lock(mapping.pages());
            taken
                .map_err(|_| if self.is_refused_by_others(length) { Errno::EEXIST } else { Errno::EAGAIN })?;
            mapping.lock = lock;
        }
        let mut leaving = if self.is_fixed() {
            space.give_up(&(self.address.0..self.address.0.saturating_add(length)))
        } else {
            Leaving::nothing()
        };
        let placed =
            object.live().cache.place_as(&object.live().object, &request, object.readahead_bytes_max);
        let made = match placed {
            Ok(made) => made,
            Err(error) => {
                mapping.release_lock();
                leaving.stays(&mut space);
                drop(space);
                leaving.is_gone();
                // Of locks there has been no question yet: there is no memory for a thread.
                let errno = Errno::from(error);
                return Err(if errno == Errno::EAGAIN { Errno::ENOMEM } else { errno });
            }
        };
        mapping.addresses = made.0..made.0 + length;
        space.insert(mapping.clone());
        drop(space);
        leaving.is_gone();
        if let Err(error) = keep_new(&mapping) {
            // SAFETY: made here, and not known to anybody.
            unsafe { crate::munmap(pointer(made), length) }?;
            return Err(error);
        }
        let populates = self.flags.contains(MapFlags::POPULATE) && !self.flags.contains(MapFlags::NONBLOCK);
        if populates && self.prot.intersects(Prot::READ | Prot::WRITE | Prot::EXEC) {
            // Best effort: what cannot be fetched is told to whoever accesses it.
            let fetched = object.live().bytes.prefetch(&[mapping.bytes_inside(object)]);
            if fetched.and_then(omnimap_core::Prefetch::wait).is_ok_and(|all| all.bytes_left_out == 0) {
                // What was there already is in other views' page tables alone.
                // SAFETY: changes no byte.
                let _ = unsafe { calls::madvise(made, length, libc::MADV_POPULATE_READ) };
            }
        }
        Ok(made)
    }

    /// Checks the arguments in the kernel's order (`ksys_mmap_pgoff`, `do_mmap`).
    fn request(&self, object: &Object, lock: Lock) -> Result<ViewRequest> {
        if !is_aligned(self.offset as usize) || self.length == 0 || self.flags.contains(MapFlags::HUGETLB) {
            return Err(Errno::EINVAL);
        }
        let length = whole_pages(self.length).ok_or(Errno::ENOMEM)?;
        let place = self.place(length)?;
        if lock != Lock::No && !self.is_refused_by_others(length) {
            may_lock(length)?;
        }
        let sharing = match self.check_sharing(object, length) {
            Err(_) if self.is_refused_by_others(length) => return Err(Errno::EEXIST),
            answer => answer?,
        };
        let protection = protection_of(self.prot);
        let offset = self.offset as u64;
        Ok(ViewRequest { offset, length: length as u64, place, protection, sharing })
    }

    fn check_sharing(&self, object: &Object, length: usize) -> Result<Sharing> {
        if self.offset < 0 || self.offset.checked_add_unsigned(length as u64).is_none() {
            return Err(Errno::EOVERFLOW);
        }
        let sharing = self.sharing()?;
        let validated = MapFlags(self.flags.0 & libc::MAP_TYPE) == MapFlags::SHARED_VALIDATE;
        if validated && self.flags.without(KNOWN) != MapFlags(0) {
            return Err(Errno::EOPNOTSUPP);
        }
        let writes = self.prot.contains(Prot::WRITE) && sharing == Sharing::Shared;
        if writes && object.rights == Rights::ReadOnly {
            return Err(Errno::EACCES);
        }
        if self.flags.contains(MapFlags::GROWSDOWN) {
            return Err(Errno::EINVAL);
        }
        Ok(sharing)
    }

    fn place(&self, length: usize) -> Result<Place> {
        let fixed = self.flags.intersects(MapFlags::FIXED | MapFlags::FIXED_NOREPLACE);
        if length > addresses_end() {
            return Err(Errno::ENOMEM);
        }
        if fixed && self.address.0.checked_add(length).is_none_or(|end| end > addresses_end()) {
            return Err(Errno::ENOMEM);
        }
        if fixed && !is_aligned(self.address.0) {
            return Err(Errno::EINVAL);
        }
        if fixed && self.address.0 == 0 {
            return Err(Errno::EPERM); // As for all but the privileged (mmap_min_addr).
        }
        Ok(if self.flags.contains(MapFlags::FIXED_NOREPLACE) {
            Place::empty_at(self.address)
        } else if self.is_fixed() {
            // SAFETY: the caller of mmap promised it.
            unsafe { Place::over(self.address) }
        } else if self.flags.contains(MapFlags::BELOW_2GIB) {
            Place::low()
        } else {
            Place::near(Address(self.address.0 - self.address.0 % crate::range::page_bytes()))
        })
    }

    /// Whether it may replace nothing, and something is mapped in the range.
    fn is_refused_by_others(&self, length: usize) -> bool {
        if !self.flags.contains(MapFlags::FIXED_NOREPLACE) {
            return false;
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: replaces nothing.
        match unsafe { calls::mmap(self.address, length, Prot::NONE.0, flags, -1, 0) } {
            Ok(made) => {
                // SAFETY: made here.
                let _ = unsafe { calls::munmap(made, length) };
                false
            }
            Err(errno) => errno == libc::EEXIST,
        }
    }

    fn lock(&self, future: Option<LockAll>) -> Lock {
        match future {
            _ if self.flags.contains(MapFlags::LOCKED) => Lock::Yes,
            Some(how) if how.contains(LockAll::ONFAULT) => Lock::OnFault,
            Some(_) => Lock::Yes,
            None => Lock::No,
        }
    }

    fn mapping(&self, made: Address, kind: Kind, offset: u64, sharing: Sharing) -> Mapping {
        let length = whole_pages(self.length).unwrap_or(self.length);
        Mapping {
            addresses: made.0..made.0 + length,
            kind,
            offset,
            // mmap(2) takes any other bits, and mprotect(2) does not.
            prot: Prot(self.prot.0 & (Prot::READ | Prot::WRITE | Prot::EXEC).0),
            sharing,
            inheritance: Inheritance::Natural,
            lock: Lock::No,
            advice: Advice::NORMAL,
        }
    }
}

pub(crate) fn protection_of(prot: Prot) -> Protection {
    Protection {
        read: prot.contains(Prot::READ),
        write: prot.contains(Prot::WRITE),
        execute: prot.contains(Prot::EXEC),
    }
}
