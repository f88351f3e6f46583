//! What the system promises, statement by statement, in short.

/// A statement's number, as the names of its tests begin, and what it says.
pub(super) struct Statement {
    pub(super) number: &'static str,
    pub(super) says: &'static str,
}

const fn s(number: &'static str, says: &'static str) -> Statement {
    Statement { number, says }
}

/// A heading, and the statements below it.
pub(super) const STATEMENTS: [(&str, &[Statement]); 9] = [
    (
        "Creating a mapping",
        &[
            s("M01", "the bytes at the address are the object's from the offset on"),
            s(
                "M02",
                "SHARED: a store is seen by every shared mapping and reaches the store no later than sync or unmap",
            ),
            s(
                "M03",
                "PRIVATE: copy on write; nobody else sees a store; what was not written goes on being shared",
            ),
            s("M04", "exactly one of SHARED and PRIVATE, else EINVAL"),
            s("M05", "ANONYMOUS: zeros; the descriptor is ignored; shared with children if SHARED"),
            s("M06", "a null address leaves the choice to the system; another is a hint"),
            s(
                "M07",
                "FIXED replaces the range and nothing else; FIXED_NOREPLACE is EEXIST; unaligned and 0 are refused",
            ),
            s(
                "M08",
                "unaligned offsets and no length are EINVAL; a length that cannot fit is never a wrapped range",
            ),
            s("M09", "protection is any union, and never contradicts how the object was opened"),
            s("M10", "32BIT: below 2 GiB; ignored with FIXED"),
            s("M11", "GROWSDOWN grows when the page below is touched, up to a guard gap"),
            s("M12", "huge pages: reserved ones where there are some; advice never fails"),
            s("M13", "LOCKED: resident and locked when the call returns"),
            s("M14", "POPULATE reads ahead; with NONBLOCK nothing is read"),
            s("M15", "NORESERVE: running out is told at the access"),
            s("M16", "UNINITIALIZED is accepted and harmless"),
            s("M17", "DENYWRITE, EXECUTABLE and FILE are accepted and ignored"),
            s("M18", "what cannot be mapped is refused with the kernel's errno"),
            s("M19", "closing the descriptor changes nothing"),
            s(
                "M20",
                "whole pages; zeros behind the end that never reach the object; SIGBUS on pages behind it",
            ),
            s("M21", "the object shrinks: SIGBUS, or an error from a checked access, past the new end"),
            s("M22", "the object grows: its new pages become accessible"),
            s(
                "M23",
                "a file's times change no later than sync or unmap, and only if something was read or stored",
            ),
            s("M24", "a store without WRITE and an access to nothing are SIGSEGV"),
            s("M25", "devices: /dev/zero is zeros; one with a mapping of its own is passed through"),
        ],
    ),
    (
        "Removing and changing",
        &[
            s("U01", "unmap: aligned address, length rounded up, no length is EINVAL"),
            s("U02", "the range may cover parts of mappings, several, or none"),
            s("U03", "access after unmap is SIGSEGV; the object is untouched"),
            s(
                "R01",
                "remap: shrink, grow, move, FIXED, DONTUNMAP; bytes, protection and private pages go along",
            ),
            s("R02", "remap_file_pages: other pages of the object in a shared mapping"),
            s(
                "T01",
                "protect: exactly the given protection for exactly the range, never more than the object allows",
            ),
        ],
    ),
    (
        "Keeping in step with the object",
        &[
            s("Y01", "SYNC: what is dirty is in the store and durable"),
            s("Y02", "ASYNC: write-back is under way, and nobody waits"),
            s("Y03", "INVALIDATE: later reads see what the store has; bad flags, holes and locks are told"),
            s("Y04", "the last unmap and the end of the process write what is dirty"),
            s("Y05", "atomic sync: all of it or nothing, whenever the process or the machine dies"),
        ],
    ),
    (
        "Residency",
        &[
            s("L01", "lock brings the range in and keeps it; locks do not nest; limits are honoured"),
            s("L02", "a lock goes with its mapping; a page locked twice stays while either lock does"),
            s("L03", "the copy of a locked page is locked; a child inherits no lock"),
            s("L04", "lockall: CURRENT, FUTURE, ONFAULT; unlockall undoes them"),
            s("L05", "mincore: one byte a page, low bit = resident"),
            s("L06", "advice changes speed and not results, but where its definition says so"),
        ],
    ),
    (
        "Fork",
        &[
            s(
                "F01",
                "kind and attributes are inherited; SHARED stays coherent, PRIVATE is copied on write, both ways",
            ),
            s("F02", "inheritance is set by the range: SHARE, COPY, NONE, ZERO"),
            s("F03", "a child never silently sees zeros, or other bytes, where the object has data"),
            s("F04", "exec removes everything"),
        ],
    ),
    (
        "Data segment",
        &[s("B01", "brk and sbrk: zeros when it grows, also again; failure is ENOMEM and changes nothing")],
    ),
    (
        "Page size, allocation, communication",
        &[
            s("P1", "the page size is asked of the system"),
            s("A1", "an allocator that takes its memory from mappings"),
            s("I1", "communication through a shared object, by name or by descriptor"),
            s("W1", "the same ideas under the Windows names"),
        ],
    ),
    (
        "Errors, ours",
        &[
            s("E1", "what goes wrong in a checked access is an error with object, offset and cause"),
            s(
                "E2",
                "what goes wrong in a raw access is SIGBUS after one line; others' handlers go on working",
            ),
            s("E3", "a page that failed can succeed later"),
            s("E4", "bytes that were seen never change; versions are never mixed"),
        ],
    ),
    (
        "The classic programs",
        &[
            s("X1", "view: the byte at an index"),
            s("X2", "patch: a byte of a file"),
            s("X3", "scratch memory from /dev/zero"),
            s("X4", "a parent and a child count in one shared page"),
            s("X5", "a generator's state is wiped in the child"),
        ],
    ),
];

/// Where ours is not as the kernel's, on purpose: statement, column, why. It grows only by what is found to be one already.
pub(super) const DIFFERENCES: [(&str, &str, &str); 4] = [
    (
        "M02",
        "paged",
        "two openings of one file are two objects, each with a budget of its own: a store through the one is not seen through \
         the other, which finds that the file has changed when it is written (E4). One that is opened once can be mapped as \
         often as is wanted.",
    ),
    (
        "M14",
        "paged",
        "the kernel copies every page of a writable private mapping that it populates. Ours are fetched, and copied when they \
         are stored to (M03): what others store before that is seen.",
    ),
    (
        "M21",
        "paged",
        "when others shorten the file of an object that is held to its version, what is in memory stays readable, also \
         behind the new end, and everything else fails: versions are not mixed (E4). A change through the object itself is \
         as the kernel's.",
    ),
    (
        "M22",
        "paged",
        "when others lengthen the file of an object, that is another version of it, and what is not in memory fails (E4). A \
         change through the object itself is as the kernel's.",
    ),
];

/// Statements that are not implemented yet, and so have no tests: this list may only shrink.
pub(super) const PENDING: [&str; 0] = [];
