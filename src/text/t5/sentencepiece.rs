//! The parts of a SentencePiece model file that a T5 tokenizer needs.
//!
//! The file is a protocol-buffer message, `ModelProto` of SentencePiece's `sentencepiece_model.proto`; read
//! here field by field, and every length distrusted.

/// `ModelProto`, as far as it matters.
#[derive(Debug, Default)]
pub(super) struct SentencePieceModel {
    /// Field 1: text and score of each piece, in the order of their ids.
    pub(super) pieces: Vec<(String, f64)>,
    /// The index of the piece that stands for unknown text.
    pub(super) unknown: Option<usize>,
    /// Field 3, 2: the precompiled character map; empty where there is none.
    pub(super) charsmap: Vec<u8>,
}

/// `SentencePiece.Type.UNKNOWN`.
const UNKNOWN: u64 = 2;
/// `TrainerSpec.ModelType.UNIGRAM`.
const UNIGRAM: u64 = 1;

/// Reads a model file.
pub(super) fn parse(bytes: &[u8]) -> Result<SentencePieceModel, String> {
    let mut model = SentencePieceModel::default();
    let mut fields = MessageFields(bytes);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, FieldValue::Bytes(piece)) => read_piece(piece, &mut model)?,
            (2, FieldValue::Bytes(spec)) => check_trainer(spec)?,
            (3, FieldValue::Bytes(spec)) => {
                let mut fields = MessageFields(spec);
                while let Some((number, value)) = fields.next()? {
                    if let (2, FieldValue::Bytes(charsmap)) = (number, value) {
                        model.charsmap = charsmap.to_vec();
                    }
                }
            }
            _ => {}
        }
    }
    Ok(model)
}

fn read_piece(bytes: &[u8], model: &mut SentencePieceModel) -> Result<(), String> {
    let (mut text, mut score) = (String::new(), 0.0);
    let mut fields = MessageFields(bytes);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, FieldValue::Bytes(bytes)) => {
                text = std::str::from_utf8(bytes)
                    .map_err(|_| format!("piece {} is not UTF-8", model.pieces.len()))?
                    .to_owned();
            }
            // Widened to the f64 that `tokenizers` and a tokenizer.json have, so that both files give one digest.
            (2, FieldValue::Fixed32(bits)) => score = f64::from(f32::from_bits(bits)),
            (3, FieldValue::Varint(UNKNOWN)) => model.unknown = Some(model.pieces.len()),
            _ => {}
        }
    }
    model.pieces.push((text, score));
    Ok(())
}

fn check_trainer(bytes: &[u8]) -> Result<(), String> {
    let mut fields = MessageFields(bytes);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            // `TrainerSpec.model_type`.
            (3, FieldValue::Varint(kind)) if kind != UNIGRAM => {
                return Err(format!(
                    "SentencePiece model type {kind}, expected unigram (1)"
                ));
            }
            // `TrainerSpec.byte_fallback`.
            (35, FieldValue::Varint(1)) => return Err("byte fallback is not part of T5".to_owned()),
            _ => {}
        }
    }
    Ok(())
}

/// The wire types that the format has; groups are long deprecated and refused.
enum FieldValue<'b> {
    Varint(u64),
    Fixed32(u32),
    Fixed64,
    Bytes(&'b [u8]),
}

/// The fields of one message, in file order.
struct MessageFields<'b>(&'b [u8]);

impl<'b> MessageFields<'b> {
    fn next(&mut self) -> Result<Option<(u64, FieldValue<'b>)>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => FieldValue::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                FieldValue::Fixed64
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Self::cut_off())?;
                FieldValue::Bytes(self.take(length)?)
            }
            5 => match self.take(4)? {
                &[a, b, c, d] => FieldValue::Fixed32(u32::from_le_bytes([a, b, c, d])),
                _ => return Err(Self::cut_off()),
            },
            wire => return Err(format!("wire type {wire} in a protocol-buffer message")),
        };
        Ok(Some((tag >> 3, value)))
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut number = 0;
        // Ten bytes at most: without a bound a damaged file would shift past 64 bits.
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err("a number of more than 64 bits in a protocol-buffer message".to_owned())
    }

    fn take(&mut self, length: usize) -> Result<&'b [u8], String> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(Self::cut_off)?;
        self.0 = rest;
        Ok(taken)
    }

    fn cut_off() -> String {
        "a protocol-buffer message is cut off".to_owned()
    }
}
