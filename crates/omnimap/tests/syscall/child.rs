//! Children of a test.

use std::fs::File;
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A forked child.
pub(crate) struct Child(libc::pid_t);

/// Forks; the child does `work` and ends, with an error if that panics or takes too long.
pub(crate) fn fork(work: impl FnOnce()) -> Child {
    // SAFETY: the child does what a test does, with one thread; what it locks, no other thread of a test holds.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: a limit for the child.
            unsafe { libc::alarm(30) };
            let outcome = catch_unwind(AssertUnwindSafe(work));
            let failed = outcome.is_err();
            if let Err(cause) = outcome {
                // What the harness has captured goes with the child.
                let text = cause.downcast_ref::<String>().map_or("a child failed", String::as_str);
                let _ = rustix::io::write(rustix::stdio::stderr(), format!("{text}\n").as_bytes());
            }
            // SAFETY: ends the child without what the parent's test has to clean up.
            unsafe { libc::_exit(i32::from(failed)) }
        }
        pid => {
            assert!(pid > 0, "fork: {}", std::io::Error::last_os_error());
            Child(pid)
        }
    }
}

impl Child {
    pub(crate) fn of(pid: libc::pid_t) -> Child {
        assert!(pid > 0, "fork: {}", std::io::Error::last_os_error());
        Child(pid)
    }

    fn status(&self) -> i32 {
        let mut status = 0;
        // SAFETY: waits for a child of ours.
        assert_eq!(unsafe { libc::waitpid(self.0, &raw mut status, 0) }, self.0);
        status
    }

    /// Waits for its end, which must be a good one.
    pub(crate) fn succeeds(self) {
        let status = self.status();
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "a child ended with {status:#x}");
    }

    /// Ends it.
    pub(crate) fn kill(self) {
        // SAFETY: a child of ours.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        self.status();
    }

    /// Waits for its end, whatever that is.
    pub(crate) fn ends(self) {
        self.status();
    }
}

/// Something that one process says to another, once.
pub(crate) struct Signal {
    read: File,
    write: File,
}

impl Signal {
    pub(crate) fn new() -> Signal {
        let (read, write) = rustix::pipe::pipe().unwrap();
        Signal { read: read.into(), write: write.into() }
    }

    /// Whether a descriptor is one of its.
    pub(crate) fn has(&self, descriptor: i32) -> bool {
        use std::os::fd::AsRawFd;
        [self.read.as_raw_fd(), self.write.as_raw_fd()].contains(&descriptor)
    }

    pub(crate) fn give(&self) {
        (&self.write).write_all(&[1]).unwrap();
    }

    /// Waits until it is given, at most as long as a test may take.
    pub(crate) fn wait(&self) {
        let mut polled = libc::pollfd {
            fd: std::os::fd::AsRawFd::as_raw_fd(&self.read),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one descriptor of ours.
        let ready = unsafe { libc::poll(&raw mut polled, 1, 40_000) };
        assert_eq!(ready, 1, "nothing was said in 40 s");
        (&self.read).read_exact(&mut [0]).unwrap();
    }
}
