//! What is to be reached, and whether it was.

use serde::Serialize;

use super::contender::{Contender, KERNEL};
use super::results::Results;
use super::workload::Workload;

pub(super) struct Target {
    pub(super) workload: Workload,
    subject: Contender,
    bound: Bound,
}

enum Bound {
    /// At least so many times as fast as another.
    TimesAsFast(f64, Contender),
    /// At least so many times as fast as the fastest of the kernel's mappings.
    TimesAsFastAsKernel(f64),
    /// At least so many times as fast as itself in another workload.
    TimesAsFastAsIn(f64, Workload),
    /// At most so many times as long as another.
    TimesAsLong(f64, Contender),
    /// At most so many microseconds an access.
    Microseconds(f64),
    /// At most so many bytes from the store for each byte of a page that was touched.
    BytesPerByte(f64),
}

/// A target beside what was measured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Verdict {
    pub(super) workload: Workload,
    pub(super) contender: Contender,
    /// In words, with the bound.
    pub(super) target: String,
    /// `None` where somebody could not take part.
    pub(super) measured: Option<f64>,
    /// What the same fault mode reaches without an engine, where that was measured.
    pub(super) without_engine: Option<f64>,
    pub(super) met: Option<bool>,
}

/// All targets.
pub(super) fn targets() -> Vec<Target> {
    use Bound::{BytesPerByte, Microseconds, TimesAsFast, TimesAsFastAsIn, TimesAsFastAsKernel, TimesAsLong};
    use Contender::{FillAlone, InThread, Kernel, KernelRandom, Stream, Worker};
    let mut targets = Vec::new();
    let mut add = |workload, subject, bound| targets.push(Target { workload, subject, bound });
    for workload in [Workload::FirstTouches, Workload::FaultsEvicting] {
        add(workload, InThread, Microseconds(3.0));
        add(workload, Worker, Microseconds(6.0));
    }
    for subject in [Worker, InThread] {
        add(Workload::FirstTouches, subject, TimesAsLong(2.5, FillAlone));
    }
    for (workload, in_thread, worker, default) in
        [(Workload::Uniform, 1.05, 0.75, 4.0), (Workload::Zipf, 1.2, 1.0, 6.0)]
    {
        add(workload, InThread, TimesAsFast(in_thread, KernelRandom));
        add(workload, Worker, TimesAsFast(worker, KernelRandom));
        add(workload, InThread, TimesAsFast(default, Kernel));
        add(workload, Worker, TimesAsFast(default, Kernel));
    }
    add(Workload::UniformThreads, InThread, TimesAsFast(1.0, KernelRandom));
    for subject in [Worker, InThread] {
        add(Workload::ResidentSequential, subject, TimesAsFast(0.98, Kernel));
        add(Workload::ResidentRandom, subject, TimesAsFast(0.98, Kernel));
        add(Workload::ZipfBesideScan, subject, TimesAsFastAsKernel(1.5));
        add(Workload::Sequential, subject, TimesAsFast(1.0, Kernel));
        add(Workload::Sequential, subject, TimesAsFast(0.9, Stream));
        add(Workload::Backward, subject, TimesAsFast(3.0, Kernel));
        add(Workload::Strided, subject, TimesAsFast(3.0, Kernel));
        add(Workload::Prefetched, subject, TimesAsFastAsIn(4.0, Workload::OneByOne));
        add(Workload::Packed, subject, BytesPerByte(4.0));
        add(Workload::Writes, subject, TimesAsFast(1.0, Kernel));
    }
    targets
}

impl Target {
    pub(super) fn verdict(&self, results: &Results) -> Verdict {
        let (at_least, bound, what) = match &self.bound {
            Bound::TimesAsFast(bound, other) => {
                (true, bound, format!("times as fast as the {}", other.name()))
            }
            Bound::TimesAsFastAsKernel(bound) => {
                (true, bound, "times as fast as the kernel's mapping with the best advice".to_owned())
            }
            Bound::TimesAsFastAsIn(bound, _) => (true, bound, "times as fast as one by one".to_owned()),
            Bound::TimesAsLong(bound, other) => (false, bound, format!("times as long as {}", other.name())),
            Bound::Microseconds(bound) => (false, bound, "µs an access".to_owned()),
            Bound::BytesPerByte(bound) => (false, bound, "bytes decompressed for each byte used".to_owned()),
        };
        let measured = self.measured(results, self.subject);
        let (least_or_most, met) = if at_least {
            ("at least", measured.map(|measured| measured >= *bound))
        } else {
            ("at most", measured.map(|measured| measured <= *bound))
        };
        Verdict {
            workload: self.workload,
            contender: self.subject,
            target: format!("{least_or_most} {bound} {what}"),
            measured,
            without_engine: self.subject.without_engine().and_then(|alone| self.measured(results, alone)),
            met,
        }
    }

    /// What is bound, of a contender.
    fn measured(&self, results: &Results, subject: Contender) -> Option<f64> {
        let own = results.microseconds(self.workload, subject)?;
        let of = |other| results.microseconds(self.workload, other);
        Some(match &self.bound {
            Bound::TimesAsFast(_, other) => of(*other)? / own,
            Bound::TimesAsFastAsKernel(_) => KERNEL.into_iter().filter_map(of).min_by(f64::total_cmp)? / own,
            Bound::TimesAsFastAsIn(_, other) => results.microseconds(*other, subject)? / own,
            Bound::TimesAsLong(_, other) => own / of(*other)?,
            Bound::Microseconds(_) => own,
            Bound::BytesPerByte(_) => results.bytes_per_byte(self.workload, subject)?,
        })
    }
}
