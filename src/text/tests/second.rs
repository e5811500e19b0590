//! Against candle-transformers, an implementation by other people in the same language.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::clip::text_model::{
    Activation, ClipTextConfig, ClipTextTransformer,
};
use candle_transformers::models::t5;

use super::{Golden, captions, compare, encode};
use crate::text::clip::{ClipForward, ClipTextArchitecture, ClipTextNetwork, PooledRule};
use crate::text::spec::EncoderMask;
use crate::text::t5::{T5Forward, T5Mask, T5Network, T5PadRows};

/// Both compute in f32 and sum in different orders.
const TOLERANCE: f32 = 1e-5;

fn builder(golden: &Golden, model: &str) -> VarBuilder<'static> {
    let prefix = format!("{model}/");
    let tensors = golden.tensors.iter();
    let own =
        tensors.filter_map(|(name, t)| Some((name.strip_prefix(&prefix)?.to_owned(), t.clone())));
    VarBuilder::from_tensors(own.collect(), DType::F32, &Device::Cpu)
}

fn ids(tokens: &[crate::text::tokenizer::Tokens]) -> Tensor {
    let rows: Vec<Vec<u32>> = tokens.iter().map(|t| t.ids.clone()).collect();
    Tensor::new(rows, &Device::Cpu).expect("equal lengths")
}

#[test]
fn clip_equals_candle_transformers() {
    let golden = Golden::open("clip.safetensors");
    let case = golden
        .cases()
        .into_iter()
        .find(|c| c.model == "quick")
        .expect("one");
    let a = case.clip().architecture;
    let tokens = captions(&golden, &case);
    let config = ClipTextConfig {
        vocab_size: a.vocab_size,
        embed_dim: a.hidden_size,
        activation: Activation::QuickGelu,
        intermediate_size: a.intermediate_size,
        max_position_embeddings: a.max_position_embeddings,
        pad_with: None,
        num_hidden_layers: a.num_hidden_layers,
        num_attention_heads: a.num_attention_heads,
        projection_dim: 0,
    };
    let theirs = ClipTextTransformer::new(builder(&golden, "quick").pp("text_model"), &config)
        .expect("loads");
    let hidden = theirs
        .forward_with_mask(&ids(&tokens), usize::MAX)
        .expect("runs");
    let pooled = candle_nn::Module::forward(&theirs, &ids(&tokens)).expect("runs");

    let network = ClipTextNetwork {
        architecture: ClipTextArchitecture {
            projection_dim: None,
            eos_token_id: None,
            ..a
        },
        forward: ClipForward {
            hidden_layer: Some(-1),
            final_norm: true,
            pooled: PooledRule::ArgmaxId,
            projection: false,
            mask: EncoderMask::None,
            chunks: None,
        },
    };
    let ours = encode(&network, &golden.weights("quick"), &tokens);
    for (row, ours) in ours.iter().enumerate() {
        let expected = |t: &Tensor| t.get(row).expect("as many rows");
        compare(
            ours.hidden.as_ref().expect("kept"),
            &expected(&hidden),
            TOLERANCE,
            "hidden",
        );
        compare(
            ours.pooled.as_ref().expect("taken"),
            &expected(&pooled),
            TOLERANCE,
            "pooled",
        );
    }
}

#[test]
fn t5_equals_candle_transformers() {
    let golden = Golden::open("t5.safetensors");
    let case = golden
        .cases()
        .into_iter()
        .find(|c| c.model == "v1_1" && c.ids == "v1_1.ids")
        .expect("one");
    let a = case.t5().architecture;
    let tokens = captions(&golden, &case);
    let config: t5::Config = serde_json::from_value(serde_json::json!({
        "vocab_size": a.vocab_size, "d_model": a.d_model, "d_kv": a.d_kv, "d_ff": a.d_ff,
        "num_layers": a.num_layers, "num_heads": a.num_heads, "dropout_rate": 0.0, "initializer_factor": 1.0,
        "relative_attention_num_buckets": a.relative_attention_num_buckets,
        "relative_attention_max_distance": a.relative_attention_max_distance,
        "layer_norm_epsilon": a.layer_norm_epsilon, "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": false, "pad_token_id": 0, "eos_token_id": 1,
    }))
    .expect("a configuration");
    let mut theirs = t5::T5EncoderModel::load(builder(&golden, "v1_1"), &config).expect("loads");
    let hidden = theirs.forward(&ids(&tokens)).expect("runs");

    let network = T5Network {
        architecture: a,
        forward: T5Forward {
            mask: T5Mask::None,
            pad_rows: T5PadRows::Keep,
        },
    };
    let ours = encode(&network, &golden.weights("v1_1"), &tokens);
    for (row, ours) in ours.iter().enumerate() {
        let expected = hidden.get(row).expect("as many rows");
        compare(
            ours.hidden.as_ref().expect("kept"),
            &expected,
            TOLERANCE,
            "hidden",
        );
    }
}
