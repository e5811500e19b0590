//! Where tensors are computed: the CPU, or an NVIDIA GPU in programs that were built with the feature `cuda`.
//!
//! Where nothing is asked for, the first GPU is taken, else the CPU. The CUDA libraries are looked for before the first call that
//! needs them, so that a machine without them gets a sentence, not a crash.

#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(feature = "cuda")]
mod library;
#[cfg(feature = "cuda")]
pub mod nccl;

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use candle_core::{DType, Device};

/// Which device a person asks for, by `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The first GPU that is there, else the CPU.
    #[default]
    Auto,
    /// Never a GPU, even where there is one.
    Cpu,
    /// The GPU with this number, as the driver counts them from 0; an error if it cannot be used.
    Cuda(usize),
}

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is no device's name.
    #[error("expected `auto`, `cpu`, `cuda` or `cuda:N`, found `{0}`")]
    NoSuchName(String),
    /// The program was built without the feature `cuda`.
    #[error(
        "this plumb was built without CUDA; `cargo install --path . --features cuda` builds one that uses NVIDIA GPUs"
    )]
    NotBuilt,
    /// The GPU, its driver or a library cannot be used.
    #[error("no CUDA GPU can be used: {0}")]
    Unusable(String),
}

impl FromStr for Choice {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            other => {
                let number = other.strip_prefix("cuda:").and_then(|n| n.parse().ok());
                number
                    .map(Self::Cuda)
                    .ok_or_else(|| Error::NoSuchName(other.to_owned()))
            }
        }
    }
}

/// A device that can be computed on, and what is known of it.
#[derive(Clone, Debug)]
pub struct Opened {
    /// candle's handle; of a GPU it has a stream of its own.
    pub device: Device,
    /// What the driver calls it, such as `NVIDIA H200`; `cpu` for the CPU.
    pub name: String,
    /// Bytes of memory of a GPU: in all, and free when it was opened. None for the CPU.
    pub memory: Option<(u64, u64)>,
    /// Why no GPU was taken where none was asked for, if there is something to say.
    pub note: Option<String>,
}

impl Opened {
    /// The CPU, which needs no opening.
    pub fn cpu() -> Self {
        Self {
            device: Device::Cpu,
            name: "cpu".to_owned(),
            memory: None,
            note: None,
        }
    }
}

/// Where CUDA's libraries lie on machines whose loader does not know: in a toolkit's folder, or in a Python environment with PyTorch.
/// `variable` gives variables of the environment. Folders that are not there are left out.
pub fn cuda_folders(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let named = |name: &str| variable(name).filter(|v| !v.is_empty());
    let mut folders = Vec::new();
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(named);
    for toolkit in toolkits
        .map(PathBuf::from)
        .chain(["/usr/local/cuda".into()])
    {
        folders.extend([toolkit.join("lib64"), toolkit.join("lib")]);
    }
    if let Some(environment) = named("VIRTUAL_ENV").or_else(|| named("CONDA_PREFIX")) {
        let lib = PathBuf::from(environment).join("lib");
        for python in std::fs::read_dir(lib).into_iter().flatten().flatten() {
            let packages = python.path().join("site-packages/nvidia");
            for package in std::fs::read_dir(packages).into_iter().flatten().flatten() {
                folders.push(package.path().join("lib"));
            }
        }
    }
    folders.retain(|folder| folder.is_dir());
    folders
}

/// What a network computes in on a device unless something else is asked for: f32 on a CPU, bf16 on a GPU.
pub fn usual_dtype(device: &Device) -> DType {
    match device {
        Device::Cpu => DType::F32,
        _ => DType::BF16,
    }
}

/// Opens a device. `folders` are where CUDA libraries may lie that the system's loader does not know.
///
/// # Errors
/// If a GPU was asked for and cannot be used.
pub fn open(choice: Choice, folders: &[PathBuf]) -> Result<Opened, Error> {
    match choice {
        Choice::Cpu => Ok(Opened::cpu()),
        Choice::Cuda(number) => open_cuda(number, folders),
        Choice::Auto => match open_cuda(0, folders) {
            Ok(opened) => Ok(opened),
            // Without CUDA in the program the CPU is what was built for: nothing to note.
            Err(Error::NotBuilt) => Ok(Opened::cpu()),
            // A GPU that is there and cannot be used is worth a line: the CPU is far slower.
            Err(error) => Ok(Opened {
                note: Some(format!("{error}; computing on the CPU")),
                ..Opened::cpu()
            }),
        },
    }
}

#[cfg(feature = "cuda")]
use cuda::open as open_cuda;
#[cfg(feature = "cuda")]
pub(crate) use library::{keep_open, open_library};

#[cfg(not(feature = "cuda"))]
fn open_cuda(_: usize, _: &[PathBuf]) -> Result<Opened, Error> {
    Err(Error::NotBuilt)
}

/// Finds what compiles kernels on the machine they run on, where [`open`] would look.
///
/// # Errors
/// If it is not there, or this program cannot use GPUs.
pub fn find_compiler(folders: &[PathBuf]) -> Result<(), Error> {
    #[cfg(feature = "cuda")]
    return cuda::load_compiler(folders);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = folders;
        Err(Error::NotBuilt)
    }
}

/// Finds what sends gradients from GPU to GPU, NVIDIA's NCCL, where [`open`] would look.
///
/// # Errors
/// If it is not there, or this program cannot use GPUs: in a sentence.
pub fn find_nccl(folders: &[PathBuf]) -> Result<(), String> {
    #[cfg(feature = "cuda")]
    return nccl::Library::open(folders).map(drop);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = folders;
        Err(Error::NotBuilt.to_string())
    }
}

/// How many GPUs the driver finds, or is told to find (CUDA_VISIBLE_DEVICES).
///
/// # Errors
/// If the driver is not there, or this program cannot use GPUs.
pub fn count(folders: &[PathBuf]) -> Result<usize, Error> {
    #[cfg(feature = "cuda")]
    return cuda::count(folders);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = folders;
        Err(Error::NotBuilt)
    }
}

/// Bytes of memory that are free on a GPU now; none for the CPU.
pub fn free_bytes(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(gpu) = device {
        return cuda::free_bytes(gpu);
    }
    // Unused in a build without CUDA.
    let _ = device;
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_told_by_name() {
        let parse = |name: &str| name.parse::<Choice>();
        assert_eq!(parse("auto").expect("auto"), Choice::Auto);
        assert_eq!(parse("cpu").expect("cpu"), Choice::Cpu);
        assert_eq!(parse("cuda").expect("cuda"), Choice::Cuda(0));
        assert_eq!(parse("cuda:3").expect("cuda:3"), Choice::Cuda(3));
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            let error = parse(wrong).expect_err("refused").to_string();
            assert!(error.contains(&format!("found `{wrong}`")), "{error}");
        }
    }

    #[test]
    fn cuda_is_looked_for_in_toolkits_and_python_environments() {
        let dir = tempfile::tempdir().expect("a folder");
        let below = |path: &str| dir.path().join(path);
        let of_python = "python3.12/site-packages/nvidia/cu13/lib";
        let there = [
            "toolkit/lib64".to_owned(),
            format!("venv/lib/{of_python}"),
            format!("conda/lib/{of_python}"),
        ];
        for path in &there {
            std::fs::create_dir_all(below(path)).expect("made");
        }
        let found = |variables: &[(&str, &str)]| {
            let value = |path: &str| match path {
                "" => OsString::new(),
                path => below(path).into(),
            };
            let mut folders = cuda_folders(|name| {
                let given = variables.iter().find(|(given, _)| *given == name);
                given.map(|(_, path)| value(path))
            });
            folders.retain(|folder| folder.starts_with(dir.path()));
            folders
        };
        let [toolkit, venv, conda] = there.each_ref().map(|path| below(path));
        assert!(found(&[]).is_empty());
        assert_eq!(found(&[("CUDA_HOME", "toolkit")]), [&*toolkit]);
        let both = [("CUDA_PATH", "toolkit"), ("VIRTUAL_ENV", "venv")];
        assert_eq!(found(&both), [&*toolkit, &*venv]);
        let both = [("CONDA_PREFIX", "conda"), ("VIRTUAL_ENV", "venv")];
        assert_eq!(found(&both), [&*venv]);
        let both = [("CONDA_PREFIX", "conda"), ("VIRTUAL_ENV", "")];
        assert_eq!(found(&both), [&*conda]);
        assert!(found(&[("CUDA_HOME", "none")]).is_empty());
    }

    #[test]
    fn without_a_card_the_cpu_is_taken_unless_a_card_was_asked_for() {
        let opened = open(Choice::Auto, &[]).expect("the CPU at least");
        if opened.memory.is_none() {
            assert!(open(Choice::Cuda(0), &[]).is_err());
        }
        assert!(matches!(
            open(Choice::Cpu, &[]).expect("the CPU").device,
            Device::Cpu
        ));
        // More GPUs than any machine has.
        assert!(open(Choice::Cuda(4096), &[]).is_err());
    }
}
