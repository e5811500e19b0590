//! Encoders run for an audit: what a recipe makes of captions, in memory. What the Experiment's store has is taken from there.

use std::collections::BTreeMap;

use rayon::prelude::{IntoParallelRefIterator as _, ParallelIterator as _};
use serde_json::json;

use super::Error;
use crate::base_model::TextEncoderPart;
use crate::cache::EncoderOutput;
use crate::digest::Fingerprint;
use crate::encode::{self, EncodeOptions, tokenize};
use crate::experiment::Experiment;
use crate::recipe::spec::caption_entry;
use crate::store::Store;
use crate::text::{Residency, TextEncoder, Tokens};

/// What decides an encoder's output beside the token ids: the network, its weights, and the precisions.
type NetworkKey = Fingerprint;

/// What decides one output: the network, the ids, and how many of them are true.
pub(super) type OutputKey = (NetworkKey, Vec<u32>, usize);

/// Runs encoders, each caption once.
pub(super) struct Runner<'a> {
    options: &'a EncodeOptions,
    store: Option<Store>,
    /// The encoder that ran last: the next is often the same.
    loaded: Option<(NetworkKey, TextEncoder)>,
    outputs: BTreeMap<OutputKey, EncoderOutput>,
    /// How many sequences encoders were run on.
    pub(super) encoded: usize,
}

impl<'a> Runner<'a> {
    pub(super) fn new(options: &'a EncodeOptions, experiment: &Experiment) -> Self {
        // A store that is not there, or cannot be read, only costs time.
        let store = experiment.store_path().ok();
        let store = store.and_then(|path| Store::open_at(&path).ok());
        Self {
            options,
            store,
            loaded: None,
            outputs: BTreeMap::new(),
            encoded: 0,
        }
    }

    /// What decides an encoder's output of each of these.
    pub(super) fn keys(part: &TextEncoderPart, tokens: &[Tokens]) -> Vec<OutputKey> {
        let network = network_key(part);
        let key = |tokens: &Tokens| (network, tokens.ids.clone(), tokens.count);
        tokens.iter().map(key).collect()
    }

    /// Whether what an encoder makes of token ids is known.
    pub(super) fn has(&self, part: &TextEncoderPart, tokens: &Tokens) -> bool {
        let key = (network_key(part), tokens.ids.clone(), tokens.count);
        self.outputs.contains_key(&key)
    }

    /// What an encoder makes of captions.
    pub(super) fn captions(
        &mut self,
        part: &TextEncoderPart,
        captions: &[&str],
    ) -> Result<Vec<EncoderOutput>, Error> {
        let tokens = tokens(part, captions)?;
        let keys = Self::keys(part, &tokens).into_iter();
        let mut unknown: Vec<(OutputKey, &str)> = keys.zip(captions.iter().copied()).collect();
        unknown.retain(|(key, _)| !self.outputs.contains_key(key));
        let stored = self.stored(part, unknown);
        self.outputs.extend(stored);
        self.tokens(part, &tokens)
    }

    /// What an encoder makes of token ids.
    pub(super) fn tokens(
        &mut self,
        part: &TextEncoderPart,
        tokens: &[Tokens],
    ) -> Result<Vec<EncoderOutput>, Error> {
        let network = network_key(part);
        let key = |tokens: &Tokens| (network, tokens.ids.clone(), tokens.count);
        let mut missing = Vec::<Tokens>::new();
        for tokens in tokens {
            let there = |t: &Tokens| t.ids == tokens.ids && t.count == tokens.count;
            if !self.outputs.contains_key(&key(tokens)) && !missing.iter().any(there) {
                missing.push(tokens.clone());
            }
        }
        self.encoded += missing.len();
        if !missing.is_empty() {
            let encoded = self.load(part, network)?.encode(&missing);
            let encoded = encoded.map_err(|source| encode::Error::Encoder {
                slot: part.slot.clone(),
                source,
            })?;
            for (tokens, encoded) in missing.iter().zip(encoded) {
                // Rounded to the precision that is stored, as an entry of the store is.
                let rounded = |tensor: Option<candle_core::Tensor>| {
                    let output = crate::base_model::candle_dtype(part.spec.precision.output);
                    let f32 = candle_core::DType::F32;
                    let round = |t: candle_core::Tensor| {
                        t.to_device(&candle_core::Device::Cpu)?
                            .to_dtype(output)?
                            .to_dtype(f32)
                    };
                    tensor.map(round).transpose()
                };
                let output = EncoderOutput {
                    hidden: rounded(encoded.hidden)?,
                    pooled: rounded(encoded.pooled)?,
                    token_count: tokens.count,
                };
                self.outputs.insert(key(tokens), output);
            }
        }
        let output = |tokens: &Tokens| self.outputs.get(&key(tokens)).cloned();
        Ok(tokens.iter().filter_map(output).collect())
    }

    fn load(&mut self, part: &TextEncoderPart, key: NetworkKey) -> Result<&TextEncoder, Error> {
        if self
            .loaded
            .as_ref()
            .is_none_or(|(loaded, _)| *loaded != key)
        {
            // Two at once may be more than the memory holds.
            self.loaded = None;
            let residency = match part.weight_bytes() > self.options.resident_limit_bytes {
                true => Residency::Streamed,
                false => Residency::Resident,
            };
            let network = part.load(residency, &self.options.device, &self.options.kernels)?;
            return Ok(&self.loaded.insert((key, network)).1);
        }
        match &self.loaded {
            Some((_, network)) => Ok(network),
            None => Err(candle_core::Error::Msg("no encoder is loaded".to_owned()).into()),
        }
    }

    fn stored(
        &self,
        part: &TextEncoderPart,
        captions: Vec<(OutputKey, &str)>,
    ) -> Vec<(OutputKey, EncoderOutput)> {
        // The store has what the weights give as they are.
        let store = self.store.as_ref().filter(|_| part.rounding().is_none());
        let spec = part.fingerprint;
        let entries = captions
            .iter()
            .map(|(_, caption)| caption_entry(&spec, caption));
        let wanted: Vec<_> = entries.map(|entry| (spec, entry)).collect();
        let Some(reader) = store.and_then(|store| store.reader_of_entries(&wanted).ok()) else {
            return Vec::new();
        };
        let read = |entry: &Fingerprint| {
            let entry = reader.get(&spec, entry).ok()??;
            EncoderOutput::of_entry(&entry).ok()
        };
        let keys = captions.into_iter().map(|(key, _)| key);
        let read = wanted.iter().map(|(_, entry)| read(entry));
        keys.zip(read)
            .filter_map(|(key, output)| Some((key, output?)))
            .collect()
    }
}

/// A caption's ids under an encoder's rules.
pub(super) fn tokens(part: &TextEncoderPart, captions: &[&str]) -> Result<Vec<Tokens>, Error> {
    let tokens = captions.par_iter().map(|caption| tokenize(part, caption));
    Ok(tokens.collect::<Result<_, _>>()?)
}

/// What decides an encoder's output beside the token ids.
pub(super) fn network_key(part: &TextEncoderPart) -> NetworkKey {
    // The spec without its token rules, whose effect is in the ids, and without the vocabulary that they are made by.
    let mut spec = serde_json::to_value(&part.spec).unwrap_or_default();
    if let Some(fields) = spec.as_object_mut() {
        fields.remove("tokens");
        fields.remove("tokenizer");
        fields.insert("rounding".to_owned(), json!(part.rounding()));
    }
    Fingerprint::of(&spec)
}
