use super::*;
use crate::cache::EncoderId;
use crate::dataset::Item;
use crate::digest::Fingerprint;
use crate::inspect::captions::Caption;
use crate::inspect::captions::Origin;
use crate::inspect::vectors::VectorOf;
use crate::monitor::Silent;
use crate::recipe::latents::Size;

fn item(picture: &str, content: &str, caption: &str) -> Item {
    Item {
        picture: picture.into(),
        digest: Digest::of(content.as_bytes()),
        size: Size {
            width: 1,
            height: 1,
        },
        captions: vec![caption.to_owned()],
        written: caption.to_owned(),
        views: Vec::new(),
        repeats: 1,
        held_out: false,
        reference: None,
    }
}

fn captions(texts: &[(&str, &[usize])], items: Vec<Item>) -> Captions {
    let all = texts.iter().map(|(text, items)| Caption {
        text: (*text).to_owned(),
        origin: Origin::Picture,
        items: items.to_vec(),
    });
    Captions {
        references: Default::default(),
        all: all.collect(),
        items,
        encoders: Vec::new(),
        problems: Vec::new(),
    }
}

fn vectors(rows: &[Vec<f32>]) -> CaptionVectors {
    let mut vectors = CaptionVectors {
        encoder: EncoderId {
            slot: "t5".to_owned(),
            spec: Fingerprint::of(&1),
        },
        kind: Some(VectorKind::MeanOfTokens),
        of: Vec::new(),
        without: Vec::new(),
        rows: Rows::default(),
    };
    for (caption, row) in rows.iter().enumerate() {
        vectors.rows.push(row).expect("a row");
        vectors.of.push(VectorOf {
            caption,
            norm: row.iter().map(|v| v * v).sum::<f32>().sqrt(),
            token_count: 1,
            truncated: false,
        });
    }
    vectors
}

const OPTIONS: NeighborOptions = NeighborOptions {
    above: 0.99,
    nearest: 2,
    most_pairs: 10,
};

#[test]
fn neighbours_are_the_nearest_by_angle_and_other_pictures_come_first() {
    let items = vec![
        item("a.png", "1", "a"),
        item("b.png", "1", "b"),
        item("c.png", "2", "c"),
    ];
    let captions = captions(
        &[
            ("a", &[0]),
            ("b", &[1]),
            ("c", &[2]),
            ("prompt", &[]),
            ("zero", &[]),
        ],
        items,
    );
    let mut found = vectors(&[
        vec![1.0, 0.0],
        vec![5.0, 0.0],
        vec![1.0, 0.05],
        vec![-1.0, 0.0],
        vec![0.0, 0.0],
    ]);
    let report = neighbors(&mut found, &captions, &OPTIONS, &Silent).expect("compared");
    assert_eq!(
        report.nearest[0].neighbors[0],
        Neighbor {
            caption: 1,
            cosine: 1.0
        }
    );
    assert_eq!(report.nearest[0].neighbors[1].caption, 2);
    assert_eq!((report.near_duplicates, report.with_other_pictures), (3, 2));
    // a and b are nearest, but of one picture.
    assert_eq!(report.pairs[2].captions, [0, 1]);
    assert!(report.pairs[0].other_pictures && report.pairs[0].captions[1] == 2);
    let one = nearest_to(&mut found, 3, 2)
        .expect("compared")
        .expect("a vector");
    assert_eq!((one.caption, one.neighbors[0].caption), (3, 4));
    assert!(nearest_to(&mut found, 9, 2).expect("compared").is_none());
}

#[test]
fn blocks_make_no_difference() {
    let count = BLOCK_ROWS + 50;
    let row = |n: usize| vec![(n as f32 * 0.37).sin(), (n as f32 * 0.37).cos(), 0.1];
    let mut rows: Vec<Vec<f32>> = (0..count).map(row).collect();
    // Twins in different blocks.
    rows[count - 1] = rows[3].iter().map(|v| v * 2.0).collect();
    let texts: Vec<String> = (0..count).map(|n| n.to_string()).collect();
    let texts: Vec<(&str, &[usize])> = texts.iter().map(|t| (t.as_str(), &[][..])).collect();
    let captions = captions(&texts, Vec::new());
    let mut found = vectors(&rows);
    let report = neighbors(&mut found, &captions, &OPTIONS, &Silent).expect("compared");
    assert_eq!(report.nearest[3].neighbors[0].caption, count - 1);
    assert_eq!(report.nearest[count - 1].neighbors[0].caption, 3);
    assert_eq!(report.pairs.len(), OPTIONS.most_pairs, "no more are kept");
    assert!(report.near_duplicates > 10);
    for caption in [0, 7, BLOCK_ROWS, count - 2] {
        let one = nearest_to(&mut found, caption, 2)
            .expect("compared")
            .expect("there");
        let (all, one) = (&report.nearest[caption].neighbors, &one.neighbors);
        let cosines = |found: &[Neighbor]| found.iter().map(|n| n.cosine).collect::<Vec<_>>();
        let (all_cosines, one_cosines) = (cosines(all), cosines(one));
        let pairs = all_cosines.iter().zip(&one_cosines);
        let apart = pairs.map(|(a, b)| (a - b).abs());
        assert!(
            apart.fold(0.0, f32::max) < 1e-5,
            "{caption}: {all:?} {one:?}"
        );
    }
}

#[test]
fn captions_and_pictures_that_contradict_each_other_are_found() {
    let items = vec![
        item("a.png", "1", "a dog"),
        item("b.png", "2", "a dog"),
        item("copy of b.png", "2", "a dog"),
        item("c.png", "1", "a cat"),
    ];
    let captions = captions(&[("a dog", &[0, 1, 2]), ("a cat", &[3])], items);
    let found = contradictions(&captions);
    assert_eq!(found.same_caption.len(), 1);
    assert_eq!(
        found.same_caption[0].pictures.len(),
        2,
        "a copy is no other picture"
    );
    assert_eq!(found.same_picture.len(), 1);
    let texts: Vec<&str> = (found.same_picture[0].captions.iter())
        .map(|(text, _)| text.as_str())
        .collect();
    assert_eq!(texts, ["a cat", "a dog"]);
}
