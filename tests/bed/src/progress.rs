//! Progress of long steps, on standard error: a live line on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// A step that took less is not worth a closing line.
const WORTH_SAYING: Duration = Duration::from_secs(1);

/// One long step that is under way; finish it with [`Step::done`].
#[derive(Debug)]
pub struct Step {
    bar: Option<ProgressBar>,
    title: String,
    begun: Instant,
    done: bool,
}

impl Step {
    /// Begins a step called `title`, of `total` units (0: unknown).
    pub fn begin(title: impl Into<String>, total: u64) -> Self {
        let title = title.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = if total > 0 {
                ProgressBar::new(total)
            } else {
                ProgressBar::new_spinner()
            };
            let template = if total > 0 {
                "{spinner} {prefix} [{bar:30}] {pos}/{len} {wide_msg}"
            } else {
                "{spinner} {prefix} {elapsed} {wide_msg}"
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_prefix(title.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            eprintln!("{title} ...");
        }
        Self {
            bar,
            title,
            begun: Instant::now(),
            done: false,
        }
    }

    /// One more unit is done; `what` says which.
    pub fn advance(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
            bar.set_message(what.to_owned());
        }
    }

    /// Shows `what` without counting.
    pub fn say(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(what.to_owned());
        }
    }

    /// Ends the step and prints how long it took, with `result` as a closing remark.
    pub fn done(mut self, result: &str) {
        self.done = true;
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        // Elsewhere than on a terminal the beginning is on the page already.
        if self.begun.elapsed() < WORTH_SAYING {
            return;
        }
        let gap = if result.is_empty() { "" } else { ": " };
        eprintln!(
            "{}{gap}{result} ({:.1} s)",
            self.title,
            self.begun.elapsed().as_secs_f32()
        );
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let (Some(bar), false) = (&self.bar, self.done) {
            bar.abandon();
        }
    }
}
