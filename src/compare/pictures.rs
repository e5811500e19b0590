//! Which pictures are compared on: such as neither LoRA was trained from, as far as that can be known.

use super::Error;
use super::lora::{Lora, named};
use crate::base_model::BaseModel;
use crate::cache::{EntryList, Specs};
use crate::dataset::{self, Item, Preview};
use crate::digest::Fingerprint;
use crate::experiment::Experiment;
use crate::monitor::Monitor;
use crate::shown;
use crate::store::Store;

/// The pictures that an Experiment holds out of training; where it holds out none, all of them, unless they are what a LoRA was
/// trained from.
pub(super) fn choose(
    experiment: &Experiment,
    base: &BaseModel,
    store: &Store,
    loras: &[Lora; 2],
    monitor: &dyn Monitor,
) -> Result<Vec<Item>, Error> {
    let multiple = base.latent_geometry().side_multiple();
    let all = dataset::open(experiment, multiple, monitor)?;
    if all.is_empty() {
        let experiment = named(experiment, &loras[0]);
        return Err(Error::NoPictures { experiment });
    }
    let previews = dataset::previews(experiment, &base.settings.sample, multiple)?;
    let data = Data {
        experiment,
        name: named(experiment, &loras[0]),
        specs: Specs::from(base),
        all: &all,
        previews: &previews,
        chosen: chosen(&all),
    };
    let lists = lists_of(store, loras)?;
    for (lora, list) in loras.iter().zip(&lists) {
        data.check_unseen(lora, list.as_ref(), monitor)?;
    }
    Ok(data.chosen.into_iter().cloned().collect())
}

fn chosen(all: &[Item]) -> Vec<&Item> {
    let held_out: Vec<&Item> = all.iter().filter(|item| item.held_out).collect();
    match held_out.is_empty() {
        true => all.iter().collect(),
        false => held_out,
    }
}

/// An Experiment's pictures.
struct Data<'a> {
    experiment: &'a Experiment,
    /// What a message calls it.
    name: String,
    specs: Specs,
    all: &'a [Item],
    /// The references of its previews.
    previews: &'a [Preview],
    /// Those that are compared on.
    chosen: Vec<&'a Item>,
}

impl Data<'_> {
    /// Refuses pictures that a LoRA was trained from, and tells where some of them are among the chosen.
    fn check_unseen(
        &self,
        lora: &Lora,
        list: Option<&EntryList>,
        monitor: &dyn Monitor,
    ) -> Result<(), Error> {
        let file = shown::path(lora.file());
        let unknown = |why: &str| {
            monitor.note(&format!(
                "{file}: whether it was trained from these pictures is not known: {why}"
            ));
        };
        if lora.made.is_none() {
            unknown("it says nothing of its making");
            return Ok(());
        }
        let Some(list) = list else {
            unknown("the store has no list of what it was trained from");
            return Ok(());
        };
        let is_listed = |item: &&Item| self.is_listed(list, item);
        let listed = self.chosen.iter().copied().filter(is_listed).count();
        match lora.validation_share() {
            _ if listed == 0 => {}
            Some(0.0) if listed == self.chosen.len() => {
                return Err(Error::TrainedOn {
                    experiment: self.name.clone(),
                    pictures: dataset::items_in_words(self.chosen.iter().copied()),
                    lora: lora.file().to_owned(),
                });
            }
            Some(0.0) => monitor.problem(&format!(
                "{file}: was trained from {listed} of the {} that are compared on: it may know them by heart",
                dataset::items_in_words(self.chosen.iter().copied())
            )),
            // The split depends on the pictures and the share alone, so these are the ones that it held out.
            Some(share) if share == self.experiment.validation_share() && self.is_all_of(list) => {
            }
            _ => unknown("they are in its data, of which it held out a part"),
        }
        Ok(())
    }

    fn is_listed(&self, list: &EntryList, item: &Item) -> bool {
        let mut views = item.views.iter();
        views.any(|&view| list.has(self.specs.latents, self.specs.view(item.digest, view)))
    }

    /// Whether a list has the Experiment's pictures and no others.
    fn is_all_of(&self, list: &EntryList) -> bool {
        let mut own: Vec<Fingerprint> = Vec::new();
        for picture in dataset::viewed(self.all, self.previews) {
            let views = picture.views.iter();
            own.extend(views.map(|&view| self.specs.view(picture.digest, view)));
        }
        // Copies of a picture have one entry.
        own.sort_unstable();
        own.dedup();
        own.len() == list.count(self.specs.latents)
            && own.iter().all(|&view| list.has(self.specs.latents, view))
    }
}

/// The lists of what two trainings used, those that this store has. Each run is read once.
fn lists_of(store: &Store, loras: &[Lora; 2]) -> Result<[Option<EntryList>; 2], Error> {
    let wanted = loras
        .each_ref()
        .map(|lora| lora.made.as_ref().map(|made| made.manifest));
    let mut found = [None, None];
    for id in store.runs()? {
        // A run that cannot be read is no reason not to compare.
        let Ok(run) = store.run(&id) else { continue };
        let digest = EntryList::of_run(&run).digest();
        for (wanted, found) in wanted.iter().zip(&mut found) {
            if *wanted == Some(digest) {
                found.get_or_insert_with(|| EntryList::of_run(&run));
            }
        }
    }
    Ok(found)
}
