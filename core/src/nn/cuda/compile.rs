//! Kernels compiled by NVRTC, as what the driver takes.

use std::ffi::{CStr, CString};
use std::sync::Arc;

use candle_core::cuda_backend::WrapErr as _;
use candle_core::cuda_backend::cudarc::driver::CudaContext;
use candle_core::cuda_backend::cudarc::nvrtc::{Ptx, result, sys};
use candle_core::{Error, Result, bail};

use crate::device::cuda::driver_version;

/// PTX for the oldest GPU that is served, of which the driver makes the GPU's own code and keeps it for the next start. Where NVRTC is of a
/// later CUDA than the driver, the driver would not read its PTX: NVRTC makes the GPU's own code then, which it takes.
///
/// # Errors
///
/// If NVRTC does not compile the source.
pub(super) fn compile(context: &Arc<CudaContext>, source: &str, define: &str) -> Result<Ptx> {
    let version = |(major, minor): (i32, i32)| 1000 * major + 10 * minor;
    let read_by_driver = version(compiler()?) <= driver_version().w()?;
    let kind = match read_by_driver {
        true => "compute_80".to_owned(),
        false => {
            let (major, minor) = context.compute_capability().w()?;
            format!("sm_{major}{minor}")
        }
    };
    let program = Program::new(source)?;
    program.compile(&[format!("--gpu-architecture={kind}"), define.to_owned()])?;
    match read_by_driver {
        true => Ok(Ptx::from_src(program.ptx()?)),
        false => Ok(Ptx::from_binary(program.own_code()?)),
    }
}

/// The version of NVRTC.
///
/// # Errors
///
/// If it does not tell.
pub(super) fn compiler() -> Result<(i32, i32)> {
    let mut version = (0, 0);
    // SAFETY: the library is open, and writes one number to each address.
    let told = unsafe { sys::nvrtcVersion(&raw mut version.0, &raw mut version.1) };
    told.result().map_err(Error::wrap)?;
    Ok(version)
}

struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by `new` and used no more. An error at the end has nobody to hear it.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

impl Program {
    fn new(source: &str) -> Result<Self> {
        let source = CString::new(source).map_err(Error::wrap)?;
        // NVRTC copies the text.
        let program = result::create_program(&source, None).map_err(Error::wrap)?;
        Ok(Self(program))
    }

    fn compile(&self, options: &[String]) -> Result<()> {
        let all = [options, &["--std=c++17".to_owned()]].concat();
        // SAFETY: the program lives.
        let Err(error) = (unsafe { result::compile_program(self.0, &all) }) else {
            return Ok(());
        };
        // SAFETY: the program lives.
        let log = unsafe { result::get_program_log(self.0) }.unwrap_or_default();
        let log: Vec<u8> = log.iter().map(|&c| c as u8).collect();
        let log = CStr::from_bytes_until_nul(&log).unwrap_or_default();
        bail!(
            "NVRTC does not compile the kernels with {}: {error:?}: {}",
            all.join(" "),
            log.to_string_lossy()
        )
    }

    fn ptx(&self) -> Result<String> {
        // SAFETY: the program lives.
        let text = unsafe { result::get_ptx(self.0) }.map_err(Error::wrap)?;
        let text: Vec<u8> = text.iter().map(|&c| c as u8).collect();
        let text = CStr::from_bytes_until_nul(&text).map_err(Error::wrap)?;
        Ok(text.to_string_lossy().into_owned())
    }

    /// Code for one kind of GPU.
    fn own_code(&self) -> Result<Vec<u8>> {
        let mut size = 0;
        // SAFETY: the program lives, and NVRTC writes one number.
        let told = unsafe { sys::nvrtcGetCUBINSize(self.0, &raw mut size) };
        told.result().map_err(Error::wrap)?;
        let mut code = vec![0u8; size];
        // SAFETY: the program lives, and there is room for as many bytes as it has.
        let given = unsafe { sys::nvrtcGetCUBIN(self.0, code.as_mut_ptr().cast()) };
        given.result().map_err(Error::wrap)?;
        Ok(code)
    }
}
