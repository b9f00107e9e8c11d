//! What the runner and the agent in L1 say to each other over the virtio port.
//!
//! A frame is two little-endian `u32` (length of the head, length of the data), the head (a
//! [`Request`] or [`Report`] in postcard) and the data as raw bytes. Each request carries an id
//! that its reports repeat; many can be under way.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Name of the virtio port in L1.
pub const PORT: &str = "bed.agent";

/// Most data in one frame, in bytes.
pub const CHUNK: usize = 256 * 1024;

/// Most bytes of a head.
const HEAD_MAX: usize = 64 * 1024;

/// From the runner to the agent.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Answer [`Report::Done`], after a moment by L1's own timers.
    Ping {
        /// Id of this request.
        id: u32,
    },
    /// Create a file (and its directories), then take [`Request::PutData`].
    Put {
        /// Id of this request.
        id: u32,
        /// Absolute path in L1.
        path: String,
        /// Permission bits.
        mode: u32,
    },
    /// The frame's data goes to this place of the file.
    PutData {
        /// Id of the [`Request::Put`].
        id: u32,
        /// Byte offset in the file.
        offset: u64,
    },
    /// The file is complete; answer [`Report::Done`].
    PutEnd {
        /// Id of the [`Request::Put`].
        id: u32,
        /// Final length of the file, in bytes.
        len: u64,
    },
    /// Send the file as [`Report::FileData`], then [`Report::Done`]. Pseudo files work too.
    Get {
        /// Id of this request.
        id: u32,
        /// Absolute path in L1.
        path: String,
    },
    /// Start a program in a process group of its own; answer [`Report::Done`] with its pid, then
    /// [`Report::Output`], [`Report::End`] of both streams and [`Report::Exited`].
    Spawn {
        /// Id of this request, and of the process from now on.
        id: u32,
        /// Program and arguments.
        argv: Vec<String>,
        /// Variables added to its environment.
        env: Vec<(String, String)>,
        /// Working directory.
        dir: String,
    },
    /// The frame's data goes to the process's standard input.
    Stdin {
        /// Id of the [`Request::Spawn`].
        id: u32,
    },
    /// Close the process's standard input.
    StdinEnd {
        /// Id of the [`Request::Spawn`].
        id: u32,
    },
    /// Send a signal; no answer. A process that has ended gets none.
    Signal {
        /// Id of the [`Request::Spawn`].
        id: u32,
        /// Signal number.
        signal: i32,
        /// To its whole process group.
        group: bool,
    },
    /// Ask L1's KVM for an extension; answer [`Report::Done`] with the value.
    CheckExtension {
        /// Id of this request.
        id: u32,
        /// `KVM_CAP_…` number.
        capability: u64,
    },
}

/// An output stream of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// With this exit code.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

/// From the agent to the runner.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// The agent is up; sent once.
    Ready,
    /// A request is finished: its value, or what went wrong.
    Done {
        /// Id of the request.
        id: u32,
        /// The value (0 where there is none to speak of), or a sentence.
        result: Result<i64, String>,
    },
    /// The frame's data is the next part of a file.
    FileData {
        /// Id of the [`Request::Get`].
        id: u32,
    },
    /// The frame's data was printed by the process.
    Output {
        /// Id of the process.
        id: u32,
        /// Where to.
        stream: Stream,
    },
    /// The stream is at its end.
    End {
        /// Id of the process.
        id: u32,
        /// Which one.
        stream: Stream,
    },
    /// The process has ended.
    Exited {
        /// Id of the process.
        id: u32,
        /// How.
        status: Status,
    },
}

/// Writes one frame.
pub fn send(to: &mut impl Write, head: &impl Serialize, data: &[u8]) -> io::Result<()> {
    let head = postcard::to_stdvec(head).map_err(io::Error::other)?;
    if head.len() > HEAD_MAX || data.len() > CHUNK {
        return Err(io::Error::other("frame too large"));
    }
    let mut frame = Vec::with_capacity(8 + head.len() + data.len());
    frame.extend_from_slice(&(head.len() as u32).to_le_bytes());
    frame.extend_from_slice(&(data.len() as u32).to_le_bytes());
    frame.extend_from_slice(&head);
    frame.extend_from_slice(data);
    to.write_all(&frame)
}

/// Reads one frame.
pub fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<(T, Vec<u8>)> {
    let mut sizes = [0; 8];
    from.read_exact(&mut sizes)?;
    let [a, b, c, d, e, f, g, h] = sizes;
    let head_len = u32::from_le_bytes([a, b, c, d]) as usize;
    let data_len = u32::from_le_bytes([e, f, g, h]) as usize;
    if head_len > HEAD_MAX || data_len > CHUNK {
        return Err(io::Error::other("the stream of frames is out of step"));
    }
    let mut head = vec![0; head_len];
    from.read_exact(&mut head)?;
    let mut data = vec![0; data_len];
    from.read_exact(&mut data)?;
    Ok((postcard::from_bytes(&head).map_err(io::Error::other)?, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back() {
        let mut wire = Vec::new();
        send(
            &mut wire,
            &Request::PutData {
                id: 7,
                offset: 1 << 40,
            },
            b"abc",
        )
        .unwrap();
        send(
            &mut wire,
            &Report::Exited {
                id: 7,
                status: Status::Signal(9),
            },
            b"",
        )
        .unwrap();
        let mut wire = wire.as_slice();
        let (head, data) = receive::<Request>(&mut wire).unwrap();
        assert!(matches!(head, Request::PutData { id: 7, offset } if offset == 1 << 40));
        assert_eq!(data, b"abc");
        let (head, data) = receive::<Report>(&mut wire).unwrap();
        assert!(matches!(
            head,
            Report::Exited {
                id: 7,
                status: Status::Signal(9)
            }
        ));
        assert_eq!((data.len(), wire.len()), (0, 0));
    }

    #[test]
    fn nonsense_is_refused() {
        let nonsense = [0xff; 64];
        assert!(receive::<Report>(&mut nonsense.as_slice()).is_err());
        assert!(send(&mut Vec::new(), &Report::Ready, &vec![0; CHUNK + 1]).is_err());
    }
}
