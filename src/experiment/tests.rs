use std::path::Path;

use expect_test::expect;
use serde_json::Value;

use super::{Experiment, Raw, json_schema};

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
    assert_eq!(experiment.store_path(), Path::new("some/store"));
    assert_eq!(experiment.raw.recipe.variant, "reference");
    assert_eq!(
        (experiment.raw.adapter.rank, experiment.raw.adapter.alpha),
        (16, None)
    );
    assert_eq!(experiment.raw.dataset[0].min_bucket_px(), 256);
}

#[test]
fn mistakes_get_one_line_with_the_place_and_the_nearest_name() {
    let cases = [
        complaint(|t| t.replace("steps = 10", "steps = 10\nlearing_rate = 1.0")),
        complaint(|t| t.replace("steps = 10", "steps = \"ten\"")),
        complaint(|t| t.replace("steps = 10", "")),
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
    ];
    expect![[r#"
        some/exp.toml:12: unknown key `learing_rate`; did you mean `learning_rate`?
        some/exp.toml:11: invalid type: string "ten", expected u64
        some/exp.toml:10: missing field `steps`
        some/exp.toml: `train.steps`: expected a number above 0, found 0
        some/exp.toml:11: invalid value: integer `-1`, expected u64
        some/exp.toml: `train.learning_rate`: expected a number above 0, found NaN
        some/exp.toml:12: unknown value `cosin`; did you mean `cosine`?
        some/exp.toml:12: unknown value `rainbow`; expected one of uniform, logit_normal, mode
        some/exp.toml: `train.caption_dropout`: expected at least 0 and less than 1, found 1.5
        some/exp.toml: `train.name`: expected a plain file name, found `../x`
        some/exp.toml:6: unknown key `stores`; did you mean `store`?
        some/exp.toml: `dataset[0].repeats`: expected 1 or more; leave the data set out to use none of it
        some/exp.toml: `dataset[0].resolution`: expected 64 to 16384 px, found 7
        some/exp.toml:6: unclosed table, expected `]`
        some/exp.toml:12: duplicate key
    "#]].assert_eq(&(cases.join("\n") + "\n"));
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
                let table = table
                    .as_table_mut()
                    .expect("a section with numbers is one table");
                table.insert(field.clone(), value.into());
                let text = toml::to_string(&file).expect("TOML");
                let said = complaint(|_| text.clone());
                let expected = format!("some/exp.toml: `{section}.{field}`: expected ");
                assert!(
                    said.starts_with(&expected),
                    "{section}.{field} = {value}: {said}"
                );
                found += 1;
            }
        }
    }
    assert!(found >= 3 * 18, "{found}");
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
        kind == "number"
            || kind
                .as_array()
                .is_some_and(|k| k.contains(&"number".into()))
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
    for bad in ["0", "24"] {
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
        a/b.toml:7: invalid type: integer `1`, expected a path, or a table of `weights`, `config` and `tokenizer`
        a/b.toml:7: unknown key `weight`; did you mean `weights`?
        a/b.toml:6: `t5` is given its tokenizer twice
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
        experiment.training_fingerprint()
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
        assert_eq!(own.training_fingerprint(), silent.training_fingerprint());
        assert_eq!(
            own.first_training_fingerprint(),
            silent.first_training_fingerprint()
        );
        assert!(notes.is_empty());
    }
    let written = of_sdxl("prediction = \"v\"\nzero_terminal_snr = true\n");
    let (own, notes) = silent
        .completed(flavor, &said(v, Some(true)))
        .expect("agrees");
    assert_eq!(own.training_fingerprint(), written.training_fingerprint());
    assert_ne!(own.training_fingerprint(), silent.training_fingerprint());
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
    assert_eq!(own.training_fingerprint(), written.training_fingerprint());
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
