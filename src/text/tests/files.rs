//! The same encoder in every naming, layout and size that files have.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::{Case, Golden, captions, weights_of};
use crate::nn::weights::Weights;
use crate::text::activation::Activation;
use crate::text::clip::{ClipForward, ClipTextArchitecture, ClipTextNetwork, PooledRule};
use crate::text::spec::EncoderMask;
use crate::text::t5::{T5EncoderArchitecture, T5Forward, T5Mask, T5Network, T5PadRows};
use crate::text::{Error, Network, Residency, TextEncoder, weights_digest};

type Tensors = HashMap<String, Tensor>;

type Setting = (
    Tensors,
    Arc<dyn Network>,
    Vec<crate::text::tokenizer::Tokens>,
);

/// The case of a model in a golden file whose rules use all tensors.
fn case(golden: &Golden, name: &str) -> Case {
    let uses_all = |rules: &serde_json::Value| {
        rules["kind"] == "t5_encoder"
            || rules["projection"] == true && !rules["hidden_layer"].is_null()
    };
    golden
        .cases()
        .into_iter()
        .find(|c| c.model == name && uses_all(&c.forward))
        .expect("one")
}

/// The tensors of a model in a golden file, and a setting that uses all of them.
fn model(file: &str, name: &str) -> Setting {
    let golden = Golden::open(file);
    let case = case(&golden, name);
    let tokens = captions(&golden, &case);
    let prefix = format!("{name}/");
    let own = golden
        .tensors
        .iter()
        .filter_map(|(name, t)| Some((name.strip_prefix(&prefix)?.to_owned(), t.clone())))
        .collect();
    (own, case.network(), tokens)
}

fn renamed(tensors: &Tensors, rename: impl Fn(&str) -> String) -> Tensors {
    tensors
        .iter()
        .map(|(name, t)| (rename(name), t.clone()))
        .collect()
}

/// OpenCLIP's names: fused queries, keys and values, and its own orientation of the projection.
fn open_clip(tensors: &Tensors, layers: usize) -> Tensors {
    let mut out = Tensors::new();
    for (name, t) in tensors {
        let name = name.replace(
            "text_model.embeddings.token_embedding.weight",
            "token_embedding.weight",
        );
        let name = name.replace(
            "text_model.embeddings.position_embedding.weight",
            "positional_embedding",
        );
        let name = name.replace("text_model.final_layer_norm", "ln_final");
        let name = name.replace("text_model.encoder.layers", "transformer.resblocks");
        let name = name
            .replace("layer_norm", "ln_")
            .replace("self_attn.out_proj", "attn.out_proj");
        let name = name
            .replace("mlp.fc1", "mlp.c_fc")
            .replace("mlp.fc2", "mlp.c_proj");
        if name == "text_projection.weight" {
            let t = t.t().and_then(|t| t.contiguous()).expect("a matrix");
            out.insert("text_projection".into(), t);
        } else if !name.contains("self_attn") {
            out.insert(name, t.clone());
        }
    }
    for layer in 0..layers {
        for leaf in ["weight", "bias"] {
            let one = |n: &str| {
                &tensors[&format!("text_model.encoder.layers.{layer}.self_attn.{n}_proj.{leaf}")]
            };
            let fused = Tensor::cat(&[one("q"), one("k"), one("v")], 0).expect("cat");
            out.insert(
                format!("transformer.resblocks.{layer}.attn.in_proj_{leaf}"),
                fused,
            );
        }
    }
    out.insert(
        "logit_scale".into(),
        Tensor::zeros(1, DType::F32, &candle_core::Device::Cpu).expect("made"),
    );
    out
}

fn outputs(weights: &Weights, setting: &Setting) -> (Vec<f32>, crate::digest::Digest) {
    let (_, network, tokens) = setting;
    let encoder = TextEncoder::load(&**network, weights, Residency::Resident)
        .unwrap_or_else(|e| panic!("{:?}: {e}", weights.names()));
    let encoded = encoder.encode(tokens).expect("encodes");
    let both = encoded
        .iter()
        .flat_map(|e| [e.hidden.clone(), e.pooled.clone()])
        .flatten();
    let values = both
        .flat_map(|t| {
            t.flatten_all()
                .and_then(|t| t.to_vec1::<f32>())
                .expect("f32")
        })
        .collect();
    (
        values,
        weights_digest(&**network, weights, None).expect("digests"),
    )
}

#[test]
fn clip_is_the_same_encoder_in_every_naming() {
    for name in ["quick", "erf"] {
        let setting = model("clip.safetensors", name);
        let tensors = &setting.0;
        let expected = outputs(&weights_of(tensors), &setting);
        let layers = if name == "quick" { 3 } else { 2 };
        let flat = renamed(tensors, |n| n.replace("text_model.", ""));
        let prefixed = renamed(tensors, |n| format!("text_encoders.clip_l.transformer.{n}"));
        let raw = open_clip(tensors, layers);
        let sgm = renamed(&raw, |n| format!("conditioner.embedders.1.model.{n}"));
        let mut whole = tensors.clone();
        let other = tensors["text_model.final_layer_norm.bias"].clone();
        for extra in [
            "vision_model.embeddings.x",
            "visual_projection.weight",
            "logit_scale",
            "text_model.embeddings.position_ids",
        ] {
            whole.insert(extra.into(), other.clone());
        }
        // A whole checkpoint: another, larger tower and a denoiser beside it.
        let mut checkpoint = prefixed.clone();
        let table = Tensor::zeros((64, 24), DType::F32, &candle_core::Device::Cpu).expect("made");
        checkpoint.insert(
            "text_encoders.clip_g.transformer.text_model.embeddings.token_embedding.weight".into(),
            table,
        );
        checkpoint.insert("model.diffusion_model.x".into(), other);
        for (layout, tensors) in [flat, prefixed, raw, sgm, whole, checkpoint]
            .iter()
            .enumerate()
        {
            assert!(
                outputs(&weights_of(tensors), &setting) == expected,
                "{name}, layout {layout}"
            );
        }
    }
}

#[test]
fn t5_is_the_same_encoder_in_every_naming_and_sharding() {
    let setting = model("t5.safetensors", "v1_1");
    let tensors = &setting.0;
    let expected = outputs(&weights_of(tensors), &setting);
    let other = renamed(tensors, |n| {
        n.replace("shared.weight", "encoder.embed_tokens.weight")
    });
    let both: Tensors = tensors.clone().into_iter().chain(other.clone()).collect();
    let prefixed = renamed(tensors, |n| format!("text_encoders.t5xxl.transformer.{n}"));
    let mut whole = tensors.clone();
    for extra in [
        "decoder.block.0.layer.0.SelfAttention.q.weight",
        "lm_head.weight",
    ] {
        whole.insert(extra.into(), tensors["shared.weight"].clone());
    }
    let llama_cpp = renamed(tensors, |n| {
        let n = n.replace("shared.", "token_embd.");
        let n = n.replace("encoder.block.", "enc.blk.");
        let n = n.replace("encoder.final_layer_norm", "enc.output_norm");
        let n = n.replace("layer.0.layer_norm", "attn_norm");
        let n = n.replace("layer.1.layer_norm", "ffn_norm");
        let n = n.replace(
            "layer.0.SelfAttention.relative_attention_bias",
            "attn_rel_b",
        );
        let n = n.replace("layer.0.SelfAttention.", "attn_");
        let n = n.replace("layer.1.DenseReluDense.wi_0", "ffn_gate");
        let n = n.replace("layer.1.DenseReluDense.wi_1", "ffn_up");
        n.replace("layer.1.DenseReluDense.wo", "ffn_down")
    });
    assert!(llama_cpp.contains_key("enc.blk.0.attn_rel_b.weight"));
    let layouts = [&other, &both, &prefixed, &whole, &llama_cpp];
    for (layout, tensors) in layouts.into_iter().enumerate() {
        assert!(
            outputs(&weights_of(tensors), &setting) == expected,
            "layout {layout}"
        );
    }
    let digest =
        |tensors: &Tensors| weights_digest(&*setting.1, &weights_of(tensors), None).expect("there");
    assert_eq!(digest(&llama_cpp), digest(tensors));
    // Two shards.
    let folder = tempfile::tempdir().expect("folder");
    let names: Vec<&String> = tensors.keys().collect();
    let mut map = BTreeMap::new();
    for (shard, names) in names.chunks(names.len().div_ceil(2)).enumerate() {
        let file = format!("model-{shard}.safetensors");
        let part: Tensors = names
            .iter()
            .map(|&n| (n.clone(), tensors[n].clone()))
            .collect();
        candle_core::safetensors::save(&part, folder.path().join(&file)).expect("written");
        map.extend(names.iter().map(|&n| (n.clone(), file.clone())));
    }
    let index = serde_json::json!({"weight_map": map}).to_string();
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).expect("written");
    let sharded = Weights::open(&[folder.path().to_owned()]).expect("valid");
    assert!(outputs(&sharded, &setting) == expected);
}

#[test]
fn the_digest_covers_what_the_rules_use_and_nothing_else() {
    let (tensors, ..) = &model("clip.safetensors", "quick");
    let ClipTextNetwork {
        architecture: a,
        forward: r,
    } = &case(&Golden::open("clip.safetensors"), "quick").clip();
    let digest = |tensors: &Tensors, a: &ClipTextArchitecture, r: &ClipForward| {
        let network = ClipTextNetwork {
            architecture: a.clone(),
            forward: r.clone(),
        };
        weights_digest(&network, &weights_of(tensors), None).expect("digests")
    };
    let changed = |name: &str| {
        let mut tensors = tensors.clone();
        let t = (&tensors[name] + 1.0).expect("changed");
        tensors.insert(name.into(), t);
        tensors
    };
    let last = changed("text_model.encoder.layers.2.mlp.fc1.weight");
    let projection = changed("text_projection.weight");
    let pooled = ClipForward {
        hidden_layer: None,
        ..r.clone()
    };
    assert_ne!(digest(&last, a, &pooled), digest(tensors, a, &pooled));
    assert_ne!(digest(&projection, a, &pooled), digest(tensors, a, &pooled));
    let unprojected = ClipForward {
        projection: false,
        ..pooled
    };
    assert_eq!(
        digest(&projection, a, &unprojected),
        digest(tensors, a, &unprojected)
    );
    let penultimate = ClipForward {
        hidden_layer: Some(-2),
        pooled: PooledRule::None,
        projection: false,
        ..r.clone()
    };
    assert_eq!(
        digest(&last, a, &penultimate),
        digest(tensors, a, &penultimate)
    );
    let earlier = changed("text_model.encoder.layers.1.mlp.fc1.weight");
    assert_ne!(
        digest(&earlier, a, &penultimate),
        digest(tensors, a, &penultimate)
    );
}

/// A file with these tensors, all zero, that takes no room on the disk.
pub(super) fn sparse(
    folder: &Path,
    dtype: &str,
    tensors: &BTreeMap<String, Vec<usize>>,
) -> PathBuf {
    let element = if dtype == "F16" { 2 } else { 4 };
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += shape.iter().product::<usize>() * element;
        let entry =
            serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
    }
    let header = serde_json::to_vec(&header).expect("JSON");
    let path = folder.join("sparse.safetensors");
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(&header);
    std::fs::write(&path, &bytes).expect("written");
    let file = std::fs::File::options()
        .write(true)
        .open(&path)
        .expect("open");
    file.set_len((bytes.len() + end) as u64)
        .expect("a sparse file");
    path
}

fn full_size(name: &str) -> BTreeMap<String, Vec<usize>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/full_size.json");
    let text = std::fs::read(path).expect("read");
    let mut all: BTreeMap<String, BTreeMap<String, Vec<usize>>> =
        serde_json::from_slice(&text).expect("JSON");
    all.remove(name).expect("known")
}

fn clip(hidden_size: usize, layers: usize, heads: usize) -> ClipTextArchitecture {
    ClipTextArchitecture {
        vocab_size: 49408,
        hidden_size,
        intermediate_size: 4 * hidden_size,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        max_position_embeddings: 77,
        hidden_act: Activation::Gelu,
        layer_norm_eps: 1e-5,
        projection_dim: Some(hidden_size),
        eos_token_id: None,
    }
}

fn t5_xxl() -> T5Network {
    T5Network {
        architecture: T5EncoderArchitecture {
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
        },
        forward: T5Forward {
            mask: T5Mask::None,
            pad_rows: T5PadRows::Keep,
        },
    }
}

#[test]
fn full_size_encoders_have_their_published_parameters() {
    let folder = tempfile::tempdir().expect("folder");
    let clip = |hidden_size, layers, heads| ClipTextNetwork {
        architecture: clip(hidden_size, layers, heads),
        forward: ClipForward {
            hidden_layer: Some(-2),
            final_norm: false,
            pooled: PooledRule::ArgmaxId,
            projection: true,
            mask: EncoderMask::None,
            chunks: None,
        },
    };
    let check = |name: &str, network: &dyn Network, expected: usize| {
        let file = full_size(name);
        let weights = Weights::open(&[sparse(folder.path(), "F16", &file)]).expect("valid");
        let located = network
            .locate(&weights)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let sizes = located
            .tensors
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>());
        assert_eq!(sizes.sum::<usize>(), expected, "{name}");
        assert_eq!(
            located.tensors.len(),
            file.len(),
            "{name}: every tensor of the file is used"
        );
    };
    check("clip_l", &clip(768, 12, 12), 123_060_480 + 589_824);
    check("clip_g", &clip(1280, 32, 20), 693_021_440 + 1_638_400);
    check("t5_xxl", &t5_xxl(), 4_762_310_656);
}

#[cfg(target_os = "linux")]
#[test]
fn t5_xxl_opens_without_its_memory() {
    fn resident_bytes() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
        let line = status
            .lines()
            .find(|l| l.starts_with("VmRSS:"))
            .expect("a line");
        line.split_whitespace()
            .nth(1)
            .and_then(|kb| kb.parse::<usize>().ok())
            .expect("a number")
            * 1024
    }
    let folder = tempfile::tempdir().expect("folder");
    let path = sparse(folder.path(), "F32", &full_size("t5_xxl"));
    assert_eq!(
        std::fs::metadata(&path).expect("there").len() / 1_000_000_000,
        19
    );
    let before = resident_bytes();
    let weights = Weights::open(&[path]).expect("valid");
    let encoder = TextEncoder::load(&t5_xxl(), &weights, Residency::Streamed).expect("loads");
    let tensor = weights
        .get(
            &[4096, 4096],
            "encoder.block.23.layer.0.SelfAttention.k.weight",
        )
        .expect("reads");
    let grown = resident_bytes().saturating_sub(before);
    drop((tensor, encoder));
    // One layer's keys are 67 MB, in the map and as a tensor.
    assert!(grown < 512 << 20, "{grown} bytes");
}

#[test]
fn of_two_equal_encoders_one_must_be_named() {
    let (tensors, network, _) = model("t5.safetensors", "v1_1");
    let two: Tensors = renamed(&tensors, |n| format!("a.{n}"))
        .into_iter()
        .chain(renamed(&tensors, |n| format!("b.{n}")))
        .collect();
    let weights = weights_of(&two);
    let load = |weights: &Weights| TextEncoder::load(&*network, weights, Residency::Resident);
    match load(&weights) {
        Err(error @ Error::Ambiguous { .. }) => {
            let text = error.to_string();
            assert!(
                text.ends_with(
                    "has more than one T5 encoder (below `a.`, `b.`): name the one that is meant"
                ),
                "{text}"
            );
        }
        other => panic!("{:?}", other.err()),
    }
    load(&weights.pp("a")).expect("named");
}
