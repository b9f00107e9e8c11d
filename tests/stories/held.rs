//! What the host holds for a guest, to be compared with what it held before.

use anyhow::Context;
use e2e::Story;

use crate::ctl::Ctl;
use crate::net::on_host;

/// What a process holds in L1: files, threads, and KiB of memory that is not the guest's.
const HELD: &str = "pid=$(pidof host-vsp); ls /proc/$pid/fd | wc -l; ls /proc/$pid/task | wc -l; \
    awk '/^Size:/ { size = $2 } /^Rss:/ { if (size < 262144) sum += $2 } END { print sum }' \
    /proc/$pid/smaps";

/// What the host holds for the guest: files, threads, GPADLs and their pages; and its memory.
pub(crate) fn held(story: &Story, ctl: &Ctl<'_>) -> anyhow::Result<([u64; 4], u64)> {
    // First: a thread that answers is there for some seconds more.
    let counters = ctl.json(&["counters"])?;
    let counter = |name: &str| {
        let value = counters["devices"][name].as_u64();
        value.with_context(|| format!("no counter {name}: {counters}"))
    };
    let (gpadls, pages) = (counter("vmbus.gpadls")?, counter("vmbus.gpadl_pages")?);
    let text = on_host(story, HELD)?;
    let numbers: Vec<u64> = text.lines().map(str::parse).collect::<Result<_, _>>()?;
    let [files, threads, memory] = numbers[..] else {
        anyhow::bail!("not three numbers: {text:?}");
    };
    Ok(([files, threads, gpadls, pages], memory))
}
