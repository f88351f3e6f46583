//! Locking, and staying as long as the locks are wanted.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use omnimap::machine::{Ending, FilePages, page_bytes};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::size;

/// Locks a file's pages, beside those that are locked already.
pub(super) fn lock(pages: &FilePages, path: &Path, locked: &[FilePages]) -> Result<()> {
    let Err(error) = pages.lock() else { return Ok(()) };
    // What may be raised without asking anybody, is.
    let maximum = getrlimit(Resource::Memlock).maximum;
    let raised = setrlimit(Resource::Memlock, Rlimit { current: maximum, maximum });
    if raised.is_ok() && pages.lock().is_ok() {
        return Ok(());
    }
    let limit = getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX);
    let wanted = locked.iter().chain([pages]).map(FilePages::count).sum::<u64>() * page_bytes();
    // What to do about other shortages is no help here.
    let error = std::io::Error::from_raw_os_error(error.errno());
    if wanted <= limit {
        bail!("{}: mlock: {error}", path.display());
    }
    bail!(
        "{}: mlock: {error}: {} would be locked, and the limit (RLIMIT_MEMLOCK) is {}. Raise it by `ulimit -l`, \
         LimitMEMLOCK= in a systemd unit, memlock in /etc/security/limits.conf or --ulimit memlock=-1 for a container; \
         or run as root (CAP_IPC_LOCK)",
        path.display(),
        size::show(wanted),
        size::show(limit),
    )
}

/// Starts this command again as a process of its own, and comes back when that has locked everything, or has failed.
pub(super) fn in_background() -> Result<ExitCode> {
    let mut arguments: Vec<_> = std::env::args_os().skip(1).collect();
    // After the command's name, for what follows may be after a `--`.
    arguments.insert(1, "--detached".into());
    let (mut ours, theirs) = UnixStream::pair().context("socketpair")?;
    let mut child = Command::new(std::env::current_exe().context("the program's own path")?)
        .args(arguments)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .context("starting the process in the background")?;
    // `Command` is gone, and with it our end of theirs: when the child ends, so does what is read.
    if ours.read_exact(&mut [0]).is_ok() {
        return Ok(ExitCode::SUCCESS);
    }
    let status = child.wait().context("waiting for the process in the background")?;
    Ok(ExitCode::from(status.code().map_or(1, |code| code as u8)))
}

/// In the background: no signal of the terminal reaches this process any more.
pub(super) fn leave_terminal() {
    // It fails for the leader of a process group, which a process that was just started is not.
    let _ = rustix::process::setsid();
}

/// Says that all is locked, and stays.
pub(super) fn until_signal(pid_file: Option<&Path>, detached: bool) -> Result<()> {
    let ending = Ending::new();
    let pid = format!("{}\n", std::process::id());
    if let Some(path) = pid_file {
        fs::write(path, &pid).with_context(|| path.display().to_string())?;
    }
    if detached {
        rustix::io::write(rustix::stdio::stdin(), &[1]).context("telling the command that started this")?;
        let nothing = fs::File::options().read(true).write(true).open("/dev/null").context("/dev/null")?;
        rustix::stdio::dup2_stdin(&nothing).context("dup2")?;
        rustix::stdio::dup2_stdout(&nothing).context("dup2")?;
        rustix::stdio::dup2_stderr(&nothing).context("dup2")?;
    }
    ending.wait();
    if let Some(path) = pid_file {
        // Another may have taken its place meanwhile.
        if fs::read_to_string(path).is_ok_and(|written| written == pid) {
            fs::remove_file(path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}
