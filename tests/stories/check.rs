//! `host-vsp check` says what this machine can do.

use std::time::Duration;

use anyhow::ensure;
use e2e::{Entry, Story};

pub(crate) const STORIES: &[Entry] = &[Entry::new("says_yes_in_the_bed", says_yes_in_the_bed)];

fn says_yes_in_the_bed(story: &mut Story) -> anyhow::Result<()> {
    let output = story.host_vsp(["check"])?.finish(Duration::from_secs(20))?;
    ensure!(output.status.success(), "{output}");
    Ok(())
}
