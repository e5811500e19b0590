//! Sets of samples for loops of one's own, read back by webdataset and mosaicml-streaming: `shards.py`.

use std::path::Path;

use serde_json::Value;

use crate::cli_disk::on_small_disk;
use crate::peers::Script;
use crate::python::with_package;
use crate::store_util::copy_dir;
use crate::world::World;

const FORMATS: [&str; 2] = ["webdataset", "mds"];

/// Exports both sets, `webdataset` and `mds`.
fn export(world: &World, more: &[&str]) -> [Value; 2] {
    FORMATS.map(|format| {
        let args = [
            "export", "cache", "exp.toml", "--for", format, "--out", format,
        ];
        world
            .run(&[&args[..], more, &["--json"]].concat())
            .expect(0)
            .json()
    })
}

/// What `shards.py` found to be equal to the store, by split; nothing where its libraries are not to be had.
pub(crate) fn read(world: &World, dtype: &str) -> Option<Value> {
    let mut script = Script::file("tests/it/shards.py").arg(dtype);
    for format in FORMATS {
        script = script.arg(format!("{format}={format}"));
    }
    let said = with_package(script, &world.path("")).run()?;
    if said.starts_with("skipped") {
        println!("{said}");
        return None;
    }
    Some(serde_json::from_str(&said).expect("JSON"))
}

/// Both sets of an Experiment that is encoded are equal to its store. What the samples to train say.
pub(crate) fn round_trip(world: &World) -> Option<Vec<Value>> {
    export(world, &[]);
    let samples = read(world, "float32")?;
    samples["train"].as_array().cloned()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> = entries
        .map(|e| {
            e.expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

#[test]
fn every_caption_and_crop_of_hostile_files_is_read_back_by_both_libraries() {
    let world = World::new();
    let hostile = "a/b.c, ../x.tar, __key__, {000000..000003}, \u{72ac} \u{202e}, \"q\", \\n";
    for folder in ["a.b", "__c__"] {
        std::fs::create_dir(world.path(&format!("pictures/{folder}"))).expect("a folder");
        world.picture(
            &format!("pictures/{folder}/p0.png"),
            96,
            64,
            [9, 9, folder.len() as u8],
        );
        world.write(&format!("pictures/{folder}/p0.txt"), hostile);
    }
    world.picture("pictures/v1.0 final.json.png", 64, 64, [77, 7, 7]);
    world.write("pictures/v1.0 final.json.txt", "one, two, three");
    let set = "bucket_step = 16\nrecursive = true\ncrops = 2\nflip = true\nshuffle_tags = true\ncaption_variants = 9";
    world.edit("bucket_step = 16", set);
    world.edit(
        "seed = 5",
        "seed = 5\nvalidation_share = 0.3\nvalidate_every = 2",
    );
    world.run(&["encode", "exp.toml"]).expect(0);
    let [tar, mds] = export(&world, &["--shard-size", "1", "--dtype", "bf16"]);
    for report in [&tar, &mds] {
        let shards = report["splits"]["train"]["shards"]
            .as_array()
            .expect("a list");
        assert!(shards.len() > 1, "{report}");
        assert!(
            shards.iter().all(|s| s["bytes"].as_u64() < Some(1_100_000)),
            "{report}"
        );
        assert!(
            report["notes"]
                .to_string()
                .contains("`context.1` of the second"),
            "{report}"
        );
    }
    assert_eq!(
        names(&world.path("mds")),
        [
            "no_caption.safetensors",
            "plumb.json",
            "train",
            "validation"
        ]
    );
    // The same bytes again, wherever it is written.
    let again = [
        "export", "cache", "exp.toml", "--for", "mds", "--out", "a/b/c",
    ];
    let again = [&again[..], &["--shard-size", "1", "--dtype", "bf16"]].concat();
    world.run(&again).expect(0);
    for name in ["plumb.json", "train/index.json", "train/shard.00000.mds"] {
        assert!(
            world.read(&format!("mds/{name}")) == world.read(&format!("a/b/c/{name}")),
            "{name}"
        );
    }
    world
        .run(&again)
        .expect(2)
        .says("a/b/c: is a folder with something in it");

    let Some(found) = read(&world, "bfloat16") else {
        return;
    };
    let all = |of: &str| found[of].as_array().cloned().unwrap_or_default();
    let (train, held_out) = (all("train"), all("validation"));
    assert_eq!((train.len(), held_out.len()), (4, 2));
    let samples: Vec<Value> = train.into_iter().chain(held_out).collect();
    let mut files: Vec<&str> = samples
        .iter()
        .filter_map(|s| s["picture"]["file"].as_str())
        .collect();
    files.sort_unstable();
    let wanted = [
        "__c__/p0.png",
        "a.b/p0.png",
        "p0.png",
        "p1.png",
        "p2.png",
        "v1.0 final.json.png",
    ];
    assert_eq!(files, wanted);
    for sample in &samples {
        let file = sample["picture"]["file"].as_str().expect("text");
        let captions = sample["captions"].as_array().expect("a list");
        let first = captions[0]["text"].as_str().expect("text");
        assert_eq!(
            file.contains('/'),
            first.contains("__key__"),
            "{file}: {first}"
        );
        assert_eq!(
            captions.len(),
            if first.contains(',') { 9 } else { 1 },
            "{file}"
        );
    }
}

#[test]
fn what_cannot_be_put_into_shards_is_refused_and_nothing_is_left() {
    let world = World::new();
    let export = [
        "export",
        "cache",
        "exp.toml",
        "--for",
        "webdataset",
        "--out",
        "sets/out",
    ];
    let with = |more: &[&str]| world.run(&[&export[..], more].concat());
    with(&[]).expect(4).says("plumb encode exp.toml");
    with(&["--overwrite"])
        .expect(2)
        .says("--overwrite: shards are put into a new folder");
    with(&["--shard-size", "0"])
        .expect(2)
        .says("0 is not in 1..=4000");
    let kohya = [
        "export", "cache", "exp.toml", "--for", "kohya", "--out", "k",
    ];
    let kohya = [&kohya[..], &["--shard-size", "9"]].concat();
    world
        .run(&kohya)
        .expect(2)
        .says("a trainer's cache has no shards");
    world.run(&["encode", "exp.toml"]).expect(0);
    // Without pictures: prompts alone.
    let text = String::from_utf8(world.read("exp.toml")).expect("UTF-8");
    let (head, rest) = text.split_once("[[dataset]]").expect("a data set");
    let (_, tail) = rest.split_once("[adapter]").expect("an adapter");
    world.write("prompts.toml", &format!("{head}[adapter]{tail}"));
    world.run(&["encode", "prompts.toml"]).expect(0);
    let empty = [
        "export",
        "cache",
        "prompts.toml",
        "--for",
        "mds",
        "--out",
        "sets/out",
    ];
    world
        .run(&empty)
        .expect(1)
        .says("no folder of pictures is given");
    assert!(!world.path("sets").exists());
    // A payload that is damaged is found before the set has its name.
    world.copy_folder(&world.path("store"), "kept");
    for pack in crate::store_util::files(&world.path("store"), ".safetensors") {
        let mut bytes = std::fs::read(&pack).expect("a pack");
        *bytes.last_mut().expect("bytes") ^= 1;
        std::fs::write(&pack, bytes).expect("written");
    }
    with(&[]).expect(1).says("damaged");
    assert_eq!(names(&world.path("sets")), [] as [&str; 0]);
    std::fs::remove_dir_all(world.path("store")).expect("removed");
    std::fs::rename(world.path("kept"), world.path("store")).expect("moved");

    // Killed in the middle, then a disk without room, then with.
    let script = "
        mkdir -p sets/.out.unfinished/train && touch sets/.out.unfinished/.lock sets/.out.unfinished/train/000009.tar
        $PLUMB export cache exp.toml --for webdataset --out sets/out; test $? = 1 || exit 9
        test -z \"$(ls -A sets)\" || exit 8
        mount -o remount,size=64m sets
        $PLUMB export cache exp.toml --for webdataset --out sets/out || exit 7
        test \"$(ls -A sets) $(ls sets/out/train)\" = 'out 000000.tar'";
    let Some((well, said)) = on_small_disk(&world, "sets", "100k", script) else {
        return;
    };
    assert!(well && said.contains("free some space"), "{said}");
}

#[test]
fn the_loops_of_the_docs_train() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let blocks = |file: &str, language: &str| -> Vec<String> {
        let text = std::fs::read_to_string(root.join(file)).expect("the docs");
        let begin = format!("```{language}\n");
        let blocks = text.split(&begin).skip(1).map(|b| b.split("```").next());
        blocks
            .map(|block| block.expect("it ends").to_owned())
            .collect()
    };
    let loops = blocks("docs/shards.md", "python");
    assert_eq!(loops.len(), FORMATS.len());
    let world = World::new();
    for part in ["assets/tiny-sd3", "assets/tiny-style/train"] {
        copy_dir(&root.join(part), &world.path(part));
    }
    world.write("shapes.toml", &blocks("docs/python.md", "toml")[0]);
    world.run(&["encode", "shapes.toml"]).expect(0);
    for (format, code) in FORMATS.iter().zip(loops) {
        let out = if *format == "mds" {
            "shapes/mds"
        } else {
            "shapes/wds"
        };
        let export = [
            "export",
            "cache",
            "shapes.toml",
            "--for",
            format,
            "--out",
            out,
        ];
        world.run(&export).expect(0);
        let library = if *format == "mds" {
            "streaming"
        } else {
            "webdataset"
        };
        let code = format!(
            "import importlib.util, sys\nif not importlib.util.find_spec({library:?}):\n    sys.exit(print('skipped: no {library}'))\n{code}"
        );
        let Some(said) = Script::code(&code).in_folder(&world.path("")).run() else {
            return;
        };
        if said.starts_with("skipped") {
            println!("{said}");
            continue;
        }
        assert!(
            said.lines().filter(|l| l.starts_with("loss ")).count() >= 2,
            "{said}"
        );
        assert!(!said.contains("nan"), "{said}");
    }
}
