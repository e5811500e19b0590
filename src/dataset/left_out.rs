//! Files of a data folder that are not used, told once and in few lines: how many, why, and the first of them by name.

use std::collections::BTreeMap;
use std::path::Path;

use super::natural::natural;
use crate::monitor::Monitor;
use crate::shown;

/// The most names for one reason.
const NAMED: usize = 5;

/// Why a file is not used. Those up to [`Self::Device`] are problems: the data set is smaller than a person may think, and
/// trains another LoRA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    /// A picture or video that cannot be decoded here.
    Undecodable,
    /// A clip, where the data set does not say how many frames of clips are taken.
    Clip,
    /// A link to nothing.
    Dangling,
    /// A link to what lies elsewhere, and the Experiment does not say that links are followed.
    LeadsOut,
    /// Neither a file nor a folder.
    Device,
    /// A copy that an editor keeps, or a download that has not ended.
    Unfinished,
    /// A mask or conditioning picture of another trainer.
    Mask,
    /// A caption whose picture is not there.
    Orphan,
    /// A reference whose picture is not there.
    OrphanReference,
    /// A caption of a reference, which has none.
    ReferenceCaption,
    /// What another trainer has computed.
    Cache,
    /// Hidden by its name.
    Hidden,
    /// Anything else that is no picture.
    Other,
    /// What a system writes beside files: never a person's.
    System,
}

impl Reason {
    fn is_problem(self) -> bool {
        self <= Self::Device
    }

    /// So many of them, in words.
    fn counted(self, count: usize) -> String {
        let (thing, rest) = match self {
            Self::Clip => ("clip", " (set `frames`, such as to 17, to train on clips)"),
            Self::Dangling => ("link", " to nothing"),
            Self::LeadsOut => (
                "link",
                " out of the folder (`follow_links = true` follows links)",
            ),
            Self::Mask => ("mask of other trainers", ""),
            Self::Orphan => ("caption", " without a picture"),
            Self::OrphanReference => ("reference", " without a picture of the name"),
            Self::ReferenceCaption => ("caption of references", ", which are not read"),
            Self::Cache => ("cache of other trainers", ""),
            Self::Other => ("other file", ""),
            Self::System => ("file of the system", ""),
            Self::Undecodable => {
                return format!(
                    "{count} of kinds that cannot be decoded here (save them as PNG, JPEG or WebP)"
                );
            }
            Self::Device => return format!("{count} neither files nor folders"),
            Self::Unfinished => return format!("{count} backup copies or unfinished downloads"),
            Self::Hidden => return format!("{count} hidden"),
        };
        shown::counted(count, thing) + rest
    }
}

/// All files of one folder that are not used.
#[derive(Debug, Default)]
pub(super) struct LeftOut(BTreeMap<Reason, Vec<String>>);

impl LeftOut {
    pub(super) fn add(&mut self, reason: Reason, name: String) {
        self.0.entry(reason).or_default().push(name);
    }

    /// In natural order, whatever order the system gave.
    pub(super) fn sort(&mut self) {
        for names in self.0.values_mut() {
            names.sort_by(|a, b| natural(a, b));
        }
    }

    /// Whether a file is among them.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.values().flatten().any(|left| left == name)
    }

    /// The files that are not used for this reason.
    pub(super) fn of(&self, reason: Reason) -> &[String] {
        self.0.get(&reason).map_or(&[], Vec::as_slice)
    }

    /// What is there instead of pictures, for a folder that has none.
    pub(super) fn instead(&self) -> Option<String> {
        let told = self
            .0
            .iter()
            .filter(|(reason, _)| **reason != Reason::System);
        let told: Vec<_> = told.map(|(reason, names)| part(*reason, names)).collect();
        (!told.is_empty()).then(|| told.join(", "))
    }

    pub(super) fn tell(&self, folder: &Path, monitor: &dyn Monitor) {
        let folder = shown::path(folder);
        for (reason, names) in self.0.iter().filter(|(reason, _)| reason.is_problem()) {
            monitor.problem(&format!("{folder}: not read: {}", part(*reason, names)));
        }
        let harmless = self.0.iter().filter(|(reason, _)| !reason.is_problem());
        let parts: Vec<_> = harmless
            .map(|(reason, names)| part(*reason, names))
            .collect();
        // The system's alone are not worth a line.
        if self
            .0
            .keys()
            .any(|reason| !reason.is_problem() && *reason != Reason::System)
        {
            monitor.note(&format!("{folder}: not used: {}", parts.join(", ")));
        }
    }
}

fn part(reason: Reason, names: &[String]) -> String {
    let counted = reason.counted(names.len());
    // Nobody chose their names.
    if reason == Reason::System {
        return counted;
    }
    format!("{counted}: {}", named(names))
}

/// The first names of a list, in one line.
pub(super) fn named(names: &[impl AsRef<str>]) -> String {
    let first = names.iter().take(NAMED);
    let mut first: Vec<_> = first
        .map(|name| shown::text(name.as_ref()).to_string())
        .collect();
    if names.len() > NAMED {
        first.push("...".to_owned());
    }
    first.join(", ")
}
