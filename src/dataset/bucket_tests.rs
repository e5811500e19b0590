use proptest::prelude::*;

use super::*;

fn size(width: u32, height: u32) -> Size {
    Size { width, height }
}

#[derive(serde::Deserialize)]
struct Rule {
    resolution: [u32; 2],
    min: u32,
    max: u32,
    step: u32,
    no_upscale: bool,
}

#[test]
fn every_size_goes_where_kohyas_rule_says() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/golden/buckets.safetensors"
    );
    let bytes = std::fs::read(path).expect("golden");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("header");
    let rules = &header.metadata().as_ref().expect("metadata")["rules"];
    let rules: std::collections::BTreeMap<String, Rule> =
        serde_json::from_str(rules).expect("rules");
    let tables = safetensors::SafeTensors::deserialize(&bytes).expect("tables");
    let mut checked = 0;
    for (name, rule) in rules {
        let buckets = Buckets::new(
            BucketRules {
                resolution: size(rule.resolution[0], rule.resolution[1]),
                min: rule.min,
                max: rule.max,
                step: rule.step,
                single: false,
                no_upscale: rule.no_upscale,
            },
            8,
        )
        .expect("rules");
        let table = tables.tensor(&name).expect("table");
        for row in table.data().chunks_exact(24) {
            let row: Vec<u32> = row
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| u32::from_le_bytes(*b))
                .collect();
            let (picture, bucket, resized) = (
                size(row[0], row[1]),
                size(row[2], row[3]),
                size(row[4], row[5]),
            );
            let placed = buckets.place(picture);
            if bucket.width == 0 {
                assert!(
                    matches!(placed, Err(BucketError::TooSmall { .. })),
                    "{name} {picture:?}"
                );
            } else if let Err(BucketError::TooNarrow { .. }) = placed {
                assert!(area(resized) > 32 * area(bucket), "{name} {picture:?}");
            } else {
                assert_eq!(
                    placed,
                    Ok(Placement { resized, bucket }),
                    "{name} {picture:?}"
                );
            }
            checked += 1;
        }
    }
    assert!(checked > 10_000, "{checked}");
}

#[test]
fn kohyas_default_list_for_512_is_as_published() {
    let buckets = Buckets::new(BucketRules::around(512), 8).expect("rules");
    let listed: Vec<_> = buckets
        .sizes()
        .iter()
        .map(|s| (s.width, s.height))
        .collect();
    assert_eq!(
        listed,
        [
            (256, 1024),
            (320, 768),
            (384, 640),
            (448, 576),
            (512, 512),
            (576, 448),
            (640, 384),
            (704, 320),
            (768, 320),
            (832, 256),
            (896, 256),
            (960, 256),
            (1024, 256)
        ]
        .into_iter()
        .chain([(256, 832), (256, 896), (256, 960), (320, 704)])
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect::<Vec<_>>()
    );
}

#[test]
fn a_single_bucket_is_the_resolution_whatever_its_shape() {
    let wide = BucketRules {
        resolution: size(192, 64),
        min: 64,
        max: 192,
        single: true,
        ..BucketRules::around(64)
    };
    let buckets = Buckets::new(wide, 16).expect("rules");
    assert_eq!(buckets.sizes(), [size(192, 64)]);
    let placed = buckets.place(size(100, 100)).expect("placed");
    assert_eq!(
        (placed.bucket, placed.resized),
        (size(192, 64), size(192, 192))
    );
}

#[test]
fn rules_that_contradict_are_one_line() {
    let good = BucketRules::around(1024);
    for (bad, part) in [
        (BucketRules { step: 0, ..good }, "step is 0"),
        (BucketRules { step: 24, ..good }, "multiple of 16"),
        (BucketRules { min: 500, ..good }, "multiples of the step"),
        (BucketRules { min: 0, ..good }, "multiples of the step"),
        (BucketRules { min: 1088, ..good }, "exceeds"),
        (BucketRules { max: 960, ..good }, "exceeds"),
        (
            BucketRules {
                resolution: size(0, 512),
                ..good
            },
            "resolution is 0x512",
        ),
    ] {
        let error = Buckets::new(bad, 16).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn strips_and_specks_are_one_line() {
    let buckets = Buckets::new(BucketRules::around(512), 8).expect("rules");
    let error = buckets
        .place(size(30_000, 2))
        .expect_err("strip")
        .to_string();
    assert!(
        error.contains("30000x2") && error.contains("1024x256"),
        "{error}"
    );
    assert!(buckets.place(size(1, 1)).is_ok());
    let rules = BucketRules {
        no_upscale: true,
        ..BucketRules::around(512)
    };
    let keeping = Buckets::new(rules, 8).expect("rules");
    let error = keeping.place(size(1, 1)).expect_err("speck").to_string();
    assert!(error.contains("less than one step of 64"), "{error}");
}

fn any_rules() -> impl Strategy<Value = BucketRules> {
    let flags = (any::<bool>(), any::<bool>());
    (1u32..20, 1u32..20, 1u32..9, flags, 1u32..4).prop_map(|(w, h, step, flags, k)| {
        let step = 8 * step;
        let (single, no_upscale) = flags;
        BucketRules {
            resolution: size(step * w, step * h),
            min: step,
            max: step * w.max(h) * k,
            step,
            single,
            no_upscale,
        }
    })
}

proptest! {
    #[test]
    fn a_bucket_is_valid_and_crops_lie_inside(
        rules in any_rules(),
        width in 1u32..5000,
        height in 1u32..5000,
        crops in 0u32..6,
        flip in any::<bool>(),
    ) {
        let buckets = Buckets::new(rules, 8).expect("rules");
        let Ok(placement) = buckets.place(size(width, height)) else { return Ok(()) };
        let Placement { resized, bucket } = placement;
        for side in [bucket.width, bucket.height] {
            prop_assert!(side > 0 && side % rules.step == 0);
        }
        prop_assert!(resized.width >= bucket.width && resized.height >= bucket.height);
        let most = u64::from(rules.resolution.width) * u64::from(rules.resolution.height);
        if rules.no_upscale {
            prop_assert!(resized.width <= width.max(rules.step) && resized.height <= height.max(rules.step)
                || area(size(width, height)) > most);
        } else {
            prop_assert!(area(bucket) <= most);
            prop_assert!(resized.width == bucket.width || resized.height == bucket.height);
            prop_assert!(buckets.sizes().contains(&bucket));
        }
        let views = placement.views(crops, flip);
        prop_assert!(!views.is_empty() && views.len() as u32 <= crops.max(1) * (1 + u32::from(flip)));
        let distinct: std::collections::BTreeSet<_> = views.iter().collect();
        prop_assert_eq!(distinct.len(), views.len());
        for view in views {
            prop_assert!(view.left + view.bucket.width <= view.resized.width);
            prop_assert!(view.top + view.bucket.height <= view.resized.height);
        }
    }
}
