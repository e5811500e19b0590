//! Folders of numbered frames: `0001.png`, `0002.png`, and so on, in the order of their numbers.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Decode, identity};
use crate::dataset::files::is_picture_name;
use crate::dataset::natural::natural;
use crate::dataset::picture::{PictureError, PictureFile};
use crate::digest::Digest;
use crate::recipe::latents::{Size, Window};
use crate::shown;

/// The most frames of one clip: an hour and more at 24 a second.
const MOST_FRAMES: usize = 100_000;

/// A folder in which every picture is a frame.
pub(super) struct FrameFolder {
    /// In order, with what each is known by.
    frames: Vec<(PathBuf, Digest)>,
    pub digest: Digest,
    pub size: Size,
}

impl FrameFolder {
    /// Reads every file once, and decodes none.
    ///
    /// # Errors
    /// If there are no frames, too many, or frames of several sizes; or one cannot be used.
    pub(super) fn open(path: &Path) -> Result<Self, PictureError> {
        let fail = |path: &Path, problem: String| PictureError::Unusable {
            path: path.to_owned(),
            problem,
        };
        let names = names(path)?;
        if names.is_empty() {
            return Err(fail(path, "the folder has no frames".to_owned()));
        }
        let (mut frames, mut digests) = (Vec::with_capacity(names.len()), blake3::Hasher::new());
        let mut size = None;
        for name in names {
            let frame = path.join(name);
            let file = PictureFile::open(&frame)?;
            let first = *size.get_or_insert(file.size);
            if file.size != first {
                return Err(fail(
                    &frame,
                    format!(
                        "{}x{} pixels, expected {}x{} as the first frame of its clip has",
                        file.size.width, file.size.height, first.width, first.height
                    ),
                ));
            }
            digests.update(file.digest.as_bytes());
            frames.push((frame, file.digest));
        }
        let (width, height) = (0, 0);
        Ok(Self {
            frames,
            digest: identity("frames", &digests.finalize().into()),
            size: size.unwrap_or(Size { width, height }),
        })
    }

    pub(super) fn len(&self) -> u32 {
        self.frames.len() as u32
    }

    pub(super) fn decoder(&self, window: Window) -> Frames {
        let (start, count) = (window.start as usize, window.frames as usize);
        let frames: Vec<_> = self
            .frames
            .iter()
            .skip(start)
            .take(count)
            .cloned()
            .collect();
        Frames(frames.into_iter())
    }
}

/// The pictures of a folder, in the order of their numbers.
fn names(path: &Path) -> Result<Vec<String>, PictureError> {
    let io = |source| PictureError::Io {
        path: path.to_owned(),
        source,
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        // What is no Unicode cannot be a number either.
        let Some(name) = name.to_str() else { continue };
        if is_picture_name(name) && !name.starts_with('.') {
            names.push(name.to_owned());
        }
        if names.len() > MOST_FRAMES {
            return Err(PictureError::Unusable {
                path: path.to_owned(),
                problem: format!("more than {MOST_FRAMES} frames: split the clip"),
            });
        }
    }
    names.sort_by(|a, b| natural(a, b));
    Ok(names)
}

/// The frames that are still to be decoded.
pub(super) struct Frames(std::vec::IntoIter<(PathBuf, Digest)>);

impl Decode for Frames {
    fn next(&mut self) -> Result<Cow<'_, [u8]>, String> {
        let (path, digest) = self.0.next().ok_or("it has fewer frames than before")?;
        let decoded = PictureFile::open(&path)
            .and_then(|file| file.expect(&digest))
            .and_then(|file| file.decode());
        let within = |error: PictureError| match error {
            PictureError::Unusable { path, problem } => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                format!("{}: {problem}", shown::text(&name))
            }
            other => other.to_string(),
        };
        decoded.map(Cow::Owned).map_err(within)
    }
}
