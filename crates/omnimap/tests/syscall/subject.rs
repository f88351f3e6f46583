//! What the tests run on: the kernel's calls, or ours.

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use omnimap::MapOptions;
use omnimap::posix::{
    self, Advice, Errno, Inheritance, LockAll, LockOn, MapFlags, Object, Prot, RemapFlags, Rights, Source,
    SyncFlags,
};

use crate::probe;

/// Whose calls they are, and what kind of objects is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Column {
    /// The kernel's calls on a file, or on anonymous memory: the oracle.
    Kernel,
    /// Ours on a paged object.
    Paged,
    /// Ours on anonymous memory.
    Anonymous,
    /// Ours on a file of the kernel's, or a device.
    Device,
}

/// Runs a test in a column, on a thread of its own, with a limit.
///
/// The kernel is asked twice where the anonymous column has the test too: about a file, and about anonymous memory.
pub(crate) fn run(column: &str, columns: &[&str], check: fn(&Subject)) {
    let column = match column {
        "kernel" => Column::Kernel,
        "paged" => Column::Paged,
        "anonymous" => Column::Anonymous,
        "device" => Column::Device,
        other => panic!("no column is called {other}"),
    };
    probe::install();
    let also_anonymous = column == Column::Kernel && columns.contains(&"anonymous");
    omnimap_testkit::within(Duration::from_secs(60), move || {
        check(&Subject::new(column, column == Column::Anonymous));
        if also_anonymous {
            check(&Subject::new(column, true));
        }
    });
}

/// As [`run`], in a process of its own.
pub(crate) fn run_alone(column: &str, columns: &[&str], check: fn(&Subject)) {
    let name = std::thread::current().name().expect("the name of the test").to_owned();
    match omnimap_testkit::in_child(&name, Duration::from_secs(60)) {
        None => run(column, columns, check),
        Some(output) => {
            let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: {said}", output.status);
        }
    }
}

pub(crate) struct Subject {
    pub(crate) column: Column,
    /// [`memory`](Self::memory) is anonymous.
    anonymous: bool,
    budget_pages: u64,
    /// How many were made.
    objects: AtomicUsize,
    directory: tempfile::TempDir,
}

/// Something to be mapped.
pub(crate) enum Thing {
    File(File, PathBuf),
    Paged(Arc<Object>, PathBuf),
}

pub(crate) const RW: Prot = Prot(libc::PROT_READ | libc::PROT_WRITE);
pub(crate) const SHARED: MapFlags = MapFlags::SHARED;
pub(crate) const PRIVATE: MapFlags = MapFlags::PRIVATE;
/// capabilities(7).
pub(crate) const CAP_IPC_LOCK: u32 = 14;
pub(crate) const SIGBUS: Option<i32> = Some(libc::SIGBUS);
pub(crate) const SIGSEGV: Option<i32> = Some(libc::SIGSEGV);

/// No object.
pub(crate) const NOTHING: Option<&Thing> = None;

pub(crate) fn page() -> usize {
    omnimap::machine::page_bytes() as usize
}

/// Bytes that differ from page to page and within one.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 + i / page() * 7 + 1) as u8 | 1).collect()
}

type Result<T> = std::result::Result<T, Errno>;

fn done(answer: i32) -> Result<()> {
    if answer == 0 { Ok(()) } else { Err(last()) }
}

fn at(address: *mut c_void) -> Result<usize> {
    if address == libc::MAP_FAILED { Err(last()) } else { Ok(address as usize) }
}

fn last() -> Errno {
    Errno(std::io::Error::last_os_error().raw_os_error().unwrap())
}

impl Subject {
    pub(crate) fn new(column: Column, anonymous: bool) -> Subject {
        Subject { anonymous, ..Subject::in_directory(column, &std::env::temp_dir(), 64) }
    }

    /// One whose files are somewhere, and whose paged objects have a budget each.
    pub(crate) fn in_directory(column: Column, parent: &Path, budget_pages: u64) -> Subject {
        let directory = tempfile::tempdir_in(parent).unwrap();
        Subject { column, anonymous: false, budget_pages, objects: AtomicUsize::new(0), directory }
    }

    pub(crate) fn is_paged(&self) -> bool {
        self.column == Column::Paged
    }

    /// Whether [`memory`](Self::memory) is anonymous.
    pub(crate) fn is_anonymous(&self) -> bool {
        self.anonymous
    }

    /// Memory that holds some bytes, and can be read and written: of an object, or anonymous.
    pub(crate) fn memory(&self, bytes: &[u8], flags: MapFlags) -> (Option<Thing>, usize) {
        if self.anonymous {
            let start = self.map(bytes.len(), flags, None);
            for (i, byte) in bytes.iter().enumerate() {
                probe::store(start + i, *byte).unwrap();
            }
            return (None, start);
        }
        let object = self.object(bytes);
        let start = self.map(bytes.len(), flags, Some(&object));
        (Some(object), start)
    }

    fn is_kernel(&self) -> bool {
        self.column == Column::Kernel
    }

    /// Whether something can be mapped that has bytes already.
    pub(crate) fn has_objects(&self) -> bool {
        self.column != Column::Anonymous
    }

    /// A path for a file of the test.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// An object that can be read and written.
    pub(crate) fn object(&self, bytes: &[u8]) -> Thing {
        self.object_as("object", bytes, Rights::ReadWrite)
    }

    /// An object that was opened to be read.
    pub(crate) fn read_only(&self, bytes: &[u8]) -> Thing {
        self.object_as("read-only", bytes, Rights::ReadOnly)
    }

    /// An object of a name, and of a file of its own.
    fn object_as(&self, name: &str, bytes: &[u8], rights: Rights) -> Thing {
        let path = self.path(&format!("{name}-{}", self.objects.fetch_add(1, Ordering::Relaxed)));
        std::fs::write(&path, bytes).unwrap();
        self.open(&path, rights)
    }

    pub(crate) fn open(&self, path: &Path, rights: Rights) -> Thing {
        let writes = rights == Rights::ReadWrite;
        if self.column == Column::Paged {
            let mut options = MapOptions::new();
            options.budget(self.budget_pages * page() as u64);
            let object = if writes { options.open_object_mut(path) } else { options.open_object(path) };
            return Thing::Paged(object.unwrap(), path.to_owned());
        }
        Thing::File(OpenOptions::new().read(true).write(writes).open(path).unwrap(), path.to_owned())
    }

    /// With address 0 it is put where no other test's mappings come, so that what is unmapped stays so.
    pub(crate) fn mmap(
        &self,
        address: usize,
        length: usize,
        prot: Prot,
        flags: MapFlags,
        thing: Option<&Thing>,
        offset: i64,
    ) -> Result<usize> {
        let source = match thing {
            None => Source::Anonymous,
            Some(Thing::File(file, _)) => Source::Descriptor(file.as_raw_fd()),
            Some(Thing::Paged(object, _)) => Source::Object(object),
        };
        let placed = MapFlags::FIXED | MapFlags::FIXED_NOREPLACE | MapFlags::BELOW_2GIB;
        let anywhere = address == 0 && length < 1 << 40 && !flags.intersects(placed);
        let address = if anywhere { free_addresses(length) } else { address };
        self.mmap_source(address, length, prot, flags, source, offset)
    }

    pub(crate) fn mmap_source(
        &self,
        address: usize,
        length: usize,
        prot: Prot,
        flags: MapFlags,
        source: Source<'_>,
        offset: i64,
    ) -> Result<usize> {
        let address = address as *mut c_void;
        if !self.is_kernel() {
            // SAFETY: tests map where they have mapped before, or where nothing is.
            return unsafe { posix::mmap(address, length, prot, flags, source, offset) }.map(|a| a as usize);
        }
        let (fd, flags) = match source {
            Source::Descriptor(fd) => (fd, flags),
            _ => (-1, flags | MapFlags::ANONYMOUS),
        };
        // SAFETY: as above.
        at(unsafe { libc::mmap(address, length, prot.0, flags.0, fd, offset) })
    }

    /// As [`mmap`](Self::mmap), where that must work: anywhere, readable and writable.
    pub(crate) fn map(&self, length: usize, flags: MapFlags, thing: Option<&Thing>) -> usize {
        self.mmap(0, length, Prot::READ | Prot::WRITE, flags, thing, 0).unwrap()
    }

    pub(crate) fn munmap(&self, address: usize, length: usize) -> Result<()> {
        if self.is_kernel() {
            // SAFETY: tests unmap what they mapped.
            return done(unsafe { libc::munmap(address as *mut _, length) });
        }
        // SAFETY: as above.
        unsafe { posix::munmap(address as *mut _, length) }
    }

    pub(crate) fn mprotect(&self, address: usize, length: usize, prot: Prot) -> Result<()> {
        if self.is_kernel() {
            // SAFETY: nothing borrows what tests map.
            return done(unsafe { libc::mprotect(address as *mut _, length, prot.0) });
        }
        // SAFETY: as above.
        unsafe { posix::mprotect(address as *mut _, length, prot) }
    }

    pub(crate) fn msync(&self, address: usize, length: usize, flags: SyncFlags) -> Result<()> {
        if self.is_kernel() {
            // SAFETY: as above.
            return done(unsafe { libc::msync(address as *mut _, length, flags.0) });
        }
        posix::msync(address as *mut _, length, flags)
    }

    pub(crate) fn madvise(&self, address: usize, length: usize, advice: Advice) -> Result<()> {
        if self.is_kernel() {
            // SAFETY: as above.
            return done(unsafe { libc::madvise(address as *mut _, length, advice.0) });
        }
        // SAFETY: as above.
        unsafe { posix::madvise(address as *mut _, length, advice) }
    }

    pub(crate) fn mincore(&self, address: usize, length: usize, vector: &mut [u8]) -> Result<()> {
        if self.is_kernel() {
            // SAFETY: tests give a vector that is long enough.
            return done(unsafe { libc::mincore(address as *mut _, length, vector.as_mut_ptr()) });
        }
        posix::mincore(address as *mut _, length, vector)
    }

    /// What a child gets; the kernel alone has no such call, and does what is natural.
    pub(crate) fn minherit(&self, address: usize, length: usize, inheritance: Inheritance) {
        if !self.is_kernel() {
            posix::minherit(address as *mut _, length, inheritance).unwrap();
        }
    }

    /// Which pages are in memory.
    pub(crate) fn resident(&self, address: usize, length: usize) -> Vec<bool> {
        let mut vector = vec![0; length.div_ceil(page())];
        self.mincore(address, length, &mut vector).unwrap();
        vector.iter().map(|byte| byte & 1 == 1).collect()
    }

    pub(crate) fn mlock2(&self, address: usize, length: usize, flags: LockOn) -> Result<()> {
        if self.is_kernel() {
            // SAFETY: locking changes no byte.
            return done(unsafe { libc::syscall(libc::SYS_mlock2, address, length, flags.0) } as i32);
        }
        posix::mlock2(address as *const _, length, flags)
    }

    pub(crate) fn mlock(&self, address: usize, length: usize) -> Result<()> {
        self.mlock2(address, length, LockOn::default())
    }

    pub(crate) fn munlock(&self, address: usize, length: usize) -> Result<()> {
        if self.is_kernel() {
            // SAFETY: unlocking changes no byte.
            return done(unsafe { libc::munlock(address as *const _, length) });
        }
        posix::munlock(address as *const _, length)
    }

    pub(crate) fn mlockall(&self, flags: LockAll) -> Result<()> {
        if self.is_kernel() {
            // SAFETY: locking changes no byte.
            return done(unsafe { libc::mlockall(flags.0) });
        }
        posix::mlockall(flags)
    }

    pub(crate) fn munlockall(&self) -> Result<()> {
        if self.is_kernel() {
            // SAFETY: unlocking changes no byte.
            return done(unsafe { libc::munlockall() });
        }
        posix::munlockall()
    }

    pub(crate) fn mremap(
        &self,
        address: usize,
        length: usize,
        new_length: usize,
        flags: RemapFlags,
        new: usize,
    ) -> Result<usize> {
        let (address, new) = (address as *mut c_void, new as *mut c_void);
        if self.is_kernel() {
            // SAFETY: tests remap what they mapped.
            return at(unsafe { libc::mremap(address, length, new_length, flags.0, new) });
        }
        // SAFETY: as above.
        unsafe { posix::mremap(address, length, new_length, flags, new) }.map(|a| a as usize)
    }

    pub(crate) fn remap_file_pages(
        &self,
        address: usize,
        length: usize,
        prot: i32,
        page: usize,
    ) -> Result<()> {
        if self.is_kernel() {
            // SAFETY: as above.
            return done(unsafe { libc::remap_file_pages(address as *mut _, length, prot, page, 0) });
        }
        // SAFETY: as above.
        unsafe { posix::remap_file_pages(address as *mut _, length, prot, page, MapFlags(0)) }
    }
}

impl Thing {
    /// The object's bytes as everybody else sees them: read(2), or the checked way.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match self {
            Thing::File(_, path) => std::fs::read(path).unwrap(),
            Thing::Paged(object, _) => {
                let mut bytes = vec![0; object.len() as usize];
                object.read_at(0, &mut bytes).unwrap();
                bytes
            }
        }
    }

    /// The bytes of the file behind it.
    pub(crate) fn stored(&self) -> Vec<u8> {
        let (Thing::File(_, path) | Thing::Paged(_, path)) = self;
        std::fs::read(path).unwrap()
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        match self {
            Thing::File(file, _) => std::os::unix::fs::FileExt::write_all_at(file, bytes, offset).unwrap(),
            Thing::Paged(object, _) => object.write_at(offset, bytes).unwrap(),
        }
    }

    /// Writes to the file behind it, as another program does.
    pub(crate) fn write_behind(&self, offset: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(self.path()).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, offset).unwrap();
    }

    pub(crate) fn set_len(&self, length: u64) {
        match self {
            Thing::File(file, _) => file.set_len(length).unwrap(),
            Thing::Paged(object, _) => object.set_len(length).unwrap(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        let (Thing::File(_, path) | Thing::Paged(_, path)) = self;
        path
    }

    /// Drops it from memory.
    pub(crate) fn evict(&self) {
        match self {
            Thing::File(file, _) => {
                file.sync_all().unwrap();
                // SAFETY: an advice.
                let done = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
                assert_eq!(done, 0);
            }
            Thing::Paged(object, _) => {
                object.sync().unwrap();
                object.evict().unwrap();
            }
        }
    }
}

/// The line of /proc/self/smaps, or the first of those after it, that begins with a word, of the mapping at an address.
fn smaps(address: usize, word: &str) -> Option<String> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in smaps.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let range = range.and_then(|(start, end)| {
            Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
        });
        if let Some(range) = range {
            inside = range.contains(&address);
        }
        if inside && (word.is_empty() || line.starts_with(word)) {
            return Some(line.to_owned());
        }
    }
    None
}

/// What the kernel has as protection and sharing at an address, `rw-p` for example; `None` where nothing is mapped.
pub(crate) fn protection(address: usize) -> Option<String> {
    smaps(address, "").map(|line| line.split(' ').nth(1).unwrap().to_owned())
}

/// Whether the kernel has the mapping at an address as locked.
pub(crate) fn is_locked(address: usize) -> bool {
    smaps(address, "VmFlags:").is_some_and(|flags| flags.split(' ').any(|flag| flag == "lo"))
}

/// An address at which so many bytes are free, for a moment at least: nobody else gets them by chance.
pub(crate) fn free_addresses(length: usize) -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0x1000_0000_0000);
    let length = length.next_multiple_of(page()) + (1 << 20);
    NEXT.fetch_add(length, Ordering::Relaxed)
}

/// Takes a capability from this thread (capabilities(7)).
pub(crate) fn without_capability(capability: u32) {
    #[repr(C)]
    struct Header(u32, i32);
    let mut header = Header(0x2008_0522, 0);
    let mut sets = [[0_u32; 3]; 2];
    // SAFETY: capget(2) of version 3 fills two triples.
    let got = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    assert_eq!(got, 0);
    sets[capability as usize / 32][0] &= !(1 << (capability % 32));
    // SAFETY: as above; it reads them.
    assert_eq!(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) }, 0);
}

/// Gives up all rights of this process, but those to the test's files: its userfaultfd serves its own faults alone from now on,
/// and none of the kernel's (userfaultfd(2), `UFFD_USER_MODE_ONLY`).
pub(crate) fn give_up_rights(s: &Subject) {
    const NOBODY: u32 = 65534;
    // SAFETY: only asks.
    if unsafe { libc::geteuid() } != 0 {
        return;
    }
    std::os::unix::fs::chown(s.path(""), Some(NOBODY), None).unwrap();
    // SAFETY: only gives rights up.
    assert_eq!(unsafe { libc::setresuid(NOBODY, NOBODY, NOBODY) }, 0);
    // SAFETY: /proc/self is ours again.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) }, 0);
}

/// Sets a limit of this process (setrlimit(2)).
pub(crate) fn limit(resource: libc::__rlimit_resource_t, value: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: only writes the structure.
    assert_eq!(unsafe { libc::getrlimit(resource, &raw mut limit) }, 0);
    limit.rlim_cur = value.min(limit.rlim_max);
    // SAFETY: only reads the structure.
    let answer = unsafe { libc::setrlimit(resource, &raw const limit) };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
}

/// Lets this process map no more than so many bytes than it has (RLIMIT_AS).
pub(crate) fn limit_addresses(more: u64) {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    limit(libc::RLIMIT_AS, pages * page() as u64 + more);
}

/// Maps zeros behind the library's back, where nothing is.
pub(crate) fn map_as_others(at: usize, bytes: usize, flags: i32) {
    let flags = flags | libc::MAP_FIXED_NOREPLACE | libc::MAP_ANONYMOUS;
    // SAFETY: replaces nothing.
    let made = unsafe { libc::mmap(at as *mut _, bytes, RW.0, flags, -1, 0) };
    assert_eq!(made as usize, at);
}

/// Runs `work` in a forked child, and gives what it returns.
pub(crate) fn forked(work: impl FnOnce() -> u8) -> u8 {
    // SAFETY: the child calls what is async-signal-safe, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let status = work();
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(i32::from(status)) };
    }
    let mut status = 0;
    // SAFETY: waits for the child just made.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFEXITED(status), "the child died: {status:x}");
    libc::WEXITSTATUS(status) as u8
}

/// Bytes at addresses, each loaded on its own.
pub(crate) fn loaded(address: usize, length: usize) -> Vec<u8> {
    (address..address + length).map(|a| probe::load(a).unwrap()).collect()
}
