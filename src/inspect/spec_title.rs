//! What a spec of a store is, in a line: a store knows nothing of recipes, but its specs say what they describe.

use serde_json::Value;

use crate::digest::Fingerprint;
use crate::recipe::diff::readable;
use crate::store::StoreReader;
use crate::text;

use super::Error;
use crate::cache;

/// The JSON of a spec; `Null` where the store has none or it cannot be understood.
///
/// # Errors
/// If the file cannot be read.
pub(super) fn json(reader: &StoreReader, spec: &Fingerprint) -> Result<Value, Error> {
    let json = match reader.spec_json(spec) {
        // What is not the spec in its name describes nothing; `store check` tells of it.
        Err(e) if e.is_content() => None,
        other => other.map_err(cache::Error::from)?,
    };
    Ok(json
        .and_then(|json| serde_json::from_slice(&json).ok())
        .unwrap_or_default())
}

/// A spec in a line, as far as it says what it is.
pub fn spec_title(spec: &Value) -> String {
    let at = |path: &str| spec.pointer(path).filter(|value| !value.is_null());
    let word = |path: &str| at(path).map(|value| readable(Some(value)));
    let mut words = Vec::new();
    if let Some(kind) = at("/architecture/kind").and_then(Value::as_str) {
        words.push(text::kind(kind).map_or(kind.to_owned(), |kind| kind.title().to_owned()));
        let size = |names: [&str; 2]| {
            let found = names
                .iter()
                .find_map(|n| word(&format!("/architecture/{n}")));
            found.unwrap_or_else(|| "?".to_owned())
        };
        let (layers, width) = (
            size(["num_hidden_layers", "num_layers"]),
            size(["hidden_size", "d_model"]),
        );
        words.push(format!("{layers} layers x {width}"));
        words.push(tokens(spec));
        for (field, path) in [
            ("layer", "/forward/hidden_layer"),
            ("layers", "/forward/hidden_layers"),
            ("pooled", "/forward/pooled"),
            ("mask", "/forward/mask"),
            ("pad rows", "/forward/pad_rows"),
        ] {
            let value = word(path).filter(|value| value != "none");
            words.extend(value.map(|value| format!("{field} {value}")));
        }
    } else if let Some(channels) = word("/architecture/latent_channels") {
        words.push(format!("VAE encoder, {channels} channels"));
    } else if let Some(channels) = word("/architecture/z_dim") {
        words.push(format!("VAE encoder of clips, {channels} channels"));
    } else {
        words.push("a spec of an unknown kind".to_owned());
    }
    words.extend(word("/precision/output"));
    words.join(", ")
}

fn tokens(spec: &Value) -> String {
    let count = |name: &str| {
        spec.pointer(&format!("/tokens/{name}"))
            .and_then(Value::as_u64)
    };
    match (count("min_tokens").unwrap_or(0), count("max_tokens")) {
        (0, None) => "all tokens".to_owned(),
        (least, None) => format!("{least} tokens or more"),
        (0, Some(most)) => format!("up to {most} tokens"),
        (least, Some(most)) if least == most => format!("{most} tokens"),
        (least, Some(most)) => format!("{least} to {most} tokens"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::spec_title;

    #[test]
    fn a_language_model_tells_the_layers_that_are_taken() {
        let spec = json!({
            "architecture": {"kind": "qwen3", "num_hidden_layers": 36, "hidden_size": 2560},
            "forward": {"kind": "qwen3", "hidden_layers": [9, 18, 27], "mask": "pads", "pad_rows": "keep"},
            "tokens": {"min_tokens": 512, "max_tokens": 512}, "precision": {"output": "bf16"},
        });
        assert_eq!(
            spec_title(&spec),
            "Qwen3 language model, 36 layers x 2560, 512 tokens, layers [9, 18, 27], mask pads, pad rows keep, bf16"
        );
    }

    #[test]
    fn a_spec_is_told_in_a_line_and_a_foreign_one_says_so() {
        let t5 = json!({
            "architecture": {"kind": "t5_encoder", "num_layers": 24, "d_model": 4096},
            "forward": {"kind": "t5_encoder", "mask": "pads", "pad_rows": "drop"},
            "tokens": {"min_tokens": 0, "max_tokens": 512},
            "precision": {"compute": "bf16", "output": "bf16"},
        });
        let title = spec_title(&t5);
        assert!(
            title.ends_with("24 layers x 4096, up to 512 tokens, mask pads, pad rows drop, bf16"),
            "{title}"
        );
        let vae = json!({"architecture": {"latent_channels": 16}, "precision": {"output": "f32"}});
        assert_eq!(spec_title(&vae), "VAE encoder, 16 channels, f32");
        let wan = json!({"architecture": {"class": "AutoencoderKLWan", "z_dim": 16}, "precision": {"output": "f32"}});
        assert_eq!(spec_title(&wan), "VAE encoder of clips, 16 channels, f32");
        assert_eq!(spec_title(&Value::Null), "a spec of an unknown kind");
    }
}
