//! What every export of an Experiment begins with: its pictures and captions, and a store that has all of them.

use std::collections::BTreeSet;
use std::time::Duration;

use super::cache::CacheError;
use crate::base_model::BaseModel;
use crate::cache::{ModelCache, refuse_if_missing, refuse_without_store};
use crate::dataset::{self, Item};
use crate::monitor::Monitor;
use crate::store::{Place, Store};

/// The Experiment's items, and the cache that has them and `more` captions.
///
/// # Errors
/// [`CacheError::Refused`] where the store lacks something.
pub(super) fn open<'a>(
    base: &'a BaseModel,
    place: &Place,
    more: &[String],
    wait: Duration,
    monitor: &dyn Monitor,
) -> Result<(Vec<Item>, ModelCache<'a>), CacheError> {
    let experiment = &base.experiment;
    let store = match Store::open_at(place) {
        Ok(store) => store.waiting(wait),
        Err(e) if e.is_no_store() => {
            let refusal = refuse_without_store(experiment, &place.shown());
            return Err(CacheError::Refused(Box::new(refusal)));
        }
        Err(e) => return Err(e.into()),
    };
    let items = dataset::open(experiment, base.latent_geometry().side_multiple(), monitor)?;
    let of_pictures = items.iter().flat_map(|item| &item.captions);
    let captions: BTreeSet<String> = of_pictures.chain(more).cloned().collect();
    let viewed = dataset::viewed(&items, &[]);
    // And the empty caption, which some formats have where it is there.
    let texts = captions.iter().map(String::as_str).chain([""]);
    let cache = ModelCache::open_of(base, &store, texts, &viewed)?;
    let reader = &cache.reader;
    match refuse_if_missing(experiment, base, &store, reader, &captions, &viewed)? {
        Some(refusal) => Err(CacheError::Refused(Box::new(refusal))),
        None => Ok((items, cache)),
    }
}
