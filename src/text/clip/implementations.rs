//! What other programs than transformers 5 make of CLIP's vocabulary: byte-level BPE over words that an expression finds
//! in a text that was cleaned, as OpenAI wrote it and all of them took it over.
//!
//! Sources: `clip/simple_tokenizer.py` of openai/CLIP, `open_clip/tokenizer.py` of open_clip, and `CLIPTokenizer` of
//! transformers 4 (`models/clip/tokenization_clip.py`), whose `BasicTokenizer` stands in where ftfy is not installed.

use std::sync::LazyLock;

use tokenizers::utils::SysRegex;

use crate::text::tokenizer::ftfy::{self, Version};
use crate::text::tokenizer::{Implementation, NamedImplementations, Pipeline, python};

/// All of them, by the names that recipes have for them.
pub(super) const NAMES: [(&str, Program); 6] = [
    ("transformers_4", Program::Transformers(None)),
    (
        "transformers_4_ftfy_6.1",
        Program::Transformers(Some(Version::V6_1)),
    ),
    (
        "transformers_4_ftfy_6.3",
        Program::Transformers(Some(Version::V6_3)),
    ),
    ("open_clip_ftfy_6.1", Program::OpenClip(Version::V6_1)),
    ("open_clip_ftfy_6.3", Program::OpenClip(Version::V6_3)),
    ("openai_ftfy_6.1", Program::OpenAi(Version::V6_1)),
];

/// A program, and the version of ftfy that it found.
#[derive(Clone, Copy, Debug)]
pub(super) enum Program {
    Transformers(Option<Version>),
    OpenClip(Version),
    OpenAi(Version),
}

impl Program {
    /// Whether it knows tokens that were added to the vocabulary, and a pad token's text.
    pub(super) fn reads_added_tokens(self) -> bool {
        matches!(self, Self::Transformers(_))
    }

    /// The texts that its expression finds as a whole, with the vocabulary's name of each.
    fn specials(self) -> [(&'static str, &'static str); 2] {
        match self {
            Self::OpenClip(_) => [
                ("<start_of_text>", super::BOS),
                ("<end_of_text>", super::EOS),
            ],
            Self::Transformers(_) | Self::OpenAi(_) => {
                [(super::BOS, super::BOS), (super::EOS, super::EOS)]
            }
        }
    }
}

struct WordBpe(Program);

/// All of them, by name.
pub(super) fn all() -> NamedImplementations {
    let one = |(name, program)| -> (&'static str, Box<dyn Implementation>) {
        (name, Box::new(WordBpe(program)))
    };
    NAMES.into_iter().map(one).collect()
}

/// The expressions, which take longer to build than most texts to read.
struct Expressions {
    words: SysRegex,
    words_of_open_clip: SysRegex,
    /// Unicode's category of controls, format characters and what is unassigned.
    other: SysRegex,
    separator: SysRegex,
}

fn expressions() -> Result<&'static Expressions, String> {
    static BUILT: LazyLock<Result<Expressions, String>> = LazyLock::new(|| {
        let words = |program: Program| {
            let [bos, eos] = program.specials().map(|(text, _)| text.replace('|', r"\|"));
            // White space as Python's `regex` has it, which matches U+0345 with nothing here: without regard to case it
            // is a letter where letters are excluded, and none where they are asked for.
            python::regex(&format!(
                r"(?i:{bos}|{eos}|'s|'t|'re|'ve|'m|'ll|'d)|[\p{{L}}]+|[\p{{N}}]|[^\s\x1c-\x1f\p{{L}}\p{{N}}\u{{345}}]+"
            ))
        };
        Ok(Expressions {
            words: words(Program::Transformers(None))?,
            words_of_open_clip: words(Program::OpenClip(Version::V6_1))?,
            other: python::regex(r"\p{C}")?,
            separator: python::regex(r"\p{Zs}")?,
        })
    });
    BUILT.as_ref().map_err(Clone::clone)
}

impl Implementation for WordBpe {
    fn reads_added_tokens(&self) -> bool {
        self.0.reads_added_tokens()
    }

    fn cleaned(&self, text: &str) -> Result<String, String> {
        let clean = match self.0 {
            Program::Transformers(None) => return Ok(basic_tokens(expressions()?, text)),
            Program::Transformers(Some(version)) => ftfy::fix_text(version, text)?,
            Program::OpenClip(version) | Program::OpenAi(version) => {
                ftfy::unescaped_twice(&ftfy::fix_text(version, text)?)?
            }
        };
        Ok(python::joined_words(&clean).to_lowercase())
    }

    fn ids(&self, pipeline: &Pipeline, cleaned: &str) -> Result<Vec<u32>, String> {
        let mut ids = Vec::new();
        let words = match self.0 {
            Program::OpenClip(_) => &expressions()?.words_of_open_clip,
            Program::Transformers(_) | Program::OpenAi(_) => &expressions()?.words,
        };
        for (start, end) in words.find_iter(cleaned) {
            let word = &cleaned[start..end];
            let mut specials = self.0.specials().into_iter();
            let special = specials.find(|(text, _)| *text == word);
            match special.and_then(|(_, token)| pipeline.id_of(token)) {
                Some(id) => ids.push(id),
                None => ids.extend(pipeline.model_ids(&byte_symbols(word))?),
            }
        }
        Ok(ids)
    }
}

/// `" ".join(BasicTokenizer(strip_accents=False, do_split_on_punc=False).tokenize(text))`.
fn basic_tokens(expressions: &Expressions, text: &str) -> String {
    let mut spaced = String::with_capacity(text.len());
    for c in text.chars() {
        if c == char::REPLACEMENT_CHARACTER || is_control(expressions, c) {
            continue;
        }
        if is_separator(expressions, c) {
            spaced.push(' ');
        } else if is_chinese(c) {
            spaced.extend([' ', c, ' ']);
        } else {
            spaced.push(c);
        }
    }
    let composed = python::joined_words(&python::nfc(&spaced));
    // Each word on its own: what a final sigma becomes depends on what is around it.
    let words = composed.split(' ').map(str::to_lowercase);
    python::joined_words(&words.collect::<Vec<_>>().join(" "))
}

fn is_control(expressions: &Expressions, c: char) -> bool {
    match c {
        '\t' | '\n' | '\r' => false,
        c if c.is_ascii() => c.is_ascii_control(),
        c => python::is_found(&expressions.other, c.encode_utf8(&mut [0; 4])),
    }
}

fn is_separator(expressions: &Expressions, c: char) -> bool {
    match c {
        '\t' | '\n' | '\r' | ' ' => true,
        c if c.is_ascii() => false,
        c => python::is_found(&expressions.separator, c.encode_utf8(&mut [0; 4])),
    }
}

/// The blocks that `BasicTokenizer` takes for Chinese.
fn is_chinese(c: char) -> bool {
    matches!(c,
        '\u{4e00}'..='\u{9fff}' | '\u{3400}'..='\u{4dbf}' | '\u{20000}'..='\u{2a6df}' | '\u{2a700}'..='\u{2b73f}'
        | '\u{2b740}'..='\u{2b81f}' | '\u{2b820}'..='\u{2ceaf}' | '\u{f900}'..='\u{faff}' | '\u{2f800}'..='\u{2fa1f}')
}

/// The bytes of `word`, each as the symbol that stands for it in the vocabulary.
fn byte_symbols(word: &str) -> String {
    word.bytes().map(symbol).collect()
}

/// GPT-2's symbols: printable characters of Latin-1 stand for themselves, the others for the characters from U+0100 on.
fn symbol(byte: u8) -> char {
    let others = match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => return char::from(byte),
        0..=0x20 => byte,
        0x7F..=0xA0 => byte - 0x7F + 0x21,
        0xAD => 0x43,
    };
    char::from_u32(0x100 + u32::from(others)).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::symbol;

    #[test]
    fn every_byte_has_a_symbol_of_its_own() {
        let symbols: Vec<char> = (0..=255).map(symbol).collect();
        let unique: std::collections::BTreeSet<_> = symbols.iter().collect();
        assert_eq!(unique.len(), 256);
        assert_eq!(
            (symbols[0], symbols[32], symbols[127]),
            ('\u{100}', '\u{120}', '\u{121}')
        );
        assert_eq!((symbols[0xA0], symbols[0xAD]), ('\u{142}', '\u{143}'));
    }
}
