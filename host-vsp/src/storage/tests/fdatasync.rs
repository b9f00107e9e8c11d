//! A flush reaches fdatasync(2), observed at the system call.
//!
//! A seccomp filter on the thread that makes the controller, inherited by the threads that do its
//! transfers, lets fdatasync fail, and pwritev2 where it has `RWF_DSYNC`. A guest that then gets
//! an error for its flush has proof that the call was made and its result waited for.
#![expect(unsafe_code, reason = "no safe wrapper installs a seccomp filter")]

use vmbus_proto::scsi::{Cdb, Sense};
use vmbus_proto::storvsp::srb_status;

use super::guest::{Guest, assert_good, assert_sense};
use super::{Image, controller};

/// Offsets in `struct seccomp_data`: number of the call, architecture, low half of argument 5.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENT_5: u32 = 16 + 5 * 8;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

/// Makes durable calls of this thread, and of threads it starts, fail.
fn fail_durable_calls() {
    let load = |offset| filter(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    let equal =
        |value, yes, no| filter(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, yes, no, value);
    let end = |value| filter(libc::BPF_RET | libc::BPF_K, 0, 0, value);
    let mut program = [
        load(ARCHITECTURE),
        equal(AUDIT_ARCH_X86_64, 0, 5),
        load(NUMBER),
        equal(libc::SYS_fdatasync as u32, 4, 0),
        equal(libc::SYS_pwritev2 as u32, 0, 2),
        load(ARGUMENT_5),
        equal(libc::RWF_DSYNC as u32, 1, 0),
        end(libc::SECCOMP_RET_ALLOW),
        end(libc::SECCOMP_RET_ERRNO | libc::EIO as u32),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the call takes no pointers.
    let promised = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(promised, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: `program` and the instructions it points to live until the call returns.
    let installed = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    };
    assert_eq!(installed, 0, "{}", std::io::Error::last_os_error());
}

fn filter(code: u32, yes: u8, no: u8, value: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: yes,
        jf: no,
        k: value,
    }
}

/// Runs `story` on a thread of its own, with durable calls that fail or work.
fn story(failing: bool, story: fn(&mut Guest, bool)) {
    let image = Image::new(1 << 20);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if failing {
                fail_durable_calls();
            }
            let mut guest = Guest::ready(controller(image.open()));
            story(&mut guest, failing);
        });
    });
}

#[test]
fn a_flush_reaches_fdatasync() {
    for failing in [false, true] {
        story(failing, |guest, failing| {
            // Not durable: never fails.
            let write = Cdb::Write {
                lba: 0,
                blocks: 1,
                fua: false,
            };
            assert_good(&guest.data_out(write, &[1; 512]), 512);
            let flush = guest.command(Cdb::SynchronizeCache { lba: 0, blocks: 0 });
            if failing {
                assert_sense(&flush, srb_status::ERROR, Sense::WRITE_ERROR);
            } else {
                assert_good(&flush, 0);
            }
        });
    }
}

#[test]
fn a_write_with_fua_reaches_the_medium() {
    for failing in [false, true] {
        story(failing, |guest, failing| {
            let write = Cdb::Write {
                lba: 0,
                blocks: 1,
                fua: true,
            };
            let answer = guest.data_out(write, &[1; 512]);
            if failing {
                assert_sense(&answer, srb_status::ERROR, Sense::WRITE_ERROR);
            } else {
                assert_good(&answer, 512);
            }
        });
    }
}
