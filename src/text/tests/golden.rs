//! Against transformers: `tools/goldens/encoders.py` makes the files and says, case by case, what they hold.

use candle_core::DType;

use super::{Golden, captions, compare, encode};
use crate::text::activation::Activation;
use crate::text::clip::{ClipForward, ClipTextArchitecture, ClipTextNetwork, PooledRule};
use crate::text::spec::EncoderMask;
use crate::text::{Encoded, Residency, TextEncoder};

/// Largest difference to transformers, relative to the root mean square of the tensor.
const TOLERANCE: f32 = 1e-5;

fn check(file: &str) {
    let golden = Golden::open(file);
    let mut worst = 0f32;
    for (index, case) in golden.cases().iter().enumerate() {
        let tokens = captions(&golden, case);
        for residency in [Residency::Resident, Residency::Streamed] {
            let weights = golden.weights(&case.model);
            let loaded = TextEncoder::load(&*case.network(), &weights, residency);
            let encoder = loaded.unwrap_or_else(|e| panic!("case {index}: {e}"));
            let encoded = encoder
                .encode(&tokens)
                .unwrap_or_else(|e| panic!("case {index}: {e}"));
            let pad_rows = case.forward["pad_rows"].as_str();
            for (row, (encoded, tokens)) in encoded.iter().zip(&tokens).enumerate() {
                let what = |output: &str| {
                    format!(
                        "{file} case {index} ({}), caption {row}: {output}",
                        case.model
                    )
                };
                assert_eq!(
                    encoded.hidden.is_some(),
                    case.hidden.is_some(),
                    "{}",
                    what("hidden")
                );
                if let (Some(found), Some(name)) = (&encoded.hidden, &case.hidden) {
                    let rows = match pad_rows {
                        Some("drop") => tokens.count,
                        Some("one") => tokens.ids.len().min(tokens.count + 1),
                        _ => tokens.ids.len(),
                    };
                    let expected = golden
                        .row(name, row)
                        .narrow(0, 0, rows)
                        .expect("as many rows");
                    worst = worst.max(compare(found, &expected, TOLERANCE, &what("hidden")));
                }
                assert_eq!(
                    encoded.pooled.is_some(),
                    case.pooled.is_some(),
                    "{}",
                    what("pooled")
                );
                if let (Some(found), Some(name)) = (&encoded.pooled, &case.pooled) {
                    let expected = golden.row(name, row);
                    worst = worst.max(compare(found, &expected, TOLERANCE, &what("pooled")));
                }
            }
        }
    }
    println!("{file}: largest relative difference {worst:.1e}");
}

#[test]
fn clip_equals_transformers_for_every_knob() {
    check("clip.safetensors");
}

#[test]
fn t5_equals_transformers_for_every_knob() {
    check("t5.safetensors");
}

#[test]
fn qwen3_equals_transformers_for_every_knob() {
    check("qwen3.safetensors");
}

#[test]
fn umt5_equals_transformers_for_every_knob() {
    check("umt5.safetensors");
}

/// The names of `wan/modules/t5.py` in Wan-Video/Wan2.1, of `models_t5_umt5-xxl-enc-bf16`.
#[test]
fn umt5_under_the_names_of_wans_code_gives_the_same() {
    let golden = Golden::open("umt5.safetensors");
    let case = golden.cases().remove(0);
    let named = |name: &str| {
        let parts = [
            ("shared", "token_embedding"),
            ("encoder.final_layer_norm", "norm"),
            ("encoder.block", "blocks"),
            (".layer.0.layer_norm", ".norm1"),
            (
                ".layer.0.SelfAttention.relative_attention_bias",
                ".pos_embedding.embedding",
            ),
            (".layer.0.SelfAttention", ".attn"),
            (".layer.1.layer_norm", ".norm2"),
            (".layer.1.DenseReluDense.wi_0", ".ffn.gate.0"),
            (".layer.1.DenseReluDense.wi_1", ".ffn.fc1"),
            (".layer.1.DenseReluDense.wo", ".ffn.fc2"),
        ];
        parts.iter().fold(name.to_owned(), |name, (theirs, wan)| {
            name.replace(theirs, wan)
        })
    };
    let prefix = format!("{}/", case.model);
    let tensors: std::collections::HashMap<_, _> = (golden.tensors.iter())
        .filter_map(|(name, t)| Some((named(name.strip_prefix(&prefix)?), t.clone())))
        .collect();
    let tokens = captions(&golden, &case);
    let network = case.network();
    let renamed = encode(&*network, &super::weights_of(&tensors), &tokens);
    let own = encode(&*network, &golden.weights(&case.model), &tokens);
    assert_eq!(bits(&renamed[0]), bits(&own[0]));
}

#[test]
fn t5_equals_transformers_for_every_mask() {
    check("t5_masks.safetensors");
}

fn bits(encoded: &Encoded) -> Vec<u32> {
    let both = [&encoded.hidden, &encoded.pooled];
    let flat = |t: &candle_core::Tensor| {
        t.flatten_all()
            .and_then(|t| t.to_dtype(DType::F32)?.to_vec1::<f32>())
            .expect("f32")
    };
    both.into_iter()
        .flatten()
        .flat_map(flat)
        .map(f32::to_bits)
        .collect()
}

#[test]
fn a_caption_in_any_batch_equals_the_caption_alone_bit_for_bit() {
    for file in [
        "clip.safetensors",
        "t5.safetensors",
        "t5_masks.safetensors",
        "qwen3.safetensors",
        "umt5.safetensors",
    ] {
        let golden = Golden::open(file);
        for case in golden.cases() {
            let tokens = captions(&golden, &case);
            let weights = golden.weights(&case.model);
            let load = |residency| TextEncoder::load(&*case.network(), &weights, residency);
            let encoder = load(Residency::Resident).expect("loads");
            let alone: Vec<_> = tokens
                .iter()
                .map(|t| bits(&encoder.encode(std::slice::from_ref(t)).expect("encodes")[0]))
                .collect();
            let check = |encoder: &TextEncoder, order: &[usize]| {
                let batch: Vec<_> = order.iter().map(|&i| tokens[i].clone()).collect();
                let encoded = encoder.encode(&batch).expect("encodes");
                for (encoded, &i) in encoded.iter().zip(order) {
                    assert!(
                        bits(encoded) == alone[i],
                        "{file} {}: caption {i} of {order:?}",
                        case.model
                    );
                }
            };
            let all: Vec<usize> = (0..tokens.len()).collect();
            let reversed: Vec<usize> = all.iter().rev().copied().collect();
            check(&encoder, &all);
            check(&encoder, &reversed);
            // Many rows, several batches.
            let many: Vec<usize> = all.iter().cycle().take(all.len() * 40).copied().collect();
            check(&encoder, &many);
            check(&load(Residency::Streamed).expect("loads"), &all);
        }
    }
}

/// Every knob that the goldens vary changes some output, so that a knob that did nothing would be seen.
#[test]
fn every_knob_changes_the_numbers() {
    let golden = Golden::open("clip.safetensors");
    let case = golden
        .cases()
        .into_iter()
        .find(|c| c.hidden.is_some() && c.pooled.is_some())
        .expect("one");
    let a = case.clip().architecture;
    let tokens = captions(&golden, &case);
    let run = |a: &ClipTextArchitecture, r: &ClipForward| {
        let weights = golden.weights(&case.model);
        let network = ClipTextNetwork {
            architecture: a.clone(),
            forward: r.clone(),
        };
        encode(&network, &weights, &tokens)
            .iter()
            .flat_map(bits)
            .collect::<Vec<_>>()
    };
    let r = ClipForward {
        hidden_layer: Some(-2),
        final_norm: false,
        pooled: PooledRule::ArgmaxId,
        projection: true,
        mask: EncoderMask::None,
        chunks: None,
    };
    let a = ClipTextArchitecture {
        projection_dim: Some(16),
        eos_token_id: Some(62),
        ..a
    };
    let mut seen = vec![run(&a, &r)];
    let architectures = [
        ClipTextArchitecture {
            hidden_act: Activation::Gelu,
            ..a.clone()
        },
        ClipTextArchitecture {
            num_attention_heads: 4,
            ..a.clone()
        },
        ClipTextArchitecture {
            layer_norm_eps: 1e-3,
            ..a.clone()
        },
    ];
    seen.extend(architectures.iter().map(|a| run(a, &r)));
    let rules = [
        ClipForward {
            hidden_layer: Some(-1),
            ..r.clone()
        },
        ClipForward {
            final_norm: true,
            ..r.clone()
        },
        ClipForward {
            pooled: PooledRule::FirstEos,
            ..r.clone()
        },
        ClipForward {
            projection: false,
            ..r.clone()
        },
        ClipForward {
            mask: EncoderMask::Pads,
            ..r.clone()
        },
    ];
    seen.extend(rules.iter().map(|r| run(&a, r)));
    for (i, one) in seen.iter().enumerate() {
        for other in &seen[i + 1..] {
            assert!(one != other, "knob {i} changes nothing");
        }
    }
}

/// f16 takes the path of devices without our kernels: other operations, other types. bf16 has products of its own.
#[test]
fn half_precision_is_near_f32() {
    for (dtype, tolerance) in [(DType::F16, 0.02), (DType::BF16, 0.15)] {
        for file in [
            "clip.safetensors",
            "t5.safetensors",
            "t5_masks.safetensors",
            "qwen3.safetensors",
        ] {
            let golden = Golden::open(file);
            for case in golden.cases().iter().step_by(4) {
                let tokens = captions(&golden, case);
                let weights = golden.weights(&case.model).with_dtype(dtype);
                let encoded = encode(&*case.network(), &weights, &tokens);
                for (row, encoded) in encoded.iter().enumerate() {
                    if dtype == DType::BF16 {
                        let alone = encode(&*case.network(), &weights, &tokens[row..=row]);
                        assert!(
                            bits(&alone[0]) == bits(encoded),
                            "caption {row} alone differs"
                        );
                    }
                    let outputs = [
                        (&encoded.hidden, &case.hidden),
                        (&encoded.pooled, &case.pooled),
                    ];
                    for (found, name) in outputs {
                        let (Some(found), Some(name)) = (found, name) else {
                            continue;
                        };
                        let expected = golden
                            .row(name, row)
                            .narrow(0, 0, found.dims()[0])
                            .expect("rows");
                        assert_eq!(found.dtype(), dtype);
                        let found = found.to_dtype(DType::F32).expect("f32");
                        compare(
                            &found,
                            &expected,
                            tolerance,
                            &format!("{name} in {dtype:?}"),
                        );
                    }
                }
            }
        }
    }
}
