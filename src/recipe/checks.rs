//! The checks that hold a recipe's fields together, before any checkpoint is known.

use std::collections::BTreeMap;

use super::data::SlotComponents;
use super::encoder::EncoderRecipe;
use super::rules::{Absent, AssembledPads, Assembly, DenoiserMask, EncoderRules, TokenRecipe};
use super::{Error, RecipeName};
use crate::shown;
use crate::text::Kind;
use crate::text::tokenizer::IMPLEMENTATION;

/// More tokens than any encoder is used with; a larger number in a recipe is a slip of the pen.
const MOST_TOKENS: usize = 8192;

/// The encoders in the order of the assembly, after all checks that need no checkpoint.
pub(super) fn in_order(
    mut encoders: BTreeMap<String, EncoderRules>,
    components: &BTreeMap<String, SlotComponents>,
    assembly: &Assembly,
    recipe: &RecipeName,
) -> Result<Vec<EncoderRecipe>, Error> {
    let checks = Checks { recipe };
    checks.assembly(&encoders, assembly)?;
    let mut ordered = Vec::new();
    // A slot in both is taken where it comes first: `remove` finds it once.
    for slot in assembly.context.iter().flatten().chain(&assembly.pooled) {
        if let (Some(rules), Some(components_of)) = (encoders.remove(slot), components.get(slot)) {
            checks.encoder(slot, &rules, assembly)?;
            ordered.push(EncoderRecipe {
                slot: slot.clone(),
                component: components_of.component.clone(),
                tokenizer_component: components_of.tokenizer.clone(),
                rules,
            });
        }
    }
    checks.side_by_side(&ordered, assembly)?;
    // What no part of the assembly uses would be encoded for nothing.
    match encoders.keys().next() {
        None => Ok(ordered),
        Some(slot) => Err(checks.contradiction(
            "assembly",
            format!("the encoder {slot} is neither in assembly.context nor in assembly.pooled"),
        )),
    }
}

struct Checks<'a> {
    recipe: &'a RecipeName,
}

impl Checks<'_> {
    fn contradiction(&self, fields: impl Into<String>, why: impl Into<String>) -> Error {
        Error::Contradiction {
            recipe: self.recipe.to_string(),
            fields: fields.into(),
            why: why.into(),
        }
    }

    fn assembly(
        &self,
        encoders: &BTreeMap<String, EncoderRules>,
        assembly: &Assembly,
    ) -> Result<(), Error> {
        let known = || encoders.keys().cloned().collect::<Vec<_>>().join(", ");
        let in_context: Vec<&String> = assembly.context.iter().flatten().collect();
        for (slots, field) in [
            (in_context.clone(), "assembly.context"),
            (assembly.pooled.iter().collect(), "assembly.pooled"),
        ] {
            for (at, slot) in slots.iter().enumerate() {
                if !encoders.contains_key(*slot) {
                    return Err(self.contradiction(
                        field,
                        format!("there is no encoder `{slot}`; there is: {}", known()),
                    ));
                }
                if slots[..at].contains(slot) {
                    return Err(self.contradiction(field, format!("`{slot}` appears twice")));
                }
            }
        }
        // Of an empty group there would be nothing to join.
        if in_context.is_empty() || assembly.context.iter().any(Vec::is_empty) {
            return Err(self.contradiction("assembly.context", "a part of it is empty"));
        }
        for slot in &in_context {
            if let Some(rule) = encoders[*slot].forward.no_sequence() {
                return Err(self.contradiction(
                    format!("assembly.context and {slot}.{rule}"),
                    "its sequence is used but not kept",
                ));
            }
            // There is no default: programs differ in it, and the denoiser sees the difference.
            if !assembly.pads.contains_key(*slot) {
                return Err(self.contradiction("assembly.pads", format!("`{slot}` is missing")));
            }
        }
        // A denoiser is told one count of tokens, which can only mark pads at the end of its context.
        if assembly.mask != DenoiserMask::None && in_context.len() != 1 {
            return Err(self.contradiction(
                format!(
                    "assembly.mask = {} and assembly.context",
                    shown::word(&assembly.mask)
                ),
                "expected the context of one encoder, whose pads are its last rows",
            ));
        }
        for slot in &assembly.pooled {
            if !encoders[slot].forward.is_pooled() {
                let why = format!("{slot} has no pooled row");
                return Err(self.contradiction("assembly.pooled", why));
            }
        }
        Ok(())
    }

    /// Encoders whose rows lie side by side have equally many of them.
    fn side_by_side(&self, encoders: &[EncoderRecipe], assembly: &Assembly) -> Result<(), Error> {
        let rows = |slot: &String| {
            let tokens = &encoders.iter().find(|e| e.slot == *slot)?.rules.tokens;
            let mut own = tokens.of_kind.clone();
            // Programs read a caption differently, and give as many rows.
            own.remove(IMPLEMENTATION);
            Some((tokens.min_tokens, tokens.max_tokens, own))
        };
        for group in &assembly.context {
            if let Some(other) = group.iter().find(|slot| rows(slot) != rows(&group[0])) {
                return Err(self.contradiction(
                    format!("{}.tokens and {other}.tokens", group[0]),
                    "their rows lie side by side, so that min_tokens, max_tokens and chunks must be the same: set both",
                ));
            }
        }
        Ok(())
    }

    fn encoder(&self, slot: &str, rules: &EncoderRules, assembly: &Assembly) -> Result<(), Error> {
        self.tokens(slot, rules.network, &rules.tokens)?;
        // A slot without pads is not in the context: no row of it is kept.
        let pads_kept = assembly.pads.get(slot) == Some(&AssembledPads::Keep);
        let pads_matter = !pads_kept || assembly.mask != DenoiserMask::None;
        let in_context = assembly.context.iter().flatten().any(|s| s == slot);
        if in_context && pads_matter && !rules.network.pads_are_last(&rules.tokens.of_kind) {
            return Err(self.contradiction(
                format!("{slot}.tokens.chunks and assembly.pads.{slot} or assembly.mask"),
                "the pads of several windows are not the last rows: keep them, and mask none",
            ));
        }
        rules
            .forward
            .check(slot, pads_kept)
            .map_err(|found| self.contradiction(found.fields, found.why))?;
        if rules.forward.keeps_one_pad() && assembly.mask != DenoiserMask::PadsButOne {
            return Err(self.contradiction(
                format!(
                    "{slot}.forward.pad_rows = one and assembly.mask = {}",
                    shown::word(&assembly.mask)
                ),
                "rows of pads may be left out only where the denoiser sees none but the first (pads_but_one): keep them",
            ));
        }
        match rules.absent {
            Absent::ZeroRows(rows) if rows > MOST_TOKENS => Err(self.contradiction(
                format!("{slot}.absent = {rows}"),
                format!("expected at most {MOST_TOKENS} rows"),
            )),
            // Rows of zeros stand in for a sequence, and for nothing else.
            Absent::ZeroRows(_) if assembly.pooled.iter().any(|s| s == slot) => Err(self
                .contradiction(
                    format!("{slot}.absent and assembly.pooled"),
                    "an encoder whose pooled row is used cannot be absent",
                )),
            Absent::ZeroRows(_) | Absent::Refuse => Ok(()),
        }
    }

    fn tokens(&self, slot: &str, kind: &dyn Kind, tokens: &TokenRecipe) -> Result<(), Error> {
        let specials = kind.tokenizer().specials();
        let (least, most) = (tokens.min_tokens, tokens.max_tokens);
        if let Some(most) = most.filter(|most| *most < least) {
            return Err(self.contradiction(
                format!("{slot}.tokens.min_tokens = {least} and {slot}.tokens.max_tokens = {most}"),
                "the least is above the most: set both",
            ));
        }
        if most.is_some_and(|most| most < specials) {
            return Err(self.contradiction(
                format!("{slot}.tokens.max_tokens"),
                format!("expected at least {specials}, for the special tokens"),
            ));
        }
        if least.max(most.unwrap_or(0)) > MOST_TOKENS {
            return Err(self.contradiction(
                format!("{slot}.tokens"),
                format!("expected at most {MOST_TOKENS} tokens"),
            ));
        }
        Ok(())
    }
}
