//! What I/O costs: exits per request in a steady window, and all exits of the run by reason.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use serde::Deserialize;

/// A line of counters as `host-vsp` prints it, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Counters {
    /// Returns from `KVM_RUN`.
    returns_total: u64,
    returns: BTreeMap<String, u64>,
    /// KVM's own counters; `exits` are all exits of the guest, those that the kernel handles too.
    kvm: BTreeMap<String, u64>,
}

/// How `host-vsp` begins the line of a window's counters.
pub(super) const WINDOW: &str = "{\"counters\":\"window\"";

/// Tells the cost of `requests` from the line of their window; the first number must be 0.00.
pub(super) fn tell_window(line: &str, requests: u64) -> anyhow::Result<()> {
    let counters: Counters =
        serde_json::from_str(line).with_context(|| format!("counters of the window: {line}"))?;
    ensure!(requests > 0, "the guest made no requests in its window");
    let per_request = |exits: u64| exits as f64 / requests as f64;
    let all = counters.kvm.get("exits").copied();
    let all = all.context("this kernel's KVM does not count exits")?;
    println!(
        "           {:.2} userspace exits per I/O ({}), {:.2} exits of any kind per I/O ({all})",
        per_request(counters.returns_total),
        counters.returns_total,
        per_request(all),
    );
    ensure!(
        format!("{:.2}", per_request(counters.returns_total)) == "0.00",
        "steady I/O returned to userspace: {}",
        by_reason(&counters.returns)
    );
    Ok(())
}

/// Tells the exits of the whole run from the table that `host-vsp` prints at its end.
pub(super) fn tell_run(table: &str) -> anyhow::Result<()> {
    let mut returns = table
        .lines()
        .skip_while(|line| !line.starts_with("returns from KVM_RUN"));
    let total = returns
        .next()
        .and_then(|line| line.split_whitespace().last());
    let total = total.context("host-vsp printed no counters at its end")?;
    let reasons: BTreeMap<String, u64> = returns
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.trim().split_once(' '))
        .filter_map(|(reason, count)| Some((reason.to_owned(), count.trim().parse().ok()?)))
        .collect();
    println!(
        "exits:     {total} returns to userspace in the whole run: {}",
        by_reason(&reasons)
    );
    Ok(())
}

fn by_reason(reasons: &BTreeMap<String, u64>) -> String {
    let mut reasons: Vec<_> = reasons.iter().filter(|(_, count)| **count > 0).collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let reasons: Vec<_> = reasons
        .iter()
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    if reasons.is_empty() {
        "none".into()
    } else {
        reasons.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_with_exits_is_refused() {
        let line = |returns: u64| {
            format!(
                "{WINDOW},\"seconds\":1.5,\"returns_total\":{returns},\
                 \"returns\":{{\"mmio\":{returns}}},\"devices\":{{}},\"kvm\":{{\"exits\":9000}}}}"
            )
        };
        tell_window(&line(3), 10_000).unwrap();
        let error = tell_window(&line(300), 10_000).unwrap_err().to_string();
        assert!(error.contains("mmio 300"), "{error}");
    }

    #[test]
    fn the_table_is_read() {
        tell_run("log\nreturns from KVM_RUN    12\n  mmio    2\n  port_out   10\ndevices\n")
            .unwrap();
        assert!(tell_run("nothing").is_err());
    }
}
