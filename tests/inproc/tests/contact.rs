//! Finding the hypervisor, and contact with the host.

use std::time::Duration;

use guest_vsc::bus::{BusMemory, Options, Versions, VmBus};
use guest_vsc::error::{Error, Waited};
use guest_vsc::hypervisor::Missing;
use host_vsp::console::{Console, Streams};
use inproc::{FakeHal, FakeHypervisor, ScriptedHost, VECTOR};
use vmbus_proto::hv::cpuid::{self, privilege};
use vmbus_proto::hv::hypercall::Status;
use vmbus_proto::version::Version;

type Memory = BusMemory<FakeHal, 2, 4>;

/// A host with one console.
fn host(hypervisor: &FakeHypervisor) {
    let host = host_vsp::vmbus::VmBus::new(hypervisor.partition()).unwrap();
    let nowhere = Streams::new(None, Box::new(std::io::sink())).unwrap();
    host.offer(Box::new(Console::new(nowhere))).unwrap();
    hypervisor.serve(host);
}

fn exactly(version: Version) -> Options {
    Options {
        versions: Versions::Exactly(version),
        timeout: Duration::from_secs(5),
    }
}

#[test]
fn detection_names_what_is_missing() {
    let missing = |change: &dyn Fn(&FakeHypervisor)| {
        let hypervisor = FakeHypervisor::new(1);
        change(&hypervisor);
        let _cpu = hypervisor.enter(0);
        let memory = Memory::new();
        VmBus::new(&memory, VECTOR).err()
    };
    let without =
        |bit: u32| missing(&|h| h.set_cpuid(cpuid::LEAF_FEATURES, |leaf| leaf.eax &= !bit));
    assert_eq!(missing(&|_| ()), None);
    assert_eq!(
        missing(&|h| h.set_cpuid(1, |leaf| leaf.ecx = 0)),
        Some(Error::Missing(Missing::Hypervisor))
    );
    let kvm = Missing::HyperV {
        vendor: *b"Linux KVM Hv",
    };
    assert_eq!(
        missing(&|h| h.set_cpuid(cpuid::LEAF_VENDOR, |leaf| {
            leaf.ebx = u32::from_le_bytes(*b"Linu");
            leaf.ecx = u32::from_le_bytes(*b"x KV");
            leaf.edx = u32::from_le_bytes(*b"M Hv");
        })),
        Some(Error::Missing(kvm))
    );
    assert_eq!(
        missing(&|h| h.set_cpuid(cpuid::LEAF_VENDOR, |leaf| leaf.eax = cpuid::LEAF_HINTS)),
        Some(Error::Missing(Missing::Leaves(cpuid::LEAF_HINTS)))
    );
    assert_eq!(
        missing(&|h| h.set_cpuid(cpuid::LEAF_INTERFACE, |leaf| leaf.eax = 7)),
        Some(Error::Missing(Missing::Interface(7)))
    );
    assert_eq!(
        missing(&|h| h.lock_hypercall_page()),
        Some(Error::Missing(Missing::HypercallPage))
    );
    for (bit, what) in [
        (privilege::HYPERCALL, Missing::HypercallMsrs),
        (privilege::VP_INDEX, Missing::VpIndex),
        (privilege::SYNIC, Missing::Synic),
        (privilege::TIME_REF_COUNT, Missing::ReferenceTime),
    ] {
        assert_eq!(without(bit), Some(Error::Missing(what)));
    }
}

#[test]
fn every_version_and_a_refusal() {
    let hypervisor = FakeHypervisor::new(1);
    host(&hypervisor);
    let _cpu = hypervisor.enter(0);
    let memory = Memory::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    let before = hypervisor.counts().pages;
    for version in Version::SUPPORTED {
        assert_eq!(bus.connect(&exactly(version)), Ok(version));
        assert_eq!(bus.version(), Some(version));
        assert_eq!(bus.connect(&exactly(version)), Err(Error::AlreadyConnected));
        assert_eq!(bus.offers().count(), 1);
        assert_eq!(bus.unload(), Ok(()));
        assert_eq!(bus.offers().count(), 0);
        assert_eq!(bus.unload(), Err(Error::NotConnected));
    }
    for unknown in [Version::new(1, 1), Version::V6_0, Version(0x0007_0000)] {
        assert_eq!(
            bus.connect(&exactly(unknown)),
            Err(Error::VersionRefused(unknown))
        );
    }
    // The newest that both speak, also where the guest asks for less.
    assert_eq!(bus.connect(&Options::default()), Ok(Version::V5_3));
    bus.unload().unwrap();
    let at_most = |version| Options {
        versions: Versions::UpTo(version),
        ..Options::default()
    };
    assert_eq!(bus.connect(&at_most(Version::V4_1)), Ok(Version::V4_1));
    bus.unload().unwrap();
    assert_eq!(
        bus.connect(&at_most(Version::new(1, 1))),
        Err(Error::VersionRefused(Version::new(1, 1)))
    );
    assert_eq!(hypervisor.counts().pages, before, "pages were lost");
    drop(bus);
    assert_eq!(hypervisor.counts().pages, 0);
}

#[test]
fn a_vector_of_the_processor_s_own_is_refused() {
    let hypervisor = FakeHypervisor::new(1);
    let _cpu = hypervisor.enter(0);
    let memory = Memory::new();
    for vector in [0, 15] {
        let refused = Some(Error::BadVector(vector));
        assert_eq!(VmBus::new(&memory, vector).err(), refused);
    }
    VmBus::new(&memory, 16).unwrap();
}

#[test]
fn memory_serves_one_bus_at_a_time() {
    let hypervisor = FakeHypervisor::new(1);
    let _cpu = hypervisor.enter(0);
    let memory = Memory::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    assert_eq!(VmBus::new(&memory, VECTOR).err(), Some(Error::MemoryInUse));
    drop(bus);
    VmBus::new(&memory, VECTOR).unwrap();
}

#[test]
fn transient_statuses_are_tried_again() {
    let hypervisor = FakeHypervisor::new(1);
    host(&hypervisor);
    let _cpu = hypervisor.enter(0);
    let memory = Memory::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    hypervisor.fail_posts([Status::INSUFFICIENT_BUFFERS, Status::INSUFFICIENT_MEMORY]);
    assert_eq!(bus.connect(&Options::default()), Ok(Version::V5_3));
    // After contact, an unknown connection may be one that is not ready yet.
    hypervisor.fail_posts([Status::INVALID_CONNECTION_ID; 3]);
    assert_eq!(bus.unload(), Ok(()));
    // In contact it means that the host is too old for this version's port.
    hypervisor.fail_posts([Status::INVALID_CONNECTION_ID; 4]);
    assert_eq!(bus.connect(&Options::default()), Ok(Version::V4_1));
    bus.unload().unwrap();
    hypervisor.fail_posts([Status::ACCESS_DENIED]);
    assert_eq!(
        bus.connect(&Options::default()),
        Err(Error::Hypercall(Status::ACCESS_DENIED))
    );
}

#[test]
fn a_silent_host_is_an_error() {
    let hypervisor = FakeHypervisor::new(1);
    ScriptedHost::serve(&hypervisor, |_| Vec::new());
    let _cpu = hypervisor.enter(0);
    let memory = Memory::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    let soon = Options {
        timeout: Duration::from_millis(50),
        ..Options::default()
    };
    assert_eq!(bus.connect(&soon), Err(Error::Timeout(Waited::Version)));
    // A host that comes to its senses finds the bus ready.
    host(&hypervisor);
    assert_eq!(bus.connect(&Options::default()), Ok(Version::V5_3));
}

#[test]
fn no_host_at_all_is_an_error() {
    let hypervisor = FakeHypervisor::new(1);
    let _cpu = hypervisor.enter(0);
    let memory = Memory::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    assert_eq!(
        bus.connect(&Options::default()),
        Err(Error::Hypercall(Status::INVALID_CONNECTION_ID))
    );
}

#[test]
fn the_reference_tsc_page_is_used_when_it_is_valid() {
    use vm_memory::{Bytes as _, GuestAddress};
    let hypervisor = FakeHypervisor::new(1);
    let _cpu = hypervisor.enter(0);
    let memory = Memory::new();
    let bus = VmBus::new(&memory, VECTOR).unwrap();
    let page = hypervisor.reference_tsc_page().expect("it was offered");
    let by_msr = bus.reference_time();
    assert!(by_msr < 36_000_000_000, "an hour in units of 100 ns");
    // Scale 0 makes the time the offset, whatever the TSC says.
    let ram = hypervisor.memory();
    ram.write_obj(0u64, GuestAddress(page + 8)).unwrap();
    ram.write_obj(1u64 << 60, GuestAddress(page + 16)).unwrap();
    ram.write_obj(1u32, GuestAddress(page)).unwrap();
    assert_eq!(bus.reference_time(), 1 << 60);
    ram.write_obj(0u32, GuestAddress(page)).unwrap();
    assert!(bus.reference_time() < 36_000_000_000);
}
