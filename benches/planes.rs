//! The shared form of packs: how much smaller, and how fast. The values are like a T5-XXL's: rows of 4096 channels, normal, each
//! channel with a scale of its own, in bf16; and latents' f32.

use std::time::Instant;

use plumb::rng::{Rng, Stream};
use plumb::store::planes;
use safetensors::tensor::{Dtype, TensorView};

const CHANNELS: usize = 4096;
const ROWS: usize = 3080;
const TIMES: usize = 15;

pub(crate) fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut rng = Rng::new(1, Stream::Shuffle, 0, 0);
    let mut normal = || {
        let uniform = |n: u64| (n as f64 + 0.5) / f64::from(1 << 30);
        let (a, b) = (uniform(rng.below(1 << 30)), uniform(rng.below(1 << 30)));
        (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    };
    let scales: Vec<f64> = (0..CHANNELS)
        .map(|_| 0.1 * (0.5 * normal()).exp())
        .collect();
    let values: Vec<f32> = (0..ROWS * CHANNELS)
        .map(|i| (normal() * scales[i % CHANNELS]) as f32)
        .collect();
    let bf16: Vec<u8> = values
        .iter()
        .flat_map(|v| half::bf16::from_f32(*v).to_le_bytes())
        .collect();
    let f32: Vec<u8> = values
        .iter()
        .take(4 << 20)
        .flat_map(|v| v.to_le_bytes())
        .collect();
    for (name, dtype, bytes) in [("bf16", Dtype::BF16, bf16), ("f32", Dtype::F32, f32)] {
        let count = bytes.len() / dtype.bitsize() * 8;
        let view = TensorView::new(dtype, vec![count], &bytes)?;
        let pack = safetensors::serialize([("hidden", view)], None)?;
        let (mut encoding, mut decoding) = (f64::MAX, f64::MAX);
        let mut shared = Vec::new();
        for _ in 0..TIMES {
            let start = Instant::now();
            shared = planes::encode(&pack)?;
            encoding = encoding.min(start.elapsed().as_secs_f64());
            let start = Instant::now();
            let decoded = planes::decode(&shared)?;
            decoding = decoding.min(start.elapsed().as_secs_f64());
            assert!(decoded == pack);
        }
        let gb = pack.len() as f64 / 1e9;
        println!(
            "{name}: {:.3} of the bytes, encoding {:.2} GB/s, decoding {:.2} GB/s, one core",
            shared.len() as f64 / pack.len() as f64,
            gb / encoding,
            gb / decoding
        );
    }
    Ok(())
}
