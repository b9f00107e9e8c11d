//! What a guest kernel may be seen to do on this host: the rows of the table in
//! `docs/guests.md`.

use serde::{Deserialize, Serialize};

/// Defines [`Feature`], so that a row is told in one place only.
macro_rules! features {
    ($($name:ident: $text:literal,)+) => {
        /// A feature that a story can prove of a guest kernel, by [`Story::proves`].
        ///
        /// [`Story::proves`]: crate::Story::proves
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Feature {
            $(#[doc = $text] $name,)+
        }

        impl Feature {
            /// All of them, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// Its row's title.
            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

features! {
    Boots: "boots unmodified, and sees Microsoft Hyper-V",
    CleanLog: "no warning of the kernel about Hyper-V, storage or clocks",
    Vmbus2_4: "VMBus 2.4",
    Vmbus3_0: "VMBus 3.0",
    Vmbus4_0: "VMBus 4.0",
    Vmbus4_1: "VMBus 4.1",
    Vmbus5_0: "VMBus 5.0",
    Vmbus5_1: "VMBus 5.1",
    Vmbus5_2: "VMBus 5.2",
    Vmbus5_3: "VMBus 5.3",
    ClockWithoutExits: "reads the clock without an exit",
    OneCpu: "1 processor",
    TwoCpus: "2 processors",
    FourCpus: "4 processors",
    EightCpus: "8 processors",
    ChannelsMove: "channels move between processors under load",
    CpuHotplug: "a processor goes offline and comes back",
    Reboot: "reboots from inside",
    PowerOff: "powers off from inside",
    Kexec: "kexec into the same kernel",
    PanicReboots: "a panic with `panic=1` reboots",
    Pause: "pause and resume",
    DebianRoot: "a Debian with systemd, its root on storvsc, up to a login",
    Fio: "`fio` with verify on a file system",
    FsckClean: "`fsck -f` finds the file system clean after power-off",
    Disk: "a disk reads back what was written",
    ManyDisks: "several disks and LUNs on a controller",
    ReadOnlyDisk: "a disk that is only read",
    Dvd: "DVD drive with an ISO image",
    HotplugDisk: "a disk comes and goes while running",
    HotplugController: "a controller comes and goes while running",
    Resize: "a disk grows while running",
    Discard: "`fstrim` frees blocks in the image",
    FlushAndFua: "flush and FUA reach the image",
    Blocks4096: "a disk of 4096-byte blocks",
    Identifiers: "serial and NAA identifiers stay with a disk",
    SubChannels: "storage sub-channels, with I/O on each",
    Qcow2: "qcow2 image",
    Vhd: "VHD image",
    Vhdx: "VHDX image",
    KilledHost: "what was synced survives a SIGKILL of `host-vsp`",
    KilledMachine: "what was synced survives the death of the machine around it",
    FullHostDisk: "a full host disk is an I/O error, and writing goes on after",
    Heartbeat: "heartbeat",
    ShutdownAsked: "shuts down when the host asks",
    RebootAsked: "reboots when the host asks",
    TimeSync: "time of the host, also after a pause",
    Kvp: "key-value pairs both ways",
    Vss: "file systems frozen and thawed for a backup",
    CrashReport: "crash report with the panic's message",
    Keyboard: "receives what the host types",
    Dhcp: "network by DHCP, and ping",
    Iperf: "TCP both ways, 1 and 8 streams",
    Mtu9000: "MTU of 9000 end to end",
    Offloads: "checksum and segmentation offloads",
    JoinedSegments: "TCP segments joined on the way to the guest, as it wants (RSC)",
    ChecksumsInSoftware: "right checksums with all offloads off",
    NetQueues: "network sub-channels, with traffic on each",
    LinkState: "sees the network link go down and up",
    NetReload: "`hv_netvsc` loaded again and again",
    TwoMachines: "two machines talk to each other",
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_title_is_used_twice_or_breaks_the_table() {
        let titles: BTreeSet<_> = Feature::ALL.iter().map(|it| it.text()).collect();
        assert_eq!(titles.len(), Feature::ALL.len());
        assert!(titles.iter().all(|title| !title.contains(['|', '\n'])));
    }
}
