//! `plumb probe` on the bundled miniature of SD3.5, whose recipe is known to be the reference's.

use image::{Rgb, RgbImage};
use serde_json::Value;

use crate::world::World;

/// Pictures of the kind that the miniature was pretrained on, in which one thing lies somewhere.
fn world() -> World {
    let world = World::new();
    std::fs::create_dir(world.path("scenes")).expect("a folder");
    let colours = [
        ("red", [214, 40, 40]),
        ("green", [38, 150, 70]),
        ("blue", [40, 90, 215]),
    ];
    let backgrounds = [("grey", [150, 152, 156]), ("cream", [240, 226, 190])];
    let places = [
        ("top left", 33, 33),
        ("center", 64, 64),
        ("bottom", 64, 95),
        ("right", 95, 64),
    ];
    for n in 0..24 {
        let ((colour, paint), (background, paper)) = (colours[n % 3], backgrounds[n / 12]);
        let (place, x, y) = places[(n / 3) % 4];
        let picture = RgbImage::from_fn(128, 128, |px, py| {
            let (dx, dy) = (i64::from(px) - x, i64::from(py) - y);
            Rgb(if dx * dx + dy * dy < 441 {
                paint
            } else {
                paper
            })
        });
        let file = format!("scenes/{n:02}");
        picture
            .save(world.path(&format!("{file}.png")))
            .expect("a picture");
        let caption = format!("a {colour} circle at the {place}, {background} background");
        world.write(&format!("{file}.txt"), &caption);
    }
    world.edit(
        "path = \"pictures\"\nresolution = 64",
        "path = \"scenes\"\nresolution = 128",
    );
    world
}

fn candidate<'a>(report: &'a Value, label: &str) -> &'a Value {
    let all = report["candidates"].as_array().expect("candidates");
    let has = |c: &&Value| {
        let labels = c["labels"].as_array().expect("labels");
        labels.iter().any(|l| l.as_str() == Some(label))
    };
    all.iter()
        .find(has)
        .unwrap_or_else(|| panic!("{label} is not among {report:#}"))
}

#[test]
fn the_true_recipe_wins_and_an_inert_field_is_told_as_such() {
    let world = world();
    let lengths = "t5.tokens.min_tokens+t5.tokens.max_tokens=256";
    let args = [
        "probe",
        "exp.toml",
        "--vary",
        lengths,
        "--vary",
        "clip_g.tokens.pad=end",
        "--vary",
        "t5.tokens.max_tokens=512",
        "--draws",
        "4",
        "--out",
        "report.json",
    ];
    let ran = world.run(&args).expect(0);
    let text = ran.stdout;
    let report: Value = serde_json::from_slice(&world.read("report.json")).expect("JSON");
    let verdict = |label: &str| {
        candidate(&report, label)["verdict"]
            .as_str()
            .expect("a word")
            .to_owned()
    };
    assert_eq!(verdict("reference"), "compared_with");
    assert_eq!(verdict("experiment"), "compared_with");
    assert_eq!(
        verdict("t5.tokens.max_tokens, t5.tokens.min_tokens = 256"),
        "worse",
        "{text}"
    );
    assert_eq!(verdict("clip_g.tokens.pad = end"), "worse", "{text}");
    assert_eq!(verdict("t5.tokens.max_tokens = 512"), "same");
    let inert = candidate(&report, "t5.tokens.max_tokens = 512");
    assert!(
        inert["by_picture"]
            .as_array()
            .expect("numbers")
            .iter()
            .all(|d| d.as_f64() == Some(0.0))
    );
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        words.contains("same tensors: t5.tokens.max_tokens = 512."),
        "{text}"
    );
    assert!(
        words.contains("No recipe that was tried is preferred to reference"),
        "{text}"
    );
    assert_eq!(report["control"]["verdict"], "worse", "{text}");
    assert!(words.contains("the captions matter"), "{text}");
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );

    // The same again, number for number, whatever is called together.
    let again = [&args[..10], &["--batch", "3", "--json", "--quiet"]].concat();
    let again: Value = world.run(&again).expect(0).json();
    assert_eq!(again["candidates"], report["candidates"]);

    let explain = [
        "recipe",
        "explain",
        "sd3/3.5-large",
        "--measured",
        "report.json",
    ];
    let explained = world.run(&explain).expect(0).stdout;
    assert!(
        explained.contains("measured: t5.tokens.max_tokens = 512: no effect: same tensors"),
        "{explained}"
    );
    assert!(
        explained.contains("measured: clip_g.tokens.pad = end: worse, +"),
        "{explained}"
    );
    let other = [
        "recipe",
        "explain",
        "sd3/3.5-large:kohya",
        "--measured",
        "report.json",
    ];
    world.run(&other).expect(2);
    world.write("report.json", "{\"version\": 9}");
    assert!(world.run(&explain).expect(1).stderr.contains("found 9"));
}

/// One scale rounds all samples of a call: they may not share one.
#[test]
fn what_is_measured_in_fp8_does_not_depend_on_who_is_measured_beside_it() {
    let world = world();
    world.edit(
        "flavor = \"3.5-large\"",
        "flavor = \"3.5-large\"\ncompute = \"fp8\"",
    );
    let probe = |more: &[&str]| {
        let few = [
            "probe", "exp.toml", "--json", "--pairs", "8", "--draws", "2", "--bands", "1",
        ];
        world.run(&[&few[..], &["--vary", "t5.tokens.max_tokens=154"], more].concat())
    };
    let losses = |report: &Value| {
        let all = report["candidates"].as_array().expect("candidates");
        all.iter().map(|c| c["loss"].clone()).collect::<Vec<_>>()
    };
    let usual = probe(&[]).expect(0).json();
    assert_eq!(
        losses(&usual),
        losses(&probe(&["--batch", "1"]).expect(0).json())
    );
    probe(&["--memory", "0.001"])
        .expect(1)
        .says("it does not fit");
    probe(&["--batch", "3"])
        .expect(2)
        .says("--batch 3: expected 1, or the option left out, with `[model] compute = \"fp8\"`");
}

#[test]
fn what_cannot_be_compared_is_refused_in_a_line() {
    let world = World::new();
    let refused = |args: &[&str], said: &str| {
        let ran = world
            .run(&[&["probe", "exp.toml"], args].concat())
            .expect(2);
        let error = ran.stderr;
        let last = error.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("error: ") && last.contains(said),
            "{error}"
        );
    };
    refused(&[], "at least 8 different pictures");
    let few = world.run(&["probe", "exp.toml", "--pairs", "7"]).expect(2);
    few.says("7 is not in 8..=100000");
    refused(
        &["--vary", "t5.tokens.max_token=1"],
        "did you mean `t5.tokens.max_tokens`",
    );
    refused(&["--vary", "t5.tokens.max_tokens"], "expected FIELD=VALUE");
    refused(
        &["--vary", "t5.tokens.max_tokens=none"],
        "has the same rules",
    );
    refused(
        &["--vary", "clip_l.tokens.max_tokens=78"],
        "max_position_embeddings",
    );
    refused(
        &["--against", "kohia"],
        "expected a variant of sd3/3.5-large",
    );
    refused(&["--bands", "3"], "a divisor of the 8 draws");
    refused(&["--out", "pictures"], "it is a folder; name a file in it");
    world.edit(
        "[[dataset]]\npath = \"pictures\"\nresolution = 64\nbucket_step = 16\n",
        "",
    );
    refused(&[], "no [[dataset]]");
}

#[test]
fn pictures_that_fail_are_told_and_passed_over() {
    let world = World::new();
    for n in 0..9 {
        world.picture(
            &format!("pictures/more{n}.png"),
            64,
            64,
            [20 * n, 100, 255 - 20 * n],
        );
        world.write(&format!("pictures/more{n}.txt"), "a small blue square");
    }
    world.write_bytes("pictures/broken.png", b"\x89PNG\r\n\x1a\nno picture");
    world.write("pictures/broken.txt", "a heart");
    let args = [
        "probe",
        "exp.toml",
        "--vary",
        "clip_g.tokens.pad=end",
        "--draws",
        "2",
        "--bands",
        "1",
        "--json",
    ];
    let ran = world.run(&args).expect(3);
    let report: Value = ran.json();
    assert_eq!(report["failed"], 1);
    assert_eq!(report["pictures"].as_array().map(Vec::len), Some(12));
    assert!(ran.stderr.contains("broken.png"));
}
