//! A `LoraConfig` of PEFT that says rank and alpha of each module, as fields of JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::lora::file::commonest_rank;

/// A module as a config tells of it.
#[derive(Clone, Copy, Debug)]
pub(in crate::lora) struct StatedModule<'a> {
    /// Its name in the network.
    pub(in crate::lora) name: &'a str,
    pub(in crate::lora) rank: usize,
    /// Its update is alpha / rank times B A.
    pub(in crate::lora) alpha: f64,
}

/// The fields that say where adapters are, of which rank and alpha.
pub(in crate::lora) fn stated(modules: &[StatedModule<'_>]) -> BTreeMap<&'static str, Value> {
    let rank = commonest_rank(modules.iter().map(|module| module.rank));
    let alpha = commonest_alpha(modules, rank as f64);
    // Without `^` PEFT would take a name for the end of other modules' names as well.
    let pattern = |name: &str| format!("^{name}");
    let ranks: BTreeMap<_, _> = modules
        .iter()
        .filter(|module| module.rank != rank)
        .map(|module| (pattern(module.name), module.rank))
        .collect();
    let alphas: BTreeMap<_, _> = modules
        .iter()
        .filter(|module| module.alpha != alpha)
        .map(|module| (pattern(module.name), number(module.alpha)))
        .collect();
    let names: Vec<_> = modules.iter().map(|module| module.name).collect();
    BTreeMap::from([
        ("r", json!(rank)),
        ("lora_alpha", number(alpha)),
        ("rank_pattern", json!(ranks)),
        ("alpha_pattern", json!(alphas)),
        ("target_modules", json!(names)),
    ])
}

/// The text of an `adapter_config.json`. `only`: whether PEFT has to take names as whole ones, because one of them is the end of another
/// module's name, which a list would take too.
pub(in crate::lora) fn config_file(modules: &[StatedModule<'_>], only: bool) -> String {
    let mut fields = stated(modules);
    if only {
        // A text is a regular expression of Python for the whole name.
        let names: Vec<_> = modules
            .iter()
            .map(|module| module.name.replace('.', r"\."))
            .collect();
        fields.insert("target_modules", json!(names.join("|")));
    }
    fields.extend([
        ("base_model_name_or_path", Value::Null),
        ("bias", json!("none")),
        ("fan_in_fan_out", json!(false)),
        ("inference_mode", json!(true)),
        ("init_lora_weights", json!(true)),
        ("lora_dropout", json!(0.0)),
        ("modules_to_save", Value::Null),
        ("peft_type", json!("LORA")),
        ("task_type", Value::Null),
        ("use_dora", json!(false)),
        // The alphas above are for a division by the rank.
        ("use_rslora", json!(false)),
    ]);
    let text = serde_json::to_string_pretty(&fields);
    text.expect("fields of JSON") + "\n"
}

/// The alpha of most modules; of equally many the smallest; `default` where there are none.
fn commonest_alpha(modules: &[StatedModule<'_>], default: f64) -> f64 {
    let mut alphas: Vec<f64> = modules.iter().map(|module| module.alpha).collect();
    alphas.sort_by(f64::total_cmp);
    let groups = alphas.chunk_by(|a, b| a == b);
    let most = groups.max_by(|a, b| a.len().cmp(&b.len()).then(b[0].total_cmp(&a[0])));
    most.map_or(default, |group| group[0])
}

/// Without a point where it is whole, as people write an alpha.
fn number(value: f64) -> Value {
    // Beyond this not every whole number is one of f64.
    const WHOLE: f64 = (1u64 << 53) as f64;
    match value.fract() == 0.0 && value.abs() < WHOLE {
        true => json!(value as i64),
        false => json!(value),
    }
}

#[cfg(test)]
mod tests {
    use super::{StatedModule, config_file, stated};
    use crate::lora::peft::PeftConfig;

    fn module(name: &str, rank: usize, alpha: f64) -> StatedModule<'_> {
        StatedModule { name, rank, alpha }
    }

    #[test]
    fn what_is_stated_is_read_back_for_every_module() {
        let modules = [
            module("blocks.0.to_q", 4, 4.0),
            module("blocks.1.to_q", 4, 0.1),
            module("blocks.10.to_q", 4, -3.0),
            module("blocks.10.to_k", 16, 4.0),
            module("proj_out", 8, 0.0),
            module("blocks.0.proj_out", 2, 1.0 / 3.0),
        ];
        for only in [false, true] {
            let text = config_file(&modules, only);
            let config = PeftConfig::of_file(&text, "c").expect("a config of plain LoRA");
            for module in modules {
                let alpha = config.alpha_of(module.name, module.rank);
                assert_eq!(alpha, Ok(module.alpha), "{}", module.name);
            }
        }
    }

    #[test]
    fn equal_modules_need_no_patterns() {
        let fields = stated(&[module("a", 4, 4.0), module("b.c", 4, 4.0)]);
        let text = serde_json::to_string(&fields).expect("JSON");
        expect_test::expect![[
            r#"{"alpha_pattern":{},"lora_alpha":4,"r":4,"rank_pattern":{},"target_modules":["a","b.c"]}"#
        ]]
        .assert_eq(&text);
    }

    #[test]
    fn names_that_are_ends_of_others_are_an_expression() {
        let text = config_file(&[module("proj_out", 4, 4.0), module("a.0.b", 4, 4.0)], true);
        assert!(
            text.contains(r#""target_modules": "proj_out|a\\.0\\.b""#),
            "{text}"
        );
    }
}
