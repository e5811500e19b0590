//! The chat template and the pad token that a checkpoint's tokenizer has of its own. Programs that ask the tokenizer get
//! these, whatever a recipe says; so where they differ from the recipe, a person is told.
//!
//! Chat templates are Jinja, as `apply_chat_template` of transformers renders it (`utils/chat_template_utils.py`). They come
//! with files from anywhere: one that could build ever longer texts is not rendered ([`check`]).

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, from_args};
use minijinja::{Environment, Error, ErrorKind, State, context, filters, functions, tests};

use super::rules;
use crate::files;
use crate::shown;
use crate::text::spec::TokenRules;
use crate::text::tokenizer::Tokenizer;

/// The longest template that is looked at, in bytes.
const MOST_TEMPLATE: u64 = 64 << 10;
/// Steps of a rendering. The released template takes a few hundred.
const MOST_STEPS: u64 = 50_000;
/// Captions by which templates are compared: one of a line, and one that a template might trim.
const PROBES: [&str; 2] = ["a cat", " a cat,\n a dog\n"];

/// What a person should know of the tokenizer at `path`, a folder or a file in one.
pub(super) fn notes(rules: &TokenRules, tokenizer: &Tokenizer, path: &Path) -> Vec<String> {
    let folder = match path.is_dir() {
        true => path,
        false => path.parent().unwrap_or(path),
    };
    let config = folder.join("tokenizer_config.json");
    let config = files::read(&config, files::MAX_CONFIG_BYTES).ok();
    let config = config.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let config: serde_json::Value = config.unwrap_or_default();
    let mut notes = Vec::new();
    notes.extend(pad_note(rules, tokenizer, &config));
    if let Some(template) = template_of(folder, &config) {
        notes.extend(template_note(rules, &template));
    }
    notes
}

/// A sentence where the tokenizer fills with another token than the recipe.
fn pad_note(
    rules: &TokenRules,
    tokenizer: &Tokenizer,
    config: &serde_json::Value,
) -> Option<String> {
    let pad = config.get("pad_token")?;
    let pad = pad.as_str().or_else(|| pad.get("content")?.as_str())?;
    let id = tokenizer.id_of(pad);
    // Where nothing is filled, it does not matter.
    if rules.min_tokens == 0 || id == Some(rules.pad_id) {
        return None;
    }
    Some(format!(
        "its tokenizer_config.json names `{}` as what fills, the recipe the token {}: programs that ask the tokenizer \
         give other rows of pads",
        shown::text(pad),
        rules.pad_id
    ))
}

/// The chat template of a tokenizer's folder. A file of its own comes before the configuration, as in transformers.
fn template_of(folder: &Path, config: &serde_json::Value) -> Option<String> {
    let file = folder.join("chat_template.jinja");
    if let Ok(bytes) = files::read(&file, MOST_TEMPLATE) {
        return String::from_utf8(bytes).ok();
    }
    let template = config.get("chat_template")?;
    let named = || {
        let all = template.as_array()?;
        let default = all.iter().find(|t| t["name"] == "default")?;
        default["template"].as_str()
    };
    template.as_str().or_else(named).map(str::to_owned)
}

/// A sentence where no call of the template gives the recipe's text.
fn template_note(rules: &TokenRules, template: &str) -> Option<String> {
    let (before, behind) = rules::around(rules)?;
    // A recipe that puts nothing around a caption asks no template.
    if (before, behind) == ("", "") {
        return None;
    }
    let wanted = PROBES.map(|caption| [before, caption, behind].concat());
    let system = before.strip_prefix("<|im_start|>system\n");
    let system = system.and_then(|rest| Some(rest.split_once("<|im_end|>\n")?.0));
    let mut nearest = (0, String::new());
    for generation in [true, false] {
        for thinking in [None, Some(false), Some(true)] {
            let render = |caption| rendered(template, system, caption, generation, thinking);
            let found = match PROBES.map(render) {
                [Ok(one), Ok(two)] => [one, two],
                [Err(why), _] | [_, Err(why)] => {
                    return Some(format!(
                        "its chat template could not be compared with the recipe's text: {why}"
                    ));
                }
            };
            if found == wanted {
                return None;
            }
            let pairs = found[0].bytes().zip(wanted[0].bytes());
            let common = 1 + pairs.take_while(|(a, b)| a == b).count();
            if common > nearest.0 {
                nearest = (common, found[0].clone());
            }
        }
    }
    Some(format!(
        "its chat template makes `{}` of the caption `{}`, the recipe `{}`: programs that ask the template give other \
         embeddings",
        shown::text(&nearest.1),
        PROBES[0],
        shown::text(&wanted[0])
    ))
}

/// What a template makes of a conversation.
fn rendered(
    template: &str,
    system: Option<&str>,
    caption: &str,
    generation: bool,
    thinking: Option<bool>,
) -> Result<String, String> {
    check(template)?;
    let message = |(role, content): (&str, &str)| context! { role => role, content => content };
    let system = system.map(|text| ("system", text));
    let messages: Vec<Value> = system
        .into_iter()
        .chain([("user", caption)])
        .map(message)
        .collect();
    let asked = context! {
        messages => messages, add_generation_prompt => generation, tools => Value::from(()),
        documents => Value::from(()),
    };
    // What a caller does not say is undefined.
    let context = match thinking {
        None => asked,
        Some(thinking) => context! { enable_thinking => thinking, ..asked },
    };
    let environment = environment().map_err(|e| e.to_string())?;
    let rendered = environment.render_str(template, context);
    rendered.map_err(|e| shown::text(&e.to_string()).to_string())
}

/// Only what cannot make a text longer than its parts.
fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::empty();
    // As `_compile_jinja_template` of transformers.
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()?;
    environment.set_syntax(syntax);
    environment.set_fuel(Some(MOST_STEPS));
    environment.set_unknown_method_callback(method);
    environment.add_filter("length", filters::length);
    environment.add_filter("trim", filters::trim);
    environment.add_filter("first", filters::first);
    environment.add_filter("last", filters::last);
    environment.add_filter("default", filters::default);
    environment.add_test("defined", tests::is_defined);
    environment.add_test("undefined", tests::is_undefined);
    environment.add_test("none", tests::is_none);
    environment.add_test("string", tests::is_string);
    environment.add_test("mapping", tests::is_mapping);
    environment.add_test("iterable", tests::is_iterable);
    environment.add_test("sequence", tests::is_sequence);
    environment.add_test("true", tests::is_true);
    environment.add_test("false", tests::is_false);
    environment.add_function("namespace", functions::namespace);
    let refuse =
        |why: String| -> Result<Value, Error> { Err(Error::new(ErrorKind::InvalidOperation, why)) };
    environment.add_function("raise_exception", refuse);
    Ok(environment)
}

/// The methods of Python's strings that the templates of chats call.
fn method(
    _: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let unknown = || Error::from(ErrorKind::UnknownMethod);
    let text = value.as_str().ok_or_else(unknown)?;
    let (other,): (Option<&str>,) = from_args(args)?;
    let stripped = |c: char| other.map_or(c.is_whitespace(), |set| set.contains(c));
    Ok(match (method, other) {
        ("startswith", Some(start)) => text.starts_with(start).into(),
        ("endswith", Some(end)) => text.ends_with(end).into(),
        ("strip", _) => text.trim_matches(stripped).into(),
        ("lstrip", _) => text.trim_start_matches(stripped).into(),
        ("rstrip", _) => text.trim_end_matches(stripped).into(),
        ("split", Some(by)) if !by.is_empty() => text.split(by).map(Value::from).collect(),
        _ => return Err(unknown()),
    })
}

/// Refuses a template that could build a text out of itself again and again: then so few steps would fill any memory.
///
/// Texts are joined where they are written out, not where they are kept; so what is kept never grows.
fn check(template: &str) -> Result<(), String> {
    let refuse = |what: &str| Err(format!("it has {what}, which plumb does not render"));
    if template.len() as u64 > MOST_TEMPLATE {
        return Err(format!("it has more than {MOST_TEMPLATE} bytes"));
    }
    if let Some(sign) = ['~', '*'].into_iter().find(|sign| template.contains(*sign)) {
        return refuse(&format!("a `{sign}`"));
    }
    let mut rest = template;
    while let Some(at) = rest
        .find("{{")
        .into_iter()
        .chain(rest.find("{%"))
        .chain(rest.find("{#"))
        .min()
    {
        let (open, inside) = rest[at..].split_at(2);
        let close = match open {
            "{{" => "}}",
            "{%" => "%}",
            _ => "#}",
        };
        let (inside, behind) = inside.split_once(close).unwrap_or((inside, ""));
        // A tag in a tag may be text: what is one, would have to be told as Jinja does.
        if ["{{", "{%", "{#"].iter().any(|open| inside.contains(open)) {
            return refuse("a tag in a tag");
        }
        if open == "{%" {
            statement(inside).or_else(|what| refuse(&what))?;
        }
        rest = behind;
    }
    Ok(())
}

fn statement(inside: &str) -> Result<(), String> {
    let inside = inside.trim_start_matches(['-', '+']).trim();
    let (word, rest) = inside
        .split_once(|c: char| !c.is_ascii_alphabetic())
        .unwrap_or((inside, ""));
    match word {
        "if" | "elif" | "else" | "endif" | "endfor" => Ok(()),
        "set" if !rest.contains('=') => Err("a `set` of a block".to_owned()),
        "set" | "for" => {
            let grows = |(at, c): &(usize, char)| match c {
                '+' | '{' => true,
                '[' => !looks_into(&rest[..*at]),
                _ => false,
            };
            match rest.char_indices().find(grows) {
                Some((_, c)) => Err(format!("a `{c}` in a `{word}`")),
                None => Ok(()),
            }
        }
        other => Err(format!("a `{}`", shown::text(other))),
    }
}

/// Whether a bracket behind `before` looks into what stands there; any other makes a list.
fn looks_into(before: &str) -> bool {
    const KEYWORDS: [&str; 8] = ["in", "if", "else", "and", "or", "not", "is", "recursive"];
    let end = before.trim_end_matches(|c: char| c.is_alphanumeric() || c == '_');
    let word = &before[end.len()..];
    match word {
        "" => before.ends_with([')', ']']),
        word => !KEYWORDS.contains(&word),
    }
}

#[cfg(test)]
mod tests_of_chat {
    use super::*;

    const RELEASED: &str =
        include_str!("../../../tests/golden/tokenizers/qwen3/chat_template.jinja");

    #[test]
    fn the_released_template_is_rendered_as_transformers_does() {
        let render = |generation, thinking| {
            rendered(RELEASED, None, PROBES[1], generation, thinking).expect("rendered")
        };
        let user = format!("<|im_start|>user\n{}<|im_end|>\n", PROBES[1]);
        let asked = format!("{user}<|im_start|>assistant\n");
        assert_eq!(render(false, None), user);
        assert_eq!(render(true, None), asked);
        assert_eq!(render(true, Some(true)), asked);
        let closed = format!("{asked}<think>\n\n</think>\n\n");
        assert_eq!(render(true, Some(false)), closed);
        let system = rendered(RELEASED, Some("Be brief."), "a", false, None).expect("rendered");
        assert!(system.starts_with("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na"));
    }

    #[test]
    fn a_template_that_could_grow_without_end_is_not_rendered() {
        for template in [
            "{% set a = a + a %}",
            "{%- set ns.a = ns.a + ns.a %}",
            "{% set a %}{{ a }}{{ a }}{% endset %}",
            "{{ 'a' * 1000000000 }}",
            "{{ a ~ a }}",
            "{% for a in [b, b] %}{% endfor %}",
            "{% for a in[b, b] %}{% endfor %}",
            "{% set a = {'b': b} %}",
            "{% set a = namespace(b=[a, a]) %}",
            "{% macro m(a) %}{{ a }}{{ a }}{% endmacro %}",
            "{# {% if #}{% set a = a + a %}",
            "{% raw %}{% if {% endraw %}{% set a = a + a %}",
            "{% if \"%}{#\" %}{% set a = a + a %}{# #}",
            "{% include 'x' %}",
        ] {
            let error = rendered(template, None, "a", true, None).expect_err(template);
            assert!(error.contains("does not render"), "{template}: {error}");
        }
        // Within the bounds, and yet without an end.
        let loops = "{% for a in messages[0].content %}".repeat(9);
        let error = rendered(&loops, None, &"a".repeat(99), true, None).expect_err("no end");
        assert!(!error.contains("does not render"), "{error}");
        let deep = format!("{loops}x{}", "{% endfor %}".repeat(9));
        rendered(&deep, None, &"a".repeat(99), true, None).expect_err("too many steps");
        rendered("{{ raise_exception('no') }}", None, "a", true, None).expect_err("it says so");
    }
}
