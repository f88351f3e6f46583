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
        let own = || results.microseconds(self.workload, self.subject);
        let ratio = |other: Option<f64>| Some(other? / own()?);
        let (at_least, bound, measured, what) = match &self.bound {
            Bound::TimesAsFast(bound, other) => {
                let measured = ratio(results.microseconds(self.workload, *other));
                (true, bound, measured, format!("times as fast as the {}", other.name()))
            }
            Bound::TimesAsFastAsKernel(bound) => {
                let times = KERNEL.into_iter().filter_map(|c| results.microseconds(self.workload, c));
                let what = "times as fast as the kernel's mapping with the best advice";
                (true, bound, ratio(times.min_by(f64::total_cmp)), what.to_owned())
            }
            Bound::TimesAsFastAsIn(bound, other) => {
                let measured = ratio(results.microseconds(*other, self.subject));
                (true, bound, measured, "times as fast as one by one".to_owned())
            }
            Bound::TimesAsLong(bound, other) => {
                let measured = own().zip(results.microseconds(self.workload, *other));
                let what = format!("times as long as {}", other.name());
                (false, bound, measured.map(|(own, other)| own / other), what)
            }
            Bound::Microseconds(bound) => (false, bound, own(), "µs an access".to_owned()),
            Bound::BytesPerByte(bound) => {
                let measured = results.bytes_per_byte(self.workload, self.subject);
                (false, bound, measured, "bytes decompressed for each byte used".to_owned())
            }
        };
        let (least_or_most, met) = if at_least {
            ("at least", measured.map(|measured| measured >= *bound))
        } else {
            ("at most", measured.map(|measured| measured <= *bound))
        };
        let target = format!("{least_or_most} {bound} {what}");
        Verdict { workload: self.workload, contender: self.subject, target, measured, met }
    }
}
