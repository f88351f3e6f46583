//! The threads that talk to servers.

use std::future::Future;
use std::process;
use std::sync::{Arc, Mutex, TryLockError, Weak, mpsc};
use std::time::Duration;

use omnimap_store::{Result, StoreError};
use tokio::runtime::{Builder, Handle, Runtime};

const THREADS: usize = 2;
/// Somebody may look up a host's name, which cannot be interrupted.
const END_TIME_MAX: Duration = Duration::from_secs(1);

/// A runtime that all stores of the process share; its threads end with the last of them.
pub(crate) struct Network {
    /// Taken when it is dropped.
    runtime: Option<Runtime>,
    made_in: u32,
}

impl Network {
    pub(crate) fn get() -> Result<Arc<Network>> {
        static CURRENT: Mutex<Weak<Network>> = Mutex::new(Weak::new());
        // In a forked child a thread that is not there may hold it; then there is nothing to share either.
        let Ok(mut current) = CURRENT.try_lock().or_else(|error| match error {
            TryLockError::Poisoned(poisoned) => Ok(poisoned.into_inner()),
            TryLockError::WouldBlock => Err(()),
        }) else {
            return Network::start();
        };
        if let Some(network) = current.upgrade().filter(|network| network.is_current()) {
            return Ok(network);
        }
        let network = Network::start()?;
        *current = Arc::downgrade(&network);
        Ok(network)
    }

    fn start() -> Result<Arc<Network>> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("omnimap-network")
            .enable_all()
            .build()
            .map_err(|source| StoreError::Io {
                action: "starting threads for requests",
                length: 0,
                source,
            })?;
        Ok(Arc::new(Network { runtime: Some(runtime), made_in: process::id() }))
    }

    /// Whether its threads are of this process, and not of the one that this was forked from.
    pub(crate) fn is_current(&self) -> bool {
        self.made_in == process::id()
    }

    fn handle(&self) -> &Handle {
        self.runtime.as_ref().expect("taken when it is dropped").handle()
    }

    /// Lets the threads do it; the caller need not wait.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.handle().spawn(work);
    }

    /// Lets the threads do it, and waits. Whoever calls may be a thread of another runtime, which may not be blocked on ours
    /// by tokio's own means.
    pub(crate) fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        if !self.is_current() {
            let reason = "the process was forked since it was opened; open it again".to_owned();
            return Err(StoreError::Unusable { name: "the connection".to_owned(), reason });
        }
        let (sender, receiver) = mpsc::channel();
        self.spawn(async move { drop(sender.send(work.await)) });
        receiver.recv().unwrap_or_else(|_| {
            Err(StoreError::Panicked { message: "a request ended without an outcome".to_owned() })
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        if !self.is_current() {
            // Its threads are not here, and would be waited for.
            std::mem::forget(runtime);
        } else if Handle::try_current().is_ok() {
            // A thread of somebody's runtime may not wait.
            runtime.shutdown_background();
        } else {
            runtime.shutdown_timeout(END_TIME_MAX);
        }
    }
}
