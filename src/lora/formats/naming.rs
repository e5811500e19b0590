//! The two names that each module of a network has: diffusers', which is ours, and that of the code its authors
//! published, in which kohya's scripts and ComfyUI name LoRAs. Data of a family; nothing here knows one.

use std::collections::BTreeMap;

/// The keys of a file's metadata that name its base model.
pub const STATED: [&str; 2] = ["modelspec.architecture", "ss_base_model_version"];

/// How the modules of a family are called.
#[derive(Debug)]
pub struct Naming {
    /// The family's name, such as `flux1`.
    pub family: &'static str,
    /// diffusers' name of the denoiser in a pipeline: the first part of its tensors' names.
    pub component: &'static str,
    /// Which of the two names a file of kohya's scripts has.
    pub kohya: Spelling,
    /// `ss_network_module` of such a file.
    pub network_module: &'static str,
    /// `modelspec.implementation` of such a file: where the code with its names is.
    pub implementation: &'static str,
    /// `ss_base_model_version`, where all flavors of the family have the same.
    pub base_version: Option<&'static str>,
    /// What in `ss_base_model_version` or `modelspec.architecture` tells the family, where modules do not.
    pub metadata_marks: &'static [&'static str],
    /// The end of a module's name and its inputs, which tell the family where names do not: a file in which a module of that end has
    /// other inputs is none of this family's.
    pub widths: &'static [(&'static str, usize)],
    /// Whether its modules are another family's as well, so that a file is of this one only if its metadata or a person
    /// says so.
    pub only_where_stated: bool,
    /// How ai-toolkit writes the family's files.
    pub ai_toolkit: AiToolkitNaming,
    /// What is in the name of each module that ai-toolkit puts adapters on; it ignores others.
    pub ai_toolkit_modules: &'static [&'static str],
    /// All modules that can carry an adapter.
    pub rows: Vec<Row>,
}

/// How ai-toolkit writes a family's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AiToolkitNaming {
    /// As diffusers.
    Diffusers,
    /// As kohya's scripts, with alpha.
    Kohya,
    /// With the names of the authors' code behind `diffusion_model.`.
    Native,
    /// With diffusers' names behind `diffusion_model.`.
    DiffusersBehindComfys,
}

/// Whose name of a module it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spelling {
    /// That of diffusers.
    Diffusers,
    /// That of the authors' code.
    Native,
}

/// A module, or one module of each block. A `{}` in both names stands for a block's number.
#[derive(Debug)]
pub struct Row {
    ours: Pattern,
    native: Pattern,
    /// Which part of a fused native module it is.
    part: Option<FusedPart>,
    /// Whether the halves of its outputs are the other way round in native code, where its outputs are two times
    /// its inputs: (scale, shift) here, (shift, scale) there.
    halves_swapped: bool,
}

/// A part of a fused module: its place, and how the outputs are divided among the parts, in units of which a
/// linear's inputs are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FusedPart {
    /// Its place among the parts, from 0.
    pub index: usize,
    /// By part, its outputs in units.
    pub units: &'static [usize],
}

#[derive(Debug)]
struct Pattern {
    // Both kept: underscores cannot be turned back into dots, as in `to_out_0`.
    dotted: String,
    flat: String,
}

/// A module found by one of its names, with a block's number filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedModule {
    /// Its name in diffusers.
    pub ours: String,
    /// Its name in native code.
    pub native: String,
    /// Which part of the native module it is.
    pub part: Option<FusedPart>,
    /// Whether native code has the halves of its outputs the other way round.
    pub halves_swapped: bool,
}

impl Row {
    /// A module of two names, each with as many `{}`.
    pub fn new(ours: impl Into<String>, native: impl Into<String>) -> Self {
        Self {
            ours: Pattern::new(ours.into()),
            native: Pattern::new(native.into()),
            part: None,
            halves_swapped: false,
        }
    }

    /// As a part of the native module.
    #[must_use]
    pub fn part(mut self, index: usize, units: &'static [usize]) -> Self {
        self.part = Some(FusedPart { index, units });
        self
    }

    /// With the halves of its two outputs swapped in native code.
    #[must_use]
    pub fn swapped(mut self) -> Self {
        self.halves_swapped = true;
        self
    }

    /// Its name in diffusers, with a `{}` for each block number.
    pub fn ours(&self) -> &str {
        &self.ours.dotted
    }

    /// The name with a `{}` for each block number; `flat`: with underscores for dots.
    pub(super) fn text(&self, spelling: Spelling, flat: bool) -> &str {
        let pattern = self.pattern(spelling);
        if flat { &pattern.flat } else { &pattern.dotted }
    }

    fn pattern(&self, spelling: Spelling) -> &Pattern {
        match spelling {
            Spelling::Diffusers => &self.ours,
            Spelling::Native => &self.native,
        }
    }
}

impl Pattern {
    fn new(dotted: String) -> Self {
        Self {
            flat: flat(&dotted),
            dotted,
        }
    }
}

/// A module's name as kohya's scripts write it.
pub fn flat(dotted: &str) -> String {
    dotted.replace('.', "_")
}

impl Naming {
    /// The modules of this name, in the order of their parts: several where a native module is fused. `flat` says
    /// that dots are underscores in it.
    pub fn find(&self, name: &str, spelling: Spelling, flat: bool) -> Vec<NamedModule> {
        let found = self.rows.iter().filter_map(|row| {
            let numbers = numbers(row.text(spelling, flat), name)?;
            Some(NamedModule {
                ours: fill(&row.ours.dotted, &numbers),
                native: fill(&row.native.dotted, &numbers),
                part: row.part,
                halves_swapped: row.halves_swapped,
            })
        });
        let mut found: Vec<_> = found.collect();
        found.sort_by_key(|place| place.part.map(|part| part.index));
        found
    }

    /// Whether another module's name ends in a dot and this one: `proj_out`, where blocks have one too.
    pub(super) fn is_end_of_another(&self, name: &str) -> bool {
        let ends = |row: &Row| {
            let before = row.ours.dotted.strip_suffix(name);
            before.is_some_and(|before| before.ends_with('.'))
        };
        self.rows.iter().any(ends)
    }

    /// The module that diffusers calls so.
    pub fn ours(&self, name: &str) -> Option<NamedModule> {
        self.find(name, Spelling::Diffusers, false).pop()
    }
}

/// The one of these families that a file's metadata names; `None` where it names none, or several alike.
pub fn stated<'a>(
    metadata: &BTreeMap<String, String>,
    namings: &[&'a Naming],
) -> Option<&'a Naming> {
    let stated: String = STATED
        .iter()
        .filter_map(|key| metadata.get(*key).map(|value| value.to_lowercase()))
        .collect();
    // The longest of its marks, as one family's may begin another's: `flux` and `flux-2`.
    let mark = |naming: &Naming| {
        let marks = naming.metadata_marks.iter();
        let there = marks.filter(|mark| stated.contains(**mark));
        there.map(|mark| mark.len()).max()
    };
    let longest = namings.iter().filter_map(|naming| mark(naming)).max()?;
    let mut named = (namings.iter()).filter(|naming| mark(naming) == Some(longest));
    match (named.next(), named.next()) {
        (Some(naming), None) => Some(naming),
        _ => None,
    }
}

/// The numbers that stand for `{}` if `name` fits `pattern`.
fn numbers<'n>(pattern: &str, name: &'n str) -> Option<Vec<&'n str>> {
    let mut literals = pattern.split("{}");
    let mut rest = name.strip_prefix(literals.next()?)?;
    let mut numbers = Vec::new();
    for literal in literals {
        // Digits only: a pattern of block numbers must not fit a longer path.
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 {
            return None;
        }
        let (number, after) = rest.split_at(digits);
        numbers.push(number);
        rest = after.strip_prefix(literal)?;
    }
    rest.is_empty().then_some(numbers)
}

fn fill(pattern: &str, numbers: &[&str]) -> String {
    let mut filled = String::new();
    let mut numbers = numbers.iter();
    for (place, literal) in pattern.split("{}").enumerate() {
        if place > 0 {
            filled.push_str(numbers.next().copied().unwrap_or_default());
        }
        filled.push_str(literal);
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naming() -> Naming {
        Naming {
            family: "f",
            component: "transformer",
            kohya: Spelling::Native,
            network_module: "networks.lora",
            implementation: "https://example.org/f",
            base_version: None,
            metadata_marks: &[],
            widths: &[],
            only_where_stated: false,
            ai_toolkit: AiToolkitNaming::Diffusers,
            ai_toolkit_modules: &["b."],
            rows: vec![
                Row::new("b.{}.v", "n.{}.qv").part(1, &[1, 1]),
                Row::new("b.{}.q", "n.{}.qv").part(0, &[1, 1]),
                Row::new("b.{}.i.{}.ff.0", "n.{}.i.{}.ff_0"),
                Row::new("out", "final.1").swapped(),
            ],
        }
    }

    fn check(name: &str, spelling: Spelling, flat: bool, expected: &str) {
        let found = naming().find(name, spelling, flat);
        let text: Vec<_> = found
            .iter()
            .map(|p| format!("{}={}", p.ours, p.native))
            .collect();
        assert_eq!(text.join(" "), expected, "{name}");
    }

    #[test]
    fn a_name_is_found_in_each_spelling_with_its_numbers() {
        use Spelling::{Diffusers, Native};
        check("b.12.q", Diffusers, false, "b.12.q=n.12.qv");
        check("b_12_q", Diffusers, true, "b.12.q=n.12.qv");
        check("n_3_qv", Native, true, "b.3.q=n.3.qv b.3.v=n.3.qv");
        check(
            "n.1.i.20.ff_0",
            Native,
            false,
            "b.1.i.20.ff.0=n.1.i.20.ff_0",
        );
        check("n_1_i_20_ff_0", Native, true, "b.1.i.20.ff.0=n.1.i.20.ff_0");
        check("final_1", Native, true, "out=final.1");
        for wrong in ["b.12.qx", "b..q", "b.x.q", "xb.1.q", "b.1.q.", ""] {
            check(wrong, Diffusers, false, "");
        }
    }
}
