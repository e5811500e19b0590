//! A connection to another rank: frames of a kind, a length and so many bytes. What is read is bounded before it is held; while there
//! is nothing to read, the caller looks whether anybody else is gone.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use socket2::{SockRef, TcpKeepalive};

use super::Error;

/// A message, as JSON.
const MESSAGE: u8 = 1;
/// f32 numbers, little endian.
const NUMBERS: u8 = 2;
/// Bytes.
const BYTES: u8 = 3;
/// The sender ends: [`End`] as JSON.
const END: u8 = 4;

/// The longest message: the description of an Experiment is one.
const MOST_MESSAGE: u64 = 16 << 20;
/// The longest reason for an end that is sent or read.
const MOST_END: u64 = 8 << 10;
/// Numbers that are read at a time.
const PIECE: usize = 1 << 18;
/// Bytes that are made room for at a time, so that a length alone takes no memory.
const ROOM: usize = 1 << 24;

/// How often others are looked at while one is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A machine that says nothing for so long is asked whether it is there; after [`UNANSWERED`] it is lost.
const QUIET: Duration = Duration::from_secs(10);
/// Between questions that have no answer, of which there are [`QUESTIONS`].
const BETWEEN: Duration = Duration::from_secs(5);
const QUESTIONS: u32 = 4;
/// For how long sent bytes may stay without an answer.
const UNANSWERED: Duration = Duration::from_secs(60);

/// Why a rank ends; it may be that another one did.
#[derive(Serialize, Deserialize)]
struct End {
    rank: usize,
    what: String,
}

/// A connection to a rank.
#[derive(Debug)]
pub(super) struct Peer {
    rank: usize,
    stream: TcpStream,
}

impl Peer {
    pub(super) fn new(rank: usize, stream: TcpStream) -> std::io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK_EVERY))?;
        stream.set_write_timeout(None)?;
        let alive = TcpKeepalive::new().with_time(QUIET);
        #[cfg(not(windows))]
        let alive = alive.with_retries(QUESTIONS);
        let socket = SockRef::from(&stream);
        socket.set_tcp_keepalive(&alive.with_interval(BETWEEN))?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(UNANSWERED))?;
        Ok(Self { rank, stream })
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn send_message(&self, message: &impl Serialize) -> Result<(), Error> {
        let text = serde_json::to_vec(message).map_err(|e| self.garbled(&e.to_string()))?;
        self.send(MESSAGE, &text)
    }

    pub(super) fn receive_message<T: DeserializeOwned>(
        &self,
        watch: &dyn Fn() -> Result<(), Error>,
    ) -> Result<T, Error> {
        let length = self.header(MESSAGE, MOST_MESSAGE, watch)?;
        let text = self.read(length, watch)?;
        serde_json::from_slice(&text).map_err(|e| self.garbled(&format!("a message ({e})")))
    }

    pub(super) fn send_numbers(&self, numbers: &[f32]) -> Result<(), Error> {
        self.send_header(NUMBERS, numbers.len() as u64 * 4)?;
        let mut bytes = Vec::with_capacity(4 * PIECE.min(numbers.len()));
        for piece in numbers.chunks(PIECE) {
            bytes.clear();
            bytes.extend(piece.iter().flat_map(|number| number.to_le_bytes()));
            self.write(&bytes)?;
        }
        Ok(())
    }

    /// Reads exactly `count` numbers, given to `take` piece by piece with the place of the first.
    pub(super) fn receive_numbers(
        &self,
        count: usize,
        take: &mut dyn FnMut(usize, &[f32]) -> candle_core::Result<()>,
        watch: &dyn Fn() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let expected = count as u64 * 4;
        let length = self.header(NUMBERS, expected, watch)?;
        if length != expected {
            return Err(self.garbled(&format!("{length} bytes of gradient, not {expected}")));
        }
        let mut numbers = Vec::with_capacity(PIECE.min(count));
        let mut bytes = vec![0; 4 * PIECE.min(count)];
        for start in (0..count).step_by(PIECE) {
            let bytes = &mut bytes[..4 * PIECE.min(count - start)];
            self.fill(bytes, watch)?;
            numbers.clear();
            let (each, _) = bytes.as_chunks::<4>();
            numbers.extend(each.iter().map(|number| f32::from_le_bytes(*number)));
            take(start, &numbers)?;
        }
        Ok(())
    }

    pub(super) fn send_bytes(&self, bytes: &[u8]) -> Result<(), Error> {
        self.send(BYTES, bytes)
    }

    pub(super) fn receive_bytes(&self, limit: u64) -> Result<Vec<u8>, Error> {
        let length = self.header(BYTES, limit, &|| Ok(()))?;
        self.read(length, &|| Ok(()))
    }

    /// Tells that a rank ended, without waiting for who does not read.
    pub(super) fn send_end(&self, rank: usize, what: &str) -> Result<(), Error> {
        let what: String = what.chars().take(MOST_END as usize / 16).collect();
        let text = serde_json::to_vec(&End { rank, what });
        let text = text.map_err(|e| self.garbled(&e.to_string()))?;
        let _ = self.stream.set_write_timeout(Some(LOOK_EVERY));
        self.send(END, &text)
    }

    /// That the rank is still there, without waiting.
    pub(super) fn look(&self) -> Result<(), Error> {
        let mut first = [0];
        self.stream
            .set_nonblocking(true)
            .map_err(|e| self.lost(&e))?;
        let found = self.stream.peek(&mut first);
        self.stream
            .set_nonblocking(false)
            .map_err(|e| self.lost(&e))?;
        match found {
            Ok(0) => Err(self.closed()),
            // Gives its reason as the error.
            Ok(_) if first[0] == END => self.header(MESSAGE, 0, &|| Ok(())).map(|_| ()),
            Err(e) if !is_only_quiet(&e) => Err(self.lost(&e)),
            _ => Ok(()),
        }
    }

    /// Sends what is no frame.
    #[cfg(test)]
    pub(super) fn write_raw(&self, bytes: &[u8]) {
        self.write(bytes).expect("sent");
    }

    fn send(&self, kind: u8, bytes: &[u8]) -> Result<(), Error> {
        self.send_header(kind, bytes.len() as u64)?;
        self.write(bytes)
    }

    fn send_header(&self, kind: u8, length: u64) -> Result<(), Error> {
        let mut header = [0; 9];
        header[0] = kind;
        header[1..].copy_from_slice(&length.to_le_bytes());
        self.write(&header)
    }

    fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        (&self.stream).write_all(bytes).map_err(|error| {
            // A rank that ended has said why, and closed the connection: its reason tells more than that writing failed.
            match self.last_words() {
                Some(end) => end,
                None => self.lost(&error),
            }
        })
    }

    /// What the rank said of its end, if that is the next that there is to read.
    fn last_words(&self) -> Option<Error> {
        match self.header(END, 0, &|| Err(self.closed())) {
            Err(end @ Error::Ended { .. }) => Some(end),
            _ => None,
        }
    }

    /// Reads a frame's header and gives its length, at most `most`.
    fn header(
        &self,
        kind: u8,
        most: u64,
        watch: &dyn Fn() -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let mut header = [0; 9];
        self.fill(&mut header, watch)?;
        let [found, length @ ..] = header;
        let length = u64::from_le_bytes(length);
        match found {
            END if length <= MOST_END => Err(self.ended(length)),
            _ if found != kind => Err(self.garbled(&format!(
                "a frame of kind {found} where {kind} was expected"
            ))),
            _ if length > most => Err(self.garbled(&format!(
                "a frame of {length} bytes where {most} are the most"
            ))),
            _ => Ok(length),
        }
    }

    fn ended(&self, length: u64) -> Error {
        let text = match self.read(length, &|| Err(self.closed())) {
            Ok(text) => text,
            Err(error) => return error,
        };
        match serde_json::from_slice::<End>(&text) {
            Ok(End { rank, what }) => Error::Ended { rank, what },
            Err(e) => self.garbled(&format!("an end without a reason ({e})")),
        }
    }

    fn read(&self, length: u64, watch: &dyn Fn() -> Result<(), Error>) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < length {
            let start = bytes.len();
            let more = (length - start as u64).min(ROOM as u64) as usize;
            bytes.resize(start + more, 0);
            self.fill(&mut bytes[start..], watch)?;
        }
        Ok(bytes)
    }

    /// Fills `bytes`; `watch` is asked from time to time while there is nothing to read.
    fn fill(&self, bytes: &mut [u8], watch: &dyn Fn() -> Result<(), Error>) -> Result<(), Error> {
        let mut filled = 0;
        while filled < bytes.len() {
            match (&self.stream).read(&mut bytes[filled..]) {
                Ok(0) => return Err(self.closed()),
                Ok(count) => filled += count,
                Err(e) if is_only_quiet(&e) => watch()?,
                Err(e) => return Err(self.lost(&e)),
            }
        }
        Ok(())
    }

    fn closed(&self) -> Error {
        Error::Lost {
            rank: self.rank,
            why: "its process ended without a word; its own output may say why".to_owned(),
        }
    }

    fn lost(&self, error: &std::io::Error) -> Error {
        match error.kind() {
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => {
                self.closed()
            }
            _ => Error::Lost {
                rank: self.rank,
                why: error.to_string(),
            },
        }
    }

    fn garbled(&self, what: &str) -> Error {
        Error::Garbled {
            rank: self.rank,
            what: what.to_owned(),
        }
    }
}

/// Whether there was nothing to read yet. A machine that does not answer any more is what Unix calls timed out, and Windows calls a
/// wait so.
fn is_only_quiet(error: &std::io::Error) -> bool {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::Interrupted => true,
        ErrorKind::TimedOut => cfg!(windows),
        _ => false,
    }
}
