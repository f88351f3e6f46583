//! Does an operation on both sides, and tells what differs.

use std::fmt::Debug;

use omnimap::posix::{Advice, Errno, LockOn, MapFlags, Prot, RemapFlags, SyncFlags};

use crate::operation::{Operation, Span, What};
use crate::probe::{self, Raised};
use crate::side::{Bug, COMPARED_PAGES, Side, protections};
use crate::subject::{Column, page};

/// The kernel's side, and ours.
pub(crate) struct Both {
    pub(crate) kernel: Side,
    pub(crate) ours: Side,
}

fn same<T: PartialEq + Debug>(what: &str, kernel: T, ours: T) -> Result<(), String> {
    if kernel == ours { Ok(()) } else { Err(format!("{what}: the kernel {kernel:?}, ours {ours:?}")) }
}

/// What an access came to, with the address as it is in every arena.
fn raised<T>(side: &Side, answer: Result<T, Raised>) -> Result<T, (i32, i32, usize)> {
    answer.map_err(|raised| (raised.signal, raised.code, raised.address.wrapping_sub(side.base)))
}

impl Side {
    fn start(&self, span: Span) -> usize {
        (self.base + span.at as usize * page()).wrapping_add_signed(span.skew as isize)
    }

    fn at(&self, page_number: u64) -> usize {
        self.base + page_number as usize * page()
    }
}

fn length(span: Span) -> usize {
    (span.pages as usize * page()).saturating_add_signed(span.more as isize)
}

impl Both {
    /// Writes by the other door, what of it is inside.
    fn write(&self, offset: u64, length: u64, value: u8) {
        let end = self.kernel.writable.bytes().len() as u64;
        let bytes = vec![value; length.min(end.saturating_sub(offset)) as usize];
        if !bytes.is_empty() {
            self.kernel.writable.write(offset, &bytes);
            self.ours.writable.write(offset, &bytes);
        }
    }

    /// Does it, on the kernel's side first.
    pub(crate) fn apply(&mut self, operation: Operation) -> Result<(), String> {
        match operation {
            Operation::Map { span, prot, flags, what, offset_pages } => {
                self.map(span, prot, flags, what, offset_pages)
            }
            Operation::Unmap(span) => self.call("munmap", |side| side.unmap(side.start(span), length(span))),
            Operation::Protect(span, prot) => {
                self.call("mprotect", |side| side.protect(side.start(span), length(span), prot))
            }
            Operation::Sync(span, flags) => self.call("msync", |side| {
                // The kernel is not asked to wait for the disk: what it answers is the same.
                let waits = flags.contains(SyncFlags::SYNC) && !flags.contains(SyncFlags::ASYNC);
                let quick = flags.without(SyncFlags::SYNC) | SyncFlags::ASYNC;
                let flags = if waits && side.calls.column == Column::Kernel { quick } else { flags };
                side.calls.msync(side.start(span), length(span), flags)
            }),
            Operation::Lock(span, flags) => self.lock(span, flags),
            Operation::Unlock(span) => {
                self.call("munlock", |side| side.calls.munlock(side.start(span), length(span)))
            }
            Operation::Advise(span, advice) => self.call("madvise", |side| {
                if side.is(Bug::KeepsPrivatePages) && advice == Advice::DONTNEED && span.skew == 0 {
                    return side.calls.madvise(side.start(span), length(span), Advice::NORMAL);
                }
                side.calls.madvise(side.start(span), length(span), advice)
            }),
            Operation::Remap { span, new_pages, flags, to, back } => {
                self.remap(span, new_pages, flags, to, back)
            }
            Operation::RemapPages { span, page } => self.call("remap_file_pages", |side| {
                side.calls.remap_file_pages(side.start(span), length(span), 0, page as usize)
            }),
            Operation::Resident(span) => {
                let pages = length(span).div_ceil(page());
                self.call("mincore", |side| {
                    side.calls.mincore(side.start(span), length(span), &mut vec![0; pages])
                })
            }
            Operation::Load { at, offset } => {
                self.load(self.kernel.at(at) - self.kernel.base + offset as usize)
            }
            Operation::Store { at, offset, value } => {
                let (k, o) = (self.kernel.at(at) + offset as usize, self.ours.at(at) + offset as usize);
                let (kernel, ours) = (self.kernel.store(k, value), self.ours.store(o, value));
                same("a store", raised(&self.kernel, kernel), raised(&self.ours, ours))
            }
            Operation::Read => self.bytes(),
            Operation::Write { offset, length, value } => {
                self.write(offset, length, value);
                Ok(())
            }
            Operation::SetLength(bytes) => {
                self.kernel.writable.set_len(bytes);
                self.ours.writable.set_len(bytes);
                Ok(())
            }
            Operation::Evict => {
                self.ours.evict();
                Ok(())
            }
            Operation::Stored => {
                self.ours.sync();
                let (kernel, ours) = (self.kernel.writable.stored(), self.ours.writable.stored());
                same_bytes("what is stored", &kernel, &ours)
            }
            Operation::Compare => self.compare(),
        }
    }

    fn map(
        &self,
        span: Span,
        prot: Prot,
        flags: MapFlags,
        what: What,
        offset_pages: i64,
    ) -> Result<(), String> {
        let of = |side: &Side| {
            let offset = offset_pages.wrapping_mul(page() as i64);
            side.map(side.start(span), length(span), prot, flags, what, offset)
        };
        let (kernel, ours) = (of(&self.kernel), of(&self.ours));
        if kernel.is_ok() && ours == Err(Errno::EAGAIN) && flags.contains(MapFlags::LOCKED) {
            return self.forget(&[span], kernel.ok().map(|at| (at, length(span))));
        }
        self.place(kernel, ours, length(span), None)
    }

    fn lock(&self, span: Span, flags: LockOn) -> Result<(), String> {
        let of = |side: &Side| side.calls.mlock2(side.start(span), length(span), flags);
        let (kernel, ours) = (of(&self.kernel), of(&self.ours));
        if matches!(kernel, Ok(()) | Err(Errno::ENOMEM)) && ours == Err(Errno::ENOMEM) {
            // More than half of the budget, maybe: ours alone has that limit. The kernel has copied private pages.
            return self.forget(&[span], None);
        }
        same("mlock2", kernel, ours)
    }

    fn call(&self, what: &str, of: impl Fn(&Side) -> Result<(), Errno>) -> Result<(), String> {
        same(what, of(&self.kernel), of(&self.ours))
    }

    /// An address that was given. One outside of the arena is nobody's business: it is unmapped, or moved back to a page.
    fn place(
        &self,
        kernel: Result<usize, Errno>,
        ours: Result<usize, Errno>,
        length: usize,
        back: Option<u64>,
    ) -> Result<(), String> {
        let answers = [(&self.kernel, kernel), (&self.ours, ours)];
        let [k, o] = answers.map(|(side, answer)| side.relative(answer));
        same("an address", k, o)?;
        if k != Ok(None) {
            return Ok(());
        }
        let put = |(side, answer): (&Side, Result<usize, Errno>)| {
            let at = answer.unwrap();
            match back {
                Some(back) => {
                    let how = RemapFlags::MAYMOVE | RemapFlags::FIXED;
                    side.relative(side.calls.mremap(at, length, length, how, side.at(back)))
                }
                None => side.calls.munmap(at, length).map(|()| None),
            }
        };
        let [k, o] = answers.map(put);
        same("moved back", k, o)
    }

    fn remap(&self, span: Span, new_pages: u64, flags: RemapFlags, to: u64, back: u64) -> Result<(), String> {
        let bytes = new_pages as usize * page();
        let before = protections([self.kernel.base, self.ours.base]);
        let of = |side: &Side| side.calls.mremap(side.start(span), length(span), bytes, flags, side.at(to));
        let (kernel, ours) = (of(&self.kernel), of(&self.ours));
        if kernel.is_ok() && flags.contains(RemapFlags::DONTUNMAP) {
            // The kernel also unlocks what lies beside the range in the same mapping (`dontunmap_complete`).
            for side in [&self.kernel, &self.ours] {
                for at in 0..COMPARED_PAGES {
                    let _ = side.calls.munlock(side.base + at * page(), page());
                }
            }
        }
        if kernel == Err(Errno::ENOMEM) && ours == Err(Errno::EAGAIN) {
            return Ok(()); // The budget's limit is found before it is known that there is no room.
        }
        if let (Ok(at), Err(Errno::EAGAIN)) = (kernel, ours) {
            let target = Span { at: to, skew: 0, pages: new_pages, more: 0 };
            return self.forget(&[span, target], Some((at, bytes)));
        }
        if let (Err(Errno::EFAULT), Ok(made)) = (kernel, ours) {
            // A private mapping that could once be written is another than one that could not, to the kernel alone
            // (`VM_ACCOUNT`): it does not move both together.
            let [found, _] = before;
            let alike = |at: &u64| found.get(*at as usize) == found.get(span.at as usize);
            if (span.at..span.at + span.pages).all(|at| alike(&at)) && found[span.at as usize].is_some() {
                let _ = self.ours.calls.munmap(made, bytes);
                return self.forget(&[span, Span { at: to, pages: new_pages, ..span }], None);
            }
        }
        self.place(kernel, ours, bytes, Some(back))
    }

    /// Ours was refused by the limit of a budget, which the kernel does not have: nobody keeps the ranges.
    fn forget(&self, spans: &[Span], made: Option<(usize, usize)>) -> Result<(), String> {
        if let Some((at, length)) = made {
            let _ = self.kernel.calls.munmap(at, length);
        }
        for span in spans {
            let pages = length(*span).max(9 * page()).div_ceil(page()) + 1;
            self.call("munmap", |side| {
                side.calls.munmap(side.start(*span) / page() * page(), pages * page())
            })?;
        }
        Ok(())
    }

    fn load(&self, at: usize) -> Result<(), String> {
        let of = |side: &Side| raised(side, probe::load(side.base + at));
        let (kernel, ours) = (of(&self.kernel), of(&self.ours));
        same(&format!("a load at {}+{}", at / page(), at % page()), kernel, ours)
    }

    fn bytes(&self) -> Result<(), String> {
        same_bytes("the object", &self.kernel.writable.bytes(), &self.ours.writable.bytes())?;
        same_bytes("the read-only object", &self.kernel.read_only.bytes(), &self.ours.read_only.bytes())
    }

    /// Compares all that can be seen.
    pub(crate) fn compare(&self) -> Result<(), String> {
        let [kernel, ours] = protections([self.kernel.base, self.ours.base]);
        for at in 0..COMPARED_PAGES {
            same(&format!("the protection of page {at}"), &kernel[at], &ours[at])?;
            // Not every byte: a page is evicted and comes back whole.
            for offset in [0, 99, page() / 2, page() - 1].map(|offset| offset + at % 7).map(|o| o % page()) {
                self.load(at * page() + offset)?;
            }
        }
        self.bytes()
    }
}

fn same_bytes(what: &str, kernel: &[u8], ours: &[u8]) -> Result<(), String> {
    same(&format!("the length of {what}"), kernel.len(), ours.len())?;
    match kernel.iter().zip(ours).position(|(k, o)| k != o) {
        None => Ok(()),
        Some(at) => same(&format!("{what} at {}+{}", at / page(), at % page()), kernel[at], ours[at]),
    }
}
