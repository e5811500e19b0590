//! Everything that does not fit gets one clear line.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};

use super::files::sparse;
use super::{Golden, captions, weights_of};
use crate::nn::weights::Weights;
use crate::text::clip::{ClipForward, ClipTextArchitecture, ClipTextNetwork, PooledRule};
use crate::text::spec::EncoderMask;
use crate::text::t5::{T5EncoderArchitecture, T5Forward, T5Mask, T5Network, T5PadRows};
use crate::text::tokenizer::Tokens;
use crate::text::{Residency, TextEncoder};

type Tensors = HashMap<String, Tensor>;

struct Setting {
    tensors: Tensors,
    clip: ClipTextArchitecture,
    clip_rules: ClipForward,
    t5: T5EncoderArchitecture,
    t5_rules: T5Forward,
    tokens: Vec<Tokens>,
}

fn setting(file: &str, model: &str) -> Setting {
    let golden = Golden::open(file);
    let case = golden
        .cases()
        .into_iter()
        .find(|c| c.model == model)
        .expect("one");
    let prefix = format!("{model}/");
    let own = golden
        .tensors
        .iter()
        .filter_map(|(n, t)| Some((n.strip_prefix(&prefix)?.to_owned(), t.clone())));
    let clip = Golden::open("clip.safetensors")
        .cases()
        .into_iter()
        .find(|c| c.model == "quick")
        .expect("one");
    let t5 = Golden::open("t5.safetensors")
        .cases()
        .into_iter()
        .find(|c| c.model == "v1_1")
        .expect("one");
    let (clip, t5) = (clip.clip().architecture, t5.t5().architecture);
    Setting {
        tensors: own.collect(),
        clip: ClipTextArchitecture {
            projection_dim: Some(16),
            ..clip
        },
        clip_rules: ClipForward {
            hidden_layer: Some(-2),
            final_norm: false,
            pooled: PooledRule::ArgmaxId,
            projection: true,
            mask: EncoderMask::None,
            chunks: None,
        },
        t5,
        t5_rules: T5Forward {
            mask: T5Mask::None,
            pad_rows: T5PadRows::Keep,
        },
        tokens: captions(&golden, &case),
    }
}

fn clip() -> Setting {
    setting("clip.safetensors", "quick")
}

fn t5() -> Setting {
    setting("t5.safetensors", "v1_1")
}

impl Setting {
    fn clip_encoder(&self) -> Result<TextEncoder, crate::text::Error> {
        let network = ClipTextNetwork {
            architecture: self.clip.clone(),
            forward: self.clip_rules.clone(),
        };
        TextEncoder::load(&network, &weights_of(&self.tensors), Residency::Resident)
    }

    fn t5_encoder(&self) -> Result<TextEncoder, crate::text::Error> {
        let network = T5Network {
            architecture: self.t5.clone(),
            forward: self.t5_rules.clone(),
        };
        TextEncoder::load(&network, &weights_of(&self.tensors), Residency::Resident)
    }

    fn replace(&mut self, name: &str, change: impl Fn(&Tensor) -> candle_core::Result<Tensor>) {
        let changed = change(&self.tensors[name])
            .and_then(|t| t.contiguous())
            .expect("changed");
        self.tensors.insert(name.to_owned(), changed);
    }
}

/// The error's one line, which must contain all of `parts`.
fn refused<T>(result: Result<T, crate::text::Error>, parts: &[&str]) {
    let text = match result {
        Ok(_) => panic!("taken; expected {parts:?}"),
        Err(error) => error.to_string(),
    };
    assert!(!text.contains('\n'), "more than one line: {text}");
    for part in parts {
        assert!(text.contains(part), "`{text}` does not say `{part}`");
    }
}

const FC1: &str = "text_model.encoder.layers.1.mlp.fc1.weight";

#[test]
fn missing_misnamed_misshapen_and_extra_tensors() {
    let mut missing = clip();
    let fc1 = missing.tensors.remove(FC1).expect("there");
    refused(
        missing.clip_encoder(),
        &[FC1, "is missing from", "model.safetensors"],
    );

    let mut misnamed = clip();
    misnamed.tensors.remove(FC1);
    misnamed
        .tensors
        .insert("text_model.encoder.layers.1.mlp.fc1_weight".into(), fc1);
    refused(
        misnamed.clip_encoder(),
        &[
            FC1,
            "the nearest name there: `text_model.encoder.layers.1.mlp.fc1_weight`",
        ],
    );

    let mut misshapen = clip();
    misshapen.replace(FC1, Tensor::t);
    refused(
        misshapen.clip_encoder(),
        &[FC1, "[16, 40]", "expected [40, 16]"],
    );

    let mut shallow = clip();
    shallow.clip.num_hidden_layers = 2;
    refused(
        shallow.clip_encoder(),
        &[
            "16 tensors",
            "text_model.encoder.layers.2.",
            "num_hidden_layers is 2",
        ],
    );

    let mut extra = clip();
    extra
        .tensors
        .insert("adapter.weight".into(), extra.tensors[FC1].clone());
    refused(
        extra.clip_encoder(),
        &["1 tensor", "`adapter.weight`", "another network"],
    );

    let mut plain = t5();
    plain.t5.is_gated_act = false;
    refused(
        plain.t5_encoder(),
        &["DenseReluDense.wi.weight", "is missing"],
    );

    let mut none = clip();
    none.tensors.clear();
    none.tensors.insert(
        "x".into(),
        Tensor::zeros(1, DType::F32, &Device::Cpu).expect("made"),
    );
    refused(
        none.clip_encoder(),
        &[
            "has no CLIP text encoder",
            "embeddings.token_embedding.weight",
        ],
    );
    refused(none.t5_encoder(), &["has no T5 encoder"]);
}

#[test]
fn integer_weights() {
    let mut integers = clip();
    integers.replace(FC1, |t| t.to_dtype(DType::I64));
    refused(
        integers.clip_encoder(),
        &[
            FC1,
            "is I64, expected F32, F16, BF16, F64 or an 8-bit float",
        ],
    );
}

#[test]
fn weights_that_are_not_finite() {
    for (bad, shown) in [(f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
        let mut damaged = clip();
        damaged.replace(FC1, |t| {
            t.slice_assign(
                &[3..4, 2..3],
                &Tensor::full(bad as f32, (1, 1), &Device::Cpu)?,
            )
        });
        refused(
            damaged.clip_encoder(),
            &[
                FC1,
                "model.safetensors",
                &format!("holds {shown} at element 50"),
            ],
        );
    }
    // An embedding table is not read as a whole: its rows are checked when they are used.
    let mut damaged = clip();
    damaged.replace("text_model.embeddings.token_embedding.weight", |t| {
        t.slice_assign(
            &[61..62, 0..1],
            &Tensor::full(f32::NAN, (1, 1), &Device::Cpu)?,
        )
    });
    let encoder = damaged.clip_encoder().expect("loads");
    refused(
        encoder.encode(&damaged.tokens),
        &["token_embedding.weight", "NaN"],
    );
}

#[test]
fn outputs_that_are_not_finite() {
    let mut huge = clip();
    huge.replace("text_model.final_layer_norm.weight", |t| {
        t.affine(0.0, 3e38)
    });
    huge.replace("text_model.final_layer_norm.bias", |t| t.affine(0.0, 3e38));
    huge.clip_rules.final_norm = true;
    refused(
        huge.clip_encoder().expect("loads").encode(&huge.tokens),
        &["the hidden output for caption 0 is not finite", "f32"],
    );
    huge.clip_rules.final_norm = false;
    refused(
        huge.clip_encoder().expect("loads").encode(&huge.tokens),
        &["the pooled output for caption 0 is not finite"],
    );
}

#[test]
fn tokens_that_do_not_fit() {
    let clip = clip();
    let encoder = clip.clip_encoder().expect("loads");
    let with = |change: &dyn Fn(&mut Tokens)| {
        let mut tokens = clip.tokens.clone();
        change(&mut tokens[2]);
        encoder.encode(&tokens)
    };
    refused(
        with(&|t| t.ids[4] = 64),
        &[
            "caption 2: token 4 is 64, the embedding table has 64 rows",
            "tokenizer",
        ],
    );
    refused(
        with(&|t| t.ids.push(0)),
        &["caption 2 has 21 tokens, the encoder has 20 positions"],
    );
    refused(
        with(&|t| t.count = 0),
        &["a caption is empty and has no token here"],
    );
    refused(with(&|t| t.count = 21), &["caption 2 counts 21 tokens"]);
    let t5 = t5();
    let mut tokens = t5.tokens.clone();
    tokens[0].ids[0] = 50;
    refused(
        t5.t5_encoder().expect("loads").encode(&tokens),
        &["caption 0: token 0 is 50", "50 rows"],
    );
}

#[test]
fn no_end_of_text_to_pool_at() {
    let mut clip = clip();
    clip.clip_rules.pooled = PooledRule::FirstEos;
    clip.clip.eos_token_id = Some(5);
    let encoder = clip.clip_encoder().expect("loads");
    for tokens in &mut clip.tokens {
        tokens
            .ids
            .iter_mut()
            .filter(|id| **id == 5)
            .for_each(|id| *id = 6);
    }
    refused(
        encoder.encode(&clip.tokens),
        &["caption 0 has no end-of-text token 5"],
    );
}

#[test]
fn specs_that_contradict_themselves() {
    let check = |change: &dyn Fn(&mut Setting), part: &str| {
        let mut clip = clip();
        change(&mut clip);
        refused(clip.clip_encoder(), &["spec cannot be", part]);
    };
    check(
        &|s| s.clip.num_attention_heads = 3,
        "num_attention_heads 3 does not divide hidden_size 16",
    );
    check(
        &|s| s.clip.num_attention_heads = 0,
        "num_attention_heads is 0",
    );
    check(&|s| s.clip.vocab_size = usize::MAX, "vocab_size is");
    check(
        &|s| s.clip.layer_norm_eps = f64::NAN,
        "layer_norm_eps is NaN",
    );
    check(
        &|s| s.clip_rules.hidden_layer = Some(-5),
        "hidden_layer is -5; with 3 layers it is -1 to -4",
    );
    check(
        &|s| s.clip_rules.hidden_layer = Some(0),
        "hidden_layer is 0",
    );
    check(
        &|s| s.clip_rules.hidden_layer = Some(i32::MIN),
        "hidden_layer is",
    );
    check(&|s| s.clip.projection_dim = None, "no projection_dim");
    check(&|s| s.clip_rules.pooled = PooledRule::None, "there is none");
    check(
        &|s| {
            s.clip_rules.pooled = PooledRule::ConfigEos;
            s.clip.eos_token_id = None;
        },
        "no eos_token_id",
    );
    let check = |change: &dyn Fn(&mut Setting), part: &str| {
        let mut t5 = t5();
        change(&mut t5);
        refused(t5.t5_encoder(), &["spec cannot be", part]);
    };
    check(
        &|s| s.t5_rules.pad_rows = T5PadRows::Drop,
        "pads are attended",
    );
    check(&|s| s.t5.d_kv = 0, "d_kv is 0");
    check(
        &|s| s.t5.relative_attention_num_buckets = 3,
        "relative_attention_num_buckets is 3",
    );
    check(
        &|s| s.t5.relative_attention_max_distance = 8,
        "relative_attention_max_distance is 8",
    );

    let of = |file: &str| Golden::open(file).cases().remove(0);
    let (clip, t5) = (of("clip.safetensors"), of("t5.safetensors"));
    let error = crate::text::network(clip.architecture, t5.forward).expect_err("two kinds");
    assert!(
        error.contains("is a CLIP text encoder") && error.contains("a T5 encoder"),
        "{error}"
    );
}

#[test]
fn umt5_and_untied_embeddings() {
    let mut umt5 = t5();
    let table = "layer.0.SelfAttention.relative_attention_bias.weight";
    let bias = umt5.tensors[&format!("encoder.block.0.{table}")].clone();
    umt5.tensors
        .insert(format!("encoder.block.1.{table}"), bias);
    refused(
        umt5.t5_encoder(),
        &["is a UMT5 encoder (2 relative attention tables"],
    );

    let mut lacking = setting("umt5.safetensors", "first");
    for block in [1, 2] {
        lacking
            .tensors
            .remove(&format!("encoder.block.{block}.{table}"));
    }
    let case = Golden::open("umt5.safetensors").cases().remove(0);
    refused(
        TextEncoder::load(
            &*case.network(),
            &weights_of(&lacking.tensors),
            Residency::Resident,
        ),
        &[
            "is a T5 encoder (1 relative attention table",
            "wants a UMT5 encoder",
        ],
    );

    let mut untied = t5();
    let other = untied.tensors["shared.weight"]
        .affine(2.0, 0.0)
        .expect("made");
    untied
        .tensors
        .insert("encoder.embed_tokens.weight".into(), other);
    refused(
        untied.t5_encoder(),
        &[
            "`shared.weight` and `encoder.embed_tokens.weight`",
            "differ",
        ],
    );
}

#[test]
fn a_projection_in_the_wrong_orientation() {
    // Not square: the shape tells.
    let mut oblong = setting("clip.safetensors", "erf");
    let case = Golden::open("clip.safetensors")
        .cases()
        .into_iter()
        .find(|c| c.model == "erf")
        .expect("one");
    let a = case.clip().architecture;
    oblong.clip = ClipTextArchitecture {
        projection_dim: Some(24),
        ..a
    };
    assert!(oblong.clip_encoder().expect("loads").notes().is_empty());
    oblong.replace("text_projection.weight", Tensor::t);
    refused(
        oblong.clip_encoder(),
        &[
            "text_projection.weight",
            "stored transposed",
            "[16, 24]",
            "[24, 16]",
        ],
    );

    // Square: a note says that nothing can tell, unless it is an identity.
    let mut square = clip();
    let notes = square.clip_encoder().expect("loads").notes().join(" ");
    assert!(
        notes.contains("`text_projection.weight` is square") && notes.contains("cannot be told"),
        "{notes}"
    );
    square.replace("text_projection.weight", |t| {
        Tensor::eye(16, t.dtype(), t.device())
    });
    assert!(square.clip_encoder().expect("loads").notes().is_empty());
    square.clip_rules.projection = false;
    assert!(square.clip_encoder().expect("loads").notes().is_empty());

    // Both names.
    square.clip_rules.projection = true;
    square.tensors.insert(
        "text_projection".into(),
        square.tensors["text_projection.weight"].clone(),
    );
    refused(
        square.clip_encoder(),
        &["`text_projection` and `text_projection.weight`"],
    );
}

/// CLIP-G's own matrix under the wrong name is recognised by two of its values.
#[test]
fn the_projection_of_clip_g_stored_transposed() {
    use std::io::{Seek as _, SeekFrom, Write as _};
    let (width, name) = (1280usize, "text_projection.weight");
    let clip = ClipTextArchitecture {
        vocab_size: 3,
        hidden_size: width,
        intermediate_size: 1,
        num_hidden_layers: 1,
        num_attention_heads: 20,
        max_position_embeddings: 2,
        projection_dim: Some(width),
        ..clip().clip
    };
    let network = ClipTextNetwork {
        architecture: clip.clone(),
        forward: self::clip().clip_rules,
    };
    let mut tensors: BTreeMap<String, Vec<usize>> =
        crate::text::clip::names::tower(&clip).into_iter().collect();
    tensors.insert(name.into(), vec![width, width]);
    let folder = tempfile::tempdir().expect("folder");
    let path = sparse(folder.path(), "F32", &tensors);
    let size = std::fs::metadata(&path).expect("there").len();
    // The projection is the last tensor by name.
    assert_eq!(tensors.keys().next_back().map(String::as_str), Some(name));
    let load = |upper: f32, lower: f32| {
        let mut file = std::fs::File::options()
            .write(true)
            .open(&path)
            .expect("open");
        let start = size - (width * width * 4) as u64;
        for (at, value) in [(1, upper), (width, lower)] {
            file.seek(SeekFrom::Start(start + at as u64 * 4))
                .expect("seek");
            file.write_all(&value.to_le_bytes()).expect("written");
        }
        drop(file);
        let weights = Weights::open(std::slice::from_ref(&path)).expect("valid");
        TextEncoder::load(&network, &weights, Residency::Streamed)
    };
    load(-0.0037, 0.0218).expect("a linear layer's weight");
    refused(
        load(0.0218, -0.0037),
        &[name, "stored transposed", "OpenCLIP's matrix"],
    );
}
