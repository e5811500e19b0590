//! Captions that are lists of tags: their variants are encoded, trained from and told.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use plumb::store::Store;
use safetensors::SafeTensors;

use crate::store_util::records;
use crate::world::World;

/// SDXL in small, with captions of tags.
fn world(lines: &str) -> World {
    let world = World::new();
    let asset = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-sdxl");
    world.copy_folder(&asset, "base");
    world.edit("family = \"sd3\"", "family = \"sdxl\"");
    world.edit("flavor = \"3.5-large\"", "flavor = \"pony-v6\"");
    let path = format!("{:?}", crate::world::tiny_sd3().display().to_string());
    world.edit(&path, "\"base\"");
    world.edit("variant = \"reference\"", "variant = \"kohya-225\"");
    world.edit("bucket_step = 16", &format!("bucket_step = 16\n{lines}"));
    for n in 0..3 {
        let text = format!("sks style, p{n}, red, green, blue circle, outdoors,");
        world.write(&format!("pictures/p{n}.txt"), &text);
    }
    world
}

/// The captions of pictures that the store has.
fn captions(world: &World) -> BTreeSet<String> {
    let store = Store::open_or_create(&world.path("store")).expect("a store");
    let reader = store.reader().expect("a reader");
    let specs = reader.specs().expect("specs");
    let records = specs.iter().flat_map(|spec| records(&reader, spec));
    let texts = records.map(|record| record.source);
    texts.filter(|text| text.contains("sks")).collect()
}

fn metadata(world: &World) -> HashMap<String, String> {
    let bytes = world.read("out/lora.safetensors");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("a header");
    header.metadata().clone().expect("metadata")
}

#[test]
fn variants_are_encoded_once_and_trained_from() {
    let world = world("shuffle_tags = true\nkeep_tags = 2\ncaption_variants = 5");
    let said = world.run(&["encode", "exp.toml"]).expect(0);
    said.says("of them variants for 3 pictures); to encode: ");
    crate::shards::round_trip(&world);
    let first = captions(&world);
    assert!((12..=15).contains(&first.len()), "{first:?}");
    for n in 0..3 {
        assert!(first.contains(&format!(
            "sks style, p{n}, red, green, blue circle, outdoors"
        )));
        let of = |t: &&String| t.starts_with(&format!("sks style, p{n}, "));
        assert!(first.iter().filter(of).count() >= 4);
    }
    // Again, in another folder's order and with another seed: nothing is new.
    world.edit("seed = 5", "seed = 6");
    for (from, to) in [("p0", "z9"), ("p2", "a1")] {
        for ending in ["png", "txt"] {
            let (from, to) = (
                format!("pictures/{from}.{ending}"),
                format!("pictures/{to}.{ending}"),
            );
            std::fs::rename(world.path(&from), world.path(&to)).expect("renamed");
        }
    }
    let again = world.run(&["encode", "exp.toml"]).expect(0);
    assert!(!again.stderr.contains("to encode"), "{}", again.stderr);
    // More of them: those there are stay.
    world.edit("caption_variants = 5", "caption_variants = 9");
    world.run(&["train", "exp.toml"]).expect(4);
    world.run(&["encode", "exp.toml"]).expect(0);
    assert!(captions(&world).is_superset(&first) && captions(&world).len() > first.len());
    world.run(&["train", "exp.toml"]).expect(0);
    let found = metadata(&world);
    let tags: serde_json::Value = serde_json::from_str(&found["ss_tag_frequency"]).expect("JSON");
    assert_eq!(tags["pictures"]["sks style"], 3);
    assert_eq!(found["ss_v_parameterization"], "False");
}

#[test]
fn what_has_no_effect_is_refused_and_what_it_leaves_out_is_told() {
    for (lines, why) in [
        (
            "keep_tags = 1",
            "`dataset[0].keep_tags`: tags are neither shuffled nor left out",
        ),
        (
            "caption_variants = 4",
            "`dataset[0].caption_variants`: tags are neither",
        ),
        (
            "keep_tags_separator = \"|||\"",
            "`dataset[0].keep_tags_separator`: tags are neither",
        ),
        (
            "shuffle_tags = true\nkeep_tags_separator = \",\"",
            "expected signs that no tag has",
        ),
        (
            "shuffle_tags = true\ncaption_variants = 1",
            "expected 2 to 1000, found 1",
        ),
        (
            "tag_dropout = 1.0",
            "expected at least 0 and less than 1, found 1",
        ),
    ] {
        world(lines)
            .run(&["encode", "exp.toml"])
            .expect(2)
            .says(why);
    }
    let world = world("shuffle_tags = true\nkeep_tags = 1\ntrigger = \"zzz\"");
    world.write("pictures/p1.txt", "sks a sentence without tags");
    let said = world.run(&["encode", "exp.toml"]).expect(0);
    said.says("no tags to shuffle or leave out in 1 of 3 captions: p1.png");
    assert!(
        captions(&world)
            .iter()
            .all(|text| text.starts_with("zzz, sks"))
    );
    world.write("pictures/p1.txt", "sks, a, b\nsecond line");
    world
        .run(&["encode", "exp.toml"])
        .expect(1)
        .says("of several lines is no list of tags");
    world.write("pictures/p1.txt", "sks ||| a, b");
    world
        .run(&["encode", "exp.toml"])
        .expect(1)
        .says("set `keep_tags_separator = \"|||\"`");
    for n in 0..3 {
        world.write(&format!("pictures/p{n}.txt"), "sks\u{ff0c}one\u{ff0c}two");
    }
    world
        .run(&["encode", "exp.toml"])
        .expect(1)
        .says("no tags to shuffle or leave out in 3 of 3 captions");
}
