//! Two sides that work in turn: ours and the peer's, each in a process of its own, which does its work once for each line it is sent.

use std::fmt;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};
use plumb::nn::Instructions;
use serde_json::{Value, json};

pub(crate) type Failure = Box<dyn std::error::Error>;

/// A point in time, or an amount of it: by the clock, and of all processors used by this process.
#[derive(Clone, Copy)]
pub(crate) struct Seconds {
    pub(crate) clock: f64,
    pub(crate) processor: f64,
}

impl Seconds {
    pub(crate) fn now() -> Self {
        static START: OnceLock<Instant> = OnceLock::new();
        // Fields 14 and 15, in hundredths; the name in field 2 may hold spaces. (Linux; elsewhere 0.)
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let hundredths = |field: usize| {
            after_name
                .split_whitespace()
                .nth(field - 3)
                .and_then(|n| n.parse::<f64>().ok())
        };
        Self {
            clock: START.get_or_init(Instant::now).elapsed().as_secs_f64(),
            processor: (hundredths(14).unwrap_or(0.0) + hundredths(15).unwrap_or(0.0)) / 100.0,
        }
    }

    pub(crate) fn since(self) -> Self {
        let now = Self::now();
        Self {
            clock: now.clock - self.clock,
            processor: now.processor - self.processor,
        }
    }
}

/// The best wall time of several goes, and the mean processor time, which other work on the machine disturbs
/// less.
pub(crate) struct Elapsed {
    pub(crate) wall: Duration,
    pub(crate) processor: f64,
}

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.3} s (processor {:.3} s)",
            self.wall.as_secs_f64(),
            self.processor
        )
    }
}

pub(crate) fn best_of<T>(times: usize, mut f: impl FnMut() -> T) -> (Elapsed, T) {
    let before = Seconds::now();
    let mut best: Option<(Duration, T)> = None;
    for _ in 0..times {
        let start = Instant::now();
        let result = f();
        let wall = start.elapsed();
        if best.as_ref().is_none_or(|(b, _)| wall < *b) {
            best = Some((wall, result));
        }
    }
    let processor = before.since().processor / times as f64;
    let (wall, result) = best.expect("at least once");
    (Elapsed { wall, processor }, result)
}

/// The largest difference between the numbers of two tensors of one shape; without end where one is no number, which a peer's program may give.
pub(crate) fn largest_difference(a: &Tensor, b: &Tensor) -> candle_core::Result<f32> {
    let off = (a.to_dtype(DType::F32)? - b.to_dtype(DType::F32)?)?.abs()?;
    // A maximum may pass over what is no number; a sum does not.
    if off.sum_all()?.to_scalar::<f32>()?.is_nan() {
        return Ok(f32::INFINITY);
    }
    off.max_all()?.to_scalar()
}

/// How many turns each side has: `PLUMB_BENCH_TURNS`, where it is a number, instead of `usual`.
pub(crate) fn turns(usual: usize) -> usize {
    let given = std::env::var("PLUMB_BENCH_TURNS");
    let given = given.ok().and_then(|given| given.parse().ok());
    given.unwrap_or(usual).max(1)
}

/// Lets kernels use nothing beyond what `PLUMB_BENCH_INSTRUCTIONS` names, if it names something.
pub(crate) fn limit_instructions() -> Result<(), Failure> {
    if let Ok(named) = std::env::var("PLUMB_BENCH_INSTRUCTIONS") {
        Instructions::limit(named.parse()?);
    }
    Ok(())
}

/// The variables by which a peer's libraries are kept to the instructions that ours are.
pub(crate) fn peer_limits() -> Vec<(&'static str, &'static str)> {
    let named = match Instructions::used() {
        used if used == Instructions::available() => return Vec::new(),
        Instructions::Avx2 => ["AVX2", "AVX2", "avx2"],
        Instructions::Base => ["SSE4_2", "SSE41", "default"],
        Instructions::Avx512 => ["AVX512", "AVX512_CORE", "avx512"],
        // AMX itself comes no further: there is nothing wider that could be hidden.
        Instructions::Avx512Bf16 | Instructions::AmxBf16 => {
            ["AVX512_E1", "AVX512_CORE_BF16", "avx512"]
        }
    };
    let variables = [
        "MKL_ENABLE_INSTRUCTIONS",
        "ONEDNN_MAX_CPU_ISA",
        "ATEN_CPU_CAPABILITY",
    ];
    variables.into_iter().zip(named).collect()
}

/// What each side took, turn by turn.
#[derive(Default)]
pub(crate) struct Turns {
    ours: Vec<Seconds>,
    theirs: Vec<Seconds>,
}

impl Turns {
    pub(crate) fn push(&mut self, ours: Seconds, theirs: Seconds) {
        self.ours.push(ours);
        self.theirs.push(theirs);
    }

    /// Seconds of ours and theirs by the clock, in the median.
    pub(crate) fn seconds(&self) -> [f64; 2] {
        [&self.ours, &self.theirs].map(|side| Spread::of(side.iter().map(|s| s.clock)).median)
    }

    /// How many times as fast ours was, turn by turn: the two of a turn met the same load of the machine.
    pub(crate) fn clock(&self) -> Spread {
        let both = self.ours.iter().zip(&self.theirs);
        Spread::of(both.map(|(a, b)| b.clock / a.clock))
    }

    /// As [`Self::clock`], of processor time.
    pub(crate) fn processor(&self) -> Spread {
        let both = self.ours.iter().zip(&self.theirs);
        Spread::of(both.map(|(a, b)| b.processor / a.processor))
    }
}

pub(crate) struct Spread {
    least: f64,
    pub(crate) median: f64,
    most: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        Self {
            least: values[0],
            median: values[values.len() / 2],
            most: values[values.len() - 1],
        }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.2} ({:.2}..{:.2})",
            self.median, self.least, self.most
        )
    }
}

/// A process that does its work once for each line it is sent, and answers with what it took.
pub(crate) struct Side {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Side {
    pub(crate) fn start(command: &mut Command) -> Result<Self, Failure> {
        let mut process = command
            .envs(peer_limits())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", command.get_program().display()))?;
        let output = process.stdout.take().ok_or("no pipe from a side")?;
        Ok(Self {
            input: process.stdin.take(),
            output: BufReader::new(output),
            process,
        })
    }

    pub(crate) fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        match self.output.read_line(&mut line)? {
            0 => Err("a side stopped".into()),
            _ => Ok(line.trim().to_owned()),
        }
    }

    pub(crate) fn json(&mut self) -> Result<Value, Failure> {
        let line = self.line()?;
        Ok(serde_json::from_str(&line).map_err(|e| format!("a side said `{line}`: {e}"))?)
    }

    /// What doing the work once took there.
    pub(crate) fn turn(&mut self) -> Result<Seconds, Failure> {
        let input = self.input.as_mut().ok_or("a side was told to end")?;
        input.write_all(b"\n")?;
        input.flush()?;
        let line = self.line()?;
        let (clock, processor) = line.split_once(' ').ok_or("a side stopped")?;
        Ok(Seconds {
            clock: clock.parse()?,
            processor: processor.parse()?,
        })
    }

    /// Its last words.
    pub(crate) fn finish(mut self) -> Result<Value, Failure> {
        self.input = None;
        self.json()
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // It waits for lines for ever. Where it has ended already, there is nothing to do.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Our side: does the work once for each line it is sent, and says in the end what memory it took.
pub(crate) fn answer(mut work: impl FnMut() -> Result<(), Failure>) -> Result<(), Failure> {
    for line in std::io::stdin().lines() {
        line?;
        let start = Seconds::now();
        work()?;
        let taken = start.since();
        println!("{} {}", taken.clock, taken.processor);
    }
    // The high-water mark of a process cannot be taken back: hence a process for each case.
    println!("{}", json!({ "peak_mib": mib("VmHWM:")? }));
    Ok(())
}

/// A field of this process's memory, on Linux.
pub(crate) fn mib(field: &str) -> Result<f64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.ok_or("no such field")?.parse::<f64>()? / 1024.0)
}
