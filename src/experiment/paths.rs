//! Paths of an Experiment as a shell would read them: `~` for the home folder, `$NAME` and `${NAME}` for variables. The environment
//! is given by who opens the file, since nothing here reads it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::shown;

const DOLLAR: &str = "a dollar sign is written `$$`";

/// Names and values of the environment.
pub type Variables = BTreeMap<String, String>;

/// A path with `~` and variables replaced; None where it has neither.
///
/// # Errors
/// If a variable is not set or has no name, with what to do: a folder called `${HOME` is nobody's wish.
pub(super) fn expand(path: &Path, variables: &Variables) -> Result<Option<PathBuf>, String> {
    // An address on the hub is no path.
    let Some(text) = path.to_str().filter(|text| !text.contains("://")) else {
        return Ok(None);
    };
    if !text.starts_with('~') && !text.contains('$') {
        return Ok(None);
    }
    let mut expanded = String::new();
    let mut rest = text;
    if let Some(behind) = text.strip_prefix('~') {
        if !behind.is_empty() && !behind.starts_with(['/', '\\']) {
            return Err(format!(
                "`{}`: only `~/` is known; a name that begins with `~` is written `./~`",
                shown::text(text)
            ));
        }
        // Windows names it otherwise.
        let home = ["HOME", "USERPROFILE"]
            .into_iter()
            .find_map(|name| variables.get(name));
        expanded += home.ok_or("`~`: the variable HOME is not set")?;
        rest = behind;
    }
    while let Some((before, behind)) = rest.split_once('$') {
        expanded += before;
        let (value, behind) = variable(behind, variables)?;
        expanded += value;
        rest = behind;
    }
    expanded += rest;
    Ok(Some(expanded.into()))
}

/// What stands for the beginning of `text`, which follows a dollar sign, and what comes behind it.
fn variable<'a>(text: &'a str, variables: &'a Variables) -> Result<(&'a str, &'a str), String> {
    if let Some(behind) = text.strip_prefix('$') {
        return Ok(("$", behind));
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let (name, behind) = match text.strip_prefix('{') {
        Some(inner) => inner.split_once('}').ok_or_else(|| {
            let inner = shown::text(inner);
            format!("`${{{inner}`: expected a `}}` behind the variable's name; {DOLLAR}")
        })?,
        None => text.split_at(text.find(|c| !is_name(c)).unwrap_or(text.len())),
    };
    if name.is_empty()
        || name.starts_with(|c: char| c.is_ascii_digit())
        || !name.chars().all(is_name)
    {
        let found = shown::text(&text[..text.len() - behind.len()]).to_string();
        return Err(format!(
            "`${found}`: expected the name of a variable, as `$NAME` or `${{NAME}}`; {DOLLAR}"
        ));
    }
    match variables.get(name) {
        Some(value) => Ok((value, behind)),
        None => Err(format!(
            "the variable `${}` is not set; {DOLLAR}",
            shown::text(name)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::{Variables, expand};
    use std::path::Path;

    #[test]
    fn a_path_is_read_as_by_a_shell() {
        let named = [("HOME", "/home/me"), ("USER", "me"), ("EMPTY", "")];
        let variables: Variables = named
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        let check = |path: &str, expected: Option<&str>| {
            let found = expand(Path::new(path), &variables).expect("set");
            assert_eq!(found.as_deref(), expected.map(Path::new), "{path}");
        };
        check("a/b~c", None);
        check("~", Some("/home/me"));
        check("~/a", Some("/home/me/a"));
        check("$HOME/a", Some("/home/me/a"));
        check("/x/${USER}s/$USER.b", Some("/x/mes/me.b"));
        check("a$$b/$$1/$${c}$$", Some("a$b/$1/${c}$"));
        check("a${EMPTY}b", Some("ab"));
        check("hf://owner/$name", None);
        let name = "expected the name of a variable";
        for (path, why) in [
            ("$GONE/a", "`$GONE` is not set"),
            ("~you/a", "only `~/`"),
            ("${HOME/a", "`${HOME/a`: expected a `}` behind"),
            ("a/${}", name),
            ("${a b}/c", name),
            ("$1/c", name),
            ("$HOME$", name),
            ("$ a", name),
        ] {
            let said = expand(Path::new(path), &variables).expect_err("refused");
            assert!(said.contains(why), "{said}");
        }
    }
}
