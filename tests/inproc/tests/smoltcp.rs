//! A TCP/IP stack over the guest's driver and the host's adapter: what arrives is what was sent.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use guest_vsc::bus::{BusMemory, Options, VmBus};
use guest_vsc::network::{self, Network, NetworkMemory, NetworkOptions, Phy};
use host_vsp::network::backend::{Loopback, Stream};
use inproc::{FakeHal, Machine, VECTOR};
use rand::RngExt as _;
use sha2::{Digest as _, Sha256};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device as _, RxToken as _, TxToken as _};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpAddress, IpCidr, IpProtocol, Ipv4Address,
    Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

const DEADLINE: Duration = Duration::from_secs(60);
/// Bytes that go each way.
const BULK: usize = 4 << 20;

type Adapter<'b> = Network<'b, FakeHal>;
type Device<'n, 'b> = Phy<'n, 'b, FakeHal>;

/// One end: a stack with an address of its own and one socket.
struct End<'n, 'b> {
    device: Device<'n, 'b>,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    to_send: &'n [u8],
    received: Sha256,
    count: usize,
}

impl<'n, 'b> End<'n, 'b> {
    fn new(mut device: Device<'n, 'b>, number: u8, to_send: &'n [u8]) -> Self {
        let mac = EthernetAddress(device.network().mac_address());
        let now = smoltcp::time::Instant::ZERO;
        let mut interface = Interface::new(Config::new(mac.into()), &mut device, now);
        interface.update_ip_addrs(|addresses| {
            let address = IpAddress::v4(10, 0, 0, number);
            addresses.push(IpCidr::new(address, 24)).unwrap();
        });
        let buffer = || SocketBuffer::new(vec![0; 64 << 10]);
        let mut sockets = SocketSet::new(Vec::new());
        let socket = sockets.add(Socket::new(buffer(), buffer()));
        Self {
            device,
            interface,
            sockets,
            socket,
            to_send,
            received: Sha256::new(),
            count: 0,
        }
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.socket)
    }

    /// Does what can be done now; says whether that was anything.
    fn turn(&mut self, now: smoltcp::time::Instant) -> bool {
        self.interface
            .poll(now, &mut self.device, &mut self.sockets);
        let socket = self.sockets.get_mut::<Socket<'_>>(self.socket);
        let mut moved = 0;
        if socket.can_send() && !self.to_send.is_empty() {
            let sent = socket.send_slice(self.to_send).unwrap();
            self.to_send = &self.to_send[sent..];
            moved += sent;
            if self.to_send.is_empty() {
                socket.close();
            }
        }
        while socket.can_recv() {
            let received = &mut self.received;
            let taken = socket.recv(|bytes| {
                received.update(&*bytes);
                (bytes.len(), bytes.len())
            });
            self.count += taken.unwrap();
            moved += 1;
        }
        self.interface
            .poll(now, &mut self.device, &mut self.sockets);
        moved > 0
    }
}

#[test]
fn two_stacks_on_one_wire_send_each_other_the_same_bytes() {
    two_stacks(1500);
}

#[test]
fn so_they_do_in_long_frames() {
    two_stacks(9000);
}

fn two_stacks(mtu: u32) {
    let (left, right) = UnixStream::pair().unwrap();
    let machine = Machine::new(1);
    machine.add_network(1, mtu, Stream::new(left).unwrap());
    machine.add_network(2, mtu, Stream::new(right).unwrap());
    let _cpu = machine.hypervisor.enter(0);
    let bus_memory = BusMemory::<FakeHal, 1, 4>::new();
    let bus = VmBus::new(&bus_memory, VECTOR).unwrap();
    bus.connect(&Options::default()).unwrap();
    let memories = [(); 2].map(|()| NetworkMemory::<FakeHal>::new());
    let open = |memory| -> Adapter<'_> {
        let offer = bus.find(network::CLASS).unwrap();
        let options = NetworkOptions {
            mtu,
            ..NetworkOptions::default()
        };
        Network::open(&bus, &offer, memory, &options).unwrap()
    };
    let (first, second) = (open(&memories[0]), open(&memories[1]));
    let mut buffers = [(); 4].map(|()| vec![0; first.max_frame()]);
    let [a, b, c, d] = &mut buffers;
    let mut bulk = vec![0; BULK];
    rand::rng().fill(bulk.as_mut_slice());
    let hash = Sha256::digest(&bulk);
    let mut server = End::new(Phy::new(&first, a, b), 1, &bulk);
    let mut client = End::new(Phy::new(&second, c, d), 2, &bulk);
    server.socket().listen(7).unwrap();
    let socket = client.sockets.get_mut::<Socket<'_>>(client.socket);
    let to = (IpAddress::v4(10, 0, 0, 1), 7);
    socket
        .connect(client.interface.context(), to, 50_000)
        .unwrap();

    let begin = Instant::now();
    let mut deliveries = 0u32;
    while server.count < BULK || client.count < BULK {
        let now = smoltcp::time::Instant::from_micros(begin.elapsed().as_micros() as i64);
        let moved = client.turn(now) | server.turn(now);
        deliveries += u32::from(moved);
        if !moved {
            first.wait_until_ready(Duration::from_millis(1)).unwrap();
        }
        let (there, back) = (server.count, client.count);
        assert!(
            begin.elapsed() < DEADLINE,
            "{there} and {back} bytes, {deliveries} turns"
        );
    }
    assert_eq!(server.received.finalize_reset(), hash);
    assert_eq!(client.received.finalize_reset(), hash);
    for network in [&first, &second] {
        let stats = network.stats();
        assert_eq!((stats.bad, stats.lost, stats.refused), (0, 0, 0));
    }
}

#[test]
fn a_device_knows_its_limits() {
    let machine = Machine::new(1);
    machine.add_network(1, 9000, Loopback::new(false).unwrap());
    let _cpu = machine.hypervisor.enter(0);
    let bus_memory = BusMemory::<FakeHal, 1, 4>::new();
    let bus = VmBus::new(&bus_memory, VECTOR).unwrap();
    bus.connect(&Options::default()).unwrap();
    let memory = NetworkMemory::<FakeHal>::new();
    let offer = bus.find(network::CLASS).unwrap();
    let options = NetworkOptions {
        mtu: 9000,
        ..NetworkOptions::default()
    };
    let network = Network::open(&bus, &offer, &memory, &options).unwrap();
    let mtu = |receive: usize, transmit: usize| {
        let (mut receive, mut transmit) = (vec![0; receive], vec![0; transmit]);
        let phy = Phy::new(&network, &mut receive, &mut transmit);
        phy.capabilities().max_transmission_unit
    };
    assert_eq!(mtu(9014, 9014), 9014);
    assert_eq!(mtu(1514, 9014), 1514);
    assert_eq!(mtu(9014, 600), 600);
}

#[test]
fn checksums_of_tcp_are_left_to_an_adapter_that_completes_them() {
    for offload in [true, false] {
        let machine = Machine::new(1);
        machine.add_network(1, 1500, Loopback::new(offload).unwrap());
        let _cpu = machine.hypervisor.enter(0);
        let bus_memory = BusMemory::<FakeHal, 1, 4>::new();
        let bus = VmBus::new(&bus_memory, VECTOR).unwrap();
        bus.connect(&Options::default()).unwrap();
        let memory = NetworkMemory::<FakeHal>::new();
        let offer = bus.find(network::CLASS).unwrap();
        let network = Network::open(&bus, &offer, &memory, &NetworkOptions::default()).unwrap();
        let (mut receive, mut transmit) = (vec![0; 1514], vec![0; 1514]);
        let mut phy = Phy::new(&network, &mut receive, &mut transmit);
        let checksums = phy.capabilities().checksum;
        assert_eq!(checksums.tcp.tx(), !offload);
        assert!(checksums.tcp.rx(), "what comes is checked");

        // A segment to ourselves, made as the stack makes it.
        let mac = EthernetAddress(network.mac_address());
        let ip = Ipv4Address::new(10, 0, 0, 1);
        let tcp = TcpRepr {
            src_port: 1,
            dst_port: 2,
            control: TcpControl::Psh,
            seq_number: TcpSeqNumber(3),
            ack_number: Some(TcpSeqNumber(4)),
            window_len: 5,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[0xa5; 333],
        };
        let now = smoltcp::time::Instant::ZERO;
        let length = 14 + 20 + tcp.buffer_len();
        phy.transmit(now).unwrap().consume(length, |bytes| {
            let mut frame = EthernetFrame::new_unchecked(bytes);
            frame.set_src_addr(mac);
            frame.set_dst_addr(mac);
            frame.set_ethertype(EthernetProtocol::Ipv4);
            let repr = Ipv4Repr {
                src_addr: ip,
                dst_addr: ip,
                next_header: IpProtocol::Tcp,
                payload_len: tcp.buffer_len(),
                hop_limit: 64,
            };
            let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
            repr.emit(&mut packet, &checksums);
            let mut segment = TcpPacket::new_unchecked(packet.payload_mut());
            tcp.emit(&mut segment, &ip.into(), &ip.into(), &checksums);
        });
        assert!(network.wait_until_ready(DEADLINE).unwrap());
        let (frame, _room) = phy.receive(now).unwrap();
        frame.consume(|bytes| {
            let frame = EthernetFrame::new_checked(bytes).unwrap();
            let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
            let segment = TcpPacket::new_checked(packet.payload()).unwrap();
            assert!(segment.verify_checksum(&ip.into(), &ip.into()));
        });
    }
}
