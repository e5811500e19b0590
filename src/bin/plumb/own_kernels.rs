//! Which kernels of plumb's own a command computes by: those that agree with the CPU on this GPU, which is tried once.
//!
//! A kernel that is wrong there would train a wrong LoRA and say nothing, so none is used before all were tried, and none where one fails.

use std::path::{Path, PathBuf};

use candle_core::Device;
use plumb::digest::Digest;
use plumb::files;
use plumb::monitor::Monitor as _;
use plumb::nn::Kernels;

use crate::ui::{Failure, Ui};

/// Longer than what a GPU is described by.
const MAX_BYTES: u64 = 4096;

/// The kernels for a GPU; with cuDNN, which is also looked for in the `folders` given. Those that fail are told of and left out.
///
/// What agreed is kept in `kept`, and not tried again on the same GPU with the same program, driver and libraries.
pub(crate) fn tried(
    device: &Device,
    cudnn: Option<&[PathBuf]>,
    kept: &Path,
    ui: &Ui,
) -> Result<Kernels, Failure> {
    let own = Kernels::compile(device).map_err(Failure::error)?;
    let memory = Memory::in_folder(kept);
    if let Some(fault) = memory.fault(&own, ui)? {
        ui.note(&format!(
            "own kernels are not used on this GPU: {fault}. Everything is computed without them; please report this"
        ));
        return Ok(Kernels::NONE);
    }
    let Some(folders) = cudnn else {
        return Ok(own);
    };
    let with = (own.clone().with_cudnn(folders)).map_err(Failure::error)?;
    if let Some(fault) = memory.fault(&with, ui)? {
        ui.note(&format!(
            "cuDNN is not used on this GPU: {fault}. Everything is computed by plumb's own kernels; please report this"
        ));
        return Ok(own);
    }
    Ok(with)
}

/// The same, which multiply 8-bit floats too. An error where they do so wrongly: nothing else on a GPU computes what was asked for.
pub(crate) fn with_fp8(own: Kernels, kept: &Path, ui: &Ui) -> Result<Kernels, Failure> {
    const FIELD: &str = "`[model] compute = \"fp8\"`";
    if !own.are_there() {
        return Err(Failure::error(format!(
            "{FIELD}: a GPU computes this by plumb's own kernels alone; add `--own-kernels`, or leave the field out"
        )));
    }
    let with = own.with_fp8();
    let with = with.map_err(|e| Failure::error(format!("{FIELD}: {e}; leave the field out")))?;
    match Memory::in_folder(kept).fault(&with, ui)? {
        None => Ok(with),
        Some(fault) => Err(Failure::error(format!(
            "{FIELD}: this GPU does not compute what a CPU does: {fault}. Leave the field out, and please report this"
        ))),
    }
}

/// Which kernels agreed before.
struct Memory<'a> {
    kept: &'a Path,
    /// The program's own content. Without it nothing is kept: another build may have other kernels.
    program: Option<Digest>,
}

impl<'a> Memory<'a> {
    fn in_folder(kept: &'a Path) -> Self {
        let program = std::env::current_exe().and_then(std::fs::read);
        Self {
            kept,
            program: program.ok().map(|bytes| Digest::of(&bytes)),
        }
    }

    /// What is wrong with kernels, unless they agreed before.
    fn fault(&self, kernels: &Kernels, ui: &Ui) -> Result<Option<String>, Failure> {
        let Some(identity) = kernels.identity().map_err(Failure::error)? else {
            return Ok(None);
        };
        let known = self.program.map(|program| {
            let line = format!("{identity}, plumb {program}\n");
            (
                self.kept.join(Digest::of(line.as_bytes()).to_string()),
                line,
            )
        });
        if let Some((place, line)) = &known
            && files::read(place, MAX_BYTES).is_ok_and(|found| found == line.as_bytes())
        {
            return Ok(None);
        }
        let progress = |tried: usize, of: usize| match tried {
            0 => ui.start("comparing own kernels with the CPU, once", Some(of as u64)),
            _ => ui.advance(1),
        };
        let fault = kernels.fault(&progress);
        ui.finish();
        let fault = fault.map_err(|error| {
            Failure::error(format!(
                "own kernels: {error}; the GPU has stopped computing for this process: go without `--own-kernels`, and please report this"
            ))
        })?;
        if let (None, Some((place, line))) = (&fault, &known) {
            // A folder that cannot be written costs some seconds each time, and no more.
            let _ = files::replace(place, line.as_bytes());
        }
        Ok(fault)
    }
}
