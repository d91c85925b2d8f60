//! Netlink messages: a socket, bounded parsing of received messages, and building of sent ones.
//!
//! Knows nothing of queues, sets or connections. No received length is trusted. The module is private to `kernel`,
//! also where items are `pub`.

#![allow(unsafe_code)]

pub mod nft;

use std::{
    io,
    net::IpAddr,
    ops::ControlFlow,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    ptr::NonNull,
};

use rustix::{
    io::{Errno, retry_on_intr},
    net::{RecvFlags, SendFlags, netlink::SocketAddrNetlink, recv, send, sendto},
};

/// `struct nlmsghdr`.
pub const HEADER: usize = 16;
/// `struct nfgenmsg`, which follows the header in every netfilter message.
pub const FAMILY_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;

/// How often to repeat a dump whose objects change meanwhile.
const DUMP_ATTEMPTS: usize = 8;

pub const ERROR: u16 = libc::NLMSG_ERROR as u16;
pub const DONE: u16 = libc::NLMSG_DONE as u16;

const fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// A received message without its header.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The error number of an `ERROR` or `DONE` message; 0 for an acknowledgement.
    pub fn errno(&self) -> i32 {
        self.body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code).saturating_neg())
    }

    /// The attributes after the family header.
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes { rest: self.body.get(FAMILY_HEADER..).unwrap_or_default() }
    }
}

/// The messages of one datagram, up to the first malformed one.
#[derive(Debug)]
pub struct Messages<'a> {
    rest: &'a [u8],
    malformed: bool,
}

impl<'a> Messages<'a> {
    pub fn new(datagram: &'a [u8]) -> Self {
        Self { rest: datagram, malformed: false }
    }

    /// Whether the iteration ended at a malformed message.
    pub fn is_malformed(&self) -> bool {
        self.malformed
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        let parsed = (|| {
            let length = u32_at(self.rest, 0)? as usize;
            let message = Message {
                kind: u16_at(self.rest, 4)?,
                flags: u16_at(self.rest, 6)?,
                sequence: u32_at(self.rest, 8)?,
                body: self.rest.get(HEADER..length)?,
            };
            Some((message, self.rest.get(align(length)..).unwrap_or_default()))
        })();
        match parsed {
            Some((message, rest)) => {
                self.rest = rest;
                Some(message)
            }
            None => {
                self.malformed = true;
                self.rest = &[];
                None
            }
        }
    }
}

/// Type and content of each attribute, up to the first malformed one.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Content of the first attribute of this type.
    pub fn first(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find(|(found, _)| *found == kind).map(|(_, content)| content)
    }

    /// Type of each attribute, and its bytes with header and padding.
    pub fn raw(mut self) -> impl Iterator<Item = (u16, &'a [u8])> {
        std::iter::from_fn(move || {
            let before = self.rest;
            let (kind, _) = self.next()?;
            before.get(..before.len() - self.rest.len()).map(|bytes| (kind, bytes))
        })
    }

    /// The attributes nested in the first attribute of this type.
    pub fn nested(&self, kind: u16) -> Option<Attributes<'a>> {
        self.first(kind).map(Attributes::new)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.rest, 0)?);
        let kind = u16_at(self.rest, 2)? & libc::NLA_TYPE_MASK as u16;
        let content = self.rest.get(ATTRIBUTE_HEADER..length)?;
        self.rest = self.rest.get(align(length)..).unwrap_or_default();
        Some((kind, content))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_ne_bytes(*b))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

/// Parses a big-endian number at the start of an attribute.
pub fn be16(content: &[u8]) -> Option<u16> {
    content.first_chunk().map(|b| u16::from_be_bytes(*b))
}

/// As [`be16`].
pub fn be32(content: &[u8]) -> Option<u32> {
    content.first_chunk().map(|b| u32::from_be_bytes(*b))
}

/// As [`be16`].
pub fn be64(content: &[u8]) -> Option<u64> {
    content.first_chunk().map(|b| u64::from_be_bytes(*b))
}

/// The octets of an address.
pub fn octets_of(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The address with these octets.
pub fn address_of(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => octets.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        _ => octets.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
    }
}

/// The family of an address (`AF_*`).
pub fn family_of(address: IpAddr) -> i32 {
    if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

/// The type of a netfilter message.
pub const fn kind_of(subsystem: i32, command: i32) -> u16 {
    (subsystem as u16) << 8 | command as u16
}

/// The family header of a netfilter message. `resource` is the queue number, in queue messages.
pub const fn family_header(family: i32, resource: u16) -> [u8; FAMILY_HEADER] {
    let [high, low] = resource.to_be_bytes();
    [family as u8, libc::NFNETLINK_V0 as u8, high, low]
}

/// Appends a request to `out`: `header` follows the message's own header, and `fill` appends the attributes.
/// `NLM_F_REQUEST` is always set.
pub fn put_message(
    out: &mut Vec<u8>,
    kind: u16,
    flags: i32,
    sequence: u32,
    header: &[u8],
    fill: impl FnOnce(&mut Writer<'_>),
) {
    let start = out.len();
    out.extend([0; 4]);
    out.extend(kind.to_ne_bytes());
    out.extend(((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend([0; 4]);
    out.extend_from_slice(header);
    fill(&mut Writer { out });
    let length = (out.len() - start) as u32;
    if let Some(field) = out.get_mut(start..start + 4) {
        field.copy_from_slice(&length.to_ne_bytes());
    }
}

/// Appends attributes to a message.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl Writer<'_> {
    /// Appends an attribute. Its content must be shorter than 65,532 bytes.
    pub fn put(&mut self, kind: u16, content: &[u8]) -> &mut Self {
        put_attribute(self.out, kind, content);
        self
    }

    /// Appends complete attributes with their padding.
    pub fn put_raw(&mut self, attributes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(attributes);
        self
    }

    /// Appends an attribute whose content `fill` appends.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let at = self.out.len();
        self.put(kind | libc::NLA_F_NESTED as u16, &[]);
        fill(self);
        let length = u16::try_from(self.out.len() - at).unwrap_or(u16::MAX);
        if let Some(field) = self.out.get_mut(at..at + 2) {
            field.copy_from_slice(&length.to_ne_bytes());
        }
        self
    }
}

/// Appends an attribute with its padding. Its content must be shorter than 65,532 bytes.
pub fn put_attribute(out: &mut Vec<u8>, kind: u16, content: &[u8]) {
    let length = u16::try_from(ATTRIBUTE_HEADER + content.len()).unwrap_or(u16::MAX);
    debug_assert_eq!(usize::from(length), ATTRIBUTE_HEADER + content.len());
    let content = content.get(..usize::from(length) - ATTRIBUTE_HEADER).unwrap_or_default();
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(content);
    out.resize(out.len() + align(content.len()) - content.len(), 0);
}

/// An attribute, for tests.
#[cfg(test)]
pub fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_attribute(&mut bytes, kind, content);
    bytes
}

/// Turns the kernel's answer that the object does not exist into `None`.
pub fn or_absent<T>(answer: io::Result<T>) -> io::Result<Option<T>> {
    match answer {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        other => other.map(Some),
    }
}

/// Repeats a dump while others interrupt it by changes; some attempts later it fails as `Interrupted`.
pub fn repeat_interrupted<T>(mut dump: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let is_interrupted = |dumped: &io::Result<T>| {
        dumped.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::Interrupted)
    };
    let mut dumped = dump();
    for _ in 1..DUMP_ATTEMPTS {
        if !is_interrupted(&dumped) {
            break;
        }
        dumped = dump();
    }
    dumped
}

/// Whether the kernel answers such a request of netfilter without attributes, and does not refuse it.
pub fn is_answered(kind: u16, flags: i32) -> bool {
    let header = family_header(libc::AF_UNSPEC, 0);
    let ask = |mut socket: Socket| socket.request(kind, flags, &header, |_| {}, |_| {});
    Socket::open().and_then(ask).is_ok()
}

/// A bound netlink socket, of netfilter unless opened for another family.
pub struct Socket {
    /// Not `mnl::Socket`, because child programs would inherit that and hold a queue open.
    inner: NonNull<mnl_sys::mnl_socket>,
    /// Memory for requests and for answers.
    request: Vec<u8>,
    answer: Vec<u8>,
    sequence: u32,
}

// SAFETY: libmnl's socket is a file descriptor and an address, and no thread owns it; the raw
// pointer to it is never shared, as `Socket` is not `Sync` and not `Clone`.
unsafe impl Send for Socket {}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket").field("fd", &self.as_fd()).finish_non_exhaustive()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket, and with it the descriptor, is open as long as `self` lives.
        unsafe { BorrowedFd::borrow_raw(mnl_sys::mnl_socket_get_fd(self.inner.as_ptr())) }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // SAFETY: it was opened by libmnl and is used no more.
        unsafe { mnl_sys::mnl_socket_close(self.inner.as_ptr()) };
    }
}

impl Socket {
    pub fn open() -> io::Result<Self> {
        Self::open_protocol(libc::NETLINK_NETFILTER)
    }

    /// Opens an rtnetlink socket, for interfaces and routes.
    pub fn open_route() -> io::Result<Self> {
        Self::open_protocol(libc::NETLINK_ROUTE)
    }

    fn open_protocol(protocol: i32) -> io::Result<Self> {
        // SAFETY: it only opens.
        let socket = unsafe { mnl_sys::mnl_socket_open2(protocol, libc::SOCK_CLOEXEC) };
        let inner = NonNull::new(socket).ok_or_else(io::Error::last_os_error)?;
        let socket = Self { inner, request: Vec::new(), answer: Vec::new(), sequence: 0 };
        // SAFETY: the socket is open.
        let bound = unsafe { mnl_sys::mnl_socket_bind(inner.as_ptr(), 0, 0) };
        if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
    }

    /// Sets an integer socket option.
    pub fn set_option(&self, level: i32, name: i32, value: i32) -> io::Result<()> {
        // SAFETY: the value's address and size are those of a live i32, which the kernel copies.
        let done = unsafe {
            libc::setsockopt(
                self.as_fd().as_raw_fd(),
                level,
                name,
                (&raw const value).cast(),
                size_of::<i32>() as libc::socklen_t,
            )
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// As [`Socket::set_option`], for a buffer size: beyond the system's limit, or up to the limit without the right to
    /// exceed it.
    pub fn set_buffer(&self, force: i32, polite: i32, size: i32) {
        if self.set_option(libc::SOL_SOCKET, force, size).is_err() {
            let _ = self.set_option(libc::SOL_SOCKET, polite, size);
        }
    }

    /// A sequence number that was not used recently; never 0, which the kernel uses itself.
    pub fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    /// The kernel's port number of the socket.
    pub fn port(&self) -> u32 {
        // SAFETY: the socket lives as long as `self`.
        unsafe { mnl_sys::mnl_socket_get_portid(self.inner.as_ptr()) }
    }

    /// Sends to another socket than the kernel's, which needs CAP_NET_ADMIN.
    pub fn send_to(&self, bytes: &[u8], port: u32) -> io::Result<()> {
        let address = SocketAddrNetlink::new(port, 0);
        Ok(sendto(self, bytes, SendFlags::DONTWAIT, &address).map(drop)?)
    }

    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        match retry_on_intr(|| send(self, bytes, SendFlags::empty()))? {
            sent if sent == bytes.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Sends one request, as [`put_message`] builds it, and passes each message of the answer to `each`. A refusal is an
    /// error. Returns whether a dump is consistent; otherwise objects may be missing or repeated.
    pub fn request(
        &mut self,
        kind: u16,
        flags: i32,
        header: &[u8],
        fill: impl FnOnce(&mut Writer<'_>),
        mut each: impl FnMut(&Message<'_>),
    ) -> io::Result<bool> {
        let (sequence, mut request) = (self.next_sequence(), std::mem::take(&mut self.request));
        request.clear();
        put_message(&mut request, kind, flags, sequence, header, fill);
        let (mut failed, mut is_consistent) = (0, true);
        let answered = self.ask_by_datagram(&request, |messages| {
            let mut is_answered = false;
            for message in messages.filter(|message| message.sequence == sequence) {
                is_consistent &= i32::from(message.flags) & libc::NLM_F_DUMP_INTR == 0;
                match message.kind {
                    ERROR | DONE => {
                        failed = failed.max(message.errno());
                        is_answered = true;
                    }
                    _ => each(&message),
                }
            }
            if is_answered { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        self.request = request;
        answered?;
        if failed == 0 { Ok(is_consistent) } else { Err(io::Error::from_raw_os_error(failed)) }
    }

    /// As [`Socket::request`], for a dump whose request is `header`, and has no attributes.
    pub fn dump(
        &mut self,
        kind: u16,
        header: &[u8],
        each: impl FnMut(&Message<'_>),
    ) -> io::Result<bool> {
        self.request(kind, libc::NLM_F_DUMP, header, |_| {}, each)
    }

    /// Sends `request` and passes each message of the answer to `each`.
    ///
    /// netlink_sendmsg() returns after the kernel has queued its answers (of a dump the first part, and each later part
    /// when the previous one is read). So this never blocks, and leaves nothing for the next request. That holds after
    /// an error of recv(2) as well, which the kernel reports once.
    pub fn ask(&mut self, request: &[u8], mut each: impl FnMut(Message<'_>)) -> io::Result<()> {
        self.ask_by_datagram(request, |messages| {
            messages.for_each(&mut each);
            ControlFlow::Continue(())
        })
    }

    /// As [`Socket::ask`], until `each` breaks. What remains of a dump is then for the next request, so there must be
    /// none.
    pub fn ask_by_datagram(
        &mut self,
        request: &[u8],
        mut each: impl FnMut(Messages<'_>) -> ControlFlow<()>,
    ) -> io::Result<()> {
        self.send(request)?;
        let mut buffer = std::mem::take(&mut self.answer);
        buffer.resize(1 << 16, 0);
        let mut received = Ok(());
        loop {
            match retry_on_intr(|| recv(&*self, &mut buffer[..], RecvFlags::DONTWAIT)) {
                Ok((0, _)) | Err(Errno::WOULDBLOCK) => break,
                Ok((length, _)) => {
                    let messages = Messages::new(buffer.get(..length).unwrap_or_default());
                    if each(messages).is_break() {
                        break;
                    }
                }
                Err(error) if received.is_ok() => received = Err(error.into()),
                Err(_) => break,
            }
        }
        self.answer = buffer;
        received
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn put(out: &mut Vec<u8>, fill: impl FnOnce(&mut Writer<'_>)) {
        put_message(out, 0x302, 0, 7, &family_header(0, 2100), fill);
    }

    /// The answers do not fit the receive buffer: the first recv(2) fails with ENOBUFS.
    #[test]
    fn a_failed_request_leaves_no_answer_for_the_next_one() {
        let mut socket = Socket::open_route().unwrap();
        socket.set_option(libc::SOL_SOCKET, libc::SO_RCVBUF, 1).unwrap();
        // Of an unknown type, so each is answered with an error.
        let mut requests = Vec::new();
        (1..100).for_each(|n| put_message(&mut requests, 0xfff, 0, n, &[], |_| {}));
        let error = socket.ask(&requests, |_| {}).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOBUFS));
        let mut answers = Vec::new();
        let mut request = Vec::new();
        put_message(&mut request, 0xfff, 0, 100, &[], |_| {});
        socket.ask(&request, |message| answers.push(message.sequence)).unwrap();
        assert_eq!(answers, [100]);
    }

    #[test]
    fn a_message_longer_than_its_datagram_is_malformed() {
        let mut bytes = Vec::new();
        put(&mut bytes, |message| {
            message.put(1, &[1; 8]);
        });
        bytes.pop();
        let mut messages = Messages::new(&bytes);
        assert!(messages.next().is_none() && messages.is_malformed());
    }

    proptest! {
        #[test]
        fn nothing_the_kernel_could_send_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for message in Messages::new(&bytes) {
                message.errno();
                for (_, content) in message.attributes() {
                    Attributes::new(content).for_each(drop);
                }
            }
        }
    }
}
