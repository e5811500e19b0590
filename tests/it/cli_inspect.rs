//! `plumb inspect tokens`, `entry`, `diff`, `neighbors` and `store`, on the bundled miniature: what is cut and lost, what lies in a
//! store and who uses it, what differs, and what is nearly the same.

use serde_json::Value;

use crate::world::World;

/// More than CLIP takes at once; T5 of this recipe takes all tokens, of the first 226 characters.
fn long() -> String {
    "a red circle on white, ".repeat(40).trim_end().to_owned()
}

/// A world of hard captions: a long one, an emoji, one of specials.
fn world() -> World {
    let world = World::new();
    world.write("pictures/p0.txt", &long());
    world.write("pictures/p1.txt", "a cat \u{1f600} at sea");
    world.write("pictures/p2.txt", "<pad> ! <|endoftext|> a red circle");
    world
}

fn encoder<'a>(report: &'a Value, slot: &str) -> &'a Value {
    let encoders = report.as_array().expect("a list");
    let found = encoders.iter().find(|e| e["slot"] == slot);
    found.unwrap_or_else(|| panic!("no {slot} in {report}"))
}

#[test]
fn a_captions_cut_its_lost_words_and_what_is_unknown_are_told() {
    let world = world();
    let tokens = |caption: &str| {
        let args = [
            "--json",
            "inspect",
            "tokens",
            "exp.toml",
            "--caption",
            caption,
        ];
        world.run(&args).expect(0).json()
    };
    let found = tokens(&long());
    let clip = encoder(&found, "clip_l");
    assert_eq!(
        (&clip["truncated"], &clip["count"], &clip["limit"]),
        (&true.into(), &77.into(), &77.into())
    );
    let lost = clip["lost"]["cut"]["text"].as_str().expect("lost text");
    assert!(long().ends_with(lost) && lost.len() > 100, "{lost}");
    // The words before it fit, one more does not.
    let kept = long()[..long().len() - lost.len()].to_owned();
    assert_eq!(encoder(&tokens(&kept), "clip_l")["truncated"], false);
    let next = lost.split(' ').next().expect("a word");
    assert_eq!(
        encoder(&tokens(&(kept + next)), "clip_l")["truncated"],
        true
    );
    // T5 cuts no tokens, and sees 226 characters all the same.
    let t5 = encoder(&found, "t5");
    assert_eq!(
        (&t5["truncated"], &t5["lost"]["cut"]),
        (&false.into(), &Value::Null)
    );
    assert_eq!(t5["lost"]["dropped"][0]["by"], "first_226_characters");
    assert_eq!(t5["lost"]["dropped"][0]["text"], long()[226..].trim());

    let emoji = tokens("a cat \u{1f600} at sea");
    assert_eq!(
        encoder(&emoji, "t5")["lost"]["unknown_words"][0],
        "\u{1f600}"
    );
    assert_eq!(encoder(&emoji, "clip_l")["lost"]["unknown_tokens"], 0);
    // Who writes a special token gets it, and is told.
    let special = tokens("a <|endoftext|> b");
    assert_eq!(encoder(&special, "clip_l")["specials_inside"], 1);
    assert_eq!(encoder(&special, "clip_l")["lost"]["unknown_tokens"], 0);
    let empty = tokens("");
    assert_eq!(encoder(&empty, "t5")["count"], 1);
    let unspaced = tokens(&"\u{732b}".repeat(200));
    let lost = &encoder(&unspaced, "clip_l")["lost"]["cut"]["text"];
    let lost = lost.as_str().expect("text").chars().count();
    assert!((1..200).contains(&lost), "some of it is kept: {lost}");
}

#[test]
fn a_data_sets_cut_captions_are_told_the_worst_first_and_the_exit_status_is_0() {
    let world = world();
    let words = long() + " " + &long();
    world.write("pictures/p1.txt", &words);
    let report = world
        .run(&["--json", "inspect", "tokens", "exp.toml"])
        .expect(0)
        .json();
    assert_eq!(report["captions"], 5, "three, a prompt, and the empty one");
    let cut = report["cut"].as_array().expect("a list");
    assert_eq!(cut.len(), 2);
    assert_eq!(cut[0]["caption"], words.as_str());
    assert!(
        cut[0]["pictures"][0]
            .as_str()
            .expect("a path")
            .ends_with("p1.png")
    );
    assert_eq!(encoder(&report["encoders"], "clip_g")["truncated"], 2);
    assert_eq!(encoder(&report["encoders"], "t5")["shortened"], 2);
    world
        .run(&["inspect", "tokens", "exp.toml", "--dataset", "--worst", "1"])
        .expect(0)
        .says("p1.png")
        .says("lost behind the cut")
        .says("and 1 more");
    world.edit(
        "[[dataset]]\npath = \"pictures\"\nresolution = 64\nbucket_step = 16",
        "",
    );
    world
        .run(&["inspect", "tokens", "exp.toml"])
        .expect(0)
        .says("no caption loses text");
    world
        .run(&["inspect", "tokens", "exp.toml", "--dataset"])
        .expect(2)
        .says("no [[dataset]]");
}

/// The same numbers from `inspect tokens`, from `encode` when it makes the entries and when they are there, and from `train`.
#[test]
fn every_command_counts_the_same_captions_as_cut() {
    let world = world();
    let cuts = |report: &Value| -> Vec<(String, u64, u64)> {
        let encoders = report.as_array().expect("encoders").iter();
        let number = |e: &Value, name: &str| e[name].as_u64().expect("a number");
        encoders
            .map(|e| {
                let slot = e["slot"].as_str().expect("a name").to_owned();
                (slot, number(e, "truncated"), number(e, "shortened"))
            })
            .collect()
    };
    let run = |args: &[&str]| world.run(&[&["--json"], args].concat()).expect(0).json();
    let expected = cuts(&run(&["inspect", "tokens", "exp.toml"])["encoders"]);
    assert_eq!(expected[0], ("clip_l".to_owned(), 1, 0));
    assert_eq!(expected[2], ("t5".to_owned(), 0, 1));
    world.write("some.txt", &format!("{}\na dog\n", long()));
    let some = cuts(&run(&["encode", "exp.toml", "--captions", "some.txt"])["captions"]);
    assert_eq!(some, expected);
    // Now one is there and others are new, in another index part; then all are there.
    for _ in 0..2 {
        assert_eq!(cuts(&run(&["encode", "exp.toml"])["captions"]), expected);
    }
    let trained = run(&["train", "exp.toml", "--stop-after", "1"]);
    assert_eq!(cuts(&trained["captions"]), expected);
    // With the index in one part.
    world.run(&["store", "rebuild-index", "store"]).expect(0);
    assert_eq!(cuts(&run(&["encode", "exp.toml"])["captions"]), expected);
    let trained = world.run(&["train", "exp.toml"]).expect(0);
    trained
        .says("clip_l: 1 of 5 captions is cut")
        .says("t5: 1 of 5 captions is cut by the recipe's clean-up");
}

#[test]
fn an_entry_is_told_with_its_place_its_norms_and_its_runs() {
    let world = world();
    world
        .run(&["inspect", "entry", "exp.toml", "--caption", "x"])
        .expect(4)
        .says("plumb encode");
    world.run(&["encode", "exp.toml"]).expect(0);
    let args = [
        "--json",
        "inspect",
        "entry",
        "exp.toml",
        "--caption",
        &long(),
    ];
    let found = world.run(&args).expect(0).json();
    let [clip, _, t5] = &found.as_array().expect("entries")[..] else {
        panic!("expected three entries: {found}");
    };
    assert_eq!(clip["record"]["truncated"], true);
    assert_eq!(
        clip["parts"][0]["norms"].as_array().expect("norms").len(),
        77
    );
    assert_eq!(clip["parts"][1]["part"], "pooled");
    assert_eq!(t5["fields"]["tokens"]["cleanup"][0], "first_226_characters");
    assert!(
        t5["runs"][0]["id"]
            .as_str()
            .expect("a name")
            .starts_with("encode-exp-")
    );
    // The norms are those of the numbers that `inspect conditioning` writes: of the pooled vector one.
    let rms = clip["record"]["parts"][1]["rms"]
        .as_f64()
        .expect("a number");
    let norm = clip["parts"][1]["norms"][0].as_f64().expect("a number");
    let width = clip["record"]["parts"][1]["shape"][0]
        .as_f64()
        .expect("a number");
    assert!(
        (norm - rms * width.sqrt()).abs() < 1e-4 * norm,
        "{norm} {rms}"
    );

    let entry = clip["entry"].as_str().expect("a fingerprint");
    world
        .run(&["inspect", "entry", "store", &entry[..8]])
        .expect(0)
        .says(entry)
        .says("its digest was compared")
        .says("norms of hidden");
    world
        .run(&["inspect", "entry", "store", "12"])
        .expect(2)
        .says("4 to 64");
    world
        .run(&["inspect", "entry", "store", "--caption", "nothing"])
        .expect(1)
        .says("no entry");
    damage(&world, clip["file"].as_str().expect("a path"));
    world
        .run(&["inspect", "entry", "store", entry])
        .expect(3)
        .says("DAMAGED")
        .says("digest");
    std::fs::remove_file(world.path(clip["file"].as_str().expect("a path"))).expect("removed");
    world
        .run(&["inspect", "entry", "exp.toml", "--caption", &long()])
        .expect(3)
        .says("missing or shorter")
        .says("clip_l: the store has no sound entry");
}

/// Changes the last byte of every payload in a pack: that of the last one is enough for one entry.
fn damage(world: &World, pack: &str) {
    let mut bytes = world.read(pack);
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("a length")) as usize;
    for byte in bytes[8 + header..].iter_mut().step_by(4) {
        *byte ^= 1;
    }
    world.write_bytes(pack, &bytes);
}

#[test]
fn two_recipes_are_told_apart_by_parameter_and_by_number() {
    let world = world();
    let text = World::experiment().replace(
        "\"reference\"",
        "\"reference\"\n[recipe.deviate]\nt5.tokens.min_tokens = 90",
    );
    world.write("longer.toml", &text);
    let diff = ["--json", "inspect", "diff", "exp.toml", "longer.toml"];
    let report = world
        .run(&[&diff[..], &["--caption", "a red circle"]].concat())
        .expect(0)
        .json();
    let [clip, _, t5] = &report["encoders"].as_array().expect("encoders")[..] else {
        panic!("expected three encoders: {report}");
    };
    assert_eq!(clip["parameters"]["fields"], Value::Array(Vec::new()));
    assert_eq!(clip["difference"]["pooled"]["difference"]["equal"], true);
    assert_eq!(t5["parameters"]["fields"][0]["field"], "tokens.min_tokens");
    let hidden = &t5["difference"]["hidden"]["difference"];
    assert_eq!(hidden["tokens"]["rows"].as_array().expect("rows").len(), 5);
    assert_eq!(
        hidden["pads"]["only_second"]
            .as_array()
            .expect("rows")
            .len(),
        90 - 77
    );
    let cosine = hidden["tokens"]["rows"][0]["cosine"]
        .as_f64()
        .expect("a cosine");
    assert!((0.5..1.0).contains(&cosine), "{cosine}");
    let context = &report["received"]["context"]["difference"]["tokens"];
    assert_eq!(
        context["only_second"].as_array().expect("rows").len(),
        90 - 77
    );

    // Of all captions, when both stores have them.
    world
        .run(&["inspect", "diff", "exp.toml", "longer.toml"])
        .expect(3)
        .says("no sound entry of");
    for experiment in ["exp.toml", "longer.toml"] {
        world.run(&["encode", experiment]).expect(0);
    }
    let report = world.run(&diff).expect(0).json();
    let t5 = &report["encoders"][2];
    assert_eq!((&t5["compared"], &t5["equal"]), (&5.into(), &0.into()));
    assert_eq!(report["encoders"][0]["equal"], 5);
    let least = t5["tokens"]["min_cosine"].as_f64().expect("a cosine");
    assert_eq!(t5["worst"][0]["cosine"].as_f64(), Some(least));
    // A store with itself: each spec finds itself, and the numbers are equal.
    world
        .run(&[
            "inspect",
            "diff",
            "store",
            "store",
            "--caption",
            "a blue square",
        ])
        .expect(0)
        .says("same parameters")
        .says("the same numbers");
}

#[test]
fn two_captions_are_aligned_by_their_tokens() {
    let world = world();
    let args = ["--caption", "a red circle", "--caption", "a big red circle"];
    let report = world
        .run(&[&["--json", "inspect", "diff", "exp.toml"], &args[..]].concat())
        .expect(0)
        .json();
    let tokens = &report["encoders"][0]["difference"]["hidden"]["difference"]["tokens"];
    assert_eq!(tokens["only_second"][0], 2, "`big`: {tokens}");
    assert_eq!(tokens["rows"][2]["rows"], serde_json::json!([2, 3]));
    assert_eq!(tokens["rows"][2]["same_token"], true);
    // What stands before the word, CLIP does not see it by.
    assert_eq!(tokens["rows"][1]["equal"], true);
    world
        .run(&["inspect", "diff", "exp.toml", "--caption", "a"])
        .expect(2)
        .says("second --caption");
    world
        .run(&["inspect", "diff", "exp.toml"])
        .expect(2)
        .says("two sides");
}

/// A store of the first version: its specs find their nearest of today.
#[test]
fn a_store_of_an_earlier_version_is_looked_into() {
    let world = World::new();
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    world.copy_folder(&fixtures.join("run-v1/store"), "old");
    let report = world
        .run(&["--json", "inspect", "store", "old"])
        .expect(0)
        .json();
    let specs = report["specs"].as_array().expect("specs");
    let orphans: u64 = specs
        .iter()
        .map(|s| s["entries"].as_u64().expect("a number"))
        .sum();
    assert_eq!(report["orphans"], orphans, "it has no runs");
    assert!(
        specs
            .iter()
            .any(|s| s["what"].as_str().expect("text").starts_with("VAE"))
    );
    world
        .run(&["inspect", "store", "old"])
        .expect(0)
        .says("there is no run");
    world
        .run(&["inspect", "diff", "exp.toml", "old", "--caption", ""])
        .expect(0)
        .says("first differs")
        .says("tokens.implementation");
}

#[test]
fn a_store_is_told_with_who_shares_it_and_what_no_run_uses() {
    let world = world();
    world.write(
        "other.toml",
        &World::experiment().replace("steps = 4", "steps = 6"),
    );
    world.run(&["encode", "exp.toml"]).expect(0);
    world.run(&["encode", "other.toml"]).expect(0);
    // In the store, and of no run.
    let out = ["--caption", "a dog", "--out", "dog.safetensors"];
    world
        .run(&[&["inspect", "conditioning", "exp.toml"], &out[..]].concat())
        .expect(0);
    let report = world
        .run(&["--json", "inspect", "store", "store"])
        .expect(0)
        .json();
    assert_eq!(report["orphans"], 3, "of three encoders");
    assert_eq!(report["runs"].as_array().expect("runs").len(), 2);
    assert_eq!(report["runs"][0]["alone"], 0);
    let stats = world
        .run(&["--json", "store", "stats", "store"])
        .expect(0)
        .json();
    for spec in report["specs"].as_array().expect("specs") {
        let stats = &stats["specs"][spec["spec"].as_str().expect("a fingerprint")];
        assert_eq!(
            (&spec["entries"], &spec["bytes"]),
            (&stats["entries"], &stats["payload_bytes"])
        );
    }
    world
        .run(&["inspect", "store", "exp.toml"])
        .expect(0)
        .says("this Experiment")
        .says("3 entries (")
        .says("encode-exp-");
    let gone = world.run(&[
        "--json",
        "store",
        "gc",
        "store",
        "--grace-hours",
        "0",
        "--dry-run",
    ]);
    assert_eq!(
        gone.expect(0).json()["entries_removed"],
        3,
        "what gc would remove"
    );
}

#[test]
fn near_duplicates_and_contradictions_are_found() {
    let world = World::new();
    world.write("pictures/p0.txt", "a red circle");
    world.write("pictures/p1.txt", "a red  circle");
    world.write("pictures/p2.txt", "a red circle");
    world.copy_folder(&world.path("pictures"), "more");
    world.write("more/p0.txt", "a green dog");
    let more = "resolution = 64\nbucket_step = 16\n\n[[dataset]]\npath = \"more\"\nresolution = 64\nbucket_step = 16";
    world.edit("resolution = 64\nbucket_step = 16", more);
    world
        .run(&["inspect", "neighbors", "exp.toml"])
        .expect(4)
        .says("plumb encode");
    world.run(&["encode", "exp.toml"]).expect(0);
    let report = world
        .run(&["--json", "inspect", "neighbors", "exp.toml"])
        .expect(0)
        .json();
    let clip = encoder(&report["encoders"], "clip_l");
    assert_eq!(clip["vectors"], "pooled");
    assert_eq!(
        encoder(&report["encoders"], "t5")["vectors"],
        "mean_of_tokens"
    );
    // White space is nothing to CLIP.
    let pair = &clip["pairs"][0];
    assert_eq!(
        (&pair["captions"], &pair["other_pictures"]),
        (&serde_json::json!([0, 1]), &true.into())
    );
    let found = &report["contradictions"];
    assert_eq!(found["same_caption"][0]["caption"], "a red circle");
    assert_eq!(
        found["same_caption"][0]["pictures"]
            .as_array()
            .expect("files")
            .len(),
        2
    );
    assert_eq!(found["same_picture"].as_array().expect("pictures").len(), 1);
    let one = ["--caption", "a red circle", "--most", "1"];
    world
        .run(&[&["inspect", "neighbors", "exp.toml"], &one[..]].concat())
        .expect(0)
        .says("1.0000  `a red  circle`");
    world
        .run(&["inspect", "neighbors", "exp.toml", "--caption", "?"])
        .expect(1)
        .says("to the letter");
    world
        .run(&["inspect", "neighbors", "exp.toml", "--above", "2"])
        .expect(2)
        .says("--above");
    // A store knows no pictures.
    let store = world
        .run(&["--json", "inspect", "neighbors", "store"])
        .expect(0)
        .json();
    assert_eq!(store["encoders"][0]["with_other_pictures"], 0);
}
