//! The synthetic keyboard: the host types, the guest reads.
//!
//! The protocol is in [`vmbus_proto::keyboard`]. Keystrokes wait here for the ring, up to
//! [`LIMIT`]; a guest without a driver gets none. Linux's driver drops what comes before its input
//! device is there.

mod layout;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vmbus_proto::keyboard::{
    CLASS, FLAG_BREAK, FLAG_E0, FromGuest, INSTANCE, Keystroke, ProtocolResponse, VERSION,
};
use vmbus_proto::message::OfferChannel;
use vmbus_proto::packet::{Outgoing, PacketKind};
use vmbus_proto::ring::SendError;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use zerocopy::IntoBytes as _;

use crate::ic::Error;
use crate::vmbus::channel::{Channel, ChannelError};
use crate::vsp::{StateError, Vsp, plain_offer};

/// Most keystrokes that wait for the guest.
pub const LIMIT: usize = 4096;

/// A key, by its scan code of set 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Code when pressed: 1 to 0x7F.
    pub code: u8,
    /// Whether E0 comes before it.
    pub extended: bool,
}

impl Key {
    /// The key of `code`.
    pub const fn new(code: u8) -> Self {
        Self {
            code,
            extended: false,
        }
    }

    /// The key of E0 and `code`.
    pub const fn extended(code: u8) -> Self {
        Self {
            code,
            extended: true,
        }
    }

    /// Left Ctrl.
    pub const CTRL: Self = Self::new(0x1D);
    /// Left Shift.
    pub const SHIFT: Self = Self::new(0x2A);
    /// Left Alt.
    pub const ALT: Self = Self::new(0x38);
    /// Enter.
    pub const ENTER: Self = Self::new(0x1C);
    /// Delete.
    pub const DELETE: Self = Self::extended(0x53);
}

/// A key goes down or up.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Stroke {
    key: Key,
    down: bool,
}

/// What both ends share.
struct Shared {
    state: Mutex<State>,
    event: EventFd,
}

#[derive(Default, Serialize, Deserialize)]
struct State {
    /// The guest's driver speaks our version.
    accepted: bool,
    /// The answer that the guest waits for.
    answer: Option<bool>,
    /// The channel runs.
    #[serde(skip)]
    running: bool,
    strokes: VecDeque<Stroke>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The embedder's end of the keyboard.
#[derive(Clone)]
pub struct Keyboard(Arc<Shared>);

impl Keyboard {
    /// The keyboard: its VSP to offer, and this.
    ///
    /// # Errors
    /// The system gives no file descriptor.
    pub fn new() -> io::Result<(Box<dyn Vsp>, Self)> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            event: EventFd::new(EFD_NONBLOCK)?,
        });
        let vsp = KeyboardVsp {
            shared: Arc::clone(&shared),
            // The header and the padding of a message's packet.
            packet: vec![0; 256],
        };
        Ok((Box::new(vsp), Self(shared)))
    }

    /// Whether the guest has a driver that would listen.
    pub fn is_ready(&self) -> bool {
        let state = self.0.lock();
        state.accepted && state.running
    }

    /// Types `text` on a keyboard with the layout of the United States; a new line is Enter.
    /// Returns before the guest has read it.
    ///
    /// # Errors
    /// No key types a character of it ([`Error::Unsuitable`]), in which case nothing is typed; the
    /// guest does not listen, or too much waits for it already.
    pub fn type_text(&self, text: &str) -> Result<(), Error> {
        let mut strokes = Vec::new();
        for character in text.chars() {
            let (key, shifted) = layout::key(character).ok_or(Error::Unsuitable)?;
            let shift = shifted.then_some(Key::SHIFT);
            strokes.extend(together(shift.into_iter().chain([key])));
        }
        self.send(strokes)
    }

    /// Presses `keys` one after the other and releases them in reverse, such as Ctrl, Alt and
    /// Delete.
    ///
    /// # Errors
    /// A code is none ([`Error::Unsuitable`]), the guest does not listen, or too much waits for it
    /// already.
    pub fn press(&self, keys: &[Key]) -> Result<(), Error> {
        if keys.iter().any(|key| !(1..0x80).contains(&key.code)) {
            return Err(Error::Unsuitable);
        }
        self.send(together(keys.iter().copied()).collect())
    }

    fn send(&self, strokes: Vec<Stroke>) -> Result<(), Error> {
        let mut state = self.0.lock();
        if !(state.accepted && state.running) {
            return Err(Error::NotReady);
        }
        if state.strokes.len() + strokes.len() > LIMIT {
            return Err(Error::Busy);
        }
        state.strokes.extend(strokes);
        drop(state);
        // An eventfd that is full is readable, which is all we want of it.
        let _ = self.0.event.write(1);
        Ok(())
    }
}

/// All down in order, all up in reverse.
fn together(keys: impl DoubleEndedIterator<Item = Key> + Clone) -> impl Iterator<Item = Stroke> {
    let down = keys.clone().map(|key| Stroke { key, down: true });
    let up = keys.rev().map(|key| Stroke { key, down: false });
    down.chain(up)
}

/// The host's end of the keyboard.
struct KeyboardVsp {
    shared: Arc<Shared>,
    packet: Vec<u8>,
}

/// Sends a message; false where the ring has no room now.
fn send(channel: &mut Channel, message: &[u8]) -> Result<bool, ChannelError> {
    match channel.send(&Outgoing::in_band(0, message, false)) {
        Ok(()) => Ok(true),
        Err(SendError::Full) => Ok(false),
        Err(SendError::TooLong) => Err(ChannelError::Protocol("the keyboard's ring is too small")),
        Err(SendError::Corrupt(corrupt)) => Err(corrupt.into()),
    }
}

/// Answers the guest, where it waits; false where that has to wait for room.
fn send_answer(state: &mut State, channel: &mut Channel) -> Result<bool, ChannelError> {
    let Some(accepted) = state.answer else {
        return Ok(true);
    };
    let sent = send(channel, ProtocolResponse::new(accepted).as_bytes())?;
    if sent {
        state.answer = None;
        state.accepted = accepted;
    }
    Ok(sent)
}

impl Vsp for KeyboardVsp {
    fn offer(&self) -> OfferChannel {
        plain_offer(CLASS, INSTANCE)
    }

    fn opened(&mut self) {
        *self.shared.lock() = State::default();
    }

    fn service(&mut self, channel: &mut Channel) -> Result<(), ChannelError> {
        // Not blocking; an event that was not set is no error.
        let _ = self.shared.event.read();
        let mut state = self.shared.lock();
        state.running = true;
        // Room for an answer comes before the next question.
        while send_answer(&mut state, channel)? {
            let Some(packet) = channel.receive(&mut self.packet)? else {
                break;
            };
            match packet.kind {
                PacketKind::InBand => {}
                PacketKind::Completion => continue,
                _ => return Err(ChannelError::Protocol("a keyboard packet is not in-band")),
            }
            match FromGuest::parse(packet.payload) {
                Ok(FromGuest::Version(version)) => state.answer = Some(version == VERSION),
                // There is nobody to see them.
                Ok(FromGuest::Lights(_)) => {}
                Err(_) => return Err(ChannelError::Protocol("a keyboard message makes no sense")),
            }
        }
        while state.accepted && state.answer.is_none() {
            let Some(Stroke { key, down }) = state.strokes.front() else {
                break;
            };
            let up = if *down { 0 } else { FLAG_BREAK };
            let extended = if key.extended { FLAG_E0 } else { 0 };
            let message = Keystroke::new(key.code.into(), up | extended);
            if !send(channel, message.as_bytes())? {
                break;
            }
            state.strokes.pop_front();
        }
        Ok(())
    }

    fn event(&self) -> Option<RawFd> {
        Some(self.shared.event.as_raw_fd())
    }

    fn quiesce(&mut self) {
        self.shared.lock().running = false;
    }

    fn save(&self) -> Vec<u8> {
        // Numbers cannot fail to serialize.
        postcard::to_stdvec(&*self.shared.lock()).unwrap_or_default()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let bad = |reason: String| StateError {
            device: "the keyboard",
            reason,
        };
        let state: State = postcard::from_bytes(state).map_err(|error| bad(error.to_string()))?;
        if state.strokes.len() > LIMIT {
            return Err(bad("too many keystrokes".into()));
        }
        *self.shared.lock() = state;
        Ok(())
    }
}
