//! Tables for other programs: a Parquet file outside a store, written some rows at a time and put in place whole.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{BinaryBuilder, Float32Builder, ListBuilder, StringBuilder};
use arrow_array::{
    Array as _, ArrayRef, BooleanArray, Float32Array, RecordBatch, StringArray, StructArray,
    UInt32Array,
};
use arrow_schema::{DataType, Field, Fields, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use super::disk::{self, Disk as _, Local};
use super::outside::parts;
use super::{Error, TOOL, create_root, file_target, temporary};

/// What a column holds; any value may be missing, as null.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// A text.
    Text,
    /// Texts; a row may have none.
    Texts,
    /// True or false.
    Flag,
    /// A whole number.
    Count,
    /// A number.
    Number,
    /// A list of numbers.
    Vector,
    /// A picture: a struct of `bytes`, the picture's file, and `path`, its name, as the `Image` of Hugging Face's datasets.
    Picture,
}

/// The values of a column for some rows.
pub enum Column {
    /// Of [`ColumnType::Text`].
    Text(Vec<Option<String>>),
    /// Of [`ColumnType::Texts`].
    Texts(Vec<Vec<String>>),
    /// Of [`ColumnType::Flag`].
    Flag(Vec<Option<bool>>),
    /// Of [`ColumnType::Count`].
    Count(Vec<Option<u32>>),
    /// Of [`ColumnType::Number`].
    Number(Vec<Option<f32>>),
    /// Of [`ColumnType::Vector`].
    Vector(Vec<Option<Vec<f32>>>),
    /// Of [`ColumnType::Picture`]: name and bytes.
    Picture(Vec<Option<(String, Vec<u8>)>>),
}

/// A table that is being written. Nothing is seen under its name before [`Self::finish`].
pub struct TableWriter {
    folder: PathBuf,
    target: PathBuf,
    temporary: PathBuf,
    schema: Arc<Schema>,
    /// None once finished.
    writer: Option<ArrowWriter<File>>,
}

impl TableWriter {
    /// A table of these columns, to be at `path`; `facts` are kept in the file as metadata.
    ///
    /// # Errors
    /// If the folder cannot be made or written.
    pub fn create(
        path: &Path,
        columns: &[(String, ColumnType)],
        facts: &[(&str, String)],
    ) -> Result<Self, Error> {
        let target = file_target(path)?;
        let folder = parts(&target).0.to_owned();
        create_root(&Local, &folder)?;
        let fields = columns.iter().map(|(name, kind)| {
            let nullable = *kind != ColumnType::Texts;
            Field::new(name, data_type(*kind), nullable)
        });
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let (temporary, file) = temporary::write(&Local, &folder, &[])?;
        let opened = file.and_then(|file| {
            let facts = facts.iter();
            let facts = facts.map(|(key, fact)| KeyValue::new((*key).to_owned(), fact.clone()));
            let properties = WriterProperties::builder()
                .set_compression(Compression::ZSTD(ZstdLevel::default()))
                .set_created_by(TOOL.to_owned())
                .set_key_value_metadata(Some(facts.collect()))
                .build();
            ArrowWriter::try_new(file, schema.clone(), Some(properties))
                .map_err(|e| unwritable(&target, &e))
        });
        let opened = opened.inspect_err(|_| {
            // The first error is the one to tell.
            let _ = Local.remove(&temporary);
        });
        Ok(Self {
            writer: Some(opened?),
            folder,
            target,
            temporary,
            schema,
        })
    }

    /// Adds rows, as a row group of their own: their columns in the table's order, all equally long.
    ///
    /// # Errors
    /// If the columns are not the table's, or the disk is full.
    pub fn write(&mut self, columns: Vec<Column>) -> Result<(), Error> {
        let arrays = columns.into_iter().map(array).collect();
        let batch = RecordBatch::try_new(self.schema.clone(), arrays);
        let batch = batch.map_err(|e| unwritable(&self.target, &e.into()))?;
        let Some(writer) = &mut self.writer else {
            return Ok(());
        };
        let written = writer.write(&batch).and_then(|()| writer.flush());
        written.map_err(|e| unwritable(&self.target, &e))
    }

    /// Puts the table in place; one that is there is replaced.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(mut self) -> Result<(), Error> {
        let Some(writer) = self.writer.take() else {
            return Ok(());
        };
        let file = writer.into_inner();
        let file = file.map_err(|e| unwritable(&self.target, &e));
        let name = parts(&self.target).1;
        disk::place(&Local, (file, &self.temporary), (&self.folder, name))
    }
}

impl Drop for TableWriter {
    fn drop(&mut self) {
        if self.writer.is_some() {
            // Given up half way. Where it stays, a later cleaning up collects it.
            let _ = disk::remove(&Local, &self.temporary);
        }
    }
}

fn unwritable(path: &Path, why: &ParquetError) -> Error {
    let path = path.display();
    Error::Refused(format!("cannot write {path}: {why}"))
}

fn data_type(kind: ColumnType) -> DataType {
    let list = |item| DataType::List(Arc::new(Field::new("element", item, false)));
    match kind {
        ColumnType::Text => DataType::Utf8,
        ColumnType::Texts => list(DataType::Utf8),
        ColumnType::Flag => DataType::Boolean,
        ColumnType::Count => DataType::UInt32,
        ColumnType::Number => DataType::Float32,
        ColumnType::Vector => list(DataType::Float32),
        ColumnType::Picture => DataType::Struct(picture_fields()),
    }
}

fn picture_fields() -> Fields {
    Fields::from(vec![
        Field::new("bytes", DataType::Binary, true),
        Field::new("path", DataType::Utf8, true),
    ])
}

fn array(column: Column) -> ArrayRef {
    match column {
        Column::Text(values) => Arc::new(StringArray::from(values)),
        Column::Flag(values) => Arc::new(BooleanArray::from(values)),
        Column::Count(values) => Arc::new(UInt32Array::from(values)),
        Column::Number(values) => Arc::new(Float32Array::from(values)),
        Column::Texts(rows) => {
            let item = Field::new("element", DataType::Utf8, false);
            let mut lists = ListBuilder::new(StringBuilder::new()).with_field(item);
            for row in rows {
                for text in row {
                    lists.values().append_value(text);
                }
                lists.append(true);
            }
            Arc::new(lists.finish())
        }
        Column::Vector(rows) => {
            let item = Field::new("element", DataType::Float32, false);
            let mut lists = ListBuilder::new(Float32Builder::new()).with_field(item);
            for row in rows {
                if let Some(row) = &row {
                    lists.values().append_slice(row);
                }
                lists.append(row.is_some());
            }
            Arc::new(lists.finish())
        }
        Column::Picture(rows) => pictures(&rows),
    }
}

fn pictures(rows: &[Option<(String, Vec<u8>)>]) -> ArrayRef {
    let mut bytes = BinaryBuilder::new();
    for row in rows {
        bytes.append_option(row.as_ref().map(|(_, bytes)| bytes));
    }
    let names = rows.iter().map(|row| row.as_ref().map(|(name, _)| name));
    let bytes = bytes.finish();
    let there = bytes.nulls().cloned();
    let columns: Vec<ArrayRef> = vec![Arc::new(bytes), Arc::new(names.collect::<StringArray>())];
    Arc::new(StructArray::new(picture_fields(), columns, there))
}

#[cfg(test)]
mod tests {
    use super::{Column, ColumnType, TableWriter};

    fn names(folder: &std::path::Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).expect("a folder");
        let name = |e: std::io::Result<std::fs::DirEntry>| e.expect("an entry").file_name();
        entries
            .map(|e| name(e).to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn a_table_is_there_whole_or_not_at_all() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("new/table.parquet");
        let columns = [("a".to_owned(), ColumnType::Count)];
        let create = || TableWriter::create(&path, &columns, &[]).expect("created");
        let mut table = create();
        table
            .write(vec![Column::Count(vec![Some(1), None])])
            .expect("written");
        drop(table);
        assert_eq!(names(&folder.path().join("new")), Vec::<String>::new());
        let mut table = create();
        let wrong = table
            .write(vec![Column::Flag(vec![None])])
            .expect_err("a wrong type");
        assert!(wrong.to_string().contains("table.parquet"), "{wrong}");
        table
            .write(vec![Column::Count(vec![Some(1), None])])
            .expect("written");
        table.finish().expect("finished");
        assert_eq!(names(&folder.path().join("new")), ["table.parquet"]);
    }
}
