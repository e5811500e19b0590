//! What is taken from a UMT5 encoder: T5's rules, of a network of this kind.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::T5Forward;
use super::{Umt5, Umt5EncoderArchitecture, Umt5Network};
use crate::text::spec::TokenRules;
use crate::text::{Architecture, Contradiction, ForwardRecipe, Kind, Misfit, Network};

/// The forward rules of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Umt5ForwardRecipe(pub T5Forward);

impl ForwardRecipe for Umt5ForwardRecipe {
    fn kind(&self) -> &'static dyn Kind {
        &Umt5
    }

    fn to_json(&self) -> Value {
        json!(self)
    }

    fn no_sequence(&self) -> Option<&'static str> {
        self.0.no_sequence()
    }

    fn is_pooled(&self) -> bool {
        self.0.is_pooled()
    }

    fn keeps_one_pad(&self) -> bool {
        self.0.keeps_one_pad()
    }

    fn check(&self, slot: &str, pads_kept: bool) -> Result<(), Contradiction> {
        self.0.check(slot, pads_kept)
    }

    fn network(
        &self,
        architecture: &dyn Architecture,
        tokens: &mut TokenRules,
        _end_id: u32,
    ) -> Result<Arc<dyn Network>, Misfit> {
        let architecture = architecture.of_kind::<Umt5EncoderArchitecture>(&Umt5)?;
        Ok(Arc::new(Umt5Network {
            architecture: architecture.clone(),
            forward: self.0.effective(tokens),
        }))
    }
}
