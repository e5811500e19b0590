//! Operations of the tape against torch: forward and backward, f32, the same shapes and cores, in turns.
//!
//! `PLUMB_PYTHON=python cargo bench -- nn [FILTER]` prints one table. Seconds are processor seconds of all
//! threads, which a busy machine disturbs less than the clock; the clock's ratio is given beside.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use candle_core::{DType, Result, Tensor};
use plumb::autograd::{AttentionPart, LoraValues, Tape, Value};
use plumb::nn::{AttentionMask, Kernels, testing};

type Failure = Box<dyn std::error::Error>;

/// Turns of each side, after one that does not count: it starts threads and fills caches. Odd, so that there is a median.
const TURNS: usize = 9;

/// What torch is asked for, by name and sizes: SD3.5-medium's shapes at 512 px, and a small network's.
const CASES: [&str; 14] = [
    "attention 4 24 333 64",
    "attention 16 4 64 32",
    "joint_attention 2 24 1024 333 64",
    "joint_attention 16 4 64 77 32",
    "modulate 4 333 1536",
    "modulate 16 64 128",
    "gated 4 333 1536",
    "rms 4 333 24 64",
    "gelu 4 333 6144",
    "gelu 16 64 512",
    "lora 4 333 1536 1536 16",
    "lora 4 333 1536 6144 16",
    "lora 4 333 6144 1536 16",
    "lora 16 64 128 128 4",
];

/// Runs the cases whose name contains `filter`.
#[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
pub(crate) fn run(filter: &str) -> std::result::Result<(), Failure> {
    let threads = rayon::current_num_threads();
    println!("forward and backward, f32, {threads} threads; medians of {TURNS} turns");
    println!(
        "| case | plumb ms | torch ms | ratio, processor | ratio, clock |\n|---|---|---|---|---|"
    );
    let python = std::env::var("PLUMB_PYTHON").unwrap_or_else(|_| "python3".into());
    let mut peer = Peer::start(&python, threads)?;
    for case in CASES.iter().filter(|case| case.contains(filter)) {
        let sizes: Vec<usize> = case
            .split(' ')
            .skip(1)
            .map(str::parse)
            .collect::<std::result::Result<_, _>>()?;
        let benched = BenchedOperation::new(case, &sizes)?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for turn in 0..=TURNS {
            // In turns: what else runs on the machine disturbs both sides alike.
            let (busy, clock) = (busy_seconds()?, Instant::now());
            benched.run()?;
            let pair = (busy_seconds()? - busy, clock.elapsed().as_secs_f64());
            let peers = peer.turn(case)?;
            if turn > 0 {
                ours.push(pair);
                theirs.push(peers);
            }
        }
        let median = |pairs: &[(f64, f64)], pick: fn(&(f64, f64)) -> f64| {
            let mut values: Vec<f64> = pairs.iter().map(pick).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let (a, b) = (median(&ours, |p| p.0), median(&theirs, |p| p.0));
        let clock = median(&theirs, |p| p.1) / median(&ours, |p| p.1);
        println!(
            "| {case} | {:.2} | {:.2} | {:.2} | {clock:.2} |",
            a * 1e3,
            b * 1e3,
            b / a
        );
    }
    Ok(())
}

/// Processor seconds of all threads of this process.
fn busy_seconds() -> std::result::Result<f64, Failure> {
    let mut nanoseconds = 0u64;
    for task in std::fs::read_dir("/proc/self/task")? {
        // Field 1, in nanoseconds; /proc/self/stat counts hundredths of a second, too coarse for one operation.
        let line = std::fs::read_to_string(task?.path().join("schedstat"))?;
        nanoseconds += line.split(' ').next().unwrap_or("0").parse::<u64>()?;
    }
    Ok(nanoseconds as f64 * 1e-9)
}

type Operation = Box<dyn Fn(&Tape, &[Value]) -> Result<Vec<Value>>>;

/// One operation with its inputs and the gradients of its results.
struct BenchedOperation {
    inputs: Vec<Tensor>,
    seeds: Vec<Tensor>,
    operation: Operation,
}

fn normal(seed: u64, shape: &[usize]) -> Result<Tensor> {
    testing::normal(seed, shape).to_dtype(DType::F32)
}

impl BenchedOperation {
    fn new(case: &str, sizes: &[usize]) -> std::result::Result<Self, Failure> {
        let kind = case.split(' ').next().unwrap_or_default();
        let (shapes, operation): (Vec<Vec<usize>>, Operation) = match (kind, sizes) {
            ("attention", &[b, h, n, d]) => {
                let scale = 1.0 / (d as f64).sqrt();
                (
                    vec![vec![b, n, h, d]; 3],
                    Box::new(move |tape, v| {
                        Ok(vec![tape.attention(
                            &v[0],
                            &v[1],
                            &v[2],
                            scale,
                            None,
                            &AttentionMask::None,
                        )?])
                    }),
                )
            }
            ("joint_attention", &[b, h, n, m, d]) => {
                let scale = 1.0 / (d as f64).sqrt();
                let shapes = [vec![vec![b, n, h, d]; 3], vec![vec![b, m, h, d]; 3]].concat();
                (
                    shapes,
                    Box::new(move |tape, v| {
                        let parts = [0, 3].map(|i| AttentionPart {
                            q: Some(&v[i]),
                            k: &v[i + 1],
                            v: &v[i + 2],
                        });
                        tape.joint_attention(&parts, scale)
                    }),
                )
            }
            ("modulate", &[b, n, d]) => {
                let (scale, shift) = (
                    Value::constant(normal(5, &[b, d])?),
                    Value::constant(normal(6, &[b, d])?),
                );
                (
                    vec![vec![b, n, d]],
                    Box::new(move |tape, v| Ok(vec![tape.modulate(&v[0], &scale, &shift, 1e-6)?])),
                )
            }
            ("gated", &[b, n, d]) => {
                let gate = Value::constant(normal(5, &[b, d])?);
                (
                    vec![vec![b, n, d]; 2],
                    Box::new(move |tape, v| Ok(vec![tape.gated_residual(&v[0], &gate, &v[1])?])),
                )
            }
            ("rms", &[b, n, h, d]) => {
                let weight = normal(5, &[d])?;
                (
                    vec![vec![b, n, h, d]],
                    Box::new(move |tape, v| Ok(vec![tape.rms_norm(&v[0], Some(&weight), 1e-6)?])),
                )
            }
            ("gelu", &[b, n, d]) => (
                vec![vec![b, n, d]],
                Box::new(|tape, v| Ok(vec![tape.gelu_tanh(&v[0])?])),
            ),
            ("lora", &[b, n, inner, out, rank]) => {
                let (w, bias) = (normal(5, &[out, inner])?, normal(6, &[out])?);
                (
                    vec![vec![b, n, inner], vec![rank, inner], vec![out, rank]],
                    Box::new(move |tape, v| {
                        let lora = LoraValues {
                            a: v[1].clone(),
                            b: v[2].clone(),
                            scale: 0.5,
                            dropout: None,
                        };
                        Ok(vec![tape.linear(
                            &v[0],
                            &(&w).into(),
                            Some(&bias),
                            Some(&lora),
                        )?])
                    }),
                )
            }
            _ => return Err(format!("no case `{case}`").into()),
        };
        let inputs: Vec<Tensor> = shapes
            .iter()
            .enumerate()
            .map(|(i, shape)| normal(10 + i as u64, shape))
            .collect::<Result<_>>()?;
        let values: Vec<_> = inputs.iter().cloned().map(Value::constant).collect();
        // Run once for the shapes of its results.
        let outs = operation(&Tape::off(&Kernels::NONE), &values)?;
        let seeds = outs
            .iter()
            .map(|out| normal(30, out.dims()))
            .collect::<Result<_>>()?;
        Ok(Self {
            inputs,
            seeds,
            operation,
        })
    }

    fn run(&self) -> Result<()> {
        let tape = Tape::recording(&Kernels::NONE);
        let leaves: Vec<_> = self.inputs.iter().map(|t| tape.leaf(t.clone())).collect();
        let outs = (self.operation)(&tape, &leaves)?;
        let seeds: Vec<_> = outs.iter().zip(self.seeds.iter().cloned()).collect();
        tape.backward_from(&seeds)?;
        Ok(())
    }
}

/// The Python process, which runs a case once per line it is sent.
struct Peer {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    fn start(python: &str, threads: usize) -> std::result::Result<Self, Failure> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peer/nn_torch.py");
        let mut process = Command::new(python)
            .arg(script)
            .arg(threads.to_string())
            .envs(crate::turns::peer_limits())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot start {python}: {e}"))?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            return Err("no pipes to the peer".into());
        };
        let mut peer = Self {
            process,
            input,
            output: BufReader::new(output),
        };
        match peer.line()?.as_str() {
            "ready" => Ok(peer),
            line => Err(format!("the peer did not start: `{line}`").into()),
        }
    }

    fn line(&mut self) -> std::result::Result<String, Failure> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    /// Processor seconds, and seconds on the clock, that one run took there.
    fn turn(&mut self, case: &str) -> std::result::Result<(f64, f64), Failure> {
        writeln!(self.input, "{case}")?;
        self.input.flush()?;
        let line = self.line()?;
        match line.split_once(' ') {
            Some((busy, clock)) => Ok((busy.parse()?, clock.parse()?)),
            None => Err(format!("the peer stopped at `{case}`").into()),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
