//! What is looked at: an Experiment, or a store by itself.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use plumb::base_model::BaseModel;
use plumb::cache::{self, Manifest, Reader, Specs, refuse_if_missing};
use plumb::experiment::Experiment;
use plumb::inspect::captions::Captions;
use plumb::monitor::Monitor as _;
use plumb::store::{Address, Store, StoreReader};

use crate::ui::{Failure, Ui};
use crate::world;

/// An Experiment with its base model, or a store alone.
pub(super) enum Subject {
    Experiment(Box<(Experiment, BaseModel)>, Option<Store>),
    Store(Store),
}

impl Subject {
    /// A folder or an address is a store, anything else an Experiment's file.
    pub(super) fn open(path: &Path, ui: &Ui) -> Result<Self, Failure> {
        if path.is_dir() || Address::is_one(path) {
            let store = Store::open_at(&world::store_place(path)?);
            return Ok(Self::Store(store.map_err(Failure::error)?));
        }
        let opened = super::open(path, ui)?;
        let place = opened.0.store_path().map_err(Failure::usage)?;
        let store = match Store::open_at(&place) {
            Ok(store) => Some(store),
            Err(e) if e.is_no_store() => None,
            Err(e) => return Err(Failure::error(e)),
        };
        Ok(Self::Experiment(Box::new(opened), store))
    }

    pub(super) fn base(&self) -> Option<&BaseModel> {
        match self {
            Self::Experiment(opened, _) => Some(&opened.1),
            Self::Store(_) => None,
        }
    }

    /// The store; an Experiment that has none yet is told how to make it.
    pub(super) fn store(&self) -> Result<&Store, Failure> {
        match self {
            Self::Store(store) | Self::Experiment(_, Some(store)) => Ok(store),
            Self::Experiment(opened, None) => Err(without_store(&opened.0)?),
        }
    }

    pub(super) fn captions(&self, ui: &Ui) -> Result<Captions, Failure> {
        match self {
            Self::Experiment(opened, _) => {
                Captions::of_experiment(&opened.0, &opened.1, ui).map_err(Failure::error)
            }
            Self::Store(store) => {
                let reader = store.reader().map_err(Failure::error)?;
                Captions::of_store(&reader).map_err(Failure::error)
            }
        }
    }

    pub(super) fn experiment(&self) -> Option<&Experiment> {
        match self {
            Self::Experiment(opened, _) => Some(&opened.0),
            Self::Store(_) => None,
        }
    }

    /// The captions and the store's entries. An Experiment of whose captions the store has none is refused, as `train` refuses it.
    pub(super) fn read(&self, ui: &Ui) -> Result<(Captions, Arc<StoreReader>), Failure> {
        let (captions, reader) = match self {
            Self::Store(store) => {
                let reader = store.reader().map_err(Failure::error)?;
                let captions = Captions::of_store(&reader).map_err(Failure::error)?;
                (captions, Arc::new(reader))
            }
            Self::Experiment(opened, None) => {
                return Err(without_store(&opened.0)?);
            }
            Self::Experiment(opened, Some(store)) => {
                let captions = self.captions(ui)?;
                let reader = reader_of_some(opened, store, &captions)?;
                (captions, reader)
            }
        };
        for problem in reader.problems() {
            ui.problem(&problem.to_string());
        }
        for problem in &captions.problems {
            ui.problem(problem);
        }
        Ok((captions, reader))
    }
}

fn without_store(experiment: &Experiment) -> Result<Failure, Failure> {
    let place = experiment.store_path().map_err(Failure::usage)?;
    let refusal = cache::refuse_without_store(experiment, &place.shown());
    Ok(Failure::refused(refusal))
}

fn reader_of_some(
    opened: &(Experiment, BaseModel),
    store: &Store,
    captions: &Captions,
) -> Result<Arc<StoreReader>, Failure> {
    let (experiment, base) = opened;
    let texts: BTreeSet<String> = captions.all.iter().map(|c| c.text.clone()).collect();
    let needed = Manifest::new(base, texts.iter().map(String::as_str), &[]);
    let reader = Reader::open_for(Specs::from(base), store, needed.entries());
    let reader = reader.map_err(Failure::error)?;
    let refusal = refuse_if_missing(experiment, base, store, &reader, &texts, &[]);
    let refusal = refusal.map_err(Failure::error)?;
    match refusal {
        // Where something is there, that is shown, and what is not is told.
        Some(refusal)
            if (refusal.missing.iter().filter(|m| m.missing == m.wanted)).count()
                == captions.encoders.len() =>
        {
            Err(Failure::refused(refusal))
        }
        _ => Ok(reader.entries().clone()),
    }
}
