use std::sync::Arc;

use arrow_array::types::Int8Type;
use arrow_array::{DictionaryArray, Int64Array, StringArray};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::Field;

use super::*;
use crate::rng::{Rng, Stream};

/// A stream of two batches with a column of ids, one of a few words, and captions.
fn stream() -> Vec<u8> {
    let words: DictionaryArray<Int8Type> = ["x", "y", "x"].into_iter().collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(Int64Array::from(vec![3, 1, 2]))),
        ("word", Arc::new(words)),
        (
            CAPTION,
            Arc::new(StringArray::from(vec![Some("a cat"), None, Some("")])),
        ),
    ];
    let batch =
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true)));
    let batch = batch.expect("a batch");
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).expect("a writer");
    writer.write(&batch).expect("written");
    writer.write(&batch.slice(0, 1)).expect("written");
    writer.into_inner().expect("finished")
}

fn read(bytes: &[u8]) -> Result<Vec<Vec<Option<String>>>, String> {
    let mut batches = Batches::begin(bytes)?;
    let mut found = Vec::new();
    while let Some(batch) = batches.next()? {
        let owned = captions(&batch)?.into_iter().map(|c| c.map(str::to_owned));
        found.push(owned.collect());
    }
    Ok(found)
}

#[test]
fn batches_come_one_by_one_and_the_mark_of_the_end_is_not_needed() {
    let bytes = stream();
    let cat = || Some("a cat".to_owned());
    let expected = vec![vec![cat(), None, Some(String::new())], vec![cat()]];
    assert_eq!(read(&bytes), Ok(expected.clone()));
    assert_eq!(read(&bytes[..bytes.len() - 8]), Ok(expected.clone()));
    // Behind the end nothing is read: who sends may keep the pipe open.
    assert_eq!(read(&[&bytes[..], b"more"].concat()), Ok(expected));
    let said = read(&bytes[..bytes.len() - 9]).expect_err("cut");
    assert!(said.contains("within a message"), "{said}");
}

#[test]
fn what_is_no_stream_of_captions_is_told_in_one_line() {
    let huge = [&[0xff; 4][..], &u32::MAX.to_le_bytes(), &[7; 40]].concat();
    let mut wrong: Vec<(Vec<u8>, &str)> = vec![
        (Vec::new(), "ends before its schema"),
        (b"ARROW1\0\0".to_vec(), "file format"),
        (b"caption\na cat\n".to_vec(), "found `capt`"),
        (b"\x1b[31m".to_vec(), "found `\\x1b[31`"),
        (vec![0xff; 4], "within a message"),
        (huge, "at most 16777216"),
        (
            [&[0xff; 4][..], &64u32.to_le_bytes(), &[0xa5; 64]].concat(),
            "no Arrow stream",
        ),
    ];
    for (field, said) in [
        (
            Field::new("text", DataType::Utf8, true),
            "no column `caption`; there are: text",
        ),
        (
            Field::new(CAPTION, DataType::Int32, true),
            "expected strings, found Int32",
        ),
    ] {
        let schema = Schema::new(vec![field]);
        let writer = StreamWriter::try_new(Vec::new(), &schema).expect("a writer");
        let bytes = writer.into_inner();
        wrong.push((bytes.expect("a schema"), said));
    }
    for (bytes, expected) in wrong {
        let said = read(&bytes).expect_err(expected);
        assert!(said.contains(expected) && !said.contains('\n'), "{said}");
    }
}

/// One row as pyarrow writes it with `compression="zstd"`.
const COMPRESSED: &str = "/////3AAAAAQAAAAAAAKAAwABgAFAAgACgAAAAABBAAMAAAACAAIAAAABAAIAAAABAAAAAEAAAAUAAAAEAAUAAgABgAHAAwAAAAQABAAAAAAAAEFEAAAABwA\
    AAAEAAAAAAAAAAcAAABjYXB0aW9uAAQABAAEAAAA/////7AAAAAUAAAAAAAAAAwAGAAGAAUACAAMAAwAAAAAAwQAHAAAADgAAAAAAAAAAAAAAAwAHgAQAAQA\
    CAAMAAwAAABgAAAAJAAAABgAAAABAAAAAAAAAAAAAAAAAAYACAAHAAYAAAAAAAABAwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABkAAAAAAAAAIAAAAAAA\
    AAAWAAAAAAAAAAAAAAABAAAAAQAAAAAAAAAAAAAAAAAAAAgAAAAAAAAAKLUv/SAIQQAAAAAAAAUAAAAAAAAAAAAABQAAAAAAAAAotS/9IAUpAABhIGNhdAAA\
    /////wAAAAA=";

#[test]
fn a_compressed_stream_is_called_so() {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(COMPRESSED);
    let said = read(&bytes.expect("base64")).expect_err("compressed");
    assert_eq!(
        said,
        "the stream's batches are compressed with zstd: write them uncompressed, as `compression=None` of pyarrow's IpcWriteOptions does"
    );
}

/// Whatever a byte says, there is an error or there are captions; a length that is believed would end this test for lack of memory.
#[test]
fn damage_is_an_error_or_other_captions() {
    let (sound, mut refused) = (stream(), 0);
    for round in 0..3000 {
        let mut rng = Rng::new(5, Stream::Shuffle, round, 0);
        let mut bytes = sound.clone();
        for _ in 0..=rng.below(3) {
            let at = rng.below(bytes.len() as u64) as usize;
            bytes[at] = match rng.below(3) {
                0 => 0xff,
                1 => bytes[at] ^ (1 << rng.below(8)),
                _ => rng.below(256) as u8,
            };
        }
        if rng.below(4) == 0 {
            bytes.truncate(rng.below(bytes.len() as u64) as usize);
        }
        if let Err(said) = read(&bytes) {
            refused += 1;
            assert!(!said.contains('\n'), "{said}");
        }
    }
    assert!(refused > 300, "{refused}");
}
