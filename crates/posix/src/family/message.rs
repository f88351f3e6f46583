//! What processes that share objects tell each other: datagrams on a socket that all of them have.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use omnimap_host::{Address, Place, Protection, Sharing, ViewRequest};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// A view that a child has made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct JoinedView {
    /// Of which object.
    pub(crate) cookie: u64,
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) offset: u64,
    pub(crate) sharing: Sharing,
}

impl JoinedView {
    pub(crate) fn of(cookie: u64, request: &ViewRequest, start: Address) -> JoinedView {
        let ViewRequest { offset, length, sharing, .. } = *request;
        JoinedView { cookie, start: start.0 as u64, length, offset, sharing }
    }

    pub(crate) fn request(&self) -> ViewRequest {
        ViewRequest {
            offset: self.offset,
            length: self.length,
            place: Place::anywhere(),
            protection: Protection::NONE,
            sharing: self.sharing,
        }
    }
}

/// What is asked of the process that serves. Each comes with the end of a pipe for the answer, an error number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ask {
    /// A child has these views, all of objects of one cache; with their userfaultfd, and a pipe that ends when they do. A
    /// long list comes in parts. As a will, it comes without a pipe for the answer.
    Join { process: u32, nonce: u64, fork: u64, part: u64, is_last: bool, views: Vec<JoinedView> },
    /// Bring a range of an object into step with its store.
    Sync { cookie: u64, start: u64, end: u64, how: SyncKind },
}

/// What msync(2) and munmap(2) can ask of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SyncKind {
    /// Write what is dirty to the store.
    Write,
    /// Begin to make it durable.
    Start,
    /// Make it durable.
    Wait,
    /// Have the store's bytes, where nothing is dirty.
    Invalidate,
}

impl SyncKind {
    const ALL: [SyncKind; 4] = [SyncKind::Write, SyncKind::Start, SyncKind::Wait, SyncKind::Invalidate];
}

/// Views in one datagram.
pub(crate) const VIEWS_MAX: usize = 256;
const WORDS_MAX: usize = 6 + 5 * VIEWS_MAX;

impl Ask {
    fn to_words(&self) -> Vec<u64> {
        match self {
            Ask::Join { process, nonce, fork, part, is_last, views } => {
                let mut words = vec![1, u64::from(*process), *nonce, *fork, *part, u64::from(*is_last)];
                for view in views {
                    let private = u64::from(view.sharing == Sharing::Private);
                    words.extend([view.cookie, view.start, view.length, view.offset, private]);
                }
                words
            }
            Ask::Sync { cookie, start, end, how } => vec![2, *cookie, *start, *end, *how as u64],
        }
    }

    fn from_words(words: &[u64]) -> Option<Ask> {
        match words {
            [1, process, nonce, fork, part, is_last, views @ ..] => {
                let (views, rest) = views.as_chunks::<5>();
                let view = |[cookie, start, length, offset, private]: &[u64; 5]| JoinedView {
                    cookie: *cookie,
                    start: *start,
                    length: *length,
                    offset: *offset,
                    sharing: if *private == 1 { Sharing::Private } else { Sharing::Shared },
                };
                let views = views.iter().map(view).collect();
                let process = u32::try_from(*process).ok()?;
                let (nonce, fork, part, is_last) = (*nonce, *fork, *part, *is_last == 1);
                rest.is_empty().then_some(Ask::Join { process, nonce, fork, part, is_last, views })
            }
            [2, cookie, start, end, how] => {
                let how = SyncKind::ALL.into_iter().find(|kind| *kind as u64 == *how)?;
                Some(Ask::Sync { cookie: *cookie, start: *start, end: *end, how })
            }
            _ => None,
        }
    }

    /// Sends it, with descriptors; does not wait for room.
    pub(crate) fn send(&self, socket: &OwnedFd, descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let bytes: Vec<u8> = self.to_words().iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, flags).map(drop)
    }

    /// Takes one, with its descriptors, if there is one.
    pub(crate) fn receive(socket: &OwnedFd) -> Result<Option<(Ask, Vec<OwnedFd>)>, Errno> {
        Self::receive_as(socket, RecvFlags::empty())
    }

    /// As [`receive`](Self::receive), and leaves it where it is.
    pub(crate) fn peek(socket: &OwnedFd) -> Result<Option<(Ask, Vec<OwnedFd>)>, Errno> {
        Self::receive_as(socket, RecvFlags::PEEK)
    }

    fn receive_as(socket: &OwnedFd, how: RecvFlags) -> Result<Option<(Ask, Vec<OwnedFd>)>, Errno> {
        let mut bytes = vec![0; 8 * WORDS_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC | how;
        let got = match recvmsg(socket.as_fd(), &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags) {
            Ok(got) => got.bytes,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        let (words, _) = bytes[..got].as_chunks::<8>();
        let words: Vec<u64> = words.iter().map(|word| u64::from_ne_bytes(*word)).collect();
        Ok(Ask::from_words(&words).map(|ask| (ask, descriptors)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_arrives_as_it_was_sent() {
        let (a, b) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let view =
            JoinedView { cookie: 7, start: 4096, length: 8192, offset: 1 << 40, sharing: Sharing::Private };
        let views = vec![view; VIEWS_MAX];
        let asks = [
            Ask::Join { process: 9, nonce: u64::MAX, fork: 3, part: 2, is_last: true, views },
            Ask::Sync { cookie: 1, start: 2, end: 3, how: SyncKind::Invalidate },
        ];
        for ask in &asks {
            ask.send(&a, &[a.as_fd(), b.as_fd(), a.as_fd()]).unwrap();
        }
        for ask in &asks {
            let (seen, looked_at) = Ask::peek(&b).unwrap().unwrap();
            let (got, descriptors) = Ask::receive(&b).unwrap().unwrap();
            assert_eq!((&seen, looked_at.len()), (ask, 3));
            assert_eq!((&got, descriptors.len()), (ask, 3));
        }
        assert!(Ask::receive(&b).unwrap().is_none());
    }
}
