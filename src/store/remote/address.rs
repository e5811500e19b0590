//! The address of a store on object storage: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, and
//! `https://host/folder`, which is only read.
//!
//! Who may do what there comes from the environment. An address with a user or a password in it is refused, and no message shows it.

use std::fmt;
use std::path::Path;

use crate::shown;

/// The longest prefix, so that every object's name fits into the 1024 bytes that S3 allows.
const PREFIX_LIMIT_BYTES: usize = 512;

/// Where a store on object storage is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub(super) scheme: Scheme,
    /// Bucket, container, or host with its port.
    pub(super) bucket: String,
    /// Without slashes at its ends; empty for the bucket's root.
    pub(super) prefix: String,
}

/// Whose protocol is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    S3,
    Google,
    Azure,
    Http,
    Https,
}

impl Scheme {
    const ALL: [(&str, Self); 5] = [
        ("s3://", Self::S3),
        ("gs://", Self::Google),
        ("az://", Self::Azure),
        ("http://", Self::Http),
        ("https://", Self::Https),
    ];

    fn text(self) -> &'static str {
        let found = Self::ALL.iter().find(|(_, scheme)| *scheme == self);
        found.map_or("", |(text, _)| text)
    }
}

impl Address {
    /// Whether this is an address, and not a path: right or wrong, it has `://` in it.
    pub fn is_one(path: &Path) -> bool {
        path.to_str().is_some_and(|text| text.contains("://"))
    }

    /// Reads an address.
    ///
    /// # Errors
    /// What is wrong with it, in a clause.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = Scheme::ALL
            .iter()
            .find_map(|(start, scheme)| Some((*scheme, text.strip_prefix(start)?)))
            .ok_or_else(|| {
                // Nothing behind it is shown: it may be a password.
                let scheme = text.split("://").next().unwrap_or_default();
                format!(
                    "`{}://` is no kind of store; expected s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or https://host/folder",
                    shown::text(scheme)
                )
            })?;
        if rest.contains('@') {
            return Err(format!(
                "a {}... address with a user or password in it is refused: give them by the usual variables (AWS_ACCESS_KEY_ID and so on)",
                scheme.text()
            ));
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        let wrong = |why: &str| format!("`{}`: {why}", shown::text(text));
        let is_bucket = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
        if bucket.is_empty() || bucket.len() > 255 || !bucket.bytes().all(is_bucket) {
            return Err(wrong(
                "expected the name of a bucket, container or host after `://`: letters, digits, `.`, `-` and `_`",
            ));
        }
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-=+,".contains(&b);
        let is_name = |name: &str| {
            !name.is_empty() && name != "." && name != ".." && name.bytes().all(is_plain)
        };
        if prefix.len() > PREFIX_LIMIT_BYTES
            || !(prefix.is_empty() || prefix.split('/').all(is_name))
        {
            return Err(wrong(
                "expected names of letters, digits and `._-=+,` between single slashes, 512 bytes at most, without `?` and `#`",
            ));
        }
        Ok(Self {
            scheme,
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        })
    }

    /// Whether nothing can be written there.
    pub fn is_read_only(&self) -> bool {
        matches!(self.scheme, Scheme::Http | Scheme::Https)
    }

    /// The name of an object, from the bucket's root.
    pub(super) fn object(&self, name: &str) -> String {
        match (self.prefix.as_str(), name) {
            ("", name) => name.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, name) => format!("{prefix}/{name}"),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.scheme.text(), self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[test]
    fn an_address_has_one_spelling_and_names_below_it() {
        for (text, shown, object) in [
            ("s3://b/a/c", "s3://b/a/c", "a/c/store.json"),
            ("s3://b/a/", "s3://b/a", "a/store.json"),
            ("gs://b", "gs://b", "store.json"),
            ("az://b/", "az://b", "store.json"),
            (
                "http://127.0.0.1:80/x",
                "http://127.0.0.1:80/x",
                "x/store.json",
            ),
        ] {
            let address = Address::parse(text).expect(text);
            assert_eq!(address.to_string(), shown);
            assert_eq!(address.object("store.json"), object);
            assert_eq!(address.is_read_only(), text.starts_with("http"));
        }
    }

    #[test]
    fn what_is_no_address_is_refused_and_secrets_are_not_shown() {
        for text in [
            "s4://b/a",
            "S3://b",
            "s3://",
            "s3:///a",
            "s3://b//a",
            "s3://b/../a",
            "s3://b/./a",
            "s3://b/a?x=1",
            "s3://b/a#x",
            "s3://b/a b",
            "s3://b/a%2e",
            "s3://b\n/a",
            "s3://b/a\\c",
            "file:///tmp/a",
            "s3://key:hunter2@b/a",
            "https://me:hunter2@host/a",
            "odd://me:hunter2@host/a",
        ] {
            let why = Address::parse(text).expect_err(text);
            assert!(!why.contains("hunter2") && !why.contains('\n'), "{why}");
        }
        let long = format!("s3://b/{}", "a/".repeat(300));
        assert!(Address::parse(&long).is_err());
    }
}
