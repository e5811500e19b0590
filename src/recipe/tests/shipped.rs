//! The recipes that ship.

use expect_test::{Expect, expect};

use super::super::data::{self, RecipeFile, Status, files};
use super::super::explain::{self, Subject};
use super::super::{Diff, Error, REFERENCE, Recipe, RecipeName, list};
use super::{deviated, json, shipped, spec_of};

/// Every recipe: each variant for each flavor it serves.
fn all() -> Vec<RecipeName> {
    let mut names = Vec::new();
    for listing in list().expect("the shipped files") {
        for flavor in &listing.flavors {
            names.push(RecipeName {
                family: listing.family.clone(),
                flavor: flavor.clone(),
                variant: listing.variant.clone(),
            });
        }
    }
    names
}

#[test]
fn every_recipe_file_is_embedded_and_every_recipe_resolves() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut on_disk = Vec::new();
    for family in std::fs::read_dir(root.join("configs/recipes")).expect("the folder") {
        let family = family.expect("an entry").path();
        for file in family
            .is_dir()
            .then(|| std::fs::read_dir(&family))
            .into_iter()
            .flatten()
            .flatten()
        {
            let path = file.expect("an entry").path();
            let path = path.strip_prefix(root).expect("below the root");
            on_disk.push(path.to_string_lossy().replace('\\', "/"));
        }
    }
    let mut embedded: Vec<String> = files().into_iter().map(|f| f.path).collect();
    embedded.sort_unstable();
    on_disk.sort_unstable();
    assert_eq!(on_disk, embedded);

    let names = all();
    // Seven variants of four flavors of SD3, of two of Chroma, of two of Z-Image and of two of FLUX.1, five of these of its third,
    // musubi's of two, eight of four of FLUX.2, nine of eight of SDXL, five of SD1.5, and six of four of Wan.
    assert_eq!(
        names.len(),
        7 * 4 + 7 * 2 + 7 * 2 + 7 * 2 + 5 + 2 + 8 * 4 + 9 * 8 + 5 + 6 * 4
    );
    for name in names {
        let recipe = shipped(&name.to_string());
        assert_eq!(*recipe.name(), name);
        assert!(recipe.deviations().is_empty());
        for encoder in recipe.encoders() {
            spec_of(&recipe, &encoder.slot);
        }
        let file = format!("configs/recipes/{}/{}.toml", name.family, name.variant);
        assert!(files().iter().any(|f| f.path == file), "{file}");
    }
}

#[test]
fn every_field_names_a_source_that_the_file_explains() {
    for variant in data::variants(&files()).expect("the shipped files") {
        let of_flavors = variant.by_flavor.values().flatten();
        for (path, field) in variant.fields.iter().chain(of_flavors) {
            assert!(field.source.len() > 4, "{path}: {}", field.source);
            if let Some((alias, _)) = field.source.split_once(':') {
                assert!(variant.sources.contains_key(alias), "{path}: {alias}");
            }
            assert!(field.status != Status::Deviation);
        }
    }
}

#[test]
fn every_field_of_a_recipe_is_explained() {
    for name in ["sd3/3.5-large", "flux1/dev"] {
        for explained in explain::recipe(&shipped(name)).expect("the table") {
            assert!(
                explained.entry.is_some(),
                "{} is not explained",
                explained.field
            );
        }
    }
}

#[test]
fn what_is_only_believed_is_said_to_be() {
    let claims = |name: &str| shipped(name).claims().len();
    // The reference's eight, less those about flavors of 3.5.
    assert_eq!(claims("sd3/3-medium"), 4);
    assert_eq!(claims("sd3/3.5-medium"), 7);
    assert_eq!(claims("sd3/3.5-large"), 7);
    assert_eq!(claims("sd3/3.5-large:ai-toolkit"), 9);
}

#[test]
fn defaults_in_the_tables_are_those_of_the_parser() {
    use crate::text::config::from_config;
    for kind in crate::text::KINDS {
        let bare = serde_json::json!({ "model_type": kind.model_types()[0] });
        let read = from_config(&bare, *kind, "config.json").expect("all defaults");
        let read = read.to_json();
        let mut compared = 0;
        for entry in explain::table(Subject::Encoder(*kind)).expect("the table") {
            let (Some(default), Some(value)) = (entry.default, read.get(&entry.names[0])) else {
                continue;
            };
            assert_eq!(default, *value, "{:?}", entry.names);
            compared += 1;
        }
        assert!(compared >= 8, "{compared}");
    }
}

/// In which fields a variant differs from the reference.
fn check(variant: &str, expected: Expect) {
    let reference = shipped("sd3/3.5-large");
    let other = shipped(&format!("sd3/3.5-large:{variant}"));
    let diff = Diff::between(&reference.rules(), &other.rules());
    expected.assert_eq(&diff.table(REFERENCE, variant));
}

#[test]
fn diffusers_differs_where_it_is_documented_to() {
    check(
        "diffusers",
        expect![[r#"
            field                         reference                                    diffusers
            clip_g.forward.pooled         argmax_id                                    config_eos
            clip_g.tokens.cleanup         [drop_prompt_weights]                        []
            clip_g.tokens.implementation  transformers_4                               transformers_5
            clip_g.tokens.pad_text        ordinary                                     special
            clip_g.tokens.truncation      whole_words                                  tokens
            clip_l.forward.pooled         argmax_id                                    config_eos
            clip_l.forward.projection     skip                                         apply_if_present
            clip_l.tokens.cleanup         [drop_prompt_weights]                        []
            clip_l.tokens.implementation  transformers_4                               transformers_5
            clip_l.tokens.truncation      whole_words                                  tokens
            t5.absent                     refuse                                       256
            t5.tokens.cleanup             [first_226_characters, drop_prompt_weights]  []
            t5.tokens.implementation      transformers_4_fast                          transformers_5
            t5.tokens.max_tokens          none                                         256
            t5.tokens.min_tokens          77                                           256"#]],
    );
}

#[test]
fn kohya_differs_where_it_is_documented_to() {
    check(
        "kohya",
        expect![[r#"
            field                         reference                                    kohya
            clip_g.forward.pooled         argmax_id                                    config_eos
            clip_g.tokens.cleanup         [drop_prompt_weights]                        [first_line]
            clip_g.tokens.implementation  transformers_4                               transformers_5
            clip_g.tokens.truncation      whole_words                                  tokens
            clip_l.forward.pooled         argmax_id                                    config_eos
            clip_l.forward.projection     skip                                         apply_if_present
            clip_l.tokens.cleanup         [drop_prompt_weights]                        [first_line]
            clip_l.tokens.implementation  transformers_4                               transformers_5
            clip_l.tokens.truncation      whole_words                                  tokens
            t5.absent                     refuse                                       77
            t5.tokens.cleanup             [first_226_characters, drop_prompt_weights]  [first_line]
            t5.tokens.implementation      transformers_4_fast                          transformers_5
            t5.tokens.max_tokens          none                                         256
            t5.tokens.min_tokens          77                                           256"#]],
    );
}

#[test]
fn ai_toolkit_differs_where_it_is_documented_to() {
    check(
        "ai-toolkit",
        expect![[r#"
            field                         reference                                    ai-toolkit
            clip_g.forward.pooled         argmax_id                                    config_eos
            clip_g.tokens.cleanup         [drop_prompt_weights]                        [respace_commas]
            clip_g.tokens.implementation  transformers_4                               transformers_5
            clip_g.tokens.pad_text        ordinary                                     special
            clip_g.tokens.truncation      whole_words                                  tokens
            clip_l.forward.pooled         argmax_id                                    config_eos
            clip_l.forward.projection     skip                                         apply_if_present
            clip_l.tokens.cleanup         [drop_prompt_weights]                        [respace_commas]
            clip_l.tokens.implementation  transformers_4                               transformers_5
            clip_l.tokens.truncation      whole_words                                  tokens
            t5.tokens.cleanup             [first_226_characters, drop_prompt_weights]  [respace_commas]
            t5.tokens.implementation      transformers_4_fast                          transformers_5
            t5.tokens.max_tokens          none                                         256
            t5.tokens.min_tokens          77                                           256"#]],
    );
}

#[test]
fn simpletuner_differs_where_it_is_documented_to() {
    check(
        "simpletuner",
        expect![[r#"
            field                         reference                                    simpletuner
            clip_g.forward.pooled         argmax_id                                    config_eos
            clip_g.tokens.cleanup         [drop_prompt_weights]                        []
            clip_g.tokens.implementation  transformers_4                               transformers_5
            clip_g.tokens.pad_text        ordinary                                     special
            clip_g.tokens.truncation      whole_words                                  tokens
            clip_l.forward.pooled         argmax_id                                    config_eos
            clip_l.forward.projection     skip                                         apply_if_present
            clip_l.tokens.cleanup         [drop_prompt_weights]                        []
            clip_l.tokens.implementation  transformers_4                               transformers_5
            clip_l.tokens.truncation      whole_words                                  tokens
            t5.tokens.cleanup             [first_226_characters, drop_prompt_weights]  []
            t5.tokens.implementation      transformers_4_fast                          transformers_5
            t5.tokens.max_tokens          none                                         154
            t5.tokens.min_tokens          77                                           154"#]],
    );
}

#[test]
fn onetrainer_differs_where_it_is_documented_to() {
    check(
        "onetrainer",
        expect![[r#"
            field                         reference                                    onetrainer
            assembly.dropout              together                                     each_encoder
            assembly.unconditional        encoded_empty                                zeros
            clip_g.forward.pooled         argmax_id                                    config_eos
            clip_g.tokens.cleanup         [drop_prompt_weights]                        []
            clip_g.tokens.implementation  transformers_4                               transformers_5
            clip_g.tokens.pad_text        ordinary                                     special
            clip_g.tokens.truncation      whole_words                                  tokens
            clip_l.forward.pooled         argmax_id                                    config_eos
            clip_l.forward.projection     skip                                         apply_if_present
            clip_l.tokens.cleanup         [drop_prompt_weights]                        []
            clip_l.tokens.implementation  transformers_4                               transformers_5
            clip_l.tokens.truncation      whole_words                                  tokens
            t5.absent                     refuse                                       77
            t5.tokens.cleanup             [first_226_characters, drop_prompt_weights]  []
            t5.tokens.implementation      transformers_4_fast                          transformers_5
            t5.tokens.max_tokens          none                                         77"#]],
    );
}

#[test]
fn diffusion_pipe_differs_where_it_is_documented_to() {
    check(
        "diffusion-pipe",
        expect![[r#"
            field                         reference                                    diffusion-pipe
            clip_g.forward.pooled         argmax_id                                    config_eos
            clip_g.tokens.cleanup         [drop_prompt_weights]                        []
            clip_g.tokens.implementation  transformers_4                               transformers_5
            clip_g.tokens.pad_text        ordinary                                     special
            clip_g.tokens.truncation      whole_words                                  tokens
            clip_l.forward.pooled         argmax_id                                    config_eos
            clip_l.forward.projection     skip                                         apply_if_present
            clip_l.tokens.cleanup         [drop_prompt_weights]                        []
            clip_l.tokens.implementation  transformers_4                               transformers_5
            clip_l.tokens.truncation      whole_words                                  tokens
            t5.tokens.cleanup             [first_226_characters, drop_prompt_weights]  []
            t5.tokens.implementation      transformers_4_fast                          transformers_5
            t5.tokens.max_tokens          none                                         256
            t5.tokens.min_tokens          77                                           256"#]],
    );
}

#[test]
fn diffusion_pipe_gives_both_encoders_of_sdxl_one_tokenizer_and_pads_nothing() {
    let (reference, other) = (
        shipped("sdxl/base-1.0"),
        shipped("sdxl/base-1.0:diffusion-pipe"),
    );
    let diff = Diff::between(&reference.rules(), &other.rules());
    expect![[r#"
        field                         reference                diffusion-pipe
        assembly.unconditional        zeros                    encoded_empty
        clip_g.forward.pooled         argmax_id                config_eos
        clip_g.tokens.chunks          1                        whole
        clip_g.tokens.implementation  open_clip_ftfy_6.1       transformers_5
        clip_g.tokens.min_tokens      77                       0
        clip_g.tokens.pad             0                        end
        clip_l.tokens.chunks          1                        whole
        clip_l.tokens.implementation  transformers_4_ftfy_6.1  transformers_5
        clip_l.tokens.min_tokens      77                       0"#]]
    .assert_eq(&diff.table(REFERENCE, "diffusion-pipe"));
    assert_eq!(spec_of(&other, "clip_g").tokens.pad_id, 49407);
}

/// In which fields FLUX.1's variants and flavors differ from the reference's dev.
fn check_flux(name: &str, expected: Expect) {
    let (reference, other) = (shipped("flux1/dev"), shipped(name));
    let diff = Diff::between(&reference.rules(), &other.rules());
    expected.assert_eq(&diff.table(REFERENCE, "other"));
}

#[test]
fn flux_differs_where_it_is_documented_to() {
    check_flux(
        "flux1/schnell",
        expect![[r#"
        field                 reference  other
        t5.tokens.max_tokens  512        256
        t5.tokens.min_tokens  512        256"#]],
    );
    check_flux(
        "flux1/dev:diffusers",
        expect![[r#"
        field                         reference       other
        clip_l.tokens.implementation  transformers_4  transformers_5
        t5.tokens.implementation      transformers_4  transformers_5"#]],
    );
    check_flux(
        "flux1/schnell:diffusers",
        expect![[r#"
            field                         reference       other
            clip_l.tokens.implementation  transformers_4  transformers_5
            t5.tokens.implementation      transformers_4  transformers_5"#]],
    );
    check_flux(
        "flux1/dev:kohya",
        expect![[r#"
            field                         reference       other
            clip_l.tokens.cleanup         []              [first_line]
            clip_l.tokens.implementation  transformers_4  transformers_5
            t5.tokens.cleanup             []              [first_line]
            t5.tokens.implementation      transformers_4  transformers_5"#]],
    );
    check_flux(
        "flux1/schnell:kohya",
        expect![[r#"
            field                         reference       other
            clip_l.tokens.cleanup         []              [first_line]
            clip_l.tokens.implementation  transformers_4  transformers_5
            t5.tokens.cleanup             []              [first_line]
            t5.tokens.implementation      transformers_4  transformers_5
            t5.tokens.max_tokens          512             256
            t5.tokens.min_tokens          512             256"#]],
    );
    check_flux(
        "flux1/schnell:ai-toolkit",
        expect![[r#"
            field                         reference       other
            clip_l.tokens.cleanup         []              [respace_commas]
            clip_l.tokens.implementation  transformers_4  transformers_5
            t5.tokens.cleanup             []              [respace_commas]
            t5.tokens.implementation      transformers_4  transformers_5"#]],
    );
    check_flux(
        "flux1/schnell:simpletuner",
        expect![[r#"
            field                         reference       other
            clip_l.tokens.implementation  transformers_4  transformers_5
            t5.tokens.implementation      transformers_4  transformers_5
            t5.tokens.max_tokens          512             256
            t5.tokens.min_tokens          512             256"#]],
    );
    check_flux(
        "flux1/dev:onetrainer",
        expect![[r#"
            field                         reference       other
            assembly.dropout              together        each_encoder
            assembly.unconditional        encoded_empty   zeros
            clip_l.tokens.implementation  transformers_4  transformers_5
            t5.tokens.implementation      transformers_4  transformers_5
            t5.tokens.max_tokens          512             77
            t5.tokens.min_tokens          512             77"#]],
    );
    check_flux(
        "flux1/schnell:onetrainer",
        expect![[r#"
            field                         reference       other
            assembly.dropout              together        each_encoder
            assembly.unconditional        encoded_empty   zeros
            clip_l.tokens.implementation  transformers_4  transformers_5
            t5.tokens.implementation      transformers_4  transformers_5
            t5.tokens.max_tokens          512             77
            t5.tokens.min_tokens          512             77"#]],
    );
    check_flux(
        "flux1/schnell:diffusion-pipe",
        expect![[r#"
            field                         reference       other
            clip_l.tokens.implementation  transformers_4  transformers_5
            t5.tokens.implementation      transformers_4  transformers_5"#]],
    );
}

#[test]
fn musubi_trains_of_flux_what_has_the_encoders_of_dev() {
    check_flux(
        "flux1/dev:musubi",
        expect![[r#"
            field                         reference       other
            clip_l.tokens.implementation  transformers_4  transformers_4_ftfy_6.3"#]],
    );
    let none = Recipe::resolve("flux1", "schnell", "musubi", &toml::Table::new());
    let said = none.expect_err("it does not train schnell").to_string();
    assert!(
        said.contains("no variant of flux1 `musubi`") && !said.contains(", musubi"),
        "{said}"
    );
}

#[test]
fn flux_keeps_no_sequence_of_clip_and_pads_do_not_change_its_pooled_row() {
    let recipe = shipped("flux1/dev");
    let slots: Vec<&str> = recipe.encoders().iter().map(|e| e.slot.as_str()).collect();
    assert_eq!(slots, ["t5", "clip_l"]);
    let spec = json(&spec_of(&recipe, "clip_l"));
    assert_eq!(spec["forward"]["hidden_layer"], serde_json::Value::Null);
    assert_eq!(spec["forward"]["projection"], false);
    assert_eq!(spec["tokens"]["min_tokens"], 0);
}

#[test]
fn variants_share_the_entries_of_encoders_on_which_they_agree() {
    // transformers' rule with eos_token_id 2 is the argmax rule of the reference, and its truncation of words
    // is the only thing left to tell the two apart.
    let kohya = shipped("sd3/3.5-large:kohya");
    let as_kohya = deviated(
        "sd3/3.5-large",
        "clip_g.tokens.truncation = 'tokens'\nclip_g.tokens.cleanup = ['first_line']\nclip_g.tokens.implementation = 'transformers_5'",
    )
    .expect("deviations");
    assert_eq!(spec_of(&kohya, "clip_g"), spec_of(&as_kohya, "clip_g"));
    assert_ne!(kohya.fingerprint(), as_kohya.fingerprint());
}

#[test]
fn flavors_with_the_same_rules_have_the_same_fingerprint() {
    assert_eq!(
        shipped("sd3/3-medium").fingerprint(),
        shipped("sd3/3.5-large-turbo").fingerprint()
    );
}

#[test]
fn a_wrong_data_file_is_named() {
    let wrong = |text: &'static str| {
        let files = [
            RecipeFile {
                path: "reference.toml".to_owned(),
                text: "family = 'x'\nvariant = 'reference'\ntitle = ''\nflavors = ['y']\n\
                       [assembly]\nmask = { value = 'none', source = 'here', status = 'read' }",
            },
            RecipeFile {
                path: "other.toml".to_owned(),
                text,
            },
        ];
        match data::variants(&files) {
            Err(Error::Data { file, why }) => {
                assert_eq!(file, "other.toml");
                why
            }
            other => panic!("taken: {other:?}"),
        }
    };
    let head = "family = 'x'\nvariant = 'o'\ntitle = ''\nbase = 'reference'\n[assembly]\n";
    let text = |rest: &str| -> &'static str { Box::leak(format!("{head}{rest}").into_boxed_str()) };
    for (rest, said) in [
        (
            "mask = { value = 'none', source = 'here', status = 'read' }",
            "does not differ",
        ),
        (
            "musk = { value = 1, source = 'here', status = 'read' }",
            "not a field of its base",
        ),
        ("mask = { value = 1, status = 'read' }", "source"),
        (
            "mask = { value = 1, source = 'here', status = 'deviation' }",
            "unknown variant",
        ),
        ("mask = 7", "neither value nor source"),
    ] {
        let why = wrong(text(rest));
        assert!(why.contains(said), "{rest}: {why}");
    }
    assert!(wrong("family = 'x'\nvariant = 'o'\ntitle = ''\nbase = 'none'").contains("base"));
    let rule = "mask = { value = 'none', source = 'here', status = 'read' }";
    for (head, rest, said) in [
        ("[flavor.z.assembly]", rule, "not one of its flavors"),
        ("[flavor.y.assembly]", rule, "changes nothing"),
        (
            "[flavor.y.assembly]",
            "musk = { value = 1, source = 'here', status = 'read' }",
            "not a field",
        ),
        ("[flavor.y.assembly]", "mask = 'pads'", "without source"),
        ("[flavor.y]", "assembly = 3", "not a table"),
    ] {
        let text =
            format!("family = 'x'\nvariant = 'o'\ntitle = ''\nbase = 'reference'\n{head}\n{rest}");
        let why = wrong(Box::leak(text.into_boxed_str()));
        assert!(why.contains(said), "{rest}: {why}");
    }
}
