use std::path::Path;

use expect_test::expect;
use serde_json::{Value, json};

use super::bounds::FIELDS;
use super::{Experiment, LoraDigests, Raw, Warmup, json_schema};
use crate::digest::Fingerprint;

const SMALLEST: &str = r#"
[model]
family = "sd3"
flavor = "3.5-medium"
path = "models/sd3.5"
[store]
path = "store"
[[dataset]]
path = "pictures"
[train]
steps = 10
output = "out"
"#;

fn complaint(change: impl Fn(&str) -> String) -> String {
    let result = Experiment::parse(Path::new("some/exp.toml"), change(SMALLEST));
    result
        .err()
        .map_or_else(|| "no error".to_owned(), |e| e.to_string())
}

#[test]
fn the_smallest_experiment_gets_every_default() {
    let experiment =
        Experiment::parse(Path::new("some/exp.toml"), SMALLEST.to_owned()).expect("valid");
    assert_eq!(
        experiment.store_path().expect("named").folder(),
        Path::new("some/store")
    );
    assert_eq!(experiment.raw.recipe.variant, "reference");
    assert_eq!(
        (
            experiment.raw.adapter.new_rank(),
            experiment.raw.adapter.alpha
        ),
        (16, None)
    );
    assert_eq!(experiment.raw.dataset[0].min_bucket_px(), 256);
}

#[test]
fn mistakes_get_one_line_with_the_place_and_the_nearest_name() {
    let cases = [
        complaint(|t| t.replace("steps = 10", "steps = 10\nlearing_rate = 1.0")),
        complaint(|t| t.replace("steps = 10", "steps = \"ten\"")),
        complaint(|t| t.replace("steps = 10", "steps = 0")),
        complaint(|t| t.replace("steps = 10", "steps = -1")),
        complaint(|t| t.replace("steps = 10", "steps = 10\nlearning_rate = nan")),
        complaint(|t| t.replace("steps = 10", "steps = 10\nlr_schedule = \"cosin\"")),
        complaint(|t| t.replace("steps = 10", "steps = 10\ntimestep_sampling = \"rainbow\"")),
        complaint(|t| t.replace("steps = 10", "steps = 10\ncaption_dropout = 1.5")),
        complaint(|t| t.replace("steps = 10", "steps = 10\nname = \"../x\"")),
        complaint(|t| t.replace("[store]", "[stores]")),
        complaint(|t| t.replace("path = \"pictures\"", "path = \"pictures\"\nrepeats = 0")),
        complaint(|t| t.replace("path = \"pictures\"", "path = \"pictures\"\nresolution = 7")),
        complaint(|t| t.replace("[store]", "[store")),
        complaint(|t| t.replace("steps", "steps = 5\nsteps")),
        complaint(|t| t.replace("steps = 10", "steps = 1.5")),
        complaint(|t| t.replace("steps = 10", "steps = 18446744073709551616")),
        complaint(|t| t.replace("steps = 10", "steps = 10\nlearning_rate = \"1e-4\"")),
        complaint(|t| t.replace("steps = 10", "steps = 10\nlearning_rate = [1e-4]")),
        complaint(|t| t.replace("steps = 10", "steps = 10\nlearning_rate = 1e-46")),
        complaint(|t| t.replace("steps = 10", "steps = 10\nmax_grad_norm = 1e-46")),
        complaint(|t| t.replace("steps = 10", "steps = 10\nlr_schedule = 5")),
        complaint(|t| t.replace("steps = 10", "steps = 10\nwarmup_steps = \"x\"")),
        complaint(|t| t.replace("\"pictures\"", "\"pictures\"\nresolution = [64, 64, 64]")),
        complaint(|t| t.replace("\"pictures\"", "\"pictures\"\nwindows = \"head:2\"")),
        complaint(|t| t.replace("steps = 10", "steps = 10\nnoise_offset = -0.0")),
        complaint(|t| t.replace("steps = 10", "steps = 10\nseed = 9007199254740992")),
        complaint(|t| t.replace("path = \"pictures\"", "path = \"pictures\"\nflip = 1")),
        complaint(|t| t.replace("path = \"pictures\"", "path = 1979-05-27")),
        complaint(|t| t.replace("path = \"pictures\"", "")),
        complaint(|t| t.replace("[[dataset]]", "[dataset]")),
        complaint(|t| t.replace("[train]", "[adapter]\ntargets = \"attention\"\n[train]")),
        complaint(|t| t.replace("[train]", "[adapter]\nrank = 288230376151711744\n[train]")),
        complaint(|t| t.replace("[train]", "[adapter]\ntargets = [\"a\", 2]\n[train]")),
        complaint(|t| {
            t.replace(
                "[train]",
                "[recipe.deviate]\nt5.tokens.max_tokens = 1e18\n[train]",
            )
        }),
        complaint(|t| {
            t.replace("[store]\npath = \"store\"", "store = \"x\"")
                .replace("[model]", "")
        }),
        complaint(|t| t.replace("\"pictures\"", r#""D:\new\table""#)),
        complaint(|t| t.replace("\"pictures\"", r#""D:\data\Users""#)),
        complaint(|t| t.replace("\"pictures\"", r#""C:\Users\me""#)),
        complaint(|t| t.replace("\"out\"", r#""a\u001b[2Jb""#)),
        complaint(|t| t.replace("steps = 10", "steps = 10\n\"a\\u001b[2J\" = 1")),
    ];
    expect![[r#"
        some/exp.toml:12: unknown key `learing_rate`; did you mean `learning_rate`?
        some/exp.toml:11: `train.steps`: expected a whole number, found text "ten"
        some/exp.toml:11: `train.steps`: expected 1 to 1000000000, found 0
        some/exp.toml:11: `train.steps`: expected 1 to 1000000000, found -1
        some/exp.toml:12: `train.learning_rate`: expected 1e-30 to 1e30, found nan
        some/exp.toml:12: `train.lr_schedule`: unknown value `cosin`; did you mean `cosine`?
        some/exp.toml:12: `train.timestep_sampling`: unknown value `rainbow`; expected one of uniform, logit_normal, mode
        some/exp.toml:12: `train.caption_dropout`: expected at least 0 and less than 1, found 1.5
        some/exp.toml: `train.name`: expected a plain file name without / \ < > : " | ? *, found `../x`
        some/exp.toml:6: unknown key `stores`; did you mean `store`?
        some/exp.toml:10: `dataset[0].repeats`: expected 1 to 100000, found 0
        some/exp.toml:10: `dataset[0].resolution`: expected 8 to 16384, found 7
        some/exp.toml:6: unclosed table, expected `]`
        some/exp.toml:12: duplicate key
        some/exp.toml:11: `train.steps`: expected 1 to 1000000000, found 1.5
        some/exp.toml:11: `train.steps`: expected 1 to 1000000000, found 18446744073709551616
        some/exp.toml:12: `train.learning_rate`: expected a number, found text "1e-4"; leave out the quotes
        some/exp.toml:12: `train.learning_rate`: expected a number, found a list
        some/exp.toml:12: `train.learning_rate`: expected 1e-30 to 1e30, found 1e-46
        some/exp.toml: `train.max_grad_norm`: expected 0, which clips nothing, or at least 1e-30, found 1e-46: clipped so far, gradients train nothing
        some/exp.toml:12: `train.lr_schedule`: expected text in quotes, found the number 5
        some/exp.toml:12: `train.warmup_steps`: expected a number of steps, or a share of all steps below 1, found text "x"
        some/exp.toml:10: `dataset[0].resolution`: expected a number of px, or [width, height], found a list of 3
        some/exp.toml:10: `dataset[0].windows`: expected "head", "chunk", "uniform:4" (so many, 2 to 1000), "slide:8" (one every 8 frames, 1 to 10000) or "full", found text "head:2"
        some/exp.toml:12: `train.noise_offset`: expected 0 to 100, found -0.0
        some/exp.toml:12: `train.seed`: expected 0 to 9007199254740991, found 9007199254740992
        some/exp.toml:10: `dataset[0].flip`: expected true or false, found the number 1
        some/exp.toml:9: `dataset[0].path`: expected a path in quotes, found a date
        some/exp.toml:8: `path` is missing in `dataset[0]`
        some/exp.toml:8: `dataset`: there may be several, so its name stands in two brackets: [[dataset]]
        some/exp.toml:11: `adapter.targets`: expected a list in brackets, found text "attention"
        some/exp.toml:11: `adapter.rank`: expected 1 to 65536, found 288230376151711744
        some/exp.toml:11: `adapter.targets[1]`: expected text in quotes, found the number 2
        some/exp.toml:11: `recipe.deviate.t5.tokens.max_tokens`: expected 0 to 8192, found 1e18
        some/exp.toml:3: unknown key `family`; expected one of model, recipe, store, dataset, adapter, train, sample
        some/exp.toml:9: `dataset[0].path`: there is a line end in `D:\new\table`; in double quotes `\` begins an escape: write a path with `/`, or in 'single quotes'
        some/exp.toml:9: a `\` here begins no known escape; in double quotes `\` begins an escape: write a path with `/`, or in 'single quotes'
        some/exp.toml:9: a `\` here begins no known escape; in double quotes `\` begins an escape: write a path with `/`, or in 'single quotes'
        some/exp.toml:12: `train.output`: there is the control character \u{1b} in `a\u{1b}[2Jb`; in double quotes `\` begins an escape: write a path with `/`, or in 'single quotes'
        some/exp.toml:12: unknown key `a\u{1b}[2J`; expected one of steps, epochs, output, training_adapter, name, learning_rate, lr_schedule, warmup_steps, batch_size, gradient_accumulation, max_grad_norm, beta1, beta2, epsilon, weight_decay, seed, caption_dropout, timestep_sampling, logit_mean, logit_std, mode_scale, shift, guidance, loss_weighting, min_snr_gamma, noise_offset, gradient_checkpointing, compute, checkpoint_every, keep_checkpoints, validate_every, validation_share, sample_every
    "#]].assert_eq(&(cases.join("\n") + "\n"));
}

#[test]
fn an_extension_is_what_a_name_may_end_in_and_a_trigger_is_a_word() {
    let set = |line: &str| complaint(|t| t.replace("path = \"pictures\"", line));
    for found in ["", ".", "/x", "a.txt"] {
        let said = set(&format!("path = \"p\"\ncaption_extension = \"{found}\""));
        let expected = format!("such as `txt`, found `{found}`");
        assert!(
            said.contains("`dataset[0].caption_extension`: ") && said.ends_with(&expected),
            "{said}"
        );
    }
    for sound in ["caption_extension = \".caption\"", "trigger = \"sks\""] {
        assert_eq!(set(&format!("path = \"p\"\n{sound}")), "no error");
    }
    let said = set("path = \"p\"\ntrigger = \"a [Trigger]\"");
    assert!(
        said.contains("`dataset[0].trigger`: `[trigger]` stands in captions for the word"),
        "{said}"
    );
}

#[test]
fn a_section_that_is_left_out_is_one_without_fields() {
    let parse = |text: String| Experiment::parse(Path::new("a/b.toml"), text).expect("valid");
    let model = SMALLEST.split("[store]").next().expect("text");
    let absent = parse(model.to_owned());
    let empty = parse(format!(
        "{model}[store]\n[train]\n[recipe]\n[adapter]\n[sample]\n"
    ));
    assert_eq!(json!(absent.raw), json!(empty.raw));
    assert_eq!(absent.output_path(), None);
    assert!(absent.store_path().is_err() && absent.training_output().is_err());
}

/// What checkpoints of runs hold that were made before `[train]` could be left out.
#[test]
fn the_training_fingerprint_of_old_runs_stays() {
    let experiment = Experiment::parse(Path::new("a/b.toml"), SMALLEST.to_owned()).expect("valid");
    let changed = json!({ "train.steps": 10 });
    let of = json!({ "version": 2, "family": "sd3", "flavor": "3.5-medium", "changed": changed });
    assert_eq!(
        experiment
            .training(10, 0, LoraDigests::default())
            .fingerprint(),
        Fingerprint::of(&of)
    );
}

/// Whatever stands in the fields, there is an answer in one short line, or an Experiment whose numbers are within the bounds.
#[test]
fn no_number_and_no_other_value_panics() {
    let values = [
        "0",
        "-1",
        "1",
        "7",
        "65536",
        "1000000001",
        "9223372036854775807",
        "-9223372036854775808",
        "18446744073709551615",
        "99999999999999999999999999999999999999999999",
        "0x7fffffffffffffff",
        "0.0",
        "-0.0",
        "1e-320",
        "1e308",
        "1e999",
        "inf",
        "-inf",
        "nan",
        "0.5",
        "true",
        "\"\"",
        "\"resolution\"",
        "\"1\"",
        "[]",
        "[[1]]",
        "{}",
        "{ a = 1 }",
        "1979-05-27",
    ];
    let mut told = 0;
    for (field, range) in FIELDS {
        for value in values {
            let (section, name) = field.split_once('.').expect("a dotted name");
            let header = match section {
                "dataset" => "[[dataset]]\npath = \"pictures\"\n".to_owned(),
                other => format!("[{other}]\n"),
            };
            let text = format!(
                "[model]\nfamily = \"sd3\"\nflavor = \"3.5-medium\"\npath = \"m\"\n{header}{name} = {value}\n"
            );
            let family = crate::models::family("sd3").expect("there");
            match Experiment::parse(Path::new("e.toml"), text) {
                Ok(experiment) => {
                    experiment
                        .training(10, 0, LoraDigests::default())
                        .fingerprint();
                    let _ = experiment.settings(family.flavor("3.5-medium").expect("there"));
                    let found: f64 = value
                        .replace("0x7fffffffffffffff", "9223372036854775807")
                        .parse()
                        .unwrap_or(f64::NAN);
                    assert!(
                        range.has(found) || value == "\"resolution\"",
                        "{field} = {value}"
                    );
                }
                Err(error) => {
                    let line = error.to_string();
                    assert!(
                        line.len() < 500 && line.contains(name),
                        "{field} = {value}: {line}"
                    );
                    told += 1;
                }
            }
        }
    }
    assert!(told > 500, "{told}");
}

#[test]
fn every_number_of_the_schema_has_its_bound_and_no_bound_is_of_another_field() {
    let schema: Value = serde_json::from_str(&json_schema().expect("schema")).expect("JSON");
    let mut found = Vec::new();
    for (section, part) in schema["properties"].as_object().expect("sections") {
        let fields = referred(&schema, part)["properties"].as_object();
        for (field, property) in fields.into_iter().flatten() {
            if has_number(&schema, property) {
                let has = |least_or_most: [&str; 2]| {
                    least_or_most.iter().any(|key| property[key].is_number())
                };
                let least = has(["minimum", "exclusiveMinimum"]);
                let most = has(["maximum", "exclusiveMaximum"]);
                assert!(least && most, "{section}.{field}: {property}");
                found.push(format!("{section}.{field}"));
            }
        }
    }
    let mut bounds: Vec<_> = FIELDS
        .iter()
        .map(|(field, _)| (*field).to_owned())
        .collect();
    bounds.sort();
    found.sort();
    assert_eq!(found, bounds);
}

/// JSON has no NaN and no infinity, so none may come into a fingerprint.
#[test]
fn every_number_of_every_section_must_be_finite() {
    let schema = serde_json::to_value(schemars::schema_for!(Raw)).expect("JSON");
    let sections = schema["properties"].as_object().expect("sections");
    let mut found = 0;
    for (section, part) in sections {
        let fields = referred(&schema, part)["properties"].as_object();
        for (field, _) in fields
            .into_iter()
            .flatten()
            .filter(|(_, f)| has_number(&schema, f))
        {
            for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                let mut file: toml::Table = toml::from_str(SMALLEST).expect("TOML");
                let table = file.entry(section).or_insert(toml::Table::new().into());
                // The data sets are a list, with one in it.
                let (table, at) = match table.as_array().is_some() {
                    true => (&mut table.as_array_mut().expect("a list")[0], "[0]"),
                    false => (table, ""),
                };
                let table = table.as_table_mut().expect("a section");
                table.insert(field.clone(), value.into());
                let text = toml::to_string(&file).expect("TOML");
                let said = complaint(|_| text.clone());
                let expected = format!(": `{section}{at}.{field}`: expected ");
                assert!(
                    said.contains(&expected),
                    "{section}.{field} = {value}: {said}"
                );
                found += 1;
            }
        }
    }
    assert!(found >= 3 * 40, "{found}");
}

/// What a schema refers to, or itself.
fn referred<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let part = schema.get("items").unwrap_or(schema);
    let path = part["$ref"]
        .as_str()
        .and_then(|path| path.strip_prefix('#'));
    path.map_or(part, |path| {
        root.pointer(path).expect("what is referred to")
    })
}

fn has_number(root: &Value, schema: &Value) -> bool {
    let schema = referred(root, schema);
    let named = |kind: &Value| {
        ["number", "integer"].iter().any(|name| {
            let among = |kinds: &Vec<Value>| kinds.contains(&(*name).into());
            kind == name || kind.as_array().is_some_and(among)
        })
    };
    let any = schema["anyOf"].as_array().into_iter().flatten();
    named(&schema["type"]) || any.into_iter().any(|schema| has_number(root, schema))
}

#[test]
fn steps_of_buckets_are_whole_tokens_of_the_family() {
    let step = |step: &str| {
        complaint(|t| {
            t.replace(
                "path = \"pictures\"",
                &format!("path = \"pictures\"\nbucket_step = {step}"),
            )
        })
    };
    // 512 is above the usual shortest side of 256 px.
    for good in ["32", "512"] {
        assert_eq!(step(good), "no error");
    }
    for bad in ["8", "24"] {
        let line = format!(
            "some/exp.toml: `dataset[0].bucket_step`: expected a multiple of 16 px, found {bad}"
        );
        assert_eq!(step(bad), line);
    }
}

#[test]
fn files_are_named_by_slot_in_short_or_as_a_table() {
    let files = |lines: &str| {
        let text = SMALLEST.replace("[store]", &format!("[model.files]\n{lines}\n[store]"));
        Experiment::parse(Path::new("a/b.toml"), text).map(|e| e.model().files)
    };
    let short =
        files("t5 = \"t5.gguf\"\nt5_tokenizer = \"tok\"\nvae_config = \"c\"").expect("valid");
    let table = "t5 = { weights = \"t5.gguf\", tokenizer = \"tok\" }\nvae = { config = \"c\" }";
    assert_eq!(files(table).expect("valid"), short);
    let t5 = short.of("t5").expect("named");
    assert_eq!(t5.weights.as_deref(), Some(Path::new("a/t5.gguf")));
    assert_eq!(short.paths().count(), 3);
    let wrong = |lines| files(lines).expect_err("wrong").to_string();
    expect![[r#"
        a/b.toml:7: `model.files.t5`: expected a path, or a table of `weights`, `config` and `tokenizer`, found the number 1
        a/b.toml:7: unknown key `weight`; did you mean `weights`?
        a/b.toml:6: `model.files`: `t5` is given its tokenizer twice
    "#]]
    .assert_eq(&format!(
        "{}\n{}\n{}\n",
        wrong("t5 = 1"),
        wrong("t5 = { weight = \"x\" }"),
        wrong("t5 = { tokenizer = \"x\" }\nt5_tokenizer = \"y\"")
    ));
}

#[test]
fn only_what_changes_the_numbers_is_in_the_training_fingerprint() {
    let fingerprint = |text: String| {
        let experiment = Experiment::parse(Path::new("a/b.toml"), text).expect("valid");
        experiment
            .training(10, 0, LoraDigests::default())
            .fingerprint()
    };
    let base = fingerprint(SMALLEST.to_owned());
    for same in [
        "output = \"elsewhere\"\n[train]",
        "output = \"out\"\ncheckpoint_every = 7\nname = \"x\"",
        // A default that is written down is the default.
        "output = \"out\"\nlearning_rate = 1e-4\nbatch_size = 1\nseed = 0",
    ] {
        let text = SMALLEST.replace(
            "output = \"out\"",
            same.split("\n[train]").next().expect("text"),
        );
        assert_eq!(fingerprint(text), base, "{same}");
    }
    for other in [
        "seed = 1",
        "learning_rate = 0.5",
        "batch_size = 2",
        "shift = 2.0",
        "beta1 = 0.5",
    ] {
        let text = SMALLEST.replace("output = \"out\"", &format!("output = \"out\"\n{other}"));
        assert_ne!(fingerprint(text), base, "{other}");
    }
}

/// They stand in checkpoints.
#[test]
fn training_fingerprints_are_those_of_earlier_versions() {
    for (set, steps, warmup, expected) in [
        (
            "steps = 10",
            10,
            0,
            "0894cb5dd7c058e777159d6a77ea76c855f8d378cf747fe69d68f315b0171762",
        ),
        (
            "steps = 10\nwarmup_steps = 3\nlr_schedule = \"cosine\"\nshift = 2.0\n[adapter]\nrank = 4",
            10,
            3,
            "e68244580b5a15e13ae14899e96e3c1e38f289e2101a7a79aa6b2a2a1bf614e3",
        ),
        // Other measures of the same.
        (
            "epochs = 5\nwarmup_steps = 0.3\nlr_schedule = \"cosine\"\nshift = 2.0\n[adapter]\nrank = 4",
            10,
            3,
            "e68244580b5a15e13ae14899e96e3c1e38f289e2101a7a79aa6b2a2a1bf614e3",
        ),
    ] {
        let text = SMALLEST.replace(
            "steps = 10\noutput = \"out\"",
            &format!("output = \"out\"\n{set}"),
        );
        let experiment = Experiment::parse(Path::new("a/b.toml"), text).expect("valid");
        let found = experiment
            .training(steps, warmup, LoraDigests::default())
            .fingerprint();
        assert_eq!(found.to_string(), expected, "{set}");
    }
}

#[test]
fn a_training_has_one_length_and_its_warm_up_ends_in_it() {
    let said = |set: &str| complaint(|t| t.replace("steps = 10", set));
    for right in [
        "epochs = 3",
        "epochs = 3\nwarmup_steps = 500",
        "steps = 10\nwarmup_steps = 10",
        "steps = 10\nwarmup_steps = 0.25",
        "steps = 10\nwarmup_steps = 0.0",
    ] {
        assert_eq!(said(right), "no error", "{right}");
    }
    for (wrong, why) in [
        (
            "steps = 10\nepochs = 3",
            "`train.epochs`: expected `steps` or `epochs`, found both",
        ),
        (
            "epochs = 0",
            "`train.epochs`: expected 1 to 1000000000, found 0",
        ),
        (
            "steps = 10\nwarmup_steps = 11",
            "`train.warmup_steps`: expected at most the 10 steps of the training, found 11",
        ),
        ("steps = 10\nwarmup_steps = 1.0", "less than 1, found 1"),
        (
            "steps = 10\nwarmup_steps = -1",
            "expected 0 to 1000000000, found -1",
        ),
        (
            "steps = 10\nwarmup_steps = \"10%\"",
            "`train.warmup_steps`: expected a number of steps, or a share of all steps below 1",
        ),
    ] {
        let said = said(wrong);
        assert!(said.contains(why), "{wrong}: {said}");
    }
}

#[test]
fn a_share_of_warm_up_is_rounded_down_as_in_kohya_s_scripts() {
    for (share, steps, warmup) in [
        (0.1, 1000, 100),
        (0.1, 1009, 100),
        (0.29, 100, 28),
        (0.0, 5, 0),
    ] {
        assert_eq!(Warmup::Share(share).of(steps), warmup);
    }
}

#[test]
fn the_json_schema_in_the_repository_is_fresh() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/experiment.schema.json");
    let fresh = json_schema().expect("schema");
    if std::env::var_os("PLUMB_UPDATE").is_some() {
        std::fs::write(&file, &fresh).expect("the schema can be written");
    }
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        kept == fresh,
        "schemas/experiment.schema.json is stale: run PLUMB_UPDATE=1 cargo test schema"
    );
}

#[test]
fn buckets_come_out_in_whole_steps_whatever_the_resolution() {
    let set = |lines: &str| {
        let text = SMALLEST.replace("\"pictures\"", &format!("\"pictures\"\n{lines}"));
        Experiment::parse(Path::new("a/b.toml"), text).map(|e| e.datasets().remove(0))
    };
    for (resolution, sides, min, max) in [
        ("500", (500, 500), 192, 1024),
        ("720", (720, 720), 256, 1472),
        ("1000", (1000, 1000), 256, 2048),
        ("1080", (1080, 1080), 256, 2176),
        ("1024", (1024, 1024), 256, 2048),
        ("[1024, 768]", (1024, 768), 256, 2048),
        ("64", (64, 64), 64, 128),
    ] {
        let set = set(&format!("resolution = {resolution}")).expect(resolution);
        let found = (set.resolution.width, set.resolution.height);
        assert_eq!(
            (found, set.min_bucket_px, set.max_bucket_px),
            (sides, min, max)
        );
    }
    let wrong = |lines: &str| set(lines).expect_err(lines).to_string();
    expect![[r#"
        a/b.toml: `dataset[0].max_bucket`: expected a multiple of `bucket_step` 64 px up to 65536, found 1000
        a/b.toml:10: `dataset[0].min_bucket`: expected 1 to 16384, found 0
        a/b.toml: `dataset[0].resolution`: expected it within min_bucket 256 and max_bucket 960, found 1024
        a/b.toml: `dataset[0].resolution`: expected multiples of 16 px without buckets, found 1000
        a/b.toml: `dataset[0].no_upscale`: expected `bucket = true` beside it: without buckets every picture is brought to the resolution
        a/b.toml:10: `dataset[0].resolution[0]`: expected 8 to 16384, found 1
        a/b.toml:10: `dataset[0].resolution`: expected a number of px, or [width, height], found text "1024"
    "#]]
    .assert_eq(
        &[
            "max_bucket = 1000",
            "min_bucket = 0",
            "max_bucket = 960",
            "bucket = false\nresolution = 1000",
            "bucket = false\nno_upscale = true",
            "resolution = [1, 2, 3]",
            "resolution = \"1024\"",
        ]
        .map(|lines| wrong(lines) + "\n")
        .concat(),
    );
}

#[test]
fn what_a_model_says_of_its_noise_schedule_stands_in_for_lines_that_are_left_out() {
    use crate::diffusion::Prediction;
    use crate::models::{self, Said, Schedule};

    let of_sdxl = |lines: &str| {
        let text = SMALLEST.replace("\"sd3\"", "\"sdxl\"");
        let flavor = format!("\"base-1.0\"\n{lines}");
        let text = text.replace("\"3.5-medium\"", &flavor);
        Experiment::parse(Path::new("a/b.toml"), text).expect("valid")
    };
    let flavor = models::family("sdxl").and_then(|f| f.flavor("base-1.0"));
    let flavor = flavor.expect("a flavor");
    let said = |prediction: Option<Prediction>, zero: Option<bool>| Schedule {
        prediction: prediction.map(|value| Said {
            value,
            place: "here".to_owned(),
        }),
        zero_terminal_snr: zero.map(|value| Said {
            value,
            place: "there".to_owned(),
        }),
        shift: None,
    };
    let (v, epsilon) = (Some(Prediction::Velocity), Some(Prediction::Epsilon));
    let silent = of_sdxl("");
    for nothing_new in [said(None, None), said(epsilon, Some(false))] {
        let (own, notes) = silent.completed(flavor, &nothing_new).expect("agrees");
        assert_eq!(
            own.training(10, 0, LoraDigests::default()).fingerprint(),
            silent.training(10, 0, LoraDigests::default()).fingerprint()
        );
        assert_eq!(
            own.first_training_fingerprint(10, 0),
            silent.first_training_fingerprint(10, 0)
        );
        // That a guess was made is told.
        assert_eq!(
            notes.is_empty(),
            nothing_new.prediction.is_some(),
            "{notes:?}"
        );
    }
    let written = of_sdxl("prediction = \"v\"\nzero_terminal_snr = true\n");
    let (own, notes) = silent
        .completed(flavor, &said(v, Some(true)))
        .expect("agrees");
    assert_eq!(
        own.training(10, 0, LoraDigests::default()).fingerprint(),
        written
            .training(10, 0, LoraDigests::default())
            .fingerprint()
    );
    assert_ne!(
        own.training(10, 0, LoraDigests::default()).fingerprint(),
        silent.training(10, 0, LoraDigests::default()).fingerprint()
    );
    assert_eq!(notes.len(), 2);
    assert!(
        written
            .completed(flavor, &said(v, Some(true)))
            .is_ok_and(|(_, n)| n.is_empty())
    );
    // Each of the two lines alone is enough where the model says the other.
    let (own, _) = of_sdxl("zero_terminal_snr = true\n")
        .completed(flavor, &said(v, None))
        .expect("agrees");
    assert_eq!(
        own.training(10, 0, LoraDigests::default()).fingerprint(),
        written
            .training(10, 0, LoraDigests::default())
            .fingerprint()
    );
    assert!(own.settings(flavor).is_ok());
    for (lines, says, why) in [
        (
            "prediction = \"v\"\n",
            said(epsilon, None),
            "`model.prediction`: the Experiment says v, the model",
        ),
        (
            "prediction = \"epsilon\"\n",
            said(v, None),
            "says v (here); leave `prediction` out",
        ),
        (
            "zero_terminal_snr = false\n",
            said(v, Some(true)),
            "`model.zero_terminal_snr`: the Experiment says false",
        ),
        (
            "zero_terminal_snr = true\n",
            said(v, Some(false)),
            "says false (there)",
        ),
    ] {
        let error = of_sdxl(lines)
            .completed(flavor, &says)
            .expect_err("refused")
            .to_string();
        assert!(
            error.contains(why) && error.contains("scheduler = "),
            "{error}"
        );
    }
}
