//! Index parts as they are written: the columns, and the Parquet file that they go into some entries at a time.
//!
//! Each row group has whole entries only and says between which fingerprints they lie, so that whoever looks for some entries
//! reads those row groups alone that may have them.

use std::sync::Arc;

use arrow_array::builder::{ListBuilder, UInt32Builder, UInt64Builder};
use arrow_array::{
    ArrayRef, BooleanArray, Float32Array, ListArray, RecordBatch, StringArray, UInt32Array,
    UInt64Array,
};
use arrow_schema::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::record::{PartRecord, Record};
use super::tensor::Summary;
use super::{Error, TOOL, layout};
use crate::digest::Fingerprint;

pub(super) const KEY_VERSION: &str = "plumb.version";
pub(super) const KEY_SPEC: &str = "plumb.spec";
/// In parts whose entries are sorted: how many rows were sorted together and cut into this part and others.
pub(super) const KEY_SORTED: &str = "plumb.sorted_rows";

/// Entries of a row group. Looking up one entry decodes so many.
pub(super) const GROUP_ENTRIES: usize = 4096;

pub(super) fn schema() -> Schema {
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

/// The bytes of an index part of `spec` with the rows of `records`, in their order.
pub(super) fn encode(spec: &Fingerprint, records: &[Record]) -> Result<Vec<u8>, Error> {
    let mut part = PartBuilder::new(spec, None)?;
    for some in records.chunks(GROUP_ENTRIES) {
        part.push(some)?;
    }
    part.finish()
}

/// An index part that is being made, in memory.
pub(super) struct PartBuilder {
    spec: Fingerprint,
    schema: Arc<Schema>,
    writer: ArrowWriter<Vec<u8>>,
    rows: usize,
}

impl PartBuilder {
    /// `sorted` says of how many sorted rows this part will have some.
    pub(super) fn new(spec: &Fingerprint, sorted: Option<u64>) -> Result<Self, Error> {
        let schema = Arc::new(schema());
        let writer = properties(spec, sorted)
            .and_then(|known| ArrowWriter::try_new(Vec::new(), schema.clone(), Some(known)));
        Ok(Self {
            writer: writer.map_err(|e| unwritable(spec, &e))?,
            spec: *spec,
            schema,
            rows: 0,
        })
    }

    /// Adds entries, as a row group of their own: [`GROUP_ENTRIES`] of them, or the last ones.
    pub(super) fn push(&mut self, records: &[Record]) -> Result<(), Error> {
        let batch = RecordBatch::try_new(self.schema.clone(), columns(records));
        let written = batch.map_err(ParquetError::from).and_then(|batch| {
            self.rows += batch.num_rows();
            self.writer.write(&batch)?;
            self.writer.flush()
        });
        written.map_err(|e| unwritable(&self.spec, &e))
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// The bytes of the file.
    pub(super) fn finish(self) -> Result<Vec<u8>, Error> {
        let bytes = self.writer.into_inner();
        bytes.map_err(|e| unwritable(&self.spec, &e))
    }
}

fn unwritable(spec: &Fingerprint, e: &ParquetError) -> Error {
    Error::Refused(format!("cannot write an index part of spec {spec}: {e}"))
}

fn properties(spec: &Fingerprint, sorted: Option<u64>) -> Result<WriterProperties, ParquetError> {
    let mut facts = vec![
        KeyValue::new(KEY_VERSION.to_owned(), layout::FORMAT_VERSION.to_string()),
        KeyValue::new(KEY_SPEC.to_owned(), spec.to_string()),
    ];
    facts.extend(sorted.map(|rows| KeyValue::new(KEY_SORTED.to_owned(), rows.to_string())));
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .set_created_by(TOOL.to_owned())
        .set_statistics_enabled(EnabledStatistics::None)
        // By this column alone row groups are chosen; of pages nobody asks.
        .set_column_statistics_enabled(ColumnPath::from("entry"), EnabledStatistics::Chunk)
        .set_offset_index_disabled(true)
        .set_key_value_metadata(Some(facts));
    // Values that never repeat gain nothing by a dictionary.
    for unique in ["digest", "tensor"] {
        properties = properties.set_column_dictionary_enabled(ColumnPath::from(unique), false);
    }
    Ok(properties.build())
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
