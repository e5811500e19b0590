//! Other ways from a text to ids than the pipeline's own: what another program, or another version of it, makes of the
//! same vocabulary.

use serde_json::{Map, Value};

use super::pipeline::Pipeline;

/// The name of the token rule that chooses one.
pub const IMPLEMENTATION: &str = "implementation";
/// The pipeline's own way, which is that of transformers 5. A spec does not name it.
pub const TODAYS: &str = "transformers_5";

/// The rule's default.
pub(in crate::text) fn implementation_default() -> Map<String, Value> {
    Map::from_iter([(IMPLEMENTATION.to_owned(), TODAYS.into())])
}

/// Checks that `value` is today's way or one of `names`.
pub(in crate::text) fn check_implementation(value: &Value, names: &[&str]) -> Result<(), String> {
    let all = || [TODAYS].iter().chain(names).copied();
    if all().any(|name| value == name) {
        return Ok(());
    }
    Err(format!(
        "`{IMPLEMENTATION}`: expected one of {}, found {value}",
        all().collect::<Vec<_>>().join(", ")
    ))
}

/// Checks the own token rules of a kind that has no other; `names` are its implementations beside today's.
pub(in crate::text) fn check_only_implementation(
    rules: &Map<String, Value>,
    names: &[&str],
) -> Result<(), String> {
    for (name, value) in rules {
        match name.as_str() {
            IMPLEMENTATION => check_implementation(value, names)?,
            _ => return Err(format!("unknown field `{name}`")),
        }
    }
    Ok(())
}

/// A way from a text to ids.
pub trait Implementation: Send + Sync {
    /// Whether the tokens that a file adds to the vocabulary are read as such, and a pad token's text where a recipe asks
    /// for that.
    fn reads_added_tokens(&self) -> bool;

    /// Whether an end token that a text ends with stands for the one that is put after every text.
    fn ends_once(&self) -> bool {
        false
    }

    /// What of a text without such tokens is left to read.
    ///
    /// # Errors
    /// If a table of the program is damaged.
    fn cleaned(&self, text: &str) -> Result<String, String>;

    /// The ids of a text that was cleaned.
    ///
    /// # Errors
    /// If the library fails.
    fn ids(&self, pipeline: &Pipeline, cleaned: &str) -> Result<Vec<u32>, String>;
}

/// Implementations by the names that recipes have for them.
pub type NamedImplementations = Vec<(&'static str, Box<dyn Implementation>)>;

/// A part of a text.
#[derive(Debug, PartialEq)]
pub enum Part<'t> {
    /// A token that stands there literally.
    Token(u32, &'t str),
    /// Any other text.
    Text(&'t str),
}

/// What turns texts into ids: a pipeline, in its own way or by an implementation.
pub(super) struct Reader<'t> {
    pipeline: &'t Pipeline,
    implementation: Option<&'t dyn Implementation>,
    /// Id and text of the tokens that are read whole, the longest first.
    whole: Vec<(u32, String)>,
    /// A token with a rule of its own that the implementations do not know.
    single_word: Option<String>,
}

impl<'t> Reader<'t> {
    pub(super) fn of(pipeline: &'t Pipeline) -> Self {
        Self {
            pipeline,
            implementation: None,
            whole: Vec::new(),
            single_word: None,
        }
    }

    pub(super) fn by(pipeline: &'t Pipeline, implementation: &'t dyn Implementation) -> Self {
        let mut whole = Vec::new();
        let mut single_word = None;
        if implementation.reads_added_tokens() {
            for (id, token) in pipeline.whole_tokens() {
                if token.single_word {
                    single_word = Some(token.content.clone());
                }
                whole.push((id, token.content));
            }
            whole.sort_by_key(|(id, text)| (std::cmp::Reverse(text.len()), *id));
        }
        Self {
            pipeline,
            implementation: Some(implementation),
            whole,
            single_word,
        }
    }

    pub(super) fn ends_once(&self) -> bool {
        self.implementation.is_some_and(|i| i.ends_once())
    }

    /// The ids of `text`.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        let Some(implementation) = self.implementation else {
            return self.pipeline.encode(text);
        };
        self.check()?;
        let mut ids = Vec::new();
        for part in parts(&self.whole, text) {
            match part {
                Part::Token(id, _) => ids.push(id),
                Part::Text(text) => {
                    let cleaned = implementation.cleaned(text)?;
                    ids.extend(implementation.ids(self.pipeline, &cleaned)?);
                }
            }
        }
        Ok(ids)
    }

    /// What of `text` is read.
    pub(super) fn text(&self, text: &str) -> Result<String, String> {
        let Some(implementation) = self.implementation else {
            return Ok(text.to_owned());
        };
        self.check()?;
        let mut out = String::new();
        for part in parts(&self.whole, text) {
            match part {
                Part::Token(_, text) => out += text,
                Part::Text(text) => out += &implementation.cleaned(text)?,
            }
        }
        Ok(out)
    }

    fn check(&self) -> Result<(), String> {
        match &self.single_word {
            None => Ok(()),
            Some(token) => Err(format!(
                "the added token `{token}` is single_word, which only the implementation {TODAYS} knows"
            )),
        }
    }
}

/// `text` cut at the tokens in it, of which `whole` has the longest first.
fn parts<'t>(whole: &[(u32, String)], text: &'t str) -> Vec<Part<'t>> {
    let mut found = Vec::new();
    let (mut begin, mut at) = (0, 0);
    while at < text.len() {
        let token = whole
            .iter()
            .find(|(_, token)| text[at..].starts_with(token.as_str()));
        let Some((id, token)) = token else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
            continue;
        };
        if begin < at {
            found.push(Part::Text(&text[begin..at]));
        }
        let end = at + token.len();
        found.push(Part::Token(*id, &text[at..end]));
        (begin, at) = (end, end);
    }
    if begin < text.len() {
        found.push(Part::Text(&text[begin..]));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_token_at_the_first_place_is_read() {
        let whole = [(1, "<abc>".to_owned()), (2, "<a".to_owned())];
        assert_eq!(
            parts(&whole, "x<abc><ab"),
            [
                Part::Text("x"),
                Part::Token(1, "<abc>"),
                Part::Token(2, "<a"),
                Part::Text("b")
            ]
        );
        assert_eq!(parts(&whole, ""), []);
    }
}
