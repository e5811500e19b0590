//! Which entries an Experiment uses: written into the store as a run, so that garbage collection keeps them, by
//! `encode` as by `train`.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Description, Specs};
use crate::base_model::BaseModel;
use crate::dataset::{Item, Viewed};
use crate::digest::{Digest, Fingerprint, canonical_json};
use crate::experiment::Experiment;
use crate::monitor::Monitor;
use crate::store::{self, Lacking, Run, Store};

/// Every caption that an Experiment needs: those of its pictures, in their order, its prompts, and what stands for no caption.
pub fn captions(experiment: &Experiment, items: &[Item]) -> Vec<String> {
    let of_pictures = items.iter().flat_map(|item| item.captions.iter().cloned());
    of_pictures.chain(experiment.extra_captions()).collect()
}

/// A list of entries: (spec, entry), sorted, each once.
pub struct EntryList(Vec<(Fingerprint, Fingerprint)>);

/// A list of entries, and what they are put together by.
pub struct Manifest {
    entries: EntryList,
    model: Description,
}

impl EntryList {
    /// The list that a run in the store has.
    pub fn of_run(run: &Run) -> Self {
        let of_spec = |(spec, entries): (&Fingerprint, &Vec<Fingerprint>)| {
            let entries: Vec<_> = entries.iter().map(|entry| (*spec, *entry)).collect();
            entries
        };
        Self(run.entries.iter().flat_map(of_spec).collect())
    }

    /// Whether an entry of a spec is on it.
    pub fn has(&self, spec: Fingerprint, entry: Fingerprint) -> bool {
        self.0.binary_search(&(spec, entry)).is_ok()
    }

    /// How many entries of a spec are on it.
    pub fn count(&self, spec: Fingerprint) -> usize {
        self.0.iter().filter(|(of, _)| *of == spec).count()
    }

    /// The digest of the canonical JSON of the list, an object of specs with their entries: the same wherever the
    /// Experiment and the store lie.
    pub fn digest(&self) -> Digest {
        let mut by_spec = BTreeMap::<String, Vec<Fingerprint>>::new();
        for (spec, entry) in &self.0 {
            by_spec.entry(spec.to_string()).or_default().push(*entry);
        }
        Digest::of(&canonical_json(&by_spec))
    }
}

impl Manifest {
    /// What every encoder of `base` makes of `captions`, and its VAE of the views of `pictures`.
    pub fn new<'a>(
        base: &BaseModel,
        captions: impl Iterator<Item = &'a str> + Clone,
        pictures: &[Viewed<'_>],
    ) -> Self {
        let specs = Specs::from(base);
        let mut entries = Vec::new();
        for encoder in &specs.encoders {
            for caption in captions.clone() {
                entries.push((encoder.spec, encoder.entry(caption)));
            }
        }
        for picture in pictures {
            for &view in picture.views.iter() {
                entries.push((specs.latents, specs.view(picture.digest, view)));
            }
        }
        // One order whatever order the pictures were found in: the digest is over it.
        entries.sort_unstable();
        entries.dedup();
        Self {
            entries: EntryList(entries),
            model: base.into(),
        }
    }

    /// The digest of its list of entries.
    pub fn digest(&self) -> Digest {
        self.entries.digest()
    }

    /// Its entries: (spec, entry), sorted, each once.
    pub fn entries(&self) -> &[(Fingerprint, Fingerprint)] {
        &self.entries.0
    }

    /// Those of its entries that `is_one` says.
    #[must_use]
    pub fn of(&self, is_one: impl Fn(&Fingerprint) -> bool) -> Self {
        let entries = self.entries.0.iter().filter(|(_, entry)| is_one(entry));
        Self {
            entries: EntryList(entries.copied().collect()),
            model: self.model.clone(),
        }
    }

    /// Whether a store has all of its entries.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn is_in(&self, store: &Store) -> Result<bool, store::Error> {
        let reader = store.reader_of_entries(&self.entries.0)?;
        let mut entries = self.entries.0.iter();
        Ok(entries.all(|(spec, entry)| reader.contains(spec, entry)))
    }

    /// Writes it as the run of `verb` on this Experiment (and `captions`, a file of captions alone), in place of
    /// the one that was written before. A store that may not be written is none the worse for it, and a note says so.
    ///
    /// # Errors
    /// If the store cannot be written, is kept busy by others for too long, or lacks entries and `lacking` says to refuse.
    pub fn write(
        &self,
        store: &Store,
        verb: &str,
        experiment: (&Experiment, Option<&Path>),
        lacking: Lacking,
        monitor: &dyn Monitor,
    ) -> Result<(), store::Error> {
        let id = run_id(verb, experiment);
        self.write_as(store, &id, experiment.0, lacking, monitor)
    }

    /// Writes it as a run of its own beside that of the whole Experiment, without entries that the store lacks.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_part(
        &self,
        store: &Store,
        (verb, part): (&str, &str),
        experiment: (&Experiment, Option<&Path>),
        monitor: &dyn Monitor,
    ) -> Result<(), store::Error> {
        let id = format!("{}{part}", parts_of(verb, experiment));
        self.write_as(store, &id, experiment.0, Lacking::LeaveOut, monitor)
    }

    /// Removes the runs of parts, after that of the whole was written.
    ///
    /// # Errors
    /// If the store cannot be written, or is kept busy by others for too long.
    pub fn forget_parts(
        &self,
        store: &Store,
        verb: &str,
        experiment: (&Experiment, Option<&Path>),
        monitor: &dyn Monitor,
    ) -> Result<(), store::Error> {
        let parts = parts_of(verb, experiment);
        match store.when_free(monitor, || store.remove_runs(&parts)) {
            // Nor could the run of the whole be written, which was told.
            Err(e) if e.is_read_only() => Ok(()),
            removed => removed,
        }
    }

    fn write_as(
        &self,
        store: &Store,
        id: &str,
        experiment: &Experiment,
        lacking: Lacking,
        monitor: &dyn Monitor,
    ) -> Result<(), store::Error> {
        let file = experiment.file.display().to_string();
        let note = serde_json::json!({ "experiment": file, "model": self.model });
        let write = || store.write_run(id, &self.entries.0, note.clone(), lacking);
        match store.when_free(monitor, write) {
            Err(e) if e.is_read_only() => monitor.note(&format!(
                "{e}; but nothing keeps `plumb store gc` from removing what this run uses"
            )),
            written => _ = written?,
        }
        Ok(())
    }
}

/// How the runs of an Experiment's parts begin. The point is in no [`run_id`].
fn parts_of(verb: &str, experiment: (&Experiment, Option<&Path>)) -> String {
    format!("{}.", run_id(verb, experiment))
}

/// A name that the same Experiment file always gets, and another hardly ever.
fn run_id(verb: &str, (experiment, captions): (&Experiment, Option<&Path>)) -> String {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut origin = absolute(&experiment.file).to_string_lossy().into_owned();
    if let Some(file) = captions {
        origin = format!("{origin}\n{}", absolute(file).display());
    }
    let named = captions.unwrap_or(&experiment.file);
    let stem = named.file_stem().unwrap_or_default().to_string_lossy();
    let plain: String = stem
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-' || *c == '_')
        // A long stem would leave no room for the rest in a file name.
        .take(60)
        .collect();
    // With a digest of the path, as Experiments of one name in different folders are different runs.
    format!("{verb}-{plain}-{}", Digest::of(origin.as_bytes()).short())
}
