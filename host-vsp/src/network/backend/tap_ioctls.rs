//! The system calls that a tap is set up by.
#![expect(unsafe_code, reason = "ioctls of taps have no safe wrapper")]

use std::fs::File;
use std::io;

use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

/// Longest name of an interface in bytes, without the zero that ends it.
pub(super) const NAME_MAX: usize = libc::IFNAMSIZ - 1;

/// Frames with an Ethernet header, each after a virtio-net header, to and from one of several queues.
const FLAGS: libc::c_int =
    libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;

/// Makes `file`, which is `/dev/net/tun`, a queue of the tap `name`.
///
/// # Errors
/// `EPERM` where it is somebody else's, `EBUSY` where it has all its queues, `EINVAL` where it is
/// no tap, or was made for one queue where several are wanted, or the other way round.
pub(super) fn set_interface(file: &File, name: &str, multi_queue: bool) -> io::Result<()> {
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: if multi_queue {
                FLAGS as libc::c_short
            } else {
                (FLAGS & !libc::IFF_MULTI_QUEUE) as libc::c_short
            },
        },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(NAME_MAX)) {
        *to = from.cast_signed();
    }
    // SAFETY: the argument is the struct that this ioctl reads, and writes within its size.
    check(unsafe { ioctl_with_mut_ref(file, libc::TUNSETIFF, &mut request) })
}

/// Makes a queue one that frames come out of, or not any more.
pub(super) fn set_attached(file: &File, attached: bool) -> io::Result<()> {
    let flags = if attached {
        libc::IFF_ATTACH_QUEUE
    } else {
        libc::IFF_DETACH_QUEUE
    };
    let request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: flags as libc::c_short,
        },
    };
    // SAFETY: the argument is the struct that this ioctl reads.
    check(unsafe { ioctl_with_ref(file, libc::TUNSETQUEUE, &request) })
}

/// Says how long the header is that comes before each frame.
pub(super) fn set_header_length(file: &File, bytes: libc::c_int) -> io::Result<()> {
    // SAFETY: the argument is the number that this ioctl reads.
    check(unsafe { ioctl_with_ref(file, libc::TUNSETVNETHDRSZ, &bytes) })
}

/// Says which frames we take that are not complete, a combination of `TUN_F_*`.
pub(super) fn set_offload(file: &File, offload: libc::c_uint) -> io::Result<()> {
    // SAFETY: this ioctl takes a number, not an address.
    check(unsafe { ioctl_with_val(file, libc::TUNSETOFFLOAD, offload.into()) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether `file` still belongs to an interface: one that was deleted has `EBADFD`.
pub(super) fn is_attached(file: &File) -> bool {
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 },
    };
    // SAFETY: the argument is the struct that this ioctl fills.
    check(unsafe { ioctl_with_mut_ref(file, libc::TUNGETIFF, &mut request) }).is_ok()
}
