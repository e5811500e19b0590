//! One vector for each caption under an encoder: what nearness of captions, a map of them and an exported table are made of.
//!
//! It is the encoder's pooled vector, or the mean over the rows of its true tokens where the encoder has no pooled one. Vectors come
//! from the store as training reads them: each payload is compared with its digest, nothing is encoded. A caption whose entry is
//! missing or damaged has no vector and is told.

mod pca;
mod rows;

use rayon::prelude::{IntoParallelRefIterator as _, ParallelIterator as _};
use serde::Serialize;

pub use pca::{Plane, plane};
pub use rows::Rows;

use super::Error;
use crate::cache::{self, EncoderId, tensors};
use crate::monitor::Monitor;
use crate::store::{self, Entry, StoreReader};

/// Captions whose entries are read at once: their sequences are in memory together (2 MiB each for 512 tokens of T5-XXL in bf16).
const CHUNK: usize = 64;

/// What a caption's vector is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VectorKind {
    /// The encoder's pooled vector.
    Pooled,
    /// The mean over the rows of the caption's tokens, specials included, pads left out.
    MeanOfTokens,
}

impl VectorKind {
    /// In words.
    pub fn title(self) -> &'static str {
        match self {
            Self::Pooled => "pooled vector",
            Self::MeanOfTokens => "mean of the true tokens",
        }
    }
}

/// A caption that has a vector.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct VectorOf {
    /// Its place among the captions that were asked for.
    pub caption: usize,
    /// The vector's Euclidean length.
    pub norm: f32,
    /// Its tokens before the pads.
    pub token_count: u32,
    /// Whether the encoder cut it.
    pub truncated: bool,
}

/// A caption that has no vector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Without {
    /// Its place among the captions that were asked for.
    pub caption: usize,
    /// Why, as a clause; `None`: the store has no entry of it.
    pub damage: Option<String>,
}

/// The vectors of captions under one encoder.
pub struct CaptionVectors {
    /// The encoder.
    pub encoder: EncoderId,
    /// What the vectors are; `None` where there is none.
    pub kind: Option<VectorKind>,
    /// One for each row of `rows`, in the order that the captions were asked for.
    pub of: Vec<VectorOf>,
    /// The captions that are not among them.
    pub without: Vec<Without>,
    /// [captions with a vector, width].
    pub rows: Rows,
}

/// Reads the vectors of `captions` under one encoder. Damage is told, and ends nothing.
///
/// # Errors
/// If the store cannot be read, or there is no place for the vectors.
pub fn caption_vectors(
    reader: &StoreReader,
    encoder: &EncoderId,
    captions: &[&str],
    monitor: &dyn Monitor,
) -> Result<CaptionVectors, Error> {
    let mut vectors = CaptionVectors {
        encoder: encoder.clone(),
        kind: None,
        of: Vec::new(),
        without: Vec::new(),
        rows: Rows::default(),
    };
    let stage = format!("vectors, {}", encoder.slot);
    monitor.start(&stage, Some(captions.len() as u64));
    for (chunk, some) in captions.chunks(CHUNK).enumerate() {
        let read: Vec<_> = some
            .par_iter()
            .map(|caption| read(reader, encoder, caption))
            .collect::<Result<_, Error>>()?;
        for (place, found) in read.into_iter().enumerate() {
            vectors.add(chunk * CHUNK + place, found)?;
        }
        monitor.advance(some.len() as u64);
    }
    monitor.finish();
    Ok(vectors)
}

/// What was found of a caption: a vector with what the index says of it, nothing, or damage.
enum Found {
    Vector(VectorKind, Vec<f32>, VectorOf),
    Nothing,
    Damage(String),
}

fn read(reader: &StoreReader, encoder: &EncoderId, caption: &str) -> Result<Found, Error> {
    let entry = match reader.get(&encoder.spec, &encoder.entry(caption)) {
        Ok(Some(entry)) => entry,
        Ok(None) => return Ok(Found::Nothing),
        Err(e @ store::Error::Damaged { .. }) => return Ok(Found::Damage(e.to_string())),
        Err(e) => return Err(cache::Error::from(e).into()),
    };
    Ok(match vector(&entry) {
        Ok((kind, values)) => {
            let squares: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
            if !squares.is_finite() {
                let id = entry.entry.short();
                return Ok(Found::Damage(format!(
                    "entry {id}: it has numbers that are not finite"
                )));
            }
            let of = VectorOf {
                caption: 0,
                norm: squares.sqrt() as f32,
                token_count: entry.token_count,
                truncated: entry.truncated,
            };
            Found::Vector(kind, values, of)
        }
        Err(why) => Found::Damage(format!("entry {}: {why}", entry.entry.short())),
    })
}

/// The pooled vector of an entry, or the mean of its true tokens; an error where it holds neither.
fn vector(entry: &Entry) -> Result<(VectorKind, Vec<f32>), String> {
    if let Some(pooled) = entry.part("pooled") {
        let values = tensors::to_f32(pooled.dtype, pooled.bytes()).map_err(|e| e.to_string())?;
        return Ok((VectorKind::Pooled, values));
    }
    let hidden = entry
        .part("hidden")
        .ok_or("expected a part `pooled` or `hidden`, found neither")?;
    let [tokens, width] = hidden.shape[..] else {
        let shape = &hidden.shape;
        return Err(format!(
            "part hidden: expected [tokens, width], found {shape:?}"
        ));
    };
    let count = (entry.token_count as usize).min(tokens);
    if count == 0 || width == 0 {
        return Err("part hidden: expected at least one token, found none".to_owned());
    }
    let bytes = hidden
        .bytes()
        .get(..count * width * hidden.dtype.size_bytes());
    let values = tensors::to_f32(hidden.dtype, bytes.unwrap_or_default());
    let values = values.map_err(|e| e.to_string())?;
    let mut sums = vec![0f64; width];
    for row in values.chunks_exact(width) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += f64::from(*value);
        }
    }
    let mean = sums.iter().map(|sum| (sum / count as f64) as f32).collect();
    Ok((VectorKind::MeanOfTokens, mean))
}

impl CaptionVectors {
    fn add(&mut self, caption: usize, found: Found) -> Result<(), Error> {
        let damage = match found {
            Found::Nothing => None,
            Found::Damage(why) => Some(why),
            Found::Vector(kind, values, of) => {
                // One spec makes vectors of one kind and width, so others are nothing that it made.
                let first = self.kind.get_or_insert(kind);
                let fits = *first == kind && self.rows.fits(values.len());
                if fits {
                    self.rows.push(&values)?;
                    self.of.push(VectorOf { caption, ..of });
                    return Ok(());
                }
                let (wanted, width) = (first.title(), self.rows.width());
                Some(format!(
                    "expected a {wanted} of {width} numbers as of other captions, found a {} of {}",
                    kind.title(),
                    values.len()
                ))
            }
        };
        self.without.push(Without { caption, damage });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{CaptionVectors, VectorKind, caption_vectors};
    use crate::cache::EncoderId;
    use crate::digest::{Fingerprint, canonical_json};
    use crate::monitor::Silent;
    use crate::recipe::spec::caption_entry;
    use crate::store::{NewEntry, Store, TensorBytes};

    fn encoder(name: &str) -> (EncoderId, Vec<u8>) {
        let json = canonical_json(&json!({ "test": name }));
        let spec = Fingerprint::of_canonical(&json);
        let slot = name.to_owned();
        (EncoderId { slot, spec }, json)
    }

    type Parts<'a> = Vec<(&'a str, TensorBytes)>;

    fn put(store: &Store, encoder: &(EncoderId, Vec<u8>), entries: Vec<(&str, u32, Parts<'_>)>) {
        let spec = encoder.0.spec;
        let mut writer = store.writer().expect("a writer");
        writer.put_spec(&spec, &encoder.1).expect("put");
        for (caption, token_count, parts) in entries {
            let new = NewEntry {
                entry: caption_entry(&spec, caption),
                spec,
                source: caption.to_owned(),
                tokens: vec![1; 4],
                token_count,
                truncated: token_count == 4,
                parts: parts.into_iter().map(|(n, t)| (n.to_owned(), t)).collect(),
                key: json!({ "caption": caption, "spec": spec, "version": 1 }),
            };
            writer.put(new).expect("put");
        }
        writer.finish().expect("finished");
    }

    fn vectors(store: &Store, encoder: &EncoderId, captions: &[&str]) -> CaptionVectors {
        let reader = store.reader_of(&[encoder.spec]).expect("a reader");
        caption_vectors(&reader, encoder, captions, &Silent).expect("read")
    }

    #[test]
    fn a_vector_is_the_pooled_one_or_the_mean_of_the_true_tokens() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_or_create(folder.path()).expect("a store");
        let (clip, t5) = (encoder("clip_l"), encoder("t5"));
        let hidden = || TensorBytes::from_f32(&[4, 2], &[1.0, 0.0, 3.0, 4.0, 9.0, 9.0, 9.0, 9.0]);
        let pooled = TensorBytes::from_f32(&[2], &[3.0, 4.0]);
        put(
            &store,
            &clip,
            vec![("a", 2, vec![("hidden", hidden()), ("pooled", pooled)])],
        );
        put(
            &store,
            &t5,
            vec![
                ("a", 2, vec![("hidden", hidden())]),
                ("b", 4, vec![("hidden", hidden())]),
            ],
        );
        let mut found = vectors(&store, &clip.0, &["b", "a"]);
        assert_eq!(found.kind, Some(VectorKind::Pooled));
        assert_eq!(found.rows.read(0, 9).expect("rows"), [3.0, 4.0]);
        assert_eq!((found.of[0].caption, found.of[0].norm), (1, 5.0));
        assert_eq!(
            (found.without[0].caption, &found.without[0].damage),
            (0, &None)
        );
        let mut found = vectors(&store, &t5.0, &["a", "b"]);
        assert_eq!(found.kind, Some(VectorKind::MeanOfTokens));
        assert_eq!(found.rows.read(0, 9).expect("rows"), [2.0, 2.0, 5.5, 5.5]);
        assert_eq!(
            found.of.iter().map(|v| v.truncated).collect::<Vec<_>>(),
            [false, true]
        );
    }

    #[test]
    fn a_damaged_entry_and_one_that_does_not_fit_are_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_or_create(folder.path()).expect("a store");
        let clip = encoder("clip_l");
        let pooled = |width| vec![("pooled", TensorBytes::from_f32(&[width], &vec![1.0; width]))];
        put(
            &store,
            &clip,
            vec![
                ("a", 2, pooled(3)),
                ("b", 2, pooled(5)),
                ("e", 2, pooled(3)),
            ],
        );
        let odd = vec![("other", TensorBytes::from_f32(&[1], &[1.0]))];
        put(&store, &clip, vec![("c", 2, odd)]);
        put(&store, &clip, vec![("d", 2, pooled(3))]);
        // The pack of the last one: what is in it is no longer what was written.
        let reader = store.reader_of(&[clip.0.spec]).expect("a reader");
        let entry = caption_entry(&clip.0.spec, "d");
        let record = reader
            .record(&clip.0.spec, &entry)
            .expect("read")
            .expect("there");
        let name = record.pack.to_string();
        let pack = folder
            .path()
            .join(format!("packs/{}/{name}.safetensors", &name[..2]));
        let mut bytes = std::fs::read(&pack).expect("a pack");
        *bytes.last_mut().expect("bytes") ^= 1;
        std::fs::write(&pack, bytes).expect("written");
        let found = vectors(&store, &clip.0, &["a", "b", "c", "d", "e"]);
        assert_eq!(
            found.of.iter().map(|v| v.caption).collect::<Vec<_>>(),
            [0, 4]
        );
        let told: Vec<&str> = found
            .without
            .iter()
            .filter_map(|w| w.damage.as_deref())
            .collect();
        assert!(
            told[0].contains("of 3 numbers") && told[0].contains("of 5"),
            "{told:?}"
        );
        assert!(
            told[1].contains("found neither") && told[2].contains("digest"),
            "{told:?}"
        );
    }
}
