//! The hypervisor: a VM on Linux's KVM, with Hyper-V's SynIC.
//!
//! [`vm`] makes the VM, [`vcpu`] its processors, [`run`](mod@run) runs one of them on a thread,
//! [`synic`] and its messages write what the SynIC's pages hold, and [`capabilities`] says what is
//! asked of the kernel. `unsafe` is in [`ioctls`] alone.

pub mod capabilities;
pub mod clocks;
pub mod ioctls;
mod messages;
mod moment;
pub mod run;
pub mod statistics;
pub mod synic;
pub mod vcpu;
pub mod vm;

/// KVM refused something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no usable KVM.
    #[error("{0}")]
    Unusable(String),
    /// A system call failed.
    #[error("{what} failed: {error}")]
    Call {
        /// What was to be done.
        what: &'static str,
        /// The kernel's answer.
        error: std::io::Error,
    },
    /// KVM lacks what guests need of Hyper-V.
    #[error(transparent)]
    Identity(#[from] crate::identity::MissingPrivileges),
}

/// Names what a KVM call was for.
pub(crate) trait Context<T> {
    /// The error as one of ours.
    fn context(self, what: &'static str) -> Result<T, Error>;
}

impl<T> Context<T> for Result<T, kvm_ioctls::Error> {
    fn context(self, what: &'static str) -> Result<T, Error> {
        self.map_err(|error| Error::Call {
            what,
            error: error.into(),
        })
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn context(self, what: &'static str) -> Result<T, Error> {
        self.map_err(|error| Error::Call { what, error })
    }
}
