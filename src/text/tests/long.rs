//! Captions of several windows, from text to rows, against the programs that join them: `tools/goldens/long_captions.py`.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Golden, compare};
use crate::text::clip::ClipText;
use crate::text::spec::{Cleanup, PadText, TokenRules, Truncation};
use crate::text::{Kind as _, Residency, TextEncoder, Tokenizer};

/// Largest difference, relative to the root mean square of the tensor.
const TOLERANCE: f32 = 1e-5;

#[derive(Deserialize)]
struct Long {
    caption: String,
    tokens: LongTokens,
}

#[derive(Deserialize)]
struct LongTokens {
    chunks: Value,
    min_tokens: usize,
    max_tokens: usize,
    truncation: Truncation,
    pad_id: u32,
}

impl LongTokens {
    fn rules(&self) -> TokenRules {
        TokenRules {
            // ComfyUI's tokenizer parses prompt weights.
            cleanup: match self.truncation {
                Truncation::WholeWords => vec![Cleanup::DropPromptWeights],
                Truncation::Tokens => Vec::new(),
            },
            min_tokens: self.min_tokens,
            max_tokens: Some(self.max_tokens),
            truncation: self.truncation,
            pad_id: self.pad_id,
            pad_text: PadText::Ordinary,
            of_kind: Map::from_iter([("chunks".to_owned(), self.chunks.clone())]),
        }
    }
}

#[test]
fn long_captions_are_what_kohya_comfyui_and_diffusion_pipe_make_of_them() {
    let golden = Golden::open("clip_long.safetensors");
    let long: Vec<Long> = golden.cases_as();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizers");
    let tokenizer = Tokenizer::load(ClipText.tokenizer(), &folder.join("clip")).expect("CLIP");
    let weights = golden.weights("clip");
    let (mut rows, mut lengths) = (0, std::collections::BTreeSet::new());
    for (index, (case, long)) in golden.cases().iter().zip(&long).enumerate() {
        let what = format!("case {index}, {:?}", long.caption);
        let tokens = tokenizer.encode(&long.tokens.rules(), &long.caption);
        let tokens = tokens.expect("encodes");
        let wanted = &super::captions(&golden, case)[0];
        assert_eq!(tokens.ids, wanted.ids, "{what}");
        let encoder = TextEncoder::load(&*case.network(), &weights, Residency::Resident);
        let encoded = encoder.and_then(|e| e.encode(&[tokens])).expect("encodes");
        let output = |name: &Option<String>| golden.row(name.as_ref().expect("a name"), 0);
        let (hidden, pooled) = (&encoded[0].hidden, &encoded[0].pooled);
        let hidden = hidden.as_ref().expect("a sequence");
        compare(hidden, &output(&case.hidden), TOLERANCE, &what);
        let pooled = pooled.as_ref().expect("a pooled row");
        compare(pooled, &output(&case.pooled), TOLERANCE, &what);
        rows += wanted.ids.len();
        lengths.insert(wanted.ids.len());
    }
    // kohya's 150 and 225, diffusion-pipe's empty caption, whole windows.
    assert!(
        [2, 77, 152, 227, 154].iter().all(|n| lengths.contains(n)),
        "{lengths:?}"
    );
    assert!(rows > 8000, "{rows}");
}
