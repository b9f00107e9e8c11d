//! `host-vsp ctl`: the API by hand.

mod freeze;
mod kvp;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use host_vsp::api::client::{CallError, call};
use host_vsp::api::model::{
    Disk, DiskConfig, DiskType, EjectMedium, InsertMedium, Net, NetConfig, RemoveDevice,
    ResizeDisk, SetLink, TypeText, VmInfo,
};
use hyper::Method;
use serde::Serialize;
use serde_json::Value;

use crate::cli::{self, Size};

/// Options of `ctl`.
#[derive(Debug, Args)]
pub struct Ctl {
    /// The socket that the machine was given as --api-socket
    #[arg(long, value_name = "PATH")]
    pub api_socket: PathBuf,

    /// Print answers as JSON
    #[arg(long)]
    pub json: bool,

    /// What to do
    #[command(subcommand)]
    pub action: Action,
}

/// What to do with a machine.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Say what the machine is and does
    Info,
    /// Print all counters
    Counters,
    /// Say what the guest's own drivers say and would listen to
    Guest,
    /// Type on the machine's keyboard
    Type {
        /// What to type, on a keyboard of the United States
        text: String,
        /// Do not press Enter after it
        #[arg(long)]
        no_enter: bool,
    },
    /// Read and write the guest's key-value pairs
    #[command(subcommand)]
    Kvp(kvp::Action),
    /// Have the guest's file systems stand still, for a copy of its disks
    Freeze(freeze::Freeze),
    /// Have the guest's file systems go on
    Thaw,
    /// Stop the machine where it is
    Pause,
    /// Let a paused machine go on
    Resume,
    /// Ask the guest to shut down; where it cannot be asked, power off
    Shutdown,
    /// End the machine without asking the guest
    PowerOff,
    /// Ask the guest to restart; where it cannot be asked, reset
    Reboot,
    /// Reset the machine without asking the guest
    Reset,
    /// Add a disk while the machine runs
    AddDisk {
        /// The image or block device, and how it is used: keys as of `run --disk`
        #[arg(value_name = cli::disk::USAGE)]
        disk: cli::Disk,
    },
    /// Add a network adapter while the machine runs
    AddNet {
        /// Where its cable leads, and what it is like
        #[arg(value_name = cli::net::FIELDS)]
        net: cli::Net,
    },
    /// Offer the guest the console again that was removed
    AddConsole,
    /// Plug the cable of a network adapter in, or pull it
    SetLink {
        /// Its name, as `info` tells it
        id: String,
        /// What it shall be
        link: Link,
    },
    /// Remove a disk, a controller with its disks, a network adapter, or the console
    RemoveDevice {
        /// Its name, as `info` tells it; `console`
        id: String,
    },
    /// Put an image into a DVD drive, in place of what is there
    InsertMedium {
        /// The drive's name, as `info` tells it
        id: String,
        /// The image or block device
        path: PathBuf,
        /// Take out what is there although the guest has locked it in
        #[arg(long)]
        force: bool,
    },
    /// Take the medium out of a DVD drive
    EjectMedium {
        /// The drive's name, as `info` tells it
        id: String,
        /// Also where the guest has locked the medium in
        #[arg(long)]
        force: bool,
    },
    /// Make a disk larger
    ResizeDisk {
        /// Its name, as `info` tells it
        id: String,
        /// Its new size, with a unit of K, M, G or T
        size: Size,
    },
}

/// A network adapter's cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Link {
    /// Plugged in
    Up,
    /// Pulled
    Down,
}

impl Ctl {
    /// Does it, and prints what there is to see.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        if let Action::Freeze(freeze) = &self.action
            && !freeze.command.is_empty()
        {
            return freeze.around(&self.api_socket);
        }
        let answer = self.call()?;
        let mut stdout = io::stdout().lock();
        // A reader that has seen enough is no error.
        let _ = match (&self.action, &answer) {
            (_, Value::Null) => Ok(()),
            _ if self.json => writeln!(stdout, "{answer}"),
            (Action::Kvp(action), _) => write!(stdout, "{}", action.describe(answer)?),
            (Action::Info, _) => write!(stdout, "{}", describe(&serde_json::from_value(answer)?)),
            (Action::AddDisk { .. }, _) => {
                let disk: Disk = serde_json::from_value(answer)?;
                writeln!(stdout, "{}", disk.id)
            }
            (Action::AddNet { .. }, _) => {
                let net: Net = serde_json::from_value(answer)?;
                writeln!(stdout, "{}", net.id)
            }
            _ => {
                let mut lines = String::new();
                flatten("", &answer, &mut lines);
                write!(stdout, "{lines}")
            }
        };
        Ok(ExitCode::SUCCESS)
    }

    fn call(&self) -> Result<Value, CallError> {
        let get = |name| call(&self.api_socket, Method::GET, name, None::<&()>);
        let put = |name| call(&self.api_socket, Method::PUT, name, None::<&()>);
        match &self.action {
            Action::Info => get("vm.info"),
            Action::Counters => get("vm.counters"),
            Action::Guest => get("vm.guest"),
            Action::Type { text, no_enter } => {
                let enter = if *no_enter { "" } else { "\n" };
                let text = format!("{text}{enter}");
                self.put_body("vm.type-text", &TypeText { text })
            }
            Action::Kvp(action) => action.call(&self.api_socket),
            Action::Freeze(freeze) => self.put_body("vm.freeze", &freeze.body(false)),
            Action::Thaw => put("vm.thaw"),
            Action::Pause => put("vm.pause"),
            Action::Resume => put("vm.resume"),
            Action::Shutdown => put("vm.shutdown"),
            Action::PowerOff => put("vm.power-off"),
            Action::Reboot => put("vm.reboot"),
            Action::Reset => put("vm.reset"),
            Action::AddDisk {
                disk: cli::Disk(disk),
            } => {
                let path = disk.path.as_deref().map(absolute);
                let config = DiskConfig {
                    path,
                    ..disk.clone()
                };
                self.put_body("vm.add-disk", &config)
            }
            Action::AddNet { net: cli::Net(net) } => {
                let socket = net.socket.as_ref();
                let socket = socket.map(|path| std::path::absolute(path).unwrap_or(path.clone()));
                let config = NetConfig {
                    socket,
                    ..net.clone()
                };
                self.put_body("vm.add-net", &config)
            }
            Action::AddConsole => put("vm.add-console"),
            Action::SetLink { id, link } => {
                let link = SetLink {
                    id: id.clone(),
                    up: *link == Link::Up,
                };
                self.put_body("vm.set-link", &link)
            }
            Action::RemoveDevice { id } => {
                self.put_body("vm.remove-device", &RemoveDevice { id: id.clone() })
            }
            Action::InsertMedium { id, path, force } => {
                let insert = InsertMedium {
                    id: id.clone(),
                    path: absolute(path),
                    force: *force,
                };
                self.put_body("vm.insert-medium", &insert)
            }
            Action::EjectMedium { id, force } => {
                let eject = EjectMedium {
                    id: id.clone(),
                    force: *force,
                };
                self.put_body("vm.eject-medium", &eject)
            }
            Action::ResizeDisk { id, size } => {
                let resize = ResizeDisk {
                    id: id.clone(),
                    desired_size: size.0,
                };
                self.put_body("vm.resize-disk", &resize)
            }
        }
    }

    fn put_body(&self, name: &str, body: &impl Serialize) -> Result<Value, CallError> {
        call(&self.api_socket, Method::PUT, name, Some(body))
    }
}

/// A path that also means the same in the machine's directory.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// What a person wants to know of a machine.
fn describe(info: &VmInfo) -> String {
    let config = &info.config;
    let mut text = format!(
        "state    {:?}\ncpus     {}\nmemory   {}\nkernel   {}\n",
        info.state,
        config.cpus.boot_vcpus,
        Size(info.memory_actual_size),
        config.payload.kernel.display(),
    );
    for disk in &config.disks {
        let name = match disk.kind {
            DiskType::Disk => "disk",
            DiskType::Dvd => "dvd",
        };
        let Some(path) = &disk.path else {
            text.push_str(&format!(
                "{name:8} {} at {} LUN {}: empty\n",
                disk.id, disk.controller, disk.lun
            ));
            continue;
        };
        text.push_str(&format!(
            "{name:8} {} at {} LUN {}: {} bytes{}, {} {}\n",
            disk.id,
            disk.controller,
            disk.lun,
            disk.size,
            if disk.readonly { ", read-only" } else { "" },
            disk.format,
            path.display(),
        ));
    }
    for net in &config.net {
        text.push_str(&format!(
            "net      {} to {}: {}, MTU {}{}\n",
            net.id,
            net.leads_to,
            net.mac,
            net.mtu,
            if net.up { "" } else { ", pulled" },
        ));
    }
    text
}

/// One line for each number: the names on the way to it, and the value.
fn flatten(prefix: &str, value: &Value, lines: &mut String) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let dot = if prefix.is_empty() { "" } else { "." };
                flatten(&format!("{prefix}{dot}{name}"), value, lines);
            }
        }
        _ => lines.push_str(&format!("{prefix:40} {value}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_a_line() {
        let mut lines = String::new();
        let value = serde_json::json!({"total": 7, "kvm": {"exits": 3}});
        flatten("", &value, &mut lines);
        let words: Vec<Vec<&str>> = lines
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(words, [["kvm.exits", "3"], ["total", "7"]]);
    }
}
