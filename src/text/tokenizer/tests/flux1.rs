//! FLUX.1's recipes: ids of all captions by the route of every variant and flavor, against
//! `tools/goldens/tokens_flux1.py`.

use super::*;

fn compare(vocabulary: &str, folder: &Path) {
    let text = fs::read(golden("tokens_flux1.json")).expect("golden");
    let all: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_slice(&text).expect("JSON");
    let expected = &all[vocabulary];
    let bytes = fs::read(golden("tokens.safetensors")).expect("golden");
    let captions = captions(&SafeTensors::deserialize(&bytes).expect("safetensors"));
    let clip = Tokenizer::load(ClipText.tokenizer(), &folder.join("clip")).expect("CLIP");
    let t5 = Tokenizer::load(T5.tokenizer(), &folder.join("t5")).expect("T5");
    let mut found = BTreeMap::new();
    // Most routes have equal rules.
    let mut by_rules: BTreeMap<String, String> = BTreeMap::new();
    let listings = recipe::list().expect("recipes");
    // musubi's is the reference with another implementation.
    let of_flux = |l: &&recipe::Listing| l.family == "flux1" && l.variant != "musubi";
    for listing in listings.iter().filter(of_flux) {
        for flavor in &listing.flavors {
            let variant = &listing.variant;
            let name = format!("flux1/{flavor}:{variant}").parse().expect("a name");
            for encoder in Recipe::shipped(&name).expect("shipped").encoders() {
                let tokenizer = if encoder.slot == "t5" { &t5 } else { &clip };
                let rules = by_todays(encoder.tokens(tokenizer.eos_id()));
                let digest = || {
                    let mut whole = blake3::Hasher::new();
                    for tokens in tokenizer.encode_all(&rules, &captions).expect("encodes") {
                        whole.update(&packed(&tokens));
                        check_counts(&tokens, &rules, tokenizer);
                    }
                    whole.finalize().to_hex().to_string()
                };
                let is_t5 = encoder.slot == "t5";
                let ids = by_rules.entry(format!("{is_t5} {rules:?}"));
                let ids = ids.or_insert_with(digest).clone();
                // kontext's routes are dev's.
                let flavor = flavor.replace("kontext", "dev");
                let route = format!("{flavor}/{variant}/{}", encoder.slot);
                let before = found.insert(route, ids.clone());
                assert!(before.is_none_or(|before| before == ids), "{name}");
            }
        }
    }
    assert_eq!(&found, expected);
    assert_eq!(found.len(), 7 * 2 * 2);
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
