//! The cache of ai-toolkit: `toolkit/prompt_utils.py` `PromptEmbeds.save`, and `toolkit/dataloader_mixins.py`: `_cache_one_latent`,
//! `get_latent_info_dict`, `get_text_embedding_info_dict`, `setup_buckets`; `toolkit/buckets.py`.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::CacheError;
use super::names::json_text;
use super::values::{Source, Text, write};
use crate::dataset::Item;
use crate::foreign::cache::{ToWrite, safetensors};
use crate::models::cache_names::{AiToolkitNames, AiToolkitTexts};
use crate::recipe::latents::{Size, View};

type Made = Result<Result<Vec<u8>, String>, CacheError>;

pub(super) fn text(source: &Source<'_>, text: &Text<'_>, names: &AiToolkitNames) -> Made {
    let context = &text.made.context;
    let tensors = match names.tensors {
        AiToolkitTexts::Pooled => vec![
            source.write("text_embed", &context.unsqueeze(0)?)?,
            source.write("pooled_embed", &text.made.pooled.unsqueeze(0)?)?,
        ],
        AiToolkitTexts::Alone => vec![source.write("text_embed", &context.unsqueeze(0)?)?],
        AiToolkitTexts::Listed => match text.true_rows()? {
            Ok(rows) => vec![source.write("text_embed_0", &rows)?],
            Err(why) => return Ok(Err(why)),
        },
        AiToolkitTexts::Masked(rows) => match text.filled_up(rows)? {
            Ok(context) => vec![
                source.write("text_embed", &context.unsqueeze(0)?)?,
                ToWrite::whole("attention_mask", vec![1, rows], &text.mask("t5", rows)),
            ],
            Err(why) => return Ok(Err(why)),
        },
    };
    Ok(safetensors(&tensors, &[]))
}

pub(super) fn latents(source: &Source<'_>, item: &Item) -> Made {
    let latents = source.joined(item, item.views[0])?;
    let tensors = [write("latent", &latents, source.dtype)?];
    Ok(safetensors(&tensors, &[("format", "pt".to_owned())]))
}

/// What the toolkit does to a picture: what it is resized to, and where in that the crop lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Crop {
    pub(super) resized: Size,
    pub(super) left: u32,
    pub(super) top: u32,
    pub(super) bucket: Size,
}

/// The crop of a picture, at a `resolution` and for sides that are multiples of `step`; pictures are never enlarged.
pub(super) fn crop(picture: Size, resolution: u32, step: u32) -> Crop {
    let (width, height) = (f64::from(picture.width), f64::from(picture.height));
    let (total, most) = (
        width * height,
        f64::from(resolution) * f64::from(resolution),
    );
    let pixels = total.min(most);
    let scale = (pixels / total).sqrt();
    let (w, h) = (
        width * scale / f64::from(step),
        height * scale / f64::from(step),
    );
    let sides = |n: f64| (n as u32).max(1) * step;
    // In the toolkit's order, which decides between equals.
    let candidates = [
        (w.floor(), h.floor()),
        (w.floor(), h.ceil()),
        (w.ceil(), h.floor()),
        (w.ceil(), h.ceil()),
    ];
    let area = |(w, h): &(f64, f64)| w * h * f64::from(step) * f64::from(step);
    let fitting = candidates
        .iter()
        .filter(|c| area(c) > 0.0 && area(c) <= most);
    let error = |c: &(f64, f64)| (area(c) - pixels).abs();
    let nearest = fitting.min_by(|a, b| error(a).total_cmp(&error(b)));
    let (w, h) = nearest.copied().unwrap_or((w.floor(), h.floor()));
    let bucket = Size {
        width: sides(w),
        height: sides(h),
    };
    let scale = (f64::from(bucket.width) / width).max(f64::from(bucket.height) / height);
    let resized = Size {
        width: (width * scale).ceil() as u32,
        height: (height * scale).ceil() as u32,
    };
    Crop {
        resized,
        left: (resized.width - bucket.width) / 2,
        top: (resized.height - bucket.height) / 2,
        bucket,
    }
}

impl Crop {
    /// Whether it keeps what a view keeps, to a pixel: the toolkit rounds sizes up.
    pub(super) fn is(&self, view: &View) -> bool {
        let near = |a: u32, b: u32| a.abs_diff(b) <= 1;
        self.bucket == view.bucket
            && near(self.resized.width, view.resized.width)
            && near(self.resized.height, view.resized.height)
            && near(self.left, view.left)
            && near(self.top, view.top)
    }
}

/// The part of a name that the toolkit makes of what it knows of a picture.
pub(super) fn latents_key(file_name: &str, crop: &Crop, space: &str) -> String {
    // As Python's `json.dumps(..., sort_keys=True)` writes it.
    let json = format!(
        "{{\"crop_height\": {}, \"crop_width\": {}, \"crop_x\": {}, \"crop_y\": {}, \"filename\": {}, \"latent_space_version\": \"{space}\", \
         \"latent_version\": 1, \"scale_to_height\": {}, \"scale_to_width\": {}}}",
        crop.bucket.height,
        crop.bucket.width,
        crop.left,
        crop.top,
        json_text(file_name),
        crop.resized.height,
        crop.resized.width,
    );
    key(&json)
}

/// The same of a caption.
pub(super) fn text_key(caption: &str, arch: &str) -> String {
    let caption = json_text(caption);
    key(&format!(
        "{{\"caption\": {caption}, \"text_embedding_space_version\": \"{arch}\", \"text_embedding_version\": 1}}"
    ))
}

fn key(json: &str) -> String {
    use md5::Digest as _;
    // Python's `base64.urlsafe_b64encode`, without the signs of equality at the end.
    URL_SAFE_NO_PAD.encode(md5::Md5::digest(json.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::{Crop, crop, latents_key, text_key};
    use crate::recipe::latents::Size;

    fn size(width: u32, height: u32) -> Size {
        Size { width, height }
    }

    /// What the toolkit itself wrote (tools/foreign/aitoolkit.py), of sd3 at 128 px.
    #[test]
    fn names_are_those_of_the_toolkit() {
        assert_eq!(text_key("\n", "flux"), "AJ7in8AXDxqh_O7lg5s8kw");
        assert_eq!(text_key("a red circle\n", "flux"), "xwJxnLBJSQLocBfQYSJJPA");
        assert_eq!(
            text_key(
                "\u{72ac}\u{3068}\u{732b},  a yellow star \u{1f31f} \u{7ea2}\u{8272}\n",
                "flux"
            ),
            "3dbEFz156_aKGj-eCzBJbg"
        );
        let key = |name: &str, picture| latents_key(name, &crop(picture, 128, 32), "flux1");
        assert_eq!(key("01.png", size(128, 128)), "jQlPficUyfXPbP-fzGrPuA");
        assert_eq!(key("03.png", size(176, 128)), "zElWFFTdljMD5ROrbRKkTQ");
        assert_eq!(key("04.png", size(112, 160)), "oCc8uh95wTtFedEtTZrbCQ");
    }

    #[test]
    fn a_small_picture_is_not_enlarged() {
        let small = crop(size(70, 64), 512, 16);
        assert_eq!(small.bucket, size(64, 64));
        assert_eq!((small.resized, small.left), (size(70, 64), 3));
        let Crop { bucket, .. } = crop(size(5, 5), 512, 16);
        assert_eq!(bucket, size(16, 16));
    }
}
