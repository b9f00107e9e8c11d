//! The network: Ethernet over a VMBus channel.
//!
//! [`Network`] is one synthetic adapter. Opening it agrees on a version
//! ([`vmbus_proto::netvsp`]), lends the host a receive buffer and a send buffer, and asks the adapter
//! by RNDIS ([`vmbus_proto::rndis`]) what it is. From then on a frame is moved once by either side:
//!
//! - The host puts received frames into the receive buffer and tells where they are, many at a time.
//!   [`try_receive`](Network::try_receive) copies a frame out, checks the copy of its headers, and
//!   gives the room back.
//! - [`try_send`](Network::try_send) copies a frame into a section of the send buffer. With
//!   [`submit`](Network::submit) the host takes it straight out of a buffer that is given away by
//!   value, and comes back by [`poll_sent`](Network::poll_sent).
//!
//! Neither waits, both work from any processor and in interrupt handlers, and neither needs a heap:
//! [`NetworkMemory`] has places for as many frames on their way as the caller likes. With the feature
//! `async` both are futures, too (`receive_async`, `send_async`). With the feature `alloc` there are `receive` and `send` besides, in the shape of `virtio-drivers`' `VirtIONet`; with
//! the feature `smoltcp` a `Phy` for that stack.
//!
//! Nobody is told that frames wait but by the channel's interrupt;
//! [`wait_until_ready`](Network::wait_until_ready) sleeps until one does. Frames that nobody takes
//! fill the receive buffer, and then the host loses more; those beyond the places of
//! [`NetworkMemory`] are lost when the driver has to ask the host something, or waits for room.
//!
//! An adapter may have a queue for each processor ([`Network::open_with_queues`]): a channel with its
//! interrupt, and its own frames that wait. All frames of a flow, sent or received, go over one of
//! them, so that they stay in order; which flow takes which is as good as chance.
//! [`try_receive`](Network::try_receive) takes from all of them. A kernel whose processors are each to
//! take their own uses [`try_receive_from`](Network::try_receive_from) and
//! [`handle_queue_interrupt`](Network::handle_queue_interrupt).
//!
//! ```no_run
//! use core::time::Duration;
//! use guest_vsc::network::{self, Network, NetworkMemory, NetworkOptions};
//! use guest_vsc::{Error, Hal, VmBus};
//!
//! // Sends every frame back, until none has come for a second.
//! fn echo<'b, H: Hal>(
//!     bus: &'b VmBus<'b, H>,
//!     memory: &'b NetworkMemory<H>,
//! ) -> Result<(), Error> {
//!     let offer = bus.find(network::CLASS).ok_or(Error::NoOffer)?;
//!     let adapter = Network::open(bus, &offer, memory, &NetworkOptions::default())?;
//!     let mut frame = [0; 1514];
//!     while adapter.wait_until_ready(Duration::from_secs(1))? {
//!         let Some(received) = adapter.try_receive(&mut frame)? else {
//!             continue;
//!         };
//!         let (to, from) = frame[..12].split_at_mut(6);
//!         to.swap_with_slice(from);
//!         match adapter.try_send(&frame[..received.length]) {
//!             Ok(()) | Err(Error::Full) => {}
//!             Err(error) => return Err(error),
//!         }
//!     }
//!     Ok(())
//! }
//! ```

mod conversation;
#[cfg(feature = "async")]
mod future;
mod inbox;
mod open;
#[cfg(feature = "alloc")]
mod owned;
#[cfg(feature = "smoltcp")]
mod phy;
mod places;
mod queues;
mod receive;
mod scaling;
mod transmit;

#[cfg(feature = "async")]
pub use future::{ReceiveFrame, SendFrame};
#[cfg(feature = "alloc")]
pub use owned::{RxBuffer, TxBuffer};
#[cfg(feature = "smoltcp")]
pub use phy::Phy;
pub use places::Sent;
pub use queues::{MAX_QUEUES, QueueStats};
pub use receive::{Received, RxChecksum};

pub use crate::buffer::Buffer;
pub use crate::token::Token;
/// What belongs to a frame beside its bytes; see [`Network::try_send_with`].
pub use vmbus_proto::rndis::packet::{LargeSend, PacketInfo, TxChecksum, Vlan};

/// Class of the adapter, for [`VmBus::find`](crate::VmBus::find).
pub use vmbus_proto::netvsp::CLASS;

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use vmbus_proto::netvsp::Version;

use crate::bus::Claim;
use crate::channel::{Channel, OpenOptions};
use crate::error::{Error, Waited};
use crate::hal::Hal;
use crate::shared::Dma;
use crate::sub_channels::SubChannels;
use crate::sync::IrqMutex;
use conversation::Exchange;
use inbox::{Inbox, Waiting};
use places::{Place, Places};
use queues::Queues;
use receive::Until;

/// Bytes of Ethernet's header.
pub const ETHERNET_HEADER: usize = 14;

/// Sections of the send buffer that hosts make: Hyper-V's, and everybody's.
const USUAL_SECTION: u32 = 6144;

/// Memory of a network driver: places for `SENDS` packets on their way to the net, of which some may
/// be in buffers of type `B`; and for `FRAMES` frames from it that nobody has taken yet, in each of
/// `QUEUES` queues. One driver uses it at a time.
pub struct NetworkMemory<
    H: Hal,
    B = &'static mut [u8],
    const SENDS: usize = 64,
    const FRAMES: usize = 256,
    const QUEUES: usize = 1,
> {
    claimed: AtomicBool,
    places: IrqMutex<H, Places<[Place<B>; SENDS]>>,
    inboxes: [IrqMutex<H, Inbox<H, [Waiting; FRAMES]>>; QUEUES],
    #[cfg(feature = "alloc")]
    spare: IrqMutex<H, owned::Spare>,
}

impl<H: Hal, B, const SENDS: usize, const FRAMES: usize, const QUEUES: usize>
    NetworkMemory<H, B, SENDS, FRAMES, QUEUES>
{
    /// Memory that no driver uses yet.
    pub const fn new() -> Self {
        const { assert!(SENDS > 0 && SENDS < u16::MAX as usize && FRAMES > 0) }
        const { assert!(QUEUES > 0 && QUEUES <= MAX_QUEUES) }
        Self {
            claimed: AtomicBool::new(false),
            places: IrqMutex::new(Places::new([const { Place::new() }; SENDS])),
            inboxes: [const { IrqMutex::new(Inbox::new()) }; QUEUES],
            #[cfg(feature = "alloc")]
            spare: IrqMutex::new(owned::Spare::new()),
        }
    }
}

impl<H: Hal, B, const SENDS: usize, const FRAMES: usize, const QUEUES: usize> Default
    for NetworkMemory<H, B, SENDS, FRAMES, QUEUES>
{
    fn default() -> Self {
        Self::new()
    }
}

/// How to open an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkOptions {
    /// Bytes that a frame may have beside its Ethernet header; the adapter may allow less. Where that
    /// is too long for a section of the send buffer, each packet on its way takes whole pages besides,
    /// which lie together.
    pub mtu: u32,
    /// Bytes of the receive buffer, rounded up to whole pages, which lie together. A frame takes the
    /// MTU and about 200 bytes more.
    pub receive_buffer: u32,
    /// Bytes of the send buffer, rounded up to whole pages, which lie together. Hyper-V makes
    /// sections of 6144 bytes of it; each packet on its way takes one.
    pub send_buffer: u32,
    /// Whether to take frames to everybody.
    pub promiscuous: bool,
    /// Whether to have the adapter do what it can about checksums and large sends, as
    /// [`Network::offloads`] tells.
    pub offload: bool,
    /// Rings and processor of the channel.
    pub channel: OpenOptions,
}

impl Default for NetworkOptions {
    /// An MTU of 1500, buffers of 2 MiB and 384 KiB, offloads, rings of 64 KiB.
    fn default() -> Self {
        Self {
            mtu: 1500,
            receive_buffer: 2 << 20,
            send_buffer: 64 * USUAL_SECTION,
            promiscuous: false,
            offload: true,
            channel: OpenOptions::default(),
        }
    }
}

/// What the adapter does for the guest, where it is asked to frame by frame by
/// [`Network::try_send_with`], and what it may say of received frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// It completes the checksums of TCP over IPv4.
    pub tcp_ipv4: bool,
    /// Of UDP over IPv4.
    pub udp_ipv4: bool,
    /// Of IPv4's header.
    pub ipv4_header: bool,
    /// Of TCP over IPv6.
    pub tcp_ipv6: bool,
    /// Of UDP over IPv6.
    pub udp_ipv6: bool,
    /// Most bytes of a frame of TCP over IPv4 that it cuts into segments; 0 where it does not.
    pub large_send_ipv4: u32,
    /// The same over IPv6.
    pub large_send_ipv6: u32,
    /// It says of received frames whether their checksums are right ([`Received::checksum`]).
    pub receive: bool,
}

/// What an adapter has counted since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkStats {
    /// Frames received and taken.
    pub received: u64,
    /// Frames for which nobody had room: not the queue, or not the buffer they were to be copied to.
    pub lost: u64,
    /// Messages in the receive buffer, or outside of it, that cannot be.
    pub bad: u64,
    /// Frames given to the host.
    pub sent: u64,
    /// Of these, those that it refused.
    pub refused: u64,
    /// Frames of a stack's, made to be sent at once, for which there was no place.
    pub unsent: u64,
}

#[derive(Default)]
struct Counters {
    lost: AtomicU64,
    bad: AtomicU64,
    refused: AtomicU64,
    unsent: AtomicU64,
}

fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// A network adapter. Dropped, it is closed, which waits for the host; buffers still in flight are
/// dropped when the host has given them back, else lost.
pub struct Network<'b, H: Hal, B: Buffer = &'static mut [u8]> {
    channel: Channel<'b, H>,
    sub_channels: SubChannels<'b, H>,
    queues: Queues<'b, H>,
    places: &'b IrqMutex<H, Places<[Place<B>]>>,
    #[cfg(feature = "alloc")]
    spare: &'b IrqMutex<H, owned::Spare>,
    /// Futures that wait for news, and whether there was some.
    #[cfg(feature = "async")]
    wakers: IrqMutex<H, future::Wakers>,
    #[cfg(feature = "async")]
    taken: AtomicBool,
    exchange: IrqMutex<H, Exchange>,
    /// Whether a processor waits for an answer.
    asking: AtomicBool,
    next_request: AtomicU32,
    version: Option<Version>,
    receive_buffer: Dma<H>,
    send_buffer: Dma<H>,
    /// Where messages to the adapter are that are no frames.
    control_page: Dma<H>,
    /// Where frames are copied to that are too long for a section, where there can be such.
    copies: Option<transmit::Copies<H>>,
    /// Bytes of a section of the send buffer.
    section_size: usize,
    mac: [u8; 6],
    mtu: u32,
    offloads: Offloads,
    connected: AtomicBool,
    /// The host has said so since anybody asked.
    link_changed: AtomicBool,
    counters: Counters,
    _claim: Claim<'b>,
}

impl<'b, H: Hal, B: Buffer> Network<'b, H, B> {
    /// The adapter's address.
    pub fn mac_address(&self) -> [u8; 6] {
        self.mac
    }

    /// Bytes that a frame may have beside its Ethernet header.
    pub fn mtu(&self) -> usize {
        self.mtu as usize
    }

    /// Most bytes of a frame, header included.
    pub fn max_frame(&self) -> usize {
        self.mtu().saturating_add(ETHERNET_HEADER)
    }

    /// The version of netvsp that both speak.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// What the adapter does for the guest.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Whether the cable is plugged in, as far as the host has told. It tells in the same ring that
    /// frames come in, so that this is as new as the last look for those.
    pub fn link_is_up(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    /// Whether the cable is plugged in, where the host has said so since the last call: an address
    /// should be asked for anew then.
    pub fn take_link_change(&self) -> Option<bool> {
        let changed = self.link_changed.swap(false, Ordering::AcqRel);
        changed.then(|| self.link_is_up())
    }

    /// What was counted so far.
    pub fn stats(&self) -> NetworkStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let QueueStats { received, sent } = self.queues.stats();
        NetworkStats {
            received,
            lost: read(&self.counters.lost),
            bad: read(&self.counters.bad),
            sent,
            refused: read(&self.counters.refused),
            unsent: read(&self.counters.unsent),
        }
    }

    /// The first channel.
    pub fn channel(&self) -> &Channel<'b, H> {
        &self.channel
    }

    /// Takes what the host has for us: that frames were sent, changes of the link, where frames are.
    /// For an interrupt handler, after [`VmBus::handle_interrupt`](crate::VmBus::handle_interrupt);
    /// also harmless at any other time. Never waits.
    ///
    /// All queues are looked at, this processor's own first, whichever interrupt it was: a kernel that
    /// has another processor do the work loses nothing. One that has each do its own calls
    /// [`handle_queue_interrupt`](Self::handle_queue_interrupt).
    pub fn handle_interrupt(&self) {
        // The end of a channel is told by `check`.
        let _ = self.pump(Until::HalfFull);
        // Room in a ring is news that no packet tells.
        #[cfg(feature = "async")]
        self.wake();
    }

    /// The same of queue `queue` only, for the handler of the processor that its channel
    /// ([`channels`](Self::channels)) interrupts. Never waits.
    pub fn handle_queue_interrupt(&self, queue: usize) {
        if let Some(queue) = self.queue(queue) {
            let _ = self.pump_queue(queue, Until::HalfFull);
        }
        #[cfg(feature = "async")]
        self.wake();
    }

    /// Waits until a frame can be received or, where there was no place for one to send, until there
    /// is; at most for `timeout`. Says whether it came to that.
    ///
    /// # Errors
    /// A channel has come to an end.
    pub fn wait_until_ready(&self, timeout: Duration) -> Result<bool, Error> {
        let blocked = !self.places.with(|places| places.has_free());
        let deadline = self.channel.bus().hypervisor.deadline(timeout);
        let waited = self.every_channel().wait(Waited::Packet, deadline, || {
            self.check()?;
            let ready = self.can_recv() || (blocked && self.can_send());
            Ok(ready.then_some(()))
        });
        match waited {
            Ok(()) => Ok(true),
            Err(Error::Timeout(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Closes all channels and takes all memory back from the host: frames in flight are done, as
    /// failed, and their buffers wait to be taken by [`poll_sent`](Self::poll_sent). Waits for the
    /// host; where another processor does it already, for that.
    ///
    /// # Errors
    /// The host did not give its memory back: buffers in flight are lost.
    pub fn shutdown(&self) -> Result<(), Error> {
        let reason = match self.check() {
            Err(error) => error,
            Ok(()) => Error::Closed,
        };
        self.say_good_bye();
        // The host takes sub-channels away with the first channel, so they go before it.
        let closed = self.sub_channels.close().and(self.channel.close());
        let kept = closed.is_err();
        self.places.with(|places| places.end::<H>(reason, kept));
        if !kept {
            for memory in [&self.receive_buffer, &self.send_buffer, &self.control_page] {
                memory.reclaim();
            }
            if let Some(copies) = &self.copies {
                copies.memory().reclaim();
            }
        }
        #[cfg(feature = "async")]
        self.wake();
        closed
    }
}

impl<H: Hal, B: Buffer> Drop for Network<'_, H, B> {
    fn drop(&mut self) {
        // Nobody is left to be told: what the host did not give back stays lost.
        let _ = self.shutdown();
        while self.poll_sent().is_some() {}
        #[cfg(feature = "alloc")]
        self.drop_sent();
        self.places.with(|places| places.reset(0));
        self.queues.reset();
    }
}
