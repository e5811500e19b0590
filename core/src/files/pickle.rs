//! The pickles that `torch.save` writes, read as data: nothing that they name is run.
//!
//! An interpreter of the opcodes that tensors, numbers, texts, lists, tuples and dictionaries are written with (Python's
//! `pickletools.py`). It makes values in an arena, so that each opcode adds at most one and memory is bounded by the pickle's length.
//! Of Python's names only those listed in [`Known`] are understood; any other is refused, by its name.

use std::collections::HashMap;

use super::number::NumberType;
use crate::shown;

/// The most values of a pickle. A row of an aggregate of a data set has some ten.
const MAX_VALUES: usize = 4_000_000;

/// The longest text: captions are below it.
const MAX_TEXT: usize = 1 << 20;

/// More than any network has, and few enough for a message.
pub const MAX_DIMENSIONS: usize = 16;

/// A value's place in the arena.
pub type Id = usize;

/// What a pickle is made of.
#[derive(Clone, Debug)]
pub enum Value {
    /// Python's `None`, and what has no meaning here: types, raw bytes.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number with a fraction.
    Float(f64),
    /// A string.
    Text(String),
    /// A list, tuple, or `torch.Size`.
    List(Vec<Id>),
    /// Keys and what belongs to them, in order.
    Dict(Vec<(Id, Id)>),
    /// A name of Python's that is understood.
    Known(Known),
    /// Where a tensor's numbers lie: `data/KEY` of the zip file.
    Storage(NumberType, String),
    /// A tensor over a storage.
    Tensor {
        /// The type of its numbers.
        stored: NumberType,
        /// The storage's key.
        storage: String,
        /// Of its first number in the storage, in numbers.
        offset: usize,
        /// As many as it has dimensions.
        shape: Vec<usize>,
        /// How far apart in the storage neighbours along each dimension are, in numbers.
        strides: Vec<usize>,
    },
}

/// The names of Python's that are understood.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Known {
    /// `torch.FloatStorage` and its kin.
    Storage(NumberType),
    /// `torch._utils._rebuild_tensor_v2`.
    Tensor,
    /// `torch._utils._rebuild_parameter`: a tensor in a wrapper.
    Parameter,
    /// `collections.OrderedDict`.
    Dict,
    /// `torch.Size`.
    Size,
    /// A type, such as `torch.bfloat16`, which is noted beside numbers and is no number.
    Type,
}

impl Known {
    fn of(module: &str, name: &str) -> Result<Self, String> {
        let storage = match (module, name) {
            ("torch", "DoubleStorage") => NumberType::F64,
            ("torch", "FloatStorage") => NumberType::F32,
            ("torch", "HalfStorage") => NumberType::F16,
            ("torch", "BFloat16Storage") => NumberType::Bf16,
            ("torch", "LongStorage") => NumberType::I64,
            ("torch", "IntStorage") => NumberType::I32,
            ("torch", "ShortStorage") => NumberType::I16,
            ("torch", "CharStorage") => NumberType::I8,
            ("torch", "ByteStorage") => NumberType::U8,
            ("torch", "BoolStorage") => NumberType::Bool,
            ("torch._utils", "_rebuild_tensor_v2") => return Ok(Self::Tensor),
            ("torch._utils", "_rebuild_parameter") => return Ok(Self::Parameter),
            ("collections", "OrderedDict") => return Ok(Self::Dict),
            ("torch", "Size") => return Ok(Self::Size),
            (
                "torch",
                "float64" | "float32" | "float16" | "bfloat16" | "int64" | "int32" | "int16"
                | "int8" | "uint8" | "bool" | "float8_e4m3fn" | "float8_e5m2",
            ) => return Ok(Self::Type),
            _ => {
                return Err(format!(
                    "its pickle names `{}.{}`, which is no tensor, number, text, list or dictionary; plumb runs no pickles",
                    shown::text(module),
                    shown::text(name)
                ));
            }
        };
        Ok(Self::Storage(storage))
    }
}

/// A pickle's values, and which of them it is.
#[derive(Debug)]
pub struct Pickle {
    values: Vec<Value>,
    root: Id,
}

impl Pickle {
    /// The value that all others belong to.
    pub fn root(&self) -> Id {
        self.root
    }

    /// The value with this id.
    pub fn value(&self, id: Id) -> &Value {
        // Ids are of this arena, which only grows.
        self.values.get(id).unwrap_or(&Value::None)
    }
}

/// Reads a whole pickle.
///
/// # Errors
/// If it is cut short, has an opcode that tensors and plain values are not written with, or names anything else.
pub fn read(bytes: &[u8]) -> Result<Pickle, String> {
    let mut machine = Machine {
        bytes,
        at: 0,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    loop {
        let at = machine.at;
        let op = machine.byte()?;
        if op == b'.' {
            let root = machine.pop()?;
            let values = machine.values;
            return Ok(Pickle { values, root });
        }
        machine.step(op).map_err(|why| match why {
            Stop::Malformed => format!("its pickle is malformed at byte {at}"),
            Stop::Opcode => {
                format!("its pickle has opcode {op:#04x} at byte {at}, which plumb does not read")
            }
            Stop::Said(why) => why,
        })?;
    }
}

/// Why a step could not be made.
enum Stop {
    Malformed,
    Opcode,
    Said(String),
}

impl From<String> for Stop {
    fn from(why: String) -> Self {
        Self::Said(why)
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// How high the stack was at each mark.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl Machine<'_> {
    fn step(&mut self, op: u8) -> Result<(), Stop> {
        match op {
            // PROTO and FRAME: version and length, which decide nothing here.
            0x80 => self.take(1).map(|_| ())?,
            0x95 => self.take(8).map(|_| ())?,
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b']' | b')' => self.push(Value::List(Vec::new()))?,
            b'(' => self.marks.push(self.stack.len()),
            b'0' => self.pop().map(|_| ())?,
            b'J' | b'K' | b'M' | 0x8a | b'G' => self.number(op)?,
            b'X' | 0x8c | 0x8d => self.text(op)?,
            // Raw bytes: nothing that a cache means.
            b'B' | b'C' => {
                let length = self.length(if op == b'B' { 4 } else { 1 })?;
                self.take(length)?;
                self.push(Value::None)?;
            }
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.remember(op)?,
            b't' | b'l' | b'd' | 0x85 | 0x86 | 0x87 => self.gather(op)?,
            b'a' | b'e' | b's' | b'u' => self.add(op)?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                let known = Known::of(&module, &name)?;
                self.push(Value::Known(known))?;
            }
            0x93 => {
                let (name, module) = (self.pop_text()?, self.pop_text()?);
                let known = Known::of(&module, &name)?;
                self.push(Value::Known(known))?;
            }
            b'R' => self.reduce()?,
            b'Q' => self.storage()?,
            // BUILD: the attributes of an ordered dictionary, such as a state dict's `_metadata`.
            b'b' => {
                self.pop()?;
                let object = *self.stack.last().ok_or(Stop::Malformed)?;
                if !matches!(self.values[object], Value::Dict(_)) {
                    return Err(Stop::Opcode);
                }
            }
            _ => return Err(Stop::Opcode),
        }
        Ok(())
    }

    fn number(&mut self, op: u8) -> Result<(), Stop> {
        let value = match op {
            b'G' => Value::Float(f64::from_be_bytes(self.array()?)),
            b'J' => Value::Int(i64::from(i32::from_le_bytes(self.array()?))),
            b'K' => Value::Int(i64::from(self.byte()?)),
            b'M' => Value::Int(i64::from(u16::from_le_bytes(self.array()?))),
            _ => {
                let length = self.length(1)?;
                let digits = self.take(length)?;
                if length > 8 {
                    return Err(Stop::Malformed);
                }
                // Two's complement of as many bytes as it takes.
                let negative = digits.last().is_some_and(|byte| byte & 0x80 != 0);
                let mut number = [if negative { 0xff } else { 0 }; 8];
                number[..length].copy_from_slice(digits);
                Value::Int(i64::from_le_bytes(number))
            }
        };
        self.push(value)
    }

    fn text(&mut self, op: u8) -> Result<(), Stop> {
        let width = match op {
            b'X' => 4,
            0x8c => 1,
            _ => 8,
        };
        let length = self.length(width)?;
        if length > MAX_TEXT {
            return Err(format!(
                "its pickle has a text of {length} bytes, expected at most {MAX_TEXT}"
            )
            .into());
        }
        // A lone half of a pair, which Python writes for what is no UTF-8, becomes a question mark.
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.push(Value::Text(text))
    }

    fn remember(&mut self, op: u8) -> Result<(), Stop> {
        let key = match op {
            b'q' | b'h' => u32::from(self.byte()?),
            b'r' | b'j' => u32::from_le_bytes(self.array()?),
            _ => u32::try_from(self.memo.len()).map_err(|_| Stop::Malformed)?,
        };
        if matches!(op, b'h' | b'j') {
            let id = *self.memo.get(&key).ok_or(Stop::Malformed)?;
            self.stack.push(id);
        } else {
            let top = *self.stack.last().ok_or(Stop::Malformed)?;
            self.memo.insert(key, top);
        }
        Ok(())
    }

    /// A tuple, list or dictionary of what is on the stack.
    fn gather(&mut self, op: u8) -> Result<(), Stop> {
        let items = match op {
            0x85..=0x87 => {
                let count = usize::from(op - 0x84);
                let from = self.stack.len().checked_sub(count).ok_or(Stop::Malformed)?;
                self.stack.split_off(from)
            }
            _ => self.since_mark()?,
        };
        let value = match op {
            b'd' => Value::Dict(pairs(&items)?),
            _ => Value::List(items),
        };
        self.push(value)
    }

    /// Puts what is on the stack into the list or dictionary below it.
    fn add(&mut self, op: u8) -> Result<(), Stop> {
        let items = match op {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.since_mark()?,
        };
        let into = *self.stack.last().ok_or(Stop::Malformed)?;
        match self.values.get_mut(into) {
            Some(Value::List(list)) if matches!(op, b'a' | b'e') => list.extend(items),
            Some(Value::Dict(dict)) if matches!(op, b's' | b'u') => dict.extend(pairs(&items)?),
            _ => return Err(Stop::Malformed),
        }
        Ok(())
    }

    /// What Python would call with arguments.
    fn reduce(&mut self) -> Result<(), Stop> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let arguments = self.list(arguments)?;
        // `_rebuild_tensor_v2` has seven at most. A long list, called with again and again, would be copied each time.
        if arguments.len() > 8 {
            return Err(Stop::Malformed);
        }
        let arguments = arguments.to_vec();
        let Some(Value::Known(known)) = self.values.get(callable) else {
            return Err(Stop::Malformed);
        };
        match (known, arguments.as_slice()) {
            (Known::Dict, []) => self.push(Value::Dict(Vec::new())),
            (Known::Size | Known::Parameter, [first, ..]) => {
                let first = *first;
                self.stack.push(first);
                Ok(())
            }
            (Known::Tensor, [storage, offset, shape, strides, ..]) => {
                let Some(Value::Storage(stored, key)) = self.values.get(*storage) else {
                    return Err(Stop::Malformed);
                };
                let tensor = Value::Tensor {
                    stored: *stored,
                    storage: key.clone(),
                    offset: self.count(*offset)?,
                    shape: self.counts(*shape)?,
                    strides: self.counts(*strides)?,
                };
                self.push(tensor)
            }
            _ => Err(Stop::Malformed),
        }
    }

    /// `('storage', torch.FloatStorage, '0', 'cpu', 12)`
    fn storage(&mut self) -> Result<(), Stop> {
        let id = self.pop()?;
        let [_, stored, key, ..] = self.list(id)? else {
            return Err(Stop::Malformed);
        };
        match (self.values.get(*stored), self.values.get(*key)) {
            // A number. A long text would be copied for each tensor that names it.
            (Some(Value::Known(Known::Storage(stored))), Some(Value::Text(key)))
                if key.len() <= 20 =>
            {
                let storage = Value::Storage(*stored, key.clone());
                self.push(storage)
            }
            _ => Err(Stop::Malformed),
        }
    }

    fn push(&mut self, value: Value) -> Result<(), Stop> {
        if self.values.len() >= MAX_VALUES {
            return Err(format!("its pickle has more than {MAX_VALUES} values").into());
        }
        self.stack.push(self.values.len());
        self.values.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let top = (self.stack.len() > floor).then(|| self.stack.pop());
        top.flatten()
            .ok_or_else(|| format!("its pickle is malformed at byte {}", self.at))
    }

    fn pop_text(&mut self) -> Result<String, Stop> {
        let id = self.pop()?;
        match self.values.get(id) {
            Some(Value::Text(text)) => Ok(text.clone()),
            _ => Err(Stop::Malformed),
        }
    }

    fn since_mark(&mut self) -> Result<Vec<Id>, Stop> {
        let mark = self.marks.pop().ok_or(Stop::Malformed)?;
        if mark > self.stack.len() {
            return Err(Stop::Malformed);
        }
        Ok(self.stack.split_off(mark))
    }

    fn list(&self, id: Id) -> Result<&[Id], Stop> {
        match self.values.get(id) {
            Some(Value::List(items)) => Ok(items),
            _ => Err(Stop::Malformed),
        }
    }

    fn count(&self, id: Id) -> Result<usize, Stop> {
        match self.values.get(id) {
            Some(Value::Int(n)) => usize::try_from(*n).map_err(|_| Stop::Malformed),
            _ => Err(Stop::Malformed),
        }
    }

    fn counts(&self, id: Id) -> Result<Vec<usize>, Stop> {
        let ids = self.list(id)?;
        // Else one long list, named by many tensors, would be copied for each.
        if ids.len() > MAX_DIMENSIONS {
            return Err(Stop::Malformed);
        }
        ids.iter().map(|id| self.count(*id)).collect()
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.array::<1>()?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let taken = self.take(N)?;
        // As many as were asked for.
        Ok(taken.first_chunk().copied().unwrap_or([0; N]))
    }

    fn length(&mut self, width: usize) -> Result<usize, String> {
        let mut number = [0; 8];
        number[..width].copy_from_slice(self.take(width)?);
        usize::try_from(u64::from_le_bytes(number)).map_err(|_| self.cut())
    }

    fn take(&mut self, count: usize) -> Result<&[u8], String> {
        let end = self
            .at
            .checked_add(count)
            .filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| self.cut())?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// A text up to the end of its line.
    fn line(&mut self) -> Result<String, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|b| *b == b'\n');
        let end = end.filter(|n| *n <= 200).ok_or_else(|| self.cut())?;
        let line = String::from_utf8_lossy(&rest[..end]).into_owned();
        self.at += end + 1;
        Ok(line)
    }

    fn cut(&self) -> String {
        format!("its pickle is cut short at byte {}", self.at)
    }
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>, Stop> {
    match items.len() % 2 {
        0 => Ok(items
            .chunks_exact(2)
            .map(|pair| (pair[0], pair[1]))
            .collect()),
        _ => Err(Stop::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::{Value, read};

    #[test]
    fn plain_values_are_read() {
        let pickle = read(b"\x80\x02}q\x00(X\x01\x00\x00\x00aK\x07X\x01\x00\x00\x00bG\x3f\xf8\x00\x00\x00\x00\x00\x00u.");
        let pickle = pickle.expect("read");
        let Value::Dict(pairs) = pickle.value(pickle.root()) else {
            panic!("a dictionary");
        };
        let value = |n: usize| pickle.value(pairs[n].1);
        assert!(matches!(value(0), Value::Int(7)), "{:?}", value(0));
        assert!(matches!(value(1), Value::Float(v) if *v == 1.5));
        let negative = read(b"\x80\x02\x8a\x01\xfe.").expect("read");
        assert!(matches!(negative.value(negative.root()), Value::Int(-2)));
    }

    #[test]
    fn what_would_run_is_refused_by_its_name() {
        for pickle in [
            &b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00lsR."[..],
            b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
            b"\x80\x04\x8c\x05posix\x8c\x06system\x93.",
            b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n.",
        ] {
            let why = read(pickle).expect_err("refused");
            assert!(why.contains("plumb runs no pickles"), "{why}");
        }
        // OBJ, INST, NEWOBJ, EXT1: other ways to call.
        for pickle in [&b"(o."[..], b"(ios\nsystem\n.", b")\x81.", b"\x82\x01."] {
            let why = read(pickle).expect_err("refused");
            assert!(why.contains("does not read"), "{why}");
        }
    }

    #[test]
    fn what_is_cut_or_wrong_is_told_and_memory_is_bounded() {
        for (pickle, says) in [
            (&b""[..], "cut short at byte 0"),
            (b".", "malformed"),
            (b"X\xff\xff\xff\xff", "text of"),
            (b"X\x05\x00\x00\x00ab", "cut short"),
            (b"N(t.", "malformed"),
            (b"NN(Nu.", "malformed"),
            (b"h\x00.", "malformed"),
            (b"(0.", "malformed"),
            (b"ctorch\nFloatStorage\n)R.", "malformed"),
            (b"c", "cut short"),
        ] {
            let said = read(pickle);
            // A mark below everything leaves what was there.
            if let Err(why) = said {
                assert!(why.contains(says), "{pickle:?}: {why}");
            } else {
                assert_eq!(pickle, b"N(t.");
            }
        }
        let many = b"N".repeat(4_000_001);
        assert!(
            read(&many)
                .expect_err("too many")
                .contains("more than 4000000")
        );
    }
}
