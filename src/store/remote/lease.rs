//! Leases: what stands for a lock where there are none. Whoever adds or removes objects puts one first, then looks for those of
//! others, so of two that exclude each other at least one sees the other. It is put again while the work lasts; one that was not
//! for a while is of somebody who is dead.
//!
//! All times are those that the server gives to objects. No clock of ours decides what goes.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::client::{Client, Listed};
use super::ending::{NoMoreChanges, no_more_changes};
use crate::monitor::Monitor;
use crate::store::Error;

/// A lease that was not put again for so long is of a process that ended.
const LIFE: Duration = Duration::from_secs(15 * 60);
/// How often it is put again.
const RENEWAL: Duration = Duration::from_secs(3 * 60);
/// Between two looks while another keeps us out.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How often a list is asked for that does not yet have what was put.
const STALE_LOOKS: u32 = 5;

const FOLDER: &str = "leases";

/// What its holder does. Any number may add at once; who removes is alone. One merges, so that no other does the same in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Add,
    Merge,
    Remove,
}

impl Purpose {
    fn word(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Merge => "merge",
            Self::Remove => "remove",
        }
    }

    fn of(name: &str) -> Option<Self> {
        let file = name.strip_prefix(FOLDER)?.strip_prefix('/')?;
        let (word, rest) = file.strip_suffix(".json")?.split_once('-')?;
        let is_hex = rest.len() == 32 && rest.bytes().all(|b| b.is_ascii_hexdigit());
        let all = [Self::Add, Self::Merge, Self::Remove].into_iter();
        all.filter(|_| is_hex)
            .find(|purpose| purpose.word() == word)
    }

    fn excludes(self, other: Self) -> bool {
        match (self, other) {
            (Self::Remove, _) | (_, Self::Remove) | (Self::Merge, Self::Merge) => true,
            (Self::Add, _) | (_, Self::Add) => false,
        }
    }
}

/// What this process holds.
static HELD: Mutex<Vec<(Arc<Client>, String)>> = Mutex::new(Vec::new());

fn held() -> MutexGuard<'static, Vec<(Arc<Client>, String)>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether this process holds leases on stores.
pub fn has_any() -> bool {
    !held().is_empty()
}

/// Removes the leases of this process, which is about to end, and lets it change nothing any more on object storage: without them it must not.
pub fn give_back() -> NoMoreChanges {
    let no_more = no_more_changes();
    for (client, name) in held().drain(..) {
        // One that stays ends by its age.
        let _ = client.remove_at_the_end(&name);
    }
    no_more
}

/// A lease that is held, and put again from time to time, until it is dropped.
pub(super) struct Lease {
    client: Arc<Client>,
    purpose: Purpose,
    name: String,
    content: Bytes,
    ended: Arc<(Mutex<bool>, Condvar)>,
    renewing: Option<JoinHandle<()>>,
}

impl Lease {
    /// Takes a lease, after waiting for others for `wait` at most.
    pub(super) fn take(
        client: &Arc<Client>,
        purpose: Purpose,
        wait: Duration,
        monitor: &dyn Monitor,
    ) -> Result<Self, Error> {
        let mut waited = Duration::ZERO;
        loop {
            let lease = Self::put(client, purpose)?;
            let Some(other) = lease.other()? else {
                return Ok(lease.renewed());
            };
            let holder = holder(other);
            // Gone before we wait, so that two who see each other do not keep each other out for ever.
            drop(lease);
            if waited >= wait {
                return Err(Error::Busy {
                    path: client.address.to_string().into(),
                    holder,
                });
            }
            if waited.is_zero() {
                monitor.note(&format!("waiting for the store: {holder}"));
            }
            let pause = LOOK_AGAIN + Duration::from_millis(random() % 1000);
            std::thread::sleep(pause);
            waited += pause;
        }
    }

    fn put(client: &Arc<Client>, purpose: Purpose) -> Result<Self, Error> {
        let name = format!(
            "{FOLDER}/{}-{:016x}{:016x}.json",
            purpose.word(),
            random(),
            random()
        );
        let host = sysinfo::System::host_name().unwrap_or_default();
        let content = serde_json::json!({
            "host": host, "process": std::process::id(), "purpose": purpose.word(), "version": 1
        });
        let content = Bytes::from(content.to_string());
        // First: a signal may come before the put is answered.
        held().push((client.clone(), name.clone()));
        client.put(&name, &content).inspect_err(|_| let_go(&name))?;
        Ok(Self {
            client: client.clone(),
            purpose,
            name,
            content,
            ended: Arc::default(),
            renewing: None,
        })
    }

    fn renewed(mut self) -> Self {
        let (client, ended) = (self.client.clone(), self.ended.clone());
        let (name, content) = (self.name.clone(), self.content.clone());
        self.renewing = Some(std::thread::spawn(move || {
            let (lock, condition) = &*ended;
            let mut is_over = lock.lock().unwrap_or_else(PoisonError::into_inner);
            while !*is_over {
                let waited = condition.wait_timeout(is_over, RENEWAL);
                is_over = waited.unwrap_or_else(PoisonError::into_inner).0;
                if !*is_over {
                    // One that fails is made good by the next; who depends on it looks again, see `confirm`.
                    let _ = client.put(&name, &content);
                }
            }
        }));
        self
    }

    /// Puts it again and makes sure that nobody has begun meanwhile who must not work beside its holder: this process may have
    /// been asleep for longer than a lease lasts. Gives the server's time.
    pub(super) fn confirm(&self) -> Result<SystemTime, Error> {
        self.client.put(&self.name, &self.content)?;
        match self.other()? {
            None => self.now(),
            Some(other) => Err(Error::Busy {
                path: self.client.address.to_string().into(),
                holder: holder(other),
            }),
        }
    }

    /// The server's time, which is that of our own lease as it was put last.
    pub(super) fn now(&self) -> Result<SystemTime, Error> {
        Ok(self.listed()?.0)
    }

    /// A living lease that excludes this one.
    fn other(&self) -> Result<Option<Purpose>, Error> {
        let (now, all) = self.listed()?;
        let is_alive = |lease: &&Listed| {
            now.duration_since(lease.modified)
                .map_or(true, |age| age < LIFE)
        };
        let others = all.iter().filter(|lease| lease.name != self.name);
        let mut purposes = others.filter(is_alive).filter_map(|l| Purpose::of(&l.name));
        Ok(purposes.find(|other| self.purpose.excludes(*other)))
    }

    /// The time of our own lease, and all leases. A list without our own is older than it, and says nothing.
    fn listed(&self) -> Result<(SystemTime, Vec<Listed>), Error> {
        for _ in 0..STALE_LOOKS {
            let all = self.client.list(FOLDER)?;
            if let Some(own) = all.iter().find(|lease| lease.name == self.name) {
                return Ok((own.modified, all));
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        Err(Error::Remote {
            action: "list",
            object: format!("{}/{FOLDER}", self.client.address),
            why: "the list does not have what was just written; storage whose lists lag behind cannot be written to safely".to_owned(),
            is_absent: false,
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (lock, condition) = &*self.ended;
        *lock.lock().unwrap_or_else(PoisonError::into_inner) = true;
        condition.notify_all();
        if let Some(thread) = self.renewing.take() {
            let _ = thread.join();
        }
        // One that stays ends by its age.
        let _ = self.client.remove(&self.name);
        let_go(&self.name);
    }
}

fn let_go(name: &str) {
    held().retain(|(_, held)| held != name);
}

/// Removes the leases that ended long ago by `now`, the server's time.
pub(super) fn clear(client: &Client, now: SystemTime) -> Result<(), Error> {
    for lease in client.list(FOLDER)? {
        let age = now.duration_since(lease.modified).unwrap_or_default();
        if Purpose::of(&lease.name).is_some() && age > 2 * LIFE {
            client.remove(&lease.name)?;
        }
    }
    Ok(())
}

fn holder(purpose: Purpose) -> String {
    let what = match purpose {
        Purpose::Add => "another process is adding entries (push or encode)",
        Purpose::Merge => "another process is merging index parts (compact or encode)",
        Purpose::Remove => "another process is removing objects (gc)",
    };
    what.to_owned()
}

/// A number that no other process has, for names.
fn random() -> u64 {
    // The system's randomness, which seeds hash maps.
    RandomState::new().build_hasher().finish()
}
