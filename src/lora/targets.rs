//! Which linears get an adapter.
//!
//! A pattern fits a name if it equals the name or the name's end after a dot; `*` stands for any run of
//! characters, dots included. So `to_q` fits every query, `attn.*` everything in the first attention of every
//! block, `transformer_blocks.3.*` one block, and `*` every linear. A family may give names to lists of patterns
//! ([`Preset`]).

use super::Error;

/// A linear or convolution that can carry an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearShape {
    /// Its name, in the naming of diffusers.
    pub name: String,
    /// Rows of its weight; a convolution's output channels.
    pub outputs: usize,
    /// Columns of its weight; a convolution's input channels.
    pub inputs: usize,
    /// The side of a convolution's window; none for a linear.
    pub kernel: Option<usize>,
    /// Whether its result reaches the network's output. An adapter on one that does not would learn nothing.
    pub reached: bool,
}

/// A list of patterns with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    /// The word that an Experiment writes in `targets`.
    pub name: &'static str,
    /// The patterns that the word stands for; some may fit nothing in a small network.
    pub patterns: &'static [&'static str],
}

/// The linears that at least one of `patterns` fits, without those that do not reach the output, in the order of
/// `linears`.
///
/// # Errors
/// If there is no pattern, or one fits nothing, or only linears that do not reach the output.
pub fn select(
    linears: &[LinearShape],
    patterns: &[String],
    presets: &[Preset],
) -> Result<Vec<LinearShape>, Error> {
    if patterns.is_empty() {
        return Err(Error::NoTargets);
    }
    let mut chosen = vec![false; linears.len()];
    for pattern in patterns {
        match presets.iter().find(|preset| preset.name == pattern) {
            // No error: a preset may name what this network does not have, such as a second attention.
            Some(preset) => {
                for part in preset.patterns {
                    choose(linears, part, &mut chosen);
                }
            }
            None => match choose(linears, pattern, &mut chosen) {
                PatternMatch::Reached => {}
                PatternMatch::OnlyUnreached => return Err(Error::Unreached(pattern.clone())),
                PatternMatch::Nothing => return Err(no_such_target(linears, pattern, presets)),
            },
        }
    }
    let chosen = linears.iter().zip(chosen).filter(|(_, chosen)| *chosen);
    Ok(chosen.map(|(linear, _)| linear.clone()).collect())
}

enum PatternMatch {
    Reached,
    OnlyUnreached,
    Nothing,
}

fn choose(linears: &[LinearShape], pattern: &str, chosen: &mut [bool]) -> PatternMatch {
    let mut found = PatternMatch::Nothing;
    for (linear, chosen) in linears.iter().zip(chosen) {
        if fits(pattern, &linear.name) {
            *chosen |= linear.reached;
            found = match (&found, linear.reached) {
                (_, true) | (PatternMatch::Reached, _) => PatternMatch::Reached,
                _ => PatternMatch::OnlyUnreached,
            };
        }
    }
    found
}

/// Whether `pattern` fits `name` or an end of it that follows a dot.
pub fn fits(pattern: &str, name: &str) -> bool {
    let ends = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
    std::iter::once(name)
        .chain(ends)
        .any(|end| glob(pattern.as_bytes(), end.as_bytes()))
}

/// Whether the whole of `text` fits `pattern`: on a mismatch the last star takes one character more, so the time
/// is at most the product of the lengths.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            p += 1;
            t += 1;
        } else if let Some((star_p, star_t)) = star {
            star = Some((star_p, star_t + 1));
            p = star_p + 1;
            t = star_t + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

fn no_such_target(linears: &[LinearShape], pattern: &str, presets: &[Preset]) -> Error {
    let names = linears.iter().map(|linear| without_block(&linear.name));
    let near = near(
        pattern,
        presets.iter().map(|preset| preset.name).chain(names),
    );
    Error::NoSuchTarget {
        pattern: pattern.to_owned(),
        count: linears.len(),
        near,
    }
}

/// What follows a block's number: near names are given once, not once per block.
fn without_block(name: &str) -> &str {
    let parts = name.split('.');
    let number = parts
        .clone()
        .position(|part| part.bytes().all(|c| c.is_ascii_digit()));
    match number {
        // `to_out.0` and `net.0.proj` have numbers too: a block's is followed by two parts or more.
        Some(at) if at + 2 < parts.clone().count() => {
            let skip: usize = parts.take(at + 1).map(|part| part.len() + 1).sum();
            &name[skip..]
        }
        _ => name,
    }
}

/// The three names most like `wanted`, for a message.
pub(crate) fn near<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<_> = names.collect();
    // So that names which are equally like the wanted one come in a fixed order.
    names.sort_unstable();
    names.dedup();
    // A name of a hostile file may have megabytes, and the distance takes time by the product of the lengths.
    let wanted: String = wanted.chars().take(300).collect();
    let likeness = |name: &str| {
        let end = name.rsplit('.').next().unwrap_or(name);
        strsim::normalized_levenshtein(&wanted, name)
            .max(strsim::normalized_levenshtein(&wanted, end))
    };
    names.sort_by_cached_key(|name| std::cmp::Reverse((likeness(name) * 1e9) as u64));
    let quoted: Vec<_> = names
        .iter()
        .take(3)
        .map(|name| format!("`{name}`"))
        .collect();
    quoted.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linears() -> Vec<LinearShape> {
        let mut names = vec!["context_embedder".to_owned(), "proj_out".to_owned()];
        for block in 0..12 {
            for part in [
                "attn.to_q",
                "attn.add_q_proj",
                "attn.to_out.0",
                "ff.net.0.proj",
            ] {
                names.push(format!("transformer_blocks.{block}.{part}"));
            }
        }
        let reached = |name: &str| name != "transformer_blocks.11.attn.add_q_proj";
        names
            .into_iter()
            .map(|name| LinearShape {
                reached: reached(&name),
                name,
                outputs: 2,
                inputs: 2,
                kernel: None,
            })
            .collect()
    }

    const PRESETS: &[Preset] = &[Preset {
        name: "attention",
        patterns: &["attn.*", "attn2.*"],
    }];

    fn check(patterns: &[&str], expected: expect_test::Expect) {
        let patterns: Vec<_> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        let got = match select(&linears(), &patterns, PRESETS) {
            Ok(chosen) if chosen.len() > 3 => format!("{} linears", chosen.len()),
            Ok(chosen) => chosen
                .iter()
                .map(|l| l.name.clone())
                .collect::<Vec<_>>()
                .join(" "),
            Err(error) => error.to_string(),
        };
        expected.assert_eq(&got);
    }

    #[test]
    fn a_pattern_fits_whole_parts_of_a_name() {
        check(&["to_q"], expect_test::expect!["12 linears"]);
        check(
            &["transformer_blocks.1.attn.to_q"],
            expect_test::expect!["transformer_blocks.1.attn.to_q"],
        );
        check(
            &["transformer_blocks.1.attn.*"],
            expect_test::expect![
                "transformer_blocks.1.attn.to_q transformer_blocks.1.attn.add_q_proj transformer_blocks.1.attn.to_out.0"
            ],
        );
        check(&["attention"], expect_test::expect!["35 linears"]);
        check(&["*"], expect_test::expect!["49 linears"]);
        check(
            &["to_out.0", "context_embedder"],
            expect_test::expect!["13 linears"],
        );
        assert!(!fits("o_q", "attn.to_q") && !fits("to", "attn.to_q") && fits("t*q", "attn.to_q"));
    }

    #[test]
    fn a_pattern_that_fits_nothing_is_refused_with_near_names() {
        check(
            &["to_qq"],
            expect_test::expect![
                "adapter target `to_qq` fits none of the 50 linears; near it: `attn.to_q`, `proj_out`, `attn.to_out.0`"
            ],
        );
        check(
            &["atention"],
            expect_test::expect![
                "adapter target `atention` fits none of the 50 linears; near it: `attention`, `attn.to_q`, `attn.to_out.0`"
            ],
        );
        check(
            &["transformer_blocks.11.attn.add_q_proj"],
            expect_test::expect![
                "adapter target `transformer_blocks.11.attn.add_q_proj` fits only linears that do not reach the output, so it could learn nothing; leave it out"
            ],
        );
        check(
            &[],
            expect_test::expect![
                "adapter targets: expected at least one pattern or preset, found none"
            ],
        );
    }
}
