//! Ids against transformers and the reference code, over the captions of `tests/golden/tokens.safetensors`.

#![expect(clippy::disallowed_methods, reason = "the files are the test's own")]

mod flux1;
mod implementations;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use safetensors::SafeTensors;

use super::*;
use crate::recipe::{self, Recipe};
use crate::text::Kind as _;
use crate::text::clip::ClipText;
use crate::text::spec::Cleanup;
use crate::text::t5::T5;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

/// The folder with clip/ and t5/ of the real vocabularies, where the environment names one.
fn real_tokenizers() -> Option<PathBuf> {
    let folder = std::env::var_os("PLUMB_TOKENIZERS").map(PathBuf::from);
    if folder.is_none() {
        println!("skipped: PLUMB_TOKENIZERS does not name the folder of the real tokenizers");
    }
    folder
}

fn rules(max_tokens: usize, pad_id: u32) -> TokenRules {
    TokenRules {
        cleanup: Vec::new(),
        min_tokens: max_tokens,
        max_tokens: Some(max_tokens),
        truncation: Truncation::Tokens,
        pad_id,
        pad_text: PadText::Ordinary,
        of_kind: serde_json::Map::new(),
    }
}

/// `rules`, read by transformers 5, which made these files. The other implementations have a test of their own.
fn by_todays(mut rules: TokenRules) -> TokenRules {
    rules.of_kind.remove(IMPLEMENTATION);
    rules
}

/// The token rules of every encoder of every shipped SD3 recipe, by `variant/encoder`.
fn shipped_rules(clip: &Tokenizer, t5: &Tokenizer) -> BTreeMap<String, TokenRules> {
    let mut found = BTreeMap::new();
    for listing in recipe::list()
        .expect("recipes")
        .iter()
        .filter(|l| l.family == "sd3")
    {
        let (flavor, variant) = (&listing.flavors[0], &listing.variant);
        let name = format!("sd3/{flavor}:{variant}").parse().expect("a name");
        for encoder in Recipe::shipped(&name).expect("shipped").encoders() {
            let tokenizer = if encoder.slot == "t5" { t5 } else { clip };
            let rules = by_todays(encoder.tokens(tokenizer.eos_id()));
            found.insert(format!("{variant}/{}", encoder.slot), rules);
        }
    }
    found
}

fn captions(file: &SafeTensors<'_>) -> Vec<String> {
    let mut text = file.tensor("text").expect("text").data();
    let lengths = file.tensor("lengths").expect("lengths");
    lengths
        .data()
        .chunks_exact(4)
        .map(|length| {
            let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
            let (caption, rest) = text.split_at(length);
            text = rest;
            String::from_utf8(caption.to_vec()).expect("UTF-8")
        })
        .collect()
}

fn packed(tokens: &Tokens) -> Vec<u8> {
    let length = tokens.ids.len() as u32;
    std::iter::once(&length)
        .chain(&tokens.ids)
        .flat_map(|id| id.to_le_bytes())
        .collect()
}

/// Every caption by every route, against the digests that the Python routes gave.
fn compare(vocabulary: &str, folder: &Path) {
    let bytes = fs::read(golden("tokens.safetensors")).expect("golden");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("header");
    let expected: BTreeMap<String, String> =
        serde_json::from_str(&metadata.metadata().as_ref().expect("metadata")[vocabulary])
            .expect("JSON");
    let captions = captions(&file);
    assert!(captions.len() >= 10_000);
    let clip = Tokenizer::load(ClipText.tokenizer(), &folder.join("clip")).expect("CLIP");
    let t5 = Tokenizer::load(T5.tokenizer(), &folder.join("t5")).expect("T5");

    let shipped = shipped_rules(&clip, &t5);
    assert_eq!(
        shipped.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>(),
        "every shipped variant has its route"
    );
    let mut by_caption = vec![blake3::Hasher::new(); captions.len()];
    let mut wrong_routes = Vec::new();
    // Most routes have equal rules.
    let mut by_rules: BTreeMap<String, Vec<Tokens>> = BTreeMap::new();
    for (name, rules) in &shipped {
        let tokenizer = if name.ends_with("/t5") { &t5 } else { &clip };
        let mut whole = blake3::Hasher::new();
        let encoded = by_rules.entry(format!("{} {rules:?}", name.ends_with("/t5")));
        let encoded = encoded.or_insert_with(|| {
            let encoded = tokenizer.encode_all(rules, &captions).expect("encodes");
            for tokens in &encoded {
                check_counts(tokens, rules, tokenizer);
            }
            encoded
        });
        for (hasher, tokens) in by_caption.iter_mut().zip(&*encoded) {
            let packed = packed(tokens);
            hasher.update(&packed);
            whole.update(&packed);
        }
        if whole.finalize().to_hex().as_str() != expected[name] {
            wrong_routes.push(name);
        }
    }
    let wanted = file.tensor(vocabulary).expect("digests").data();
    let wrong: Vec<_> = (by_caption.iter().zip(wanted.chunks_exact(8)).enumerate())
        .filter(|(_, (hasher, wanted))| hasher.finalize().as_bytes()[..8] != **wanted)
        .map(|(at, _)| (at, &captions[at]))
        .collect();
    assert!(
        wrong.is_empty() && wrong_routes.is_empty(),
        "{vocabulary}: {} of {} captions differ, by {wrong_routes:?}; see `tools/goldens/tokens.py --show N`: {:?}",
        wrong.len(),
        captions.len(),
        &wrong[..wrong.len().min(20)]
    );
}

fn check_counts(tokens: &Tokens, rules: &TokenRules, tokenizer: &Tokenizer) {
    let Tokens {
        ids,
        count,
        truncated,
        total,
    } = tokens;
    assert!(*count <= ids.len() && *count <= *total, "{tokens:?}");
    assert_eq!(*truncated, count < total, "{tokens:?}");
    assert_eq!(ids.len(), rules.min_tokens.max(*count), "{tokens:?}");
    assert!(
        rules.max_tokens.is_none_or(|max| ids.len() <= max),
        "{tokens:?}"
    );
    assert_eq!(ids[count - 1], tokenizer.eos_id(), "{tokens:?}");
    assert!(ids.starts_with(&tokenizer.before), "{tokens:?}");
    assert!(
        ids[*count..].iter().all(|id| *id == rules.pad_id),
        "{tokens:?}"
    );
}

#[test]
fn ids_of_the_tiny_vocabularies_are_those_of_every_variant() {
    compare("tiny", &golden("tokenizers"));
}

#[test]
fn ids_of_the_real_vocabularies_are_those_of_every_variant() {
    if let Some(folder) = real_tokenizers() {
        compare("real", &folder);
    }
}

#[test]
fn known_answers() {
    let Some(folder) = real_tokenizers() else {
        return;
    };
    let clip = Tokenizer::load(ClipText.tokenizer(), &folder.join("clip")).expect("CLIP");
    let t5 = Tokenizer::load(T5.tokenizer(), &folder.join("t5")).expect("T5");
    let check = |tokenizer: &Tokenizer, rules: &TokenRules, caption: &str, expected: &[u32]| {
        let tokens = tokenizer.encode(rules, caption).expect("encodes");
        assert_eq!(tokens.ids[..tokens.count], *expected, "{caption:?}");
        assert!(
            tokens.ids[tokens.count..]
                .iter()
                .all(|id| *id == rules.pad_id)
        );
    };
    let l = rules(77, 49407);
    check(&clip, &l, "a cat!", &[49406, 320, 2368, 256, 49407]);
    check(
        &clip,
        &l,
        "A  Cat\n sits.",
        &[49406, 320, 2368, 12726, 269, 49407],
    );
    check(&clip, &l, "don't stop", &[49406, 847, 713, 1691, 49407]);
    check(
        &clip,
        &l,
        "x y z 123",
        &[49406, 343, 344, 345, 272, 273, 274, 49407],
    );
    check(
        &clip,
        &l,
        "a_b-c/d",
        &[49406, 320, 318, 321, 268, 322, 270, 323, 49407],
    );
    check(
        &clip,
        &l,
        "hello<|endoftext|>world",
        &[49406, 3306, 49407, 1002, 49407],
    );
    check(
        &clip,
        &l,
        "emoji \u{1F600} end",
        &[49406, 16327, 7334, 806, 49407],
    );
    check(&clip, &l, "", &[49406, 49407]);
    let cats = clip.encode(&l, &"cat ".repeat(200)).expect("encodes");
    assert_eq!(
        (&cats.ids[74..], cats.count, cats.total),
        (&[2368, 2368, 49407][..], 77, 202)
    );
    let g = rules(77, 0);
    check(&clip, &g, "a cat!", &[49406, 320, 2368, 256, 49407]);
    check(&clip, &g, "wow!!! nice", &[49406, 2781, 995, 1805, 49407]);
    let g = TokenRules {
        pad_text: PadText::Special,
        ..g
    };
    check(&clip, &g, "a cat!", &[49406, 320, 2368, 0, 49407]);
    check(
        &clip,
        &g,
        "wow!!! nice",
        &[49406, 2781, 0, 0, 0, 1805, 49407],
    );
    let reference = TokenRules {
        cleanup: vec![Cleanup::DropPromptWeights],
        truncation: Truncation::WholeWords,
        ..l
    };
    let words = [49406, 320, 736, 2368, 267, 1205, 1929, 49407];
    check(&clip, &reference, "a (red) cat, (big:1.3) dog", &words);

    let rules = rules(77, 0);
    check(&t5, &rules, "a cat", &[3, 9, 1712, 1]);
    check(&t5, &rules, "A Cat, sitting!", &[71, 3431, 6, 3823, 55, 1]);
    check(&t5, &rules, "a \n\n cat.\n", &[3, 9, 1712, 5, 1]);
    let curly = [105, 3663, 120, 153, 34, 22, 7, 11949, 1];
    check(
        &t5,
        &rules,
        "\u{201c}curly\u{201d} it\u{2019}s caf\u{e9}",
        &curly,
    );
    let unknown = [3, 2, 226, 10, 209, 2, 3, 2, 3, 2, 3, 2, 3, 2, 1];
    check(&t5, &rules, "{x: 1} ~ ^ \\ `", &unknown);
    check(
        &t5,
        &rules,
        "emoji \u{1F600} end",
        &[3, 15, 51, 21892, 3, 2, 414, 1],
    );
    check(&t5, &rules, "hello</s>world", &[21820, 1, 296, 1]);
    check(&t5, &rules, "", &[1]);
    let cats = t5.encode(&rules, &"cat ".repeat(900)).expect("encodes");
    assert_eq!((&cats.ids[74..], cats.total), (&[1712, 1712, 1][..], 901));
    assert_eq!(clip.token(7334).as_deref(), Some("\u{1F600}</w>"));
    assert_eq!(t5.token(1712).as_deref(), Some("\u{2581}cat"));
}

/// A tokenizer's digest by each of the files that it is kept in.
fn digests(kind: &'static TokenizerFormat, folder: &Path, files: &[&str]) -> Vec<Digest> {
    let load = |file| {
        Tokenizer::load(kind, &folder.join(file))
            .expect("loads")
            .digest()
    };
    files.iter().map(load).collect()
}

#[test]
fn equal_tokenizers_have_equal_digests_whatever_file_they_are_kept_in() {
    let check = |folder: &Path| {
        let clip = digests(
            ClipText.tokenizer(),
            &folder.join("clip"),
            &["", "tokenizer.json", "vocab.json"],
        );
        assert!(clip.iter().all(|digest| *digest == clip[0]), "{clip:?}");
        let t5 = digests(
            T5.tokenizer(),
            &folder.join("t5"),
            &["", "tokenizer.json", "spiece.model"],
        );
        assert!(t5.iter().all(|digest| *digest == t5[0]), "{t5:?}");
        assert_ne!(clip[0], t5[0]);
    };
    check(&golden("tokenizers"));
    if let Some(folder) = real_tokenizers() {
        check(&folder);
    }
}

#[test]
fn the_digest_is_that_of_the_documented_canonical_form() {
    let folder = golden("tokenizers/clip");
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("tokenizer.json")).expect("file"))
            .expect("JSON");
    let canonical = serde_json::json!({
        "kind": "clip", "version": 1, "added": [],
        "vocab": json["model"]["vocab"], "merges": json["model"]["merges"],
    });
    let canonical = crate::digest::canonical_json(&canonical);
    assert_eq!(
        digests(ClipText.tokenizer(), &folder, &[""])[0],
        Digest::of(&canonical)
    );
}

/// A copy of the tiny tokenizers that a test may damage.
fn copy() -> tempfile::TempDir {
    let to = tempfile::tempdir().expect("folder");
    for kind in ["clip", "t5"] {
        fs::create_dir(to.path().join(kind)).expect("folder");
        for entry in fs::read_dir(golden("tokenizers").join(kind)).expect("golden") {
            let from = entry.expect("entry").path();
            fs::copy(
                &from,
                to.path().join(kind).join(from.file_name().expect("name")),
            )
            .expect("copy");
        }
    }
    to
}

#[test]
fn added_tokens_count_whichever_file_names_them() {
    let copy = copy();
    let clip = copy.path().join("clip");
    let plain = Tokenizer::load(ClipText.tokenizer(), &clip).expect("loads");
    let next = plain.largest.0 + 1;
    // `!` inside the vocabulary is the recipe's business and changes nothing.
    let config =
        |tokens: &str| format!("{{\"added_tokens_decoder\": {{{tokens}}}, \"pad_token\": \"!\"}}");
    let pad = "\"0\": {\"content\": \"!\", \"special\": true}";
    fs::write(clip.join("tokenizer_config.json"), config(pad)).expect("write");
    let same = Tokenizer::load(ClipText.tokenizer(), &clip).expect("loads");
    assert_eq!(same.digest(), plain.digest());

    let tokens = format!("{pad}, \"{next}\": {{\"content\": \"<cat-toy>\", \"normalized\": true}}");
    fs::write(clip.join("tokenizer_config.json"), config(&tokens)).expect("write");
    let inverted = Tokenizer::load(ClipText.tokenizer(), &clip).expect("loads");
    assert_ne!(inverted.digest(), plain.digest());
    let tokens = inverted
        .encode(&rules(77, 0), "a <CAT-toy>!")
        .expect("encodes");
    assert!(tokens.ids.contains(&next), "{tokens:?}");
    assert!(
        inverted.check_fits(next as usize + 1).is_ok()
            && inverted.check_fits(next as usize).is_err()
    );

    let gap = format!("\"{}\": {{\"content\": \"<gap>\"}}", next + 5);
    fs::write(clip.join("tokenizer_config.json"), config(&gap)).expect("write");
    let error = Tokenizer::load(ClipText.tokenizer(), &clip)
        .expect_err("a gap")
        .to_string();
    assert!(
        error.contains("`<gap>`") && error.contains("next free"),
        "{error}"
    );
}

#[test]
fn a_missing_or_wrong_file_is_named() {
    let copy = copy();
    let check = |kind, path: &str, expected: &str| {
        let error = Tokenizer::load(kind, &copy.path().join(path))
            .expect_err(path)
            .to_string();
        assert!(error.contains(expected), "{error}");
        assert!(
            error.contains(copy.path().to_str().expect("UTF-8")),
            "{error}"
        );
    };
    check(
        ClipText.tokenizer(),
        "nowhere",
        "expected tokenizer.json, or vocab.json and merges.txt",
    );
    check(
        T5.tokenizer(),
        "",
        "expected tokenizer.json or spiece.model",
    );
    check(ClipText.tokenizer(), "t5", "not a CLIP tokenizer");
    check(T5.tokenizer(), "clip", "not a T5 tokenizer");
    check(
        ClipText.tokenizer(),
        "t5/spiece.model",
        "expected a tokenizer.json",
    );
    fs::remove_file(copy.path().join("clip/merges.txt")).expect("remove");
    check(
        ClipText.tokenizer(),
        "clip/vocab.json",
        "merges.txt: cannot be read",
    );
    fs::write(
        copy.path().join("clip/merges.txt"),
        "#version: 0.2\na b c\n",
    )
    .expect("write");
    check(
        ClipText.tokenizer(),
        "clip/vocab.json",
        "`a b c` is not a merge",
    );
    fs::write(copy.path().join("clip/merges.txt"), "a nosuchtoken\n").expect("write");
    check(ClipText.tokenizer(), "clip/vocab.json", "needs the token");
    let vocab = "{\"<|startoftext|>\": 0, \"<|endoftext|>\": 0}";
    fs::write(copy.path().join("clip/vocab.json"), vocab).expect("write");
    check(
        ClipText.tokenizer(),
        "clip/vocab.json",
        "two tokens have the id 0",
    );
    fs::write(copy.path().join("clip/vocab.json"), "{\"a\": 0}").expect("write");
    check(
        ClipText.tokenizer(),
        "clip/vocab.json",
        "no `<|startoftext|>`",
    );
    fs::write(
        copy.path().join("clip/tokenizer.json"),
        "{\"model\": {\"vocab\": 3}}",
    )
    .expect("write");
    check(ClipText.tokenizer(), "clip", "not a CLIP tokenizer");
    fs::write(copy.path().join("t5/tokenizer.json"), "{").expect("write");
    check(T5.tokenizer(), "t5", "not JSON");
}

#[test]
fn rules_that_cannot_hold_are_refused() {
    let clip = Tokenizer::load(ClipText.tokenizer(), &golden("tokenizers/clip")).expect("loads");
    let check = |rules: TokenRules, expected: &str| {
        let error = clip
            .encode(&rules, "a cat")
            .expect_err(expected)
            .to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(
        rules(1, 0),
        "max_tokens 1 leaves no room for the 2 special tokens",
    );
    check(
        TokenRules {
            min_tokens: 78,
            ..rules(77, 0)
        },
        "min_tokens 78 is larger",
    );
    check(
        rules(77, 49407),
        "pad_id 49407 is not in the CLIP tokenizer's vocabulary",
    );
    assert_eq!(
        clip.encode(&rules(2, 0), "a cat")
            .expect("room for none")
            .count,
        2
    );
    let error = clip.check_fits(10).expect_err("too few rows").to_string();
    assert!(
        error.contains("10 rows") && error.contains("<|endoftext|>"),
        "{error}"
    );
}

/// Loads what is left of a tokenizer's file, and uses it if it still is one.
fn try_damaged(kind: &'static TokenizerFormat, name: &str, bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join(name);
    fs::write(&file, bytes).expect("write");
    fs::copy(
        golden("tokenizers/clip/merges.txt"),
        folder.path().join("merges.txt"),
    )
    .expect("copy");
    if let Ok(tokenizer) = Tokenizer::load(kind, &file) {
        let text =
            "a \u{fb01}ne (cat:1.2), \u{6771}\u{4eac}\u{ff01} e\u{301} <extra_id_3>\u{1F600}";
        let tokens = tokenizer.encode(&rules(20, 0), text);
        assert!(tokens.is_ok_and(|tokens| tokens.ids.len() == 20));
    }
}

#[test]
fn no_damage_to_a_file_panics() {
    let files = [
        (T5.tokenizer(), "t5/spiece.model"),
        (T5.tokenizer(), "t5/tokenizer.json"),
        (ClipText.tokenizer(), "clip/tokenizer.json"),
        (ClipText.tokenizer(), "clip/vocab.json"),
    ];
    for (kind, path) in files {
        let name = path.rsplit('/').next().expect("name");
        let bytes = fs::read(golden("tokenizers").join(path)).expect("golden");
        for cut in (0..bytes.len()).step_by(bytes.len() / 40) {
            try_damaged(kind, name, &bytes[..cut]);
        }
        // The model file ends with its character map: every byte there decides where the walk goes.
        for at in (0..bytes.len())
            .rev()
            .take(300)
            .chain((0..bytes.len()).step_by(bytes.len() / 100))
        {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            try_damaged(kind, name, &damaged);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_caption_keeps_its_frame(
        caption in "(\\PC|[()\\\\:!., \n\r\t\u{0}-\u{2}]|<\\|endoftext\\|>|</s>|cat){0,60}",
        max in 2_usize..40,
        short in any::<bool>(),
        whole_words in any::<bool>(),
        special in any::<bool>(),
        steps in proptest::collection::vec(0_usize..7, 0..4),
    ) {
        use Cleanup::{
            CollapseWhitespace, DropPromptWeights, FirstCharacters226, FirstLine, Ftfy63, RespaceCommas,
            UnescapeHtmlTwice,
        };
        let all = [
            DropPromptWeights, FirstCharacters226, FirstLine, RespaceCommas, Ftfy63, UnescapeHtmlTwice,
            CollapseWhitespace,
        ];
        let rules = TokenRules {
            cleanup: steps.iter().map(|step| all[*step]).collect(),
            min_tokens: if short { 0 } else { max },
            truncation: if whole_words { Truncation::WholeWords } else { Truncation::Tokens },
            pad_text: if special { PadText::Special } else { PadText::Ordinary },
            ..rules(max, 0)
        };
        for (kind, folder) in [(ClipText.tokenizer(), "clip"), (T5.tokenizer(), "t5")] {
            let tokenizer = Tokenizer::load(kind, &golden("tokenizers").join(folder)).expect("loads");
            let tokens = tokenizer.encode(&rules, &caption).expect("encodes");
            check_counts(&tokens, &rules, &tokenizer);
        }
    }
}
