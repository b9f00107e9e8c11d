//! The client against a server played by hand, which may do anything.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::*;

/// No test waits longer for something that should come.
const DEADLINE: Duration = Duration::from_secs(20);

/// For servers that never answer.
const SHORT: Duration = Duration::from_millis(200);

/// A request as the server sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Request {
    command: u16,
    flags: u16,
    cookie: u64,
    offset: u64,
    length: u32,
    data: Vec<u8>,
}

/// The server's end of a connection.
struct Server(UnixStream);

impl Server {
    fn say(&mut self, words: &[&[u8]]) {
        self.0.write_all(&words.concat()).unwrap();
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Reads what a client begins with; the export that it asks for.
    fn hear_hello(&mut self) -> String {
        self.say(&[b"NBDMAGIC", b"IHAVEOPT", &3u16.to_be_bytes()]);
        assert_eq!(self.take(), 1u32.to_be_bytes());
        assert_eq!(&self.take::<8>(), b"IHAVEOPT");
        assert_eq!(u32::from_be_bytes(self.take()), OPTION_GO);
        let length = u32::from_be_bytes(self.take());
        let mut data = vec![0; length as usize];
        self.0.read_exact(&mut data).unwrap();
        String::from_utf8(data[4..data.len() - 2].to_vec()).unwrap()
    }

    fn reply_option(&mut self, kind: u32, data: &[u8]) {
        self.say(&[
            &OPTION_REPLY_MAGIC.to_be_bytes(),
            &OPTION_GO.to_be_bytes(),
            &kind.to_be_bytes(),
            &(data.len() as u32).to_be_bytes(),
            data,
        ]);
    }

    /// Serves a disk of `size` bytes from here on.
    fn begin(&mut self, size: u64, flags: u16) {
        assert_eq!(self.hear_hello(), "disk");
        let info = [
            &0u16.to_be_bytes()[..],
            &size.to_be_bytes(),
            &flags.to_be_bytes(),
        ];
        // Something else that it may say, which the client did not ask for.
        self.reply_option(REPLY_INFO, &[0, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]);
        self.reply_option(REPLY_INFO, &info.concat());
        self.reply_option(REPLY_ACK, &[]);
    }

    /// The next request; `None` where the client is gone.
    fn request(&mut self) -> Option<Request> {
        let mut magic = [0; 4];
        self.0.read_exact(&mut magic).ok()?;
        assert_eq!(u32::from_be_bytes(magic), REQUEST_MAGIC);
        let mut request = Request {
            flags: u16::from_be_bytes(self.take()),
            command: u16::from_be_bytes(self.take()),
            cookie: u64::from_be_bytes(self.take()),
            offset: u64::from_be_bytes(self.take()),
            length: u32::from_be_bytes(self.take()),
            data: Vec::new(),
        };
        if request.command == Command::Write as u16 {
            request.data = vec![0; request.length as usize];
            self.0.read_exact(&mut request.data).unwrap();
        }
        Some(request)
    }

    fn reply(&mut self, cookie: u64, error: u32, data: &[u8]) {
        self.say(&[
            &REPLY_MAGIC.to_be_bytes(),
            &error.to_be_bytes(),
            &cookie.to_be_bytes(),
            data,
        ]);
    }
}

const ALL: u16 = HAS_FLAGS | SEND_FLUSH | SEND_FUA;

/// A client of a server that does `serve` after it has begun.
fn connect(
    flags: u16,
    patience: Duration,
    serve: impl FnOnce(&mut Server) + Send + 'static,
) -> (Client, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || {
        let mut server = Server(theirs);
        server.begin(1 << 20, flags);
        serve(&mut server);
    });
    (Client::new(ours, "disk", patience).unwrap(), server)
}

/// What a client says to a server that negotiates like this.
fn refusal(negotiate: impl FnOnce(&mut Server) + Send + 'static) -> io::Error {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || negotiate(&mut Server(theirs)));
    let error = Client::new(ours, "disk", SHORT).unwrap_err();
    server.join().unwrap();
    error
}

#[test]
fn reads_writes_and_flushes_as_the_protocol_says() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&seen);
    let (client, server) = connect(ALL, DEADLINE, move |server| {
        while let Some(request) = server.request() {
            let data = if request.command == 0 {
                vec![9; 512]
            } else {
                Vec::new()
            };
            if request.command != Command::Disconnect as u16 {
                server.reply(request.cookie, 0, &data);
            }
            kept.lock().unwrap().push(request);
        }
    });
    assert_eq!((client.size(), client.read_only()), (1 << 20, false));
    assert_eq!(client.read(1024, 512).unwrap(), [9; 512]);
    client.write(512, &[7; 1024], false).unwrap();
    client.write(0, &[8; 512], true).unwrap();
    client.flush().unwrap();
    drop(client);
    server.join().unwrap();
    let seen = seen.lock().unwrap();
    let told: Vec<_> = seen
        .iter()
        .map(|request| {
            (
                request.command,
                request.flags,
                request.offset,
                request.length,
            )
        })
        .collect();
    let expected = [
        (0, 0, 1024, 512),
        (1, 0, 512, 1024),
        (1, 1, 0, 512),
        (3, 0, 0, 0),
        (2, 0, 0, 0),
    ];
    assert_eq!(told, expected);
    assert_eq!(seen[1].data, [7; 1024]);
}

#[test]
fn without_fua_a_durable_write_is_flushed() {
    let (client, server) = connect(HAS_FLAGS | SEND_FLUSH, DEADLINE, |server| {
        let write = server.request().unwrap();
        assert_eq!((write.command, write.flags), (1, 0));
        server.reply(write.cookie, 0, &[]);
        let flush = server.request().unwrap();
        assert_eq!((flush.command, flush.flags), (3, 0));
        // Not durable, so not written.
        server.reply(flush.cookie, 28, &[]);
    });
    let error = client.write(0, &[1; 512], true).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    server.join().unwrap();
}

#[test]
fn requests_in_flight_are_answered_in_any_order() {
    const REQUESTS: u64 = 8;
    let (client, server) = connect(ALL, DEADLINE, |server| {
        let mut requests: Vec<_> = (0..REQUESTS).map(|_| server.request().unwrap()).collect();
        requests.sort_by_key(|request| std::cmp::Reverse(request.offset));
        for request in requests {
            let data = vec![(request.offset / 512) as u8; request.length as usize];
            // One of them fails, and only that one.
            if request.offset == 3 * 512 {
                server.reply(request.cookie, 5, &[]);
            } else {
                server.reply(request.cookie, 0, &data);
            }
        }
    });
    thread::scope(|scope| {
        let read = |number: u64| client.read(number * 512, 512 * (1 + number as usize));
        let threads: Vec<_> = (0..REQUESTS)
            .map(|number| scope.spawn(move || read(number)))
            .collect();
        for (number, thread) in threads.into_iter().enumerate() {
            match thread.join().unwrap() {
                Ok(data) => assert_eq!(data, vec![number as u8; 512 * (1 + number)]),
                Err(error) => assert_eq!((number, error.raw_os_error()), (3, Some(libc::EIO))),
            }
        }
    });
    server.join().unwrap();
}

/// After what the server does to the first request, everything ends soon with an error.
#[track_caller]
fn assert_given_up(patience: Duration, serve: impl FnOnce(&mut Server, Request) + Send + 'static) {
    let (client, server) = connect(ALL, patience, move |server| {
        let request = server.request().unwrap();
        serve(server, request);
    });
    let begin = Instant::now();
    thread::scope(|scope| {
        let others = [0, 1].map(|_| scope.spawn(|| client.read(512, 512)));
        client.read(0, 4096).unwrap_err();
        for other in others {
            other.join().unwrap().unwrap_err();
        }
    });
    let error = client.flush().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotConnected);
    assert!(begin.elapsed() < DEADLINE);
    drop(client);
    server.join().unwrap();
}

#[test]
fn a_server_that_dies() {
    assert_given_up(DEADLINE, |_, _| {});
}

#[test]
fn a_server_that_dies_in_the_middle_of_data() {
    assert_given_up(DEADLINE, |server, request| {
        server.reply(request.cookie, 0, &[1; 100]);
    });
}

#[test]
fn a_server_that_says_nothing() {
    assert_given_up(SHORT, |server, _| {
        // Until the client has had enough.
        while server.request().is_some() {}
    });
}

#[test]
fn a_server_that_takes_nothing() {
    let (client, server) = connect(ALL, SHORT, |server| {
        // Somewhere in the middle of the first write, until the client has had enough.
        server.take::<28>();
        thread::sleep(3 * SHORT);
    });
    let begin = Instant::now();
    client.write(0, &vec![0; 16 << 20], false).unwrap_err();
    client.read(0, 512).unwrap_err();
    assert!(begin.elapsed() < DEADLINE);
    server.join().unwrap();
}

#[test]
fn a_server_that_answers_what_nobody_asked() {
    assert_given_up(DEADLINE, |server, request| {
        server.reply(request.cookie.wrapping_add(1000), 0, &[]);
        while server.request().is_some() {}
    });
}

#[test]
fn a_server_that_answers_nonsense() {
    assert_given_up(DEADLINE, |server, _| {
        server.say(&[&[0xff; 64]]);
        while server.request().is_some() {}
    });
}

#[test]
fn a_server_that_answers_twice() {
    let (client, server) = connect(ALL, DEADLINE, |server| {
        let request = server.request().unwrap();
        server.reply(request.cookie, 0, &[1; 512]);
        server.reply(request.cookie, 0, &[2; 512]);
        while server.request().is_some() {}
    });
    assert_eq!(client.read(0, 512).unwrap(), [1; 512]);
    server.join().unwrap();
    client.flush().unwrap_err();
}

#[test]
fn negotiations_that_fail() {
    let text = refusal(|server| {
        server.hear_hello();
        server.reply_option(REPLY_ERROR | 6, b"no such\nexport");
    })
    .to_string();
    assert!(text.contains("no such\\nexport"), "{text}");
    let text = refusal(|server| server.begin(1 << 20, HAS_FLAGS)).to_string();
    assert!(text.contains("cannot flush"), "{text}");
    for error in [
        refusal(|server| server.say(&[b"NBDMAGIC", &[0; 10]])),
        refusal(|server| server.say(&[b"SSH-2.0-OpenSSH_9.2", &[0; 16]])),
        refusal(|server| {
            server.hear_hello();
            server.reply_option(REPLY_ACK, &[]);
        }),
        refusal(|server| {
            server.hear_hello();
            server.say(&[
                &OPTION_REPLY_MAGIC.to_be_bytes(),
                &OPTION_GO.to_be_bytes(),
                &REPLY_INFO.to_be_bytes(),
                &u32::MAX.to_be_bytes(),
            ]);
        }),
        refusal(|server| {
            server.hear_hello();
            for _ in 0..MAX_REPLIES {
                server.reply_option(REPLY_INFO, &[0, 0]);
            }
        }),
    ] {
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }
    // Says nothing at all.
    let error = refusal(|server| {
        let mut rest = Vec::new();
        let _ = server.0.read_to_end(&mut rest);
    });
    assert!(
        matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        ),
        "{error}"
    );
}
