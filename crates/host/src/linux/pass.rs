//! Passing descriptors to other processes, over a Unix socket (unix(7), `SCM_RIGHTS`).

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::Result;
use crate::error::During;

/// Comes with each descriptor, for a message has a byte at the least.
const BYTE: u8 = b'm';

/// Sends a descriptor, with one byte.
///
/// # Errors
/// As sendmsg(2).
pub fn send_descriptor(socket: BorrowedFd<'_>, descriptor: BorrowedFd<'_>) -> Result<()> {
    let descriptors = [descriptor];
    retry_on_intr(|| {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        sendmsg(socket, &[IoSlice::new(&[BYTE])], &mut control, SendFlags::NOSIGNAL)
    })
    .during("sendmsg(SCM_RIGHTS)")?;
    Ok(())
}

/// Receives what [`send_descriptor`] has sent.
///
/// # Errors
/// As recvmsg(2); EPIPE if the other side is gone; EBADMSG if what comes is not one byte with one descriptor. What it
/// brings is closed then.
pub fn receive_descriptor(socket: BorrowedFd<'_>) -> Result<OwnedFd> {
    let (mut byte, mut space) = ([0], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let received = retry_on_intr(|| recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC))
        .during("recvmsg(SCM_RIGHTS)")?;
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            descriptors.extend(more);
        }
    }
    if received.bytes == 0 {
        return Err(Errno::PIPE).during("recvmsg(SCM_RIGHTS)");
    }
    let whole = byte == [BYTE] && !received.flags.contains(ReturnFlags::CTRUNC) && descriptors.len() == 1;
    let one = descriptors.pop().filter(|_| whole);
    one.ok_or(Errno::BADMSG).during("recvmsg(SCM_RIGHTS)")
}
