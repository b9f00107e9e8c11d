//! What goes over the API's socket: JSON bodies, in the shape Cloud Hypervisor's users know.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::counters::Snapshot;
use crate::storage::Format;

/// Who answers: body of `vmm.ping`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ping {
    /// Version of `host-vsp`.
    pub version: String,
    /// Its process id.
    pub pid: u32,
}

impl Ping {
    /// This process.
    pub fn here() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
        }
    }
}

/// What the machine does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum State {
    /// It runs.
    Running,
    /// It is paused.
    Paused,
    /// It has ended.
    Shutdown,
}

/// Body of `vm.info`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmInfo {
    /// What it is made of, now.
    pub config: VmConfig,
    /// What it does now.
    pub state: State,
    /// Guest memory in bytes.
    pub memory_actual_size: u64,
}

/// Body of `vm.guest`: what the guest's own drivers say and would listen to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestInfo {
    /// How its heart beats.
    pub heartbeat: Heartbeat,
    /// Beats since the machine was made.
    pub beats: u64,
    /// Whether it can be asked to shut down and to restart.
    pub shutdown: bool,
    /// Whether it has key-value pairs.
    pub kvp: bool,
    /// Whether its file systems can be frozen.
    pub vss: bool,
    /// Whether its file systems stand still.
    pub frozen: bool,
    /// Whether it listens to the keyboard.
    pub keyboard: bool,
    /// Crashes that it reported since the machine was made.
    pub crashes: u64,
    /// The last of them.
    pub crash: Option<Crash>,
}

/// What a guest's operating system said when it crashed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Crash {
    /// Five numbers, in hexadecimal: what they mean is the guest's. Where there is a message, the
    /// last two are its address and length.
    pub parameters: Vec<String>,
    /// The end of its log, where it gave one.
    pub message: Option<String>,
}

impl From<crate::platform::Crash> for Crash {
    fn from(crash: crate::platform::Crash) -> Self {
        Self {
            parameters: crash
                .parameters
                .iter()
                .map(|it| format!("{it:#x}"))
                .collect(),
            message: crash.message,
        }
    }
}

/// How a guest's heart beats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Heartbeat {
    /// Not yet, not any more since its driver left, or not while it is paused.
    NoContact,
    /// It beats.
    Alive,
    /// It beats, but the guest says that what it is there for has failed.
    Critical,
    /// It has stopped.
    Lost,
}

/// Body of `vm.type-text`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TypeText {
    /// What to type, with the layout of the United States; a new line is Enter.
    pub text: String,
}

/// Where key-value pairs are, and whose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum KvpPool {
    /// Written by the host, for the guest.
    External,
    /// Written by the guest's users, for the host.
    Guest,
    /// What the guest's system says about itself: its name, version, addresses.
    #[default]
    Auto,
    /// Written by the host's system, for the guest.
    AutoExternal,
    /// Written by the guest's system, for itself.
    AutoInternal,
}

impl From<KvpPool> for crate::ic::Pool {
    fn from(pool: KvpPool) -> Self {
        match pool {
            KvpPool::External => Self::External,
            KvpPool::Guest => Self::Guest,
            KvpPool::Auto => Self::Auto,
            KvpPool::AutoExternal => Self::AutoExternal,
            KvpPool::AutoInternal => Self::AutoInternal,
        }
    }
}

/// The pool of pairs that the host gives to the guest.
fn external() -> KvpPool {
    KvpPool::External
}

/// Body of `vm.kvp-list`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KvpList {
    /// Which pairs; by default what the guest says about itself.
    #[serde(default)]
    pub pool: KvpPool,
}

/// Body of `vm.kvp-get`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KvpGet {
    /// Where; by default what the guest says about itself.
    #[serde(default)]
    pub pool: KvpPool,
    /// The key, at most 255 units of UTF-16.
    pub key: String,
}

/// Body of `vm.kvp-set`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KvpSet {
    /// Where; by default `External`.
    #[serde(default = "external")]
    pub pool: KvpPool,
    /// The key, at most 255 units of UTF-16.
    pub key: String,
    /// The value, at most 1023 units of UTF-16.
    pub value: String,
}

/// Body of `vm.kvp-delete`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KvpDelete {
    /// Where; by default `External`.
    #[serde(default = "external")]
    pub pool: KvpPool,
    /// The key.
    pub key: String,
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KvpPair {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
}

/// Body of `vm.freeze`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Freeze {
    /// The longest that they stand still: 1 to 600 seconds.
    #[serde(default = "ten")]
    pub seconds: u64,
    /// The answer ends with the freeze, and the freeze with the connection.
    #[serde(default)]
    pub hold: bool,
}

/// As long as Windows holds its file systems for a copy.
fn ten() -> u64 {
    10
}

/// What a machine is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmConfig {
    /// Its processors.
    pub cpus: CpusConfig,
    /// Its memory.
    pub memory: MemoryConfig,
    /// What it boots.
    pub payload: PayloadConfig,
    /// Its disks, in the order of controllers and LUNs.
    pub disks: Vec<Disk>,
    /// Its network adapters.
    pub net: Vec<Net>,
}

/// Processors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CpusConfig {
    /// How many there are at boot, and ever.
    pub boot_vcpus: u32,
}

/// Memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemoryConfig {
    /// In bytes.
    pub size: u64,
}

/// What a machine boots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PayloadConfig {
    /// File with the kernel.
    #[schema(value_type = String)]
    pub kernel: PathBuf,
    /// File with the initial RAM disk.
    #[schema(value_type = Option<String>)]
    pub initramfs: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
}

/// A disk that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Disk {
    /// Its name, for `vm.remove-device` and the other calls.
    pub id: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: DiskType,
    /// The name of its controller.
    pub controller: String,
    /// Its LUN there.
    pub lun: u8,
    /// Image or block device; none in an empty DVD drive.
    #[schema(value_type = Option<String>)]
    pub path: Option<PathBuf>,
    /// How the image keeps it.
    pub format: Format,
    /// Whether the guest must not write to it.
    pub readonly: bool,
    /// In bytes; 0 in an empty DVD drive.
    pub size: u64,
    /// Bytes of a logical block.
    pub block_size: u32,
    /// The serial number that the guest sees.
    pub serial: String,
}

/// What a disk is to the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiskType {
    /// A disk.
    #[default]
    Disk,
    /// A DVD drive, whose image is the medium: only read, and to be changed.
    Dvd,
}

/// Body of `vm.add-disk`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// What it is to the guest.
    #[serde(default, rename = "type")]
    pub kind: DiskType,
    /// Image or block device; a DVD drive may be empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub path: Option<PathBuf>,
    /// How the image keeps the disk. By default its name says it (`.qcow2`, `.vhd`, `.vhdx`), and
    /// all others are raw; its content is never looked at to find out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// The guest must not write to it; it never can to a DVD.
    #[serde(default)]
    pub readonly: bool,
    /// A qcow2 image may stand on others, which it names itself; they are only read.
    #[serde(default)]
    pub backing_files: bool,
    /// Its name; by default `disk` or `dvd` and a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The controller it is put on, `scsi` and a number; made where it is not there yet. By
    /// default `scsi0`. One whose name is `vmd` and a number is of a class that only the driver
    /// `vmbus_disk` binds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<String>,
    /// Its LUN there, 0 to 63; by default the first free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lun: Option<u8>,
    /// Bytes of a logical block, 512 or 4096; by default 512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
    /// Its serial number for the guest, up to 64 printable characters; by default one made from
    /// its place, as stable as that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
}

/// A network adapter that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Net {
    /// Its name, for `vm.remove-device` and `vm.set-link`.
    pub id: String,
    /// Its address.
    pub mac: String,
    /// The largest MTU that the guest may use.
    pub mtu: u32,
    /// Where its cable leads: `user`, `tap` and a name, or `socket` and a path.
    pub leads_to: String,
    /// Whether its cable is plugged in.
    pub up: bool,
}

/// Body of `vm.add-net`. Where it names neither tap nor socket, the cable leads to passt, which is
/// started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// A tap of the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// A Unix stream socket that carries frames, each after its length in four bytes, the highest
    /// first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub socket: Option<PathBuf>,
    /// Wait at the socket for another one, instead of connecting to who does.
    #[serde(default)]
    pub listen: bool,
    /// Ports of the host that are the guest's, such as `tcp:8080:80`; only to passt.
    #[serde(default)]
    pub forwards: Vec<String>,
    /// Its address; one by chance by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Queues of the tap, and channels that the guest may have; one by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// The largest MTU that the guest may use, from 68 to 9000; by default 1500.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Its name; by default `net` and a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// Body of `vm.set-link`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetLink {
    /// The network adapter.
    pub id: String,
    /// Whether its cable shall be plugged in.
    pub up: bool,
}

/// Body of `vm.remove-device`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveDevice {
    /// A disk, a controller with all its disks, or a network adapter.
    pub id: String,
}

/// Body of `vm.insert-medium`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InsertMedium {
    /// The DVD drive.
    pub id: String,
    /// Image or block device.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Take out what is there although the guest has locked it in.
    #[serde(default)]
    pub force: bool,
}

/// Body of `vm.eject-medium`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EjectMedium {
    /// The DVD drive.
    pub id: String,
    /// Also where the guest has locked the medium in.
    #[serde(default)]
    pub force: bool,
}

/// Body of `vm.resize-disk`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResizeDisk {
    /// The disk.
    pub id: String,
    /// Its new size in bytes, not less than it has.
    pub desired_size: u64,
}

/// Body of `vm.counters`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Counters {
    /// Seconds since the machine was made.
    pub elapsed_seconds: f64,
    /// Returns from `KVM_RUN`: userspace exits.
    pub returns_total: u64,
    /// Returns from `KVM_RUN` by reason.
    pub returns: BTreeMap<String, u64>,
    /// Counters of devices.
    pub devices: BTreeMap<String, u64>,
    /// KVM's statistics, summed over the processors; empty where the kernel has none.
    pub kvm: BTreeMap<String, u64>,
}

impl From<Snapshot> for Counters {
    fn from(snapshot: Snapshot) -> Self {
        Self {
            elapsed_seconds: snapshot.elapsed.as_secs_f64(),
            returns_total: snapshot.returns_total,
            returns: snapshot
                .returns
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            devices: snapshot.devices,
            kvm: snapshot.kvm,
        }
    }
}

/// Body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// A sentence: what is wrong, and what to do.
    pub error: String,
}
