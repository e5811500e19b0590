//! `plumb recipe`: that each command runs, says what it should, and ends with the right status.

use std::process::Command;

use serde_json::Value;

/// Runs `plumb recipe` with these arguments: status, standard output, standard error.
fn recipe(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_plumb"))
        .arg("recipe")
        .args(args)
        .output()
        .expect("the binary runs");
    (
        output.status.code().expect("no signal"),
        String::from_utf8(output.stdout).expect("UTF-8"),
        String::from_utf8(output.stderr).expect("UTF-8"),
    )
}

fn json(args: &[&str]) -> Value {
    let (status, out, err) = recipe(args);
    assert_eq!((status, err.as_str()), (0, ""));
    serde_json::from_str(&out).expect("JSON")
}

#[test]
fn list_names_all_variants() {
    let listed = json(&["list", "--json"]);
    let (status, text, _) = recipe(&["list"]);
    assert_eq!(status, 0);
    let variants = listed.as_array().expect("a list");
    assert_eq!(variants.len(), 7 + 7 + 8 + 7 + 8 + 9 + 5 + 6);
    for variant in variants {
        let name = variant["variant"].as_str().expect("a name");
        assert!(text.contains(&format!(":{name}")), "{text}");
    }
}

#[test]
fn show_gives_each_field_its_source_and_marks_what_differs() {
    let shown = json(&["show", "sd3/3.5-large", "--variant", "kohya", "--json"]);
    assert_eq!(shown, json(&["show", "sd3/3.5-large:kohya", "--json"]));
    assert_eq!(shown["fields"]["t5.tokens.max_tokens"]["value"], 256);
    for (path, field) in shown["fields"].as_object().expect("fields") {
        assert!(
            field["source"].as_str().is_some_and(|s| !s.is_empty()),
            "{path}"
        );
        assert!(
            field["file"].as_str().is_some_and(|s| s.ends_with(".toml")),
            "{path}"
        );
    }
    let (status, text, _) = recipe(&["show", "sd3/3.5-large:kohya"]);
    assert_eq!(status, 0);
    let marked = text.lines().filter(|line| line.starts_with("* ")).count();
    assert_eq!(marked, 14 + 1, "fourteen fields and the legend\n{text}");
    let (_, with_notes, _) = recipe(&["show", "sd3/3.5-large:kohya", "--notes"]);
    assert!(with_notes.len() > text.len());
    assert!(
        with_notes.lines().all(|line| line.chars().count() <= 120),
        "{with_notes}"
    );
}

#[test]
fn diff_of_a_recipe_and_itself_is_empty() {
    assert_eq!(
        json(&["diff", "sd3/3.5-large", "sd3/3-medium", "--json"])["fields"],
        Value::Array(Vec::new())
    );
    let (status, text, _) = recipe(&[
        "diff",
        "sd3/3.5-large",
        "sd3/3.5-large:simpletuner",
        "--sources",
    ]);
    assert_eq!(status, 0);
    assert!(
        text.contains("t5.tokens.max_tokens") && text.contains("154"),
        "{text}"
    );
    assert!(
        text.contains("configs/recipes/sd3/simpletuner.toml (ST:"),
        "{text}"
    );
}

#[test]
fn explain_tells_the_fields_of_a_file_apart() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("config.json");
    let config = r#"{"model_type": "clip_text_model", "hidden_size": 64, "num_attention_heads": 4,
                     "pad_token_id": 1, "eos_token_id": 2, "made_up": true}"#;
    std::fs::write(&file, config).expect("written");
    let path = file.to_str().expect("UTF-8");
    let explained = json(&["explain", "--config", path, "--json"]);
    let class = |name: &str| {
        let fields = explained["fields"].as_array().expect("fields");
        let field = fields
            .iter()
            .find(|f| f["field"] == name)
            .expect("the field");
        field["class"].clone()
    };
    assert_eq!(class("hidden_size"), "effective");
    assert_eq!(class("eos_token_id"), "conditional");
    assert_eq!(class("pad_token_id"), "inert");
    assert_eq!(class("made_up"), Value::Null);
    assert_eq!(
        class("hidden_act"),
        "effective",
        "left out, so its default counts"
    );
    let (status, text, _) = recipe(&["explain", "--config", path]);
    assert_eq!(status, 0);
    assert!(text.contains("unknown      made_up"), "{text}");
    assert!(
        text.contains("hidden_act left out: quick_gelu is used"),
        "{text}"
    );

    std::fs::write(&file, config.replace("64", "66")).expect("written");
    let (status, _, err) = recipe(&["explain", "--config", path]);
    assert_eq!(status, 3);
    assert!(
        err.contains("`num_attention_heads`: expected a divisor of hidden_size 66, found 4"),
        "{err}"
    );
}

#[test]
fn explain_covers_every_subject() {
    for what in [
        "recipe",
        "clip",
        "t5",
        "tokenizer",
        "sd3/3.5-large:onetrainer",
    ] {
        let entries = json(&["explain", what, "--json"]);
        assert!(entries.as_array().is_some_and(|e| e.len() > 5), "{what}");
    }
    let (_, text, _) = recipe(&["explain", "--field", "no_such"]);
    assert!(text.contains("no such field"), "{text}");
}

#[test]
fn wrong_usage_gets_one_line_and_status_2() {
    for (args, said) in [
        (&["show", "sd3"][..], "expected FAMILY/FLAVOR"),
        (&["show", "sd3/3.5-lage"], "did you mean `3.5-large`?"),
        (&["show", "sdx/3.5-large"], "did you mean `sdxl`?"),
        (
            &["diff", "sd3/3.5-large", "sd3/3.5-large:koya"],
            "did you mean `kohya`?",
        ),
        (
            &["show", "sd3/3.5-large:kohya", "--variant", "diffusers"],
            "give one",
        ),
        (&["explain", "flux"], "cannot explain `flux`"),
    ] {
        let (status, out, err) = recipe(args);
        assert_eq!(
            (status, out.as_str(), err.lines().count()),
            (2, "", 1),
            "{args:?}: {err}"
        );
        assert!(err.contains(said), "{args:?}: {err}");
    }
    for (content, said) in [("{}", "nothing in it says"), ("{", "not JSON")] {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config.json");
        std::fs::write(&file, content).expect("written");
        let (_, out, err) = recipe(&["explain", "--config", file.to_str().expect("UTF-8")]);
        assert_eq!((out.as_str(), err.lines().count()), ("", 1), "{err}");
        assert!(err.contains(said) && err.contains("config.json"), "{err}");
    }
}
