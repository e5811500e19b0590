use std::collections::BTreeMap;

use super::*;
use crate::dataset::{BucketRules, Buckets, Dataset, Folder};
use crate::monitor::{Recorder, Silent};

fn size(width: u32, height: u32) -> Size {
    Size { width, height }
}

fn kontext() -> OwnSize {
    let text = "[model]\nfamily = \"flux1\"\nflavor = \"kontext\"\npath = \"m\"\n";
    let experiment = Experiment::parse(Path::new("exp.toml"), text.to_owned()).expect("valid");
    OwnSize::of(&experiment, 16).expect("sizes")
}

#[test]
fn kleins_reference_keeps_its_size_up_to_a_megapixel_but_for_its_edges() {
    let text = "[model]\nfamily = \"flux2\"\nflavor = \"klein-4b\"\npath = \"m\"\n";
    let experiment = Experiment::parse(Path::new("exp.toml"), text.to_owned()).expect("valid");
    let own = OwnSize::of(&experiment, 16).expect("sizes");
    let view = |w, h| {
        let view = own.view(size(w, h)).expect("a view");
        let (r, b) = (view.resized, view.bucket);
        [r.width, r.height, view.left, view.top, b.width, b.height]
    };
    // By diffusers' `Flux2ImageProcessor`, of pictures of these sizes.
    assert_eq!(view(100, 67), [100, 67, 2, 1, 96, 64]);
    assert_eq!(view(1024, 1024), [1024, 1024, 0, 0, 1024, 1024]);
    assert_eq!(view(1500, 1100), [1195, 876, 5, 6, 1184, 864]);
    assert_eq!(view(4000, 500), [2896, 362, 0, 5, 2896, 352]);
    // diffusers refuses what has a side below 64.
    assert_eq!(view(9, 40), [16, 40, 0, 4, 16, 32]);
}

#[test]
fn kleins_pixels_of_a_reference_are_those_of_diffusers_pipeline() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/golden/flux2_pipeline.safetensors"
    );
    let golden = candle_core::safetensors::load(path, &candle_core::Device::Cpu).expect("golden");
    let expected = golden["golden.edit.reference"].flatten_all();
    let expected = expected.and_then(|t| t.to_vec1::<f32>()).expect("pixels");
    let place = tempfile::tempdir().expect("a folder");
    let path = place.path().join("edit.png");
    let picture = image::RgbImage::from_fn(100, 67, |x, y| {
        image::Rgb([0, 1, 2].map(|c| ((x * (c + 1) * 3 + y * 5) % 256) as u8))
    });
    picture.save(&path).expect("saved");
    let own = OwnSize::Within {
        most_pixels: 1 << 20,
        multiple: 16,
    };
    let file = PictureFile::open(&path).expect("a picture");
    let view = own.view(file.size).expect("a view");
    let pixels = file.prepare(view).expect("decodes").pixels;
    assert_eq!(pixels.len(), expected.len());
    for (ours, theirs) in pixels.iter().zip(expected) {
        assert!((ours - theirs).abs() < 1e-6, "{ours} {theirs}");
    }
}

/// `tools/goldens/flux1_kontext.py` has the same.
fn pixel(x: u32, y: u32, c: u32) -> u8 {
    if (x / 9 + y / 6).is_multiple_of(2) {
        return ((x * (c + 1) + y * 3) % 256) as u8;
    }
    let noise = x.wrapping_mul(2_654_435_761);
    let noise = noise.wrapping_add(y * 40503).wrapping_add(c * 97);
    (noise >> 24) as u8
}

#[test]
fn the_authors_sizes_and_pixels_are_those_of_diffusers_pipeline() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/golden/kontext_pictures.safetensors"
    );
    let golden = candle_core::safetensors::load(path, &candle_core::Device::Cpu).expect("golden");
    let numbers = |name: &str| {
        let tensor = golden.get(name)?.to_dtype(candle_core::DType::F64).ok()?;
        tensor.flatten_all().ok()?.to_vec1::<f64>().ok()
    };
    let place = tempfile::tempdir().expect("a folder");
    let mut compared = 0;
    for n in 0..12 {
        let found = numbers(&format!("{n}.size")).expect("a size");
        let [w, h, to_w, to_h] = [0, 1, 2, 3].map(|i| found[i] as u32);
        let beside = whole(size(64, 64), Resampling::Spec);
        let views = views(
            ReferenceSize::Preferred,
            Some(&kontext()),
            size(w, h),
            &[beside],
        );
        assert_eq!(views[0].bucket, size(to_w, to_h), "{w} x {h}");
        let Some(rows) = numbers(&format!("{n}.rows")) else {
            continue;
        };
        let places = numbers(&format!("{n}.places")).expect("places");
        let path = place.path().join(format!("{n}.png"));
        let picture =
            image::RgbImage::from_fn(w, h, |x, y| image::Rgb([0, 1, 2].map(|c| pixel(x, y, c))));
        picture.save(&path).expect("saved");
        let file = PictureFile::open(&path).expect("a picture");
        let pixels = file.prepare(views[0]).expect("decodes").pixels;
        let (to_w, to_h) = (to_w as usize, to_h as usize);
        let mut expected = rows.iter();
        for c in 0..3 {
            for &place in &places {
                let start = c * to_w * to_h + place as usize * to_w;
                let levels = pixels[start..start + to_w].iter();
                let levels = levels.map(|value| ((f64::from(*value) + 1.0) * 127.5).round());
                let row: Vec<f64> = expected.by_ref().take(to_w).copied().collect();
                assert_eq!(
                    levels.collect::<Vec<_>>(),
                    row,
                    "case {n}, {c}, row {place}"
                );
            }
        }
        compared += 1;
    }
    assert_eq!(compared, 3);
}

#[test]
fn a_reference_is_cropped_and_mirrored_as_its_target_or_mirrored_alone() {
    let crop = View {
        resized: size(96, 64),
        left: 20,
        top: 0,
        bucket: size(64, 64),
        flip: false,
        resampling: Resampling::Spec,
        window: None,
    };
    let mirrored = View { flip: true, ..crop };
    let all = [crop, mirrored];
    assert_eq!(
        views(ReferenceSize::Target, Some(&kontext()), size(9, 9), &all),
        all
    );
    let own = views(ReferenceSize::Preferred, Some(&kontext()), size(9, 9), &all);
    assert_eq!(
        own.iter().map(|v| v.flip).collect::<Vec<_>>(),
        [false, true]
    );
    assert!(
        own.iter()
            .all(|v| v.bucket == size(1024, 1024) && v.left == 0)
    );
}

/// Two folders that a test fills.
struct Pairs(tempfile::TempDir);

impl Pairs {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().expect("a folder"));
        for folder in ["to", "from"] {
            std::fs::create_dir(place.0.path().join(folder)).expect("a folder");
        }
        place
    }

    fn picture(&self, name: &str, (width, height): (u32, u32), shade: u8) {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        let picture = image::RgbImage::from_pixel(width, height, image::Rgb([shade; 3]));
        picture.save(path).expect("saved");
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).expect("written");
    }

    fn folder(&self, source: ReferenceSource) -> Folder {
        let rules = BucketRules::around(64);
        let text = "[model]\nfamily = \"flux1\"\nflavor = \"kontext\"\npath = \"m\"\n[store]\npath = \"s\"\n\
                    [[dataset]]\npath = \"to\"\nreferences = \"from\"\nresolution = 64\nbucket_step = 16\n\
                    default_caption = \"x\"\n";
        let file = self.0.path().join("exp.toml");
        let experiment = Experiment::parse(&file, text.to_owned()).expect("valid");
        let mut set = experiment.datasets().remove(0);
        set.references = Some(ReferenceSettings {
            source,
            size: ReferenceSize::Target,
        });
        Folder {
            set,
            view_rules: ViewRules {
                buckets: Buckets::new(rules, 16).expect("buckets"),
                crops: 1,
                flip: false,
            },
            own_size: Some(kontext()),
        }
    }

    fn in_folder(&self) -> Folder {
        self.folder(ReferenceSource::Folder(self.0.path().join("from")))
    }

    fn in_column(&self) -> Folder {
        self.folder(ReferenceSource::Column("source".to_owned()))
    }

    fn scan(
        &self,
        folder: Folder,
        monitor: &dyn Monitor,
    ) -> Result<BTreeMap<String, String>, String> {
        let data = Dataset::scan(&[folder], monitor);
        let data = data.map_err(|e| {
            e.to_string()
                .replace(&self.0.path().display().to_string(), ".")
        })?;
        let name = |path: &Path| {
            let name = path.strip_prefix(self.0.path()).expect("inside");
            name.to_string_lossy().into_owned()
        };
        let pair = |item: &Item| {
            let reference = item.reference.as_ref().map(|r| name(&r.picture));
            (name(&item.picture), reference.unwrap_or_default())
        };
        Ok(data.items.iter().map(pair).collect())
    }
}

fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> Result<BTreeMap<String, String>, String> {
    let owned = pairs.map(|(a, b)| (a.to_owned(), b.to_owned()));
    Ok(owned.into_iter().collect())
}

#[test]
fn a_folders_references_are_found_by_their_names_whatever_their_endings() {
    let place = Pairs::new();
    place.picture("to/a.png", (64, 64), 1);
    place.picture("to/b.v2.png", (64, 64), 2);
    place.picture("from/a.jpg", (64, 64), 3);
    place.picture("from/b.v2.bmp", (300, 60), 4);
    place.picture("from/c.png", (64, 64), 5);
    place.write("from/a.txt", "not read");
    let heard = Recorder::default();
    let found = place.scan(place.in_folder(), &heard);
    let expected = pairs([("to/a.png", "from/a.jpg"), ("to/b.v2.png", "from/b.v2.bmp")]);
    assert_eq!(found, expected);
    let told = heard.notes().join("\n");
    for part in [
        "1 reference without a picture of the name: c.png",
        "1 caption of references, which are not read: a.txt",
        "1 reference brought to another shape, and stretched",
        "beside b.v2.png",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
}

#[test]
fn missing_doubled_and_misplaced_references_are_refused_by_name() {
    let place = Pairs::new();
    for name in ["to/a.png", "to/b.png", "to/c.png", "from/b.png"] {
        place.picture(name, (64, 64), name.len() as u8);
    }
    let said = |folder: Folder| place.scan(folder, &Silent).expect_err("refused");
    assert_eq!(
        said(place.in_folder()),
        "./to: 2 pictures without a reference: a.png, c.png; put one of the same name into ./from, with any ending of a picture"
    );
    place.picture("from/a.png", (64, 64), 7);
    place.picture("from/c.png", (64, 64), 8);
    place.picture("from/c.jpg", (64, 64), 8);
    assert_eq!(
        said(place.in_folder()),
        "./to/c.png: it has 2 references, c.jpg, c.png: remove all but one"
    );
    std::fs::remove_file(place.0.path().join("from/c.jpg")).expect("removed");
    place.write("from/c.png", "no picture");
    assert_eq!(
        said(place.in_folder()),
        "./to/c.png: its reference cannot be used: ./from/c.png: not a picture that can be read (PNG, JPEG, WebP, BMP, GIF or TIFF)"
    );
    let own = ReferenceSource::Folder(place.0.path().join("to"));
    assert_eq!(
        said(place.folder(own)),
        "./to: `references` is the folder of the pictures themselves: each would be its own reference"
    );
    let mut inside = place.folder(ReferenceSource::Folder(place.0.path().join("to/from")));
    place.picture("to/from/a.png", (64, 64), 9);
    inside.set.recursive = true;
    assert!(said(inside).contains("which `recursive = true` reads"));
}

#[test]
fn a_column_names_references_and_pictures_that_are_nothing_else_are_not_trained_on() {
    let place = Pairs::new();
    for name in ["to/a.png", "to/b.png", "to/plain.png"] {
        place.picture(name, (64, 64), name.len() as u8);
    }
    place.write(
        "to/metadata.jsonl",
        "{\"file_name\": \"a.png\", \"text\": \"one\", \"source\": \"plain.png\"}\n\
         {\"file_name\": \"b.png\", \"text\": \"two\", \"source\": \"./a.png\"}\n",
    );
    let expected = pairs([("to/a.png", "to/plain.png"), ("to/b.png", "to/a.png")]);
    assert_eq!(place.scan(place.in_column(), &Silent), expected);
    std::fs::remove_file(place.0.path().join("to/metadata.jsonl")).expect("removed");
    let csv = "file_name,text,source\na.png,one,plain.png\nb.png,two,a.png\n";
    place.write("to/metadata.csv", csv);
    assert_eq!(place.scan(place.in_column(), &Silent), expected);
}

#[test]
fn a_column_that_names_nothing_is_refused() {
    let place = Pairs::new();
    for name in ["to/a.png", "to/b.png"] {
        place.picture(name, (64, 64), name.len() as u8);
    }
    let said = |list: &str, text: &str| {
        for list in ["to/metadata.jsonl", "to/metadata.csv"] {
            _ = std::fs::remove_file(place.0.path().join(list));
        }
        place.write(list, text);
        place.scan(place.in_column(), &Silent).expect_err("refused")
    };
    let line = |name: &str, source: &str| {
        format!("{{\"file_name\": \"{name}\", \"text\": \"x\"{source}}}\n")
    };
    let json = |a: &str, b: &str| line("a.png", a) + &line("b.png", b);
    let jsonl = "to/metadata.jsonl";
    assert_eq!(
        said(jsonl, &json("", ", \"source\": null")),
        "./to: 2 pictures without a reference: a.png, b.png; name one in `source` of metadata.jsonl or metadata.csv"
    );
    assert_eq!(
        said(
            jsonl,
            &json(", \"source\": \"b.png\"", ", \"source\": \"gone.png\"")
        ),
        "./to/metadata.jsonl: the reference of `b.png` is `gone.png`, which is not there"
    );
    assert_eq!(
        said(jsonl, &json(", \"source\": \"../x.png\"", "")),
        "./to/metadata.jsonl: line 1: `source` is `../x.png`, expected a path below the folder"
    );
    assert_eq!(
        said(jsonl, &json(", \"source\": [\"b.png\"]", "")),
        "./to/metadata.jsonl: line 1: `source` is a list, expected one text: choose one of them, or join them"
    );
    assert_eq!(
        said("to/metadata.csv", "file_name,text\na.png,x\nb.png,y\n"),
        "./to/metadata.csv: line 1: no column `source`"
    );
}
