//! What goes out: the columns that came, `error`, and `entries`.
//!
//! ```text
//! error    string, null where all went well
//! entries  list of struct: slot, spec, entry (strings), token_count (uint32), truncated (bool), and
//!   parts  list of struct: part, dtype (strings), shape (list of uint64), digest (string), mean, std, min, max, rms (float32), and
//!          data (large_binary, little endian, row major) where the tensor is not in the store
//! ```
//!
//! Names and values are those of the index in `schemas/FORMAT.md`.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, BooleanArray, Float32Array, LargeBinaryArray, ListArray, RecordBatch, StringArray,
    StructArray, UInt32Array, UInt64Array,
};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef};

use super::Row;
use super::compact::compact;
use super::encoders::{Made, MadePart};

const ERROR: &str = "error";
const ENTRIES: &str = "entries";

/// The columns of the output for those of the input.
pub(super) fn schema(input: &Schema, with_data: bool) -> Result<SchemaRef, String> {
    for name in [ERROR, ENTRIES] {
        if input.column_with_name(name).is_some() {
            return Err(format!(
                "a column `{name}`, which is one of those that are added: give it another name"
            ));
        }
    }
    let added = [
        Arc::new(Field::new(ERROR, DataType::Utf8, true)),
        Arc::new(list_of(ENTRIES, DataType::Struct(entry_fields(with_data)))),
    ];
    let fields: Fields = input.fields().iter().cloned().chain(added).collect();
    Ok(Schema::new_with_metadata(fields, input.metadata().clone()).into())
}

/// Rows of the input with what became of them.
pub(super) fn batch(
    schema: &SchemaRef,
    input: &RecordBatch,
    rows: &[Row],
    with_data: bool,
) -> Result<RecordBatch, String> {
    let errors = rows.iter().map(|row| row.as_ref().err());
    let errors: StringArray = errors.collect();
    let entries: Vec<&Made> = rows.iter().flatten().flat_map(|made| made.iter()).collect();
    let lengths = rows
        .iter()
        .map(|row| row.as_ref().map_or(0, |made| made.len()));
    let entries = list(entry_array(&entries, with_data), lengths)?;
    // Rows of a batch that came, which their columns may have the whole of behind them.
    let columns = input.columns().iter().map(compact);
    let mut columns: Vec<ArrayRef> = columns
        .collect::<Result<_, _>>()
        .map_err(|e| e.to_string())?;
    columns.extend([Arc::new(errors) as ArrayRef, entries]);
    RecordBatch::try_new(schema.clone(), columns).map_err(|e| e.to_string())
}

fn field(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, false)
}

fn list_of(name: &str, item: DataType) -> Field {
    field(name, DataType::List(Arc::new(field("item", item))))
}

fn entry_fields(with_data: bool) -> Fields {
    Fields::from(vec![
        field("slot", DataType::Utf8),
        field("spec", DataType::Utf8),
        field("entry", DataType::Utf8),
        field("token_count", DataType::UInt32),
        field("truncated", DataType::Boolean),
        list_of("parts", DataType::Struct(part_fields(with_data))),
    ])
}

fn part_fields(with_data: bool) -> Fields {
    let mut fields = vec![
        field("part", DataType::Utf8),
        field("dtype", DataType::Utf8),
        list_of("shape", DataType::UInt64),
        field("digest", DataType::Utf8),
    ];
    let numbers = ["mean", "std", "min", "max", "rms"];
    fields.extend(numbers.map(|name| field(name, DataType::Float32)));
    if with_data {
        fields.push(field("data", DataType::LargeBinary));
    }
    Fields::from(fields)
}

fn entry_array(entries: &[&Made], with_data: bool) -> Result<StructArray, String> {
    let parts: Vec<&MadePart> = entries.iter().flat_map(|made| &made.parts).collect();
    let lengths = entries.iter().map(|made| made.parts.len());
    let columns: Vec<ArrayRef> = vec![
        texts(entries.iter().map(|made| made.slot.clone())),
        texts(entries.iter().map(|made| made.spec.to_string())),
        texts(entries.iter().map(|made| made.entry.to_string())),
        Arc::new(UInt32Array::from_iter_values(
            entries.iter().map(|made| made.token_count),
        )),
        Arc::new(BooleanArray::from_iter(
            entries.iter().map(|made| Some(made.truncated)),
        )),
        list(part_array(&parts, with_data), lengths)?,
    ];
    structs(entry_fields(with_data), columns, entries.len())
}

fn part_array(parts: &[&MadePart], with_data: bool) -> Result<StructArray, String> {
    let shape = parts
        .iter()
        .flat_map(|part| part.shape.iter().map(|&n| n as u64));
    let shape = UInt64Array::from_iter_values(shape);
    let mut columns = vec![
        texts(parts.iter().map(|part| part.part.clone())),
        texts(parts.iter().map(|part| part.dtype.to_string())),
        list(Ok(shape), parts.iter().map(|part| part.shape.len()))?,
        texts(parts.iter().map(|part| part.digest.to_string())),
    ];
    let numbers = |of: fn(&MadePart) -> f32| {
        let values = Float32Array::from_iter_values(parts.iter().map(|part| of(part)));
        Arc::new(values) as ArrayRef
    };
    columns.extend([
        numbers(|part| part.summary.mean),
        numbers(|part| part.summary.std),
        numbers(|part| part.summary.min),
        numbers(|part| part.summary.max),
        numbers(|part| part.summary.rms),
    ]);
    if with_data {
        let data = parts.iter().map(|part| part.bytes.as_slice());
        columns.push(Arc::new(LargeBinaryArray::from_iter_values(data)));
    }
    structs(part_fields(with_data), columns, parts.len())
}

fn texts(values: impl Iterator<Item = String>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn structs(fields: Fields, columns: Vec<ArrayRef>, length: usize) -> Result<StructArray, String> {
    StructArray::try_new_with_length(fields, columns, None, length).map_err(|e| e.to_string())
}

fn list<A: arrow_array::Array + 'static>(
    items: Result<A, String>,
    lengths: impl Iterator<Item = usize>,
) -> Result<ArrayRef, String> {
    let items = items?;
    let item = Arc::new(field("item", items.data_type().clone()));
    let offsets = OffsetBuffer::from_lengths(lengths);
    let list = ListArray::try_new(item, offsets, Arc::new(items), None);
    Ok(Arc::new(list.map_err(|e| e.to_string())?))
}
