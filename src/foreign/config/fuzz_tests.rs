//! The fixtures of all trainers, damaged at random: every one must become an Experiment that can be read, or be refused in one line.

use std::path::PathBuf;

use super::tests::fixtures;
use super::{Error, Options, import};
use crate::foreign::fuzz_tests::fuzz;

/// What the formats have that single bytes seldom make: anchors, tables, quotes, continued lines, and numbers of all sizes.
const WORDS: [&[u8]; 30] = [
    b"\n",
    b": ",
    b"- ",
    b"\n  ",
    b"&a [",
    b"*a, ",
    b"<<: *a\n",
    b"!!python/object:os.system ",
    b"---\n",
    b"|\n",
    b"[[",
    b"]]",
    b"{",
    b"}",
    b"[",
    b"\"\"\"",
    b"'",
    b"\\\n",
    b"\\u0000",
    b"$(rm)",
    b"${x:-",
    b"--",
    b"=",
    b"null",
    b"1e999",
    b"-9223372036854775809",
    b"18446744073709551616",
    b"\x1b[2J",
    b"\xef\xbb\xbf",
    "\u{202e}".as_bytes(),
];

#[test]
fn a_damaged_config_is_read_or_refused() {
    // With none of the files beside it that it may name.
    let folder = tempfile::tempdir().expect("a folder");
    let (mut files, mut wholes) = (Vec::<PathBuf>::new(), Vec::new());
    for (n, fixture) in fixtures().into_iter().enumerate() {
        let name = fixture.file_name().expect("a name").to_string_lossy();
        files.push(folder.path().join(format!("{n}-{name}")));
        wholes.push(std::fs::read(&fixture).expect("a fixture"));
    }
    let wholes: Vec<&[u8]> = wholes.iter().map(Vec::as_slice).collect();
    fuzz(&wholes, &WORDS, 40, |which, bytes| {
        let file = &files[which];
        std::fs::write(file, bytes).expect("written");
        let options = Options {
            keep_recipe: bytes.len() % 2 == 0,
            ..Options::default()
        };
        let line = |text: &str| {
            assert!(!text.contains(char::is_control), "{text:?}");
            assert!(text.chars().count() < 4000, "{text:?}");
        };
        match import(std::slice::from_ref(file), &options) {
            Ok(found) => {
                found.table().lines().for_each(line);
                found.notes.iter().for_each(|note| line(note));
                if let Err(why) = toml::from_str::<toml::Table>(&found.experiment) {
                    panic!("{why}\n{}", found.experiment);
                }
            }
            Err(why @ Error::Internal { .. }) => panic!("{why}"),
            Err(why) => line(&why.to_string()),
        }
    });
}
