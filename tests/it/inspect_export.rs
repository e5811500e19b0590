//! `plumb inspect export`: the table that pandas and embedding-atlas read, against the store and numpy.

use std::path::Path;

use plumb::inspect::vectors::{Rows, plane};
use plumb::rng::{Rng, Stream};

use crate::peers::Script;
use crate::world::World;

/// Reads a table with pyarrow: the columns, and of each encoder how its vectors' norms and its plane agree with numpy's.
const READ: &str = r#"
import json, sys, io
import numpy as np
import pyarrow.parquet as pq
from PIL import Image
file = pq.ParquetFile(sys.argv[1])
table = file.read()
rows = table.to_pylist()
said = {"columns": table.column_names, "captions": table["caption"].to_pylist(), "groups": file.num_row_groups}
for slot in [n[:-2] for n in table.column_names if n.endswith("_x")]:
    have = [r for r in rows if r[slot + "_vector"] is not None]
    a = np.array([r[slot + "_vector"] for r in have], np.float64)
    points = np.array([[r[slot + "_x"], r[slot + "_y"]] for r in have])
    u, s, vt = np.linalg.svd(a - a.mean(0), full_matrices=False)
    vt = np.array([v * np.sign(v[np.argmax(np.abs(v))]) for v in vt[:2]])
    error = np.abs((a - a.mean(0)) @ vt.T - points).max() / np.abs(points).max()
    norms = np.array([r[slot + "_norm"] for r in have])
    said[slot] = {"vectors": len(have), "plane": float(error), "norms": float(np.abs(np.linalg.norm(a, axis=1) / norms - 1).max()),
                  "width": a.shape[1], "tokens": [r[slot + "_tokens"] for r in rows], "truncated": [r[slot + "_truncated"] for r in rows]}
thumbnails = table["thumbnail"].to_pylist() if "thumbnail" in table.column_names else []
said["thumbnails"] = [None if t is None else [t["path"], *Image.open(io.BytesIO(t["bytes"])).size] for t in thumbnails]
said["pictures"] = [len(p) for p in table["pictures"].to_pylist()]
if "references" in table.column_names:
    said["references"] = [[p[-17:] for p in ps] for ps in table["references"].to_pylist()]
    said["beside"] = [None if t is None else [t["path"], *Image.open(io.BytesIO(t["bytes"])).size] for t in table["reference_thumbnail"].to_pylist()]
print(json.dumps(said))
"#;

fn read(table: &Path) -> Option<serde_json::Value> {
    let said = Script::code(READ).arg(table).run()?;
    Some(serde_json::from_str(&said).expect("JSON"))
}

fn encoded() -> World {
    let world = World::new();
    world.write(
        "pictures/p1.txt",
        &"a long caption of many words ".repeat(40),
    );
    world.write(
        "pictures/p2.txt",
        "\u{5d0}\u{202e}\u{1f469}\u{200d}\u{1f680} \"quoted\" </script>",
    );
    world.run(&["encode", "exp.toml"]).expect(0);
    world
}

#[test]
fn pyarrow_reads_every_caption_with_its_vectors_and_numpy_finds_the_same_plane() {
    let world = encoded();
    let export = [
        "inspect",
        "export",
        "exp.toml",
        "--parquet",
        "new/table.parquet",
    ];
    let said = world.run(&export).expect(0).says("5 captions");
    let _ = said.says("embedding-atlas new/table.parquet --text caption --x clip_l_x --y clip_l_y");
    let Some(read) = read(&world.path("new/table.parquet")) else {
        return;
    };
    let begins = [
        "caption",
        "origin",
        "pictures",
        "recipe",
        "thumbnail",
        "clip_l_x",
    ];
    for (n, name) in begins.iter().enumerate() {
        assert_eq!(read["columns"][n], *name);
    }
    assert_eq!(
        read["captions"][2],
        "\u{5d0}\u{202e}\u{1f469}\u{200d}\u{1f680} \"quoted\" </script>"
    );
    for slot in ["clip_l", "clip_g", "t5"] {
        let of = &read[slot];
        assert_eq!(of["vectors"], 5, "{slot}");
        assert!(
            of["plane"].as_f64().expect("a number") < 1e-5,
            "{slot}: {of}"
        );
        assert!(
            of["norms"].as_f64().expect("a number") < 1e-5,
            "{slot}: {of}"
        );
    }
    assert_eq!(
        read["clip_l"]["truncated"],
        serde_json::json!([false, true, false, false, false])
    );
    // One of 77 is left free: the reference cuts at whole words.
    assert_eq!(read["clip_l"]["tokens"][1], 76);
    assert_eq!(read["thumbnails"][0], serde_json::json!(["p0.png", 64, 64]));
    // The prompt and the empty caption have none.
    assert_eq!(read["thumbnails"][4], serde_json::Value::Null);
    assert_eq!(read["pictures"], serde_json::json!([1, 1, 1, 0, 0]));
}

#[test]
fn a_store_alone_is_exported_too_and_a_damaged_entry_is_told_and_null() {
    let world = encoded();
    let packs = crate::store_util::files(&world.path("store"), ".safetensors");
    let said = world
        .run(&[
            "inspect",
            "export",
            "store",
            "--parquet",
            "all.parquet",
            "--json",
        ])
        .expect(0);
    let report = said.json();
    assert_eq!(report["captions"], 5);
    let slots: Vec<&str> = report["encoders"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|e| e["slot"].as_str())
        .collect();
    assert_eq!(slots.len(), 3);
    assert!(
        slots[0].starts_with("clip_text_") && slots[2].starts_with("t5_"),
        "{slots:?}"
    );
    for pack in packs {
        let mut bytes = std::fs::read(&pack).expect("a pack");
        *bytes.last_mut().expect("bytes") ^= 1;
        std::fs::write(&pack, bytes).expect("written");
    }
    let export = [
        "inspect",
        "export",
        "exp.toml",
        "--parquet",
        "table.parquet",
        "--no-thumbnails",
    ];
    let _ = world.run(&export).expect(3).says("1 is damaged");
    if let Some(read) = read(&world.path("table.parquet")) {
        let vectors: i64 = ["clip_l", "clip_g", "t5"]
            .iter()
            .filter_map(|s| read[*s]["vectors"].as_i64())
            .sum();
        assert!(vectors < 15, "{read}");
        assert_eq!(read["thumbnails"], serde_json::json!([]));
    }
}

#[test]
fn what_cannot_be_exported_is_refused_in_a_line() {
    let world = World::new();
    let export = |from: &str| world.run(&["inspect", "export", from, "--parquet", "t.parquet"]);
    let _ = export("exp.toml")
        .expect(4)
        .says("to mend it: plumb encode exp.toml");
    let _ = export("pictures").expect(1).says("store.json");
    let _ = export("absent.toml").expect(2).says("absent.toml");
    world
        .run(&["inspect", "export", "exp.toml", "--parquet", "pictures"])
        .expect(2)
        .says("--parquet: cannot write pictures: it is a folder; name a file in it");
    // Of other captions, under the same recipe.
    world.write("one.txt", "something else\n");
    world
        .run(&["encode", "exp.toml", "--captions", "one.txt"])
        .expect(0);
    let _ = export("exp.toml")
        .expect(4)
        .says("5 of 5 entries are missing");
    assert!(!world.path("t.parquet").exists());
    world.write("one.txt", "a blue square\n");
    world
        .run(&["encode", "exp.toml", "--captions", "one.txt"])
        .expect(0);
    let _ = export("exp.toml")
        .expect(3)
        .says("4 of 5 captions are not in the store");
}

#[test]
fn references_stand_beside_their_pictures() {
    let world = crate::kontext::world();
    world.edit(
        "prompts = [\"a blue square\"]",
        "prompts = [\"a blue square\"]\nreferences = [\"references/p2.jpg\"]",
    );
    world.run(&["encode", "exp.toml"]).expect(0);
    let export = ["inspect", "export", "exp.toml", "--parquet", "t.parquet"];
    world.run(&export).expect(0);
    let Some(read) = read(&world.path("t.parquet")) else {
        return;
    };
    let file = |n: usize| serde_json::json!([format!("references/p{n}.jpg")]);
    let expected = serde_json::json!([file(0), file(1), file(2), [], file(2)]);
    assert_eq!(read["references"], expected);
    let small = |n: usize| serde_json::json!([format!("p{n}.jpg"), 64 + 16 * n, 64]);
    let expected = serde_json::json!([small(0), small(1), small(2), null, small(2)]);
    assert_eq!(read["beside"], expected);
    assert_eq!(read["thumbnails"][3], serde_json::Value::Null);
}

/// The plane of a table's rows by numpy: its axes with the sign that ours have, the points on them and the share of the variance.
const PLANE: &str = r#"
import json, sys
import numpy as np
rows = np.fromfile(sys.argv[1], np.float32).reshape(-1, int(sys.argv[2])).astype(np.float64)
centred = rows - rows.mean(0)
_, s, axes = np.linalg.svd(centred, full_matrices=False)
axes = [axis * np.sign(axis[np.argmax(np.abs(axis))]) for axis in axes[:2]]
print(json.dumps({"points": (centred @ np.transpose(axes)).tolist(), "explained": (s[:2] ** 2 / (s**2).sum()).tolist()}))
"#;

#[test]
fn the_map_of_many_captions_is_numpys_singular_vectors() {
    let folder = tempfile::tempdir().expect("a folder");
    // More rows than columns and fewer; a spread that falls and one that hardly does, far from zero, as embeddings are.
    let fall = |c: usize| 4.0 / (1.0 + c as f32);
    let flat = |c: usize| 1.0 + 0.3 / (1.0 + c as f32);
    type Case<'a> = (usize, usize, &'a dyn Fn(usize) -> f32, f64);
    let cases: [Case<'_>; 4] = [
        (5000, 300, &fall, 1e-5),
        (5000, 300, &flat, 1e-3),
        (200, 700, &fall, 1e-5),
        (200, 700, &flat, 1e-3),
    ];
    for (count, width, spread, most) in cases {
        let (mut rows, mut bytes) = (Rows::default(), Vec::new());
        for n in 0..count {
            let drawn = Rng::new(7, Stream::Noise, n as u64, 0).normals(width);
            let row = drawn.iter().enumerate().map(|(c, v)| 20.0 + v * spread(c));
            let row: Vec<f32> = row.collect();
            rows.push(&row).expect("room");
            bytes.extend(row.iter().flat_map(|v| v.to_le_bytes()));
        }
        let ours = plane(&mut rows).expect("readable");
        let file = folder.path().join("rows.f32");
        std::fs::write(&file, bytes).expect("written");
        let script = Script::code(PLANE).arg(&file).arg(width.to_string());
        let Some(said) = script.run() else { return };
        let theirs: serde_json::Value = serde_json::from_str(&said).expect("JSON");
        let number = |v: &serde_json::Value| v.as_f64().expect("a number");
        for axis in 0..2 {
            let explained = number(&theirs["explained"][axis]);
            let error = (ours.explained[axis] / explained - 1.0).abs();
            assert!(error < 1e-6, "{count} x {width}: {error}");
            let largest = (ours.points.iter()).fold(0.0f64, |m, p| m.max(p[axis].abs()));
            for (n, point) in ours.points.iter().enumerate() {
                let error = (point[axis] - number(&theirs["points"][n][axis])).abs() / largest;
                assert!(
                    error < most,
                    "{count} x {width}, row {n}, axis {axis}: {error}"
                );
            }
        }
    }
}
