//! Memory of a text encoder that is read layer by layer: `cargo bench -- streamed [FILTER]` prints one table.
//!
//! Layers of Qwen3-4B's shapes in bf16, in a file that takes no room on the disk: all weights are zeros. Each case in a process of its
//! own; a whole call has as many captions as `plumb encode` gives it.

use std::process::Command;

use candle_core::DType;
use plumb::nn::weights::Weights;
use plumb::text::activation::Activation;
use plumb::text::qwen3::{Qwen3Architecture, Qwen3Forward, Qwen3Network, Qwen3PadRows};
use plumb::text::spec::EncoderMask;
use plumb::text::tokenizer::Tokens;
use plumb::text::{Residency, TextEncoder};

use crate::encode::qwen3_tensors;
use crate::turns::{Failure, Seconds, mib};

struct Case {
    name: &'static str,
    /// In a call.
    captions: usize,
    /// Whether pads are dropped: each caption has [`COUNT`] tokens and is filled up to [`LENGTH`].
    dropped: bool,
    /// Hidden states that are taken.
    taken: &'static [usize],
    layers: usize,
}

const LENGTH: usize = 512;
const COUNT: usize = 100;

const CASES: [Case; 6] = [
    Case {
        name: "one",
        captions: 1,
        dropped: false,
        taken: &[3],
        layers: 4,
    },
    Case {
        name: "few, as Z-Image's, pads dropped",
        captions: 64,
        dropped: true,
        taken: &[3],
        layers: 4,
    },
    Case {
        name: "few, as klein's, all rows",
        captions: 8,
        dropped: false,
        taken: &[1, 2, 3],
        layers: 4,
    },
    Case {
        name: "few, as klein's, of more layers",
        captions: 8,
        dropped: false,
        taken: &[2, 4, 6],
        layers: 8,
    },
    Case {
        name: "a whole call, as Z-Image's, pads dropped",
        captions: 524,
        dropped: true,
        taken: &[3],
        layers: 4,
    },
    Case {
        name: "a whole call, as klein's, all rows",
        captions: 34,
        dropped: false,
        taken: &[1, 2, 3],
        layers: 4,
    },
];

pub(crate) fn run(filter: &str) -> Result<(), Failure> {
    if let Some(case) = filter.strip_prefix("child ") {
        return child(&CASES[case.parse::<usize>()?]);
    }
    println!(
        "| captions | layers | hidden states | a layer in f32, MiB | outputs in f32, MiB | s | peak MiB |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (case, _) in CASES
        .iter()
        .enumerate()
        .filter(|(_, c)| c.name.contains(filter))
    {
        let mut ours = Command::new(std::env::current_exe()?);
        let output = ours
            .args(["streamed", &format!("child {case}")])
            .stderr(std::process::Stdio::inherit())
            .output()?;
        print!("{}", String::from_utf8(output.stdout)?);
    }
    Ok(())
}

fn child(case: &Case) -> Result<(), Failure> {
    let architecture = Qwen3Architecture {
        vocab_size: 151_936,
        hidden_size: 2560,
        intermediate_size: 9728,
        num_hidden_layers: case.layers,
        num_attention_heads: 32,
        num_key_value_heads: 8,
        head_dim: 128,
        hidden_act: Activation::Silu,
        rms_norm_eps: 1e-6,
        rope_theta: 1e6,
    };
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("model.safetensors");
    let tensors = qwen3_tensors(&architecture);
    write_zeros(&file, &tensors)?;
    let of_layer = tensors.iter().filter(|(t, _)| t.starts_with("layers.0."));
    let of_layer: usize = of_layer
        .map(|(_, shape)| shape.iter().product::<usize>())
        .sum();
    let network = Qwen3Network {
        architecture,
        forward: Qwen3Forward {
            hidden_layers: case.taken.to_vec(),
            final_norm: false,
            mask: EncoderMask::Pads,
            pad_rows: match case.dropped {
                true => Qwen3PadRows::Drop,
                false => Qwen3PadRows::Keep,
            },
        },
    };
    let weights = Weights::open(&[file])?.with_dtype(DType::F32);
    let encoder = TextEncoder::load(&network, &weights, Residency::Streamed)?;
    let tokens = vec![
        Tokens {
            ids: vec![5; LENGTH],
            count: COUNT,
            truncated: false,
            total: COUNT,
        };
        case.captions
    ];
    let start = Seconds::now();
    let encoded = encoder.encode(&tokens)?;
    let seconds = start.since().clock;
    let numbers = encoded.iter().filter_map(|e| e.hidden.as_ref());
    let numbers: usize = numbers.map(candle_core::Tensor::elem_count).sum();
    let mebi = |numbers: usize| numbers as f64 * 4.0 / f64::from(1 << 20);
    println!(
        "| {}: {} | {} | {} | {:.0} | {:.0} | {seconds:.1} | {:.0} |",
        case.name,
        case.captions,
        case.layers,
        case.taken.len(),
        mebi(of_layer),
        mebi(numbers),
        mib("VmHWM:")?
    );
    Ok(())
}

/// A safetensors file of these tensors in bf16, all zeros, which are not written: the file ends where they would.
fn write_zeros(path: &std::path::Path, tensors: &[(String, Vec<usize>)]) -> Result<(), Failure> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(
            name.clone(),
            serde_json::json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] }),
        );
    }
    let header = serde_json::to_vec(&header)?;
    let mut file = Vec::from((header.len() as u64).to_le_bytes());
    file.extend(&header);
    let whole = (file.len() + end) as u64;
    std::fs::write(path, file)?;
    Ok(std::fs::OpenOptions::new()
        .write(true)
        .open(path)?
        .set_len(whole)?)
}
