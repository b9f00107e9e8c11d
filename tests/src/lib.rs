//! The story harness: each story is a function that gets a fresh corner of a running L1.
//!
//! Stories live in `tests/stories/<topic>.rs`; `tests/stories/main.rs` lists the topics. Run them
//! with `cargo test -p e2e`, some of them with `cargo test -p e2e -- FILTER`.
//!
//! ```
//! use std::time::Duration;
//! use e2e::{Entry, Story};
//!
//! pub const STORIES: &[Entry] = &[Entry::new("a_guest_powers_off", a_guest_powers_off)];
//!
//! fn a_guest_powers_off(story: &mut Story) -> anyhow::Result<()> {
//!     let kernel = story.guest_kernel()?;
//!     let disk = story.file("disk.img");
//!     story.l1().put_bytes(&[0; 1 << 20], &disk)?;
//!     let mut vm = story.host_vsp(["run", "--kernel", &kernel, "--memory", "256M", "--cpus", "1"])?;
//!     vm.expect("PASS", Duration::from_secs(30))?;
//!     let status = vm.wait(Duration::from_secs(10))?;
//!     anyhow::ensure!(status.success(), "host-vsp: {status}");
//!     Ok(())
//! }
//! ```
//!
//! * Every wait has a deadline; the rest is [`bed::l1`].
//! * Processes that the story leaves behind are killed. What they printed last is in the failure.
//! * `expect` looks at standard output; see [`bed::l1::Process`] for standard error.
//! * If the L1 itself dies, that is the bed's fault: a new one is booted and the story told once
//!   more. More than [`BED_DEATHS_ALLOWED`] deaths fail the run.
//! * What a story has seen a guest kernel do, it says by [`Story::proves`]; `docs/guests.md` is made
//!   of that, where the story passes ([`Record`]).
//! * `VMBUS_SOAK=1` asks for long counts: see [`Story::count`].
//! * `VMBUS_BENCH=1` asks for measurements instead of stories: see [`measure`].

mod feature;
mod pool;
mod programs;
mod record;
mod runner;
mod story;

pub use feature::Feature;
pub use pool::BED_DEATHS_ALLOWED;
pub use record::{Proof, Record};
pub use runner::{Entry, Topic, measure, run};
pub use story::{Story, is_soak};
