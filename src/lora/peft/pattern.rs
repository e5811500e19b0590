//! A key of PEFT's `rank_pattern` or `alpha_pattern`: a regular expression of Python that has to fit a module's name, or what
//! follows a dot in it. Most are plain names, perhaps with `^` in front, and need no engine.

use fancy_regex::Regex;

use crate::shown;

/// Characters of an expression; a longer one is no name.
const MAX_CHARS: usize = 1000;

#[derive(Debug)]
pub(super) enum Pattern {
    /// The whole name, or with `end` what follows one of its dots too. A dot in it stands for any character.
    Name {
        text: String,
        end: bool,
    },
    Expression(Box<Regex>),
}

impl Pattern {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let name = text.strip_prefix('^').unwrap_or(text);
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if name.chars().all(is_plain) {
            return Ok(Self::Name {
                text: name.to_owned(),
                end: name == text,
            });
        }
        let unreadable = |why: &dyn std::fmt::Display| {
            format!(
                "the expression `{}` cannot be read: {why}",
                shown::text(text)
            )
        };
        if text.chars().count() > MAX_CHARS {
            return Err(unreadable(&format!(
                "it has more than {MAX_CHARS} characters"
            )));
        }
        // PEFT's `get_pattern_key`, for Python's `re.match`, which looks at the beginning only.
        let expression = Regex::new(&format!(r"\A(?:(.*\.)?({text})$)"));
        let expression = expression.map_err(|error| unreadable(&error))?;
        Ok(Self::Expression(Box::new(expression)))
    }

    /// Whether it fits a module's name.
    ///
    /// # Errors
    /// If that takes too long to tell.
    pub(super) fn fits(&self, module: &str) -> Result<bool, String> {
        match self {
            Self::Name { text, end } => Ok(named(text, module, *end)),
            Self::Expression(expression) => expression.is_match(module).map_err(|error| {
                format!(
                    "the expression `{}`: {error}",
                    shown::text(expression.as_str())
                )
            }),
        }
    }
}

fn named(pattern: &str, module: &str, end: bool) -> bool {
    let (pattern, module) = (pattern.as_bytes(), module.as_bytes());
    let Some(start) = module.len().checked_sub(pattern.len()) else {
        return false;
    };
    let fits = |(wanted, found): (&u8, &u8)| wanted == found || *wanted == b'.';
    let at_a_part = start == 0 || (end && module[start - 1] == b'.');
    at_a_part && pattern.iter().zip(&module[start..]).all(fits)
}
