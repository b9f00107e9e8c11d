//! The storvsp state machine: order, versions, bounds, ids, and moving a conversation.

use std::collections::BTreeMap;

use vmbus_proto::packet::Outgoing;
use vmbus_proto::scsi::Cdb;
use vmbus_proto::storvsp::{
    DATA_IN, DATA_NONE, Operation, ProtocolVersion, SCSI_CLASS, Srb, VstorPacket, status,
};
use zerocopy::IntoBytes as _;

use super::guest::{DATA, Guest, assert_good, contiguous};
use super::{INSTANCE, Image, controller};
use crate::storage::{AttachError, Controller, MAX_IN_FLIGHT};
use crate::vsp::Vsp as _;

fn read_srb(lba: u64) -> Srb {
    let cdb = Cdb::Read {
        lba,
        blocks: 1,
        fua: false,
    };
    Srb::request(0, cdb.to_bytes().as_slice(), DATA_IN, 512)
}

fn test_unit_ready() -> Srb {
    Srb::request(0, &[0; 6], DATA_NONE, 0)
}

/// Where the data of request `n` goes.
fn place(n: u64) -> u64 {
    DATA + n * 512
}

#[test]
fn offer_and_luns() {
    let image = Image::new(1 << 20);
    let mut vsp = controller(image.open_read_only());
    let offer = vsp.offer();
    assert_eq!((offer.class, offer.instance), (SCSI_CLASS, INSTANCE));
    assert_eq!(
        vsp.attach(0, image.open_read_only()),
        Err(AttachError::InUse(0))
    );
    assert_eq!(
        vsp.attach(64, image.open_read_only()),
        Err(AttachError::NoSuchLun(64))
    );
    assert_eq!(vsp.attach(63, image.open_read_only()), Ok(()));
}

#[test]
fn every_version_and_its_packets() {
    let image = Image::new(1 << 20);
    for version in ProtocolVersion::NEWEST_FIRST {
        let mut guest = Guest::with_rings(controller(image.open_read_only()), 4, 4);
        let size = version.packet_size();
        for packet in [
            VstorPacket::request(Operation::BeginInitialization),
            VstorPacket::query_protocol_version(version as u16),
            VstorPacket::request(Operation::QueryProperties),
            VstorPacket::request(Operation::EndInitialization),
            VstorPacket::execute_srb(&test_unit_ready()),
        ] {
            assert!(guest.put(&Outgoing::in_band(5, packet.wire_bytes(size), true)));
            guest.serve();
            let (id, payload) = guest.take().unwrap();
            assert_eq!(
                (id, payload.len()),
                (5, size),
                "{version:?} {:?}",
                packet.operation()
            );
            let answer = VstorPacket::parse(&payload).unwrap();
            assert_eq!(answer.operation(), Some(Operation::CompleteIo));
            assert_eq!(answer.status.get(), status::SUCCESS);
            match packet.operation().unwrap() {
                Operation::QueryProperties => {
                    let properties = answer.properties();
                    assert_eq!(properties.max_channel_count.get(), 0);
                    assert_eq!(properties.flags.get(), 0);
                    let most = properties.max_transfer_bytes.get();
                    assert!(most != 0 && most.is_multiple_of(4096), "{most}");
                }
                Operation::ExecuteSrb => assert_good(&answer.srb(), 0),
                _ => {}
            }
        }
        // What the guest asks with more bytes than its version has is answered in its version's.
        let long = VstorPacket::execute_srb(&test_unit_ready());
        assert!(guest.put(&Outgoing::in_band(6, long.as_bytes(), true)));
        guest.serve();
        assert_eq!(guest.take().unwrap().1.len(), size, "{version:?}");
    }
}

#[test]
fn unknown_versions_are_refused_until_one_is_known() {
    let image = Image::new(1 << 20);
    let mut guest = Guest::with_rings(controller(image.open_read_only()), 4, 4);
    guest.ask(&VstorPacket::request(Operation::BeginInitialization));
    for version in [0x0700, 0x0603, 0, 0xffff] {
        let answer = guest.ask(&VstorPacket::query_protocol_version(version));
        assert_eq!(answer.status.get(), status::REVISION_MISMATCH);
        assert_eq!(answer.protocol_version(), version);
    }
    assert_eq!(
        guest
            .ask(&VstorPacket::query_protocol_version(0x0600))
            .status
            .get(),
        0
    );
}

#[test]
fn every_operation_in_every_phase_is_answered() {
    let image = Image::new(1 << 20);
    let steps = [
        VstorPacket::request(Operation::BeginInitialization),
        VstorPacket::query_protocol_version(0x0602),
        VstorPacket::request(Operation::QueryProperties),
        VstorPacket::request(Operation::EndInitialization),
    ];
    // Phase by phase, the one operation that goes on (4: those of the ready state).
    for phase in 0..=4 {
        for number in 0..=15u32 {
            let mut guest = Guest::with_rings(controller(image.open_read_only()), 4, 4);
            for step in &steps[..phase] {
                assert_eq!(guest.ask(step).status.get(), 0);
            }
            let mut packet = VstorPacket::execute_srb(&test_unit_ready());
            packet.operation = number.into();
            if number == Operation::QueryProtocolVersion as u32 {
                packet = VstorPacket::query_protocol_version(0x0602);
            }
            let expected = match (number, phase) {
                (7, 0) | (9, 1) | (10, 2) | (8, 3) | (3..=6, 4) => status::SUCCESS,
                (13, 3 | 4) => status::INVALID_PARAMETER,
                (0..=2 | 11 | 12 | 14 | 15, _) => status::INVALID_DEVICE_REQUEST,
                _ => status::INVALID_DEVICE_STATE,
            };
            let answer = guest.ask(&packet);
            assert_eq!(
                answer.status.get(),
                expected,
                "operation {number} in phase {phase}"
            );
        }
    }
}

#[test]
fn opening_again_begins_anew() {
    let image = Image::new(1 << 20);
    let mut guest = Guest::ready(controller(image.open_read_only()));
    guest.vsp.opened();
    let early = guest.ask(&VstorPacket::execute_srb(&test_unit_ready()));
    assert_eq!(early.status.get(), status::INVALID_DEVICE_STATE);
    assert_eq!(
        guest
            .ask(&VstorPacket::request(Operation::BeginInitialization))
            .status
            .get(),
        0
    );
}

#[test]
fn answers_of_the_guest_are_not_answered() {
    let image = Image::new(1 << 20);
    let mut guest = Guest::ready(controller(image.open_read_only()));
    assert!(guest.put(&Outgoing::completion(
        1,
        VstorPacket::execute_srb(&read_srb(0)).as_bytes()
    )));
    assert_good(&guest.command(Cdb::TestUnitReady), 0);
}

#[test]
fn a_reset_waits_for_what_is_in_flight() {
    let image = Image::new(1 << 20);
    for operation in [
        Operation::ResetLun,
        Operation::ResetBus,
        Operation::ResetAdapter,
    ] {
        let (vsp, backend) = image.faulty();
        let mut guest = Guest::ready(vsp);
        let held = backend.hold();
        for id in 1..=3 {
            assert!(guest.put_srb(id, &read_srb(id), &[contiguous(place(id), 512)]));
        }
        let reset = VstorPacket::request(operation);
        assert!(guest.put(&Outgoing::in_band(9, reset.as_bytes(), true)));
        // A request after the reset is not looked at before it.
        assert!(guest.put_srb(10, &test_unit_ready(), &[]));
        guest.serve();
        assert!(
            guest.take().is_none(),
            "answered before the transfers ended"
        );
        drop(held);
        let mut ids: Vec<u64> = guest.answers(5).into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids.split_off(3), [9, 10]);
        ids.sort_unstable();
        assert_eq!(ids, [1, 2, 3]);
    }
}

#[test]
fn in_flight_is_bounded_and_each_completes_once() {
    let image = Image::new(1 << 20);
    let (vsp, backend) = image.faulty();
    let mut guest = Guest::ready(vsp);
    let held = backend.hold();
    let count = MAX_IN_FLIGHT as u64 + 50;
    for n in 0..count {
        assert!(guest.put_srb(n, &read_srb(n), &[contiguous(place(n), 512)]));
    }
    // Each call takes a batch and asks to be called again, until the bound.
    let mut calls = 0;
    while {
        guest.serve();
        guest.wait_event(100)
    } {
        calls += 1;
        assert!(calls < 100, "the VSP asks for calls without end");
    }
    assert!(guest.take().is_none());
    // Descriptor, header, range of one page, packet, trailer.
    assert_eq!(
        guest.not_taken(),
        50 * (16 + 8 + 16 + 64 + 8),
        "taken beyond the bound"
    );
    drop(held);
    let answers = guest.answers(count as usize);
    let ids: BTreeMap<u64, Srb> = answers.iter().map(|(id, p)| (*id, p.srb())).collect();
    assert!(ids.keys().copied().eq(0..count));
    ids.values().for_each(|srb| assert_good(srb, 512));
}

#[test]
fn an_id_used_twice_gets_two_answers() {
    let image = Image::new(1 << 20);
    let (vsp, backend) = image.faulty();
    let mut guest = Guest::ready(vsp);
    let held = backend.hold();
    assert!(guest.put_srb(7, &read_srb(0), &[contiguous(place(0), 512)]));
    assert!(guest.put_srb(7, &read_srb(5000), &[contiguous(place(1), 512)]));
    guest.serve();
    drop(held);
    let mut statuses: Vec<_> = guest
        .answers(2)
        .iter()
        .map(|(id, p)| (*id, p.srb().scsi_status))
        .collect();
    // The first is good, the second beyond the end.
    statuses.sort_unstable();
    assert_eq!(statuses, [(7, 0), (7, 2)]);
}

#[test]
fn answers_wait_for_room() {
    let image = Image::new(1 << 20);
    let mut guest = Guest::ready_with_rings(controller(image.open_read_only()), 16, 1);
    let put: Vec<u64> = (0..200)
        .take_while(|&id| guest.put_srb(id, &test_unit_ready(), &[]))
        .collect();
    for _ in 0..10 {
        guest.serve();
    }
    // One page of ring holds 46 answers; the rest of the requests stays where it is.
    let answers = guest.answers(put.len());
    assert!(put.len() > 100, "too few requests fit: {}", put.len());
    assert!(answers.iter().map(|(id, _)| *id).eq(put));
}

#[test]
fn a_conversation_moves_with_its_unsent_answers() {
    let image = Image::new(1 << 20);
    let backend = crate::storage::backend::FaultyBackend::new(image.open());
    let mut guest = Guest::ready_with_rings(controller(backend.clone()), 32, 1);
    // Fill the ring to the guest, so that what comes then cannot be answered.
    let held = backend.hold();
    for id in 0..100 {
        assert!(guest.put_srb(id, &read_srb(id), &[contiguous(place(id), 512)]));
    }
    for _ in 0..4 {
        guest.serve();
    }
    drop(held);
    guest.move_to(controller(backend.clone()));
    let mut ids: Vec<u64> = guest.answers(100).into_iter().map(|(id, _)| id).collect();
    ids.sort_unstable();
    assert!(ids.into_iter().eq(0..100));
    // And it goes on as it was: initialized.
    assert_good(&guest.command(Cdb::TestUnitReady), 0);
}

#[test]
fn moves_in_the_middle_of_everything() {
    let image = Image::new(1 << 20);
    let backend = crate::storage::backend::FaultyBackend::new(image.open());
    let fresh = || controller(backend.clone());
    let mut guest = Guest::with_rings(fresh(), 8, 8);
    for packet in [
        VstorPacket::request(Operation::BeginInitialization),
        VstorPacket::query_protocol_version(0x0501),
        VstorPacket::request(Operation::QueryProperties),
        VstorPacket::request(Operation::EndInitialization),
    ] {
        guest.move_to(fresh());
        assert_eq!(guest.ask(&packet).status.get(), 0);
    }
    // A reset that still waits for transfers.
    let held = backend.hold();
    assert!(guest.put_srb(1, &read_srb(0), &[contiguous(place(0), 512)]));
    let reset = VstorPacket::request(Operation::ResetBus);
    assert!(guest.put(&Outgoing::in_band(2, reset.as_bytes(), true)));
    guest.serve();
    drop(held);
    guest.move_to(fresh());
    let ids: Vec<u64> = guest.answers(2).into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, [1, 2]);
}

#[test]
fn bytes_that_are_no_state_are_refused() {
    let mut vsp = Controller::new(INSTANCE).unwrap();
    let good = vsp.save();
    assert!(vsp.restore(&good).is_ok());
    for bad in [&[][..], &[9], &[0, 1, 0x77, 0], &[4, 0, 1, 5, 3, 1, 2, 3]] {
        let error = vsp.restore(bad).unwrap_err().to_string();
        assert!(error.contains("storage controller"), "{error}");
    }
}
