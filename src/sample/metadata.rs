//! What a sampled picture's file says of its making: every setting that makes the picture, so that it can be made again.
//!
//! Twice: as JSON under `plumb`, whole, and under `parameters` in the words of AUTOMATIC1111's web UI, which galleries and viewers read.
//! A PNG has both as text chunks (`iTXt`), a WebP as Exif: the words in UserComment, where that program puts them, the JSON in
//! ImageDescription. Files are named without their folders.

use std::fmt::Write as _;
use std::path::Path;

use candle_core::DType;
use serde::Serialize;

use super::SampleOptions;
use crate::base_model::BaseModel;
use crate::dataset::Preview;
use crate::diffusion::{Prediction, Sampler, Spacing};
use crate::digest::{Digest, Fingerprint};
use crate::experiment::{Products, QuantizedWeights};
use crate::models::schedule::word;
use crate::recipe::latents::Rate;
use crate::shown;

/// A LoRA that a picture is sampled with.
#[derive(Clone, Debug, Serialize)]
pub struct UsedLora {
    /// Its file.
    pub file: String,
    /// The file's digest.
    pub digest: Digest,
    /// What its update is multiplied with.
    pub strength: f64,
    /// The flavor of the network that it is used on.
    pub flavor: &'static str,
}

/// The making of one picture or clip.
#[derive(Debug, Serialize)]
pub(super) struct Making<'a> {
    tool: &'static str,
    prompt: &'a str,
    /// Absent where it is the recipe's unconditional entry, or nothing is steered away from.
    #[serde(skip_serializing_if = "Option::is_none")]
    negative_prompt: Option<&'a str>,
    seed: u64,
    /// Its number among those of one seed.
    number: u64,
    width: usize,
    height: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    frames: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    frame_rate: Option<String>,
    steps: usize,
    sampler: Sampler,
    prediction: &'static str,
    /// Of a flow.
    #[serde(skip_serializing_if = "Option::is_none")]
    shift: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spacing: Option<&'static str>,
    /// Of the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    zero_terminal_snr: Option<bool>,
    guidance: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    guidance_of_other: Option<f64>,
    guidance_rescale: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    embedded_guidance: Option<f64>,
    model: ModelUsed<'a>,
    /// The VAE with all that its latents depend on.
    vae: Fingerprint,
    recipe: RecipeUsed,
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<ReferenceUsed>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    loras: &'a [UsedLora],
}

#[derive(Debug, Serialize)]
struct ModelUsed<'a> {
    family: &'a str,
    flavor: &'a str,
    file: String,
    /// What it computes in.
    compute: &'static str,
    /// In how few bits its weights are kept, where they are quantized.
    #[serde(skip_serializing_if = "Option::is_none")]
    weights: Option<QuantizedWeights>,
    /// What its products are computed in, where that is not `compute`.
    #[serde(skip_serializing_if = "Option::is_none")]
    products: Option<Products>,
}

#[derive(Debug, Serialize)]
struct RecipeUsed {
    name: String,
    fingerprint: Fingerprint,
}

#[derive(Debug, Serialize)]
struct ReferenceUsed {
    file: String,
    digest: Digest,
}

/// The name of a file or folder, without where it lies.
pub(super) fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

impl<'a> Making<'a> {
    pub(super) fn new(
        base: &'a BaseModel,
        prompt: &'a str,
        options: &SampleOptions,
        reference: Option<&Preview>,
        (loras, dtype): (&'a [UsedLora], DType),
    ) -> Self {
        let (settings, model) = (&base.settings.sample, base.experiment.model());
        let other = base.flavor.expert.is_some();
        let steers = options.guidance != 1.0 || (other && settings.guidance_of_other != 1.0);
        let is_clip = options.pixels.frames > 1;
        let is_flow = options.process.is_flow();
        let rate = |rate: Rate| rate.to_string();
        Self {
            tool: crate::store::TOOL,
            prompt,
            negative_prompt: settings.negative_prompt.as_deref().filter(|_| steers),
            seed: options.seed,
            number: options.number,
            width: options.pixels.width,
            height: options.pixels.height,
            frames: is_clip.then_some(options.pixels.frames),
            frame_rate: is_clip.then(|| rate(settings.rate)),
            steps: options.steps,
            sampler: options.sampler,
            prediction: word(options.process.prediction),
            shift: is_flow.then_some(options.shift),
            spacing: is_flow.then_some(match options.spacing {
                Spacing::Trained => "trained",
                Spacing::Even => "even",
            }),
            zero_terminal_snr: (options.process.prediction != Prediction::Flow)
                .then_some(options.process.zero_terminal_snr),
            guidance: options.guidance,
            guidance_of_other: other.then_some(settings.guidance_of_other),
            guidance_rescale: options.guidance_rescale,
            embedded_guidance: options.embedded_guidance,
            model: ModelUsed {
                family: base.denoiser.family.name,
                flavor: base.flavor.name,
                file: name(&base.denoiser.components.path),
                compute: dtype.as_str(),
                weights: model.weights,
                products: model.products,
            },
            vae: base.vae.fingerprint,
            recipe: RecipeUsed {
                name: base.recipe.name().to_string(),
                fingerprint: base.recipe.fingerprint(),
            },
            reference: reference.map(|of| ReferenceUsed {
                file: name(&of.reference.picture),
                digest: of.reference.digest,
            }),
            loras,
        }
    }

    pub(super) fn texts(&self) -> Result<Texts, serde_json::Error> {
        Ok(Texts {
            json: serde_json::to_string(self)?,
            parameters: self.parameters(),
        })
    }

    /// In the words of AUTOMATIC1111's web UI (`create_infotext` of its `modules/processing.py`), of Forge's where that has none.
    fn parameters(&self) -> String {
        let mut text = self.prompt.to_owned();
        if let Some(negative) = self.negative_prompt {
            _ = write!(text, "\nNegative prompt: {negative}");
        }
        let sampler = shown::word(&self.sampler);
        _ = write!(
            text,
            "\nSteps: {}, Sampler: {sampler}, CFG scale: {}, Seed: {}, Size: {}x{}, Model: {}",
            self.steps,
            self.guidance,
            self.seed,
            self.width,
            self.height,
            quoted(&self.model.file)
        );
        if let Some(guidance) = self.embedded_guidance {
            _ = write!(text, ", Distilled CFG Scale: {guidance}");
        }
        if let Some(shift) = self.shift {
            _ = write!(text, ", Shift: {shift}");
        }
        if !self.loras.is_empty() {
            let loras = self.loras.iter();
            let loras = loras.map(|lora| format!("{}:{}", lora.file, lora.strength));
            _ = write!(
                text,
                ", Loras: {}",
                quoted(&loras.collect::<Vec<_>>().join(", "))
            );
        }
        _ = write!(text, ", Version: {}", self.tool);
        text
    }
}

/// As that program quotes a value with a comma or colon in it.
fn quoted(value: &str) -> String {
    match value.contains([',', ':', '\n']) {
        true => serde_json::Value::from(value).to_string(),
        false => value.to_owned(),
    }
}

/// What a file says.
pub struct Texts {
    json: String,
    parameters: String,
}

impl Texts {
    /// A PNG with them behind its header.
    pub(super) fn in_png(&self, png: &[u8]) -> Vec<u8> {
        // The signature, and the header's chunk of 13 bytes with its length, name and checksum.
        const HEADER: usize = 8 + 12 + 13;
        let (header, rest) = png.split_at(HEADER.min(png.len()));
        let mut file = header.to_vec();
        for (key, text) in [("parameters", &self.parameters), ("plumb", &self.json)] {
            file.extend(text_chunk(key, text));
        }
        file.extend_from_slice(rest);
        file
    }

    /// The content of a WebP's chunk of Exif: one directory, big-endian as that program has it, and one inside it.
    pub(super) fn exif(&self) -> Vec<u8> {
        const DESCRIPTION: u16 = 0x010e;
        const EXIF_DIRECTORY: u16 = 0x8769;
        const USER_COMMENT: u16 = 0x9286;
        const ASCII: u16 = 2;
        const LONG: u16 = 4;
        const UNDEFINED: u16 = 7;
        // Before it eight bytes of header, then its entries: behind it, what they point at.
        let size = |entries: usize| 2 + 12 * entries + 4;
        let (outer, inner) = (8 + size(2), size(1));
        let mut json = ascii(&self.json).into_bytes();
        json.push(0);
        let mut comment = b"UNICODE\0".to_vec();
        comment.extend(self.parameters.encode_utf16().flat_map(u16::to_be_bytes));
        let entry = |tag: u16, kind: u16, count: usize, value: usize| {
            let mut entry = [tag.to_be_bytes(), kind.to_be_bytes()].concat();
            entry.extend((count as u32).to_be_bytes());
            entry.extend((value as u32).to_be_bytes());
            entry
        };
        let mut exif = b"MM\0*".to_vec();
        exif.extend(8u32.to_be_bytes());
        exif.extend(2u16.to_be_bytes());
        exif.extend(entry(DESCRIPTION, ASCII, json.len(), outer + inner));
        exif.extend(entry(EXIF_DIRECTORY, LONG, 1, outer));
        exif.extend([0; 4]);
        exif.extend(1u16.to_be_bytes());
        let place = outer + inner + json.len();
        exif.extend(entry(USER_COMMENT, UNDEFINED, comment.len(), place));
        exif.extend([0; 4]);
        exif.extend(json);
        exif.extend(comment);
        exif
    }
}

/// A text chunk of a PNG, in UTF-8 and not compressed.
fn text_chunk(key: &str, text: &str) -> Vec<u8> {
    let mut chunk = b"iTXt".to_vec();
    chunk.extend_from_slice(key.as_bytes());
    // The key's end, no compression by no method, no language, no other key.
    chunk.extend([0; 5]);
    // A text has no end of its own, and must not look as if it had.
    chunk.extend(text.bytes().map(|byte| if byte == 0 { b' ' } else { byte }));
    let mut sum = flate2::Crc::new();
    sum.update(&chunk);
    let mut whole = (chunk.len() as u32 - 4).to_be_bytes().to_vec();
    whole.extend(chunk);
    whole.extend(sum.sum().to_be_bytes());
    whole
}

/// JSON in which every other character is escaped.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c.is_ascii() {
            true => text.push(c),
            false => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    _ = write!(text, "\\u{unit:04x}");
                }
            }
        }
    }
    text
}
