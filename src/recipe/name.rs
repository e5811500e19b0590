//! What recipes are called: `sd3/3.5-large`, `sd3/3.5-large:kohya`.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::Error;

/// The variant that is meant where none is named: the authors' own code.
pub const REFERENCE: &str = "reference";

/// A recipe's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecipeName {
    /// The family: `sd3`.
    pub family: String,
    /// The flavor: `3.5-large`.
    pub flavor: String,
    /// Whose way of making conditioning: `reference`, `diffusers`, ...
    pub variant: String,
}

impl RecipeName {
    /// The reference of a flavor.
    pub fn reference(family: &str, flavor: &str) -> Self {
        Self {
            family: family.to_owned(),
            flavor: flavor.to_owned(),
            variant: REFERENCE.to_owned(),
        }
    }
}

impl FromStr for RecipeName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let malformed = || Error::MalformedName(text.to_owned());
        let (model, variant) = text.split_once(':').unwrap_or((text, REFERENCE));
        let (family, flavor) = model.split_once('/').ok_or_else(malformed)?;
        if [family, flavor, variant].iter().any(|part| part.is_empty()) {
            return Err(malformed());
        }
        Ok(Self {
            family: family.to_owned(),
            flavor: flavor.to_owned(),
            variant: variant.to_owned(),
        })
    }
}

impl fmt::Display for RecipeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.family, self.flavor)?;
        // Left out as a person would: the name parses back to the same.
        if self.variant != REFERENCE {
            write!(f, ":{}", self.variant)?;
        }
        Ok(())
    }
}
