//! The checks that hold a recipe's fields together, before any checkpoint is known.

use std::collections::BTreeMap;

use super::data::Place;
use super::encoder::EncoderRecipe;
use super::rules::{
    Absent, AssembledPads, Assembly, ClipForwardRecipe, DenoiserMask, EncoderRules, ForwardRecipe,
    Network, Projection, T5ForwardRecipe, TokenRecipe,
};
use super::spec::{EncoderMask, PadRows, PooledRule};
use super::{Error, RecipeName};

/// More tokens than any encoder is used with; a larger number in a recipe is a slip of the pen.
const MOST_TOKENS: usize = 8192;

/// The encoders in the order of the assembly, after all checks that need no checkpoint.
pub(super) fn in_order(
    mut encoders: BTreeMap<String, EncoderRules>,
    places: &BTreeMap<String, Place>,
    assembly: &Assembly,
    recipe: &RecipeName,
) -> Result<Vec<EncoderRecipe>, Error> {
    let checks = Checks { recipe };
    checks.assembly(&encoders, assembly)?;
    let mut ordered = Vec::new();
    for slot in assembly.context.iter().flatten().chain(&assembly.pooled) {
        if let (Some(rules), Some(place)) = (encoders.remove(slot), places.get(slot)) {
            checks.encoder(slot, &rules, assembly)?;
            ordered.push(EncoderRecipe {
                slot: slot.clone(),
                component: place.component.clone(),
                tokenizer_component: place.tokenizer.clone(),
                rules,
            });
        }
    }
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
        if in_context.is_empty() || assembly.context.iter().any(Vec::is_empty) {
            return Err(self.contradiction("assembly.context", "a part of it is empty"));
        }
        for slot in &in_context {
            let sequence = match &encoders[*slot].forward {
                ForwardRecipe::ClipText(clip) => clip.hidden_layer.is_some(),
                ForwardRecipe::T5Encoder(_) => true,
            };
            if !sequence {
                return Err(self.contradiction(
                    format!("assembly.context and {slot}.forward.hidden_layer = none"),
                    "its sequence is used but not kept",
                ));
            }
            if !assembly.pads.contains_key(*slot) {
                return Err(self.contradiction("assembly.pads", format!("`{slot}` is missing")));
            }
        }
        if assembly.mask == DenoiserMask::Pads && in_context.len() != 1 {
            return Err(self.contradiction(
                "assembly.mask = pads and assembly.context",
                "expected the context of one encoder, whose pads are its last rows",
            ));
        }
        for slot in &assembly.pooled {
            match &encoders[slot].forward {
                ForwardRecipe::ClipText(clip) if clip.pooled != PooledRule::None => {}
                _ => {
                    return Err(
                        self.contradiction("assembly.pooled", format!("{slot} has no pooled row"))
                    );
                }
            }
        }
        Ok(())
    }

    fn encoder(&self, slot: &str, rules: &EncoderRules, assembly: &Assembly) -> Result<(), Error> {
        self.tokens(slot, rules.network, &rules.tokens)?;
        match &rules.forward {
            ForwardRecipe::ClipText(clip) => self.clip(slot, clip)?,
            ForwardRecipe::T5Encoder(t5) => self.t5(slot, t5, assembly)?,
        }
        match rules.absent {
            Absent::ZeroRows(rows) if rows > MOST_TOKENS => Err(self.contradiction(
                format!("{slot}.absent = {rows}"),
                format!("expected at most {MOST_TOKENS} rows"),
            )),
            Absent::ZeroRows(_) if assembly.pooled.iter().any(|s| s == slot) => Err(self
                .contradiction(
                    format!("{slot}.absent and assembly.pooled"),
                    "an encoder whose pooled row is used cannot be absent",
                )),
            Absent::ZeroRows(_) | Absent::Refuse => Ok(()),
        }
    }

    fn tokens(&self, slot: &str, network: Network, tokens: &TokenRecipe) -> Result<(), Error> {
        let specials = match network {
            Network::ClipText => 2,
            Network::T5Encoder => 1,
        };
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

    fn clip(&self, slot: &str, clip: &ClipForwardRecipe) -> Result<(), Error> {
        if let Some(layer) = clip.hidden_layer.filter(|layer| *layer >= 0) {
            return Err(self.contradiction(
                format!("{slot}.forward.hidden_layer = {layer}"),
                "expected a negative number: layers are counted from the end",
            ));
        }
        if clip.pooled == PooledRule::None && clip.projection == Projection::Apply {
            return Err(self.contradiction(
                format!("{slot}.forward.projection and {slot}.forward.pooled"),
                "there is no pooled row to project",
            ));
        }
        Ok(())
    }

    fn t5(&self, slot: &str, t5: &T5ForwardRecipe, assembly: &Assembly) -> Result<(), Error> {
        if t5.pad_rows == PadRows::Keep {
            return Ok(());
        }
        if t5.mask != EncoderMask::Pads {
            return Err(self.contradiction(
                format!("{slot}.forward.pad_rows = drop and {slot}.forward.mask = none"),
                "rows of pads may be dropped only where pads are masked, for else they change the others",
            ));
        }
        if assembly.pads.get(slot) == Some(&AssembledPads::Keep) {
            return Err(self.contradiction(
                format!("{slot}.forward.pad_rows = drop and assembly.pads.{slot} = keep"),
                "the context wants rows that are not kept: set assembly.pads to zero",
            ));
        }
        Ok(())
    }
}
