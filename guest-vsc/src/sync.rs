//! A spin lock that may be taken in interrupt context.
//!
//! The holder runs with interrupts off on its processor, so a handler never waits for the code it
//! interrupted. What is done under the lock is short and never waits for the host.

use core::marker::PhantomData;

use crate::hal::Hal;

/// A value behind a spin lock that is held with interrupts off.
pub(crate) struct IrqMutex<H, T: ?Sized> {
    hal: PhantomData<fn() -> H>,
    inner: spin::Mutex<T>,
}

/// Turns interrupts back on when dropped, also by a panic.
struct Restore<H: Hal> {
    were_enabled: bool,
    hal: PhantomData<fn() -> H>,
}

impl<H: Hal> Drop for Restore<H> {
    fn drop(&mut self) {
        if self.were_enabled {
            H::enable_interrupts();
        }
    }
}

impl<H, T> IrqMutex<H, T> {
    pub(crate) const fn new(value: T) -> Self {
        Self {
            inner: spin::Mutex::new(value),
            hal: PhantomData,
        }
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }
}

impl<H: Hal, T: ?Sized> IrqMutex<H, T> {
    /// Runs `f` on the value.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        without_interrupts::<H, _>(|| self.with_interrupts_off(f))
    }

    /// As [`with`](Self::with), where interrupts are off already.
    pub(crate) fn with_interrupts_off<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.inner.lock())
    }
}

/// Runs `f` with interrupts off on this processor, which therefore stays the one that runs it.
pub(crate) fn without_interrupts<H: Hal, R>(f: impl FnOnce() -> R) -> R {
    let _restore = Restore::<H> {
        were_enabled: H::disable_interrupts(),
        hal: PhantomData,
    };
    f()
}
