//! Which vector instructions the kernels of a CPU use: those that this machine has, or fewer where a measurement wants to know what a
//! machine without them would take.

use std::fmt;
use std::str::FromStr;
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
}

use Instructions::{Avx2, Avx512, Avx512Bf16, Base};

const ALL: [Instructions; 4] = [Base, Avx2, Avx512, Avx512Bf16];

/// 1 + the place in `ALL` of what is used; 0 before anybody asked.
static USED: AtomicU8 = AtomicU8::new(0);

impl Instructions {
    /// The most that this machine has.
    pub fn available() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")) {
                return Base;
            }
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            match avx512 {
                true if is_x86_feature_detected!("avx512bf16") => Avx512Bf16,
                true => Avx512,
                false => Avx2,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Base
    }

    /// What kernels use: [`Self::available`] unless it was limited.
    #[inline]
    pub fn used() -> Self {
        match USED.load(Ordering::Relaxed) {
            0 => Self::limit(Avx512Bf16),
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

impl fmt::Display for Instructions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Base => "base",
            Avx2 => "avx2",
            Avx512 => "avx512",
            Avx512Bf16 => "avx512-bf16",
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
            "\"avx\" is none of base, avx2, avx512, avx512-bf16"
        );
    }

    #[test]
    fn nothing_is_used_that_the_machine_lacks() {
        assert!(Instructions::used() <= Instructions::available());
    }
}
