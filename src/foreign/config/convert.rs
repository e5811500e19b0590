//! From a value as it is written to that of a field.

use std::path::Path;

use toml::Value as Toml;

use super::knowledge::{As, Rule, equals, flag};
use super::tree::{Node, Value};
use crate::experiment::{prompt_lines, read_text};
use crate::shown;

/// The largest file of prompts.
const MAX_PROMPTS_FILE: u64 = 1 << 20;

/// Prompts that are taken over; more make previews that nobody waits for.
const MAX_PROMPTS: usize = 64;

/// Fields with their values.
pub(super) type Fields = Vec<(String, Toml)>;

/// What a setting of a rule comes to; `folder` is the config's, where files that it names may lie.
///
/// # Errors
/// Why it cannot be taken over, as half a sentence.
pub(super) fn fields(rule: &Rule, value: &Value, folder: &Path) -> Result<Fields, String> {
    let is_path = matches!(rule.how, As::Path | As::Model | As::Within);
    if let (Value::Open(text), false) = (value, is_path) {
        return Err(format!(
            "a variable stands in `{}` whose value is not known: write what it is",
            shown::text(text)
        ));
    }
    let field = rule.fields.first().cloned();
    let one = |value: Toml| {
        Ok(field
            .clone()
            .map(|field| (field, value))
            .into_iter()
            .collect())
    };
    match rule.how {
        As::Integer => {
            let number = integer(value)?;
            let number = Toml::Integer(rule.most.map_or(number, |most| number.min(most)));
            let fields = rule.fields.iter().cloned();
            Ok(fields.map(|field| (field, number.clone())).collect())
        }
        As::OneMore => one(one_more(value)?),
        As::Guidance => one(match real(value) {
            Some(scale) if scale < 1.0 => Toml::Integer(1),
            _ => number(value)?,
        }),
        As::Number => one(number(value)?),
        As::Shuffles => {
            let variants = Toml::Integer(integer(value)?.max(2));
            let values = [Toml::Boolean(true), variants];
            Ok(rule.fields.iter().cloned().zip(values).collect())
        }
        As::Pair => pair(rule, value),
        As::Flag | As::Not => {
            let flag = flag(value).ok_or_else(|| expected("true or false", value))?;
            one(Toml::Boolean(flag != (rule.how == As::Not)))
        }
        As::Text => one(Toml::String(text(value)?)),
        As::Path => one(Toml::String(path(value)?)),
        As::Model => one(Toml::String(model(&path(value)?))),
        As::Resolution => one(resolution(value)?),
        As::Resolutions => one(resolutions(value)?),
        As::Extension => one(Toml::String(
            text(value)?.trim_start_matches('.').to_owned(),
        )),
        As::Prompts => one(prompts(value)?),
        As::PromptFile => one(prompt_file(&text(value)?, folder)?),
        As::Warmup => one(warmup(value)?),
        As::WarmupShare => one(warmup_share(value)?),
        As::Integers => one(integers(value)?),
        As::Frames => one(frames(value, 4)?),
        As::FramesOfEight => one(frames(value, 8)?),
        As::FrameBuckets => frame_buckets(rule, value),
        As::Within => within(rule, value),
        As::Prefixed => one(Toml::String(format!("{}{}", rule.prefix, integer(value)?))),
        As::Words => words(rule, value),
    }
}

fn integers(value: &Value) -> Result<Toml, String> {
    let numbers = match value {
        Value::List(items) => items.iter().map(|item| integer(&item.value)).collect(),
        Value::Text(text) => text
            .trim_matches(['(', ')', '[', ']', ' '])
            .split([',', ' '])
            .filter(|part| !part.is_empty())
            .map(|part| integer(&Value::Text(part.to_owned())))
            .collect(),
        value => integer(value).map(|number| vec![number]),
    };
    let numbers: Vec<i64> = numbers.map_err(|_| expected("whole numbers", value))?;
    match numbers.len() {
        1..=64 => Ok(Toml::Array(
            numbers.into_iter().map(Toml::Integer).collect(),
        )),
        _ => Err(expected("1 to 64 whole numbers", value)),
    }
}

/// Rounded down to 1 more than a multiple of `step`, as musubi-tuner rounds `target_frames`
/// (src/musubi_tuner/dataset/image_video_dataset.py:644-657).
fn frames(value: &Value, step: i64) -> Result<Toml, String> {
    let rounded = |value: &Value| {
        let frames = integer(value)?;
        match frames {
            1.. => Ok(Toml::Integer((frames - 1) / step * step + 1)),
            _ => Err(expected("a number of frames", value)),
        }
    };
    let Value::List(items) = value else {
        return rounded(value);
    };
    let mut all = items
        .iter()
        .map(|item| rounded(&item.value))
        .collect::<Result<Vec<Toml>, String>>()?;
    all.sort_by_key(Toml::as_integer);
    all.dedup();
    match all.as_slice() {
        [] => Err(expected("a number of frames", value)),
        [one] => Ok(one.clone()),
        _ => Ok(Toml::Array(all)),
    }
}

/// The longer ones; of none, nothing is set.
fn frame_buckets(rule: &Rule, value: &Value) -> Result<Fields, String> {
    let Value::List(items) = value else {
        return Err(expected("a list of numbers of frames", value));
    };
    let is_clip = |item: &&Node| integer(&item.value) != Ok(1);
    let clips: Vec<Node> = items.iter().filter(is_clip).cloned().collect();
    if clips.is_empty() {
        return Ok(Vec::new());
    }
    let counts = frames(&Value::List(clips), 4)?;
    let field = rule.fields.first().cloned();
    Ok(field.map(|field| (field, counts)).into_iter().collect())
}

/// Each field gets the folder and what is in it by the rule.
fn within(rule: &Rule, value: &Value) -> Result<Fields, String> {
    let folder = model(path(value)?.trim_end_matches('/'));
    let part = |(field, part): (&String, &Toml)| {
        let path = match part.as_str() {
            None | Some("") => folder.clone(),
            Some(part) => format!("{folder}/{part}"),
        };
        (field.clone(), Toml::String(path))
    };
    Ok(rule.values.iter().map(part).collect())
}

fn expected(what: &str, found: &Value) -> String {
    format!("expected {what}, found `{}`", shown::text(&found.written()))
}

fn integer(value: &Value) -> Result<i64, String> {
    let found = match value {
        Value::Integer(number) => Some(*number),
        Value::Number(number) => whole(*number),
        // argparse reads text; so do settings that a JSON has in quotes.
        Value::Text(text) => text
            .trim()
            .parse()
            .ok()
            .or_else(|| whole(text.trim().parse().ok()?)),
        Value::List(items) if items.len() == 1 => return integer(&items[0].value),
        _ => None,
    };
    found.ok_or_else(|| expected("a whole number", value))
}

/// A whole number, if it is one.
pub(super) fn whole_number(value: &Value) -> Option<i64> {
    integer(value).ok()
}

fn whole(number: f64) -> Option<i64> {
    // Beyond it, numbers are no longer exact.
    let fits = number.fract() == 0.0 && number.abs() < 9e15;
    fits.then_some(number as i64)
}

fn real(value: &Value) -> Option<f64> {
    let found = match value {
        Value::Integer(number) => Some(*number as f64),
        Value::Number(number) => Some(*number),
        Value::Text(text) => text.trim().parse().ok(),
        Value::List(items) if items.len() == 1 => return real(&items[0].value),
        _ => None,
    };
    found.filter(|number| number.is_finite())
}

fn number(value: &Value) -> Result<Toml, String> {
    let found = real(value).map(Toml::Float);
    found.ok_or_else(|| expected("a number", value))
}

/// `0.9,0.99` or `[0.9, 0.99]` or `(0.9, 0.99)`.
fn pair(rule: &Rule, value: &Value) -> Result<Fields, String> {
    let numbers: Option<Vec<f64>> = match value {
        Value::List(items) => items.iter().map(|item| real(&item.value)).collect(),
        Value::Text(text) => text
            .trim_matches(['(', ')', '[', ']', ' '])
            .split(',')
            .map(|part| part.trim().parse().ok())
            .collect(),
        _ => None,
    };
    let numbers = numbers.filter(|numbers| numbers.len() == rule.fields.len());
    let numbers = numbers.ok_or_else(|| expected("two numbers", value))?;
    let values = numbers.into_iter().map(Toml::Float);
    Ok(rule.fields.iter().cloned().zip(values).collect())
}

fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::Text(text) => Ok(text.clone()),
        Value::Integer(_) | Value::Number(_) => Ok(value.written()),
        Value::List(items) if items.len() == 1 => text(&items[0].value),
        _ => Err(expected("text", value)),
    }
}

/// A path as an Experiment has it: there a dollar sign names a variable, or is written twice.
fn path(value: &Value) -> Result<String, String> {
    if let Value::List(items) = value
        && items.len() > 1
    {
        return Err(format!("plumb takes one file here, not {}", items.len()));
    }
    let path = match value {
        Value::Open(text) => text.clone(),
        value => text(value)?,
    };
    let is_literal = !matches!(value, Value::Open(_)) && !path.contains("://");
    let path = match is_literal {
        true => path.replace('$', "$$"),
        false => path,
    };
    match path.chars().any(char::is_control) {
        true => Err(expected("a path", value)),
        false => Ok(path),
    }
}

/// The trainers take what is no folder or file for a name on the hub.
fn model(path: &str) -> String {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let is_name = path
        .split_once('/')
        .is_some_and(|(owner, name)| part(owner) && part(name));
    let ending = Path::new(path)
        .extension()
        .unwrap_or_default()
        .to_string_lossy();
    let is_file = ["safetensors", "ckpt", "gguf", "pt", "bin"].contains(&ending.as_ref());
    match is_name && !is_file && !Path::new(path).exists() {
        true => format!("hf://{path}"),
        false => path.to_owned(),
    }
}

fn side(value: &Value) -> Result<i64, String> {
    integer(value).map_err(|_| expected("a side in px", value))
}

fn resolution(value: &Value) -> Result<Toml, String> {
    let sides: Vec<i64> = match value {
        Value::List(items) => items
            .iter()
            .map(|item| side(&item.value))
            .collect::<Result<_, _>>()?,
        Value::Text(text) => {
            let text = text.trim_matches(['(', ')', '[', ']', ' ']);
            let parts = text.split([',', 'x']).map(|part| part.trim().parse().ok());
            let sides: Option<Vec<i64>> = parts.collect();
            sides.ok_or_else(|| expected("one side or two, in px", value))?
        }
        value => vec![side(value)?],
    };
    match sides.as_slice() {
        [side] => Ok(Toml::Integer(*side)),
        [width, height] if width == height => Ok(Toml::Integer(*width)),
        [width, height] => Ok(Toml::Array(vec![(*width).into(), (*height).into()])),
        _ => Err(expected("one side or two, in px", value)),
    }
}

/// Each is a size of its own: `[512, 768]`, `512,768`, or a pair in a list of pairs.
fn resolutions(value: &Value) -> Result<Toml, String> {
    let each: Vec<Toml> = match value {
        Value::List(items) => items
            .iter()
            .map(|item| resolution(&item.value))
            .collect::<Result<_, _>>()?,
        Value::Text(text) => {
            let parts = text
                .split(',')
                .map(|part| resolution(&Value::Text(part.trim().to_owned())));
            parts.collect::<Result<_, _>>()?
        }
        value => vec![resolution(value)?],
    };
    match each.len() {
        1..=16 => Ok(Toml::Array(each)),
        _ => Err(expected("1 to 16 sides in px", value)),
    }
}

fn prompts(value: &Value) -> Result<Toml, String> {
    let texts: Vec<String> = match value {
        Value::List(items) => items
            .iter()
            .map(|item| text(&item.value))
            .collect::<Result<_, _>>()?,
        value => vec![text(value)?],
    };
    let texts = texts.iter().take(MAX_PROMPTS);
    Ok(Toml::Array(
        texts
            .map(|text| Toml::String(without_flags(text)))
            .collect(),
    ))
}

/// A prompt without the flags that trainers read at its end (`--n blurry --w 768`), which would be encoded as words.
fn without_flags(prompt: &str) -> String {
    let is_flag = |at: &usize| {
        let rest = &prompt[at + 3..];
        rest.starts_with(|c: char| c.is_ascii_alphabetic())
    };
    let flags = prompt.match_indices(" --").map(|(at, _)| at).find(is_flag);
    prompt[..flags.unwrap_or(prompt.len())]
        .trim_end()
        .to_owned()
}

/// The prompts of a file as kohya's scripts read them, without their flags (`--n`, `--w`, ...).
fn prompt_file(name: &str, folder: &Path) -> Result<Toml, String> {
    if !name.to_lowercase().ends_with(".txt") {
        return Err("plumb reads prompts from a text file, one a line".to_owned());
    }
    let file = folder.join(name);
    if !file.is_file() {
        return Err("the file is not here; write its prompts under [sample]".to_owned());
    }
    let text = read_text(&file, MAX_PROMPTS_FILE)?;
    let prompts = prompt_lines(&text).map(|line| Toml::String(without_flags(line)));
    let prompts: Vec<Toml> = prompts.take(MAX_PROMPTS).collect();
    match prompts.is_empty() {
        true => Err("there is no prompt in it".to_owned()),
        false => Ok(Toml::Array(prompts)),
    }
}

fn warmup(value: &Value) -> Result<Toml, String> {
    // kohya's scripts know `10%`.
    let percent = match value {
        Value::Text(text) => text.trim().strip_suffix('%'),
        _ => None,
    };
    let percent = percent.and_then(|text| text.trim().parse::<f64>().ok());
    let found = percent
        .map(|percent| percent / 100.0)
        .or(real(value))
        .ok_or_else(|| expected("a number of steps", value))?;
    Ok(match whole(found) {
        Some(steps) => Toml::Integer(steps),
        None => Toml::Float(found),
    })
}

/// Up to 1 it is a share: 1 are all steps, and less than 0 none.
fn warmup_share(value: &Value) -> Result<Toml, String> {
    match real(value) {
        Some(1.0) => Err("warms up over all steps, and plumb's share is below 1".to_owned()),
        Some(steps) if steps > 1.0 => Ok(Toml::Integer(steps as i64)),
        Some(share) => warmup(&Value::Number(share.max(0.0))),
        None => Err(expected("a number of steps", value)),
    }
}

/// A number as whole as it was.
fn one_more(value: &Value) -> Result<Toml, String> {
    match integer(value) {
        Ok(number) => Ok(Toml::Integer(number.saturating_add(1))),
        Err(_) => real(value)
            .map(|number| Toml::Float(number + 1.0))
            .ok_or_else(|| expected("a number", value)),
    }
}

fn words(rule: &Rule, value: &Value) -> Result<Fields, String> {
    // A table with the word itself first: `1.0` is no key that a number would find.
    let said = rule
        .values
        .iter()
        .find(|(word, _)| equals(value, &Toml::String((*word).clone())))
        .map(|(_, said)| said);
    match said {
        Some(Toml::Table(fields)) => Ok(fields.clone().into_iter().collect()),
        Some(said) => {
            let field = rule.fields.first().cloned();
            Ok(field
                .map(|field| (field, said.clone()))
                .into_iter()
                .collect())
        }
        None => {
            let known: Vec<&str> = rule.values.keys().map(String::as_str).collect();
            Err(format!(
                "plumb has nothing like `{}`; of this setting it takes over {}",
                shown::text(&value.written()),
                known.join(", ")
            ))
        }
    }
}

#[cfg(test)]
mod tests;
