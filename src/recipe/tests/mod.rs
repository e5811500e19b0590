//! Recipes and specs: what ships, what a person may change, and what enters a fingerprint.

mod candidates;
mod canonical;
mod checkpoint;
mod chroma;
mod deviate;
mod flux2;
mod shipped;
mod wan;
mod zimage;

use serde_json::Value;

use crate::digest::Digest;

use super::Recipe;
use crate::text::TokenizerIdentity;
use crate::text::published;
use crate::text::spec::EncoderSpec;

/// The shipped recipe of that name.
fn shipped(name: &str) -> Recipe {
    Recipe::shipped(&name.parse().expect("a name")).expect("a shipped recipe")
}

/// A recipe with deviations written as TOML.
fn deviated(name: &str, deviate: &str) -> Result<Recipe, super::Error> {
    let name: super::RecipeName = name.parse().expect("a name");
    let deviate = toml::from_str(deviate).expect("TOML");
    Recipe::resolve(&name.family, &name.flavor, &name.variant, &deviate)
}

/// The end-of-text ids of the published tokenizers.
fn tokenizer(slot: &str) -> TokenizerIdentity {
    TokenizerIdentity {
        digest: Digest::of(b"tokenizer"),
        end_id: if slot == "t5" { 1 } else { 49407 },
    }
}

/// A slot's spec for the published encoder with weights of no meaning.
fn spec_of(recipe: &Recipe, slot: &str) -> EncoderSpec {
    let architecture = published(slot).expect("a published encoder");
    recipe
        .encoder(slot)
        .expect("a slot")
        .spec(&*architecture, Digest::of(b"weights"), tokenizer(slot))
        .expect("rules that fit")
}

fn json(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).expect("JSON")
}
