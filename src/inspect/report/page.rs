//! The HTML of the page.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::super::Error;
use super::compare::Comparison;
use super::compared::{compared, cosine};
use super::gather::{EncoderView, Gathered};
use super::near::Pair;
use super::run::TrainedUnder;
use super::strips::PackedStrip;
use super::{Sources, chart, map, packed, probe, recipe};
use crate::inspect::captions::{Caption, Origin};
use crate::shown;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// Captions that are listed as cut, the worst first.
const MOST_CUT: usize = 40;

/// What the script reads.
#[derive(Serialize)]
struct Data<'a> {
    captions: Vec<CaptionData>,
    encoders: Vec<EncoderData<'a>>,
    thumbnails: &'a [String],
    /// The recipe that cosines are against.
    other: Option<&'a str>,
}

#[derive(Serialize)]
struct CaptionData {
    #[serde(rename = "t")]
    text: String,
    /// How many pictures have it.
    #[serde(rename = "s")]
    pictures: usize,
    #[serde(rename = "r", skip_serializing_if = "std::ops::Not::not")]
    is_prompt: bool,
    /// Of these, how many beside a reference.
    #[serde(rename = "b", skip_serializing_if = "is_none")]
    beside: usize,
    #[serde(rename = "h", skip_serializing_if = "Option::is_none")]
    thumbnail: Option<usize>,
    /// The thumbnail of the reference.
    #[serde(rename = "f", skip_serializing_if = "Option::is_none")]
    reference: Option<usize>,
    #[serde(rename = "e")]
    strips: Vec<Option<PackedStrip>>,
}

fn is_none(count: &usize) -> bool {
    *count == 0
}

#[derive(Serialize)]
struct EncoderData<'a> {
    slot: &'a str,
    norm: f32,
    pieces: &'a std::collections::BTreeMap<u32, String>,
}

pub(super) fn page(sources: &Sources<'_>, gathered: &mut Gathered) -> Result<String, Error> {
    let captions: Vec<&Caption> = (gathered.shown.iter())
        .map(|&n| &sources.captions.all[n])
        .collect();
    let view = View {
        sources,
        gathered,
        captions,
    };
    Ok(view.page()?.into_string())
}

struct View<'a> {
    sources: &'a Sources<'a>,
    gathered: &'a Gathered,
    captions: Vec<&'a Caption>,
}

/// The hash of a script or a style sheet, by which a policy allows it.
fn hash(text: &str) -> String {
    format!(
        "'sha256-{}'",
        packed::base64(&Sha256::digest(text.as_bytes()))
    )
}

impl View<'_> {
    fn page(&self) -> Result<Markup, Error> {
        let policy = format!(
            "default-src 'none'; style-src {}; script-src {}; img-src data:; base-uri 'none'; form-action 'none'",
            hash(STYLE),
            hash(SCRIPT)
        );
        let title = shown::line(&self.sources.title);
        let sections = self.sections()?;
        Ok(html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta http-equiv="Content-Security-Policy" content=(policy);
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    meta name="generator" content=(crate::store::TOOL);
                    link rel="icon" href="data:,";
                    title { (title) " \u{2013} cached embeddings" }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    a.skip href="#captions" { "To the captions" }
                    header { (self.head(&title)) }
                    nav aria-label="Sections" {
                        @for (id, name, _) in &sections { a href=(format!("#{id}")) { (name) } }
                    }
                    main {
                        @for (_, _, section) in &sections { (section) }
                    }
                    footer {
                        p { "Written by " (crate::store::TOOL) ". This page is one file and asks no network for anything." }
                    }
                    script type="application/json" id="data" { (PreEscaped(self.data()?)) }
                    script { (PreEscaped(SCRIPT)) }
                }
            }
        })
    }

    fn sections(&self) -> Result<Vec<(&'static str, &'static str, Markup)>, Error> {
        let mut sections = Vec::new();
        if let Some(base) = self.sources.base {
            sections.push((
                "recipe",
                "Recipe",
                recipe::section(base, self.sources.probe)?,
            ));
        }
        sections.push(("captions", "Captions", self.picker()));
        let pairs = &self.gathered.pairs;
        if pairs.with > 0 {
            let items = &self.sources.captions.items;
            let section = pairs.section(items, &self.gathered.thumbnails);
            sections.push(("pairs", "Pairs", section));
        }
        sections.push(("map", "Map", self.maps()));
        sections.push(("near", "Near and far", self.near()));
        sections.push(("cut", "Cut captions", self.cut()));
        if self.sources.base.is_some() {
            sections.push(("compare", "Against another recipe", self.comparison()));
        }
        if let Some(report) = self.sources.probe {
            sections.push(("probe", "Probe", probe::section(report)));
        }
        if self.gathered.run.is_some() {
            sections.push(("training", "Training", self.training()));
        }
        Ok(sections)
    }

    fn head(&self, title: &str) -> Markup {
        let all = self.sources.captions.all.len();
        let pictures = self.sources.captions.items.len();
        let (encoders, run) = (&self.gathered.encoders, &self.gathered.run);
        let steps = run.as_ref().and_then(|run| run.loss.last());
        let faults = self.gathered.missing().len() + self.gathered.damaged().len();
        html! {
            p.kicker { "Cached embeddings" }
            h1 { (title) }
            p.lede {
                @match self.sources.base {
                    Some(base) => { (base.denoiser.family.name) " / " (base.flavor.name) ", recipe " b { (base.recipe.name().variant) }
                        @let deviations = base.recipe.deviations().len();
                        @if deviations > 0 { " with " (deviations) (if deviations == 1 { " deviation" } else { " deviations" }) } }
                    None => { "A store by itself: it knows its encoders and captions, but neither recipe nor pictures. The tokenizers are not in it, so that tokens are shown by their ids." }
                }
            }
            dl.figures {
                div { dt { "captions" } dd { (all) } }
                @if self.sources.base.is_some() { div { dt { "pictures" } dd { (pictures) } } }
                @if self.gathered.pairs.with > 0 { div { dt { "beside a reference" } dd { (self.gathered.pairs.with) } } }
                @for encoder in encoders {
                    div { dt { "cut by " (encoder.slot) } dd { (encoder.truncated) } }
                    @if let Some(count @ 1..) = encoder.shortened { div { dt { "shortened for " (encoder.slot) } dd { (count) } } }
                }
                @if let Some((step, _)) = steps { div { dt { "steps trained" } dd { (step) } } }
            }
            @if faults > 0 {
                ul.faults {
                    @for (slot, count) in self.gathered.missing() { li { b { (slot) ": " (count) } " " (shown::things(count, "caption")) " " (shown::are(count)) " not in the store" } }
                    @for (slot, count, why) in self.gathered.damaged() { li { b { (slot) ": " (count) } " " (shown::things(count, "caption")) " damaged in the store: " (shown::line(&why)) } }
                }
            }
            @for sentence in &self.gathered.left_out { p.fine { (sentence) "." } }
        }
    }

    fn picker(&self) -> Markup {
        html! {
            section #captions aria-labelledby="h-captions" {
                h2 #h-captions { "Captions" }
                @if self.captions.is_empty() { p { "There are no captions." } }
                @else {
                    noscript { p.warn { "The caption picker needs the script of this page. All else can be read without it." } }
                    div.picker {
                        div.list {
                            label for="search" { "Search" }
                            input #search type="search" autocomplete="off" spellcheck="false" aria-controls="options";
                            p.fine #found aria-live="polite" {}
                            ul #options role="listbox" tabindex="0" aria-label="Captions" {}
                        }
                        div.detail #detail {
                            div.lead {
                                (beside("picture", "reference"))
                                div.words { p.caption #caption dir="auto" {} p.fine #about {} }
                            }
                            @if self.gathered.encoders.iter().any(|e| e.comparison.as_ref().is_some_and(Comparison::differs)) {
                                fieldset {
                                    legend { "Color of a token" }
                                    label { input type="radio" name="mode" value="norm" checked; " norm of its row" }
                                    label { input type="radio" name="mode" value="cosine"; " cosine against " (self.other_name()) }
                                }
                            }
                            @if !self.gathered.encoders.iter().any(|e| e.comparison.as_ref().is_some_and(Comparison::differs)) {
                                p.fine { "The darker a token, the larger the norm of its row." }
                            }
                            div #strips {}
                            output #token aria-live="polite" { "Point at a token, or move over the tokens with the arrow keys." }
                        }
                    }
                }
            }
        }
    }

    fn other_name(&self) -> &str {
        self.sources.other.as_ref().map_or("", |other| &other.name)
    }

    fn maps(&self) -> Markup {
        let some = self.gathered.encoders.iter();
        let some: Vec<_> = some
            .filter(|e| e.points.iter().any(Option::is_some))
            .collect();
        html! {
            section #map aria-labelledby="h-map" {
                h2 #h-map { "Map" }
                p { "Each caption's vector in the plane of the first two principal components: captions that an encoder makes similar vectors of lie together. "
                    @if self.captions.iter().any(|c| c.origin == Origin::Prompt) { "Rings are prompts. " }
                    "Crosshairs mark the mean." }
                @if some.is_empty() { p { "No caption has a vector in the store." } }
                div.maps { @for encoder in some { (map::map(encoder, &self.captions)) } }
                div.card #card aria-live="polite" { (beside("card-picture", "card-reference")) p #card-text dir="auto" { "Point at a caption, or press the arrow keys on a map." } }
            }
        }
    }

    fn near(&self) -> Markup {
        html! {
            section #near aria-labelledby="h-near" {
                h2 #h-near { "Near and far" }
                p { "By the cosine of two vectors from which the mean of all was taken away. Far: the nearest other caption is farther than the upper quartile by three times the distance between the quartiles." }
                @for encoder in &self.gathered.encoders {
                    h3 { (encoder.slot) }
                    @if encoder.near.pairs.is_empty() { p.fine { "There are no two captions to compare." } }
                    @if !encoder.near.far.is_empty() {
                        h4 { "Far from all others" }
                        ol.pairs { @for pair in &encoder.near.far { li { (self.link(pair.places[0])) span.fine { " nearest at " (cosine(pair.cosine)) } } } }
                    } @else if encoder.near.pairs.len() > 1 { p.fine { "No caption lies far from all others." } }
                    @if !encoder.near.pairs.is_empty() {
                        details open[encoder.slot == self.gathered.encoders[0].slot] {
                            summary { "Nearest pairs" }
                            ol.pairs { @for pair in &encoder.near.pairs { li { (self.pair(pair)) } } }
                        }
                    }
                }
            }
        }
    }

    fn pair(&self, pair: &Pair) -> Markup {
        let captions = &self.sources.captions;
        let [a, b] = pair.places.map(|n| captions.digests(self.captions[n]));
        let of_pictures = !a.is_empty() && !b.is_empty();
        let shared = !a.is_disjoint(&b);
        html! {
            span.value { (cosine(pair.cosine)) }
            (self.link(pair.places[0])) (self.link(pair.places[1]))
            @if of_pictures { span.fine { (if shared { "of one picture" } else { "of different pictures" }) } }
        }
    }

    /// A caption that opens in the picker.
    fn link(&self, place: usize) -> Markup {
        html! { button.link type="button" data-open=(place) dir="auto" { (short(&self.captions[place].text)) } }
    }

    fn cut(&self) -> Markup {
        let all = self.sources.captions.all.len();
        html! {
            section #cut aria-labelledby="h-cut" {
                h2 #h-cut { "Cut captions" }
                div.wide { table {
                    thead { tr { th scope="col" { "encoder" } th scope="col" { "in the store" } th scope="col" { "cut" } th scope="col" { "most tokens lost" } th scope="col" { "shortened by clean-up" } } }
                    tbody { @for encoder in &self.gathered.encoders {
                        tr { th scope="row" { (encoder.slot) } td { (encoder.with_entry) " of " (all) } td { (encoder.truncated) } td { @match encoder.most_lost() { Some(lost) => (lost), None => "not known" } } td { @match encoder.shortened { Some(count) => (count), None => "not known" } } }
                    } }
                } }
                @for encoder in &self.gathered.encoders { (self.worst(encoder)) }
            }
        }
    }

    fn worst(&self, encoder: &EncoderView) -> Markup {
        let strips = encoder.strips.iter().enumerate();
        let mut cut: Vec<_> = strips
            .filter_map(|(n, strip)| Some((n, strip.as_ref()?)))
            .filter(|(_, strip)| strip.truncated || strip.shortened)
            .collect();
        cut.sort_by_key(|(n, strip)| (std::cmp::Reverse(strip.total), *n));
        let more = cut.len().saturating_sub(MOST_CUT);
        html! {
            @if !cut.is_empty() {
                h3 { "Text lost by " (encoder.slot) }
                ol.cuts {
                    @for (n, strip) in cut.iter().take(MOST_CUT) {
                        li {
                            (self.link(*n))
                            p.fine {
                                @match strip.total {
                                    _ if !strip.truncated => "dropped by the recipe's clean-up",
                                    Some(total) => { (total - strip.count) " of " (total) " tokens lost" }
                                    None => { (strip.count) " tokens kept" }
                                }
                                @if !strip.lost.is_empty() { ": " span.lost dir="auto" { (short(&strip.lost)) } }
                            }
                        }
                    }
                }
                @if more > 0 { p.fine { "and " (more) " more of those shown" } }
            }
        }
    }

    fn comparison(&self) -> Markup {
        html! {
            section #compare aria-labelledby="h-compare" {
                h2 #h-compare { "Against another recipe" }
                @match &self.sources.other {
                    None => { p { "The recipe is the base model's own, so there is nothing to compare with. " code { "--against VARIANT" } " compares with another one." } }
                    Some(other) => {
                        p { "What the encoders make of the same captions here and under " b { (other.name) } ": the cosine of each token's row with the row of the same token. 1 is the same direction." }
                        @for encoder in &self.gathered.encoders {
                            @if let Some(comparison) = &encoder.comparison { (compared(encoder, comparison, &other.command)) }
                        }
                    }
                }
                @if self.sources.probe.is_none() {
                    p.fine { "A cosine does not say what a difference costs; " code { "plumb probe" } " measures it, and " code { "--probe" } " shows its report here." }
                }
            }
        }
    }

    fn training(&self) -> Markup {
        let Some(run) = &self.gathered.run else {
            return html! {};
        };
        let series = |name: &str, class, points: &Vec<(f64, f64)>, dots| chart::Series {
            name: name.to_owned(),
            class,
            points: points.clone(),
            dots,
        };
        let mut losses = vec![series("training loss", "a", &run.loss, false)];
        if !run.validation.is_empty() {
            losses.push(series("validation loss", "b", &run.validation, true));
        }
        let rate = [series("learning rate", "a", &run.learning_rate, false)];
        html! {
            section #training aria-labelledby="h-training" {
                h2 #h-training { "Training" }
                p { "From " code { (shown::path(&run.folder)) } "." }
                @match &run.recipe {
                    TrainedUnder::This => {}
                    TrainedUnder::Another(recipe) => p.warn { "Its LoRA was trained under " b { "another recipe" } " (" code { (recipe.short()) } "): these curves are not of the embeddings on this page." }
                    TrainedUnder::Unknown => p.fine { "There is no finished LoRA that tells which recipe it was trained under." }
                }
                @if run.loss.is_empty() { p { "No step is recorded." } }
                @else {
                    div.charts {
                        (chart::lines("Loss by step", ("step", "loss"), &losses))
                        (chart::lines("Learning rate by step", ("step", "learning rate"), &rate))
                    }
                }
                @if !run.previews.is_empty() {
                    h3 { "Previews" }
                    div.previews {
                        @for (step, jpeg) in &run.previews {
                            figure { img loading="lazy" src=(format!("data:image/jpeg;base64,{jpeg}")) alt=(format!("Pictures of the prompts after step {step}")); figcaption { "step " (step) } }
                        }
                    }
                }
            }
        }
    }

    fn caption(&self, place: usize, caption: &Caption) -> CaptionData {
        let all = &self.sources.captions;
        let (item, reference) = all.shown(caption);
        let thumbnails = &self.gathered.thumbnails;
        let is_beside = |&&item: &&usize| all.items[item].reference.is_some();
        CaptionData {
            text: self.gathered.texts[place].clone(),
            pictures: caption.items.len(),
            beside: caption.items.iter().filter(is_beside).count(),
            is_prompt: caption.origin == Origin::Prompt,
            thumbnail: item.and_then(|item| thumbnails.of(&item.viewed())),
            reference: reference.and_then(|of| thumbnails.of(&of.viewed())),
            strips: (self.gathered.encoders.iter())
                .map(|e| e.packed(place))
                .collect(),
        }
    }

    /// The data as JSON that can stand in a script element.
    fn data(&self) -> Result<String, Error> {
        let captions = self.captions.iter().enumerate();
        let captions = captions.map(|(n, caption)| self.caption(n, caption));
        let encoders = self.gathered.encoders.iter().map(|e| EncoderData {
            slot: &e.slot,
            norm: e.largest_norm,
            pieces: &e.pieces,
        });
        let other = self.sources.other.as_ref();
        let data = Data {
            captions: captions.collect(),
            encoders: encoders.collect(),
            thumbnails: &self.gathered.thumbnails.files,
            other: other.map(|other| other.name.as_str()),
        };
        let json = serde_json::to_string(&data).map_err(candle_core::Error::wrap)?;
        // Inside a string of JSON only: nothing in it can end the element or begin a comment.
        Ok(json.replace('<', "\\u003c"))
    }
}

impl EncoderView {
    fn packed(&self, place: usize) -> Option<PackedStrip> {
        let strip = self.strips.get(place)?.as_ref()?;
        Some(strip.packed(self.largest_norm))
    }

    /// Of the shown captions.
    fn most_lost(&self) -> Option<usize> {
        let totals = self
            .strips
            .iter()
            .flatten()
            .map(|s| Some(s.total? - s.count));
        totals.flatten().max()
    }
}

/// The places of a caption's reference and picture, which the script fills.
fn beside(picture: &str, reference: &str) -> Markup {
    html! {
        div.pair {
            img id=(reference) alt="" hidden width="80" height="80"; span.to hidden aria-hidden="true" { "\u{2192}" }
            img id=(picture) alt="" hidden width="80" height="80";
        }
    }
}

/// The beginning of a caption.
fn short(text: &str) -> String {
    const CHARS: usize = 140;
    let mut chars = text.chars();
    let begin: String = chars.by_ref().take(CHARS).collect();
    let begin = shown::line(&begin);
    match (begin.is_empty(), chars.next()) {
        (true, _) => "(the empty caption)".to_owned(),
        (_, Some(_)) => begin + "\u{2026}",
        (_, None) => begin,
    }
}
