//! Rules that meet a checkpoint.

use expect_test::{Expect, expect};

use crate::digest::Digest;
use crate::text::clip::{ClipForward, ClipTextArchitecture, PooledRule};
use crate::text::{Architecture, published};

use super::super::Recipe;
use super::{deviated, shipped, spec_of, tokenizer};
use crate::text::TokenizerIdentity;

const NAME: &str = "sd3/3.5-large";

fn clip(change: impl Fn(&mut ClipTextArchitecture)) -> ClipTextArchitecture {
    let published = published("clip_g").expect("CLIP-G");
    let mut clip: ClipTextArchitecture =
        serde_json::from_value(published.to_json()).expect("a CLIP");
    change(&mut clip);
    clip
}

fn pooled(
    recipe: &Recipe,
    slot: &str,
    architecture: &dyn Architecture,
) -> (PooledRule, Option<u32>, bool, Option<usize>) {
    let spec = recipe
        .encoder(slot)
        .expect("a slot")
        .spec(architecture, Digest::of(b"w"), tokenizer(slot))
        .expect("rules that fit");
    let f: ClipForward = serde_json::from_value(spec.network.forward()).expect("a CLIP's rules");
    let a: ClipTextArchitecture =
        serde_json::from_value(spec.network.architecture().to_json()).expect("a CLIP");
    (f.pooled, a.eos_token_id, f.projection, a.projection_dim)
}

#[test]
fn the_pooled_rule_of_transformers_depends_on_the_configuration() {
    let recipe = shipped("sd3/3.5-large:diffusers");
    let legacy = clip(|c| c.eos_token_id = Some(2));
    let modern = clip(|c| c.eos_token_id = Some(49407));
    assert_eq!(
        pooled(&recipe, "clip_g", &legacy),
        (PooledRule::ArgmaxId, None, true, Some(1280))
    );
    assert_eq!(
        pooled(&recipe, "clip_g", &modern),
        (PooledRule::ConfigEos, Some(49407), true, Some(1280))
    );
    let first = deviated(NAME, "clip_g.forward.pooled = 'first_eos'").expect("a rule");
    assert_eq!(pooled(&first, "clip_g", &legacy).1, Some(49407));
}

#[test]
fn a_projection_is_applied_where_the_recipe_and_the_checkpoint_have_one() {
    let none = clip(|c| c.projection_dim = None);
    let some = clip(|c| c.projection_dim = Some(1280));
    let of = |recipe: &str, architecture| {
        let (_, _, applied, dim) = pooled(&shipped(recipe), "clip_l", architecture);
        assert_eq!(applied, dim.is_some());
        applied
    };
    assert!(!of(NAME, &some));
    assert!(!of(NAME, &none));
    assert!(of("sd3/3.5-large:kohya", &some));
    assert!(!of("sd3/3.5-large:kohya", &none));
}

#[test]
fn the_pad_of_clip_l_is_the_tokenizers_own_end() {
    let recipe = shipped(NAME);
    assert_eq!(spec_of(&recipe, "clip_l").tokens.pad_id, 49407);
    let miniature = TokenizerIdentity {
        digest: Digest::of(b"t"),
        end_id: 511,
    };
    let small = clip(|c| c.vocab_size = 512);
    let spec = recipe
        .encoder("clip_l")
        .expect("a slot")
        .spec(&small, Digest::of(b"w"), miniature)
        .expect("a miniature");
    assert_eq!(spec.tokens.pad_id, 511);
}

#[test]
fn a_clip_of_which_only_the_pooled_row_is_kept_does_not_depend_on_pads() {
    // FLUX takes CLIP-L so.
    let pooled_only = |rest: &str| {
        let rules = format!(
            "assembly.context = [['t5']]\nclip_g.forward.hidden_layer = 'none'\n\
             clip_l.forward.hidden_layer = 'none'\n{rest}"
        );
        spec_of(&deviated(NAME, &rules).expect("consistent"), "clip_g")
    };
    assert_eq!(pooled_only(""), pooled_only("clip_g.tokens.pad = 'end'"));
    assert_eq!(pooled_only(""), pooled_only("clip_g.forward.mask = 'pads'"));
    assert_eq!(
        pooled_only(""),
        pooled_only("clip_g.forward.final_norm = true")
    );
    assert_ne!(
        pooled_only(""),
        pooled_only("clip_g.tokens.pad_text = 'special'")
    );
}

#[test]
fn a_difference_in_a_spec_is_traced_to_the_recipes_field() {
    let recipe = shipped(NAME);
    let encoder = recipe.encoder("clip_g").expect("a slot");
    let field = encoder.field_behind("tokens.pad_id").expect("a rule");
    assert_eq!(field, "clip_g.tokens.pad");
    assert_eq!(
        recipe.origin(&field).expect("an origin"),
        "configs/recipes/sd3/reference.toml (sd35:other_impls.py:426-428)"
    );
    assert_eq!(encoder.field_behind("architecture.hidden_size"), None);
    assert_eq!(encoder.field_behind("weights"), None);
    // Every rule of a spec has a field behind it.
    for path in [
        "tokens.min_tokens",
        "forward.hidden_layer",
        "precision.output",
    ] {
        let field = encoder.field_behind(path).expect("a rule");
        assert!(recipe.origin(&field).is_some(), "{path}");
    }
}

#[track_caller]
fn refused(slot: &str, architecture: &dyn Architecture, end_id: u32, said: Expect) {
    let tokenizer = TokenizerIdentity {
        digest: Digest::of(b"t"),
        end_id,
    };
    let error = shipped(NAME)
        .encoder(slot)
        .expect("a slot")
        .spec(architecture, Digest::of(b"w"), tokenizer)
        .expect_err("refused");
    said.assert_eq(&error.to_string());
}

#[test]
fn another_kind_of_network_is_refused() {
    refused(
        "t5",
        &clip(|_| {}),
        1,
        expect![
            "the recipe's `t5.network` does not fit this checkpoint's text_encoder_3: the recipe wants a T5 encoder, the checkpoint has a CLIP text encoder"
        ],
    );
}

#[test]
fn a_layer_that_is_not_there_is_refused() {
    refused(
        "clip_g",
        &clip(|c| c.num_hidden_layers = 0),
        49407,
        expect![
            "the recipe's `clip_g.forward.hidden_layer` does not fit this checkpoint's text_encoder_2: expected -1 to -1 (0 layers and their input), found -2"
        ],
    );
}

#[test]
fn too_few_positions_are_refused() {
    refused(
        "clip_g",
        &clip(|c| c.max_position_embeddings = 32),
        49407,
        expect![
            "the recipe's `clip_g.tokens.max_tokens` does not fit this checkpoint's text_encoder_2: expected at most 32 (max_position_embeddings), found 77"
        ],
    );
}

#[test]
fn a_missing_projection_is_refused() {
    refused(
        "clip_g",
        &clip(|c| c.projection_dim = None),
        49407,
        expect![
            "the recipe's `clip_g.forward.projection` does not fit this checkpoint's text_encoder_2: expected a text_projection (a CLIPTextModelWithProjection), found none"
        ],
    );
}

#[test]
fn a_tokenizer_beyond_the_vocabulary_is_refused() {
    refused(
        "clip_l",
        &clip(|c| c.vocab_size = 512),
        49407,
        expect![
            "the recipe's `clip_l.tokens` does not fit this checkpoint's text_encoder: its tokenizer's end-of-text id is 49407, its embedding has 512 rows: they belong to different models"
        ],
    );
}
