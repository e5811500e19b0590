//! Single numbers out of a TIFF's first directory, which EXIF data is as well. Read as leniently as Pillow reads it: an entry
//! that cannot be read is passed over, and of two with one tag the first counts.

/// The first directory of a TIFF or of EXIF data.
pub(super) struct Ifd<'a> {
    bytes: &'a [u8],
    little: bool,
    /// 64-bit offsets.
    big: bool,
    /// Where its entries begin, and how many there are.
    entries: (usize, usize),
}

/// What a tag holds.
pub(super) struct Entry<'a> {
    /// The kind of its numbers, as TIFF counts kinds.
    pub kind: u16,
    /// How many there are.
    pub count: usize,
    data: &'a [u8],
    little: bool,
}

impl<'a> Ifd<'a> {
    /// `None` if there is no directory where the header says.
    pub(super) fn first(bytes: &'a [u8]) -> Option<Self> {
        let (little, big) = match bytes.get(..4)? {
            [b'I', b'I', 42, 0] => (true, false),
            [b'M', b'M', 0, 42] => (false, false),
            [b'I', b'I', 43, 0] => (true, true),
            [b'M', b'M', 0, 43] => (false, true),
            _ => return None,
        };
        let at = |place: usize, length: usize| whole(bytes.get(place..)?.get(..length)?, little);
        let (start, count_bytes) = if big { (at(8, 8)?, 8) } else { (at(4, 4)?, 2) };
        let start = usize::try_from(start).ok()?;
        let count = usize::try_from(at(start, count_bytes)?).ok()?;
        Some(Self {
            bytes,
            little,
            big,
            entries: (start + count_bytes, count),
        })
    }

    /// The entry of a tag, if it is there and can be read.
    pub(super) fn entry(&self, tag: u16) -> Option<Entry<'a>> {
        let (length, offset_bytes) = if self.big { (20, 8) } else { (12, 4) };
        let (start, count) = self.entries;
        let entries = self.bytes.get(start..)?.chunks_exact(length).take(count);
        entries
            .filter(|entry| whole(&entry[..2], self.little) == Some(u64::from(tag)))
            .find_map(|entry| self.read(entry, offset_bytes))
    }

    fn read(&self, entry: &'a [u8], offset_bytes: usize) -> Option<Entry<'a>> {
        let kind = whole(&entry[2..4], self.little)? as u16;
        let count = usize::try_from(whole(&entry[4..4 + offset_bytes], self.little)?).ok()?;
        let place = &entry[4 + offset_bytes..];
        let length = count.checked_mul(width(kind)?)?;
        let data = if length > offset_bytes {
            let offset = usize::try_from(whole(place, self.little)?).ok()?;
            self.bytes.get(offset..)?.get(..length)?
        } else {
            &place[..length]
        };
        (!data.is_empty()).then_some(Entry {
            kind,
            count,
            data,
            little: self.little,
        })
    }
}

impl<'a> Entry<'a> {
    /// Its bytes, as they stand in the file.
    pub(super) fn bytes(&self) -> &'a [u8] {
        self.data
    }

    /// The first of its numbers; `None` for text and plain bytes, and for a fraction over 0.
    pub(super) fn number(&self) -> Option<f64> {
        let first = self.data.get(..width(self.kind)?)?;
        let n = whole(first, self.little)?;
        let half = |at: usize| whole(&first[at..at + 4], self.little);
        Some(match self.kind {
            3 | 4 | 13 | 16 => n as f64,
            6 => f64::from(n as i8),
            8 => f64::from(n as i16),
            9 => f64::from(n as i32),
            5 if half(4)? != 0 => half(0)? as f64 / half(4)? as f64,
            10 if half(4)? != 0 => f64::from(half(0)? as i32) / f64::from(half(4)? as i32),
            11 => f64::from(f32::from_bits(n as u32)),
            12 => f64::from_bits(n),
            _ => return None,
        })
    }
}

/// Bytes of one number of a kind; `None` for a kind that there is not.
fn width(kind: u16) -> Option<usize> {
    Some(match kind {
        1 | 2 | 6 | 7 => 1,
        3 | 8 => 2,
        4 | 9 | 11 | 13 => 4,
        5 | 10 | 12 | 16 => 8,
        _ => return None,
    })
}

/// Up to eight bytes as a whole number.
fn whole(bytes: &[u8], little: bool) -> Option<u64> {
    let add = |n: u64, &byte: &u8| n << 8 | u64::from(byte);
    match little {
        _ if bytes.is_empty() || bytes.len() > 8 => None,
        true => Some(bytes.iter().rev().fold(0, add)),
        false => Some(bytes.iter().fold(0, add)),
    }
}
