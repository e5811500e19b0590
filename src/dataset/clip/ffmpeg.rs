//! The ffmpeg that is on the path: which one it is, and how it is asked.
//!
//! What it makes of a video is part of what the video is known by: the versions of its libraries, and [`READING`](super::READING),
//! which stands for the filters below. Its package's version is not: a distribution that mends a fault in it changes no pixel.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use super::process;
use crate::shown;

/// The libraries that decide pixels: decoders, containers and the times in them, filters, and the conversion to RGB.
const LIBRARIES: [&str; 4] = ["libavcodec", "libavformat", "libavfilter", "libswscale"];
/// The first libavformat beside which ffmpeg knows `-fps_mode`: that of ffmpeg 5.1.
const FPS_MODE: (u32, u32) = (59, 27);
const MISSING: &str = "videos need `ffmpeg` and `ffprobe` on the path: install ffmpeg (`apt install ffmpeg`, `brew install ffmpeg`), or \
                       save the clip as a folder of numbered frames";

/// An ffmpeg.
#[derive(Debug)]
pub(super) struct Ffmpeg {
    /// Its libraries and their versions.
    pub identity: String,
    /// The option by which frames are written as they come.
    pub as_they_come: &'static str,
}

/// The one on the path; it is asked once.
///
/// # Errors
/// If there is none, or it does not tell its version.
pub(super) fn on_path() -> Result<&'static Ffmpeg, String> {
    static FOUND: OnceLock<Result<Ffmpeg, String>> = OnceLock::new();
    FOUND.get_or_init(find).as_ref().map_err(Clone::clone)
}

fn find() -> Result<Ffmpeg, String> {
    let version = |name: &'static str| {
        let mut command = Command::new(name);
        process::output(name, command.args(["-version"]), 1 << 16)
    };
    let (of_ffmpeg, of_ffprobe) = (version("ffmpeg"), version("ffprobe"));
    let (Ok((text, _)), Ok((of_ffprobe, _))) = (of_ffmpeg, of_ffprobe) else {
        return Err(MISSING.to_owned());
    };
    let ffmpeg = Ffmpeg::of(&text)?;
    // Times are asked of the one and pixels of the other.
    let other = Ffmpeg::of(&of_ffprobe)?;
    match ffmpeg.identity == other.identity {
        true => Ok(ffmpeg),
        false => Err(format!(
            "the `ffmpeg` and the `ffprobe` on the path are of two versions ({}; {}): install both anew",
            ffmpeg.identity, other.identity
        )),
    }
}

impl Ffmpeg {
    /// From what `ffmpeg -version` says: a line `libavcodec 59. 37.100 / 59. 37.100` for each library, built with and running.
    fn of(text: &str) -> Result<Self, String> {
        let running = |library: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(library))?;
            let version: String = line.rsplit('/').next()?.split_whitespace().collect();
            let is_version = |part: &str| part.parse::<u32>().is_ok();
            (version.split('.').count() == 3 && version.split('.').all(is_version))
                .then_some(version)
        };
        let mut identity = "ffmpeg".to_owned();
        for library in LIBRARIES {
            let version = running(library).ok_or_else(|| {
                let first = text.lines().next().unwrap_or_default();
                format!(
                    "the `ffmpeg` on the path does not tell the version of its {library} (`ffmpeg -version` begins `{}`): install another",
                    shown::text(first)
                )
            })?;
            identity.push_str(&format!(" {library} {version}"));
        }
        let format = running("libavformat").unwrap_or_default();
        let mut numbers = format
            .split('.')
            .filter_map(|part| part.parse::<u32>().ok());
        let format = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        Ok(Self {
            identity,
            as_they_come: if format >= FPS_MODE {
                "-fps_mode"
            } else {
                "-vsync"
            },
        })
    }
}

/// A command that reads one local file as a container of this kind, and nothing else, whatever the file says. `before`: options of
/// its own that stand before the file.
pub(super) fn on_file(name: &str, container: &str, before: &[&str], path: &Path) -> Command {
    let mut command = Command::new(name);
    command.args([
        "-hide_banner",
        "-loglevel",
        "error",
        "-protocol_whitelist",
        "file,pipe",
    ]);
    command.args(before).args(["-f", container]);
    // With the protocol before it no name is an option or an address.
    let mut file = OsString::from("file:");
    file.push(path);
    command.arg("-i").arg(file);
    command
}

#[cfg(test)]
mod tests {
    use super::Ffmpeg;

    #[test]
    fn libraries_are_read_as_they_run_and_not_as_they_were_built_with() {
        let text = "ffmpeg version 5.1.9-0+deb12u1 Copyright (c) 2000-2026 the FFmpeg developers\n\
                    libavcodec     59. 37.100 / 59. 37.101\nlibavformat    59. 27.100 / 59. 27.100\n\
                    libavfilter     8. 44.100 /  8. 44.100\nlibswscale      6.  7.100 /  6.  7.100\n";
        let ffmpeg = Ffmpeg::of(text).expect("versions");
        assert_eq!(
            ffmpeg.identity,
            "ffmpeg libavcodec 59.37.101 libavformat 59.27.100 libavfilter 8.44.100 libswscale 6.7.100"
        );
        assert_eq!(ffmpeg.as_they_come, "-fps_mode");
        let older = text.replace("59. 27.100", "58. 76.100");
        assert_eq!(Ffmpeg::of(&older).expect("versions").as_they_come, "-vsync");
        let other = Ffmpeg::of("mplayer 1.0\nlibavcodec new").expect_err("no version");
        assert!(
            other.contains("libavcodec") && other.contains("mplayer 1.0"),
            "{other}"
        );
    }
}
