//! The other ends of the serial ports: streams of this process, or files.

use std::io;
use std::sync::Arc;

use anyhow::Context as _;
use host_vsp::files::OutputFile;
use host_vsp::output::Output;
use host_vsp::serial::Serial;

use crate::cli;

/// Where a port is to lead; a file is open already.
pub struct Com {
    to: cli::Serial,
    file: Option<OutputFile>,
}

impl Com {
    /// Opens what `option` asks for.
    pub fn open(option: &'static str, to: cli::Serial) -> anyhow::Result<Self> {
        let file = match &to {
            cli::Serial::File(path) => Some(OutputFile::open(option, path)?),
            _ => None,
        };
        Ok(Self { to, file })
    }

    /// Whether the port takes this process's stdin.
    pub fn uses_stdin(&self) -> bool {
        self.to == cli::Serial::Stdio
    }

    /// Connects `serial`; what has to be drained at the end.
    pub fn connect(self, serial: &Arc<Serial>, stderr: &Output) -> anyhow::Result<Option<Output>> {
        let uses_stdin = self.uses_stdin();
        let output = match (self.to, self.file) {
            (cli::Serial::Stderr, _) => Some(stderr.clone()),
            (cli::Serial::Stdio, _) => Some(Output::new(io::stdout())?),
            (cli::Serial::File(_), Some(file)) => Some(Output::new(file.begin()?.1)?),
            (cli::Serial::Null | cli::Serial::File(_), _) => None,
        };
        if let Some(output) = &output {
            serial.set_output(Box::new(output.clone()));
        }
        if uses_stdin {
            let serial = Arc::clone(serial);
            std::thread::Builder::new()
                .name("serial-in".into())
                .spawn(move || serial.take_all(io::stdin().lock()))
                .context("no thread for a serial port")?;
        }
        Ok(output)
    }
}
