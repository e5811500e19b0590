//! A `tokenizers` pipeline, built as transformers 5 builds it.
//!
//! Source: `CLIPTokenizer.__init__` and `T5Tokenizer.__init__` of transformers 5
//! (`models/clip/tokenization_clip.py`, `models/t5/tokenization_t5.py`). Special tokens around a sequence are not
//! the pipeline's business.

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, NormalizerWrapper, Precompiled, Replace, Sequence};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence as PreSequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::{AddedToken, Decoder as _, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::files::{Added, CLIP_BOS, CLIP_EOS, Clip, Definition, T5, T5_UNKNOWN};

/// How CLIP splits a text before BPE.
const CLIP_SPLIT: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// From a text to ids, without specials around.
#[derive(Clone)]
pub(super) struct Pipeline(tokenizers::Tokenizer);

impl Pipeline {
    pub(super) fn build(definition: &Definition) -> Result<Self, String> {
        let mut pipeline = match definition {
            Definition::Clip(clip) => clip_pipeline(clip),
            Definition::T5(t5) => t5_pipeline(t5),
        }
        .map_err(|e| e.to_string())?;
        for token in definition.added() {
            pipeline.add(token)?;
        }
        Ok(pipeline)
    }

    /// The ids of `text`.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        let encoding = self.0.encode_fast(text, false).map_err(|e| e.to_string())?;
        Ok(encoding.get_ids().to_vec())
    }

    pub(super) fn id_of(&self, token: &str) -> Option<u32> {
        self.0.token_to_id(token)
    }

    pub(super) fn token_of(&self, id: u32) -> Option<String> {
        self.0.id_to_token(id)
    }

    /// Whether the text of `id` in a caption is read as `id`, whatever is around it.
    pub(super) fn is_special(&self, id: u32) -> bool {
        self.0
            .get_added_vocabulary()
            .get_added_tokens_decoder()
            .contains_key(&id)
    }

    /// This pipeline, reading the text of `id` as `id`.
    pub(super) fn with_special(&self, id: u32) -> Result<Self, String> {
        let token = self
            .token_of(id)
            .ok_or_else(|| format!("there is no token {id}"))?;
        let mut pipeline = self.clone();
        pipeline.add_specials([token])?;
        Ok(pipeline)
    }

    fn add_specials(&mut self, tokens: impl IntoIterator<Item = String>) -> Result<(), String> {
        let tokens = tokens
            .into_iter()
            .map(|token| AddedToken::from(token, true));
        self.0
            .add_special_tokens(tokens)
            .map_err(|e| e.to_string())?;
        Ok(())
    }

    /// Adds a token beyond the vocabulary, whose id must be the next free one.
    fn add(&mut self, token: &Added) -> Result<(), String> {
        let added = AddedToken::from(token.content.clone(), false)
            .single_word(token.single_word)
            .lstrip(token.lstrip)
            .rstrip(token.rstrip)
            .normalized(token.normalized);
        self.0.add_tokens([added]).map_err(|e| e.to_string())?;
        match self.id_of(&token.content) {
            Some(id) if id == token.id => Ok(()),
            id => Err(format!(
                "the added token `{}` has the id {}, but the next free one is {id:?}",
                token.content, token.id
            )),
        }
    }
}

fn clip_pipeline(clip: &Clip) -> tokenizers::Result<Pipeline> {
    let vocab: Vocab = clip
        .vocab
        .iter()
        .map(|(token, id)| (token.clone(), *id))
        .collect();
    let model = BPE::builder()
        .vocab_and_merges(vocab, clip.merges.clone())
        .continuing_subword_prefix(String::new())
        .end_of_word_suffix("</w>".to_owned())
        .unk_token(CLIP_EOS.to_owned())
        .build()?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_normalizer(Some(Sequence::new(vec![
        NFC.into(),
        Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ")?.into(),
        Lowercase.into(),
    ])))?;
    tokenizer.with_pre_tokenizer(Some(PreSequence::new(vec![
        Split::new(
            SplitPattern::Regex(CLIP_SPLIT.to_owned()),
            SplitDelimiterBehavior::Removed,
            true,
        )?
        .into(),
        ByteLevel::default().add_prefix_space(false).into(),
    ])));
    let mut pipeline = Pipeline(tokenizer);
    pipeline.add_specials([CLIP_BOS.to_owned(), CLIP_EOS.to_owned()])?;
    Ok(pipeline)
}

fn t5_pipeline(t5: &T5) -> tokenizers::Result<Pipeline> {
    let model = Unigram::from(t5.pieces.clone(), Some(T5_UNKNOWN), false)?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    if let Some(map) = &t5.charsmap {
        let map = Precompiled::from(map).map_err(|e| e.to_string())?;
        tokenizer.with_normalizer(Some(NormalizerWrapper::Precompiled(map)))?;
    }
    tokenizer.with_pre_tokenizer(Some(PreSequence::new(vec![
        PreTokenizerWrapper::WhitespaceSplit(WhitespaceSplit),
        Metaspace::new('\u{2581}', PrependScheme::Always, true).into(),
    ])));
    let mut pipeline = Pipeline(tokenizer);
    let known = ["<pad>", "</s>", "<unk>"].map(str::to_owned);
    let sentinels = (t5.pieces.iter())
        .map(|(piece, _)| piece)
        .filter(|piece| is_sentinel(piece))
        .cloned();
    let known = known
        .into_iter()
        .filter(|token| t5.pieces.iter().any(|(piece, _)| piece == token));
    pipeline.add_specials(known.chain(sentinels))?;
    Ok(pipeline)
}

/// Whether `piece` is `<extra_id_N>`.
fn is_sentinel(piece: &str) -> bool {
    let number = piece
        .strip_prefix("<extra_id_")
        .and_then(|rest| rest.strip_suffix('>'));
    number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// A byte-level token with its bytes as text, or the token itself where they are not whole characters.
pub(super) fn readable_bytes(token: String) -> String {
    match ByteLevel::default().decode_chain(vec![token.clone()]) {
        Ok(parts) if !parts.concat().contains(char::REPLACEMENT_CHARACTER) => parts.concat(),
        _ => token,
    }
}
