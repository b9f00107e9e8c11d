//! A client of the NBD protocol: fixed newstyle negotiation, simple replies, many requests in
//! flight on one connection.
//!
//! The server is a process of its own that may die, stand still or answer nonsense. Then the
//! connection is given up as a whole: every request ends with an error, those in flight and those
//! to come. Nobody waits longer than the connection's patience, and no answer takes more memory
//! than its request asked for. Source: the NBD project's `doc/proto.md`.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use std::collections::HashMap;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// First word of a server: `NBDMAGIC`.
const SERVER_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second word of a server with options, and first of each option: `IHAVEOPT`.
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First word of an option's reply.
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First word of a request.
const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First word of a simple reply.
const REPLY_MAGIC: u32 = 0x6744_6698;

/// Handshake flag, of both sides: the negotiation is the fixed one.
const FIXED_NEWSTYLE: u16 = 1;

/// Option: take this export and begin.
const OPTION_GO: u32 = 7;
/// Reply: the option is done.
const REPLY_ACK: u32 = 1;
/// Reply: something about the export.
const REPLY_INFO: u32 = 3;
/// Bit of replies that are errors.
const REPLY_ERROR: u32 = 1 << 31;
/// What [`REPLY_INFO`] is about: size and flags.
const INFO_EXPORT: u16 = 0;

/// Replies to one option, and bytes of each, that are still sane.
const MAX_REPLIES: usize = 64;
const MAX_REPLY: u32 = 4096;

/// Export flag: the others mean something.
const HAS_FLAGS: u16 = 1;
/// Export flag: it must not be written.
const READ_ONLY: u16 = 1 << 1;
/// Export flag: FLUSH works.
const SEND_FLUSH: u16 = 1 << 2;
/// Export flag: a write may be FUA.
const SEND_FUA: u16 = 1 << 3;

/// Flag of a command: durable before the reply.
const COMMAND_FUA: u16 = 1;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
}

/// A connection to an export.
#[derive(Debug)]
pub(super) struct Client {
    shared: Arc<Shared>,
    patience: Duration,
    size: u64,
    flags: u16,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    stream: UnixStream,
    /// Held while a request is written, so that requests do not mix.
    writing: Mutex<()>,
    pending: Mutex<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    /// Why there will be no answers any more.
    dead: Option<String>,
    next_cookie: u64,
    /// By cookie.
    waiting: HashMap<u64, Waiter>,
}

#[derive(Debug)]
struct Waiter {
    /// Bytes that come with a success.
    length: usize,
    answer: SyncSender<io::Result<Vec<u8>>>,
}

fn nonsense(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the NBD server answers nonsense: {what}"),
    )
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the connection up; whoever waits is told.
    fn give_up(&self, why: &str) {
        let mut pending = self.pending();
        if pending.dead.is_some() {
            return;
        }
        tracing::error!(%why, "the connection to an NBD server ends: its disk is gone");
        pending.dead = Some(why.to_owned());
        // Fails only where it is closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
        for waiter in std::mem::take(&mut pending.waiting).into_values() {
            let _ = waiter.answer.send(Err(dead(why)));
        }
    }

    /// Takes replies until the connection ends; why it did.
    fn read_replies(&self) -> io::Error {
        loop {
            if let Err(error) = self.read_reply() {
                return error;
            }
        }
    }

    fn read_reply(&self) -> io::Result<()> {
        let magic = u32::from_be_bytes(take(&self.stream)?);
        if magic != REPLY_MAGIC {
            return Err(nonsense("no reply begins like that"));
        }
        let code = u32::from_be_bytes(take(&self.stream)?);
        let cookie = u64::from_be_bytes(take(&self.stream)?);
        let waiter = self.pending().waiting.remove(&cookie);
        let waiter = waiter.ok_or_else(|| nonsense("a reply to no request"))?;
        let answer = if code == 0 {
            let mut data = vec![0; waiter.length];
            let read = (&self.stream).read_exact(&mut data);
            if let Err(error) = read {
                let copy = io::Error::new(error.kind(), error.to_string());
                let _ = waiter.answer.send(Err(copy));
                return Err(error);
            }
            Ok(data)
        } else {
            Err(error_of(code))
        };
        // Who does not wait any more has given the connection up.
        let _ = waiter.answer.send(answer);
        Ok(())
    }
}

fn dead(why: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotConnected,
        format!("the NBD server is gone: {why}"),
    )
}

/// The protocol's error codes are those of Linux; others mean that something failed.
fn error_of(code: u32) -> io::Error {
    match i32::try_from(code) {
        Ok(
            code @ (libc::EPERM
            | libc::ENOMEM
            | libc::EINVAL
            | libc::ENOSPC
            | libc::EOVERFLOW
            | libc::ENOTSUP
            | libc::ESHUTDOWN),
        ) => io::Error::from_raw_os_error(code),
        _ => io::Error::from_raw_os_error(libc::EIO),
    }
}

fn take<const N: usize>(mut stream: &UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

impl Client {
    /// Takes the export `name` of the server at the other end of `stream`. No request waits longer
    /// than `patience`.
    ///
    /// # Errors
    /// The server does not serve it, or not in a way that a disk can be kept in.
    pub(super) fn new(stream: UnixStream, name: &str, patience: Duration) -> io::Result<Self> {
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let (size, flags) = negotiate(&stream, name)?;
        if flags & HAS_FLAGS == 0 || flags & SEND_FLUSH == 0 {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the NBD server cannot flush, so nothing would be safe in it",
            ));
        }
        // Between requests there is nothing to read; each request has its own patience.
        stream.set_read_timeout(None)?;
        let shared = Arc::new(Shared {
            stream,
            writing: Mutex::default(),
            pending: Mutex::default(),
        });
        let reading = Arc::clone(&shared);
        let reader = std::thread::Builder::new()
            .name("nbd".into())
            .spawn(move || {
                let error = reading.read_replies();
                reading.give_up(&error.to_string());
            })?;
        Ok(Self {
            shared,
            patience,
            size,
            flags,
            reader: Some(reader),
        })
    }

    /// Bytes of the export.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Whether it must not be written.
    pub(super) fn read_only(&self) -> bool {
        self.flags & READ_ONLY != 0
    }

    /// The `length` bytes at `offset`.
    pub(super) fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.request(Command::Read, 0, offset, length, &[])
    }

    /// Puts `data` at `offset`; with `durable` it survives a power failure when this returns.
    pub(super) fn write(&self, offset: u64, data: &[u8], durable: bool) -> io::Result<()> {
        let fua = if durable { self.flags & SEND_FUA } else { 0 };
        let flags = if fua != 0 { COMMAND_FUA } else { 0 };
        self.request(Command::Write, flags, offset, data.len(), data)?;
        if durable && fua == 0 {
            return self.flush();
        }
        Ok(())
    }

    /// Makes all writes that have returned survive a power failure.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.request(Command::Flush, 0, 0, 0, &[]).map(drop)
    }

    fn request(
        &self,
        command: Command,
        flags: u16,
        offset: u64,
        length: usize,
        data: &[u8],
    ) -> io::Result<Vec<u8>> {
        let (answer, wait) = sync_channel(1);
        let cookie = {
            let mut pending = self.shared.pending();
            if let Some(why) = &pending.dead {
                return Err(dead(why));
            }
            let cookie = pending.next_cookie;
            pending.next_cookie = cookie.wrapping_add(1);
            let length = if command == Command::Read { length } else { 0 };
            pending.waiting.insert(cookie, Waiter { length, answer });
            cookie
        };
        if let Err(error) = self.send(command, flags, cookie, offset, length, data) {
            self.shared.give_up(&error.to_string());
        }
        match wait.recv_timeout(self.patience) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => {
                let why = format!("no answer for {} s", self.patience.as_secs());
                self.shared.give_up(&why);
                Err(dead(&why))
            }
            Err(RecvTimeoutError::Disconnected) => Err(dead("it sends no answers any more")),
        }
    }

    fn send(
        &self,
        command: Command,
        flags: u16,
        cookie: u64,
        offset: u64,
        length: usize,
        data: &[u8],
    ) -> io::Result<()> {
        let length = u32::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        let header = [
            &REQUEST_MAGIC.to_be_bytes()[..],
            &flags.to_be_bytes(),
            &(command as u16).to_be_bytes(),
            &cookie.to_be_bytes(),
            &offset.to_be_bytes(),
            &length.to_be_bytes(),
        ]
        .concat();
        let writing = &self.shared.writing;
        let _writing = writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut slices = &mut [IoSlice::new(&header), IoSlice::new(data)][..];
        // `write_all_vectored` is not stable yet.
        while slices.iter().any(|slice| !slice.is_empty()) {
            match (&self.shared.stream).write_vectored(slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut slices, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let is_alive = {
            let mut pending = self.shared.pending();
            // From here on its end is no news.
            pending.dead.replace("it was let go".into()).is_none()
        };
        if is_alive {
            let _ = self.send(Command::Disconnect, 0, 0, 0, 0, &[]);
        }
        let _ = self.shared.stream.shutdown(Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Takes the export `name`; its size and flags.
fn negotiate(mut stream: &UnixStream, name: &str) -> io::Result<(u64, u16)> {
    if u64::from_be_bytes(take(stream)?) != SERVER_MAGIC
        || u64::from_be_bytes(take(stream)?) != OPTION_MAGIC
    {
        return Err(nonsense("it is no server of fixed newstyle"));
    }
    let flags = u16::from_be_bytes(take(stream)?);
    if flags & FIXED_NEWSTYLE == 0 {
        return Err(nonsense("it is no server of fixed newstyle"));
    }
    let name_length = u32::try_from(name.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // The name, its length, and the number of things that we want to know besides: none.
    let data = [
        &name_length.to_be_bytes()[..],
        name.as_bytes(),
        &0u16.to_be_bytes(),
    ]
    .concat();
    let length = u32::try_from(data.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let hello = [
        &u32::from(FIXED_NEWSTYLE).to_be_bytes()[..],
        &OPTION_MAGIC.to_be_bytes(),
        &OPTION_GO.to_be_bytes(),
        &length.to_be_bytes(),
        &data,
    ]
    .concat();
    stream.write_all(&hello)?;
    let mut export = None;
    for _ in 0..MAX_REPLIES {
        if u64::from_be_bytes(take(stream)?) != OPTION_REPLY_MAGIC
            || u32::from_be_bytes(take(stream)?) != OPTION_GO
        {
            return Err(nonsense("a reply to no option"));
        }
        let kind = u32::from_be_bytes(take(stream)?);
        let length = u32::from_be_bytes(take(stream)?);
        if length > MAX_REPLY {
            return Err(nonsense("an endless reply"));
        }
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data)?;
        match kind {
            REPLY_ACK => return export.ok_or_else(|| nonsense("an export without a size")),
            REPLY_INFO => export = export_info(&data).or(export),
            _ if kind & REPLY_ERROR != 0 => {
                let text = String::from_utf8_lossy(&data);
                return Err(io::Error::other(format!(
                    "the NBD server has no export {name:?}: {}",
                    text.escape_debug()
                )));
            }
            _ => return Err(nonsense("an unknown reply")),
        }
    }
    Err(nonsense("too many replies"))
}

/// Size and flags, where `data` is about those.
fn export_info(data: &[u8]) -> Option<(u64, u16)> {
    let (kind, rest) = data.split_first_chunk()?;
    if u16::from_be_bytes(*kind) != INFO_EXPORT {
        return None;
    }
    let (size, rest) = rest.split_first_chunk()?;
    let flags = rest.first_chunk()?;
    Some((u64::from_be_bytes(*size), u16::from_be_bytes(*flags)))
}

#[cfg(test)]
mod tests;
