//! How ranks find each other: rank 0 listens, the others call until it answers. Each shows that it has the same secret, and is told
//! whether it is welcome. Who sends anything else is dropped; each caller is listened to by a thread of its own and not for long, so that a
//! stranger holds nobody up.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use super::frames::Peer;
use super::{Error, MOST_RANKS, Place, Ranks};
use crate::monitor::Monitor;
use crate::shown;

/// How a call begins; the digit is the version of what follows.
const HELLO: &[u8; 8] = b"plumbrk1";
/// How a welcome begins, and how a refusal.
const WELCOME: &[u8; 8] = b"plumbyes";
const REFUSAL: &[u8; 8] = b"plumbno!";
/// [`HELLO`], rank and world as u32, and the proof.
const HELLO_BYTES: usize = 8 + 4 + 4 + 32;
/// The most bytes of a refusal's reason.
const MOST_REASON: usize = 512;

/// Callers that are listened to at once; more are dropped.
const MOST_CALLERS: usize = 128;
/// How long a read of a call or of its answer may take, and how many reads there may be.
const PATIENCE: Duration = Duration::from_millis(500);
const MOST_READS: usize = 20;
/// How long is slept where there is nothing to do.
const TICK: Duration = Duration::from_millis(20);
/// How often rank 0 is called.
const CALL_EVERY: Duration = Duration::from_millis(200);
/// How long one call may take.
const CALL_FOR: Duration = Duration::from_secs(5);
/// How often something else than rank 0 may answer.
const MOST_ODD: u32 = 5;
/// When rank 0 says for whom it waits.
const TOLD_AFTER: Duration = Duration::from_secs(5);

/// Where rank 0 is.
#[derive(Clone, Debug)]
pub struct Address {
    /// A name or a number.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", shown::text(&self.host), self.port)
    }
}

/// What ranks show each other that they have, without sending it.
#[derive(Clone)]
pub struct Token([u8; 32]);

impl Token {
    /// Of a secret of any length; the empty one is everybody's.
    pub fn of(secret: &str) -> Self {
        Self(blake3::derive_key(
            "plumb 2026 ranks of a training",
            secret.as_bytes(),
        ))
    }

    fn proof(&self, words: &[u8; 8], place: Place) -> [u8; 32] {
        let mut said = words.to_vec();
        said.extend(number(place.rank));
        said.extend(number(place.world));
        *blake3::keyed_hash(&self.0, &said).as_bytes()
    }
}

fn number(of: usize) -> [u8; 4] {
    // At most MOST_RANKS.
    (of as u32).to_le_bytes()
}

/// Rank 0's port.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    port: u16,
}

/// A caller who has the secret, and what it says it is.
struct Caller {
    place: Place,
    stream: TcpStream,
}

impl Listener {
    /// Listens on this machine alone where the host is a loopback's, else on all of its networks: a machine's own name is often one
    /// that others know by another address. Port 0 takes any that is free.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn open(at: &Address) -> Result<Self, Error> {
        let is_local = (at.host.parse()).map_or(at.host == "localhost", |ip: std::net::IpAddr| {
            ip.is_loopback()
        });
        let socket = match is_local {
            true => TcpListener::bind((at.host.as_str(), at.port)),
            // Both kinds of addresses where there are both.
            false => TcpListener::bind(("::", at.port))
                .or_else(|_| TcpListener::bind(("0.0.0.0", at.port))),
        };
        let opened = socket.and_then(|socket| {
            socket.set_nonblocking(true)?;
            let port = socket.local_addr()?.port();
            Ok(Self { socket, port })
        });
        opened.map_err(|source| Error::Listen {
            address: at.to_string(),
            source,
        })
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Waits until all the other ranks have come, for at most `wait`. `alive` is asked from time to time, and ends the wait.
    ///
    /// # Errors
    /// If some do not come, one that came is gone, or `alive` says so.
    pub fn wait(
        self,
        world: usize,
        token: &Token,
        wait: Duration,
        alive: &mut dyn FnMut() -> Result<(), Error>,
        monitor: &dyn Monitor,
    ) -> Result<Ranks, Error> {
        let mut peers: Vec<Peer> = Vec::new();
        let (sender, callers) = channel();
        let busy = Arc::new(AtomicUsize::new(0));
        let mut waited = Duration::ZERO;
        while peers.len() + 1 < world {
            self.listen(&sender, &busy, token);
            take_in(&callers, &mut peers, world, token);
            alive()?;
            peers.iter().try_for_each(Peer::look)?;
            thread::sleep(TICK);
            waited += TICK;
            if waited == TOLD_AFTER {
                monitor.note(&format!("waiting for {}", missing(&peers, world)));
            }
            if waited >= wait && peers.len() + 1 < world {
                return Err(Error::Absent {
                    missing: missing(&peers, world),
                    world,
                    seconds: wait.as_secs(),
                });
            }
        }
        peers.sort_by_key(Peer::rank);
        let place = Place { rank: 0, world };
        let ranks = Ranks::new(place, peers);
        // Until now nobody knew whether all would come.
        ranks.tell(Some(world))?;
        Ok(ranks)
    }

    /// Gives each new caller a thread, up to a number.
    fn listen(&self, sender: &Sender<Caller>, busy: &Arc<AtomicUsize>, token: &Token) {
        while let Ok((stream, _)) = self.socket.accept() {
            if busy.load(Ordering::Relaxed) >= MOST_CALLERS {
                continue;
            }
            busy.fetch_add(1, Ordering::Relaxed);
            let (sender, busy, token) = (sender.clone(), Arc::clone(busy), token.clone());
            thread::spawn(move || {
                if let Some(place) = hear(&stream, &token) {
                    // Fails where all have come.
                    let _ = sender.send(Caller { place, stream });
                }
                busy.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }
}

/// What a caller says it is, if it has the secret.
fn hear(stream: &TcpStream, token: &Token) -> Option<Place> {
    let mut hello = [0; HELLO_BYTES];
    // Of a listener that does not wait, some systems make such connections.
    stream.set_nonblocking(false).ok()?;
    read_all(stream, &mut hello).ok()?;
    let words = hello.first_chunk::<8>().filter(|words| *words == HELLO)?;
    let at = |from: usize| {
        hello[from..]
            .first_chunk()
            .map(|n| u32::from_le_bytes(*n) as usize)
    };
    let place = Place {
        rank: at(8)?,
        world: at(12)?,
    };
    let proof = blake3::Hash::from_bytes(*hello[16..].first_chunk()?);
    let bounded = place.rank < place.world && place.world <= MOST_RANKS;
    // Compared in a time that does not depend on where they differ.
    (bounded && proof == token.proof(words, place)).then_some(place)
}

/// Welcomes the callers that are the missing ranks, and turns others away.
fn take_in(callers: &Receiver<Caller>, peers: &mut Vec<Peer>, world: usize, token: &Token) {
    while let Ok(Caller { place, mut stream }) = callers.try_recv() {
        let Place { rank, world: its } = place;
        let refused = if its != world {
            Some(format!(
                "it says that there are {its} ranks, rank 0 says {world}"
            ))
        } else if rank == 0 {
            Some("it says that it is rank 0 too".to_owned())
        } else if peers.iter().any(|peer| peer.rank() == rank) {
            Some(format!("there is a rank {rank} already"))
        } else {
            None
        };
        let answer = match &refused {
            None => [&WELCOME[..], &token.proof(WELCOME, place)].concat(),
            Some(why) => [&REFUSAL[..], why.as_bytes()].concat(),
        };
        let _ = stream.set_write_timeout(Some(PATIENCE));
        let taken = stream
            .write_all(&answer)
            .and_then(|()| Peer::new(rank, stream));
        if refused.is_none() {
            // One that went away again has called again, or will.
            peers.extend(taken.ok().filter(|peer| peer.look().is_ok()));
        }
    }
}

/// The ranks that have not come, in words.
fn missing(peers: &[Peer], world: usize) -> String {
    const NAMED: usize = 8;
    let absent = (1..world).filter(|rank| peers.iter().all(|peer| peer.rank() != *rank));
    let absent: Vec<String> = absent.map(|rank| rank.to_string()).collect();
    let named = absent
        .iter()
        .take(NAMED)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    match absent.len() {
        1 => format!("rank {named}"),
        count if count > NAMED => format!("ranks {named} and {} more", count - NAMED),
        _ => format!("ranks {named}"),
    }
}

/// Calls rank 0 until it answers, for at most `wait`, and waits for the others.
///
/// # Errors
/// If it is not reached, turns this rank away, or is gone before all have come.
pub fn join(at: &Address, place: Place, token: &Token, wait: Duration) -> Result<Ranks, Error> {
    let (mut waited, mut odd) = (Duration::ZERO, 0);
    loop {
        let why = match call(at, place, token) {
            Ok(stream) => {
                let peer = Peer::new(0, stream).map_err(|e| not_reached(at, e.to_string()))?;
                let ranks = Ranks::new(place, vec![peer]);
                ranks.tell::<usize>(None)?;
                return Ok(ranks);
            }
            Err(Unanswered::No(why)) => return Err(Error::TurnedAway(why)),
            Err(Unanswered::Odd(why)) => {
                odd += 1;
                why
            }
            Err(Unanswered::Yet(why)) => why,
        };
        if waited >= wait || odd >= MOST_ODD {
            return Err(not_reached(at, why));
        }
        thread::sleep(CALL_EVERY);
        waited += CALL_EVERY;
    }
}

fn not_reached(at: &Address, why: String) -> Error {
    Error::NotReached {
        address: at.to_string(),
        why,
    }
}

/// Why a call came to nothing.
enum Unanswered {
    /// Nobody listens there yet.
    Yet(String),
    /// Something else than rank 0 of this training does.
    Odd(String),
    /// It was rank 0, and said no.
    No(String),
}

fn call(at: &Address, place: Place, token: &Token) -> Result<TcpStream, Unanswered> {
    let yet = |e: std::io::Error| Unanswered::Yet(e.to_string());
    let mut why = Unanswered::Yet("the name has no address".to_owned());
    let mut found = None;
    for address in (at.host.as_str(), at.port).to_socket_addrs().map_err(yet)? {
        match TcpStream::connect_timeout(&address, CALL_FOR) {
            Ok(stream) => {
                found = Some(stream);
                break;
            }
            Err(e) => why = yet(e),
        }
    }
    let mut stream = found.ok_or(why)?;
    let hello = [
        &HELLO[..],
        &number(place.rank),
        &number(place.world),
        &token.proof(HELLO, place),
    ];
    stream.write_all(&hello.concat()).map_err(yet)?;
    let odd = || {
        Unanswered::Odd(
            "what listens there is not rank 0 of this training: another port, another PLUMB_RANKS_TOKEN, or another version of plumb"
                .to_owned(),
        )
    };
    let mut words = [0; 8];
    read_all(&stream, &mut words).map_err(|e| match e.kind() {
        // Rank 0 may be busy with its own beginning.
        ErrorKind::TimedOut => Unanswered::Yet("what listens there does not answer".to_owned()),
        _ => odd(),
    })?;
    match &words {
        REFUSAL => {
            let mut why = Vec::new();
            let _ = (&stream).take(MOST_REASON as u64).read_to_end(&mut why);
            Err(Unanswered::No(shown::line(&String::from_utf8_lossy(&why))))
        }
        WELCOME => {
            let mut proof = [0; 32];
            read_all(&stream, &mut proof).map_err(|_| odd())?;
            match blake3::Hash::from_bytes(proof) == token.proof(WELCOME, place) {
                true => Ok(stream),
                false => Err(odd()),
            }
        }
        _ => Err(odd()),
    }
}

/// Fills `bytes`, or gives up on who is slow.
fn read_all(mut stream: &TcpStream, bytes: &mut [u8]) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut filled = 0;
    for _ in 0..MOST_READS {
        match stream.read(&mut bytes[filled..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(e) => return Err(e),
        }
        if filled == bytes.len() {
            return Ok(());
        }
    }
    Err(ErrorKind::TimedOut.into())
}
