//! The parts of a SentencePiece model file that a T5 tokenizer needs.
//!
//! The file is a protocol-buffer message, `ModelProto` of SentencePiece's `sentencepiece_model.proto`; read
//! here field by field, and every length distrusted.

/// `ModelProto`, as far as it matters.
#[derive(Debug, Default)]
pub(super) struct Model {
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
pub(super) fn parse(bytes: &[u8]) -> Result<Model, String> {
    let mut model = Model::default();
    let mut fields = Fields(bytes);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, Value::Bytes(piece)) => read_piece(piece, &mut model)?,
            (2, Value::Bytes(spec)) => check_trainer(spec)?,
            (3, Value::Bytes(spec)) => {
                let mut fields = Fields(spec);
                while let Some((number, value)) = fields.next()? {
                    if let (2, Value::Bytes(charsmap)) = (number, value) {
                        model.charsmap = charsmap.to_vec();
                    }
                }
            }
            _ => {}
        }
    }
    Ok(model)
}

fn read_piece(bytes: &[u8], model: &mut Model) -> Result<(), String> {
    let (mut text, mut score) = (String::new(), 0.0);
    let mut fields = Fields(bytes);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, Value::Bytes(bytes)) => {
                text = std::str::from_utf8(bytes)
                    .map_err(|_| format!("piece {} is not UTF-8", model.pieces.len()))?
                    .to_owned();
            }
            (2, Value::Fixed32(bits)) => score = f64::from(f32::from_bits(bits)),
            (3, Value::Varint(UNKNOWN)) => model.unknown = Some(model.pieces.len()),
            _ => {}
        }
    }
    model.pieces.push((text, score));
    Ok(())
}

fn check_trainer(bytes: &[u8]) -> Result<(), String> {
    let mut fields = Fields(bytes);
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (3, Value::Varint(kind)) if kind != UNIGRAM => {
                return Err(format!(
                    "SentencePiece model type {kind}, expected unigram (1)"
                ));
            }
            (35, Value::Varint(1)) => return Err("byte fallback is not part of T5".to_owned()),
            _ => {}
        }
    }
    Ok(())
}

enum Value<'b> {
    Varint(u64),
    Fixed32(u32),
    Fixed64,
    Bytes(&'b [u8]),
}

/// The fields of one message, in file order.
struct Fields<'b>(&'b [u8]);

impl<'b> Fields<'b> {
    fn next(&mut self) -> Result<Option<(u64, Value<'b>)>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Fixed64
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Self::cut_off())?;
                Value::Bytes(self.take(length)?)
            }
            5 => match self.take(4)? {
                &[a, b, c, d] => Value::Fixed32(u32::from_le_bytes([a, b, c, d])),
                _ => return Err(Self::cut_off()),
            },
            wire => return Err(format!("wire type {wire} in a protocol-buffer message")),
        };
        Ok(Some((tag >> 3, value)))
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut number = 0;
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
