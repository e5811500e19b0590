use super::*;
use expect_test::expect;

fn linears() -> Vec<LinearShape> {
    ["b.to_q", "a.to_k"]
        .map(|name| LinearShape {
            name: name.to_owned(),
            outputs: 5,
            inputs: 400,
            kernel: None,
            reached: true,
        })
        .to_vec()
}

#[test]
fn a_new_set_is_ordered_by_name_and_starts_as_peft_does() {
    let set = AdapterSet::new(&linears(), 4, 2.0, 1).unwrap();
    let names: Vec<_> = set.tensors().collect();
    expect![[r#"[("a.to_k.lora_A.weight", [4, 400], 0..1600), ("a.to_k.lora_B.weight", [5, 4], 1600..1620), ("b.to_q.lora_A.weight", [4, 400], 1620..3220), ("b.to_q.lora_B.weight", [5, 4], 3220..3240)]"#]]
        .assert_eq(&format!("{names:?}"));
    assert_eq!(set.adapters()[0].scale(), 0.5);
    for adapter in set.adapters() {
        let a = &set.values()[adapter.a()];
        let largest = a.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let mean = a.iter().sum::<f32>() / a.len() as f32;
        assert!(
            largest <= 0.05 && largest > 0.049 && mean.abs() < 0.003,
            "{largest} {mean}"
        );
        assert!(set.values()[adapter.b()].iter().all(|&v| v == 0.0));
    }
    assert_ne!(
        set.values()[..1600],
        set.values()[1620..3220],
        "each adapter draws its own numbers"
    );
}

#[test]
fn start_values_depend_on_the_seed_and_the_names_only() {
    let set = AdapterSet::new(&linears(), 4, 2.0, 1).unwrap();
    let mut other_order = linears();
    other_order.reverse();
    assert_eq!(set, AdapterSet::new(&other_order, 4, 2.0, 1).unwrap());
    assert_ne!(set, AdapterSet::new(&linears(), 4, 2.0, 2).unwrap());
    expect!["[0.022007262, -0.011098463, 0.009651394]"]
        .assert_eq(&format!("{:?}", &set.values()[..3]));
}

#[test]
fn impossible_sets_are_refused() {
    let message = |result: Result<AdapterSet, Error>| result.unwrap_err().to_string();
    assert_eq!(
        message(AdapterSet::new(&linears(), 0, 1.0, 1)),
        "adapter rank: expected at least 1, found 0"
    );
    assert_eq!(
        message(AdapterSet::new(&linears(), 1, f64::NAN, 1)),
        "adapter alpha: expected a finite number, found NaN"
    );
    let twice = [linears(), linears()].concat();
    assert_eq!(
        message(AdapterSet::new(&twice, 1, 1.0, 1)),
        "adapter on `a.to_k` is there twice"
    );
}

#[test]
fn a_set_is_checked_against_the_network() {
    let set = AdapterSet::new(&linears(), 4, 2.0, 1).unwrap();
    set.check(&linears()).unwrap();
    let mut other = linears();
    other[0].name = "b.to_v".to_owned();
    expect!["adapter on `b.to_q`: the network has no such linear; near it: `b.to_v`, `a.to_k`"]
        .assert_eq(&set.check(&other).unwrap_err().to_string());
    let mut other = linears();
    other[1].inputs = 3;
    expect!["adapter on `a.to_k`: expected 5 outputs and 3 inputs, found 5 outputs and 400 inputs; it was made for another base model"]
        .assert_eq(&set.check(&other).unwrap_err().to_string());
}
