//! Recipes near a recipe.

use serde_json::{Value, json};

use super::super::candidates::{Candidate, Sweep, differences, merged, neighbours, variants};
use super::super::{Recipe, explain, list};
use super::{deviated, shipped};

fn labels(candidates: &[Candidate]) -> Vec<String> {
    candidates.iter().map(Candidate::label).collect()
}

fn sweep(recipe: &Recipe, text: &str) -> Result<Vec<Candidate>, super::super::Error> {
    text.parse::<Sweep>()?.candidates(recipe)
}

#[test]
fn every_variant_of_a_flavor_is_there_once_and_equal_ones_share_a_line() {
    let found = variants("flux1", "dev").expect("FLUX.1");
    assert_eq!(
        labels(&found),
        [
            "reference",
            "ai-toolkit",
            "diffusers = diffusion-pipe = simpletuner",
            "kohya",
            "musubi",
            "onetrainer"
        ]
    );
    // musubi trains dev alone; of schnell the lengths differ.
    let schnell = labels(&variants("flux1", "schnell").expect("schnell"));
    assert!(!schnell.iter().any(|l| l.contains("musubi")), "{schnell:?}");
    assert!(
        schnell.contains(&"diffusers = diffusion-pipe".to_owned()),
        "{schnell:?}"
    );
    let error = variants("flux1", "pro").expect_err("no such flavor");
    assert!(
        error.to_string().contains("no flavor of flux1 `pro`"),
        "{error}"
    );
}

#[test]
fn neighbours_differ_in_one_field_or_in_fields_that_go_together() {
    let recipe = shipped("sd3/3.5-large");
    let found = neighbours(&recipe).expect("neighbours");
    let all = labels(&found);
    for wanted in [
        "t5.tokens.max_tokens = 154",
        "t5.tokens.min_tokens = 256",
        "t5.tokens.max_tokens, t5.tokens.min_tokens = 154",
        "t5.forward.mask = pads",
        "assembly.pads.t5 = zero, t5.forward.mask = pads",
        "assembly.pads.t5 = zero",
        "clip_g.tokens.pad = end",
        "clip_l.forward.hidden_layer = -1",
        "clip_g.forward.final_norm = true",
        "clip_l.forward.projection = apply_if_present",
        "assembly.pooled = [clip_g, clip_l]",
    ] {
        let is_there = all.iter().any(|label| label == wanted);
        assert!(is_there, "{wanted} is not among {all:#?}");
    }
    for candidate in &found {
        assert_ne!(
            candidate.recipe.fingerprint(),
            recipe.fingerprint(),
            "{}",
            candidate.label()
        );
        let changed = differences(&recipe, &candidate.recipe);
        assert!(
            (1..=4).contains(&changed.len()),
            "{}: {changed:?}",
            candidate.label()
        );
    }
    let mut ids: Vec<_> = found
        .iter()
        .map(|c| c.recipe.fingerprint().to_string())
        .collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), found.len());
}

#[test]
fn encoders_whose_rows_lie_side_by_side_change_together() {
    let all = labels(&neighbours(&shipped("sdxl/base-1.0")).expect("neighbours"));
    let wanted = "clip_g.tokens.chunks, clip_l.tokens.chunks = 2".to_owned();
    assert!(all.contains(&wanted), "{all:#?}");
}

#[test]
fn every_shipped_recipe_has_neighbours_and_every_value_is_of_its_fields_type() {
    for listing in list().expect("shipped") {
        let name = format!(
            "{}/{}:{}",
            listing.family, listing.flavors[0], listing.variant
        );
        let recipe = shipped(&name);
        assert!(neighbours(&recipe).expect(&name).len() > 20, "{name}");
        if listing.variant != "reference" {
            continue;
        }
        for (field, values) in explain::values(&recipe).expect("values") {
            for value in values {
                let written = toml::Value::try_from(&value).expect("TOML");
                let table = toml::Table::from_iter([(field.clone(), written)]);
                let name = recipe.name();
                let made = Recipe::resolve(&name.family, &name.flavor, &name.variant, &table);
                if let Err(error) = made {
                    // That it does not go with another field is not the value's fault.
                    let error = error.to_string();
                    let type_error = error.starts_with("[recipe.deviate]");
                    let pads = error.contains("reads no pad token's text");
                    assert!(!type_error || pads, "{field} = {value}: {error}");
                }
            }
        }
    }
}

#[test]
fn deviations_stay_in_the_neighbourhood() {
    let recipe = deviated("sd3/3.5-large", "t5.tokens.min_tokens = 154").expect("a deviation");
    let found = sweep(&recipe, "assembly.pads.t5=zero").expect("a sweep");
    assert_eq!(found[0].recipe.deviations().len(), 2);
    assert_eq!(labels(&found), ["assembly.pads.t5 = zero"]);
    let back = sweep(&recipe, "t5.tokens.min_tokens=77").expect("the variant's own");
    assert_eq!(
        back[0].recipe.fingerprint(),
        shipped("sd3/3.5-large").fingerprint()
    );
}

#[test]
fn a_sweep_takes_numbers_words_lists_and_several_fields() {
    let sweep: Sweep = "t5.tokens.cleanup=[],[\"first_line\",\"respace_commas\"]"
        .parse()
        .expect("lists");
    assert_eq!(
        sweep.values,
        [json!([]), json!(["first_line", "respace_commas"])]
    );
    let sweep: Sweep = " a.b + c.d = 1, none ,'x',true,transformers_4_ftfy_6.1"
        .parse()
        .expect("values");
    assert_eq!(sweep.fields, ["a.b", "c.d"]);
    assert_eq!(
        sweep.values,
        [
            json!(1),
            json!("none"),
            json!("x"),
            json!(true),
            json!("transformers_4_ftfy_6.1")
        ]
    );
    for wrong in [
        "",
        "all",
        "=1",
        "a+=1",
        "a=",
        "a=1,,2",
        "a=1\nb=2",
        "a=nan",
        "a={x=1}x",
        "a=[1",
        &format!("a={}", "1,".repeat(200)),
    ] {
        let error = wrong.parse::<Sweep>().expect_err(wrong).to_string();
        assert!(
            error.starts_with("--vary ") && !error.contains('\n'),
            "{error}"
        );
    }
}

#[test]
fn a_sweep_moves_what_cannot_stay() {
    let flux = shipped("flux1/dev");
    let found = sweep(&flux, "t5.tokens.max_tokens=77,154,256,512").expect("lengths");
    assert_eq!(
        labels(&found),
        [
            "t5.tokens.max_tokens, t5.tokens.min_tokens = 77",
            "t5.tokens.max_tokens, t5.tokens.min_tokens = 154",
            "t5.tokens.max_tokens, t5.tokens.min_tokens = 256",
            "t5.tokens.max_tokens = 512"
        ]
    );
    assert_eq!(found[3].recipe.fingerprint(), flux.fingerprint());
    let error = |text| sweep(&flux, text).expect_err(text).to_string();
    assert_eq!(
        error("t5.tokens.max_token=1"),
        "--vary t5.tokens.max_token: the recipe flux1/dev has no such field, did you mean `t5.tokens.max_tokens`?; `plumb recipe show flux1/dev` lists its fields"
    );
    assert!(error("t5.tokens.max_tokens=many").contains("a whole number of tokens"));
    assert!(error("t5.tokens.max_tokens=0").contains("the least is above the most"));
}

#[test]
fn differences_name_both_values() {
    let (a, b) = (shipped("flux1/schnell"), shipped("flux1/schnell:diffusers"));
    let changed = differences(&a, &b);
    let find = |field: &str| {
        changed
            .iter()
            .find(|d| d.field == field)
            .map(|d| (&d.value, &d.instead_of))
    };
    assert_eq!(
        find("t5.tokens.max_tokens"),
        Some((&json!(512), &json!(256)))
    );
    assert_eq!(find("t5.forward.mask"), None::<(&Value, &Value)>);
    assert!(differences(&a, &a).is_empty());
    assert_eq!(merged(Vec::new()).len(), 0);
}
