//! Captioned pictures: which there are ([`Dataset::scan`]), what their captions say, how they become pixels
//! ([`PictureFile`]) and which size they are brought to ([`Buckets`]).
//!
//! A picture is known by the digest of its file's bytes, a caption by its text: names, folders and dates never
//! matter to what is computed, only to the order of things and to messages.

mod bucket;
mod budget;
mod caption;
pub mod clip;
mod files;
mod items;
mod left_out;
mod lists;
mod names;
mod natural;
mod picture;
mod references;
mod resize;
mod scan;
mod subjects;
mod tags;
mod thumbnail;
mod trigger;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub use bucket::{BucketError, BucketRules, Buckets, Placement};
pub use items::{ViewRules, open, open_usable};
pub(crate) use lists::json_text;
pub(crate) use picture::guarded;
pub use picture::{PictureError, PictureFile, PreparedPicture};
pub use references::{OwnSize, Preview, previews};
pub use subjects::{Subjects, items_in_words, pictures_and_windows};
pub use thumbnail::{Thumbnail, thumbnails};

use crate::digest::Digest;
use crate::experiment::DatasetSettings;
use crate::recipe::latents::{Size, View};
use crate::shown;

/// One folder of captioned pictures.
#[derive(Clone, Debug)]
pub struct Folder {
    /// As the Experiment describes it.
    pub set: DatasetSettings,
    /// Which size its pictures are brought to.
    pub view_rules: ViewRules,
    /// Which size the model's authors bring references to; none for a model without references.
    pub own_size: Option<references::OwnSize>,
}

/// A captioned picture, or a window of a captioned clip, from the folder it was found in to the step that trains on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Where the picture lies, or the clip: a file, or a folder of frames.
    pub picture: PathBuf,
    /// What it is known by: [`PictureFile::digest`], or [`clip::ClipFile::digest`].
    pub digest: Digest,
    /// Its size, turned as its orientation says.
    pub size: Size,
    /// Its captions as the text encoders get them; never none. A step uses one of them.
    pub captions: Vec<String>,
    /// Its caption as it is written: without the trigger word, or with what stands for it.
    pub written: String,
    /// Its crops, mirrored or not, all of one bucket, and of one window of a clip; never none. A step uses one of them.
    pub views: Vec<View>,
    /// How often it comes in one pass over the data.
    pub repeats: u32,
    /// Whether it is kept for validation.
    pub held_out: bool,
    /// The picture that the denoiser is given beside it, for flavors that take one.
    pub reference: Option<Reference>,
}

/// A picture that is given to the denoiser beside a noisy one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Where it lies.
    pub picture: PathBuf,
    /// What it is known by: [`PictureFile::digest`].
    pub digest: Digest,
    /// Its size, turned as its orientation says.
    pub size: Size,
    /// How it is seen beside each view of the other, in their order; all of one size.
    pub views: Vec<View>,
}

/// A picture, and views of it.
#[derive(Clone, Debug)]
pub struct Viewed<'a> {
    /// Where it lies.
    pub picture: &'a Path,
    /// What it is known by.
    pub digest: Digest,
    /// Its size.
    pub size: Size,
    /// The views.
    pub views: Cow<'a, [View]>,
}

impl Reference {
    /// The size that the VAE sees.
    pub fn bucket(&self) -> Size {
        self.views.first().map_or(self.size, |view| view.bucket)
    }

    /// With all of its views.
    pub fn viewed(&self) -> Viewed<'_> {
        Viewed {
            picture: &self.picture,
            digest: self.digest,
            size: self.size,
            views: Cow::Borrowed(&self.views),
        }
    }
}

impl Item {
    /// The size that the VAE sees.
    pub fn bucket(&self) -> Size {
        self.views.first().map_or(self.size, |view| view.bucket)
    }

    /// Whether it is a window of a clip.
    pub fn is_of_clip(&self) -> bool {
        self.views.iter().any(|view| view.window.is_some())
    }

    /// How many frames the VAE sees: 1 of a picture.
    pub fn frames(&self) -> u32 {
        self.views.first().map_or(1, View::frames)
    }

    /// With all of its views.
    pub fn viewed(&self) -> Viewed<'_> {
        Viewed {
            picture: &self.picture,
            digest: self.digest,
            size: self.size,
            views: Cow::Borrowed(&self.views),
        }
    }

    /// Its reference, and how that is seen beside `view` of the picture; None without a reference, or such a view.
    pub fn reference_beside(&self, view: View) -> Option<(&Reference, View)> {
        let reference = self.reference.as_ref()?;
        let place = self.views.iter().position(|own| *own == view)?;
        Some((reference, *reference.views.get(place)?))
    }
}

/// Every picture of items and previews, then every reference of these with the same views once, however many share it.
pub fn viewed<'a>(
    items: impl IntoIterator<Item = &'a Item> + Clone,
    previews: &'a [Preview],
) -> Vec<Viewed<'a>> {
    let of_items = items.clone().into_iter();
    let of_items = of_items.filter_map(|item| item.reference.as_ref());
    let references = of_items.chain(previews.iter().map(|preview| &preview.reference));
    let mut seen = BTreeSet::new();
    let references = references.filter(|r| seen.insert((r.digest, &r.views)));
    let mut all: Vec<Viewed<'a>> = items.into_iter().map(Item::viewed).collect();
    all.extend(references.map(Reference::viewed));
    all
}

/// The pixels of each picture's views, decoded on all cores, within a bound on the memory that all of it takes.
pub fn prepare(pictures: &[Viewed<'_>]) -> Vec<Result<Vec<PreparedPicture>, PictureError>> {
    let need = |of: &Viewed<'_>| picture::decoding_bytes(of.picture, of.size);
    budget::map_within(budget::DECODING_BYTES, pictures, need, |of| {
        // The file may have changed since it was scanned; its latents would be filed under what it was.
        PictureFile::open(of.picture)?
            .expect(&of.digest)?
            .prepare_all(&of.views)
    })
}

/// What is wrong with a picture or clip whose views cannot be made; nothing where they can.
pub fn problem(of: &Viewed<'_>) -> Option<PictureError> {
    let of_clip = || {
        let clip = clip::ClipFile::open(of.picture)?.expect(&of.digest)?;
        for &view in of.views.iter() {
            let mut frames = clip.read(view)?;
            while frames.left() > 0 {
                frames.next(1)?;
            }
        }
        Ok(())
    };
    match of.views.iter().any(|view| view.window.is_some()) {
        true => of_clip().err(),
        false => prepare(std::slice::from_ref(of)).pop()?.err(),
    }
}

/// All captioned pictures of some folders, in the order of the folders and, inside each, of the names as a
/// person would sort them (`2.png` before `10.png`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// Never none after [`Self::scan`].
    pub items: Vec<Item>,
}

/// How many pictures are held out for validation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HeldOut {
    /// All are trained on.
    None,
    /// So many different pictures; copies count once.
    Count(usize),
    /// This part of all, in [0, 1); rounded up.
    Fraction(f64),
}

/// Indices into [`Dataset::items`]; each item is in one of the lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// The items that are trained on; never none.
    pub train: Vec<usize>,
    /// The items that are held out; may be none.
    pub validation: Vec<usize>,
}

/// Why folders cannot be read as a data set.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A folder or file cannot be read.
    #[error("cannot read {}: {source}", shown::path(path))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A picture cannot be used.
    #[error(transparent)]
    Picture(#[from] PictureError),
    /// A caption, a list of captions or a folder is not as it must be.
    #[error("{}: {problem}", shown::path(path))]
    Unusable {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// Pictures without a caption, where neither an empty one nor a default is allowed.
    #[error(
        "{}: {} without a caption: {named}; {remedy}, or set `default_caption` or \
         `allow_empty_captions = true`",
        shown::path(folder), shown::counted(*count, "picture")
    )]
    NoCaption {
        /// The folder.
        folder: PathBuf,
        /// How many there are in it.
        count: usize,
        /// The first of them, in one line.
        named: String,
        /// What to do.
        remedy: String,
    },
    /// The same, with captions that say nothing.
    #[error(
        "{}: {}: {named}; write one into each, or set `default_caption` or \
         `allow_empty_captions = true`",
        shown::path(folder), shown::counted(*count, "empty caption")
    )]
    EmptyCaption {
        /// The folder.
        folder: PathBuf,
        /// How many there are in it.
        count: usize,
        /// The first files they stand in, in one line.
        named: String,
    },
    /// Pictures without a reference, where each needs one.
    #[error(
        "{}: {} without a reference: {named}; {remedy}",
        shown::path(folder), shown::counted(*count, "picture")
    )]
    NoReference {
        /// The folder.
        folder: PathBuf,
        /// How many there are in it.
        count: usize,
        /// The first of them, in one line.
        named: String,
        /// What to do.
        remedy: String,
    },
    /// There is nothing to train on.
    #[error("{0}")]
    Nothing(String),
    /// Several of the above, each on a line of its own.
    #[error("{}", lines(.0))]
    Several(Vec<Self>),
}

/// The most problems that are printed.
const MOST_LINES: usize = 20;

fn lines(errors: &[Error]) -> String {
    let mut lines: Vec<_> = errors
        .iter()
        .take(MOST_LINES)
        .map(ToString::to_string)
        .collect();
    if errors.len() > MOST_LINES {
        lines.push(format!("and {} more", errors.len() - MOST_LINES));
    }
    lines.join("\n")
}

impl Error {
    /// One error for all of some; `None` for none.
    fn of(mut errors: Vec<Self>) -> Option<Self> {
        match errors.len() {
            0 | 1 => errors.pop(),
            _ => Some(Self::Several(errors)),
        }
    }
}

impl Dataset {
    /// Which pictures are held out. It depends on the pictures' contents alone: neither on names, order,
    /// captions nor folders; and copies of one picture are on one side.
    ///
    /// # Errors
    /// If nothing is left to train on, or the fraction is not in [0, 1).
    pub fn split(&self, held_out: HeldOut) -> Result<Split, Error> {
        // As good as random, but of the picture alone: others may come and go without changing its side,
        // but for the few at the border.
        let rank =
            |digest: &Digest| Digest::of(&[b"plumb held out 1", &digest.as_bytes()[..]].concat());
        let mut pictures: Vec<_> = self.items.iter().map(|item| rank(&item.digest)).collect();
        pictures.sort();
        pictures.dedup();
        let count = match held_out {
            HeldOut::None => 0,
            HeldOut::Count(count) => count,
            HeldOut::Fraction(part) if (0.0..1.0).contains(&part) => {
                // Up: a small data set with a fraction has at least one picture held out.
                (pictures.len() as f64 * part).ceil() as usize
            }
            HeldOut::Fraction(part) => {
                let problem =
                    format!("the part held out is {part}, expected at least 0 and below 1");
                return Err(Error::Nothing(problem));
            }
        };
        if count >= pictures.len() {
            return Err(Error::Nothing(format!(
                "held out are {}: nothing is left to train on",
                shown::part_of(count, pictures.len(), "different picture")
            )));
        }
        let first_kept = pictures[count];
        let (validation, train) =
            (0..self.items.len()).partition(|&n| rank(&self.items[n].digest) < first_kept);
        Ok(Split { train, validation })
    }
}

#[cfg(test)]
mod tests;
