//! Captions that come as an Arrow IPC stream, encoded batch after batch: what engines that spread work over machines (Ray, Daft, Spark)
//! start as a process and talk to.
//!
//! In: a column `caption` of strings, and any others. Out: the same rows in the same order with all columns, and two more:
//!
//! - `error`: why the row could not be encoded, null where it was. Such a row has no entries.
//! - `entries`: what each encoder of the recipe made of the caption, as `output` describes it: with tensors, or where they go into the
//!   store without.
//!
//! A batch is read when all of the one before is written, so that who reads slowly is waited for and memory stays bounded.

mod compact;
mod encoders;
mod input;
mod output;

use std::io::{Read, Write};

use arrow_array::RecordBatch;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::ArrowError;
use serde::Serialize;

use encoders::{Encoders, Made};
use input::Batches;

use crate::base_model::BaseModel;
use crate::encode::{self, EncodeOptions, MAX_CAPTION_BYTES, RESIDENT_CHUNK};
use crate::experiment::Experiment;
use crate::monitor::{Monitor, Stop};
use crate::nn::weights::DigestMemo;
use crate::store::Store;

/// Rows that are encoded before any of them is written, where tensors go out: a batch of them lies in memory.
const ROWS: usize = RESIDENT_CHUNK;
/// The same where tensors go into the store, which is the cheaper the more are committed together.
const STORED_ROWS: usize = 4096;

/// Why a worker ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The base model, the store, or an encoder that cannot be loaded.
    #[error(transparent)]
    Encode(#[from] encode::Error),
    /// What came in is no stream of captions.
    #[error("standard input: {0}")]
    Input(String),
    /// What was made cannot be written.
    #[error("standard output: {0}")]
    Output(String),
}

/// What a worker did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WorkerReport {
    /// Rows that came and went.
    pub rows: u64,
    /// Of these, with an error in place of entries.
    pub failed: u64,
    /// Entries that were made; equal captions of a batch share one.
    pub encoded: u64,
    /// Entries asked for that the store had.
    pub present: u64,
}

/// Encodes the captions that come from `input`, until it or the work is to end. With `keep` tensors go into the Experiment's store, and are durable when
/// their rows are written; no run lists them.
///
/// # Errors
/// If `input` is no Arrow stream with captions, `output` cannot be written, or the base model or the store fails. A caption that cannot be
/// encoded is no error but a row.
pub fn run(
    experiment: &Experiment,
    keep: bool,
    options: &EncodeOptions,
    memo: &mut DigestMemo,
    (input, output): (impl Read, impl Write),
    monitor: &dyn Monitor,
) -> Result<WorkerReport, Error> {
    let store = match keep {
        false => None,
        true => {
            let path = experiment.store_path().map_err(base_failed)?;
            let store = Store::open_or_create_at(&path).map_err(encode::Error::from)?;
            Some(store.waiting(options.wait))
        }
    };
    let base = BaseModel::open(experiment, memo).map_err(encode::Error::from)?;
    for note in &base.notes {
        monitor.note(note);
    }
    let mut encoders = Encoders::new(&base, store, options, monitor);
    let report = serve(&mut encoders, (input, output), options.stop, monitor)?;
    encoders.finish()?;
    Ok(report)
}

fn base_failed(error: crate::experiment::Error) -> encode::Error {
    crate::base_model::Error::from(error).into()
}

fn serve(
    encoders: &mut Encoders<'_>,
    (input, output): (impl Read, impl Write),
    stop: Stop,
    monitor: &dyn Monitor,
) -> Result<WorkerReport, Error> {
    let mut batches = Batches::begin(input).map_err(Error::Input)?;
    let with_data = !encoders.keeps();
    let schema = output::schema(batches.schema(), with_data).map_err(Error::Input)?;
    let mut writer = StreamWriter::try_new(output, &schema).map_err(unwritten)?;
    // Who waits for the schema before it sends a batch gets it.
    writer.flush().map_err(unwritten)?;
    let mut report = WorkerReport::default();
    let most = if with_data { ROWS } else { STORED_ROWS };
    monitor.start("captions", None);
    // Before a batch is waited for: one that has come is answered.
    while stop().is_none()
        && let Some(batch) = batches.next().map_err(Error::Input)?
    {
        let mut start = 0;
        while start < batch.num_rows() {
            let rows = most.min(batch.num_rows() - start);
            let rows = batch.slice(start, rows);
            let made = encode_rows(encoders, &rows, &mut report)?;
            let out = output::batch(&schema, &rows, &made, with_data).map_err(Error::Output)?;
            drop(made);
            writer.write(&out).map_err(unwritten)?;
            start += rows.num_rows();
            monitor.advance(rows.num_rows() as u64);
        }
        writer.flush().map_err(unwritten)?;
    }
    writer.finish().map_err(unwritten)?;
    writer.flush().map_err(unwritten)?;
    monitor.finish();
    report.encoded = encoders.encoded;
    report.present = encoders.present;
    Ok(report)
}

/// What became of a row: its entries by the recipe's slots, or why there are none.
type Row = Result<std::sync::Arc<Vec<Made>>, String>;

/// Encodes the captions of some rows, each different one once.
fn encode_rows(
    encoders: &mut Encoders<'_>,
    rows: &RecordBatch,
    report: &mut WorkerReport,
) -> Result<Vec<Row>, Error> {
    let captions = input::captions(rows).map_err(Error::Input)?;
    let mut places = std::collections::HashMap::new();
    let mut different = Vec::new();
    for caption in captions.iter().flatten() {
        if caption.len() <= MAX_CAPTION_BYTES {
            places.entry(*caption).or_insert_with(|| {
                different.push(*caption);
                different.len() - 1
            });
        }
    }
    let made: Vec<Row> = (encoders.encode(&different)?.into_iter())
        .map(|made| made.map(std::sync::Arc::new))
        .collect();
    let row = |caption: &Option<&str>| match caption {
        None => Err("the caption is null; the empty caption is an empty string".to_owned()),
        Some(caption) => match places.get(caption) {
            Some(&place) => made[place].clone(),
            None => Err(format!(
                "the caption has {} bytes, expected at most {MAX_CAPTION_BYTES}",
                caption.len()
            )),
        },
    };
    let made: Vec<Row> = captions.iter().map(row).collect();
    report.rows += made.len() as u64;
    report.failed += made.iter().filter(|row| row.is_err()).count() as u64;
    Ok(made)
}

fn unwritten(error: ArrowError) -> Error {
    Error::Output(match error {
        ArrowError::IoError(_, cause) => cause.to_string(),
        other => other.to_string(),
    })
}
