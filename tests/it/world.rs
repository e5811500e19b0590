//! A folder with an Experiment on the bundled miniature of SD3.5, for tests of whole commands.

use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};
use plumb::base_model::BaseModel;
use plumb::experiment::Experiment;
use plumb::nn::weights::DigestMemo;
use tempfile::TempDir;

use crate::peers::Script;
use crate::util::{Ran, plumb};

/// The bundled base model.
pub(crate) fn tiny_sd3() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-sd3")
}

/// A folder of one's own with three captioned pictures and an Experiment.
pub(crate) struct World {
    folder: TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        let world = Self {
            folder: tempfile::tempdir().expect("a folder"),
        };
        std::fs::create_dir(world.path("pictures")).expect("a folder");
        for (n, color) in [[200, 30, 30], [30, 200, 30], [30, 30, 200]]
            .into_iter()
            .enumerate()
        {
            world.picture(&format!("pictures/p{n}.png"), 64 + 16 * n as u32, 64, color);
            world.write(
                &format!("pictures/p{n}.txt"),
                &format!("a red circle number {n}"),
            );
        }
        world.write("exp.toml", &Self::experiment());
        world
    }

    /// One whose steps have three micro-batches, with all that is drawn turned on, encoded.
    pub(crate) fn encoded() -> Self {
        let world = Self::new();
        world.edit("batch_size = 2", "gradient_accumulation = 3");
        world.edit("rank = 2", "rank = 2\ndropout = 0.1");
        world.run(&["encode", "exp.toml"]).expect(0);
        world
    }

    /// The Experiment's base model.
    pub(crate) fn base(&self) -> BaseModel {
        let experiment = Experiment::open(&self.path("exp.toml"), &Default::default());
        let mut memo = DigestMemo::open(&self.path("memo.json"));
        BaseModel::open(&experiment.expect("valid"), &mut memo).expect("the miniature")
    }

    /// A small Experiment: four steps, a checkpoint after two.
    pub(crate) fn experiment() -> String {
        format!(
            r#"
[model]
family = "sd3"
flavor = "3.5-large"
path = {:?}

[recipe]
variant = "reference"

[store]
path = "store"

[[dataset]]
path = "pictures"
resolution = 64
bucket_step = 16

[adapter]
rank = 2

[train]
output = "out"
steps = 4
batch_size = 2
learning_rate = 0.01
caption_dropout = 0.3
checkpoint_every = 2
seed = 5

[sample]
prompts = ["a blue square"]
steps = 2
"#,
            tiny_sd3().display().to_string()
        )
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.folder.path().join(relative)
    }

    pub(crate) fn write(&self, relative: &str, text: &str) {
        self.write_bytes(relative, text.as_bytes());
    }

    pub(crate) fn write_bytes(&self, relative: &str, bytes: &[u8]) {
        let path = self.path(relative);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, bytes).expect("a file");
    }

    pub(crate) fn read(&self, relative: &str) -> Vec<u8> {
        std::fs::read(self.path(relative)).unwrap_or_else(|e| panic!("{relative}: {e}"))
    }

    /// What is to be seen of a sampled picture or clip, without what its file says of its making.
    pub(crate) fn sampled(&self, relative: &str) -> Vec<u8> {
        let bytes = self.read(relative);
        match relative.ends_with(".png") {
            true => {
                let picture = image::load_from_memory(&bytes).expect("a PNG");
                let mut again = std::io::Cursor::new(Vec::new());
                let written = picture.write_to(&mut again, image::ImageFormat::Png);
                written.map(|()| again.into_inner()).expect("written")
            }
            false => {
                let exif = bytes.windows(4).rposition(|name| name == b"EXIF");
                // Behind the sizes and flags of the whole.
                bytes[30..exif.expect("its making")].to_vec()
            }
        }
    }

    pub(crate) fn picture(&self, relative: &str, width: u32, height: u32, color: [u8; 3]) {
        let picture = RgbImage::from_fn(width, height, |x, y| match (x / 8 + y / 8) % 2 {
            0 => Rgb(color),
            _ => Rgb([240, 240, 240]),
        });
        picture.save(self.path(relative)).expect("a picture");
    }

    /// Replaces text in the Experiment.
    pub(crate) fn edit(&self, from: &str, to: &str) {
        let text = String::from_utf8(self.read("exp.toml")).expect("UTF-8");
        assert!(text.contains(from), "the Experiment has no `{from}`");
        self.write("exp.toml", &text.replace(from, to));
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        plumb(self.folder.path(), args)
    }

    /// Trains anew, stopped after so many steps and gone on with: the LoRA must be `whole`, that of a training in one go. What the second
    /// command said.
    pub(crate) fn train_in_two(&self, stop_after: &str, whole: &[u8]) -> Ran {
        std::fs::remove_dir_all(self.path("out")).expect("removed");
        let stop = ["train", "exp.toml", "--stop-after", stop_after];
        self.run(&stop).expect(0);
        let ran = self.run(&["train", "exp.toml"]).expect(0);
        assert!(
            self.read("out/lora.safetensors") == whole,
            "a resumed run made another LoRA"
        );
        ran
    }

    /// Encodes, into a store that is not there yet; what is written must be about what was said before it was begun.
    pub(crate) fn encode(&self) {
        let said = self.run(&["encode", "exp.toml"]).expect(0);
        let amounts = said.stderr.split(" in the store").filter_map(|before| {
            let (number, unit) = before.rsplit_once("about ")?.1.split_once(' ')?;
            let unit = match unit {
                "kB" => 1e3,
                "MB" => 1e6,
                _ => panic!("a miniature that takes {unit}"),
            };
            Some(number.parse::<f64>().expect("a number") * unit)
        });
        let (told, written) = (amounts.sum::<f64>(), size(&self.path("store")));
        // Specs and the first lines of index files are there once, however much is encoded.
        assert!(
            (told - written).abs() < 0.1 * written + 12e3,
            "told {told} bytes, written {written}"
        );
    }

    /// Trains up to `step`, and has `tools/replay_step.py` make it again with diffusers and peft on the model in `base`.
    /// Does nothing where `PLUMB_PYTHON` names no Python.
    pub(crate) fn replay_step(&self, step: u32, base: &Path) {
        self.replay_step_by("tools/replay_step.py", step, base);
    }

    /// The same by another script.
    pub(crate) fn replay_step_by(&self, script: &str, step: u32, base: &Path) {
        let dump = ["--dump-step", &step.to_string(), "step.safetensors"];
        self.run(&[&["train", "exp.toml"], &dump[..]].concat())
            .expect(0);
        Script::file(script)
            .arg(self.path("step.safetensors"))
            .arg(base)
            .run();
    }

    /// Copies a folder into this one.
    pub(crate) fn copy_folder(&self, from: &Path, to: &str) {
        let to = self.path(to);
        std::fs::create_dir_all(&to).expect("a folder");
        for entry in std::fs::read_dir(from).expect("a folder") {
            let entry = entry.expect("an entry").path();
            let name = entry.file_name().expect("a name");
            if entry.is_dir() {
                let inner = to.join(name);
                self.copy_folder(
                    &entry,
                    inner
                        .strip_prefix(self.folder.path())
                        .expect("inside")
                        .to_str()
                        .expect("UTF-8"),
                );
            } else {
                std::fs::copy(&entry, to.join(name)).expect("copied");
            }
        }
    }
}

/// Bytes of all files in a folder.
fn size(folder: &Path) -> f64 {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let of = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => size(&path),
            false => path.metadata().expect("a file").len() as f64,
        }
    };
    entries.map(of).sum()
}
