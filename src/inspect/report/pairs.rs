//! Pictures beside the references that the denoiser is given with them.

use std::collections::HashSet;
use std::path::Path;

use maud::{Markup, html};

use super::gather::spread;
use super::thumbnails::Thumbnails;
use crate::dataset::{Item, Reference, Viewed};
use crate::recipe::latents::Size;
use crate::shown;

/// Pairs that are shown.
const MOST_PAIRS: usize = 24;

/// The pairs of a data set.
pub(super) struct Pairs {
    /// Pictures and windows of clips with a reference.
    pub(super) with: usize,
    /// Those without one.
    pub(super) without: usize,
    /// Pairs of different files.
    different: usize,
    /// Different references.
    references: usize,
    /// Of the different pairs, those that are shown, by their places among the items.
    pub(super) shown: Vec<usize>,
}

impl Pairs {
    pub(super) fn of(items: &[Item]) -> Self {
        let with = items.iter().enumerate();
        let with = with.filter_map(|(n, item)| Some((n, item, item.reference.as_ref()?)));
        let (mut pairs, mut references) = (HashSet::new(), HashSet::new());
        let mut different = Vec::new();
        let mut count = 0;
        for (place, item, reference) in with {
            count += 1;
            references.insert(reference.digest);
            if pairs.insert((item.digest, reference.digest)) {
                different.push(place);
            }
        }
        let shown = spread(different.len(), MOST_PAIRS);
        Self {
            with: count,
            without: items.len() - count,
            different: different.len(),
            references: references.len(),
            shown: shown.into_iter().map(|n| different[n]).collect(),
        }
    }

    /// What is left out, in a sentence.
    pub(super) fn left_out(&self) -> Option<String> {
        let (shown, all) = (self.shown.len(), self.different);
        (shown < all).then(|| {
            format!("{shown} of {all} pairs are shown beside each other, evenly spread over all")
        })
    }

    /// Empty where there are none.
    pub(super) fn section(&self, items: &[Item], thumbnails: &Thumbnails) -> Markup {
        let shown = self.shown.iter().map(|&n| &items[n]);
        let shown = shown.filter_map(|item| Some((item, item.reference.as_ref()?)));
        html! {
            section #pairs aria-labelledby="h-pairs" {
                h2 #h-pairs { "Pairs" }
                p { "On the left the reference, which the denoiser is given, on the right the picture that it learns to make of it. "
                    (shown::counted(self.with, "picture")) " beside a reference, of which there " (shown::are(self.references)) " " (self.references) "."
                    @if self.without > 0 { " Without one, and trained on as text to picture: " (self.without) "." } }
                noscript { p.warn { "The pictures need the script of this page." } }
                ul.beside { @for (item, reference) in shown { li { (pair(item, reference, thumbnails)) } } }
            }
        }
    }
}

fn pair(item: &Item, reference: &Reference, thumbnails: &Thumbnails) -> Markup {
    let both = [
        (reference.viewed(), "Reference"),
        (item.viewed(), "Picture"),
    ];
    let picture = |(of, what): &(Viewed<'_>, &str)| {
        html! {
            @match thumbnails.of(of) {
                Some(number) => img data-thumbnail=(number) alt=(format!("{what}: {}", name(of.picture))) width="80" height="80";
                None => span.blank aria-hidden="true" {}
            }
        }
    };
    html! {
        div.pair { (picture(&both[0])) span.to aria-hidden="true" { "\u{2192}" } (picture(&both[1])) }
        @for (of, _) in &both { p { (name(of.picture)) " " span.fine { (sizes(of)) } } }
        @if reference.is_stretched() { p.warn { "The reference is stretched by more than a tenth." } }
        @if reference.digest == item.digest { p.warn { "Both are the same file: nothing is to be changed." } }
    }
}

fn name(path: &Path) -> String {
    shown::line(&path.file_name().unwrap_or_default().to_string_lossy())
}

/// The size of a file, and of what the VAE sees of it.
fn sizes(of: &Viewed<'_>) -> String {
    let size = |size: Size| format!("{} \u{d7} {}", size.width, size.height);
    match of.views.first().map(|view| view.bucket) {
        Some(bucket) if bucket != of.size => {
            format!("{}, seen as {}", size(of.size), size(bucket))
        }
        _ => size(of.size),
    }
}
