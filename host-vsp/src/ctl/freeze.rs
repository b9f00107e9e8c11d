//! `host-vsp ctl freeze`: the guest's file systems stand still, as long as a command runs.

use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use host_vsp::api::client::{Hold, call};
use host_vsp::api::model;
use hyper::Method;

/// How often to look whether the command has ended.
const TICK: Duration = Duration::from_millis(20);

/// How to freeze.
#[derive(Debug, Args)]
pub struct Freeze {
    /// The longest that the file systems stand still
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    pub seconds: u64,

    /// Freeze, run this, and thaw as soon as it ends
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

impl Freeze {
    /// What to ask the machine for.
    pub fn body(&self, hold: bool) -> model::Freeze {
        model::Freeze {
            seconds: self.seconds,
            hold,
        }
    }

    /// Freezes, runs the command and thaws; ends like the command. Should this process die, the
    /// machine thaws.
    pub fn around(&self, socket: &Path) -> anyhow::Result<ExitCode> {
        let Some((program, arguments)) = self.command.split_first() else {
            bail!("there is no command to run");
        };
        let mut hold = Hold::begin(socket, "vm.freeze", &self.body(true))?;
        let ended = run(program, arguments, &mut hold);
        if let Ok((_, true)) = ended {
            bail!(
                "the guest's file systems did not stand still until the command ended, so what it \
                 did is not of one moment: give it more --seconds than {}",
                self.seconds
            );
        }
        // The end of the connection would thaw, too, but nobody would know when.
        let thawed = call(socket, Method::PUT, "vm.thaw", None::<&()>);
        let (status, _) = ended?;
        // Their time may have been over just now.
        if let Err(error) = thawed
            && !hold.is_over()
        {
            return Err(error).context("the command has ended, but the guest was not thawed");
        }
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
    }
}

/// Runs a command to its end; with whether `hold` has ended before.
fn run(program: &str, arguments: &[String], hold: &mut Hold) -> anyhow::Result<(ExitStatus, bool)> {
    let mut child = Command::new(program)
        .args(arguments)
        .spawn()
        .with_context(|| format!("{program:?} cannot be run"))?;
    let mut over = false;
    let status = loop {
        if let Some(status) = child.try_wait().context("the command is lost")? {
            break status;
        }
        over = over || hold.is_over();
        std::thread::sleep(TICK);
    };
    Ok((status, over || hold.is_over()))
}
