//! Debian's daemons for integration services, for guests whose root is an initramfs.

use std::fs;

use super::debian::{self, Wanted};
use crate::error::{AtPath, Error, Result};

/// A file of the guest: its path there, and what is in it.
pub type GuestFile = (&'static str, Vec<u8>);

/// The daemons' programs and what they need to run, each in `bin`: `daemon NAME` starts one of
/// them in the foreground.
pub fn hyperv_daemons() -> Result<Vec<GuestFile>> {
    let bundle = debian::bundle(
        "hyperv-daemons-1",
        Wanted::Exactly(&["hyperv-daemons", "libc6"]),
    )?;
    let files = [
        ("bin/hv_kvp_daemon", "usr/sbin/hv_kvp_daemon"),
        ("bin/hv_vss_daemon", "usr/sbin/hv_vss_daemon"),
        ("bin/libc.so.6", "usr/lib/x86_64-linux-gnu/libc.so.6"),
        ("bin/ld.so", "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
    ];
    let mut found: Vec<GuestFile> = vec![(
        "bin/daemon",
        b"#!/bin/sh\nexec ld.so --library-path /bin \"/bin/$1\" -n\n".to_vec(),
    )];
    for (inside, outside) in files {
        let path = bundle.join(outside);
        if !path.is_file() {
            return Err(Error::Setup(format!(
                "{} is missing: delete {}",
                path.display(),
                bundle.display()
            )));
        }
        found.push((inside, fs::read(&path).at(&path)?));
    }
    Ok(found)
}
