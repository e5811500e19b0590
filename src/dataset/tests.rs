use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::experiment::ClipUse;
use crate::monitor::{Recorder, Silent};
use crate::recipe::latents::{LatentKey, Size};

/// A folder read once, with the caption beside each picture.
pub(super) fn folder(path: impl Into<PathBuf>) -> Folder {
    let rules = BucketRules::around(64);
    let buckets = Buckets::new(rules, 16).expect("buckets");
    Folder {
        set: DatasetSettings {
            path: path.into(),
            repeats: 1,
            trigger: None,
            recursive: false,
            follow_links: false,
            caption_extension: None,
            default_caption: None,
            allow_empty_captions: false,
            tags: None,
            resolution: rules.resolution,
            bucket: true,
            bucket_step_px: rules.step,
            min_bucket_px: rules.min,
            max_bucket_px: rules.max,
            no_upscale: rules.no_upscale,
            crops: 1,
            flip: false,
            clips: ClipUse::Never,
            references: None,
        },
        view_rules: ViewRules {
            buckets,
            crops: 1,
            flip: false,
        },
        own_size: None,
    }
}

/// A folder on disk that a test fills.
pub(super) struct Place(tempfile::TempDir);

impl Place {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().expect("folder"))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> &Self {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        std::fs::write(path, bytes).expect("writes");
        self
    }

    /// A picture of one colour.
    fn picture(&self, name: &str, colour: u8) -> &Self {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image::RgbImage::from_pixel(6, 4, image::Rgb([colour, 7, 9]))
            .write_to(&mut bytes, image::ImageFormat::Png)
            .expect("encodes");
        self.write(name, bytes.into_inner())
    }

    fn folder(&self) -> Folder {
        folder(self.path())
    }

    fn folder_with(&self, change: impl FnOnce(&mut DatasetSettings)) -> Folder {
        let mut folder = self.folder();
        change(&mut folder.set);
        folder
    }

    fn scan(&self) -> Result<Dataset, Error> {
        Dataset::scan(&[self.folder()], &Silent)
    }
}

fn captions(dataset: &Dataset) -> Vec<&str> {
    dataset
        .items
        .iter()
        .map(|item| item.captions[0].as_str())
        .collect()
}

#[track_caller]
fn refused(result: Result<Dataset, Error>, parts: &[&str]) {
    let error = result.expect_err("refused").to_string();
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
    assert!(!error.contains('\n'), "{error}");
}

#[test]
fn captions_beside_pictures_are_read_in_natural_order() {
    let place = Place::new();
    for (n, text) in [(10, "ten"), (2, "two"), (1, "one")] {
        place
            .picture(&format!("img{n}.png"), n)
            .write(&format!("img{n}.txt"), text);
    }
    place
        .picture("Zebra.PNG", 3)
        .write("Zebra.caption", "  last\n");
    let dataset = place.scan().expect("scans");
    assert_eq!(captions(&dataset), ["one", "two", "ten", "last"]);
    let first = &dataset.items[0];
    assert_eq!(
        (first.size, first.repeats, first.held_out),
        (
            Size {
                width: 6,
                height: 4
            },
            1,
            false
        )
    );
    assert_eq!(
        first.digest,
        Digest::of(&std::fs::read(&first.picture).expect("reads"))
    );
}

#[test]
fn marks_and_line_ends_of_editors_are_not_part_of_a_caption() {
    let place = Place::new();
    place
        .picture("a.png", 1)
        .write("a.txt", "\u{feff}a cat,\r\nsitting\r\n");
    assert_eq!(captions(&place.scan().expect("scans")), ["a cat,\nsitting"]);
}

#[test]
fn text_that_is_not_utf8_is_one_line_that_says_where() {
    let place = Place::new();
    place.picture("a.png", 1).write("a.txt", b"caf\xe9");
    refused(place.scan(), &["a.txt", "not UTF-8 at byte 3"]);
    place.write("a.txt", b"\xff\xfea\0");
    refused(place.scan(), &["a.txt", "UTF-16"]);
    place.write("a.txt", vec![b'x'; (1 << 20) + 1]);
    refused(place.scan(), &["a.txt", "more bytes than 1048576"]);
}

#[test]
fn pictures_without_caption_are_named_all_at_once() {
    let place = Place::new();
    place
        .picture("a.png", 1)
        .picture("b.png", 2)
        .write("b.txt", " \n");
    let error = place.scan().expect_err("refused").to_string();
    let lines: Vec<_> = error.lines().collect();
    assert!(
        lines[0].contains("1 picture without a caption: a.png; write a .txt beside"),
        "{error}"
    );
    assert!(
        lines[1].contains("1 empty caption: b.txt; write one into each"),
        "{error}"
    );
    assert!(
        lines.len() == 2 && lines[1].contains("allow_empty_captions"),
        "{error}"
    );
    let allowed = place.folder_with(|set| set.allow_empty_captions = true);
    assert_eq!(
        captions(&Dataset::scan(&[allowed], &Silent).expect("scans")),
        ["", ""]
    );
    let default = place.folder_with(|set| set.default_caption = Some("a thing".to_owned()));
    assert_eq!(
        captions(&Dataset::scan(&[default], &Silent).expect("scans")),
        ["a thing", "a thing"]
    );
}

#[test]
fn a_list_gives_captions_and_contradictions_are_refused() {
    let place = Place::new();
    place.picture("a.png", 1).picture("deep/b.png", 2);
    let list = "{\"file_name\": \"./a.png\", \"text\": \"an a\", \"more\": 1}\n\n\
                {\"file_name\": \"deep/b.png\", \"caption\": \"a b\"}\n";
    place.write("metadata.jsonl", list);
    let deep = place.folder_with(|set| set.recursive = true);
    let scan = || Dataset::scan(std::slice::from_ref(&deep), &Silent);
    assert_eq!(captions(&scan().expect("scans")), ["an a", "a b"]);
    refused(
        place.scan(),
        &["metadata.jsonl", "`deep/b.png` is not a picture"],
    );
    place.write("a.txt", "another");
    refused(scan(), &["a.png", "metadata.jsonl", "a.txt", "remove one"]);
    for (line, part) in [
        ("{\"file_name\": \"a.png\"}", "line 1: no field `text`"),
        ("{\"text\": \"x\"}", "line 1: no field `file_name`"),
        (
            "{\"file_name\": 3, \"text\": \"x\"}",
            "line 1: `file_name` is a number, expected a text",
        ),
        (
            "[1]",
            "line 1: expected an object with `file_name` and `text`, found a list",
        ),
        (
            "{\"file_name\": \"a.png\", \"text\": \"x\"}\n{\"file_name\": \"deep/b.png\", \"text\": [\"x\", \"y\"]}",
            "line 2: `text` is a list, expected one text",
        ),
        ("{", "line 1: "),
        (
            "{\"file_name\": \"a.png\", \"text\": \"x\", \"text\": \"y\"}",
            "line 1: the field `text` is there twice",
        ),
        (
            "{\"file_name\": \"a.png\", \"text\": \"\", \"caption\": \"x\"}",
            "line 1: `text` is empty, and `caption` is not",
        ),
        (
            "{\"file_name\": \"../a.png\", \"text\": \"x\"}",
            "expected a path below the folder",
        ),
        (
            "{\"file_name\": \"/a.png\", \"text\": \"x\"}",
            "expected a path below the folder",
        ),
        (
            "{\"file_name\": \"a.png\", \"text\": \"x\"}\n{\"file_name\": \"./a.png\", \"text\": \"y\"}",
            "line 2: ",
        ),
    ] {
        place.write("metadata.jsonl", line);
        refused(scan(), &["metadata.jsonl", part]);
    }
}

#[test]
fn captions_that_are_there_and_not_read_are_named() {
    let place = Place::new();
    place
        .picture("a.png", 1)
        .picture("b.png", 2)
        .write("a.txt", "a");
    let chosen = place.folder_with(|set| set.caption_extension = Some(".caption".to_owned()));
    let lacking = |folder: Folder| Dataset::scan(&[folder], &Silent);
    refused(
        lacking(chosen),
        &[
            "a.png, b.png; 1 of them have a .txt",
            "`caption_extension` is `caption`",
        ],
    );
    let chosen = place.folder_with(|set| set.caption_extension = Some("tags".to_owned()));
    std::fs::remove_file(place.path().join("a.txt")).expect("removed");
    refused(lacking(chosen), &["write a .tags beside each"]);
}

#[test]
fn names_that_look_alike_in_two_unicode_forms_are_told() {
    let place = Place::new();
    place
        .picture("\u{e9}.png", 1)
        .write("e\u{301}.txt", "a")
        .picture("b.png", 2)
        .write("c.txt", "c");
    let folder = place.folder_with(|set| set.default_caption = Some("d".to_owned()));
    let recorder = Recorder::default();
    let dataset = Dataset::scan(&[folder], &recorder).expect("scans");
    assert_eq!(captions(&dataset), ["d", "d"]);
    let problems = recorder.problems();
    assert!(
        problems.len() == 1 && problems[0].contains("1 caption is named as a picture is"),
        "{problems:?}"
    );
}

#[test]
fn two_caption_files_contradict_and_two_pictures_of_one_name_share() {
    let place = Place::new();
    place
        .picture("a.png", 1)
        .picture("a.bmp", 2)
        .write("a.txt", "shared");
    assert_eq!(
        captions(&place.scan().expect("scans")),
        ["shared", "shared"]
    );
    place.write("a.caption", "other");
    let error = place.scan().expect_err("refused").to_string();
    assert!(
        error.contains("it has captions in a.caption and in a.txt: remove one"),
        "{error}"
    );
    let chosen = place.folder_with(|set| set.caption_extension = Some(".caption".to_owned()));
    assert_eq!(
        captions(&Dataset::scan(&[chosen], &Silent).expect("scans")),
        ["other", "other"]
    );
}

#[test]
fn the_trigger_word_fills_its_place_or_comes_first() {
    let place = Place::new();
    for (n, text) in ["a [trigger] on [trigger]", "a cat", "sks cat"]
        .iter()
        .enumerate()
    {
        place
            .picture(&format!("{n}.png"), n as u8)
            .write(&format!("{n}.txt"), text);
    }
    refused(place.scan(), &["0.png", "`[trigger]`", "no trigger word"]);
    let folder = place.folder_with(|set| set.trigger = Some("sks".to_owned()));
    let dataset = Dataset::scan(&[folder], &Silent).expect("scans");
    assert_eq!(
        captions(&dataset),
        ["a sks on sks", "sks, a cat", "sks cat"]
    );
}

#[test]
fn folders_inside_are_read_when_asked_for_and_told_of_otherwise() {
    let place = Place::new();
    place.picture("a.png", 1).write("a.txt", "outer");
    place.picture("in/b.png", 2).write("in/b.txt", "inner");
    place
        .picture(".hidden/c.png", 3)
        .write("._a.png", "not a picture");
    let recorder = Recorder::default();
    let flat = Dataset::scan(&[place.folder()], &recorder).expect("scans");
    assert_eq!(captions(&flat), ["outer"]);
    assert!(
        recorder.notes()[1].contains("recursive = true"),
        "{:?}",
        recorder.notes()
    );
    let deep = place.folder_with(|set| set.recursive = true);
    assert_eq!(
        captions(&Dataset::scan(&[deep], &Silent).expect("scans")),
        ["outer", "inner"]
    );
    let outer = Place::new();
    outer.picture("in/b.png", 2);
    refused(outer.scan(), &["no picture", "recursive = true"]);
}

#[test]
fn everything_wrong_is_told_at_once() {
    let (one, two) = (Place::new(), Place::new());
    one.write("a.png", "nonsense").write("a.txt", "x");
    two.write("b.png", "")
        .write("b.txt", "x")
        .picture("c.png", 1)
        .write("c.txt", "x");
    let missing = folder("/nowhere/at/all");
    let error =
        Dataset::scan(&[missing, one.folder(), two.folder()], &Silent).expect_err("refused");
    let lines: Vec<String> = error.to_string().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    for (line, part) in lines.iter().zip(["/nowhere/at/all", "a.png", "b.png"]) {
        assert!(line.contains(part), "{line}");
    }
    refused(Dataset::scan(&[], &Silent), &["no folder"]);
    let never = two.folder_with(|set| set.repeats = 0);
    refused(Dataset::scan(&[never], &Silent), &["`repeats` is 0"]);
}

#[test]
fn moving_or_renaming_changes_no_key_and_editing_a_caption_changes_only_that_caption() {
    let place = Place::new();
    place
        .picture("a.png", 1)
        .write("a.txt", "one")
        .picture("b.png", 2)
        .write("b.txt", "two");
    let view = crate::recipe::latents::View {
        resized: Size {
            width: 64,
            height: 64,
        },
        left: 0,
        top: 0,
        bucket: Size {
            width: 64,
            height: 64,
        },
        flip: false,
        resampling: crate::recipe::latents::Resampling::Spec,
        window: None,
    };
    let spec = crate::digest::Fingerprint::of(&"a spec");
    let keys = |dataset: &Dataset| -> Vec<_> {
        let key = |item: &Item| LatentKey::new(spec, item.digest, view).fingerprint();
        dataset.items.iter().map(key).collect()
    };
    let before = place.scan().expect("scans");
    let moved = Place::new();
    for name in ["a", "b"] {
        for extension in ["png", "txt"] {
            let from = place.path().join(format!("{name}.{extension}"));
            std::fs::copy(&from, moved.path().join(format!("new_{name}.{extension}")))
                .expect("copies");
        }
    }
    let after = moved.scan().expect("scans");
    assert_eq!(keys(&before), keys(&after));
    assert_eq!(captions(&before), captions(&after));
    moved.write("new_a.txt", "other");
    let edited = moved.scan().expect("scans");
    assert_eq!(keys(&before), keys(&edited));
    assert_eq!(captions(&edited), ["other", "two"]);
    moved.picture("new_b.png", 3);
    let repainted = keys(&moved.scan().expect("scans"));
    assert_eq!(repainted[0], keys(&before)[0]);
    assert_ne!(repainted[1], keys(&before)[1]);
}

fn dataset(contents: &[u8]) -> Dataset {
    let item = |(n, &content): (usize, &u8)| Item {
        picture: PathBuf::from(format!("{n}.png")),
        digest: Digest::of(&[content]),
        size: Size {
            width: 1,
            height: 1,
        },
        captions: vec![String::new()],
        written: String::new(),
        views: Vec::new(),
        repeats: 1,
        held_out: false,
        reference: None,
    };
    Dataset {
        items: contents.iter().enumerate().map(item).collect(),
    }
}

proptest! {
    #[test]
    fn a_split_depends_on_contents_alone_and_keeps_copies_together(
        contents in prop::collection::vec(any::<u8>(), 1..40),
        count in 0usize..12,
        turn in 0usize..40,
    ) {
        let data = dataset(&contents);
        let different: std::collections::BTreeSet<_> = contents.iter().collect();
        let Ok(split) = data.split(HeldOut::Count(count)) else {
            prop_assert!(count >= different.len());
            return Ok(());
        };
        let held = |data: &Dataset, split: &Split| -> std::collections::BTreeSet<Digest> {
            split.validation.iter().map(|&n| data.items[n].digest).collect()
        };
        prop_assert_eq!(held(&data, &split).len(), count);
        prop_assert!(split.train.iter().all(|&n| !held(&data, &split).contains(&data.items[n].digest)));
        prop_assert_eq!(split.train.len() + split.validation.len(), contents.len());
        let mut turned = contents.clone();
        turned.rotate_left(turn % contents.len());
        let other = dataset(&turned);
        let again = other.split(HeldOut::Count(count)).expect("as many");
        prop_assert_eq!(held(&data, &split), held(&other, &again));
    }

    #[test]
    fn natural_order_is_an_order(names in prop::collection::vec("[aAb0-9_]{0,6}", 3)) {
        use std::cmp::Ordering;
        let order = |a: &str, b: &str| natural::natural(a, b);
        let (a, b, c) = (&*names[0], &*names[1], &*names[2]);
        prop_assert_eq!(order(a, b), order(b, a).reverse());
        prop_assert_eq!(order(a, b) == Ordering::Equal, a == b);
        if order(a, b) == Ordering::Less && order(b, c) == Ordering::Less {
            prop_assert_eq!(order(a, c), Ordering::Less);
        }
    }
}

#[test]
fn a_part_is_rounded_up_and_never_all() {
    let data = dataset(&[1, 2, 3, 4, 5]);
    let held = |part| {
        data.split(HeldOut::Fraction(part))
            .map(|split| split.validation.len())
    };
    assert_eq!(held(0.0).expect("none"), 0);
    assert_eq!(held(0.2).expect("one"), 1);
    assert_eq!(held(0.21).expect("two"), 2);
    for bad in [0.99, 1.0, -0.1, f64::NAN] {
        assert!(held(bad).is_err(), "{bad}");
    }
    assert_eq!(
        data.split(HeldOut::None).expect("none").train,
        [0, 1, 2, 3, 4]
    );
    assert!(data.split(HeldOut::Count(5)).is_err());
}

#[path = "folder_tests.rs"]
mod folders;
