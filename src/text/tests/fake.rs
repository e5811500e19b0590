//! A kind that no file has: it goes through everything a kind is asked, with a token rule of its own (a template around
//! the caption) and a forward rule of its own (rows of the template that are dropped). Its network gives each token its
//! row of a table.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;

use super::super::config::{ConfigError, ConfigFields, read};
use super::super::spec::{PadText, TokenRules};
use super::super::t5::T5;
use super::super::tokenizer::{
    Pipeline, TokenizerDefinition, TokenizerFormat, Vocabulary, Windows, read_bytes,
};
use super::super::{
    Architecture, Contradiction, Encoded, Error, ForwardRecipe, Kind, LoadedNetwork,
    LocatedEncoder, Misfit, Network, Residency, TextEncoder, Tokenizer, Tokens, weights_digest,
};
use crate::digest::{self, Digest};
use crate::monitor::Stop;
use crate::nn::weights::Weights;
use crate::recipe::EncoderRecipe;
use crate::recipe::rules::EncoderRules;
use crate::text::TokenizerIdentity;

#[derive(Debug)]
struct Fake;

static FORMAT: TokenizerFormat = TokenizerFormat {
    name: "word",
    files: &["words.txt"],
    expected: "words.txt",
    before: &[],
    after: &[],
    end: "<end>",
    unknown: |_| "<end>",
    read: |file| {
        let text = String::from_utf8(read_bytes(file)?).expect("UTF-8");
        Ok(TokenizerDefinition {
            vocabulary: Box::new(Words(text.lines().map(str::to_owned).collect())),
            added: Vec::new(),
        })
    },
    prompt: |rules, caption| Some(rules.of_kind["template"].as_str()?.replace("{}", caption)),
    needs: |_| Vec::new(),
    windows: |_| Windows::One,
    readable: |token| token,
};

struct Words(Vec<String>);

impl Vocabulary for Words {
    fn id_of(&self, token: &str) -> Option<u32> {
        let at = self.0.iter().position(|word| word == token)?;
        u32::try_from(at).ok()
    }

    fn largest(&self) -> Option<(u32, String)> {
        let last = self.0.last()?;
        Some((self.id_of(last)?, last.clone()))
    }

    fn canonical(&self, _added: &[crate::text::tokenizer::AddedToken]) -> Vec<u8> {
        digest::canonical_json(&self.0)
    }

    fn pipeline(&self) -> tokenizers::Result<Pipeline> {
        let ids = self.0.iter().cloned().zip(0..).collect();
        let model = WordLevel::builder()
            .vocab(ids)
            .unk_token("<end>".to_owned())
            .build()?;
        let mut tokenizer = tokenizers::Tokenizer::new(model);
        tokenizer.with_pre_tokenizer(Some(WhitespaceSplit));
        Pipeline::new(tokenizer, ["<end>".to_owned()])
    }
}

impl Kind for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn word(&self) -> &'static str {
        "fake"
    }

    fn title(&self) -> &'static str {
        "table of rows"
    }

    fn weights(&self) -> &'static str {
        "a table"
    }

    fn anchors(&self) -> &'static [&'static str] {
        &["table"]
    }

    fn model_types(&self) -> &'static [&'static str] {
        &["fake"]
    }

    fn fields(&self) -> &'static str {
        ""
    }

    fn tokenizer(&self) -> &'static TokenizerFormat {
        &FORMAT
    }

    fn architecture(&self, config: ConfigFields<'_>) -> Result<Box<dyn Architecture>, ConfigError> {
        config.model_type(self.model_types())?;
        Ok(Box::new(Table {
            rows: config.size("rows", 1)?,
            width: config.size("width", 1)?,
        }))
    }

    fn published(&self, _slot: &str) -> Option<Box<dyn Architecture>> {
        None
    }

    fn check_tokens(&self, own: &Map<String, Value>, _: PadText) -> Result<(), String> {
        match own.iter().find(|(name, _)| *name != "template") {
            Some((name, _)) => Err(format!("unknown field `{name}`")),
            None => Ok(()),
        }
    }

    fn forward_recipe(&self, forward: Value) -> serde_json::Result<Arc<dyn ForwardRecipe>> {
        Ok(Arc::new(serde_json::from_value::<Drop>(forward)?))
    }

    fn network(&self, architecture: Value, forward: Value) -> serde_json::Result<Arc<dyn Network>> {
        Ok(Arc::new(DroppedTable {
            table: serde_json::from_value(architecture)?,
            forward: serde_json::from_value(forward)?,
        }))
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Table {
    rows: usize,
    width: usize,
}

impl Architecture for Table {
    fn kind(&self) -> &'static dyn Kind {
        &Fake
    }

    fn to_json(&self) -> Value {
        json!(self)
    }

    fn vocab_size(&self) -> usize {
        self.rows
    }

    fn width(&self) -> usize {
        self.width
    }

    fn end_id(&self) -> u32 {
        0
    }
}

/// How many rows are left out in front.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Drop {
    drop: usize,
}

impl ForwardRecipe for Drop {
    fn kind(&self) -> &'static dyn Kind {
        &Fake
    }

    fn to_json(&self) -> Value {
        json!(self)
    }

    fn no_sequence(&self) -> Option<&'static str> {
        None
    }

    fn is_pooled(&self) -> bool {
        false
    }

    fn check(&self, _slot: &str, _pads_kept: bool) -> Result<(), Contradiction> {
        Ok(())
    }

    fn network(
        &self,
        architecture: &dyn Architecture,
        _tokens: &mut TokenRules,
        _end_id: u32,
    ) -> Result<Arc<dyn Network>, Misfit> {
        Ok(Arc::new(DroppedTable {
            table: architecture.of_kind::<Table>(&Fake)?.clone(),
            forward: self.clone(),
        }))
    }
}

#[derive(Debug)]
struct DroppedTable {
    table: Table,
    forward: Drop,
}

impl Network for DroppedTable {
    fn architecture(&self) -> &dyn Architecture {
        &self.table
    }

    fn forward(&self) -> Value {
        json!(self.forward)
    }

    fn rows(&self, tokens: &Tokens) -> usize {
        tokens.ids.len().saturating_sub(self.forward.drop)
    }

    fn width(&self) -> usize {
        self.table.width
    }

    fn locate(&self, weights: &Weights) -> Result<LocatedEncoder, Error> {
        let tensors = vec![("table".to_owned(), vec![self.table.rows, self.table.width])];
        weights.require(&tensors)?;
        Ok(LocatedEncoder {
            weights: weights.clone(),
            tensors,
            tables: &[],
            notes: Vec::new(),
        })
    }

    fn load(
        &self,
        located: &LocatedEncoder,
        _: Residency,
    ) -> Result<Box<dyn LoadedNetwork>, Error> {
        let shape = [self.table.rows, self.table.width];
        Ok(Box::new(Loaded {
            table: located.weights.get(&shape, "table")?,
            drop: self.forward.drop,
        }))
    }
}

struct Loaded {
    table: Tensor,
    drop: usize,
}

impl LoadedNetwork for Loaded {
    fn encode(&self, captions: &[Tokens], _: Stop) -> Result<Vec<Encoded>, Error> {
        let encode = |tokens: &Tokens| {
            let ids = Tensor::new(&tokens.ids[self.drop..], self.table.device())?;
            Ok(Encoded {
                hidden: Some(self.table.index_select(&ids, 0)?),
                pooled: None,
            })
        };
        captions.iter().map(encode).collect()
    }
}

/// A recipe's encoder of the fake kind.
fn recipe(tokens: Value, forward: Value) -> Result<EncoderRecipe, String> {
    let rules = json!({
        "tokens": tokens, "forward": forward, "absent": "refuse",
        "precision": {"compute": "f32", "output": "f32"},
    });
    Ok(EncoderRecipe {
        slot: "llm".to_owned(),
        component: "text_encoder".to_owned(),
        tokenizer_component: "tokenizer".to_owned(),
        rules: EncoderRules::from_json(&Fake, rules)?,
    })
}

fn token_rules() -> Value {
    json!({
        "cleanup": [], "min_tokens": 0, "max_tokens": 4, "truncation": "tokens", "pad": "end",
        "pad_text": "ordinary", "template": "describe : {}",
    })
}

/// Its configuration, tokenizer and weights.
fn write_checkpoint(folder: &Path) -> Weights {
    let config = json!({"model_type": "fake", "rows": 5, "width": 2});
    fs::write(folder.join("config.json"), config.to_string()).expect("written");
    fs::write(folder.join("words.txt"), "<end>\ndescribe\n:\na\ncat").expect("written");
    let table = Tensor::arange(0f32, 10.0, &Device::Cpu).and_then(|t| t.reshape((5, 2)));
    let tensors = [("table".to_owned(), table.expect("a table"))];
    super::weights_of(&tensors.into_iter().collect())
}

#[test]
fn a_kind_needs_nothing_beside_its_traits() {
    let folder = tempfile::tempdir().expect("folder");
    let weights = write_checkpoint(folder.path());
    let architecture = read(&folder.path().join("config.json"), &Fake).expect("a configuration");
    let tokenizer = Tokenizer::load(Fake.tokenizer(), folder.path()).expect("a tokenizer");
    let identity = TokenizerIdentity {
        digest: tokenizer.digest(),
        end_id: tokenizer.eos_id(),
    };
    let recipe = recipe(token_rules(), json!({"drop": 2})).expect("rules");
    let mut spec = recipe
        .spec(&*architecture, Digest::of(b""), identity)
        .expect("rules that fit");
    spec.weights = weights_digest(&*spec.network, &weights, None).expect("digests");

    let told = serde_json::to_value(&spec).expect("JSON");
    assert_eq!(
        told["architecture"],
        json!({"kind": "fake", "rows": 5, "width": 2})
    );
    assert_eq!(told["forward"], json!({"kind": "fake", "drop": 2}));
    assert_eq!(told["tokens"]["template"], "describe : {}");
    let back = Fake.network(json!({"rows": 5, "width": 2}), json!({"drop": 2}));
    assert_eq!(back.expect("own JSON").forward(), spec.network.forward());

    // "describe : a cat dog" is cut to four tokens, of which the template's two are dropped.
    let tokens = tokenizer
        .encode(&spec.tokens, "a cat dog")
        .expect("encodes");
    assert_eq!(
        (tokens.ids.as_slice(), tokens.total),
        (&[1, 2, 3, 4][..], 5)
    );
    let encoder = TextEncoder::load(&*spec.network, &weights, Residency::Resident).expect("loads");
    let encoded = encoder.encode(&[tokens]).expect("encodes");
    let outputs: Vec<_> = encoded[0].outputs().collect();
    let [("hidden", hidden)] = outputs.as_slice() else {
        panic!("{outputs:?}")
    };
    assert_eq!(hidden.dtype(), DType::F32);
    let rows = hidden.to_vec2::<f32>().expect("rows");
    assert_eq!(rows, [[6.0, 7.0], [8.0, 9.0]]);
}

#[test]
fn a_rule_of_no_kind_and_a_checkpoint_of_another_are_refused() {
    let mut tokens = token_rules();
    tokens["chat"] = json!(true);
    let error = recipe(tokens, json!({"drop": 0})).expect_err("no such rule");
    assert_eq!(error, "unknown field `chat`");
    // What one kind has, another does not.
    let rules = json!({"tokens": token_rules()});
    let error = EncoderRules::from_json(&T5, rules).expect_err("no such rule");
    assert_eq!(error, "unknown field `template`");

    let t5 = crate::text::published("t5").expect("T5");
    let identity = TokenizerIdentity {
        digest: Digest::of(b""),
        end_id: 0,
    };
    let recipe = recipe(token_rules(), json!({"drop": 0})).expect("rules");
    let error = recipe
        .spec(&*t5, Digest::of(b""), identity)
        .expect_err("another kind");
    assert!(
        error
            .to_string()
            .contains("wants a table of rows, the checkpoint has a T5 encoder"),
        "{error}"
    );
}
