//! Finding and reading a LoRA: a file, or a folder as PEFT and diffusers save one.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::Error;
use crate::digest::Digest;
use crate::files::{self, MAX_CONFIG_BYTES};
use crate::lora::formats::{self, ConfigBeside};
use crate::shown;

/// PEFT's name of its weights.
pub(super) const PEFT_WEIGHTS: &str = "adapter_model.safetensors";

/// PEFT's name of its config.
pub(super) const PEFT_CONFIG: &str = "adapter_config.json";

/// The names that a LoRA has in a folder of its own: PEFT's and diffusers'.
const WEIGHTS: [&str; 2] = [PEFT_WEIGHTS, "pytorch_lora_weights.safetensors"];

/// First bytes that tell a file's kind, and the length of a header.
const FIRST_BYTES: u64 = 1024;

/// A LoRA's file in memory, with what lies beside it.
pub(super) struct Source {
    /// The file, where a folder was given the one in it.
    pub(super) file: PathBuf,
    pub(super) bytes: Vec<u8>,
    config: Option<String>,
}

impl Source {
    /// Reads the LoRA that `path` names.
    ///
    /// # Errors
    /// If there is none, or its header is not that of a LoRA.
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let file = match path.is_dir() {
            true => in_folder(path)?,
            false => path.to_owned(),
        };
        let bytes = read_weights(&file)?;
        let config = file.with_file_name(PEFT_CONFIG);
        let config = match config.exists() {
            true => Some(read_text(&config)?),
            false => None,
        };
        Ok(Self {
            file,
            bytes,
            config,
        })
    }

    /// The digest of the weights' file; `with_config`, of the digests of both.
    pub(super) fn digest(&self, with_config: bool) -> Digest {
        let config = self.config.as_deref().filter(|_| with_config);
        digest(&self.bytes, config)
    }

    /// PEFT's config beside it.
    pub(super) fn config(&self) -> Option<ConfigBeside<'_>> {
        let named_by_peft = self
            .file
            .file_name()
            .is_some_and(|name| name == PEFT_WEIGHTS);
        self.config.as_ref().map(|text| ConfigBeside {
            text,
            named_by_peft,
        })
    }
}

/// The digest of a LoRA: of its file, or of the digests of it and of the config beside it.
pub(super) fn digest(weights: &[u8], config: Option<&str>) -> Digest {
    let weights = Digest::of(weights);
    let Some(text) = config else {
        return weights;
    };
    let both = [weights, Digest::of(text.as_bytes())];
    Digest::of(both.map(|digest| digest.to_string()).concat().as_bytes())
}

/// The LoRA in a folder.
fn in_folder(folder: &Path) -> Result<PathBuf, Error> {
    let refused = |what: String| Error::Folder {
        path: folder.to_owned(),
        what,
    };
    let mut names = Vec::new();
    for entry in folder.read_dir().map_err(|e| Error::io(folder, e))? {
        let entry = entry.map_err(|e| Error::io(folder, e))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    let list = |names: &[&String]| {
        let shown = names
            .iter()
            .take(4)
            .map(|name| format!("`{}`", shown::text(name)));
        shown.collect::<Vec<_>>().join(", ")
    };
    let mut found: Vec<_> = names
        .iter()
        .filter(|n| WEIGHTS.contains(&n.as_str()))
        .collect();
    if found.is_empty() {
        found = names
            .iter()
            .filter(|name| name.ends_with(".safetensors"))
            .collect();
    }
    match found[..] {
        [name] => return Ok(folder.join(name)),
        [] => {}
        _ => {
            return Err(refused(format!(
                "{} LoRAs in it, {}; name one of them",
                found.len(),
                list(&found)
            )));
        }
    }
    let pickled = |name: &&String| {
        [".bin", ".pt", ".pth", ".ckpt"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    let pickles: Vec<_> = names.iter().filter(pickled).collect();
    if !pickles.is_empty() {
        return Err(refused(format!(
            "no safetensors file in it, only {}, pickles, which can run code when they are opened; save the adapter with safetensors (PEFT's `save_pretrained` does so by default)",
            list(&pickles)
        )));
    }
    let inner = |name: &&String| folder.join(name).join(PEFT_CONFIG).exists();
    let inner: Vec<_> = names.iter().filter(inner).collect();
    Err(refused(match inner.is_empty() {
        true => format!("no LoRA in it; expected `{PEFT_WEIGHTS}` or another safetensors file"),
        false => format!(
            "no LoRA in it, but in its folders {}; name one of them",
            list(&inner)
        ),
    }))
}

/// The whole file, once its first bytes and its header are those of a LoRA.
fn read_weights(path: &Path) -> Result<Vec<u8>, Error> {
    let io = |error| Error::io(path, error);
    let mut file = open_regular(path)?;
    let length = file.metadata().map_err(io)?.len();
    let origin = shown::path(path).to_string();
    let mut bytes = Vec::new();
    let mut read_to = |end: u64, bytes: &mut Vec<u8>| {
        let more = end.saturating_sub(bytes.len() as u64);
        (&mut file).take(more).read_to_end(bytes).map_err(io)
    };
    read_to(FIRST_BYTES, &mut bytes)?;
    let header = formats::header_of(&bytes, length, &origin)?;
    read_to(header, &mut bytes)?;
    let end = bytes.len().min(header as usize);
    formats::check_header(&bytes[..end], length, &origin)?;
    read_to(length, &mut bytes)?;
    Ok(bytes)
}

fn read_text(path: &Path) -> Result<String, Error> {
    let mut text = String::new();
    let mut file = open_regular(path)?.take(MAX_CONFIG_BYTES + 1);
    file.read_to_string(&mut text)
        .map_err(|e| Error::io(path, e))?;
    if text.len() as u64 > MAX_CONFIG_BYTES {
        return Err(Error::Folder {
            path: path.to_owned(),
            what: format!("expected a config of at most {MAX_CONFIG_BYTES} bytes"),
        });
    }
    Ok(text)
}

/// Opens a file that has an end: a device would be read for ever, a pipe waited for.
fn open_regular(path: &Path) -> Result<File, Error> {
    let io = |error| Error::io(path, error);
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(Error::Folder {
            path: path.to_owned(),
            what: "expected a file or a folder, found a device or a pipe".to_owned(),
        });
    }
    files::open(path).map_err(io)
}
