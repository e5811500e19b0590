//! Full-size checkpoints without their weights: files with every real name and shape, all zero, that take no room on
//! the disk (`tools/goldens/full_size_models.py`, `tools/goldens/encoders.py`).

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

pub(crate) type Names = BTreeMap<String, Vec<usize>>;

/// The tensors of a model in one of the goldens.
pub(crate) fn names(model: &str) -> Names {
    for file in ["full_size_models.json", "full_size.json"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(file);
        let text = std::fs::read(path).expect("read");
        let all: Value = serde_json::from_slice(&text).expect("JSON");
        if let Some(tree) = all.get(model) {
            let mut names = Names::new();
            flatten("", tree, &mut names);
            return names;
        }
    }
    panic!("no golden has {model}")
}

/// The leaves of a tree, whose branches are the parts of names.
fn flatten(name: &str, tree: &Value, names: &mut Names) {
    match tree {
        Value::Object(branches) => {
            for (part, below) in branches {
                let dot = if name.is_empty() { "" } else { "." };
                flatten(&format!("{name}{dot}{part}"), below, names);
            }
        }
        shape => {
            let shape = serde_json::from_value(shape.clone()).expect("a shape");
            names.insert(name.to_owned(), shape);
        }
    }
}

/// A sparse safetensors file with these tensors in `dtype` (`F16`, `BF16`, `F8_E4M3`, ...).
pub(crate) fn write(path: &Path, dtype: &str, tensors: &Names) {
    let bytes = match dtype {
        "F32" => 4,
        "F16" | "BF16" => 2,
        _ => 1,
    };
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += shape.iter().product::<usize>() * bytes;
        let info =
            serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), info);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut content = (header.len() as u64).to_le_bytes().to_vec();
    content.extend(header.as_bytes());
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(path, &content).expect("written");
    let file = std::fs::File::options().append(true).open(path);
    file.and_then(|f| f.set_len((content.len() + end) as u64))
        .expect("a sparse file");
}
