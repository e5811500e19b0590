//! Which vector instructions the kernels of a CPU use: those that this machine has, or fewer where a measurement wants to know what a
//! machine without them would take.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// Vector instructions, each with those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Instructions {
    /// What every machine of this architecture has.
    Base,
    /// AVX2 and FMA: x86 processors since about 2013.
    Avx2,
    /// AVX-512 with F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with dot products of bf16.
    Avx512Bf16,
    /// That with matrix registers (AMX) for bf16, on Linux: Xeon processors since 2023.
    AmxBf16,
}

use Instructions::{AmxBf16, Avx2, Avx512, Avx512Bf16, Base};

const ALL: [Instructions; 5] = [Base, Avx2, Avx512, Avx512Bf16, AmxBf16];

/// 1 + the place in `ALL` of what is used; 0 before anybody asked.
static USED: AtomicU8 = AtomicU8::new(0);

impl Instructions {
    /// The most that this machine has, and is faster with.
    pub fn available() -> Self {
        // Once: some of what is asked leaves a virtual machine for its host.
        static AVAILABLE: OnceLock<Instructions> = OnceLock::new();
        *AVAILABLE.get_or_init(Self::detect)
    }

    #[cfg(target_arch = "x86_64")]
    fn detect() -> Self {
        if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")) {
            return Base;
        }
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        if !avx512 {
            return Avx2;
        }
        match is_x86_feature_detected!("avx512bf16") {
            true if x86::has_tiles() => AmxBf16,
            // Intel's do half as many products of bf16 at a time as of f32. (Measured on a Xeon of 2023: 85 GFLOP/s a core, and 150 widened.)
            true if !x86::is_intel() => Avx512Bf16,
            _ => Avx512,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn detect() -> Self {
        Base
    }

    /// What kernels use: [`Self::available`] unless it was limited.
    #[inline]
    pub fn used() -> Self {
        match USED.load(Ordering::Relaxed) {
            0 => Self::limit(AmxBf16),
            used => ALL[usize::from(used) - 1],
        }
    }

    /// From now on kernels use nothing beyond `most`, nor beyond what this machine has; gives what they use. To be called before the
    /// first of them: weights that were brought into the order of other instructions are still multiplied by those.
    pub fn limit(most: Self) -> Self {
        let used = most.min(Self::available());
        USED.store(used as u8 + 1, Ordering::Relaxed);
        used
    }
}

/// How matrix registers are used: all eight with 16 rows of 64 bytes.
#[cfg(target_arch = "x86_64")]
#[repr(C, align(64))]
pub(super) struct TileConfiguration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_of_row: [u16; 16],
    rows: [u8; 16],
}

/// What `ldtilecfg` reads.
#[cfg(target_arch = "x86_64")]
pub(super) static TILES: TileConfiguration = TileConfiguration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes_of_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

#[cfg(target_arch = "x86_64")]
const _: () = assert!(size_of::<TileConfiguration>() == 64);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__cpuid_count, CpuidResult};

    /// What the processor says of itself.
    #[expect(unused_unsafe, reason = "since Rust 1.94 it is safe")]
    fn leaf(leaf: u32) -> CpuidResult {
        // SAFETY: every processor of this architecture has the instruction.
        unsafe { __cpuid_count(leaf, 0) }
    }

    pub(super) fn is_intel() -> bool {
        let name = leaf(0);
        [name.ebx, name.edx, name.ecx].map(u32::to_le_bytes) == [*b"Genu", *b"ineI", *b"ntel"]
    }

    /// Whether the processor, which has AVX-512, has matrix registers for bf16, and the system lets this process use them.
    #[cfg(target_os = "linux")]
    pub(super) fn has_tiles() -> bool {
        use std::arch::x86_64::_xgetbv;

        /// In `edx` of leaf 7.
        const AMX_BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
        /// The states of tiles and of their configuration.
        const TILE_STATES: u64 = 0b11 << 17;
        /// Of `asm/prctl.h`, which `libc` does not name.
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;

        #[target_feature(enable = "xsave")]
        fn states() -> u64 {
            // SAFETY: register 0 is there wherever the instruction is.
            unsafe { _xgetbv(0) }
        }

        if leaf(0).eax < 7 || leaf(7).edx & AMX_BF16_AND_TILE != AMX_BF16_AND_TILE {
            return false;
        }
        // SAFETY: a system that offers AVX-512 has XSAVE; the call takes two numbers.
        unsafe {
            states() & TILE_STATES == TILE_STATES
                && libc::syscall(
                    libc::SYS_arch_prctl,
                    ARCH_REQ_XCOMP_PERM,
                    XFEATURE_XTILEDATA,
                ) == 0
        }
    }

    /// Other systems are asked for these registers otherwise.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn has_tiles() -> bool {
        false
    }
}

impl fmt::Display for Instructions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Base => "base",
            Avx2 => "avx2",
            Avx512 => "avx512",
            Avx512Bf16 => "avx512-bf16",
            AmxBf16 => "amx-bf16",
        })
    }
}

impl FromStr for Instructions {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let named = ALL.into_iter().find(|one| one.to_string() == name);
        let names = ALL.map(|one| one.to_string()).join(", ");
        named.ok_or_else(|| format!("{name:?} is none of {names}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_back_and_others_are_told_what_there_is() {
        for one in ALL {
            assert_eq!(one.to_string().parse(), Ok(one));
        }
        let refused = "avx".parse::<Instructions>();
        assert_eq!(
            refused.unwrap_err(),
            "\"avx\" is none of base, avx2, avx512, avx512-bf16, amx-bf16"
        );
    }

    #[test]
    fn nothing_is_used_that_the_machine_lacks() {
        assert!(Instructions::used() <= Instructions::available());
    }
}
