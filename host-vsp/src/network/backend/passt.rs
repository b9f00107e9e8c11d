//! passt: a net for everybody, without root and without anything to set up.
//!
//! passt translates what the guest sends into sockets of its own, so that the guest seems to be the
//! host. It runs beside us, started here, and ends when its socket closes. By the gateway's address
//! the guest reaches what listens on the host's loopback, which is how it finds a resolver there.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::str::FromStr;

use rustix::io::{FdFlags, fcntl_setfd};
use vm_memory::VolatileSlice;

use super::{Backend, Features, Frame, Received, Stream};

/// A protocol whose ports can be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host's that is a port of the guest's: `tcp:8080:80`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Of which protocol.
    pub transport: Transport,
    /// On the host.
    pub host: u16,
    /// In the guest.
    pub guest: u16,
}

impl Forward {
    /// Whether the host's port is free, now.
    fn check(&self) -> io::Result<()> {
        let address = (Ipv4Addr::UNSPECIFIED, self.host);
        match self.transport {
            Transport::Tcp => TcpListener::bind(address).map(drop),
            Transport::Udp => UdpSocket::bind(address).map(drop),
        }
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        write!(f, "{transport}:{}:{}", self.host, self.guest)
    }
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} forwards no port: write tcp:8080:80, host's port first");
        let mut parts = text.split(':');
        let (Some(transport), Some(host), guest, None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let transport = match transport {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            _ => return Err(wrong()),
        };
        let port = |digits: &str| match digits.parse() {
            Ok(0) | Err(_) => Err(wrong()),
            Ok(port) => Ok(port),
        };
        let host = port(host)?;
        Ok(Self {
            transport,
            host,
            guest: guest.map_or(Ok(host), port)?,
        })
    }
}

/// Why there is no such net.
#[derive(Debug, thiserror::Error)]
pub enum PasstError {
    /// It is not installed.
    #[error("passt is not installed: install the package passt, or use --net tap=NAME")]
    Missing,
    /// A port of the host's is not to be had. passt itself would go on without it.
    #[error("{forward} cannot be forwarded: {error}; choose another port of the host's")]
    Port {
        /// Which.
        forward: Forward,
        /// Why not.
        error: io::Error,
    },
    /// It does not start.
    #[error("passt does not start: {0}")]
    Refused(String),
    /// The system has no socket or process for it.
    #[error("passt cannot be started: {0}")]
    System(#[from] io::Error),
}

/// passt, and the socket to it.
pub struct Passt {
    stream: Stream,
}

impl Passt {
    /// Starts it, for a guest with this MTU.
    ///
    /// # Errors
    /// Why not; the text is a sentence for the user.
    pub fn start(mtu: u32, forwards: &[Forward]) -> Result<Self, PasstError> {
        for forward in forwards {
            forward.check().map_err(|error| PasstError::Port {
                forward: *forward,
                error,
            })?;
        }
        let (ours, theirs) = UnixStream::pair()?;
        let theirs = OwnedFd::from(theirs);
        // It is to have this one, and nobody who is started later.
        fcntl_setfd(&theirs, FdFlags::empty()).map_err(io::Error::from)?;
        let mut command = Command::new("passt");
        command
            .arg("--fd")
            .arg(theirs.as_raw_fd().to_string())
            .arg("--mtu")
            .arg(mtu.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        for (option, transport) in [("-t", Transport::Tcp), ("-u", Transport::Udp)] {
            let ports = forwards
                .iter()
                .filter(|forward| forward.transport == transport)
                .map(|forward| format!("{}:{}", forward.host, forward.guest));
            let ports: Vec<String> = ports.collect();
            if !ports.is_empty() {
                command.arg(option).arg(ports.join(","));
            }
        }
        // It goes into the background when it is ready, and says why it does not.
        let outcome = command.output();
        drop(theirs);
        let outcome = outcome.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => PasstError::Missing,
            _ => PasstError::System(error),
        })?;
        if !outcome.status.success() {
            let said = String::from_utf8_lossy(&outcome.stderr);
            let last = said.lines().map(str::trim).rfind(|line| !line.is_empty());
            let reason = last.map_or_else(|| outcome.status.to_string(), str::to_owned);
            return Err(PasstError::Refused(reason));
        }
        Ok(Self {
            stream: Stream::new(ours)?,
        })
    }
}

impl Backend for Passt {
    fn features(&self) -> Features {
        self.stream.features()
    }

    fn event(&self) -> Option<RawFd> {
        self.stream.event()
    }

    fn wants_room(&mut self) -> bool {
        self.stream.wants_room()
    }

    fn send(&mut self, frame: &Frame<'_>) -> io::Result<()> {
        self.stream.send(frame)
    }

    fn receive(&mut self, to: &[VolatileSlice<'_>]) -> io::Result<Option<Received>> {
        self.stream.receive(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_in_use() {
        let taken = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let forward = Forward {
            transport: Transport::Tcp,
            host: taken.local_addr().unwrap().port(),
            guest: 80,
        };
        let error = Passt::start(1500, &[forward]).err().unwrap();
        assert!(matches!(error, PasstError::Port { .. }), "{error}");
    }

    #[test]
    fn forwards() {
        let forward = |text: &str| text.parse::<Forward>();
        let web = Forward {
            transport: Transport::Tcp,
            host: 8080,
            guest: 80,
        };
        assert_eq!(forward("tcp:8080:80"), Ok(web));
        assert_eq!(web.to_string(), "tcp:8080:80");
        assert_eq!(forward("udp:53").unwrap().guest, 53);
        for wrong in [
            "",
            "tcp",
            "tcp:",
            "tcp:0",
            "sctp:1",
            "tcp:1:2:3",
            "tcp:70000:1",
            "80",
        ] {
            assert!(forward(wrong).is_err(), "{wrong}");
        }
    }
}
