//! Encode throughput against transformers, eager and compiled, OpenVINO and ONNX Runtime: the same random weights, token ids, precision and cores, in
//! turns.
//!
//! `PLUMB_PYTHON=python cargo bench -- encode [FILTER]` prints one table. The Python needs torch and
//! transformers; openvino, and onnxruntime with onnxscript, for those peers. Errors are compared too, so that all sides are known to do the same work.

use std::path::Path;
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use plumb::nn::Instructions;
use plumb::nn::weights::Weights;
use plumb::text::activation::Activation;
use plumb::text::clip::{ClipForward, ClipTextArchitecture, ClipTextNetwork, PooledRule};
use plumb::text::qwen3::{self, Qwen3Architecture, Qwen3Forward, Qwen3Network};
use plumb::text::spec::EncoderMask;
use plumb::text::t5::umt5::{Umt5EncoderArchitecture, Umt5Network};
use plumb::text::t5::{T5EncoderArchitecture, T5Forward, T5Mask, T5Network, T5PadRows};
use plumb::text::tokenizer::Tokens;
use plumb::text::{Encoded, Network, Residency, TextEncoder};
use rayon::prelude::*;

use crate::turns::{Failure, Seconds, Side, Turns, largest_difference, turns};

/// Token counts, specials included, of 16 captions: short labels to long sentences.
const COUNTS: [usize; 16] = [
    9, 12, 14, 17, 18, 21, 23, 26, 28, 31, 34, 38, 43, 49, 58, 71,
];
/// Turns of each side, after one that does not count.
const TURNS: usize = 5;

struct Bench {
    name: &'static str,
    network: Box<dyn Network>,
    tensors: Vec<(String, Vec<usize>)>,
    masked: bool,
    /// Tokens per caption, pads included.
    length: usize,
    eos: u32,
    pad: u32,
}

/// What a user would run instead.
const WAYS: [&str; 4] = ["eager", "compiled", "openvino", "onnx"];

/// Runs the benches whose name and precision, as `T5 base, 77, pads attended, bf16`, contain `filter`.
pub(crate) fn run(filter: &str) -> Result<(), Failure> {
    let python = std::env::var("PLUMB_PYTHON").unwrap_or_else(|_| "python3".into());
    let (captions, threads) = (COUNTS.len(), threads());
    println!(
        "{captions} captions, {threads} threads, instructions {}; medians of {} turns; a ratio (least..most of turns) above 1 is in plumb's \
         favour; errors are the largest of any output against f64, in units of its root mean square",
        Instructions::used(),
        turns(TURNS)
    );
    println!(
        "| encoder | plumb s | peer | peer s | ratio | ratio of processor time | plumb's error | peer's error |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for bench in benches() {
        for dtype in [DType::F32, DType::BF16] {
            let label = format!("{}, {}", bench.name, dtype.as_str());
            if label.contains(filter) {
                bench.run(&python, dtype, &label)?;
            }
        }
    }
    Ok(())
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn benches() -> Vec<Bench> {
    let clip = |name, width, layers, heads, hidden_act, pad| {
        let architecture = ClipTextArchitecture {
            vocab_size: 49408,
            hidden_size: width,
            intermediate_size: 4 * width,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            max_position_embeddings: 77,
            hidden_act,
            layer_norm_eps: 1e-5,
            projection_dim: Some(width),
            eos_token_id: None,
        };
        let forward = ClipForward {
            hidden_layer: Some(-2),
            final_norm: false,
            pooled: PooledRule::ArgmaxId,
            projection: true,
            mask: EncoderMask::None,
            chunks: None,
        };
        Bench {
            name,
            tensors: clip_tensors(&architecture),
            network: Box::new(ClipTextNetwork {
                architecture,
                forward,
            }),
            masked: false,
            length: 77,
            eos: 49407,
            pad,
        }
    };
    let sizes = |vocab_size, (d_model, d_ff, num_layers, num_heads)| T5EncoderArchitecture {
        vocab_size,
        d_model,
        d_kv: 64,
        d_ff,
        num_layers,
        num_heads,
        activation: Activation::GeluNew,
        is_gated_act: true,
        layer_norm_epsilon: 1e-6,
        relative_attention_num_buckets: 32,
        relative_attention_max_distance: 128,
    };
    let t5 = |name, of, length, masked| {
        let architecture = sizes(32128, of);
        let (mask, pad_rows) = match masked {
            true => (T5Mask::Pads, T5PadRows::Drop),
            false => (T5Mask::None, T5PadRows::Keep),
        };
        Bench {
            name,
            tensors: t5_tensors(&architecture),
            network: Box::new(T5Network {
                architecture,
                forward: T5Forward { mask, pad_rows },
            }),
            masked,
            length,
            eos: 1,
            pad: 0,
        }
    };
    let umt5 = |name, of, length| {
        let architecture = sizes(256_384, of);
        let mut tensors = t5_tensors(&architecture);
        let (first, shape) = tensors[1].clone();
        let of_block = |block| first.replace("block.0", &format!("block.{block}"));
        tensors.extend((1..architecture.num_layers).map(|block| (of_block(block), shape.clone())));
        Bench {
            name,
            tensors,
            network: Box::new(Umt5Network {
                architecture: Umt5EncoderArchitecture(architecture),
                forward: T5Forward {
                    mask: T5Mask::Pads,
                    pad_rows: T5PadRows::Drop,
                },
            }),
            masked: true,
            length,
            eos: 1,
            pad: 0,
        }
    };
    let qwen3 = |name, masked| {
        // Qwen3-0.6B's, as `transformers` has its defaults for the rest.
        let architecture = Qwen3Architecture {
            vocab_size: 151_936,
            hidden_size: 1024,
            intermediate_size: 3072,
            num_hidden_layers: 28,
            num_attention_heads: 16,
            num_key_value_heads: 8,
            head_dim: 128,
            hidden_act: Activation::Silu,
            rms_norm_eps: 1e-6,
            rope_theta: 1e6,
        };
        let forward = Qwen3Forward {
            hidden_layers: vec![27],
            final_norm: false,
            mask: EncoderMask::Pads,
            pad_rows: match masked {
                true => qwen3::Qwen3PadRows::Drop,
                false => qwen3::Qwen3PadRows::Keep,
            },
        };
        Bench {
            name,
            tensors: qwen3_tensors(&architecture),
            network: Box::new(Qwen3Network {
                architecture,
                forward,
            }),
            masked: true,
            length: 77,
            eos: 151_643,
            pad: 151_643,
        }
    };
    let (base, large) = ((768, 2048, 12, 12), (1024, 2816, 24, 16));
    vec![
        clip("CLIP-L, 77", 768, 12, 12, Activation::QuickGelu, 49407),
        clip("CLIP-G, 77", 1280, 32, 20, Activation::Gelu, 0),
        t5("T5 base, 77, pads attended", base, 77, false),
        t5("T5 base, 256, pads attended", base, 256, false),
        t5("T5 base, 256, pads masked", base, 256, true),
        t5("T5 large, 77, pads attended", large, 77, false),
        t5("T5 large, 256, pads attended", large, 256, false),
        t5("T5 large, 256, pads masked", large, 256, true),
        umt5("UMT5 base, 512, pads masked", base, 512),
        qwen3("Qwen3 0.6B, 77, pads dropped", true),
        qwen3("Qwen3 0.6B, 77, pads kept", false),
    ]
}

impl Bench {
    fn run(&self, python: &str, dtype: DType, label: &str) -> Result<(), Failure> {
        let folder = tempfile::tempdir()?;
        let model = folder.path().join("model.safetensors");
        write_weights(&model, &self.tensors)?;
        let tokens = self.tokens();
        self.write_setting(folder.path(), &tokens)?;
        let mut peers = Vec::new();
        for way in WAYS {
            let mut peer = peer(python, folder.path(), dtype, way)?;
            match peer.line()?.split_once(' ') {
                Some(("ready", version)) => peers.push((way, version.to_owned(), peer)),
                Some(("absent", what)) => eprintln!("{label}: no {what}"),
                said => return Err(format!("the peer did not start: {said:?}").into()),
            }
        }
        let weights = Weights::open(&[model])?.with_dtype(dtype);
        let encoder = TextEncoder::load(&*self.network, &weights, Residency::Resident)?;
        let ours = encoder.encode(&tokens)?;
        let truth = outputs(folder.path(), "truth")?;
        let error = largest_error(&ours, &truth, |_, _, ours| Ok(ours.clone()))?;
        // Ours has run once for the comparison; theirs do here.
        for (_, _, peer) in &mut peers {
            peer.turn()?;
        }
        let mut measured: Vec<Turns> = peers.iter().map(|_| Turns::default()).collect();
        for _ in 0..turns(TURNS) {
            for ((_, _, peer), measured) in peers.iter_mut().zip(&mut measured) {
                let start = Seconds::now();
                encoder.encode(&tokens)?;
                measured.push(start.since(), peer.turn()?);
            }
        }
        for ((way, version, _), measured) in peers.iter().zip(&measured) {
            let [a, b] = measured.seconds();
            let theirs = outputs(folder.path(), way)?;
            let their_error = largest_error(&ours, &truth, |output, row, ours| {
                theirs[output].get(row)?.narrow(0, 0, ours.dim(0)?)
            })?;
            println!(
                "| {label} | {a:.3} | {version}, {way} | {b:.3} | {} | {} | {error:.1e} | {their_error:.1e} |",
                measured.clock(),
                measured.processor(),
            );
        }
        Ok(())
    }

    fn tokens(&self) -> Vec<Tokens> {
        let vocab = 30_000;
        let caption = |(i, &count): (usize, &usize)| {
            let word = |j: usize| u32::try_from((i * 7919 + j * 104_729) % vocab + 2).unwrap_or(2);
            let mut ids: Vec<u32> = (0..count - 1).map(word).collect();
            ids.push(self.eos);
            ids.resize(self.length, self.pad);
            Tokens {
                ids,
                count,
                truncated: false,
                total: count,
            }
        };
        COUNTS.iter().enumerate().map(caption).collect()
    }

    fn write_setting(&self, folder: &Path, tokens: &[Tokens]) -> Result<(), Failure> {
        let mut architecture = self.network.architecture().to_json();
        architecture["kind"] = self.network.kind().name().into();
        let setting = serde_json::json!({
            "architecture": architecture,
            "masked": self.masked,
            "ids": tokens.iter().map(|t| &t.ids).collect::<Vec<_>>(),
            "counts": tokens.iter().map(|t| t.count).collect::<Vec<_>>(),
        });
        Ok(std::fs::write(
            folder.join("setting.json"),
            setting.to_string(),
        )?)
    }
}

fn peer(python: &str, folder: &Path, dtype: DType, way: &str) -> Result<Side, Failure> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peer/encode_transformers.py");
    let mut command = Command::new(python);
    command.arg(script).arg(folder).arg(threads().to_string());
    Side::start(command.arg(dtype.as_str()).arg(way))
}

/// What a peer wrote: hidden states, and pooled vectors if there are any, `[captions, ..]`.
fn outputs(folder: &Path, name: &str) -> Result<Vec<Tensor>, Failure> {
    let path = folder.join(format!("{name}.safetensors"));
    let mut named = candle_core::safetensors::load(path, &Device::Cpu)?;
    Ok(["0", "1"]
        .iter()
        .filter_map(|name| named.remove(*name))
        .collect())
}

/// The largest error of what `found` gives for each row of `ours`' outputs against `truth`, relative to the root mean square of that.
/// Ours drops pad rows where they are masked: those are not compared.
fn largest_error(
    ours: &[Encoded],
    truth: &[Tensor],
    found: impl Fn(usize, usize, &Tensor) -> candle_core::Result<Tensor>,
) -> Result<f32, Failure> {
    let mut worst = 0f32;
    for (row, encoded) in ours.iter().enumerate() {
        let outputs = [&encoded.hidden, &encoded.pooled];
        for (output, (ours, truth)) in outputs.into_iter().flatten().zip(truth).enumerate() {
            let truth = truth.get(row)?.narrow(0, 0, ours.dim(0)?)?;
            let found = found(output, row, ours)?;
            let rms = truth.sqr()?.mean_all()?.sqrt()?.to_scalar::<f32>()?;
            worst = worst.max(largest_difference(&found, &truth)? / rms);
        }
    }
    Ok(worst)
}

pub(crate) fn clip_tensors(a: &ClipTextArchitecture) -> Vec<(String, Vec<usize>)> {
    let (c, i) = (a.hidden_size, a.intermediate_size);
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        (
            "text_model.embeddings.token_embedding.weight".into(),
            vec![a.vocab_size, c],
        ),
        (
            "text_model.embeddings.position_embedding.weight".into(),
            vec![a.max_position_embeddings, c],
        ),
        ("text_model.final_layer_norm.weight".into(), vec![c]),
        ("text_model.final_layer_norm.bias".into(), vec![c]),
        ("text_projection.weight".into(), vec![c, c]),
    ];
    for layer in 0..a.num_hidden_layers {
        for (name, shape) in [
            ("self_attn.q_proj", vec![c, c]),
            ("self_attn.k_proj", vec![c, c]),
            ("self_attn.v_proj", vec![c, c]),
            ("self_attn.out_proj", vec![c, c]),
            ("mlp.fc1", vec![i, c]),
            ("mlp.fc2", vec![c, i]),
            ("layer_norm1", vec![c]),
            ("layer_norm2", vec![c]),
        ] {
            let name = format!("text_model.encoder.layers.{layer}.{name}");
            tensors.push((format!("{name}.bias"), shape[..1].to_vec()));
            tensors.push((format!("{name}.weight"), shape));
        }
    }
    tensors
}

pub(crate) fn t5_tensors(a: &T5EncoderArchitecture) -> Vec<(String, Vec<usize>)> {
    let (c, f, inner) = (a.d_model, a.d_ff, a.num_heads * a.d_kv);
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        ("shared.weight".into(), vec![a.vocab_size, c]),
        (
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight".into(),
            vec![a.relative_attention_num_buckets, a.num_heads],
        ),
        ("encoder.final_layer_norm.weight".into(), vec![c]),
    ];
    for block in 0..a.num_layers {
        for (name, shape) in [
            ("0.layer_norm", vec![c]),
            ("0.SelfAttention.q", vec![inner, c]),
            ("0.SelfAttention.k", vec![inner, c]),
            ("0.SelfAttention.v", vec![inner, c]),
            ("0.SelfAttention.o", vec![c, inner]),
            ("1.layer_norm", vec![c]),
            ("1.DenseReluDense.wi_0", vec![f, c]),
            ("1.DenseReluDense.wi_1", vec![f, c]),
            ("1.DenseReluDense.wo", vec![c, f]),
        ] {
            tensors.push((format!("encoder.block.{block}.layer.{name}.weight"), shape));
        }
    }
    tensors
}

pub(crate) fn qwen3_tensors(a: &Qwen3Architecture) -> Vec<(String, Vec<usize>)> {
    let (c, f, d) = (a.hidden_size, a.intermediate_size, a.head_dim);
    let (queries, keys) = (a.num_attention_heads * d, a.num_key_value_heads * d);
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        ("embed_tokens.weight".into(), vec![a.vocab_size, c]),
        ("norm.weight".into(), vec![c]),
    ];
    for layer in 0..a.num_hidden_layers {
        for (name, shape) in [
            ("input_layernorm", vec![c]),
            ("self_attn.q_proj", vec![queries, c]),
            ("self_attn.k_proj", vec![keys, c]),
            ("self_attn.v_proj", vec![keys, c]),
            ("self_attn.q_norm", vec![d]),
            ("self_attn.k_norm", vec![d]),
            ("self_attn.o_proj", vec![c, queries]),
            ("post_attention_layernorm", vec![c]),
            ("mlp.gate_proj", vec![f, c]),
            ("mlp.up_proj", vec![f, c]),
            ("mlp.down_proj", vec![c, f]),
        ] {
            tensors.push((format!("layers.{layer}.{name}.weight"), shape));
        }
    }
    tensors
}

/// Random weights in f16, of a size that keeps activations near 1.
pub(crate) fn write_weights(path: &Path, tensors: &[(String, Vec<usize>)]) -> Result<(), Failure> {
    let made: Vec<(String, Tensor)> = tensors
        .par_iter()
        .enumerate()
        .map(|(index, (name, shape))| {
            let gain = name.ends_with("weight") || name.ends_with("gamma");
            let norm = name.contains("norm") && gain;
            let embedding = name.contains("embed") || name.starts_with("shared");
            let scale = match shape.as_slice() {
                _ if embedding => 1.0,
                // Uniform in +-sqrt(3 / inputs) has the variance 1 / inputs: sums keep the size of their terms.
                [_, inputs] => (3.0 / *inputs as f32).sqrt(),
                // A convolution over time.
                [_, window @ ..] if window.len() == 4 => {
                    (3.0 / window.iter().product::<usize>() as f32).sqrt()
                }
                _ => 0.1,
            };
            // T5 does not scale its scores; its query weights are small instead.
            let scale = if name.ends_with("SelfAttention.q.weight") {
                scale / 8.0
            } else {
                scale
            };
            // A generator for each tensor, so that they are made in parallel.
            let mut state = (index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let mut next = || {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                // The upper bits: the lower ones of a linear congruential generator repeat early.
                let unit = (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
                half::f16::from_f32(scale * unit + f32::from(u8::from(norm)))
            };
            let data: Vec<half::f16> = (0..shape.iter().product()).map(|_| next()).collect();
            Ok((
                name.clone(),
                Tensor::from_vec(data, shape.as_slice(), &Device::Cpu)?,
            ))
        })
        .collect::<candle_core::Result<_>>()?;
    candle_core::safetensors::save(&made.into_iter().collect(), path)?;
    Ok(())
}
