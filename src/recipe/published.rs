//! The architectures of the encoders that the base models were published with, for checkpoints in single files
//! (`clip_l.safetensors`, `t5xxl_fp16.safetensors`), which carry no configuration.
//!
//! Numbers: Stability-AI/sd3.5 `sd3_infer.py`, open_clip's `ViT-bigG-14.json`, google/t5-v1_1-xxl's `config.json`.

use super::spec::{Activation, Architecture, ClipTextArchitecture, T5EncoderArchitecture};

/// The published encoder of a recipe's slot: `clip_l` (without `text_projection`, as its released file is),
/// `clip_g`, `t5` (T5 v1.1 XXL). `None` for other slots.
pub fn published(slot: &str) -> Option<Architecture> {
    match slot {
        "clip_l" => Some(Architecture::ClipText(ClipTextArchitecture {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            hidden_act: Activation::QuickGelu,
            projection_dim: None,
            ..clip_g()
        })),
        "clip_g" => Some(Architecture::ClipText(clip_g())),
        "t5" => Some(Architecture::T5Encoder(T5EncoderArchitecture {
            vocab_size: 32128,
            d_model: 4096,
            d_kv: 64,
            d_ff: 10240,
            num_layers: 24,
            num_heads: 64,
            activation: Activation::GeluNew,
            is_gated_act: true,
            layer_norm_epsilon: 1e-6,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
        })),
        _ => None,
    }
}

fn clip_g() -> ClipTextArchitecture {
    ClipTextArchitecture {
        vocab_size: 49408,
        hidden_size: 1280,
        intermediate_size: 5120,
        num_hidden_layers: 32,
        num_attention_heads: 20,
        max_position_embeddings: 77,
        hidden_act: Activation::Gelu,
        layer_norm_eps: 1e-5,
        projection_dim: Some(1280),
        eos_token_id: Some(2),
    }
}
