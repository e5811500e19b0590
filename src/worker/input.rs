//! Reading an Arrow IPC stream that may be anything: lengths have bounds, no more memory is taken than bytes have come, and what
//! arrow's decoder panics at is an error.

use std::collections::HashMap;
use std::io::Read;

use arrow_array::cast::AsArray as _;
use arrow_array::{ArrayRef, RecordBatch};
use arrow_buffer::Buffer;
use arrow_ipc::convert::try_fb_to_schema;
use arrow_ipc::reader::{read_dictionary, read_record_batch};
use arrow_ipc::{CompressionType, Message, MessageHeader, root_as_message};
use arrow_schema::{ArrowError, DataType, Schema, SchemaRef};

use crate::dataset::guarded;
use crate::shown;

/// The column that is read.
pub(super) const CAPTION: &str = "caption";
/// Before the length of a message's description.
const CONTINUATION: [u8; 4] = [0xff; 4];
/// The most bytes of a message's description: names and types of columns.
const MAX_DESCRIPTION: u32 = 16 << 20;
/// The most bytes of a batch.
const MAX_BATCH: u64 = 1 << 30;

/// The batches of a stream.
pub(super) struct Batches<R> {
    source: R,
    schema: SchemaRef,
    dictionaries: HashMap<i64, ArrayRef>,
}

impl<R: Read> Batches<R> {
    /// Reads the schema.
    pub(super) fn begin(mut source: R) -> Result<Self, String> {
        let Some((description, _)) = read_message(&mut source)? else {
            return Err("the stream ends before its schema".to_owned());
        };
        let schema = contained(|| {
            let message = parse(&description)?;
            let schema = message.header_as_schema().ok_or_else(|| {
                ArrowError::IpcError("the first message is not the schema".to_owned())
            })?;
            try_fb_to_schema(schema)
        })?;
        check_caption(&schema)?;
        Ok(Self {
            source,
            schema: schema.into(),
            dictionaries: HashMap::new(),
        })
    }

    pub(super) fn schema(&self) -> &Schema {
        &self.schema
    }

    /// The next batch; None at the end of the stream.
    pub(super) fn next(&mut self) -> Result<Option<RecordBatch>, String> {
        loop {
            let Some((description, body)) = read_message(&mut self.source)? else {
                return Ok(None);
            };
            check_compression(&description)?;
            if let Some(batch) = contained(|| self.decode(&description, &body))? {
                return Ok(Some(batch));
            }
        }
    }

    fn decode(
        &mut self,
        description: &[u8],
        body: &Buffer,
    ) -> Result<Option<RecordBatch>, ArrowError> {
        let message = parse(description)?;
        let version = message.version();
        if let Some(batch) = message.header_as_record_batch() {
            let (schema, known) = (self.schema.clone(), &self.dictionaries);
            return read_record_batch(body, batch, schema, known, None, &version).map(Some);
        }
        match message.header_as_dictionary_batch() {
            Some(batch) => {
                read_dictionary(body, batch, &self.schema, &mut self.dictionaries, &version)?;
            }
            None if message.header_type() == MessageHeader::NONE => {}
            None => {
                let found = message.header_type();
                return Err(ArrowError::IpcError(format!(
                    "expected a batch, found {found:?}"
                )));
            }
        }
        Ok(None)
    }
}

fn parse(description: &[u8]) -> Result<Message<'_>, ArrowError> {
    root_as_message(description).map_err(|e| ArrowError::IpcError(e.to_string()))
}

/// Refuses a batch that is compressed: it may grow to any size.
fn check_compression(description: &[u8]) -> Result<(), String> {
    let codec = contained(|| {
        let message = parse(description)?;
        let of_dictionary = message.header_as_dictionary_batch();
        let batch = of_dictionary
            .and_then(|batch| batch.data())
            .or_else(|| message.header_as_record_batch());
        Ok(batch
            .and_then(|batch| batch.compression())
            .map(|compression| compression.codec()))
    })?;
    let name = match codec {
        None => return Ok(()),
        Some(CompressionType::ZSTD) => "zstd",
        Some(CompressionType::LZ4_FRAME) => "lz4",
        Some(_) => "a codec that is not known",
    };
    Err(format!(
        "the stream's batches are compressed with {name}: write them uncompressed, as `compression=None` of pyarrow's IpcWriteOptions does"
    ))
}

/// Runs arrow's code on bytes of others; what it says is shown in one line.
fn contained<T>(work: impl FnOnce() -> Result<T, ArrowError>) -> Result<T, String> {
    let done = match guarded(work) {
        Ok(done) => done.map_err(|e| e.to_string()),
        Err(panic) => Err(panic),
    };
    done.map_err(|why| format!("no Arrow stream: {}", shown::text(&why)))
}

/// A message's description and its body; None at the end of the stream.
fn read_message(source: &mut impl Read) -> Result<Option<(Vec<u8>, Buffer)>, String> {
    let mut word = [0; 4];
    // A stream may end without the mark of its end.
    if read_word(source, &mut word)? == 0 {
        return Ok(None);
    }
    if word != CONTINUATION {
        let found = word.escape_ascii();
        let hint = match &word {
            b"ARRO" => "; this is Arrow's file format, the stream format has no `ARROW1` before it",
            _ => "",
        };
        return Err(format!(
            "expected an Arrow IPC stream, found `{found}`{hint}"
        ));
    }
    if read_word(source, &mut word)? < 4 {
        return Err(ENDS.to_owned());
    }
    let length = u32::from_le_bytes(word);
    if length == 0 {
        return Ok(None);
    }
    if length > MAX_DESCRIPTION {
        return Err(format!(
            "no Arrow stream: a message's description of {length} bytes, expected at most {MAX_DESCRIPTION}"
        ));
    }
    let description = read_bytes(source, u64::from(length))?;
    let length = contained(|| Ok(parse(&description)?.bodyLength()))?;
    let length = u64::try_from(length).map_err(|_| format!("a batch of {length} bytes"))?;
    if length > MAX_BATCH {
        return Err(format!(
            "a batch of {length} bytes, expected at most {MAX_BATCH}: send fewer rows in each"
        ));
    }
    let body = Buffer::from_vec(read_bytes(source, length)?);
    Ok(Some((description, body)))
}

const ENDS: &str = "the stream ends within a message";

/// How many bytes there were; fewer than four are an error but none.
fn read_word(source: &mut impl Read, word: &mut [u8; 4]) -> Result<usize, String> {
    let mut found = Vec::with_capacity(word.len());
    source
        .take(4)
        .read_to_end(&mut found)
        .map_err(|e| e.to_string())?;
    match found.len() {
        0 => {}
        4 => word.copy_from_slice(&found),
        _ => return Err(ENDS.to_owned()),
    }
    Ok(found.len())
}

/// Grows with what comes, not with what is promised.
fn read_bytes(source: &mut impl Read, length: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = source.take(length).read_to_end(&mut bytes);
    match read.map_err(|e| e.to_string())? as u64 == length {
        true => Ok(bytes),
        false => Err(ENDS.to_owned()),
    }
}

fn check_caption(schema: &Schema) -> Result<(), String> {
    let named: Vec<_> = (schema.fields().iter())
        .filter(|f| f.name() == CAPTION)
        .collect();
    match named.as_slice() {
        [field] => match field.data_type() {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Ok(()),
            other => Err(format!(
                "column `{CAPTION}`: expected strings, found {}",
                shown::text(&other.to_string())
            )),
        },
        [] => {
            let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
            let names = shown::text(&names.join(", ")).to_string();
            Err(format!("no column `{CAPTION}`; there are: {names}"))
        }
        _ => Err(format!("{} columns `{CAPTION}`, expected one", named.len())),
    }
}

/// The captions of a batch; None where one is null.
pub(super) fn captions(batch: &RecordBatch) -> Result<Vec<Option<&str>>, String> {
    let lacking = || format!("a batch without strings in its column `{CAPTION}`");
    let column = batch.column_by_name(CAPTION).ok_or_else(lacking)?;
    Ok(match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().iter().collect(),
        DataType::LargeUtf8 => column.as_string::<i64>().iter().collect(),
        DataType::Utf8View => column.as_string_view().iter().collect(),
        _ => return Err(lacking()),
    })
}

#[cfg(test)]
#[path = "input_tests.rs"]
mod tests;
