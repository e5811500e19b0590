//! How `plumb train` becomes one of several processes: those that it starts itself (`--gpus`, `--processes`), or those that torchrun,
//! Slurm or mpirun started, told by their variables.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use plumb::ranks::{self, Address, Error, Listener, MOST_RANKS, Place, Ranks, Token};
use plumb::shown;

use crate::ui::{Failure, Ui};
use crate::world;

/// Where torchrun listens unless told otherwise, and so do we.
const USUAL_PORT: u16 = 29500;
/// The secret of a training's ranks.
const SECRET: &str = "PLUMB_RANKS_TOKEN";

/// What starts ranks, by the names of its variables: rank, ranks, rank on this machine, ranks on this machine.
const LAUNCHERS: [[&str; 4]; 3] = [
    ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"],
    [
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ],
    SLURM,
];
const SLURM: [&str; 4] = [
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "SLURM_LOCALID",
    "SLURM_NTASKS_PER_NODE",
];

/// How many processes train.
#[derive(clap::Args)]
pub(crate) struct RanksArgs {
    /// Train on N GPUs of this machine, a process on each. The LoRA is that of one GPU: they share the micro-batches of each step, of which
    /// `gradient_accumulation` says how many there are. For several machines, or with torchrun, see docs/cluster.md.
    #[arg(long, value_name = "N", value_parser = number(), conflicts_with_all = ["device", "processes"])]
    gpus: Option<u64>,
    /// The same by N processes on the CPU of this machine: to try it out, as one process already uses all cores.
    #[arg(long, value_name = "N", value_parser = number())]
    processes: Option<u64>,
    /// Wait at most so long for the other ranks to start.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    ranks_wait: u64,
    /// A process that another one started.
    #[arg(long, hide = true)]
    launched: bool,
}

fn number() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=MOST_RANKS as u64)
}

/// Where a process computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Where {
    /// As `--device` says.
    AsAsked,
    /// On the CPU.
    Cpu,
    /// On the GPU of this number.
    Gpu(usize),
    /// On a GPU for each process of the machine, this number's, if there are GPUs.
    GpuOrCpu(usize),
}

/// A process among the ranks, before it has met the others.
pub(crate) struct Position {
    place: Place,
    /// Where it computes.
    pub(crate) work: Where,
    /// Processes that share this machine's processors and memory.
    pub(crate) on_machine: usize,
    address: Address,
    token: Token,
    /// The port, if this is rank 0.
    listener: Option<Listener>,
    started: Started,
}

/// The ranks that this process started, if it did. None outlives it.
#[derive(Default)]
pub(crate) struct Started {
    children: Vec<Child>,
    /// Whether they are given time to end by themselves, as they do once they take part.
    patient: bool,
}

impl Drop for Started {
    fn drop(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(10);
        const TICK: Duration = Duration::from_millis(20);
        let ticks = match self.patient {
            true => PATIENCE.as_millis() / TICK.as_millis(),
            false => 0,
        };
        for _ in 0..ticks {
            let runs = |child: &mut Child| matches!(child.try_wait(), Ok(None));
            if !self.children.iter_mut().any(runs) {
                return;
            }
            std::thread::sleep(TICK);
        }
        for child in &mut self.children {
            // One that ended in the meantime cannot be killed.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl RanksArgs {
    /// Whether another process started this one, and tells of it.
    pub(crate) fn is_launched(&self) -> bool {
        self.launched
    }

    /// Meets the other ranks, and gives what holds those that this process started.
    pub(crate) fn meet(&self, position: Position, ui: &Ui) -> Result<(Ranks, Started), Failure> {
        position.meet(Duration::from_secs(self.ranks_wait), ui)
    }

    /// Which rank this process is, after it started others if it was to; None where it trains alone.
    pub(crate) fn position(&self) -> Result<Option<Position>, Failure> {
        let by_cpu = self.processes.is_some();
        let asked = self.gpus.or(self.processes).map(|n| n as usize);
        let told = from_outside(&variable)?;
        let Some(count) = asked else {
            return told.map(Position::from_outside).transpose();
        };
        let work_of = |local| match by_cpu {
            true => Where::Cpu,
            false => Where::Gpu(local),
        };
        if let (true, Some(told)) = (self.launched, told.as_ref()) {
            let work = work_of(told.local_rank);
            let told = told.clone();
            return Ok(Some(Position {
                work,
                ..Position::from_outside(told)?
            }));
        }
        if told.is_some() {
            let option = if by_cpu { "--processes" } else { "--gpus" };
            return Err(Failure::usage(format!(
                "{option} starts the ranks itself, and RANK or its like says that they are started already: leave one out"
            )));
        }
        if count == 1 {
            return Ok(Some(Position::one(work_of(0))));
        }
        Position::launch(count, work_of(0)).map(Some)
    }
}

impl Position {
    /// One of ranks that something else started.
    fn from_outside(told: Told) -> Result<Self, Failure> {
        let listener = match told.place.rank {
            0 => Some(Listener::open(&told.address).map_err(Failure::error)?),
            _ => None,
        };
        Ok(Self {
            place: told.place,
            work: Where::GpuOrCpu(told.local_rank),
            on_machine: told.on_machine,
            address: told.address,
            token: Token::of(&variable(SECRET).unwrap_or_default()),
            listener,
            started: Started::default(),
        })
    }

    /// A training of one rank, which needs no connection.
    fn one(work: Where) -> Self {
        Self {
            place: Place { rank: 0, world: 1 },
            work,
            on_machine: 1,
            address: Address {
                host: "127.0.0.1".to_owned(),
                port: 0,
            },
            token: Token::of(""),
            listener: None,
            started: Started::default(),
        }
    }

    /// Rank 0, which starts all others as this command again.
    fn launch(world: usize, work: Where) -> Result<Self, Failure> {
        let host = "127.0.0.1".to_owned();
        let listener = Listener::open(&Address {
            host: host.clone(),
            port: 0,
        });
        let listener = listener.map_err(Failure::error)?;
        let secret = secret()?;
        let address = Address {
            host,
            port: listener.port(),
        };
        let mut started = Started::default();
        for rank in 1..world {
            let child = start(rank, world, &address, &secret);
            started.children.push(
                child.map_err(|e| Failure::error(format!("rank {rank} cannot be started: {e}")))?,
            );
        }
        Ok(Self {
            place: Place { rank: 0, world },
            work,
            on_machine: world,
            address,
            token: Token::of(&secret),
            listener: Some(listener),
            started,
        })
    }

    /// This rank's number.
    pub(crate) fn rank(&self) -> usize {
        self.place.rank
    }

    fn meet(self, wait: Duration, ui: &Ui) -> Result<(Ranks, Started), Failure> {
        let Self {
            place,
            address,
            token,
            listener,
            mut started,
            ..
        } = self;
        let ranks = match listener {
            _ if place.world == 1 => Ok(Ranks::alone()),
            Some(listener) => {
                let mut alive = || started.check();
                listener.wait(place.world, &token, wait, &mut alive, ui)
            }
            None => ranks::join(&address, place, &token, wait),
        };
        let ranks = ranks.map_err(Failure::error)?;
        started.patient = true;
        Ok((ranks.with_libraries(world::cuda_folders()), started))
    }
}

impl Started {
    /// That none has ended before the training began.
    fn check(&mut self) -> Result<(), Error> {
        for (rank, child) in (1..).zip(&mut self.children) {
            if let Ok(Some(status)) = child.try_wait() {
                let what = format!("{status} before it took part; it says why above");
                return Err(Error::Ended { rank, what });
            }
        }
        Ok(())
    }
}

/// Starts this command as another rank.
fn start(rank: usize, world: usize, at: &Address, secret: &str) -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    let [a, b, c, d] = LAUNCHERS[0];
    command
        .args(std::env::args_os().skip(1))
        .arg("--launched")
        .envs([
            (a, rank.to_string()),
            (b, world.to_string()),
            (c, rank.to_string()),
            (d, world.to_string()),
            ("MASTER_ADDR", at.host.clone()),
            ("MASTER_PORT", at.port.to_string()),
            (SECRET, secret.to_owned()),
        ])
        .env_remove(AGENT)
        // Rank 0 alone reports.
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command.spawn()
}

fn secret() -> Result<String, Failure> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|e| Failure::error(format!("the system gives no random numbers: {e}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Set by torchrun, whose own store listens on MASTER_PORT.
const AGENT: &str = "TORCHELASTIC_USE_AGENT_STORE";

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// What variables say of a rank.
#[derive(Clone, Debug)]
struct Told {
    place: Place,
    local_rank: usize,
    on_machine: usize,
    address: Address,
}

/// Whoever sets one of a launcher's two variables means several ranks, which would each train alone and overwrite each other's LoRA. Slurm
/// sets its number of tasks for a command without ranks too.
fn refuse_half(variable: &dyn Fn(&str) -> Option<String>) -> Result<(), Failure> {
    let launchers = LAUNCHERS.iter().filter(|names| **names != SLURM);
    for [rank, world, ..] in launchers {
        let (there, missing, what) = match (variable(rank), variable(world)) {
            (Some(_), None) => (rank, world, "the number of ranks"),
            (None, Some(count)) if count != "1" => {
                (world, rank, "this process's number among them, from 0")
            }
            _ => continue,
        };
        return Err(Failure::usage(format!(
            "{there} is set and {missing} is not: {what}; set it too, or to train alone, unset {there}"
        )));
    }
    Ok(())
}

/// The rank that torchrun, mpirun or Slurm made this process. None where there is one rank, and where Slurm's tasks have no MASTER_ADDR: a
/// command inside an allocation is most often meant alone.
fn from_outside(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Told>, Failure> {
    let is_there = |names: &&[&str; 4]| names[..2].iter().all(|name| variable(name).is_some());
    let Some(names) = LAUNCHERS.iter().find(is_there) else {
        return refuse_half(variable).map(|()| None);
    };
    let number = |name: &str, most: usize| match variable(name) {
        None => Ok(None),
        Some(text) => {
            let read = text.parse::<usize>().ok().filter(|n| *n <= most);
            read.map(Some).ok_or_else(|| {
                let text = shown::text(&text).to_string();
                Failure::usage(format!(
                    "{name}: expected a number up to {most}, found `{text}`"
                ))
            })
        }
    };
    let [rank, world, local_rank, on_machine] = *names;
    let count = number(world, MOST_RANKS)?.unwrap_or(1);
    if count == 0 {
        return Err(Failure::usage(format!(
            "{world}: expected the number of ranks, at least 1, found 0; to train alone, unset it and {rank}"
        )));
    }
    let address = variable("MASTER_ADDR");
    if count <= 1 || (address.is_none() && *names == SLURM) {
        return Ok(None);
    }
    let host = address.ok_or_else(|| {
        Failure::usage(format!(
            "{world} is {count} and MASTER_ADDR is not set: the name of rank 0's machine; to train alone, unset {world}"
        ))
    })?;
    let place = Place {
        rank: number(rank, count - 1)?.unwrap_or(0),
        world: count,
    };
    let port = number("MASTER_PORT", u16::MAX.into())?.unwrap_or(USUAL_PORT.into());
    // torchrun's store has the port itself; a script of one's own may choose another for us.
    let port = match number("PLUMB_RANKS_PORT", u16::MAX.into())? {
        Some(port) => port,
        None if variable(AGENT).as_deref() == Some("True") => port + 1,
        None => port,
    };
    let local = number(local_rank, MOST_RANKS)?.ok_or_else(|| {
        Failure::usage(format!("{world} is {count} and {local_rank} is not set: the number of the process on its machine, by which it takes a GPU"))
    })?;
    Ok(Some(Told {
        place,
        local_rank: local,
        // Slurm's has no such number where nodes have different ones.
        on_machine: number(on_machine, MOST_RANKS)
            .ok()
            .flatten()
            .unwrap_or(1)
            .max(1),
        address: Address {
            host,
            port: u16::try_from(port).unwrap_or(u16::MAX),
        },
    }))
}
