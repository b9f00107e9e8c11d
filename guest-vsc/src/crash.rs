//! Crash reports: telling the host why this system ends.
//!
//! A hypervisor that has the crash MSRs (TLFS 2.4.1, "guest crash enlightenment") takes five
//! parameters, of which the last two may name a message in memory; hosts log them. Made while all
//! is well, as a report needs a page that is there already:
//!
//! ```no_run
//! # use guest_vsc::{Hal, Error, crash::CrashReporter};
//! # fn f<H: Hal>(info: &core::panic::PanicInfo<'_>) -> Result<(), Error> {
//! let reporter = CrashReporter::<H>::new()?;
//! // Later, in the panic handler:
//! reporter.report([1, 0, 0], format_args!("{info}"));
//! # Ok(()) }
//! ```
#![expect(unsafe_code, reason = "privileged instructions through `Hal`")]

use core::fmt::{self, Write as _};
use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, Ordering};

use vmbus_proto::hv::cpuid::feature;
use vmbus_proto::hv::msr::{CRASH_CTL, CRASH_MESSAGE, CRASH_NOTIFY, CRASH_P0};

use crate::error::Error;
use crate::hal::Hal;
use crate::hypervisor::{Missing, detect};
use crate::shared::Dma;

/// Tells the host of a crash, once.
pub struct CrashReporter<H: Hal> {
    message: Dma<H>,
    reported: AtomicBool,
    hal: PhantomData<fn() -> H>,
}

impl<H: Hal> CrashReporter<H> {
    /// Looks whether the hypervisor takes crash reports, and makes a page for the message.
    ///
    /// # Errors
    /// [`Missing::CrashMsrs`] where it does not.
    pub fn new() -> Result<Self, Error> {
        if detect::<H>()?.features & feature::CRASH_MSRS == 0 {
            return Err(Missing::CrashMsrs.into());
        }
        Ok(Self {
            message: Dma::new(1).ok_or(Error::OutOfMemory)?,
            reported: AtomicBool::new(false),
            hal: PhantomData,
        })
    }

    /// Reports a crash: three numbers of the system's own choice, and a message, of which the
    /// first 4096 bytes count. Only the first report goes out; says whether this was it. Takes no
    /// lock and may be called in any context, such as a panic handler.
    pub fn report(&self, parameters: [u64; 3], message: impl fmt::Display) -> bool {
        if self.reported.swap(true, Ordering::AcqRel) {
            return false;
        }
        // SAFETY: the registers exist, and reading this one has no effect.
        let offered = unsafe { H::rdmsr(CRASH_CTL) };
        let mut text = Text {
            page: &self.message,
            length: 0,
        };
        let mut control = CRASH_NOTIFY;
        if offered & CRASH_MESSAGE != 0 {
            // What does not fit is left out.
            let _ = write!(text, "{message}");
            control |= CRASH_MESSAGE;
        }
        self.message.lend();
        let [first, second, third] = parameters;
        let place = match text.length {
            0 => [0, 0],
            length => [self.message.paddr(), length as u64],
        };
        let values = [first, second, third].into_iter().chain(place);
        for (register, value) in (CRASH_P0..).zip(values).chain([(CRASH_CTL, control)]) {
            // SAFETY: the registers exist and take any value; the page belongs to the host now.
            unsafe { H::wrmsr(register, value) };
        }
        true
    }
}

/// Writes text into a page.
struct Text<'a, H: Hal> {
    page: &'a Dma<H>,
    length: usize,
}

impl<H: Hal> fmt::Write for Text<'_, H> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.page.len().saturating_sub(self.length);
        let mut fitting = text.len().min(room);
        while !text.is_char_boundary(fitting) {
            fitting = fitting.saturating_sub(1);
        }
        let (now, left) = text.as_bytes().split_at(fitting);
        self.page.write(self.length, now);
        self.length = self.length.saturating_add(now.len());
        if left.is_empty() {
            Ok(())
        } else {
            Err(fmt::Error)
        }
    }
}
