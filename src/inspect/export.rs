//! Captions as a table, for programs that show or search more of them than a page can.

use std::path::Path;

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder as _};
use serde::Serialize;

use super::Error;
use super::captions::{Caption, Captions, Origin};
use super::vectors::{CaptionVectors, Plane, caption_vectors, plane};
use crate::cache;
use crate::dataset::{self, Item, Reference, Thumbnail, Viewed};
use crate::monitor::Monitor;
use crate::shown;
use crate::store::StoreReader;
use crate::store::table::{Column, ColumnType, TableWriter};

/// Rows that are in memory at once, with their thumbnails and vectors, and make a row group.
const GROUP_ROWS: usize = 1024;
/// The longer side of a thumbnail, in px.
const THUMBNAIL_PX: u32 = 128;
const THUMBNAIL_QUALITY: u8 = 80;

/// What an exported table has.
#[derive(Debug, Serialize)]
pub struct ExportReport {
    /// Captions: rows.
    pub captions: usize,
    /// One for each encoder.
    pub encoders: Vec<ExportedEncoder>,
    /// The names of the columns.
    pub columns: Vec<String>,
}

/// What a table has of one encoder.
#[derive(Debug, Serialize)]
pub struct ExportedEncoder {
    /// How the names of its columns begin.
    pub slot: String,
    /// Captions with a vector.
    pub vectors: usize,
    /// Captions that the store has no entry of.
    pub missing: usize,
    /// Captions whose entry is damaged.
    pub damaged: usize,
    /// The parts of the variance that the map's axes have.
    pub explained: [f64; 2],
}

/// One encoder's columns.
struct EncoderColumns {
    vectors: CaptionVectors,
    plane: Plane,
    /// For each caption, its row among the vectors.
    row_of: Vec<Option<usize>>,
}

/// Writes one row a caption to a Parquet file: `caption`, `origin`, `pictures` (paths), `thumbnail` (JPEG; only with `thumbnails`),
/// of pairs also `references` (paths, one for each picture, empty where it has none) and `reference_thumbnail`, `recipe`, and of each encoder `SLOT_x`, `SLOT_y` (its place in the plane of the first two principal components), `SLOT_norm`,
/// `SLOT_tokens`, `SLOT_truncated` and `SLOT_vector`. What the store lacks is null.
///
/// # Errors
/// If the store cannot be read or the file not be written.
pub fn export(
    captions: &Captions,
    reader: &StoreReader,
    recipe: Option<&str>,
    (file, thumbnails): (&Path, bool),
    monitor: &dyn Monitor,
) -> Result<ExportReport, Error> {
    let texts = captions.texts();
    let mut encoders = Vec::new();
    for encoder in &captions.encoders {
        let mut vectors = caption_vectors(reader, encoder, &texts, monitor)?;
        let mut row_of = vec![None; texts.len()];
        for (row, of) in vectors.of.iter().enumerate() {
            row_of[of.caption] = Some(row);
        }
        encoders.push(EncoderColumns {
            plane: plane(&mut vectors.rows)?,
            vectors,
            row_of,
        });
    }
    let columns = columns(captions, thumbnails);
    let facts = [("plumb.tool", crate::store::TOOL.to_owned())];
    let failed = |e| Error::from(cache::Error::from(e));
    let mut table = TableWriter::create(file, &columns, &facts).map_err(failed)?;
    monitor.start("writing", Some(texts.len() as u64));
    for start in (0..texts.len()).step_by(GROUP_ROWS) {
        let rows = start..(start + GROUP_ROWS).min(texts.len());
        let mut group = caption_columns(&captions.all[rows.clone()], captions, recipe);
        if thumbnails {
            let rows = &captions.all[rows.clone()];
            let of_picture = |c| captions.shown(c).0.map(Item::viewed);
            group.push(thumbnail_column(rows, &of_picture, monitor));
            if has_references(captions) {
                let of_reference = |c| captions.shown(c).1.map(Reference::viewed);
                group.push(thumbnail_column(rows, &of_reference, monitor));
            }
        }
        for encoder in &mut encoders {
            group.extend(encoder.columns(rows.clone())?);
        }
        table.write(group).map_err(failed)?;
        monitor.advance(rows.len() as u64);
    }
    table.finish().map_err(failed)?;
    monitor.finish();
    Ok(ExportReport {
        captions: texts.len(),
        encoders: encoders.iter().map(EncoderColumns::report).collect(),
        columns: columns.into_iter().map(|(name, _)| name).collect(),
    })
}

/// The table's columns: those of every caption, then each encoder's.
fn columns(captions: &Captions, thumbnails: bool) -> Vec<(String, ColumnType)> {
    let mut columns = vec![
        ("caption".to_owned(), ColumnType::Text),
        ("origin".to_owned(), ColumnType::Text),
        ("pictures".to_owned(), ColumnType::Texts),
    ];
    let has_references = has_references(captions);
    if has_references {
        columns.push(("references".to_owned(), ColumnType::Texts));
    }
    columns.push(("recipe".to_owned(), ColumnType::Text));
    if thumbnails {
        columns.push(("thumbnail".to_owned(), ColumnType::Picture));
    }
    if thumbnails && has_references {
        columns.push(("reference_thumbnail".to_owned(), ColumnType::Picture));
    }
    for encoder in &captions.encoders {
        let of = [
            ("x", ColumnType::Number),
            ("y", ColumnType::Number),
            ("norm", ColumnType::Number),
            ("tokens", ColumnType::Count),
            ("truncated", ColumnType::Flag),
            ("vector", ColumnType::Vector),
        ];
        let named = |(name, kind)| (format!("{}_{name}", encoder.slot), kind);
        columns.extend(of.map(named));
    }
    columns
}

fn caption_columns(rows: &[Caption], of: &Captions, recipe: Option<&str>) -> Vec<Column> {
    let origin = |caption: &Caption| match caption.origin {
        Origin::Picture => "picture",
        Origin::Prompt => "prompt",
        Origin::Store => "store",
    };
    let pictures = |caption: &Caption| {
        let items = caption.items.iter().filter_map(|&n| of.items.get(n));
        items
            .map(|item| item.picture.display().to_string())
            .collect()
    };
    let mut columns = vec![
        Column::Text(rows.iter().map(|c| Some(c.text.clone())).collect()),
        Column::Text(rows.iter().map(|c| Some(origin(c).to_owned())).collect()),
        Column::Texts(rows.iter().map(pictures).collect()),
    ];
    if has_references(of) {
        let references = rows.iter().map(|caption| references(caption, of));
        columns.push(Column::Texts(references.collect()));
    }
    columns.push(Column::Text(vec![recipe.map(str::to_owned); rows.len()]));
    columns
}

fn has_references(captions: &Captions) -> bool {
    let mut items = captions.items.iter();
    !captions.references.is_empty() || items.any(|item| item.reference.is_some())
}

/// That of each of a caption's pictures, or of a prompt.
fn references(caption: &Caption, of: &Captions) -> Vec<String> {
    let path = |reference: Option<&Reference>| {
        reference.map_or(String::new(), |r| r.picture.display().to_string())
    };
    let items = caption.items.iter().filter_map(|&n| of.items.get(n));
    let of_pictures = items.map(|item| path(item.reference.as_ref()));
    match (caption.items.is_empty(), of.shown(caption).1) {
        (true, Some(of_prompt)) => vec![path(Some(of_prompt))],
        _ => of_pictures.collect(),
    }
}

/// A picture of each caption, in small. One that no longer decodes is told, and is null.
fn thumbnail_column<'a>(
    rows: &'a [Caption],
    of_caption: &dyn Fn(&'a Caption) -> Option<Viewed<'a>>,
    monitor: &dyn Monitor,
) -> Column {
    let wanted: Vec<Viewed<'a>> = rows.iter().filter_map(of_caption).collect();
    let mut made = dataset::thumbnails(&wanted, THUMBNAIL_PX).into_iter();
    let picture = |caption| {
        let of = of_caption(caption)?;
        let made = made.next()?.map_err(|e| e.to_string());
        let bytes = made.and_then(|thumbnail| jpeg(&thumbnail, THUMBNAIL_QUALITY));
        let name = of.picture.file_name().unwrap_or_default();
        match bytes {
            Ok(bytes) => Some((name.to_string_lossy().into_owned(), bytes)),
            Err(why) => {
                let path = shown::path(of.picture);
                monitor.problem(&format!("{path}: no thumbnail: {why}"));
                None
            }
        }
    };
    Column::Picture(rows.iter().map(picture).collect())
}

/// A thumbnail as a JPEG file.
pub(super) fn jpeg(thumbnail: &Thumbnail, quality: u8) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let (width, height) = (thumbnail.size.width, thumbnail.size.height);
    JpegEncoder::new_with_quality(&mut bytes, quality)
        .write_image(&thumbnail.rgb, width, height, ExtendedColorType::Rgb8)
        .map_err(|e| e.to_string())?;
    Ok(bytes)
}

impl EncoderColumns {
    fn columns(&mut self, captions: std::ops::Range<usize>) -> Result<Vec<Column>, Error> {
        let rows = &self.row_of[captions];
        let (points, of) = (&self.plane.points, &self.vectors.of);
        let number = |f: &dyn Fn(usize) -> f32| Column::Number(each(rows, f));
        let mut columns = vec![
            number(&|row| points[row][0] as f32),
            number(&|row| points[row][1] as f32),
            number(&|row| of[row].norm),
            Column::Count(each(rows, |row| of[row].token_count)),
            Column::Flag(each(rows, |row| of[row].truncated)),
        ];
        let mut vectors = Vec::with_capacity(rows.len());
        for row in rows {
            let read = row.map(|row| self.vectors.rows.read(row, 1));
            vectors.push(read.transpose()?);
        }
        columns.push(Column::Vector(vectors));
        Ok(columns)
    }

    fn report(&self) -> ExportedEncoder {
        let damaged = self.vectors.without.iter().filter(|w| w.damage.is_some());
        let damaged = damaged.count();
        ExportedEncoder {
            slot: self.vectors.encoder.slot.clone(),
            vectors: self.vectors.of.len(),
            missing: self.vectors.without.len() - damaged,
            damaged,
            explained: self.plane.explained,
        }
    }
}

fn each<T>(rows: &[Option<usize>], value: impl Fn(usize) -> T) -> Vec<Option<T>> {
    rows.iter().map(|row| row.map(&value)).collect()
}
