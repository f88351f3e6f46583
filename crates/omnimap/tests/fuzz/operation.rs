//! What the fuzzer does: operations, drawn at random.

use omnimap::posix::{Advice, LockOn, MapFlags, Prot, RemapFlags, SyncFlags};
use omnimap_testkit::Prng;

/// Pages of the arena that operations name. Those behind it are compared too, for mappings grow.
pub(crate) const ARENA_PAGES: u64 = 24;
/// Pages of the writable object when it begins; some bytes more are in its last one.
pub(crate) const OBJECT_PAGES: u64 = 14;
/// The most that it grows to.
const OBJECT_PAGES_MAX: u64 = 20;

/// Where something begins and how long it is: pages of the arena, and bytes more or less.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) at: u64,
    pub(crate) skew: i64,
    pub(crate) pages: u64,
    pub(crate) more: i64,
}

/// What is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Writable,
    ReadOnly,
    Anonymous,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Operation {
    Map {
        span: Span,
        prot: Prot,
        flags: MapFlags,
        what: What,
        offset_pages: i64,
    },
    Unmap(Span),
    Protect(Span, Prot),
    Sync(Span, SyncFlags),
    Lock(Span, LockOn),
    Unlock(Span),
    Advise(Span, Advice),
    /// `back` is where what the kernel moved somewhere is moved to.
    Remap {
        span: Span,
        new_pages: u64,
        flags: RemapFlags,
        to: u64,
        back: u64,
    },
    RemapPages {
        span: Span,
        page: u64,
    },
    Resident(Span),
    Load {
        at: u64,
        offset: u64,
    },
    Store {
        at: u64,
        offset: u64,
        value: u8,
    },
    Read,
    Write {
        offset: u64,
        length: u64,
        value: u8,
    },
    SetLength(u64),
    /// On our side only.
    Evict,
    /// Syncs, and compares what the files hold.
    Stored,
    /// Compares what is mapped, how, and all bytes.
    Compare,
}

fn pick<T: Copy>(prng: &mut Prng, from: &[T]) -> T {
    from[prng.below(from.len() as u64) as usize]
}

fn one_in(prng: &mut Prng, many: u64) -> bool {
    prng.below(many) == 0
}

fn span(prng: &mut Prng) -> Span {
    let skew = if one_in(prng, 40) { pick(prng, &[1, -1, 100]) } else { 0 };
    let more = if one_in(prng, 6) { pick(prng, &[1, -1, 100]) } else { 0 };
    Span { at: prng.below(ARENA_PAGES), skew, pages: prng.below(8), more }
}

fn prot(prng: &mut Prng) -> Prot {
    pick(
        prng,
        &[
            Prot(3),
            Prot(3),
            Prot(3),
            Prot(3),
            Prot::READ,
            Prot::READ,
            Prot::NONE,
            Prot::WRITE,
            Prot(5),
            Prot(7),
        ],
    )
}

fn map(prng: &mut Prng) -> Operation {
    let mut flags = pick(prng, &[MapFlags::SHARED, MapFlags::PRIVATE, MapFlags::SHARED, MapFlags::PRIVATE]);
    if one_in(prng, 30) {
        flags = pick(prng, &[MapFlags(0), MapFlags::SHARED_VALIDATE, MapFlags(4)]);
    }
    flags |= match prng.below(8) {
        0 => MapFlags(0),
        1 => MapFlags::FIXED_NOREPLACE,
        2 => MapFlags::FIXED | MapFlags::FIXED_NOREPLACE,
        _ => MapFlags::FIXED,
    };
    for more in [
        MapFlags::POPULATE,
        MapFlags::POPULATE | MapFlags::NONBLOCK,
        MapFlags::LOCKED,
        MapFlags::DENYWRITE,
        MapFlags::BELOW_2GIB,
        MapFlags::HUGETLB,
    ] {
        if one_in(prng, 25) {
            flags |= more;
        }
    }
    if flags.contains(MapFlags::PRIVATE) {
        // The kernel copies every page of a private mapping that it populates; we copy what is stored to (M14).
        flags = flags.without(MapFlags::POPULATE);
    }
    let what = pick(prng, &[What::Writable, What::Writable, What::Writable, What::ReadOnly, What::Anonymous]);
    if what == What::Anonymous {
        flags = flags.without(MapFlags::HUGETLB); // It depends on what is reserved.
    }
    let offset_pages =
        if one_in(prng, 60) { pick(prng, &[-1, i64::MAX >> 12]) } else { prng.below(16) as i64 };
    Operation::Map { span: span(prng), prot: prot(prng), flags, what, offset_pages }
}

fn remap(prng: &mut Prng) -> Operation {
    let flags = pick(
        prng,
        &[
            RemapFlags(0),
            RemapFlags(0),
            RemapFlags::MAYMOVE,
            RemapFlags::MAYMOVE,
            RemapFlags::MAYMOVE | RemapFlags::FIXED,
            RemapFlags::MAYMOVE | RemapFlags::FIXED,
            RemapFlags::MAYMOVE | RemapFlags::FIXED | RemapFlags::DONTUNMAP,
            RemapFlags::FIXED,
            RemapFlags(16),
        ],
    );
    let span = span(prng);
    let new_pages = if one_in(prng, 3) { span.pages } else { prng.below(9) };
    Operation::Remap { span, new_pages, flags, to: prng.below(ARENA_PAGES), back: prng.below(ARENA_PAGES) }
}

const ADVICE: [Advice; 16] = [
    Advice::DONTNEED,
    Advice::DONTNEED,
    Advice::DONTNEED,
    Advice::NORMAL,
    Advice::RANDOM,
    Advice::SEQUENTIAL,
    Advice::WILLNEED,
    Advice::COLD,
    Advice::PAGEOUT,
    Advice::POPULATE_READ,
    Advice::POPULATE_WRITE,
    Advice::REMOVE,
    Advice::REMOVE,
    Advice::DONTFORK,
    Advice::WIPEONFORK,
    Advice(77),
];

const SYNC: [SyncFlags; 6] = [
    SyncFlags::SYNC,
    SyncFlags::ASYNC,
    SyncFlags::INVALIDATE,
    SyncFlags(libc::MS_SYNC | libc::MS_INVALIDATE),
    SyncFlags(libc::MS_SYNC | libc::MS_ASYNC),
    SyncFlags(0),
];

/// The next operation.
pub(crate) fn draw(prng: &mut Prng, page: u64) -> Operation {
    let (at, offset) = (prng.below(ARENA_PAGES), prng.below(page));
    match prng.below(100) {
        0..12 => map(prng),
        12..18 => Operation::Unmap(span(prng)),
        18..25 => Operation::Protect(span(prng), prot(prng)),
        25..28 => Operation::Sync(span(prng), pick(prng, &SYNC)),
        28..31 => Operation::Lock(span(prng), pick(prng, &[LockOn(0), LockOn(0), LockOn::ONFAULT])),
        31..35 => Operation::Unlock(span(prng)),
        35..43 => Operation::Advise(span(prng), pick(prng, &ADVICE)),
        43..50 => remap(prng),
        50..52 => Operation::RemapPages { span: span(prng), page: prng.below(16) },
        52..54 => Operation::Resident(span(prng)),
        54..62 => Operation::Load { at, offset },
        62..84 => Operation::Store { at, offset, value: prng.below(255) as u8 + 1 },
        84..86 => Operation::Read,
        86..89 => {
            let length = prng.below(2 * page);
            Operation::Write { offset: prng.below(OBJECT_PAGES * page), length, value: prng.below(256) as u8 }
        }
        89..91 => {
            let whole = prng.below(OBJECT_PAGES_MAX) * page;
            Operation::SetLength(if one_in(prng, 3) { whole } else { whole + offset })
        }
        91..95 => Operation::Evict,
        95..96 => Operation::Stored,
        _ => Operation::Compare,
    }
}
