//! What index parts say, decoded: one row a payload, the rows of an entry side by side. It, `columns`, `ranged` and `table` are the
//! only files that know arrow and parquet.
//!
//! A part is named by the digest of its bytes and is checked against it before it is decoded, so that chance
//! damage never reaches the decoder. What a hostile file could still do is bounded here.

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Float32Type, UInt32Type, UInt64Type};
use arrow_array::{RecordBatch, StringArray, UInt64Array};
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::file::reader::ChunkReader;

pub(super) use super::columns::encode;
use super::columns::{KEY_SPEC, KEY_VERSION, schema};
use super::layout;
use super::presence::{EntryGrouper, EntryRows, Span, payload_end};
use super::record::{PartRecord, Record};
use super::tensor::Summary;
use crate::digest::{Digest, Fingerprint};

/// The most rows of a part: four million.
pub(super) const ROWS_LIMIT: usize = 1 << 22;
/// The largest part, in bytes of the file.
pub(super) const PART_LIMIT_BYTES: u64 = 1 << 30;
/// Rows decoded at once. With the longest captions allowed these take half a gigabyte, so not more.
const BATCH_ROWS: usize = 2048;

/// The columns that tell whether an entry is there.
pub(super) const PRESENCE: &[&str] = &["entry", "part", "parts", "pack", "offset", "length"];
/// The columns that it takes to read a payload.
const PAYLOADS: &[&str] = &[
    "part",
    "token_count",
    "truncated",
    "pack",
    "offset",
    "length",
    "digest",
    "dtype",
    "shape",
];

/// What is done with each batch of rows.
pub(super) type Take<'a> = &'a mut dyn FnMut(&RecordBatch) -> Result<(), String>;

/// Some rows of an index part, or all.
pub(super) trait Rows {
    /// Gives `each` the columns `wanted` of the rows, in order, batch by batch.
    fn read(&self, wanted: &[&str], each: Take<'_>) -> Result<(), String>;
}

/// All rows of the part that these bytes are.
pub(super) struct Whole<'a> {
    pub(super) bytes: Bytes,
    pub(super) spec: &'a Fingerprint,
}

impl Rows for Whole<'_> {
    fn read(&self, wanted: &[&str], each: Take<'_>) -> Result<(), String> {
        // The digest vouches for chance damage only: whoever writes a file can name it by its digest.
        super::contain(|| {
            let metadata = ArrowReaderMetadata::load(&self.bytes, ArrowReaderOptions::default())
                .map_err(|e| e.to_string())?;
            check_file(&metadata, self.spec)?;
            let bytes = self.bytes.clone();
            read(
                ParquetRecordBatchReaderBuilder::new_with_metadata(bytes, metadata),
                wanted,
                each,
            )
        })
    }
}

/// A row as far as it takes to read its payload; `part.tensor` and `part.summary` are empty.
pub(super) struct PayloadRow {
    pub(super) token_count: u32,
    pub(super) truncated: bool,
    pub(super) part: PartRecord,
}

/// Which entries a part holds. An entry whose rows are not all there is an error of the part.
pub(super) fn presence(rows: &dyn Rows) -> Result<Vec<EntryRows>, String> {
    let mut groups = EntryGrouper::default();
    rows.read(PRESENCE, &mut |batch| {
        let (entries, parts) = (text(batch, "entry"), text(batch, "part"));
        let counts = batch["parts"].as_primitive::<UInt32Type>();
        let packs = text(batch, "pack");
        let (offsets, lengths) = (u64s(batch, "offset"), u64s(batch, "length"));
        // Rows of one pack stand together: its digest is parsed once for all of them.
        let mut last: Option<(&str, Digest)> = None;
        for i in 0..batch.num_rows() {
            let pack = match last {
                Some((text, pack)) if text == packs.value(i) => pack,
                _ => packs
                    .value(i)
                    .parse()
                    .map_err(|e| format!("column pack: {e}"))?,
            };
            last = Some((packs.value(i), pack));
            let bytes = lengths.value(i);
            let end = payload_end(offsets.value(i), bytes)?;
            let span = Span { pack, end, bytes };
            groups.add(entries.value(i), parts.value(i), counts.value(i), span)?;
        }
        Ok(())
    })?;
    groups.finish()
}

/// What it takes to read each payload of a part, in the order of its rows.
pub(super) fn payloads(rows: &dyn Rows) -> Result<Vec<PayloadRow>, String> {
    let mut found = Vec::new();
    rows.read(PAYLOADS, &mut |batch| {
        let token_counts = batch["token_count"].as_primitive::<UInt32Type>();
        let truncated = batch["truncated"].as_boolean();
        for i in 0..batch.num_rows() {
            found.push(PayloadRow {
                token_count: token_counts.value(i),
                truncated: truncated.value(i),
                part: part_record(batch, i, String::new(), Summary::default())?,
            });
        }
        Ok(())
    })?;
    Ok(found)
}

/// All that a part says of its entries, in the order of its rows.
pub(super) fn records(rows: &dyn Rows) -> Result<Vec<Record>, String> {
    let mut found: Vec<Record> = Vec::new();
    each_record(rows, &mut |_, record| {
        found.push(record);
        Ok(())
    })?;
    Ok(found)
}

/// Gives `take` all that a part says of each of its entries, with the first of its rows.
pub(super) fn each_record(
    rows: &dyn Rows,
    take: &mut dyn FnMut(u32, Record) -> Result<(), String>,
) -> Result<(), String> {
    // Which rows belong together is checked there, once for all; here it is relied on.
    let groups = presence(rows)?;
    let mut groups = groups.into_iter();
    let mut begun: Option<(EntryRows, Record)> = None;
    let names: Vec<String> = schema().fields().iter().map(|f| f.name().clone()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    rows.read(&names, &mut |batch| {
        let stat = |name: &str, i| batch[name].as_primitive::<Float32Type>().value(i);
        for i in 0..batch.num_rows() {
            let (group, mut record) = match begun.take() {
                Some(begun) => begun,
                None => {
                    let group = groups.next().ok_or("more rows than before")?;
                    let record = entry_record(batch, i, &group)?;
                    (group, record)
                }
            };
            let summary = Summary {
                mean: stat("mean", i),
                std: stat("std", i),
                min: stat("min", i),
                max: stat("max", i),
                rms: stat("rms", i),
                non_finite: u64s(batch, "non_finite").value(i),
            };
            let part = part_record(batch, i, text(batch, "tensor").value(i).to_owned(), summary)?;
            record.parts.push(part);
            match record.parts.len() < group.rows as usize {
                true => begun = Some((group, record)),
                false => take(group.row, record)?,
            }
        }
        Ok(())
    })
}

fn entry_record(batch: &RecordBatch, i: usize, group: &EntryRows) -> Result<Record, String> {
    let tokens = batch["tokens"].as_list::<i32>().value(i);
    Ok(Record {
        entry: group.entry,
        source: text(batch, "source").value(i).to_owned(),
        tokens: tokens.as_primitive::<UInt32Type>().values().to_vec(),
        token_count: batch["token_count"].as_primitive::<UInt32Type>().value(i),
        truncated: batch["truncated"].as_boolean().value(i),
        tool: text(batch, "tool").value(i).to_owned(),
        pack: group.pack,
        parts: Vec::new(),
    })
}

fn part_record(
    batch: &RecordBatch,
    i: usize,
    tensor: String,
    summary: Summary,
) -> Result<PartRecord, String> {
    let shape = batch["shape"].as_list::<i32>().value(i);
    let shape: Result<Vec<usize>, _> = shape
        .as_primitive::<UInt64Type>()
        .values()
        .iter()
        .map(|&d| usize::try_from(d))
        .collect();
    payload_end(
        u64s(batch, "offset").value(i),
        u64s(batch, "length").value(i),
    )?;
    Ok(PartRecord {
        part: text(batch, "part").value(i).to_owned(),
        tensor,
        offset: u64s(batch, "offset").value(i),
        length: u64s(batch, "length").value(i),
        digest: text(batch, "digest")
            .value(i)
            .parse()
            .map_err(|e| format!("column digest: {e}"))?,
        dtype: text(batch, "dtype")
            .value(i)
            .parse()
            .map_err(|e| format!("column dtype: {e}"))?,
        shape: shape.map_err(|e| format!("column shape: {e}"))?,
        summary,
    })
}

fn text<'a>(batch: &'a RecordBatch, name: &str) -> &'a StringArray {
    batch[name].as_string::<i32>()
}

fn u64s<'a>(batch: &'a RecordBatch, name: &str) -> &'a UInt64Array {
    batch[name].as_primitive::<UInt64Type>()
}

/// Decodes the columns `wanted` of what `builder` reads.
pub(super) fn read<T: ChunkReader + 'static>(
    builder: ParquetRecordBatchReaderBuilder<T>,
    wanted: &[&str],
    each: Take<'_>,
) -> Result<(), String> {
    let mask = ProjectionMask::columns(builder.parquet_schema(), wanted.iter().copied());
    let reader = builder
        .with_projection(mask)
        .with_batch_size(BATCH_ROWS)
        .build()
        .map_err(|e| e.to_string())?;
    for batch in reader {
        each(&batch.map_err(|e| e.to_string())?)?;
    }
    Ok(())
}

/// Makes sure that a file is a part of `spec` and that its columns are what they must be.
pub(super) fn check_file(builder: &ArrowReaderMetadata, spec: &Fingerprint) -> Result<(), String> {
    let file = builder.metadata().file_metadata();
    let field = |key: &str| {
        file.key_value_metadata()
            .and_then(|all| all.iter().find(|kv| kv.key == key))
            .and_then(|kv| kv.value.as_deref())
            .ok_or_else(|| format!("metadata `{key}`: expected, not found"))
    };
    // No number is no version that we know: 0 is refused below.
    let version = field(KEY_VERSION)?.parse().unwrap_or(0);
    if !(1..=layout::FORMAT_VERSION).contains(&version) {
        return Err(format!(
            "metadata `{KEY_VERSION}`: expected up to {}, found {version}",
            layout::FORMAT_VERSION
        ));
    }
    if field(KEY_SPEC)? != spec.to_string() {
        return Err(format!(
            "metadata `{KEY_SPEC}`: expected {spec}, found {}",
            field(KEY_SPEC)?
        ));
    }
    let rows: i64 = builder
        .metadata()
        .row_groups()
        .iter()
        // The row groups and the file each say how many rows there are; a hostile file can make them differ.
        .map(|g| g.num_rows().max(0))
        .fold(0, i64::saturating_add);
    if rows > ROWS_LIMIT as i64 || rows != file.num_rows() {
        return Err(format!(
            "expected at most {ROWS_LIMIT} rows, as many as the header says, found {rows}"
        ));
    }
    // Columns that we do not know are allowed, ours must be as they are: the code below takes columns by name and type.
    for field in schema().fields() {
        match builder.schema().field_with_name(field.name()) {
            Ok(found) if found.data_type() == field.data_type() && !found.is_nullable() => {}
            Ok(found) => {
                return Err(format!(
                    "column {}: expected {}, found {}",
                    field.name(),
                    field.data_type(),
                    found.data_type()
                ));
            }
            Err(_) => return Err(format!("column {}: expected, not found", field.name())),
        }
    }
    Ok(())
}
