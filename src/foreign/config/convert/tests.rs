use super::{
    Value, frame_buckets, integer, integers, model, pair, resolution, resolutions, warmup,
    warmup_share, within,
};
use crate::foreign::config::tree::Node;

fn list(items: &[i64]) -> Value {
    let node = |n: &i64| Node {
        line: None,
        value: Value::Integer(*n),
    };
    Value::List(items.iter().map(node).collect())
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

#[test]
fn sides_are_read_in_every_writing() {
    for (value, expected) in [
        (text("1024"), "1024"),
        (text("768,1024"), "[768, 1024]"),
        (text("768x768"), "768"),
        (list(&[512, 640]), "[512, 640]"),
        (Value::Number(512.0), "512"),
    ] {
        assert_eq!(resolution(&value).expect("sides").to_string(), expected);
    }
    assert!(resolution(&text("large")).is_err());
    let several = resolutions(&list(&[512, 768])).expect("sides");
    assert_eq!(several.to_string(), "[512, 768]");
}

fn rule(text: &str) -> super::Rule {
    toml::from_str(&format!(
        "scope = \"a\"\nname = \"b\"\nsource = \"x\"\n{text}"
    ))
    .expect("a rule")
}

#[test]
fn lists_of_numbers_are_read_in_every_writing() {
    for value in [text("[9, 18, 27]"), text("9 18 27"), list(&[9, 18, 27])] {
        assert_eq!(
            integers(&value).expect("numbers").to_string(),
            "[9, 18, 27]"
        );
    }
    for value in [text(""), text("9 x"), Value::Null, list(&[1; 65])] {
        assert!(integers(&value).is_err(), "{value:?}");
    }
}

#[test]
fn frames_of_pictures_are_left_out() {
    let buckets = rule("as = \"frame_buckets\"\nfield = \"dataset.frames\"");
    let of = |items: &[i64]| frame_buckets(&buckets, &list(items)).map(|fields| fields.len());
    assert_eq!(of(&[1]), Ok(0));
    assert_eq!(of(&[1, 33]), Ok(1));
    assert!(of(&[1, 0]).is_err());
    let counts = frame_buckets(&buckets, &list(&[65, 1, 35])).expect("counts");
    assert_eq!(counts[0].1.to_string(), "[33, 65]");
}

#[test]
fn a_folder_gives_its_parts() {
    let parts = rule("as = \"within\"\nvalues = { a = \"\", b = \"vae\" }");
    let found = within(&parts, &text("/m/")).expect("paths");
    let found: Vec<String> = found.iter().map(|(_, path)| path.to_string()).collect();
    assert_eq!(found, ["\"/m\"", "\"/m/vae\""]);
}

#[test]
fn names_on_the_hub_are_told_from_files() {
    assert_eq!(model("a/b-1.0"), "hf://a/b-1.0");
    for file in [
        "/a/b",
        "a/b.safetensors",
        "./a",
        "a/b/c",
        "C:\\a",
        "src/lib.rs",
    ] {
        assert_eq!(model(file), file);
    }
}

#[test]
fn numbers_that_are_none_are_errors() {
    assert_eq!(integer(&text("2e3")), Ok(2000));
    for value in [text("1.5"), text("nan"), Value::Number(1e300), Value::Null] {
        assert!(integer(&value).is_err(), "{value:?}");
    }
    for said in ["0.1", "10%"] {
        assert_eq!(
            warmup(&text(said)).map(|v| v.to_string()),
            Ok("0.1".to_owned())
        );
    }
    let share = |number: f64| warmup_share(&Value::Number(number)).map(|v| v.to_string());
    assert_eq!(share(0.5), Ok("0.5".to_owned()));
    assert_eq!(share(200.0), Ok("200".to_owned()));
    assert_eq!(share(-1.0), Ok("0".to_owned()));
    assert!(share(1.0).is_err());
}

#[test]
fn betas_come_in_two() {
    let betas = rule("as = \"pair\"\nfield = [\"train.beta1\", \"train.beta2\"]");
    let found = pair(&betas, &text("(0.9, 0.99)")).expect("two");
    assert_eq!(found[1].1.to_string(), "0.99");
    assert!(pair(&betas, &text("0.9")).is_err());
}
