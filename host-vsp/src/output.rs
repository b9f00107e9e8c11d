//! Output that never makes its writer wait: the guest's log and this program's own.
//!
//! A processor that writes to COM1 must not stand still because nobody reads the pipe behind it,
//! and neither must a machine that is told to end. So bytes go to a bounded queue, which a thread
//! empties; what does not fit is lost, and the output says so in its place.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most bytes waiting to be written.
const LIMIT: usize = 1 << 20;

/// How long bytes wait for more of them. A guest's log comes byte by byte, and a reader that is
/// woken for each costs more than the guest.
const GATHER: Duration = Duration::from_millis(2);

/// So many bytes are worth a write at once.
const PIECE: usize = 4096;

/// How long [`Output::drain`] waits for a reader that takes nothing.
const LINGER: Duration = Duration::from_secs(1);

/// A stream of bytes to a reader who may be slow, stuck or gone. Clones write to the same stream;
/// what one call writes stays together.
#[derive(Clone)]
pub struct Output {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    bytes: VecDeque<u8>,
    /// Bytes that found no room after those in the queue.
    lost: u64,
    /// The thread holds bytes that are not written yet.
    writing: bool,
    /// Writes that returned.
    written: u64,
    /// Nobody reads any more.
    broken: bool,
    /// Somebody waits until all is written.
    draining: bool,
}

impl Queue {
    fn is_idle(&self) -> bool {
        self.broken || (self.bytes.is_empty() && !self.writing)
    }

    /// What to write next.
    fn take(&mut self) -> Vec<u8> {
        let mut taken: Vec<u8> = self.bytes.drain(..).collect();
        if self.lost != 0 {
            let lost = std::mem::take(&mut self.lost);
            let note = format!("\n[{lost} bytes were lost here: nobody read in time]\n");
            taken.extend_from_slice(note.as_bytes());
        }
        taken
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Output {
    /// Output that a thread writes to `to`.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn new(to: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
        });
        let writer = Arc::clone(&shared);
        // It ends with the process, or when nobody reads any more: a write that waits for its
        // reader cannot be called back.
        std::thread::Builder::new()
            .name("output".into())
            .spawn(move || write(&writer, to))?;
        Ok(Self { shared })
    }

    /// Waits until all is written, as long as the reader takes something each second.
    pub fn drain(&self) {
        let mut queue = self.shared.lock();
        queue.draining = true;
        self.shared.changed.notify_all();
        while !queue.is_idle() {
            let before = queue.written;
            let (after, waited) = self
                .shared
                .changed
                .wait_timeout_while(queue, LINGER, |queue| {
                    !queue.is_idle() && queue.written == before
                })
                .unwrap_or_else(PoisonError::into_inner);
            queue = after;
            if waited.timed_out() {
                break;
            }
        }
        queue.draining = false;
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut queue = self.shared.lock();
        if queue.broken {
            return Ok(());
        }
        if queue.lost == 0 && bytes.len() <= LIMIT - queue.bytes.len() {
            let before = queue.bytes.len();
            queue.bytes.extend(bytes);
            // The thread waits for the first, or for enough.
            if before == 0 || (before < PIECE && queue.bytes.len() >= PIECE) {
                self.shared.changed.notify_all();
            }
        } else {
            queue.lost += bytes.len() as u64;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write(shared: &Shared, mut to: impl Write) {
    loop {
        let queue = shared
            .changed
            .wait_while(shared.lock(), |queue| queue.bytes.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        let (mut queue, _) = shared
            .changed
            .wait_timeout_while(queue, GATHER, |queue| {
                queue.bytes.len() < PIECE && !queue.draining
            })
            .unwrap_or_else(PoisonError::into_inner);
        let bytes = queue.take();
        queue.writing = true;
        drop(queue);
        // In pieces, so that a slow reader is seen to take some.
        let outcome = bytes.chunks(PIECE).try_for_each(|piece| {
            to.write_all(piece)?;
            to.flush()?;
            shared.lock().written += 1;
            shared.changed.notify_all();
            Ok::<_, io::Error>(())
        });
        let mut queue = shared.lock();
        queue.writing = false;
        // The reader is gone, and there is nobody to tell it to.
        queue.broken = outcome.is_err();
        shared.changed.notify_all();
        if queue.broken {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Instant;

    use super::*;

    /// A reader that takes a piece when it is told to, and is gone when nobody can tell it.
    struct Reader {
        allowed: Receiver<()>,
        taken: Sender<Vec<u8>>,
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.allowed
                .recv()
                .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            self.taken.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn reader() -> (Output, Sender<()>, Receiver<Vec<u8>>) {
        let (allow, allowed) = channel();
        let (taken, got) = channel();
        let output = Output::new(Reader { allowed, taken }).unwrap();
        (output, allow, got)
    }

    #[test]
    fn what_is_written_comes_out_in_order() {
        let (mut output, allow, got) = reader();
        for _ in 0..3 {
            allow.send(()).unwrap();
        }
        output.write_all(b"one ").unwrap();
        output.clone().write_all(b"two ").unwrap();
        output.write_all(b"three").unwrap();
        output.drain();
        let all: Vec<u8> = got.try_iter().flatten().collect();
        assert_eq!(all, b"one two three");
    }

    #[test]
    fn single_bytes_are_gathered() {
        const LENGTH: usize = 3 * PIECE;
        let (mut output, allow, got) = reader();
        for _ in 0..LENGTH {
            allow.send(()).unwrap();
        }
        for _ in 0..LENGTH {
            output.write_all(b"x").unwrap();
        }
        output.drain();
        let pieces: Vec<Vec<u8>> = got.try_iter().collect();
        assert_eq!(pieces.concat().len(), LENGTH);
        assert!(pieces.len() < LENGTH / 8, "{} writes", pieces.len());
    }

    #[test]
    fn a_reader_that_takes_nothing_costs_bytes_and_not_time() {
        let (mut output, allow, got) = reader();
        let begun = Instant::now();
        let piece = [b'x'; 1 << 10];
        for _ in 0..(LIMIT >> 10) + 5000 {
            output.write_all(&piece).unwrap();
        }
        output.drain();
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "the writer waited"
        );
        assert!(
            output.shared.lock().bytes.len() <= LIMIT,
            "the queue grew on"
        );
        // It comes back: what was kept, and a word about what was not.
        for _ in 0..2000 {
            allow.send(()).unwrap();
        }
        output.drain();
        let all: Vec<u8> = got.try_iter().flatten().collect();
        assert!(String::from_utf8_lossy(&all).contains("bytes were lost here"));
    }

    #[test]
    fn a_reader_that_is_gone_is_no_error() {
        let (mut output, allow, got) = reader();
        drop((allow, got));
        for _ in 0..10 {
            output.write_all(b"hello").unwrap();
            output.drain();
        }
        assert!(output.shared.lock().broken);
    }
}
