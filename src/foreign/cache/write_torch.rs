//! Files of `torch.save`, of one tensor or of a dictionary of tensors: a zip file, not compressed, of a pickle and the numbers beside it
//! (PyTorch's `torch/serialization.py`, `_save`; the pickle's protocol is 2). `torch.load` reads them with `weights_only`.

use super::NumberType;
use super::archive;
use super::write::ToWrite;

/// A dictionary of tensors, by their names.
///
/// # Errors
/// For numbers that are not written.
pub fn torch_dict(tensors: &[ToWrite]) -> Result<Vec<u8>, String> {
    // An empty dictionary, then its items between a mark and SETITEMS.
    let mut pickle = b"\x80\x02}(".to_vec();
    for (n, tensor) in tensors.iter().enumerate() {
        text(&mut pickle, &tensor.name);
        rebuilt(&mut pickle, n, tensor)?;
    }
    pickle.extend(b"u.");
    pack(pickle, tensors)
}

/// One tensor; its name does not matter.
///
/// # Errors
/// As [`torch_dict`].
pub fn torch_tensor(tensor: &ToWrite) -> Result<Vec<u8>, String> {
    let mut pickle = b"\x80\x02".to_vec();
    rebuilt(&mut pickle, 0, tensor)?;
    pickle.push(b'.');
    pack(pickle, std::slice::from_ref(tensor))
}

fn pack(pickle: Vec<u8>, tensors: &[ToWrite]) -> Result<Vec<u8>, String> {
    let mut parts = vec![
        ("archive/data.pkl".to_owned(), pickle),
        ("archive/byteorder".to_owned(), b"little".to_vec()),
    ];
    for (n, tensor) in tensors.iter().enumerate() {
        parts.push((format!("archive/data/{n}"), tensor.bytes.clone()));
    }
    parts.push(("archive/version".to_owned(), b"3\n".to_vec()));
    archive::pack(&parts)
}

/// `torch._utils._rebuild_tensor_v2(storage n, 0, shape, strides, False, OrderedDict())`.
fn rebuilt(pickle: &mut Vec<u8>, n: usize, tensor: &ToWrite) -> Result<(), String> {
    let storage = match tensor.stored {
        NumberType::F32 => "FloatStorage",
        NumberType::F16 => "HalfStorage",
        NumberType::Bf16 => "BFloat16Storage",
        NumberType::I64 => "LongStorage",
        NumberType::Bool => "BoolStorage",
        other => return Err(format!("numbers of type {} are not written", other.name())),
    };
    let count: usize = tensor.shape.iter().product();
    pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    text(pickle, "storage");
    pickle.extend(format!("ctorch\n{storage}\n").as_bytes());
    text(pickle, &n.to_string());
    text(pickle, "cpu");
    number(pickle, count)?;
    // The tuple is what the storage is known by; the numbers begin at its place 0.
    pickle.extend(b"tQK\x00");
    let mut strides = vec![1; tensor.shape.len()];
    for i in (1..tensor.shape.len()).rev() {
        strides[i - 1] = strides[i] * tensor.shape[i];
    }
    for tuple in [&tensor.shape, &strides] {
        pickle.push(b'(');
        for n in tuple {
            number(pickle, *n)?;
        }
        pickle.push(b't');
    }
    pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    Ok(())
}

/// BINUNICODE.
fn text(pickle: &mut Vec<u8>, text: &str) {
    pickle.push(b'X');
    pickle.extend((text.len() as u32).to_le_bytes());
    pickle.extend(text.as_bytes());
}

/// BININT, which has a sign.
fn number(pickle: &mut Vec<u8>, n: usize) -> Result<(), String> {
    let n = i32::try_from(n).map_err(|_| format!("a tensor has {n} numbers, too many"))?;
    pickle.push(b'J');
    pickle.extend(n.to_le_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::torch::{Saved, read};
    use super::super::{NumberType, write::ToWrite};

    fn floats(name: &str, shape: &[usize]) -> ToWrite {
        let count: usize = shape.iter().product();
        let bytes = (0..count).flat_map(|x| (x as f32).to_le_bytes()).collect();
        ToWrite::new(name, NumberType::F32, shape.to_vec(), bytes)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let whole = ToWrite::whole("mask", vec![1, 3], &[1, 1, 0]);
        let file = super::torch_dict(&[floats("embeds", &[1, 2, 3]), whole]).expect("written");
        let Saved::Dict(dict) = read(&file).expect("read") else {
            panic!("a dictionary was saved");
        };
        let Saved::Tensor(embeds) = &dict["embeds"] else {
            panic!("a tensor was saved");
        };
        assert_eq!(embeds.shape, [1, 2, 3]);
        assert_eq!(embeds.values, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let Saved::Tensor(mask) = &dict["mask"] else {
            panic!("a tensor was saved");
        };
        assert_eq!(
            (mask.stored, &mask.values[..]),
            (NumberType::I64, &[1.0, 1.0, 0.0][..])
        );
        let one = super::torch_tensor(&floats("", &[2, 2])).expect("written");
        assert!(matches!(read(&one), Ok(Saved::Tensor(t)) if t.shape == [2, 2]));
    }
}
