//! One host: its way of learning of faults, and the memory and views that report to it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::accounting::Adding;
use super::faults::Faults;
use super::memory::{Kind, Memfd};
use super::userfaultfd::Userfaultfd;
use super::{fault_signals, large_page_bytes, page_bytes};
use crate::{Exclusive, FaultMode, FaultStream, Host, HostError, Memory, Result, Use};

/// The machine as Linux makes it.
pub struct LinuxHost {
    faults: Arc<Faults>,
    adding: Arc<Adding>,
    page_bytes: u64,
}

impl LinuxHost {
    /// Sees to it that faults arrive in a mode, or in the one that `OMNIMAP_FAULT_MODE` names, or else in the first that
    /// this machine allows: [`Worker`](FaultMode::Worker), then [`Trap`](FaultMode::Trap).
    ///
    /// # Errors
    /// Where the mode, or every one, is refused or lacks what the engine needs; the error says what to do.
    pub fn open(mode: Option<FaultMode>) -> Result<LinuxHost> {
        let faults = match mode.map_or_else(chosen_by_environment, |mode| Ok(Some(mode)))? {
            Some(mode) => Faults::open(mode)?,
            None => Faults::open(FaultMode::Worker).or_else(|why| {
                if is_refused(&why) { Faults::open(FaultMode::Trap).map_err(|_| why) } else { Err(why) }
            })?,
        };
        Self::over(Arc::new(faults))
    }

    pub(super) fn over(faults: Arc<Faults>) -> Result<LinuxHost> {
        fault_signals::install(faults.mode())?;
        Ok(LinuxHost { faults, adding: Arc::default(), page_bytes: page_bytes() })
    }

    /// Memory that another process has made and filled, by its descriptor: it goes on from what is there.
    ///
    /// # Errors
    /// If stores cannot be trapped here.
    pub fn inherit_memory(&self, file: File, used_as: Use) -> Result<Arc<dyn Memory>> {
        if used_as.is_writable() {
            self.faults.check_traps()?;
        }
        let kind = Kind { page_bytes: self.page_bytes, used_as, exclusive: 0 };
        Ok(Arc::new(Memfd::over(file, kind, self.faults.clone(), self.adding.clone())))
    }

    /// How faults arrive.
    pub fn fault_mode(&self) -> FaultMode {
        self.faults.mode()
    }
}

fn chosen_by_environment() -> Result<Option<FaultMode>> {
    match std::env::var(FaultMode::VARIABLE) {
        Ok(text) if !text.is_empty() => text.parse().map(Some).map_err(HostError::from),
        _ => Ok(None),
    }
}

/// Whether userfaultfd is not to be had here, or is too old; and not, say, that too many files are open.
fn is_refused(error: &HostError) -> bool {
    matches!(error, HostError::NoUserfaultfd { .. } | HostError::MissingFeature { .. })
}

/// The mode that is taken where none is asked for, or why there is none. Opens nothing for good.
pub(super) fn default_mode() -> Result<FaultMode> {
    if let Some(mode) = chosen_by_environment()? {
        return Faults::open(mode).map(|faults| faults.mode());
    }
    match Userfaultfd::open(super::userfaultfd::Notice::Message) {
        Ok(_) => Ok(FaultMode::Worker),
        Err(why) => super::guarded::supported().map(|()| FaultMode::Trap).map_err(|_| why),
    }
}

impl Host for LinuxHost {
    fn large_page_bytes(&self) -> Option<u64> {
        self.faults.userfaultfd().and_then(|_| large_page_bytes()).map(|bytes| bytes as u64)
    }

    fn page_bytes(&self) -> u64 {
        self.page_bytes
    }

    fn create_memory(
        &self,
        name: &str,
        length: u64,
        used_as: Use,
    ) -> Result<(Arc<dyn Memory>, Option<Exclusive>)> {
        if used_as.is_writable() {
            self.faults.check_traps()?;
        }
        let (exclusive, id) = Exclusive::new();
        let memory = Memfd::create(
            name,
            length,
            Kind { page_bytes: self.page_bytes, used_as, exclusive: id },
            self.faults.clone(),
            self.adding.clone(),
        )?;
        Ok((Arc::new(memory), (used_as == Use::Exclusive).then_some(exclusive)))
    }

    fn faults(&self) -> Arc<dyn FaultStream> {
        self.faults.clone()
    }

    fn add_kin(&self, userfaultfd: OwnedFd) -> Result<u16> {
        self.faults.kin()?.add(userfaultfd)
    }

    fn remove_kin(&self, kin: u16) {
        if let Ok(all) = self.faults.kin() {
            all.remove(kin);
        }
    }
}
