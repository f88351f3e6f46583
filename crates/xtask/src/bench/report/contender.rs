//! Who is compared.

use omnimap::{Advice, Cache, FaultMode};
use serde::{Deserialize, Serialize};

use crate::bench::faults::Server;

/// A way to have a file's bytes under a bound on memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Contender {
    Worker,
    InThread,
    Trap,
    Kernel,
    KernelRandom,
    KernelSequential,
    /// A buffer pool in one process, without a mapping: the floor.
    Pool,
    /// What serving a fault in its thread takes without an engine: the other floor.
    InThreadAlone,
    /// The same by another thread, which looks for faults without sleeping.
    WorkerAlone,
    /// The system call that no fault can do without, where nobody waits.
    FillAlone,
    /// Direct reads of 1 MiB in the file's order: what the device gives to who needs no mapping.
    Stream,
}

/// Omnimap in each fault mode.
pub(super) const OMNIMAP: [Contender; 3] = [Contender::Worker, Contender::InThread, Contender::Trap];
/// The kernel's mapping with each advice.
pub(super) const KERNEL: [Contender; 3] =
    [Contender::Kernel, Contender::KernelRandom, Contender::KernelSequential];

/// What serves faults without an engine.
pub(super) const MECHANISM: [Contender; 2] = [Contender::WorkerAlone, Contender::InThreadAlone];

impl Contender {
    pub(super) fn name(self) -> &'static str {
        match self {
            Contender::Worker => "omnimap, worker",
            Contender::InThread => "omnimap, in-thread",
            Contender::Trap => "omnimap, trap",
            Contender::Kernel => "kernel's mapping",
            Contender::KernelRandom => "kernel's mapping, RANDOM",
            Contender::KernelSequential => "kernel's mapping, SEQUENTIAL",
            Contender::Pool => "buffer pool (CLOCK, pread)",
            Contender::InThreadAlone => "in-thread faults, no engine",
            Contender::WorkerAlone => "worker faults, no engine",
            Contender::FillAlone => "the fill alone",
            Contender::Stream => "pread of 1 MiB, O_DIRECT",
        }
    }

    /// How Omnimap serves faults, if it is Omnimap.
    pub(super) fn fault_mode(self) -> Option<FaultMode> {
        match self {
            Contender::Worker => Some(FaultMode::Worker),
            Contender::InThread => Some(FaultMode::InThread),
            Contender::Trap => Some(FaultMode::Trap),
            _ => None,
        }
    }

    /// How faults are served where there is no engine, if it is that.
    pub(super) fn mechanism_mode(self) -> Option<FaultMode> {
        match self {
            Contender::InThreadAlone => Some(FaultMode::InThread),
            Contender::WorkerAlone => Some(FaultMode::Worker),
            _ => None,
        }
    }

    /// The same fault mode without an engine.
    pub(super) fn without_engine(self) -> Option<Contender> {
        MECHANISM
            .into_iter()
            .find(|alone| self.fault_mode().is_some() && alone.mechanism_mode() == self.fault_mode())
    }

    /// Who it is where faults alone are measured, if it takes part there.
    pub(super) fn fault_server(self) -> Option<Server> {
        if self == Contender::FillAlone {
            return Some(Server::FillAlone);
        }
        self.fault_mode().map(Server::Omnimap).or_else(|| self.mechanism_mode().map(Server::Mechanism))
    }

    /// What the kernel is told of its mapping, if it is the kernel's.
    pub(super) fn kernel_advice(self) -> Option<Advice> {
        match self {
            Contender::Kernel => Some(Advice::Normal),
            Contender::KernelRandom => Some(Advice::Random),
            Contender::KernelSequential => Some(Advice::Sequential),
            _ => None,
        }
    }

    /// Why it cannot take part here, if so.
    pub(super) fn obstacle(self, bounded: bool) -> Option<String> {
        if self.kernel_advice().is_some() && !bounded {
            return Some("it has no budget without a memory cgroup".to_owned());
        }
        let mode = match self {
            Contender::FillAlone => FaultMode::InThread,
            _ => self.fault_mode().or_else(|| self.mechanism_mode())?,
        };
        let error = Cache::with_fault_mode(1 << 20, mode).err()?;
        Some(format!("this fault mode cannot be had: {error}"))
    }
}
