//! The Parquet codec of index parts: one row a payload, the rows of an entry side by side. It and `table`
//! are the only files that know arrow and parquet.
//!
//! A part is named by the digest of its bytes and is checked against it before it is decoded, so that chance
//! damage never reaches the decoder. What a hostile file could still do is bounded here.

use std::sync::Arc;

use arrow_array::builder::{ListBuilder, UInt32Builder, UInt64Builder};
use arrow_array::cast::AsArray as _;
use arrow_array::types::{Float32Type, UInt32Type, UInt64Type};
use arrow_array::{
    ArrayRef, BooleanArray, Float32Array, ListArray, RecordBatch, StringArray, UInt32Array,
    UInt64Array,
};
use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::presence::{EntryGrouper, EntryRows, payload_end};
use super::record::{PartRecord, Record};
use super::tensor::Summary;
use super::{Error, TOOL, layout};
use crate::digest::{Digest, Fingerprint};

/// The most rows of a part: four million.
pub(super) const ROWS_LIMIT: usize = 1 << 22;
/// The largest part, in bytes of the file.
pub(super) const PART_LIMIT_BYTES: u64 = 1 << 30;
/// Rows decoded at once. With the longest captions allowed these take half a gigabyte, so not more.
const BATCH_ROWS: usize = 2048;

const KEY_VERSION: &str = "plumb.version";
const KEY_SPEC: &str = "plumb.spec";

/// The columns that tell whether an entry is there.
const PRESENCE: &[&str] = &["entry", "part", "parts", "pack", "offset", "length"];
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

fn schema() -> Schema {
    let list = |name: &str, item| Field::new_list(name, Field::new("element", item, false), false);
    let column = |name: &str, kind| Field::new(name, kind, false);
    Schema::new(vec![
        column("entry", DataType::Utf8),
        column("part", DataType::Utf8),
        column("parts", DataType::UInt32),
        column("source", DataType::Utf8),
        list("tokens", DataType::UInt32),
        column("token_count", DataType::UInt32),
        column("truncated", DataType::Boolean),
        column("pack", DataType::Utf8),
        column("tensor", DataType::Utf8),
        column("offset", DataType::UInt64),
        column("length", DataType::UInt64),
        column("digest", DataType::Utf8),
        column("dtype", DataType::Utf8),
        list("shape", DataType::UInt64),
        column("mean", DataType::Float32),
        column("std", DataType::Float32),
        column("min", DataType::Float32),
        column("max", DataType::Float32),
        column("rms", DataType::Float32),
        column("non_finite", DataType::UInt64),
        column("tool", DataType::Utf8),
    ])
}

/// The bytes of an index part of `spec` with the rows of `records`.
pub(super) fn encode(spec: &Fingerprint, records: &[Record]) -> Result<Vec<u8>, Error> {
    try_encode(spec, records)
        .map_err(|e| Error::Refused(format!("cannot write an index part of spec {spec}: {e}")))
}

fn try_encode(
    spec: &Fingerprint,
    records: &[Record],
) -> Result<Vec<u8>, parquet::errors::ParquetError> {
    let schema = Arc::new(schema());
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .set_created_by(TOOL.to_owned())
        // Readers take whole columns: statistics of ranges would serve nobody.
        .set_statistics_enabled(EnabledStatistics::None)
        .set_key_value_metadata(Some(vec![
            KeyValue::new(KEY_VERSION.to_owned(), layout::FORMAT_VERSION.to_string()),
            KeyValue::new(KEY_SPEC.to_owned(), spec.to_string()),
        ]));
    // Values that never repeat gain nothing by a dictionary.
    for unique in ["digest", "tensor"] {
        properties = properties.set_column_dictionary_enabled(ColumnPath::from(unique), false);
    }
    let mut writer = ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties.build()))?;
    // In batches, so that the columns of all records are not in memory twice.
    for some in records.chunks(BATCH_ROWS) {
        writer.write(&RecordBatch::try_new(schema.clone(), columns(some))?)?;
    }
    writer.into_inner()
}

/// The columns of `records`, in the schema's order.
fn columns(records: &[Record]) -> Vec<ArrayRef> {
    let rows = || {
        records
            .iter()
            .flat_map(|r| r.parts.iter().map(move |p| (r, p)))
    };
    let strings = |f: &dyn Fn(&Record, &PartRecord) -> String| -> ArrayRef {
        Arc::new(rows().map(|(r, p)| Some(f(r, p))).collect::<StringArray>())
    };
    let u32s = |f: &dyn Fn(&Record) -> u32| -> ArrayRef {
        Arc::new(
            rows()
                .map(|(r, _)| f(r))
                .collect::<Vec<_>>()
                .into_iter()
                .collect::<UInt32Array>(),
        )
    };
    let u64s = |f: &dyn Fn(&PartRecord) -> u64| -> ArrayRef {
        Arc::new(UInt64Array::from(
            rows().map(|(_, p)| f(p)).collect::<Vec<_>>(),
        ))
    };
    let floats = |f: &dyn Fn(&Summary) -> f32| -> ArrayRef {
        Arc::new(Float32Array::from(
            rows().map(|(_, p)| f(&p.summary)).collect::<Vec<_>>(),
        ))
    };
    vec![
        strings(&|r, _| r.entry.to_string()),
        strings(&|_, p| p.part.clone()),
        u32s(&|r| r.parts.len() as u32),
        strings(&|r, _| r.source.clone()),
        Arc::new(tokens(rows())),
        u32s(&|r| r.token_count),
        Arc::new(BooleanArray::from(
            rows().map(|(r, _)| r.truncated).collect::<Vec<_>>(),
        )),
        strings(&|r, _| r.pack.to_string()),
        strings(&|_, p| p.tensor.clone()),
        u64s(&|p| p.offset),
        u64s(&|p| p.length),
        strings(&|_, p| p.digest.to_string()),
        strings(&|_, p| p.dtype.to_string()),
        Arc::new(shapes(rows())),
        floats(&|s| s.mean),
        floats(&|s| s.std),
        floats(&|s| s.min),
        floats(&|s| s.max),
        floats(&|s| s.rms),
        u64s(&|p| p.summary.non_finite),
        strings(&|r, _| r.tool.clone()),
    ]
}

fn tokens<'a>(rows: impl Iterator<Item = (&'a Record, &'a PartRecord)>) -> ListArray {
    let mut lists = ListBuilder::new(UInt32Builder::new()).with_field(Field::new(
        "element",
        DataType::UInt32,
        false,
    ));
    for (record, _) in rows {
        lists.values().append_slice(&record.tokens);
        lists.append(true);
    }
    lists.finish()
}

fn shapes<'a>(rows: impl Iterator<Item = (&'a Record, &'a PartRecord)>) -> ListArray {
    let mut lists = ListBuilder::new(UInt64Builder::new()).with_field(Field::new(
        "element",
        DataType::UInt64,
        false,
    ));
    for (_, part) in rows {
        for &dimension in &part.shape {
            lists.values().append_value(dimension as u64);
        }
        lists.append(true);
    }
    lists.finish()
}

/// A row as far as it takes to read its payload; `part.tensor` and `part.summary` are empty.
pub(super) struct PayloadRow {
    pub(super) token_count: u32,
    pub(super) truncated: bool,
    pub(super) part: PartRecord,
}

/// Which entries a part holds. An entry whose rows are not all there is an error of the part.
pub(super) fn presence(bytes: Bytes, spec: &Fingerprint) -> Result<Vec<EntryRows>, String> {
    let mut groups = EntryGrouper::default();
    read(bytes, spec, PRESENCE, |batch| {
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
            let end = payload_end(offsets.value(i), lengths.value(i))?;
            groups.add(entries.value(i), parts.value(i), counts.value(i), pack, end)?;
        }
        Ok(())
    })?;
    groups.finish()
}

/// What it takes to read each payload of a part, in the order of its rows.
pub(super) fn payloads(bytes: Bytes, spec: &Fingerprint) -> Result<Vec<PayloadRow>, String> {
    let mut found = Vec::new();
    read(bytes, spec, PAYLOADS, |batch| {
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
pub(super) fn records(bytes: Bytes, spec: &Fingerprint) -> Result<Vec<Record>, String> {
    // Which rows belong together is checked there, once for all; here it is relied on.
    let groups = presence(bytes.clone(), spec)?;
    let mut groups = groups.into_iter();
    let mut found: Vec<Record> = Vec::new();
    let mut missing = 0u32;
    let names: Vec<String> = schema().fields().iter().map(|f| f.name().clone()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    read(bytes, spec, &names, |batch| {
        let stat = |name: &str, i| batch[name].as_primitive::<Float32Type>().value(i);
        for i in 0..batch.num_rows() {
            if missing == 0 {
                let group = groups.next().ok_or("more rows than before")?;
                missing = group.rows;
                found.push(entry_record(batch, i, &group)?);
            }
            missing -= 1;
            let summary = Summary {
                mean: stat("mean", i),
                std: stat("std", i),
                min: stat("min", i),
                max: stat("max", i),
                rms: stat("rms", i),
                non_finite: u64s(batch, "non_finite").value(i),
            };
            let part = part_record(batch, i, text(batch, "tensor").value(i).to_owned(), summary)?;
            if let Some(record) = found.last_mut() {
                record.parts.push(part);
            }
        }
        Ok(())
    })?;
    Ok(found)
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

/// Gives `each` the wanted columns of a part, batch by batch, when the part is one of `spec` and its columns
/// are what they must be.
fn read(
    bytes: Bytes,
    spec: &Fingerprint,
    wanted: &[&str],
    mut each: impl FnMut(&RecordBatch) -> Result<(), String>,
) -> Result<(), String> {
    // The digest vouches for chance damage only: whoever writes a file can name it by its digest.
    super::contain(|| {
        let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|e| e.to_string())?;
        check_file(&builder, spec)?;
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
    })
}

fn check_file(
    builder: &ParquetRecordBatchReaderBuilder<Bytes>,
    spec: &Fingerprint,
) -> Result<(), String> {
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
