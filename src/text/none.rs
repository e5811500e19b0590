//! TOML has no null: in a recipe's data "nothing" is the word `none`.

use serde::{Deserialize, Serialize, Serializer};

/// The word `none`, as an alternative to a value in an untagged enum.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoneWord {
    /// Nothing.
    None,
}

/// Writes a value, or `none`.
///
/// # Errors
/// If the value cannot be written.
pub fn none_or<T: Serialize, S: Serializer>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => value.serialize(to),
        None => to.serialize_str("none"),
    }
}
