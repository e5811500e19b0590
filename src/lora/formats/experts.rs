//! Files with the adapters of two experts. Where `split_multistage_loras` is off, ai-toolkit writes both of Wan 2.2's A14B into one, with
//! `transformer_1.` before the modules of the one for high noise and `transformer_2.` before those of the other (`save_lora` of its
//! `extensions_built_in/diffusion_models/wan22/wan22_14b_model.py`).

use super::read::Tensors;
use crate::lora::Error;

/// One of two experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expert {
    /// For the noise levels at which sampling begins.
    HighNoise,
    /// For those at which it ends.
    LowNoise,
}

impl Expert {
    /// Both.
    pub const ALL: [Self; 2] = [Self::HighNoise, Self::LowNoise];

    /// What it is called where a person names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::HighNoise => "high_noise",
            Self::LowNoise => "low_noise",
        }
    }

    /// The expert of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|expert| expert.name() == name)
    }

    fn prefix(self) -> &'static str {
        match self {
            Self::HighNoise => "transformer_1",
            Self::LowNoise => "transformer_2",
        }
    }

    /// The expert that a module's name says it is of, and the name without that.
    fn of_module(module: &str) -> Option<(Self, &str)> {
        Self::ALL.into_iter().find_map(|expert| {
            let rest = module.strip_prefix(expert.prefix())?;
            Some((expert, rest.strip_prefix(['.', '_'])?))
        })
    }
}

/// What a file's names say of experts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OfExperts {
    /// The one whose adapters were read; None: the names say nothing of experts.
    pub expert: Option<Expert>,
    /// Whether the file has the other's as well.
    pub has_both: bool,
}

/// The adapters of one expert, those of `wanted` where the file has both, under the names that they have in a file of one network.
pub(super) fn of_one<'v, 'a>(
    mut tensors: Tensors<'v, 'a>,
    wanted: Option<Expert>,
    origin: &str,
) -> Result<(Tensors<'v, 'a>, OfExperts), Error> {
    let error = |what: String| {
        Err(Error::File {
            origin: origin.to_owned(),
            what,
        })
    };
    let of = |module: &str| Expert::of_module(module).map(|(expert, _)| expert);
    let has = |wanted: Option<Expert>| {
        let mut tensors = tensors.iter();
        tensors.any(|(_, address, _)| of(&address.module) == wanted)
    };
    let there: Vec<Expert> = (Expert::ALL.into_iter())
        .filter(|&expert| has(Some(expert)))
        .collect();
    if there.is_empty() {
        return Ok((tensors, OfExperts::default()));
    }
    if has(None) {
        let told = there.iter().map(|expert| format!("`{}.`", expert.prefix()));
        let told = told.collect::<Vec<_>>().join(" and ");
        return error(format!(
            "some modules have {told} before their names, as of one of two experts, and some have not: which are whose is not known"
        ));
    }
    let expert = match (&there[..], wanted) {
        (&[only], _) => only,
        (_, Some(wanted)) => wanted,
        (_, None) => {
            return error(
                "adapters of two experts in one file, `transformer_1.` for high noise and `transformer_2.` for low noise, expected those of \
                 one: `plumb import lora --expert high_noise` makes a file of one, and so does `--expert low_noise`"
                    .to_owned(),
            );
        }
    };
    tensors.retain(|(_, address, _)| of(&address.module) == Some(expert));
    for (_, address, _) in &mut tensors {
        if let Some((_, rest)) = Expert::of_module(&address.module) {
            address.module = rest.to_owned();
        }
    }
    let has_both = there.len() > 1;
    let found = OfExperts {
        expert: Some(expert),
        has_both,
    };
    Ok((tensors, found))
}
