//! A guest played by hand: both rings over plain memory, no driver.

use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmbus_proto::gpa::GpaRangeWriter;
use vmbus_proto::packet::{Outgoing, PacketKind};
use vmbus_proto::ring::{Consumer, Producer, SendError};
use vmbus_proto::scsi::{Cdb, Sense};
use vmbus_proto::storvsp::{DATA_IN, DATA_NONE, DATA_OUT, Operation, Srb, VstorPacket};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::memory::GuestMemory;
use crate::storage::Controller;
use crate::vmbus::channel::Channel;
use crate::vmbus::ring_memory::GuestRing;
use crate::vsp::Vsp as _;

/// Where buffers of tests may be: RAM from here to [`RAM_END`].
pub(super) const DATA: u64 = 4 << 20;
/// The end of RAM.
pub(super) const RAM_END: u64 = 32 << 20;

/// No wait of a test is longer, in milliseconds.
const DEADLINE_MS: i32 = 20_000;

/// One range of guest memory: length, offset in its first page, page numbers.
pub(super) type Range = (u32, u32, Vec<u64>);

/// The guest, the channel, and the VSP behind it.
pub(super) struct Guest {
    pub(super) vsp: Controller,
    pub(super) memory: Arc<dyn GuestMemory>,
    channel: Channel,
    to_host: Producer<GuestRing>,
    to_guest: Consumer<GuestRing>,
    rings: [Arc<[u64]>; 2],
    next_id: u64,
}

impl Guest {
    /// A guest that has opened the channel, with rings of so many data pages.
    pub(super) fn with_rings(mut vsp: Controller, to_host: u64, to_guest: u64) -> Self {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), RAM_END as usize)]);
        let memory: Arc<dyn GuestMemory> = Arc::new(memory.unwrap());
        // Rings from page 1 and from page 512 on, not to be confused with buffers.
        let pages = |first: u64, data: u64| (first..=first + data).map(|page| page * 4096);
        let rings: [Arc<[u64]>; 2] = [pages(1, to_host).collect(), pages(512, to_guest).collect()];
        let ring = |n: usize| GuestRing::new(Arc::clone(&memory), &rings[n]).unwrap();
        let channel = Channel::new(
            Consumer::attach(ring(0)).unwrap(),
            Producer::attach(ring(1)).unwrap(),
            Arc::clone(&memory),
        );
        let (to_host, to_guest) = (
            Producer::attach(ring(0)).unwrap(),
            Consumer::attach(ring(1)).unwrap(),
        );
        vsp.opened();
        Self {
            vsp,
            memory,
            channel,
            to_host,
            to_guest,
            rings,
            next_id: 0x1000,
        }
    }

    /// A guest that has initialized the controller.
    pub(super) fn ready(vsp: Controller) -> Self {
        Self::ready_with_rings(vsp, 64, 32)
    }

    pub(super) fn ready_with_rings(vsp: Controller, to_host: u64, to_guest: u64) -> Self {
        let mut guest = Self::with_rings(vsp, to_host, to_guest);
        for packet in [
            VstorPacket::request(Operation::BeginInitialization),
            VstorPacket::query_protocol_version(0x0602),
            VstorPacket::request(Operation::QueryProperties),
            VstorPacket::request(Operation::EndInitialization),
        ] {
            assert_eq!(guest.ask(&packet).status.get(), 0);
        }
        guest
    }

    /// Puts another VSP, restored from what this one saves, in its place.
    pub(super) fn move_to(&mut self, mut fresh: Controller) {
        self.vsp.quiesce();
        let state = self.vsp.save();
        fresh.restore(&state).unwrap();
        let (read, write) = self.channel.indices();
        let ring = |n: usize| GuestRing::new(Arc::clone(&self.memory), &self.rings[n]);
        self.channel = Channel::new(
            Consumer::resume(ring(0).unwrap(), read).unwrap(),
            Producer::resume(ring(1).unwrap(), write).unwrap(),
            Arc::clone(&self.memory),
        );
        self.vsp = fresh;
    }

    /// A transaction id not used before.
    pub(super) fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Puts a packet into the ring; `false` where it is full.
    pub(super) fn put(&mut self, packet: &Outgoing<'_>) -> bool {
        match self.to_host.send(packet) {
            Ok(_) => true,
            Err(SendError::Full) => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// Puts an SRB with its ranges into the ring.
    pub(super) fn put_srb(&mut self, id: u64, srb: &Srb, ranges: &[Range]) -> bool {
        let packet = VstorPacket::execute_srb(srb);
        let payload = packet.wire_bytes(64);
        if ranges.is_empty() {
            return self.put(&Outgoing::in_band(id, payload, true));
        }
        let mut bytes = vec![0; 128 * 1024];
        let bytes = encode(&mut bytes, ranges);
        self.put(&Outgoing::gpa_direct(id, bytes, payload))
    }

    /// What a worker does once: serve, and give the ring's room back.
    pub(super) fn serve(&mut self) {
        self.channel.mask();
        self.vsp.service(&mut self.channel).unwrap();
        self.channel.commit().unwrap();
    }

    /// Takes one answer that is already in the ring.
    pub(super) fn take(&mut self) -> Option<(u64, Vec<u8>)> {
        let mut buffer = [0; 256];
        let packet = self.to_guest.receive(&mut buffer).unwrap()?;
        assert!(matches!(packet.kind, PacketKind::Completion), "{packet:?}");
        let answer = (packet.transaction_id, packet.payload.to_vec());
        let _ = self.to_guest.commit().unwrap();
        Some(answer)
    }

    /// Takes a packet that answers nothing: transaction id and content.
    pub(super) fn take_news(&mut self) -> Option<(u64, VstorPacket)> {
        let mut buffer = [0; 256];
        let packet = self.to_guest.receive(&mut buffer).unwrap()?;
        assert!(matches!(packet.kind, PacketKind::InBand), "{packet:?}");
        let news = (
            packet.transaction_id,
            VstorPacket::parse(packet.payload).unwrap(),
        );
        let _ = self.to_guest.commit().unwrap();
        Some(news)
    }

    /// Fills the ring to the guest with answers, as far as they fit; how many those are.
    pub(super) fn fill(&mut self, srb: &Srb) -> usize {
        // A packet, its header and its trailer.
        const ANSWER: usize = 64 + 16 + 8;
        let room = ((self.rings[1].len() - 1) * 4096 - 8) / ANSWER;
        for _ in 0..room {
            let id = self.id();
            assert!(self.put_srb(id, srb, &[]));
            self.serve();
        }
        room
    }

    /// Serves until `count` answers have come, each a whole packet.
    pub(super) fn answers(&mut self, count: usize) -> Vec<(u64, VstorPacket)> {
        let mut answers = Vec::new();
        loop {
            self.serve();
            let before = answers.len();
            while let Some((id, payload)) = self.take() {
                let packet = VstorPacket::parse(&payload).unwrap();
                assert_eq!(packet.operation(), Some(Operation::CompleteIo));
                answers.push((id, packet));
            }
            if answers.len() >= count {
                assert_eq!(answers.len(), count, "more answers than requests");
                return answers;
            }
            // Room in the ring is one reason to serve again, the event is the other.
            if answers.len() == before {
                let seen = self.wait_event(DEADLINE_MS);
                assert!(seen, "no event, and {before} answers of {count}");
            }
        }
    }

    /// Waits for the VSP's event and says whether it came.
    pub(super) fn wait_event(&self, milliseconds: i32) -> bool {
        let epoll = Epoll::new().unwrap();
        let fd = self.vsp.event().unwrap();
        epoll
            .ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))
            .unwrap();
        epoll
            .wait(milliseconds, &mut [EpollEvent::default()])
            .unwrap()
            != 0
    }

    /// Bytes of packets that the VSP has not taken.
    pub(super) fn not_taken(&self) -> u32 {
        self.to_host.capacity() + 8 - self.to_host.free().unwrap()
    }

    /// Sends a packet without data and returns its answer.
    pub(super) fn ask(&mut self, packet: &VstorPacket) -> VstorPacket {
        let id = self.id();
        assert!(self.put(&Outgoing::in_band(id, packet.wire_bytes(64), true)));
        let answers = self.answers(1);
        assert_eq!(answers[0].0, id);
        answers[0].1
    }

    /// Sends an SRB and returns its answer.
    pub(super) fn srb(&mut self, srb: &Srb, ranges: &[Range]) -> Srb {
        let id = self.id();
        assert!(self.put_srb(id, srb, ranges));
        let answers = self.answers(1);
        assert_eq!((answers[0].0, answers[0].1.status.get()), (id, 0));
        answers[0].1.srb()
    }

    /// A command to LUN 0 without data.
    pub(super) fn command(&mut self, cdb: Cdb) -> Srb {
        self.srb(
            &Srb::request(0, cdb.to_bytes().as_slice(), DATA_NONE, 0),
            &[],
        )
    }

    /// A command to LUN 0 with data for the guest, `length` bytes at most.
    pub(super) fn data_in(&mut self, cdb: Cdb, length: u32) -> (Srb, Vec<u8>) {
        let srb = Srb::request(0, cdb.to_bytes().as_slice(), DATA_IN, length);
        let answer = self.srb(&srb, &[contiguous(DATA, length)]);
        let mut data = vec![0; answer.data_transfer_length.get() as usize];
        self.memory.read(DATA, &mut data).unwrap();
        (answer, data)
    }

    /// A command to LUN 0 with data from the guest.
    pub(super) fn data_out(&mut self, cdb: Cdb, data: &[u8]) -> Srb {
        self.memory.write(DATA, data).unwrap();
        let length = data.len() as u32;
        let srb = Srb::request(0, cdb.to_bytes().as_slice(), DATA_OUT, length);
        self.srb(&srb, &[contiguous(DATA, length)])
    }

    /// Reads blocks of LUN 0.
    pub(super) fn read(&mut self, lba: u64, blocks: u32) -> (Srb, Vec<u8>) {
        self.data_in(
            Cdb::Read {
                lba,
                blocks,
                fua: false,
            },
            blocks * 512,
        )
    }
}

/// Asserts that an SRB succeeded and moved `moved` bytes.
#[track_caller]
pub(super) fn assert_good(srb: &Srb, moved: u32) {
    assert_eq!(
        (
            srb.srb_status,
            srb.scsi_status,
            srb.data_transfer_length.get(),
            srb.sense_length
        ),
        (1, 0, moved, 0),
        "{srb:?}"
    );
}

/// Asserts that an SRB failed with this sense and moved nothing.
#[track_caller]
pub(super) fn assert_sense(srb: &Srb, srb_status: u8, sense: Sense) {
    assert_eq!(
        (srb.srb_status, srb.scsi_status, Sense::parse(srb.sense())),
        (srb_status | 0x80, 2, Some(sense)),
        "{srb:?}"
    );
    assert_eq!(srb.data_transfer_length.get(), 0);
}

/// The range of `length` bytes at `gpa`.
pub(super) fn contiguous(gpa: u64, length: u32) -> Range {
    let pages = (gpa % 4096 + u64::from(length)).div_ceil(4096);
    (
        length,
        (gpa % 4096) as u32,
        (gpa / 4096..gpa / 4096 + pages).collect(),
    )
}

/// Ranges as a packet carries them, header first.
pub(super) fn encode<'a>(buffer: &'a mut [u8], ranges: &[Range]) -> &'a [u8] {
    let mut writer = GpaRangeWriter::gpa_direct(buffer, ranges.len() as u32).unwrap();
    for (length, offset, pfns) in ranges {
        writer.range(*length, *offset).unwrap();
        for &pfn in pfns {
            writer.pfn(pfn).unwrap();
        }
    }
    writer.finish()
}
