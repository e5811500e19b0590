//! WebDataset: tar files of which the members of one sample have one name, up to its first point, and stand side by side.
//!
//! A sample is `KEY.json`, `KEY.pth` (a dictionary of tensors as `torch.save` writes it) and `KEY.txt`, which the library's `.decode()`
//! knows without being told; of its other forms of tensors, numpy's has no bf16. `__plumb__` at the head has no point in it, which
//! `webdataset` and Hugging Face's `datasets` pass over.

use tar::{Builder, EntryType, Header};

use super::sample::Sample;
use crate::foreign::cache::torch_dict;

const DESCRIPTION: &str = "__plumb__";

/// Blocks of zeros, by which a tar file ends.
pub(super) const END: [u8; 1024] = [0; 1024];

pub(super) fn file_name(number: usize) -> String {
    format!("{number:06}.tar")
}

/// What every shard begins with.
pub(super) fn head(description: &[u8]) -> Result<Vec<u8>, String> {
    members(&[(DESCRIPTION, description)])
}

pub(super) fn sample(sample: &Sample) -> Result<Vec<u8>, String> {
    let named = |extension: &str| format!("{}.{extension}", sample.key);
    members(&[
        (&named("json"), &sample.meta),
        (&named("pth"), &torch_dict(&sample.tensors)?),
        (&named("txt"), sample.caption.as_bytes()),
    ])
}

/// Members without the end of a file, the same bytes for the same content.
fn members(files: &[(&str, &[u8])]) -> Result<Vec<u8>, String> {
    let mut tar = Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(bytes.len() as u64);
        let added = tar.append_data(&mut header, name, *bytes);
        added.map_err(|e| format!("`{name}` cannot be put into a tar file: {e}"))?;
    }
    Ok(std::mem::take(tar.get_mut()))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    #[test]
    fn members_are_read_again_and_have_neither_owner_nor_date() {
        let mut file = super::members(&[("a.json", b"{}"), ("a.txt", b"")]).expect("made");
        assert_eq!(file.len() % 512, 0);
        file.extend(super::END);
        let mut archive = tar::Archive::new(&file[..]);
        let mut found = Vec::new();
        for entry in archive.entries().expect("a tar file") {
            let mut entry = entry.expect("an entry");
            let mut text = String::new();
            entry.read_to_string(&mut text).expect("read");
            let header = entry.header();
            let facts = [header.mtime(), header.uid(), header.gid()];
            assert_eq!(facts.map(|fact| fact.expect("a number")), [0, 0, 0]);
            found.push((entry.path().expect("a name").into_owned(), text));
        }
        assert_eq!(
            found,
            [
                ("a.json".into(), "{}".to_owned()),
                ("a.txt".into(), String::new())
            ]
        );
    }
}
