//! The text encoders of a base model: their files, opened once, and what each recipe makes of them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Device;

use super::files::ModelFiles;
use super::{Error, candle_dtype};
use crate::digest::{Digest, Fingerprint};
use crate::nn::Kernels;
use crate::nn::weights::{DigestMemo, Rounding, Weights};
use crate::recipe::{self, EncoderRecipe, Recipe};
use crate::shown;
use crate::text::spec::{EncoderSpec, TokenRules};
use crate::text::{
    self, Architecture, Network, Residency, TensorList, TextEncoder, Tokenizer, Tokens,
};

/// One text encoder of a base model.
#[derive(Clone)]
pub struct TextEncoderPart {
    /// What the recipe calls it.
    pub slot: String,
    /// What its outputs depend on.
    pub spec: EncoderSpec,
    /// The spec's fingerprint.
    pub fingerprint: Fingerprint,
    /// How captions become ids; as in the spec, before fields without effect were left out.
    pub tokens: TokenRules,
    /// The vocabulary that `tokens` are made by; its digest stands in `spec`.
    pub tokenizer: Arc<Tokenizer>,
    /// Whether its files came without a configuration, so that names alone said what they are.
    pub bare_file: bool,
    weights: Weights,
    pub(super) opened: Arc<OpenedEncoder>,
}

/// An encoder's files, whatever a recipe wants of them.
pub(super) struct OpenedEncoder {
    architecture: Box<dyn Architecture>,
    tokenizer: Arc<Tokenizer>,
    /// Where it was read.
    tokenizer_path: PathBuf,
    weights: Weights,
    bare_file: bool,
    /// By the tensors they are of: which of them a network uses, the rules decide.
    digests: Mutex<BTreeMap<TensorList, Digest>>,
}

impl OpenedEncoder {
    fn open(files: &ModelFiles<'_>, recipe: &EncoderRecipe) -> Result<Option<Self>, Error> {
        let Some(component) = files.component(&recipe.slot, &recipe.component) else {
            return Ok(None);
        };
        let architecture = files.architecture(recipe, &component)?;
        let format = architecture.kind().tokenizer();
        let tokenizer_path = files.tokenizer(recipe)?;
        let tokenizer = Tokenizer::load(format, &tokenizer_path)?;
        Ok(Some(Self {
            tokenizer_path,
            tokenizer: Arc::new(tokenizer),
            weights: component.open()?,
            bare_file: component.config.is_none(),
            architecture,
            digests: Mutex::default(),
        }))
    }

    /// What a recipe makes of it, but for the weights' digest.
    fn rules(&self, recipe: &EncoderRecipe) -> Result<EncoderSpec, recipe::Error> {
        let identity = self.tokenizer.identity();
        recipe.spec(&*self.architecture, Digest::of(b""), identity)
    }

    /// The digest of the weights that a network uses, which are looked at once.
    fn digest(&self, network: &dyn Network, memo: &mut DigestMemo) -> Result<Digest, text::Error> {
        let mut tensors = network.locate(&self.weights)?.tensors;
        tensors.sort();
        let mut digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(digest) = digests.get(&tensors) {
            return Ok(*digest);
        }
        let digest = text::weights_digest(network, &self.weights, Some(memo))?;
        digests.insert(tensors, digest);
        Ok(digest)
    }
}

/// Checks that a group of encoders that lie side by side is as wide as the denoiser's context: narrower ones are filled up with zeros
/// beside it, and if all were, the context would be of another base model's encoders, and nothing would fail.
///
/// # Errors
/// If none is.
pub(super) fn check_width(
    recipe: &Recipe,
    encoders: &[TextEncoderPart],
    width: usize,
) -> Result<(), recipe::Error> {
    let mut found = Vec::new();
    for group in &recipe.assembly().context {
        let part = |slot: &String| encoders.iter().find(|part| part.slot == *slot);
        let parts: Option<Vec<_>> = group.iter().map(part).collect();
        // Rows of zeros as wide as the context stand in for an encoder that is not there.
        let Some(parts) = parts else { return Ok(()) };
        let widths = parts.iter().map(|part| part.spec.network.width());
        found.push((group.join(" and "), widths.sum()));
    }
    if found.is_empty() || found.iter().any(|(_, own): &(_, usize)| *own == width) {
        return Ok(());
    }
    let each = found.iter().map(|(slots, own)| format!("{own} of {slots}"));
    Err(recipe::Error::DoesNotFit {
        slot: "denoiser".to_owned(),
        field: "assembly.context".to_owned(),
        why: format!(
            "expected rows of {width} numbers, found {}: the text encoder is another base model's, or other layers are taken from it",
            each.collect::<Vec<_>>().join(", ")
        ),
    })
}

impl TextEncoderPart {
    fn of(
        opened: Arc<OpenedEncoder>,
        recipe: &EncoderRecipe,
        memo: &mut DigestMemo,
    ) -> Result<Self, Error> {
        // The rules decide which weights are used, so the digest comes after them.
        let mut spec = opened.rules(recipe)?;
        let vocabulary = opened.architecture.vocab_size();
        opened.tokenizer.check_fits(vocabulary)?;
        let digest = opened.digest(&*spec.network, memo);
        let slot = recipe.slot.clone();
        spec.weights = digest.map_err(|source| Error::Encoder {
            slot: slot.clone(),
            source,
        })?;
        let dtype = candle_dtype(spec.precision.compute);
        Ok(Self {
            slot,
            fingerprint: spec.fingerprint(),
            tokens: recipe.tokens(opened.tokenizer.identity().end_id),
            spec,
            tokenizer: opened.tokenizer.clone(),
            bare_file: opened.bare_file,
            weights: opened.weights.clone().with_dtype(dtype),
            opened,
        })
    }

    /// Loads the encoder, to compute on `device` by `kernels`, and makes sure that its weights are those of the spec.
    ///
    /// # Errors
    /// If a tensor is missing, misshapen or not finite, or the weights are others.
    pub fn load(
        &self,
        residency: Residency,
        device: &Device,
        kernels: &Kernels,
    ) -> Result<TextEncoder, Error> {
        let weights = self.weights.clone().on(device).with_kernels(kernels);
        let network = &*self.spec.network;
        let found = network.locate(&weights).map_err(|e| self.fail(e))?;
        let load = || TextEncoder::load(network, &weights, residency);
        // What is computed is stored under the spec, so it is computed by what the spec names.
        let loaded = found
            .weights
            .load_checked(&found.tensors, &self.spec.weights, load);
        loaded.map_err(|e| self.fail(e))
    }

    /// The encoder as it is after its weights were rounded. What it gives is not what its spec names: it is for comparison, and goes into no
    /// store.
    #[must_use]
    pub fn rounded(mut self, rounding: Rounding) -> Self {
        self.weights = self.weights.rounded(rounding);
        self
    }

    /// What its weights are rounded to.
    pub fn rounding(&self) -> Option<Rounding> {
        self.weights.rounding()
    }

    /// The types of fewer than 16 bits that weights are stored in, if any: then it is another encoder than the one
    /// that the base model was trained with.
    pub fn reduced_types(&self) -> Vec<String> {
        let types = self.weights.storage().types.into_keys();
        types
            // GGUF's block types (`Q4_K`), and the two kinds of `F8`.
            .filter(|name| name.starts_with(['Q']) || name.starts_with("F8"))
            .collect()
    }

    /// Bytes of the weights in the precision they are computed in.
    pub fn weight_bytes(&self) -> u64 {
        let count = |name: &String| {
            self.weights
                .shape(name)
                .map_or(0, |s| s.iter().product::<usize>())
        };
        // All of the file, of which a whole checkpoint holds more than this encoder: a bound from above.
        let elements: usize = self.weights.names().iter().map(count).sum();
        (elements * self.weights.dtype().size_in_bytes()) as u64
    }

    /// Where its tokenizer says something else than the recipe, as sentences.
    fn tokenizer_notes(&self) -> Vec<String> {
        let kind = self.spec.network.kind();
        let (tokenizer, path) = (&self.tokenizer, &self.opened.tokenizer_path);
        let notes = kind.tokenizer_notes(&self.spec.tokens, tokenizer, path);
        let named = |note| format!("{}, {}: {note}", self.slot, shown::path(path));
        notes.into_iter().map(named).collect()
    }

    /// Bytes that a caption's outputs take in the store.
    pub fn entry_bytes(&self, tokens: &Tokens) -> u64 {
        let dtype = candle_dtype(self.spec.precision.output);
        (self.spec.network.numbers(tokens) * dtype.size_in_bytes()) as u64
    }

    fn fail(&self, source: text::Error) -> Error {
        Error::Encoder {
            slot: self.slot.clone(),
            source,
        }
    }
}

impl ModelFiles<'_> {
    /// An encoder of the recipe; none of one that the recipe does without. Its files are those of `known`, if they were opened for
    /// another recipe.
    pub(super) fn encoder(
        &self,
        recipe: &EncoderRecipe,
        known: &[TextEncoderPart],
        memo: &mut DigestMemo,
        notes: &mut Vec<String>,
    ) -> Result<Option<TextEncoderPart>, Error> {
        let known = known.iter().find(|part| part.slot == recipe.slot);
        let opened = match known {
            Some(part) => part.opened.clone(),
            None => match OpenedEncoder::open(self, recipe)? {
                Some(opened) => Arc::new(opened),
                None => return Ok(None),
            },
        };
        notes.extend(self.idle_deviations(recipe, &opened)?);
        let part = TextEncoderPart::of(opened, recipe, memo)?;
        notes.extend(part.tokenizer_notes());
        Ok(Some(part))
    }

    /// A sentence for each deviation of an encoder that changes nothing: its spec is the same without it.
    fn idle_deviations(
        &self,
        recipe: &EncoderRecipe,
        opened: &OpenedEncoder,
    ) -> Result<Vec<String>, Error> {
        let spec = opened.rules(recipe)?.fingerprint();
        let is_idle = |other: &Recipe| {
            let other = other.encoder(&recipe.slot);
            let other = other.and_then(|other| opened.rules(other).ok());
            other.is_some_and(|other| other.fingerprint() == spec)
        };
        let prefix = format!("{}.", recipe.slot);
        let of_this = self.without.iter().filter(|(f, _)| f.starts_with(&prefix));
        let sentence = |field: &String| {
            format!("[recipe.deviate] {field} changes nothing beside the recipe's other rules")
        };
        Ok(of_this
            .filter(|(_, without)| is_idle(without))
            .map(|(field, _)| sentence(field))
            .collect())
    }
}
