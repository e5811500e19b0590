//! TensorBoard event files: TFRecord frames around `tensorflow.Event` messages.
//!
//! Sources of the two formats: `tensorflow/core/lib/io/record_writer.cc` (frame: length, masked CRC-32C of
//! the length, data, masked CRC-32C of the data) and `tensorflow/core/util/event.proto`,
//! `tensorflow/core/framework/summary.proto` (field numbers). Only scalars and PNG pictures are written.

use std::io::{self, Write};

/// Writes events to `out`, each flushed whole.
pub struct EventWriter<W: Write> {
    out: W,
}

impl<W: Write> EventWriter<W> {
    /// Starts an event file. `wall_seconds` is the time now, since 1970.
    ///
    /// # Errors
    /// If `out` cannot be written.
    pub fn create(out: W, wall_seconds: f64) -> io::Result<Self> {
        let mut writer = Self { out };
        let mut event = Message::default();
        // The first event of every file names the format's version (`EventsWriter` in tensorflow).
        event.double(1, wall_seconds).bytes(3, b"brain.Event:2");
        writer.frame(&event.0)?;
        Ok(writer)
    }

    /// A scalar named `tag` at `step`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn scalar(
        &mut self,
        wall_seconds: f64,
        step: u64,
        tag: &str,
        value: f32,
    ) -> io::Result<()> {
        // `Summary.Value`: 1 tag, 2 simple_value.
        let mut content = Message::default();
        content.bytes(1, tag.as_bytes()).float(2, value);
        self.summary(wall_seconds, step, &content)
    }

    /// A PNG picture named `tag` at `step`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn picture(
        &mut self,
        wall_seconds: f64,
        step: u64,
        tag: &str,
        size: (u32, u32),
        png: &[u8],
    ) -> io::Result<()> {
        // `Summary.Image`: 1 height, 2 width, 3 colorspace, 4 encoded_image_string.
        let mut image = Message::default();
        image
            .varint(1, size.1.into())
            .varint(2, size.0.into())
            // 3 colours: RGB.
            .varint(3, 3)
            .bytes(4, png);
        let mut content = Message::default();
        content.bytes(1, tag.as_bytes()).bytes(4, &image.0);
        self.summary(wall_seconds, step, &content)
    }

    fn summary(&mut self, wall_seconds: f64, step: u64, content: &Message) -> io::Result<()> {
        // `Event`: 1 wall_time, 2 step, 5 summary.
        let mut summary = Message::default();
        summary.bytes(1, &content.0);
        let mut event = Message::default();
        event
            .double(1, wall_seconds)
            .varint(2, step)
            .bytes(5, &summary.0);
        self.frame(&event.0)
    }

    fn frame(&mut self, data: &[u8]) -> io::Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut frame = Vec::with_capacity(data.len() + 16);
        frame.extend_from_slice(&length);
        frame.extend_from_slice(&masked_crc(&length).to_le_bytes());
        frame.extend_from_slice(data);
        frame.extend_from_slice(&masked_crc(data).to_le_bytes());
        // One write: TensorBoard reads along while the training runs.
        self.out.write_all(&frame)?;
        self.out.flush()
    }
}

fn masked_crc(bytes: &[u8]) -> u32 {
    // Masked, since a CRC of data that hold CRCs is a weak check (`kMaskDelta` in tensorflow's `crc32c.h`).
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

/// A protocol-buffers message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, field: u64, value: u64) -> &mut Self {
        // The lower three bits of a key are the wire type: 0 a varint, 1 eight bytes, 2 a length and bytes, 5 four bytes.
        self.raw_varint(field << 3);
        self.raw_varint(value);
        self
    }

    fn double(&mut self, field: u64, value: f64) -> &mut Self {
        self.raw_varint(field << 3 | 1);
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn bytes(&mut self, field: u64, value: &[u8]) -> &mut Self {
        self.raw_varint(field << 3 | 2);
        self.raw_varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    fn float(&mut self, field: u64, value: f32) -> &mut Self {
        self.raw_varint(field << 3 | 5);
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::EventWriter;

    /// The bytes that `tensorboard.summary.writer` 2.21.0 wrote for the same two events.
    #[test]
    fn frames_are_those_of_tensorboard() {
        let mut bytes = Vec::new();
        let mut writer = EventWriter::create(&mut bytes, 1.5).expect("memory");
        writer.scalar(2.5, 300, "loss", 0.25).expect("memory");
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, TENSORBOARD);
    }

    const TENSORBOARD: &str = "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c1b\
        000000000000001a0d9e1309000000000000044010ac022a0d0a0b0a046c6f7373150000803e205d3896";
}
