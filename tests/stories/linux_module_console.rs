//! `vmbus_console` in a stock Linux: the console as a character device.

use std::time::Duration;

use anyhow::{Context, ensure};
use bed::pattern::Pattern;
use bed::provision::kernel::Series;
use e2e::{Entry, Story};

use crate::ctl::Ctl;
use crate::held::held;
use crate::linux_module::TAINTED;
use crate::net::on_host;
use crate::stock::{Linux, Stock};

pub(crate) const STORIES: &[Entry] = &[
    Entry::new("echo_of_10_mb", echo),
    Entry::new("keeps_its_promises", promises),
    Entry::new("comes_and_goes_under_traffic", rounds),
];

const DEVICE: &str = "/dev/vmbus-console0";

const LOAD: &str = "insmod /modules/vmbus_console.ko";

/// Bytes of the echo.
const BYTES: usize = 10 << 20;

/// 10 MB there and back: 10 to 45 s.
const ECHO: Duration = Duration::from_secs(300);

/// What the probe says of itself, told in `l2-probe`'s `console.rs`.
const QUESTION: &str = "is anybody there?\n";
const ANSWER: &str = "the host is\n";
const SEED: u64 = 7;

/// A guest with the console's module at hand; its machine's API; and L1's end of the console.
fn boot<'a>(story: &'a Story) -> anyhow::Result<(Linux, Ctl<'a>, String)> {
    let ctl = Ctl::new(story);
    let mut linux = Stock::new(story, Series::Linux7)
        .our_modules()
        .args(["--console", "pty", "--api-socket", ctl.socket()])
        .boot()?;
    let pty = pty(&mut linux)?;
    Ok((linux, ctl, pty))
}

/// L1's end of the console.
pub(crate) fn pty(linux: &mut Linux) -> anyhow::Result<String> {
    let line = linux.host_says("the console is at ")?;
    let path = line.rsplit(' ').next().context("the console's path")?;
    Ok(path.trim().to_owned())
}

fn device_comes(linux: &mut Linux) -> anyhow::Result<()> {
    linux.wait(&format!("-c {DEVICE}"))
}

fn device_goes(linux: &mut Linux) -> anyhow::Result<()> {
    linux.wait(&format!("! -e {DEVICE}"))
}

/// Both ways at once, through every buffer on the way.
fn echo(story: &mut Story) -> anyhow::Result<()> {
    let (mut linux, _, pty) = boot(story)?;
    linux.sh(LOAD)?;
    device_comes(&mut linux)?;
    linux.sh(&format!("cat {DEVICE} >{DEVICE} & echo echoing"))?;
    let pattern = Pattern::new(rand::random()).take(BYTES);
    story.l1().put_bytes(&pattern, &story.file("sent"))?;
    let sums = story
        .l1()
        .shell(&format!(
            "cat sent >{pty} & head -c {BYTES} <{pty} | sha256sum; sha256sum <sent; wait"
        ))
        .dir(story.dir())
        .run(ECHO)?;
    let text = sums.stdout_text();
    let sums: Vec<&str> = text.lines().collect();
    ensure!(
        matches!(sums[..], [back, sent] if back == sent),
        "back came, and was sent: {text}"
    );
    linux.sh("killall cat; wait")?;
    linux.sh("rmmod vmbus_console")?;
    linux.expect_clean_log_but(&TAINTED)?;
    linux.power_off()?;
    Ok(())
}

/// The guest's program checks from inside; this is the other end, which keeps it waiting.
fn promises(story: &mut Story) -> anyhow::Result<()> {
    let (mut linux, ctl, pty) = boot(story)?;
    linux.sh(LOAD)?;
    device_comes(&mut linux)?;
    linux.type_line(&format!("probe console {DEVICE}"))?;
    let length = QUESTION.len();
    let asked = on_host(story, &format!("head -c {length} <{pty}"))?;
    ensure!(asked == QUESTION.trim(), "the guest asks {asked:?}");
    on_host(story, &format!("printf '{ANSWER}' >{pty}"))?;

    let full = linux.says("full after ")?;
    let filled = full.trim().split(' ').nth(2).context("how many bytes")?;
    let filled: usize = filled.parse().with_context(|| full.clone())?;
    ensure!(filled > 64 << 10, "only {filled} bytes had room");
    let mut expected = Pattern::new(SEED).take(filled.next_multiple_of(8));
    expected.truncate(filled);
    story.l1().put_bytes(&expected, &story.file("expected"))?;
    let (got, want) = (story.file("got"), story.file("expected"));
    on_host(
        story,
        &format!("head -c {filled} <{pty} >{got} && cmp {got} {want}"),
    )?;
    linux.says("room again")?;
    ctl.call(&["remove-device", "console"])?;
    let said = linux.ended()?;
    ensure!(said.contains("hung up"), "the guest says {said:?}");

    // It is gone, is not there twice, and comes back.
    device_goes(&mut linux)?;
    let again = ctl.refused(&["remove-device", "console"])?;
    ensure!(again.contains("has not got its console"), "{again}");
    ctl.call(&["add-console"])?;
    let again = ctl.refused(&["add-console"])?;
    ensure!(again.contains("has got its console"), "{again}");
    device_comes(&mut linux)?;
    linux.sh(&format!("echo back >{DEVICE}"))?;
    let back = on_host(story, &format!("head -c 5 <{pty}"))?;
    ensure!(back == "back", "the guest says {back:?}");
    linux.sh("rmmod vmbus_console")?;
    linux.expect_clean_log_but(&TAINTED)?;
    linux.power_off()?;
    Ok(())
}

/// The driver loses its device in three ways, by turns, while both ends push bytes as fast as they can.
fn rounds(story: &mut Story) -> anyhow::Result<()> {
    let count = story.count(10, 200);
    let (mut linux, ctl, pty) = boot(story)?;
    // Both end with the machine, when its terminal goes: nothing of them is left in L1.
    let flood = format!("cat /dev/zero >{pty} & cat <{pty} >/dev/null");
    let _flood = story.l1().shell(&flood).spawn()?;
    linux.sh(LOAD)?;
    device_comes(&mut linux)?;
    let mut before = None;
    for number in 0..count {
        // Programs end with an error or with the end of the stream, whatever is right for them.
        linux.sh(&format!(
            "{{ dd if={DEVICE} of=/dev/null bs=4k 2>/dev/null; }} & \
             {{ cat /dev/zero >{DEVICE} 2>/dev/null; }} & sleep 0.5; jobs | grep -c Running"
        ))?;
        match number % 3 {
            0 => {
                let driver = "/sys/bus/vmbus/drivers/vmbus_console";
                linux.sh(&format!(
                    "id=$(basename {driver}/*-*); echo $id >{driver}/unbind; wait; \
                     [ ! -e {DEVICE} ] && echo $id >{driver}/bind"
                ))?;
            }
            1 => {
                ctl.call(&["remove-device", "console"])?;
                linux.sh("wait")?;
                device_goes(&mut linux)?;
                ctl.call(&["add-console"])?;
            }
            _ => {
                linux.sh(&format!(
                    "! rmmod vmbus_console; killall cat dd; wait; rmmod vmbus_console; {LOAD}"
                ))?;
            }
        }
        device_comes(&mut linux)?;
        // All that is made once is there after the first of each kind.
        if number == 2 {
            before = Some(held(story, &ctl)?.0);
        }
    }
    let after = held(story, &ctl)?.0;
    ensure!(
        before == Some(after),
        "files, threads, GPADLs and their pages: {before:?} before, {after:?} after {count} rounds"
    );
    linux.expect_clean_log_but(&TAINTED)?;
    linux.power_off()?;
    Ok(())
}
