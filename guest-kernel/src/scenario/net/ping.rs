//! ICMP: echo requests, and their answers.

use super::super::Outcome;
use super::Stack;
use crate::clock::Deadline;
use crate::println;
use alloc::format;
use alloc::vec;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::icmp::{Endpoint, PacketBuffer, PacketMetadata, Socket};
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, Ipv4Address};

/// Who asks.
const IDENT: u16 = 0x4756;

/// Bytes of each question, up to as many as a frame holds.
const LENGTHS: [usize; 4] = [0, 56, 1000, 1472];

/// Asks `whom` for echoes of several lengths, one after the other.
pub(super) fn run(stack: &mut Stack, whom: Ipv4Address, deadline: Deadline) -> Outcome {
    let buffer = || PacketBuffer::new(vec![PacketMetadata::EMPTY; 4], vec![0; 8192]);
    let mut socket = Socket::new(buffer(), buffer());
    socket
        .bind(Endpoint::Ident(IDENT))
        .map_err(|error| format!("no socket for echoes: {error}"))?;
    let handle = stack.add(socket);
    let checksums = ChecksumCapabilities::default();
    for (seq_no, length) in (1u16..).zip(LENGTHS) {
        let data = vec![seq_no as u8; length];
        let question = Icmpv4Repr::EchoRequest {
            ident: IDENT,
            seq_no,
            data: &data,
        };
        let socket = stack.get::<Socket<'_>>(handle);
        let room = socket.send(question.buffer_len(), whom.into());
        let room = room.map_err(|error| format!("no room for an echo request: {error}"))?;
        question.emit(&mut Icmpv4Packet::new_unchecked(room), &checksums);
        stack.wait("an echo", deadline, |stack| {
            let socket = stack.get::<Socket<'_>>(handle);
            while socket.can_recv() {
                let Ok((bytes, from)) = socket.recv() else {
                    break;
                };
                let packet = Icmpv4Packet::new_checked(bytes);
                let answer = packet.and_then(|packet| {
                    Ok(match Icmpv4Repr::parse(&packet, &checksums)? {
                        Icmpv4Repr::EchoReply {
                            seq_no: of, data, ..
                        } => of == seq_no && data.len() == length,
                        _ => false,
                    })
                });
                if from == whom.into() && answer == Ok(true) {
                    return Ok(Some(()));
                }
            }
            Ok(None)
        })?;
    }
    stack.remove(handle);
    println!("echoes of {LENGTHS:?} bytes came back");
    Ok(())
}
