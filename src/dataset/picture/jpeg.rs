//! Whether a JPEG's picture data is sound. The decoder makes grey of what it cannot read and says nothing, so the codes are
//! read here first, without making pixels of them: each must be one of its table, and the data must end with the last block,
//! neither before nor behind it. Damage almost always breaks one of these. The rules are those of ITU-T T.81, annexes F and G.
//!
//! What the decoder refuses by itself (arithmetic coding, lossless and hierarchical files) is not looked at.

use super::containers::jpeg_segment;

/// A Huffman table: for the next 16 bits the symbol and the length of its code; 0 where no code begins so.
type Table = Vec<(u8, u8)>;

const OVER: &str = "its picture data ends too early";

/// What of a component decides how its data lies in the file.
struct Component {
    id: u8,
    /// Blocks in a unit of interleaved data.
    across: usize,
    down: usize,
    /// Which coefficients of each block are not 0 so far, a bit each; empty unless the file is progressive.
    filled: Vec<u64>,
    /// Blocks in a row of the component alone, and rows.
    blocks: (usize, usize),
    is_there: bool,
}

struct Frame {
    is_progressive: bool,
    /// Units of interleaved data.
    units: usize,
    components: Vec<Component>,
}

/// Which part of the coefficients a scan brings.
struct Scan {
    /// Index of a component, with its tables for DC and AC.
    parts: Vec<(usize, usize, usize)>,
    first: usize,
    last: usize,
    is_refinement: bool,
}

#[derive(Default)]
struct Reader {
    frame: Option<Frame>,
    dc: [Table; 4],
    ac: [Table; 4],
    restart: usize,
}

/// Reads all picture data.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    let (mut reader, mut at) = (Reader::default(), 2);
    while let Some((marker, content)) = jpeg_segment(bytes, &mut at) {
        match marker {
            0xc4 => reader.tables(content).ok_or("its code tables are broken")?,
            0xc0..=0xc2 if reader.frame.is_none() => match Frame::new(marker, content) {
                Some(frame) => reader.frame = Some(frame),
                None => return Ok(()),
            },
            // Kinds that the decoder refuses.
            0xc3 | 0xc5..=0xc7 | 0xc9..=0xcf => return Ok(()),
            0xdd => {
                let count = content
                    .first_chunk()
                    .ok_or("its restart interval is broken")?;
                reader.restart = usize::from(u16::from_be_bytes(*count));
            }
            0xda => at = reader.scan(bytes, content, at)?,
            _ => {}
        }
    }
    if bytes.get(at..at + 2) != Some(&[0xff, 0xd9]) {
        return Err("the end of the JPEG is missing".to_owned());
    }
    match reader.frame {
        Some(frame) if frame.components.iter().all(|c| c.is_there) => Ok(()),
        _ => Err("part of its picture data is missing".to_owned()),
    }
}

impl Frame {
    /// `None` for a kind that the decoder refuses.
    fn new(marker: u8, content: &[u8]) -> Option<Self> {
        let &[8, h1, h0, w1, w0, count] = content.first_chunk()? else {
            return None;
        };
        let height = usize::from(u16::from_be_bytes([h1, h0]));
        let width = usize::from(u16::from_be_bytes([w1, w0]));
        let described = content.get(6..6 + 3 * usize::from(count))?.chunks_exact(3);
        let factors = |d: &[u8]| (usize::from(d[1] >> 4), usize::from(d[1] & 15));
        let most = described.clone().map(factors);
        let (wide, high) = most.fold((0, 0), |(w, h), (x, y)| (w.max(x), h.max(y)));
        if height == 0 || width == 0 || described.clone().any(|d| factors(d).0 * factors(d).1 == 0)
        {
            return None;
        }
        let is_progressive = marker == 0xc2;
        let units = (width.div_ceil(8 * wide), height.div_ceil(8 * high));
        let component = |d: &[u8]| {
            let (across, down) = factors(d);
            let blocks = (
                (width * across).div_ceil(wide).div_ceil(8),
                (height * down).div_ceil(high).div_ceil(8),
            );
            Component {
                id: d[0],
                across,
                down,
                filled: if is_progressive {
                    vec![0; blocks.0 * blocks.1]
                } else {
                    Vec::new()
                },
                blocks,
                is_there: false,
            }
        };
        Some(Self {
            is_progressive,
            units: units.0 * units.1,
            components: described.map(component).collect(),
        })
    }
}

impl Reader {
    /// Takes the tables of a segment.
    fn tables(&mut self, mut content: &[u8]) -> Option<()> {
        while let Some((&kind, rest)) = content.split_first() {
            let (counts, rest) = rest.split_first_chunk::<16>()?;
            let count = counts.iter().map(|&n| usize::from(n)).sum();
            let symbols = rest.get(..count)?;
            content = &rest[count..];
            let tables = if kind >> 4 == 0 {
                &mut self.dc
            } else {
                &mut self.ac
            };
            *tables.get_mut(usize::from(kind & 15))? = table(counts, symbols)?;
        }
        Some(())
    }

    /// Reads the data behind a scan's header; gives the place behind it.
    fn scan(&mut self, bytes: &[u8], header: &[u8], start: usize) -> Result<usize, String> {
        let frame = self
            .frame
            .as_mut()
            .ok_or("it has picture data before its size")?;
        let scan = Scan::new(header, frame).ok_or("a header of its picture data is broken")?;
        let units = match scan.parts.as_slice() {
            [(c, ..)] => frame.components[*c].blocks.0 * frame.components[*c].blocks.1,
            _ => frame.units,
        };
        let per_interval = if self.restart == 0 {
            units
        } else {
            self.restart
        };
        let (mut at, mut unit, mut restarts) = (start, 0, 0);
        loop {
            let end = data_end(bytes, at).ok_or("the end of the JPEG is missing")?;
            let mut data = Bits::new(&bytes[at..end]);
            let mut run = 0;
            let stop = units.min(unit + per_interval);
            for unit in unit..stop {
                for &(c, dc, ac) in &scan.parts {
                    let component = &mut frame.components[c];
                    let blocks = match scan.parts.len() {
                        1 => 1,
                        _ => component.across * component.down,
                    };
                    for _ in 0..blocks {
                        let mut filled = 0;
                        let filled = component.filled.get_mut(unit).unwrap_or(&mut filled);
                        let tables = (&self.dc[dc], &self.ac[ac]);
                        scan.block(frame.is_progressive, tables, &mut data, filled, &mut run)?;
                    }
                }
            }
            if run > 0 || !data.is_over() {
                return Err("its picture data does not end where the picture does".to_owned());
            }
            (at, unit) = (end, stop);
            if unit == units {
                return Ok(at);
            }
            let marker = bytes[end..].iter().find(|&&b| b != 0xff);
            if marker != Some(&(0xd0 + restarts % 8)) {
                return Err(OVER.to_owned());
            }
            at = end + bytes[end..].iter().take_while(|&&b| b == 0xff).count() + 1;
            restarts = (restarts + 1) % 8;
        }
    }
}

impl Scan {
    fn new(header: &[u8], frame: &mut Frame) -> Option<Self> {
        let (&count, rest) = header.split_first()?;
        let parts = rest.get(..2 * usize::from(count))?;
        let &[first, last, bits] = rest[parts.len()..].first_chunk()?;
        let part = |p: &[u8]| {
            let index = frame.components.iter().position(|c| c.id == p[0])?;
            frame.components[index].is_there = true;
            let (dc, ac) = (usize::from(p[1] >> 4), usize::from(p[1] & 15));
            (dc < 4 && ac < 4).then_some((index, dc, ac))
        };
        let parts: Vec<_> = parts.chunks_exact(2).map(part).collect::<Option<_>>()?;
        let (first, last) = match frame.is_progressive {
            true => (usize::from(first), usize::from(last)),
            // Some programs write nonsense there.
            false => (0, 63),
        };
        let fits = first <= last && last < 64 && !parts.is_empty();
        let is_one_kind = !frame.is_progressive || (first == 0) == (last == 0);
        let alone = first == 0 || parts.len() == 1;
        (fits && is_one_kind && alone).then_some(Self {
            parts,
            first,
            last,
            is_refinement: frame.is_progressive && bits >> 4 > 0,
        })
    }

    /// Reads one block. `run`: blocks that have nothing more, this one among them.
    fn block(
        &self,
        is_progressive: bool,
        (dc, ac): (&Table, &Table),
        data: &mut Bits<'_>,
        filled: &mut u64,
        run: &mut u32,
    ) -> Result<(), &'static str> {
        if self.first == 0 {
            if self.is_refinement {
                data.take(1)?;
                return Ok(());
            }
            let length = data.symbol(dc)?;
            data.take(length)?;
            if is_progressive {
                return Ok(());
            }
        }
        if self.is_refinement {
            return self.refine(ac, data, filled, run);
        }
        if *run > 0 {
            *run -= 1;
            return Ok(());
        }
        let mut k = self.first.max(1);
        while k <= self.last {
            let symbol = data.symbol(ac)?;
            let (zeros, length) = (usize::from(symbol >> 4), symbol & 15);
            match (zeros, length) {
                (15, 0) => k += 16,
                (_, 0) if !is_progressive => return Ok(()),
                (_, 0) => {
                    *run = (1 << zeros) + data.take(zeros as u8)? - 1;
                    return Ok(());
                }
                _ => {
                    k += zeros;
                    if k > self.last {
                        return Err("its picture data holds more than a block takes");
                    }
                    data.take(length)?;
                    *filled |= 1 << k;
                    k += 1;
                }
            }
        }
        Ok(())
    }

    /// Reads one more bit of the coefficients that are not 0, and those that come to them.
    fn refine(
        &self,
        ac: &Table,
        data: &mut Bits<'_>,
        filled: &mut u64,
        run: &mut u32,
    ) -> Result<(), &'static str> {
        let mut k = self.first;
        while k <= self.last && *run == 0 {
            let symbol = data.symbol(ac)?;
            let (mut zeros, length) = (usize::from(symbol >> 4), symbol & 15);
            match (zeros, length) {
                (_, 1) => {
                    data.take(1)?;
                }
                (15, 0) => {}
                (_, 0) => {
                    *run = (1 << zeros) + data.take(zeros as u8)?;
                    break;
                }
                _ => return Err("its picture data holds a code that cannot stand there"),
            }
            while k <= self.last {
                if *filled >> k & 1 == 1 {
                    data.take(1)?;
                } else if zeros == 0 {
                    break;
                } else {
                    zeros -= 1;
                }
                k += 1;
            }
            if length == 1 {
                if k > self.last {
                    return Err("its picture data holds more than a block takes");
                }
                *filled |= 1 << k;
            }
            k += 1;
        }
        if *run > 0 {
            for k in k..=self.last {
                if *filled >> k & 1 == 1 {
                    data.take(1)?;
                }
            }
            *run -= 1;
        }
        Ok(())
    }
}

/// The table of a list of symbols, `counts[n]` of which have codes of n + 1 bits.
fn table(counts: &[u8; 16], symbols: &[u8]) -> Option<Table> {
    let mut table = vec![(0, 0); 1 << 16];
    let (mut symbols, mut at) = (symbols.iter(), 0);
    for (length, &count) in (1u8..).zip(counts) {
        for &symbol in symbols.by_ref().take(usize::from(count)) {
            let span = 1 << (16 - length);
            table.get_mut(at..at + span)?.fill((symbol, length));
            at += span;
        }
    }
    Some(table)
}

/// Where the data that begins at `start` ends: at a marker.
fn data_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        at += bytes.get(at..)?.iter().position(|&b| b == 0xff)?;
        // Behind 0xff a zero is no marker, and further ones only fill.
        match bytes[at..].iter().find(|&&b| b != 0xff)? {
            0 if bytes[at + 1] == 0 => at += 2,
            0 => at += 1,
            _ => return Some(at),
        }
    }
}

/// The bits of picture data up to a marker.
struct Bits<'a> {
    bytes: std::slice::Iter<'a, u8>,
    buffer: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes: bytes.iter(),
            buffer: 0,
            count: 0,
        }
    }

    fn fill(&mut self) {
        while self.count <= 48 {
            let Some(&byte) = self.bytes.next() else {
                return;
            };
            if byte == 0xff {
                // The zero behind it.
                self.bytes.next();
            }
            self.buffer = self.buffer << 8 | u64::from(byte);
            self.count += 8;
        }
    }

    /// The next bits as a number.
    fn take(&mut self, bits: u8) -> Result<u32, &'static str> {
        let bits = u32::from(bits);
        if self.count < bits {
            self.fill();
        }
        self.count = self.count.checked_sub(bits).ok_or(OVER)?;
        Ok((self.buffer >> self.count & ((1 << bits) - 1)) as u32)
    }

    /// The next symbol of a table.
    fn symbol(&mut self, table: &Table) -> Result<u8, &'static str> {
        if self.count < 16 {
            self.fill();
        }
        let next = match self.count {
            count @ 16.. => self.buffer >> (count - 16),
            count => self.buffer << (16 - count),
        };
        let found = table.get(next as usize & 0xffff);
        let &(symbol, length) = found.ok_or("it lacks a code table")?;
        if length == 0 {
            return Err("its picture data holds a code that is in no table");
        }
        self.count = self.count.checked_sub(u32::from(length)).ok_or(OVER)?;
        Ok(symbol)
    }

    /// Whether at most the bits that fill the last byte are left.
    fn is_over(&self) -> bool {
        self.bytes.len() == 0 && self.count < 8
    }
}
