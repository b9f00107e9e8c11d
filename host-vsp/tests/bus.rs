//! The control plane as a story of messages: what a guest says, what the bus does.

use std::sync::Arc;

use host_vsp::vmbus::bus::{Action, Bus, OpenRequest, doorbell_id};
use proptest::prelude::*;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmbus_proto::guid::Guid;
use vmbus_proto::message::gpadl::announce;
use vmbus_proto::message::*;
use vmbus_proto::version::Version;

const RAM_PAGES: u64 = 1024;
const VPS: u32 = 2;

fn new_bus() -> Bus {
    let ram: GuestMemoryMmap<()> =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_PAGES as usize * 4096)]).unwrap();
    let mut bus = Bus::new(Arc::new(ram), VPS);
    for n in 1..=3 {
        let offer = OfferChannel {
            class: Guid::new(n, 0, 0, 0, 0),
            ..OfferChannel::default()
        };
        assert_eq!(bus.offer(offer), Some(n));
    }
    bus
}

/// What the bus does, in words short enough to compare.
fn done(bus: &mut Bus) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(action) = bus.poll() {
        all.push(match action {
            Action::ForgetMessages => "forget".into(),
            Action::Send { vp, message } => match Message::parse(&message).unwrap() {
                Message::VersionResponse(r) => format!("vp{vp} version {}", r.supported),
                Message::OfferChannel(o) => format!("vp{vp} offer {}", o.relid),
                Message::AllOffersDelivered => format!("vp{vp} all offers"),
                Message::GpadlCreated(c) => format!("vp{vp} created {} {:x}", c.gpadl, c.status),
                Message::GpadlTorndown(g) => format!("vp{vp} torndown {}", g.gpadl),
                Message::OpenChannelResult(r) => {
                    format!("vp{vp} opened {} {:x}", r.relid, r.status)
                }
                Message::RescindChannelOffer(c) => format!("vp{vp} rescind {}", c.relid),
                Message::ModifyChannelResponse(r) => {
                    format!("vp{vp} modified {} {:x}", r.relid, r.status)
                }
                Message::UnloadResponse => format!("vp{vp} unloaded"),
                Message::TlConnectResult(r) => format!("vp{vp} socket {:x}", r.status),
                other => panic!("a host does not say {other:?}"),
            },
            Action::Open(open) => format!("open {}", open.relid),
            Action::Close { relid } => format!("close {relid}"),
            Action::Retarget { relid, vp } => format!("retarget {relid} {vp:?}"),
            Action::Kick { relid } => format!("kick {relid}"),
            Action::Remove { relid } => format!("remove {relid}"),
        });
    }
    all
}

fn say(bus: &mut Bus, message: Message<'_>) -> Vec<String> {
    bus.handle(0, &message.encode());
    done(bus)
}

fn contact(version: Version) -> Message<'static> {
    Message::InitiateContact(InitiateContact::new(version, 1))
}

fn gpadl(bus: &mut Bus, relid: u32, handle: u32, first_pfn: u64, pages: u64) -> Vec<String> {
    let pfns: Vec<u64> = (first_pfn..first_pfn + pages).collect();
    for message in announce(relid, handle, pages as u32 * 4096, pfns.into_iter()).unwrap() {
        bus.handle(0, &message);
    }
    done(bus)
}

fn open(relid: u32, handle: u32, target_vp: u32) -> Message<'static> {
    Message::OpenChannel(OpenChannel {
        relid: relid.into(),
        open_id: 9.into(),
        ring_gpadl: handle.into(),
        target_vp: target_vp.into(),
        downstream_page_offset: 4.into(),
        user_data: [0; 120],
    })
}

fn close(relid: u32) -> Message<'static> {
    Message::CloseChannel(ChannelId::new(relid))
}

fn teardown(relid: u32, gpadl: u32) -> Message<'static> {
    Message::GpadlTeardown(GpadlTeardown {
        relid: relid.into(),
        gpadl: gpadl.into(),
    })
}

/// Connected, offers delivered.
fn connected(version: Version) -> Bus {
    let mut bus = new_bus();
    assert_eq!(say(&mut bus, contact(version)), ["forget", "vp1 version 1"]);
    assert_eq!(
        say(&mut bus, Message::RequestOffers),
        [
            "vp1 offer 1",
            "vp1 offer 2",
            "vp1 offer 3",
            "vp1 all offers"
        ]
    );
    bus
}

/// Channel 2 open on GPADL 7.
fn opened(version: Version) -> Bus {
    let mut bus = connected(version);
    assert_eq!(gpadl(&mut bus, 2, 7, 100, 40), ["vp1 created 7 0"]);
    assert_eq!(say(&mut bus, open(2, 7, 0)), ["open 2"]);
    bus.opened(2, true);
    assert_eq!(done(&mut bus), ["vp1 opened 2 0", "kick 2"]);
    bus
}

#[test]
fn every_version_is_spoken_and_others_are_refused() {
    for version in Version::SUPPORTED {
        let mut bus = new_bus();
        bus.handle(0, &contact(version).encode());
        assert!(matches!(bus.poll(), Some(Action::ForgetMessages)));
        let Some(Action::Send { message, .. }) = bus.poll() else {
            panic!()
        };
        let Ok(Message::VersionResponse(response)) = Message::parse(&message) else {
            panic!()
        };
        let id = if version >= Version::V5_0 {
            CONNECTION_ID_MESSAGE
        } else {
            0
        };
        assert_eq!(
            (response.supported, response.message_connection_id.get()),
            (1, id)
        );
        assert_eq!(bus.version(), Some(version));
    }
    for version in [
        Version::V6_0,
        Version::new(1, 1),
        Version(0),
        Version(u32::MAX),
    ] {
        let mut bus = new_bus();
        assert_eq!(say(&mut bus, contact(version)), ["forget", "vp1 version 0"]);
        assert_eq!(bus.version(), None);
        // A refusal is not the end: the next version is heard.
        assert_eq!(
            say(&mut bus, contact(Version::V5_2)),
            ["forget", "vp1 version 1"]
        );
    }
    // Another SINT, another VTL, a processor that is not there: answered to who asked.
    for (vp, target, answer) in [(1, 3, "vp1"), (1, 0x102, "vp1"), (5, 2, "vp0")] {
        let mut bus = new_bus();
        let mut contact = InitiateContact::new(Version::V5_3, vp);
        contact.interrupt_page_or_target = target.into();
        assert_eq!(
            say(&mut bus, Message::InitiateContact(contact)),
            ["forget".to_string(), format!("{answer} version 0")]
        );
    }
}

#[test]
fn nothing_means_anything_before_contact() {
    let mut bus = new_bus();
    for message in [
        Message::RequestOffers,
        open(1, 1, 0),
        close(1),
        teardown(1, 1),
    ] {
        assert!(say(&mut bus, message).is_empty());
    }
    assert!(gpadl(&mut bus, 1, 1, 1, 1).is_empty());
    assert_eq!(bus.refused(), 5);
    // But unload is answered even then: a crash kernel may not know better.
    assert_eq!(say(&mut bus, Message::Unload), ["forget", "vp0 unloaded"]);
}

#[test]
fn open_close_and_again() {
    let mut bus = opened(Version::V5_3);
    assert_eq!(
        say(&mut bus, open(2, 7, 0)),
        ["vp1 opened 2 c000000d"],
        "open twice"
    );
    assert_eq!(say(&mut bus, close(2)), ["close 2"]);
    assert_eq!(say(&mut bus, close(2)), [""; 0], "close twice");
    assert_eq!(
        say(&mut bus, open(2, 7, u32::MAX)),
        ["open 2"],
        "again, without interrupts"
    );
    bus.opened(2, false);
    assert_eq!(done(&mut bus), ["vp1 opened 2 c0000001"]);
    assert_eq!(say(&mut bus, teardown(2, 7)), ["vp1 torndown 7"]);
    assert_eq!(say(&mut bus, teardown(2, 7)), [""; 0], "teardown twice");
    assert!(bus.gpadls().is_empty());
    assert_eq!(bus.gpadls().pages(), 0);
    assert_eq!(bus.refused(), 3);
}

#[test]
fn opens_that_cannot_be() {
    let mut bus = connected(Version::V5_3);
    gpadl(&mut bus, 2, 7, 100, 40);
    gpadl(&mut bus, 2, 8, 200, 5);
    let failed = |relid: u32| vec![format!("vp1 opened {relid} c000000d")];
    assert_eq!(say(&mut bus, open(9, 7, 0)), failed(9), "no such channel");
    assert_eq!(
        say(&mut bus, open(1, 7, 0)),
        failed(1),
        "another channel's GPADL"
    );
    assert_eq!(say(&mut bus, open(2, 9, 0)), failed(2), "no such GPADL");
    assert_eq!(say(&mut bus, open(2, 7, 2)), failed(2), "no such processor");
    assert_eq!(
        say(&mut bus, open(2, 8, 0)),
        failed(2),
        "to_guest has no data page"
    );
    for offset in [0u32, 1, 39, 40, u32::MAX] {
        let Message::OpenChannel(mut message) = open(2, 7, 0) else {
            panic!()
        };
        message.downstream_page_offset = offset.into();
        assert_eq!(
            say(&mut bus, Message::OpenChannel(message)),
            failed(2),
            "offset {offset}"
        );
    }
}

#[test]
fn gpadls_that_cannot_be() {
    let mut bus = connected(Version::V5_3);
    let invalid = |handle: u32| vec![format!("vp1 created {handle} c000000d")];
    assert_eq!(gpadl(&mut bus, 2, 0, 1, 1), invalid(0), "handle 0");
    assert_eq!(gpadl(&mut bus, 9, 7, 1, 1), invalid(7), "no such channel");
    assert_eq!(
        gpadl(&mut bus, 2, 7, RAM_PAGES - 1, 2),
        invalid(7),
        "beyond RAM"
    );
    assert_eq!(
        gpadl(&mut bus, 2, 7, u64::MAX >> 12, 1),
        invalid(7),
        "beyond all memory"
    );
    assert_eq!(
        gpadl(&mut bus, 2, 7, u64::MAX - 1, 1),
        invalid(7),
        "no address at all"
    );
    assert_eq!(gpadl(&mut bus, 2, 7, 1, 1), ["vp1 created 7 0"]);
    assert_eq!(gpadl(&mut bus, 2, 7, 2, 1), invalid(7), "handle in use");
    // A header with less than it announces is not complete; an empty body ends it.
    let header = GpadlHeaderHeader {
        relid: 2.into(),
        gpadl: 8.into(),
        range_bytes: 4096.into(),
        range_count: 1.into(),
    };
    assert_eq!(
        say(&mut bus, Message::GpadlHeader(header, &[0; 16])),
        [""; 0]
    );
    let body = GpadlBodyHeader {
        message_number: 0.into(),
        gpadl: 8.into(),
    };
    assert_eq!(say(&mut bus, Message::GpadlBody(body, &[])), invalid(8));
    let refused = bus.refused();
    assert_eq!(
        say(&mut bus, Message::GpadlBody(body, &[0; 8])),
        [""; 0],
        "no such GPADL"
    );
    assert_eq!(bus.refused(), refused + 1);
}

#[test]
fn gpadl_pages_are_bounded() {
    let mut bus = connected(Version::V5_3);
    let mut created = 0;
    for handle in 1..=100 {
        let pfns = std::iter::repeat_n(1, 8000);
        for message in announce(2, handle, 8000 * 4096, pfns).unwrap() {
            bus.handle(0, &message);
        }
        match done(&mut bus).as_slice() {
            [text] if text.ends_with(" 0") => created += 1,
            [text] => assert!(text.ends_with("c000009a"), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(created, 1280 * 256 / 8000);
    assert!(bus.gpadls().pages() <= 1280 * 256);
}

/// Neither announcing much and sending little, nor ranges of nothing, makes the host remember more
/// than the bound on pages allows.
#[test]
fn what_is_only_announced_counts() {
    let mut bus = connected(Version::V5_3);
    let header = |handle: u32, range_bytes: u16, range_count: u16| {
        let header = GpadlHeaderHeader {
            relid: 2.into(),
            gpadl: handle.into(),
            range_bytes: range_bytes.into(),
            range_count: range_count.into(),
        };
        Message::GpadlHeader(header, &[1; 16]).encode()
    };
    let pages = usize::from(0xFFF8u16) / 8 - 1;
    for handle in 1..=100 {
        bus.handle(0, &header(handle, 0xFFF8, 1));
    }
    let fits = 1280 * 256 / pages;
    assert_eq!(bus.gpadls().len(), fits);
    assert_eq!(done(&mut bus).len(), 100 - fits);
    // The channel goes, and what was announced on it.
    bus.rescind(2);
    done(&mut bus);
    say(&mut bus, Message::RelidReleased(ChannelId::new(2)));
    assert_eq!((bus.gpadls().len(), bus.gpadls().pages()), (0, 0));

    let mut bus = connected(Version::V5_3);
    bus.handle(0, &header(7, 0xFFF8, 0x1FFF));
    assert_eq!(
        done(&mut bus),
        ["vp1 created 7 c000000d"],
        "more ranges than could have a page each"
    );
    // One range with two pages, then one with none.
    let ranges: Vec<u8> = [8192u64, 1, 2, 0]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    let two = GpadlHeaderHeader {
        relid: 2.into(),
        gpadl: 8.into(),
        range_bytes: 32.into(),
        range_count: 2.into(),
    };
    assert_eq!(
        say(&mut bus, Message::GpadlHeader(two, &ranges)),
        ["vp1 created 8 c000000d"],
        "a range of nothing"
    );
    assert_eq!((bus.gpadls().len(), bus.gpadls().pages()), (0, 0));
}

#[test]
fn teardown_waits_for_the_rings() {
    let mut bus = opened(Version::V5_3);
    assert_eq!(say(&mut bus, teardown(2, 7)), [""; 0]);
    assert_eq!(say(&mut bus, close(2)), ["close 2", "vp1 torndown 7"]);
    // A device that is taken away lets go of them too.
    let mut bus = opened(Version::V5_3);
    assert_eq!(say(&mut bus, teardown(2, 7)), [""; 0]);
    bus.rescind(2);
    assert_eq!(
        done(&mut bus),
        ["close 2", "vp1 torndown 7", "vp1 rescind 2", "remove 2"]
    );
}

#[test]
fn modify_channel_by_version() {
    let modify = |vp: u32| {
        Message::ModifyChannel(ModifyChannel {
            relid: 2.into(),
            target_vp: vp.into(),
        })
    };
    let mut bus = opened(Version::V5_3);
    assert_eq!(
        say(&mut bus, modify(1)),
        ["retarget 2 Some(1)", "vp1 modified 2 0", "kick 2"],
        "the acknowledge comes between the two"
    );
    assert_eq!(say(&mut bus, modify(7)), ["vp1 modified 2 c000000d"]);
    let mut bus = opened(Version::V4_1);
    assert_eq!(
        say(&mut bus, modify(1)),
        ["retarget 2 Some(1)", "kick 2"],
        "no answer before 5.3"
    );
    let mut bus = opened(Version::V4_0);
    assert_eq!(say(&mut bus, modify(1)), [""; 0], "not in 4.0");
}

#[test]
fn rescind_and_release() {
    let mut bus = opened(Version::V5_3);
    bus.rescind(2);
    assert_eq!(done(&mut bus), ["close 2", "vp1 rescind 2", "remove 2"]);
    assert_eq!(say(&mut bus, close(2)), [""; 0]);
    assert_eq!(say(&mut bus, teardown(2, 7)), ["vp1 torndown 7"]);
    assert_eq!(say(&mut bus, open(2, 7, 0)), ["vp1 opened 2 c000000d"]);
    // The relid is not given away before it is released.
    assert_eq!(bus.offer(OfferChannel::default()), Some(4));
    assert_eq!(done(&mut bus), ["vp1 offer 4"]);
    let release = Message::RelidReleased(ChannelId::new(2));
    assert_eq!(say(&mut bus, release), [""; 0]);
    assert_eq!(bus.offer(OfferChannel::default()), Some(2));
    assert_eq!(done(&mut bus), ["vp1 offer 2"]);
    let refused = bus.refused();
    say(&mut bus, release);
    assert_eq!(
        bus.refused(),
        refused + 1,
        "release of a channel that is there"
    );
}

#[test]
fn unload_contact_and_reset_forget_everything() {
    let mut bus = opened(Version::V5_3);
    assert_eq!(
        say(&mut bus, Message::Unload),
        ["close 2", "forget", "vp1 unloaded"]
    );
    assert!(bus.gpadls().is_empty());
    assert_eq!(bus.version(), None);

    let mut bus = opened(Version::V5_3);
    assert_eq!(
        say(&mut bus, contact(Version::V4_0)),
        ["close 2", "forget", "vp1 version 1"]
    );
    assert_eq!(say(&mut bus, Message::RequestOffers).len(), 4);
    let refused = bus.refused();
    assert!(
        say(&mut bus, Message::RequestOffers).is_empty(),
        "offers once per connection"
    );
    assert_eq!(bus.refused(), refused + 1);

    let mut bus = opened(Version::V5_3);
    bus.rescind(3);
    bus.reset();
    assert_eq!(done(&mut bus), ["remove 3", "close 2"]);
    assert_eq!(
        bus.relids().collect::<Vec<_>>(),
        [1, 2],
        "the rescinded one is gone"
    );
}

#[test]
fn sockets_are_refused_politely() {
    let mut bus = connected(Version::V5_3);
    let connect = TlConnect {
        endpoint: Guid::ZERO,
        service: Guid::ZERO,
    };
    assert_eq!(
        say(&mut bus, Message::TlConnectRequest(connect)),
        ["vp1 socket c0000236"]
    );
}

#[test]
fn state_survives_bytes() {
    let mut bus = opened(Version::V5_3);
    let bytes = postcard::to_stdvec(bus.state()).unwrap();
    let state = postcard::from_bytes(&bytes).unwrap();
    let ram: GuestMemoryMmap<()> =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_PAGES as usize * 4096)]).unwrap();
    let mut again = Bus::restore(Arc::new(ram), VPS, state);
    let open: Vec<OpenRequest> = again.open_channels().cloned().collect();
    assert_eq!(
        (open[0].relid, open[0].to_host.len(), open[0].to_guest.len()),
        (2, 4, 36)
    );
    for bus in [&mut bus, &mut again] {
        assert_eq!(say(bus, close(2)), ["close 2"]);
        assert_eq!(say(bus, teardown(2, 7)), ["vp1 torndown 7"]);
    }
}

#[test]
fn doorbells_fit_kvm() {
    assert!(doorbell_id(2047) < 1 << 24);
}

proptest! {
    /// Whatever a guest says, each message has at most a full set of offers as its consequence,
    /// nothing panics, and a fresh contact works afterwards.
    #[test]
    fn storms(
        messages in proptest::collection::vec(
            (0u32..26, proptest::collection::vec(prop_oneof![0u32..10, any::<u32>()], 0..40)),
            0..100,
        ),
        outcomes in any::<u64>(),
    ) {
        let mut bus = opened(Version::V5_3);
        for (index, (kind, words)) in messages.into_iter().enumerate() {
            let mut bytes = [kind.to_le_bytes(), [0; 4]].concat();
            bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
            bus.handle(0, &bytes);
            let mut count = 0;
            while let Some(action) = bus.poll() {
                count += 1;
                if let Action::Open(open) = action {
                    bus.opened(open.relid, outcomes >> (index % 64) & 1 == 0);
                }
            }
            prop_assert!(count <= 8, "{count} actions");
        }
        prop_assert!(bus.gpadls().len() < 110);
        bus.handle(0, &contact(Version::V5_3).encode());
        prop_assert!(done(&mut bus).contains(&"vp1 version 1".to_string()));
        prop_assert!(bus.gpadls().is_empty());
    }
}
