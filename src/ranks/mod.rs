//! Processes that train together, each with a part of every step's micro-batches: how they find each other, what they tell each
//! other, and how their gradients become one sum.
//!
//! Rank 0 listens, and each of the others has one connection, to it. Over these go messages and, where there is nothing
//! faster, gradients ([`sum`]). Who is no rank is turned away while rank 0 waits for the ranks; after that nobody is let in. A rank that
//! ends closes its connection, and with it ends the training of all: nobody waits for it.
//!
//! Not MPI or a crate over it: it would have to be installed on each machine, and its sums have an order of their own.

mod frames;
mod join;
pub mod sum;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::shown;
use frames::Peer;
pub use join::{Address, Listener, Token, join};

/// The most ranks that a training may have.
pub const MOST_RANKS: usize = 1024;

/// Why ranks cannot go on together.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Rank 0 cannot listen.
    #[error(
        "rank 0 cannot listen at {address}: {source}; choose a port that is free (MASTER_PORT)"
    )]
    Listen {
        /// Host and port.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Rank 0 was not found.
    #[error("rank 0 was not reached at {address}: {why}")]
    NotReached {
        /// Host and port.
        address: String,
        /// The last thing that went wrong.
        why: String,
    },
    /// Rank 0 said no.
    #[error("rank 0 turned this rank away: {0}")]
    TurnedAway(String),
    /// Some ranks never came.
    #[error(
        "of {world} ranks, {missing} did not come within {seconds} s; start all of them, with the same MASTER_ADDR and MASTER_PORT (`--ranks-wait` waits longer)"
    )]
    Absent {
        /// Which, in words.
        missing: String,
        /// The number of ranks.
        world: usize,
        /// For how long rank 0 waited.
        seconds: u64,
    },
    /// A rank's connection is no more.
    #[error(
        "rank {rank} was lost: {why}; run the same command again to go on from the last checkpoint"
    )]
    Lost {
        /// Which.
        rank: usize,
        /// What became of the connection.
        why: String,
    },
    /// A rank ended with an error of its own.
    #[error("rank {rank} ended: {}", shown::line(what))]
    Ended {
        /// Which.
        rank: usize,
        /// Its error.
        what: String,
    },
    /// A rank says what no rank of this program says.
    #[error("rank {rank} sent {what}: all ranks have to be the same version of plumb")]
    Garbled {
        /// Which.
        rank: usize,
        /// Expected and found.
        what: String,
    },
    /// A tensor could not be copied or summed.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
}

/// Which of the ranks a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number, from 0.
    pub rank: usize,
    /// How many there are.
    pub world: usize,
}

/// A process among its ranks, or alone.
#[derive(Debug)]
pub struct Ranks {
    place: Place,
    /// Of rank 0 those to all others, in their order; of another rank the one to rank 0.
    peers: Vec<Peer>,
    /// Where NVIDIA's libraries may lie that the system's loader does not know.
    libraries: Vec<PathBuf>,
}

impl Ranks {
    fn new(place: Place, peers: Vec<Peer>) -> Self {
        Self {
            place,
            peers,
            libraries: Vec::new(),
        }
    }

    /// A process that trains alone.
    pub fn alone() -> Self {
        Self::new(Place { rank: 0, world: 1 }, Vec::new())
    }

    /// The same, which also looks in `folders` for NVIDIA's libraries.
    #[must_use]
    pub fn with_libraries(mut self, folders: Vec<PathBuf>) -> Self {
        self.libraries = folders;
        self
    }

    /// This process's number, from 0.
    pub fn rank(&self) -> usize {
        self.place.rank
    }

    /// How many processes there are.
    pub fn world(&self) -> usize {
        self.place.world
    }

    /// Whether this is rank 0, which alone writes files.
    pub fn is_first(&self) -> bool {
        self.place.rank == 0
    }

    /// Whether nobody else takes part.
    pub fn is_alone(&self) -> bool {
        self.place.world == 1
    }

    /// What each rank says, in their order, given to rank 0; None to the others.
    ///
    /// # Errors
    /// If a rank is lost or ended.
    pub fn gather<T: Serialize + DeserializeOwned>(
        &self,
        mine: T,
    ) -> Result<Option<Vec<T>>, Error> {
        if !self.is_first() {
            self.to_first()?.send_message(&mine)?;
            return Ok(None);
        }
        let mut all = vec![mine];
        for peer in &self.peers {
            all.push(peer.receive_message(&|| self.look_at_others(peer))?);
        }
        Ok(Some(all))
    }

    /// What rank 0 says, given to all.
    ///
    /// # Errors
    /// If a rank is lost or ended, or rank 0 says nothing.
    pub fn tell<T: Serialize + DeserializeOwned>(&self, of_first: Option<T>) -> Result<T, Error> {
        match (self.is_first(), of_first) {
            (true, Some(value)) => {
                self.peers.iter().try_for_each(|p| p.send_message(&value))?;
                Ok(value)
            }
            (true, None) => Err(Error::Garbled {
                rank: 0,
                what: "nothing where the others wait for something".to_owned(),
            }),
            (false, _) => self.to_first()?.receive_message(&|| Ok(())),
        }
    }

    /// What each rank says, in their order, given to all.
    ///
    /// # Errors
    /// If a rank is lost or ended.
    pub fn exchange<T: Serialize + DeserializeOwned>(&self, mine: T) -> Result<Vec<T>, Error> {
        let all = self.gather(mine)?;
        self.tell(all)
    }

    /// Bytes that rank 0 has, given to all; no more than `limit`.
    ///
    /// # Errors
    /// If a rank is lost or ended, or there are more.
    pub fn tell_bytes(&self, of_first: Vec<u8>, limit: u64) -> Result<Vec<u8>, Error> {
        if self.is_first() {
            self.peers
                .iter()
                .try_for_each(|p| p.send_bytes(&of_first))?;
            return Ok(of_first);
        }
        self.to_first()?.receive_bytes(limit)
    }

    /// Tells the others that this rank ends, and why; what a rank has said of its own end is passed on as its own.
    pub fn end(&self, error: &dyn std::fmt::Display, of: Option<&Error>) {
        let rank = match of {
            Some(Error::Lost { rank, .. } | Error::Ended { rank, .. }) => *rank,
            _ => self.place.rank,
        };
        let what = match of {
            Some(Error::Ended { what, .. }) => what.clone(),
            Some(Error::Lost { why, .. }) => why.clone(),
            _ => {
                let text = error.to_string();
                shown::line(text.lines().next().unwrap_or_default())
            }
        };
        for peer in &self.peers {
            // Who is gone hears nothing.
            let _ = peer.send_end(rank, &what);
        }
    }

    fn to_first(&self) -> Result<&Peer, Error> {
        self.peers.first().ok_or_else(|| Error::Lost {
            rank: 0,
            why: "there is no connection to it".to_owned(),
        })
    }

    /// That no other rank is gone while one is waited for.
    fn look_at_others(&self, waited: &Peer) -> Result<(), Error> {
        let others = self.peers.iter().filter(|p| p.rank() != waited.rank());
        others.into_iter().try_for_each(Peer::look)
    }

    /// The connection to a rank that is not this one, for rank 0.
    fn peer(&self, rank: usize) -> Result<&Peer, Error> {
        let found = self.peers.iter().find(|peer| peer.rank() == rank);
        found.ok_or_else(|| Error::Lost {
            rank,
            why: "there is no connection to it".to_owned(),
        })
    }

    /// That no rank is gone that this one has a connection to.
    #[cfg(feature = "cuda")]
    fn look(&self) -> Result<(), Error> {
        self.peers.iter().try_for_each(Peer::look)
    }
}
