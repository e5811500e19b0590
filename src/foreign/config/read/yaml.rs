//! YAML as PyYAML's safe loader has it, which the trainers use: YAML 1.1's words and numbers, merge keys, the last of two equal
//! keys; and numbers such as `1e-4`, which ai-toolkit has it read too (toolkit/config.py).
//!
//! The events are a crate's; what is built of them stays within [`Budget`], so that aliases of aliases and deep nesting end in a
//! sentence.

use std::collections::{BTreeMap, BTreeSet};

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput};

use crate::foreign::config::tree::{Budget, Entry, Node, Value};
use crate::shown;

/// Reads the first document of a text.
///
/// # Errors
/// If it is no YAML, has a tag that is an instruction to build something, or is beyond the bounds.
pub(super) fn read(text: &str, budget: &mut Budget) -> Result<Node, String> {
    let mut reader = Reader {
        parser: Parser::new_from_str(text),
        anchors: BTreeMap::new(),
        budget,
    };
    loop {
        let (event, span) = reader.next()?;
        match event {
            Event::StreamStart | Event::DocumentStart(_) | Event::Nothing => {}
            Event::StreamEnd | Event::DocumentEnd => {
                return Err("there is nothing in it".to_owned());
            }
            event => return reader.node(event, span, 0),
        }
    }
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    anchors: BTreeMap<usize, Node>,
    budget: &'a mut Budget,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), String> {
        match self.parser.next() {
            Some(Ok(found)) => Ok(found),
            Some(Err(e)) => Err(format!(
                "line {} is not YAML: {}",
                e.marker().line(),
                shown::text(e.info())
            )),
            None => Err("it ends in the middle of a value".to_owned()),
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, String> {
        self.budget.take(1, depth)?;
        let line = span.start.line();
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let tag = tag.map(|tag| tag.suffix.clone());
                (anchor, scalar(&text, style, tag.as_deref()))
            }
            Event::SequenceStart(anchor, _) => (anchor, self.list(depth)?),
            Event::MappingStart(anchor, _) => (anchor, self.table(depth)?),
            Event::Alias(anchor) => return self.alias(anchor, line, depth),
            _ => return Err(format!("line {line}: a value is missing")),
        };
        let node = Node {
            line: Some(line),
            value,
        };
        if anchor > 0 {
            // A copy that no alias asks for counts too: a file may have an anchor at every value.
            self.budget.take(node.size(), depth)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn alias(&mut self, anchor: usize, line: usize, depth: usize) -> Result<Node, String> {
        let Some(node) = self.anchors.get(&anchor) else {
            return Err(format!(
                "line {line}: an alias stands inside what it stands for"
            ));
        };
        // Before it is copied.
        self.budget.take(node.size(), depth + node.depth())?;
        Ok(node.clone())
    }

    fn list(&mut self, depth: usize) -> Result<Value, String> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Value::List(items)),
                (event, span) => items.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn table(&mut self, depth: usize) -> Result<Value, String> {
        let (mut entries, mut merged) = (Vec::new(), Vec::new());
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let line = span.start.line();
            let key = self.node(event, span, depth + 1)?;
            let (event, span) = self.next()?;
            let node = self.node(event, span, depth + 1)?;
            let key = match key.value {
                Value::Table(_) | Value::List(_) => {
                    return Err(format!("line {line}: a table or list stands as a key"));
                }
                key => key.written(),
            };
            match (key.as_str(), node.value) {
                ("<<", Value::Table(inner)) => merged.extend(last_of_each(inner)),
                ("<<", Value::List(items)) => {
                    for item in items {
                        if let Value::Table(inner) = item.value {
                            merged.extend(last_of_each(inner));
                        }
                    }
                }
                (_, value) => entries.push(Entry {
                    key,
                    line: Some(line),
                    node: Node {
                        line: node.line,
                        value,
                    },
                }),
            }
        }
        // What a table says itself counts before what it merges, and of that the first.
        for entry in merged {
            if entries.iter().all(|own| own.key != entry.key) {
                entries.push(entry);
            }
        }
        Ok(Value::Table(entries))
    }
}

/// A table without the entries whose keys stand again in it.
fn last_of_each(mut entries: Vec<Entry>) -> Vec<Entry> {
    let mut seen = BTreeSet::new();
    entries.reverse();
    entries.retain(|entry| seen.insert(entry.key.clone()));
    entries.reverse();
    entries
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&str>) -> Value {
    match tag {
        Some("str") => return Value::Text(text.to_owned()),
        None if style != ScalarStyle::Plain => return Value::Text(text.to_owned()),
        _ => {}
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Value::Flag(true);
        }
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Flag(false);
        }
        _ => {}
    }
    number(text).unwrap_or_else(|| Value::Text(text.to_owned()))
}

fn number(text: &str) -> Option<Value> {
    let plain = text.replace('_', "");
    let (negative, digits) = match plain.strip_prefix(['-', '+']) {
        Some(rest) => (plain.starts_with('-'), rest),
        None => (false, plain.as_str()),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let radix = |digits: &str, radix| i64::from_str_radix(digits, radix).ok();
    let whole = if let Some(hex) = digits.strip_prefix("0x") {
        radix(hex, 16)
    } else if let Some(binary) = digits.strip_prefix("0b") {
        radix(binary, 2)
    } else if digits.len() > 1
        && digits.starts_with('0')
        && digits.bytes().all(|b| b.is_ascii_digit())
    {
        // YAML 1.1: `010` is eight. With an 8 or 9 in it, it is text.
        return radix(digits, 8).map(|n| Value::Integer(if negative { -n } else { n }));
    } else if digits.bytes().all(|b| b.is_ascii_digit()) {
        radix(digits, 10)
    } else {
        None
    };
    if let Some(whole) = whole {
        return Some(Value::Integer(if negative { -whole } else { whole }));
    }
    let is_real = digits
        .bytes()
        .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'-' | b'+'));
    let real: f64 = is_real.then(|| plain.parse().ok())??;
    real.is_finite().then_some(Value::Number(real))
}

#[cfg(test)]
mod tests {
    use super::{Budget, Node, Value, read};

    fn yaml(text: &str) -> Result<Node, String> {
        read(text, &mut Budget::default())
    }

    fn value(text: &str) -> Value {
        let node = yaml(&format!("a: {text}\n")).expect("YAML");
        node.get("a").expect("the key").value.clone()
    }

    #[test]
    fn words_and_numbers_are_those_of_pyyaml() {
        assert_eq!(value("yes"), Value::Flag(true));
        assert_eq!(value("'yes'"), Value::Text("yes".to_owned()));
        assert_eq!(value("1e-4"), Value::Number(1e-4));
        assert_eq!(value("010"), Value::Integer(8));
        assert_eq!(value("-1_000"), Value::Integer(-1000));
        assert_eq!(value("~"), Value::Null);
        assert_eq!(value("1.2.3"), Value::Text("1.2.3".to_owned()));
        assert_eq!(value("e5"), Value::Text("e5".to_owned()));
    }

    #[test]
    fn lines_are_told_and_twins_and_merges_are_kept() {
        let text = "base: &b\n  lr: 1\n  k: 2\nnew:\n  <<: *b\n  lr: 3\nnew2: 1\nnew2: 2\n";
        let node = yaml(text).expect("YAML");
        let new = node.get("new").expect("a table");
        assert_eq!(new.get("lr").expect("own").value, Value::Integer(3));
        assert_eq!(new.get("k").expect("merged").line, Some(3));
        let twice = yaml("base: &b\n  k: 1\n  k: 2\nnew:\n  <<: *b\n").expect("YAML");
        let k = twice
            .get("new")
            .and_then(|new| new.get("k"))
            .expect("merged");
        assert_eq!(k.value, Value::Integer(2));
        let Value::Table(entries) = &node.value else {
            panic!("a table")
        };
        let twins: Vec<_> = entries.iter().filter(|e| e.key == "new2").collect();
        assert_eq!((twins.len(), twins[1].line), (2, Some(8)));
    }

    #[test]
    fn aliases_of_aliases_and_deep_nesting_end_in_a_sentence() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..12 {
            let many = vec![format!("*a{}", n - 1); 10].join(", ");
            bomb += &format!("a{n}: &a{n} [{many}]\n");
        }
        assert!(
            yaml(&bomb)
                .expect_err("a bomb")
                .contains("more than 50000 values")
        );
        let deep = |levels| yaml(&format!("a: {}", "[".repeat(levels))).expect_err("deep");
        assert!(deep(40).contains("levels deep"));
        // The crate has a limit of its own, before ours.
        assert!(deep(100_000).contains("is not YAML"));
        assert!(yaml("a: &x [*x]").expect_err("itself").contains("alias"));
    }
}
