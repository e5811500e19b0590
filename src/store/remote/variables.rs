//! The variables of the environment by which object storage is reached: what of them is refused before the client, which would end in a panic,
//! is given it, and which server they name.

use super::address::Scheme;
use super::client::Variables;
use super::http::is_server;
use crate::shown;

/// Where Amazon's protocol is spoken by another server, the one that counts last.
const S3_SERVERS: [&str; 3] = ["AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"];
const AZURE_SERVERS: [&str; 2] = ["AZURE_ENDPOINT", "AZURE_STORAGE_ENDPOINT"];
const AZURE_EMULATOR: &str = "AZURE_STORAGE_USE_EMULATOR";
const AZURE_ACCOUNT: &str = "AZURE_STORAGE_ACCOUNT_NAME";

/// What is wrong with the variables of a protocol, in a clause that names the first and shows nothing of its value.
pub(super) fn fault(scheme: Scheme, variables: &Variables) -> Option<String> {
    let (family, servers) = match scheme {
        Scheme::S3 => ("AWS_", &S3_SERVERS[..]),
        Scheme::Azure => ("AZURE_", &AZURE_SERVERS[..]),
        Scheme::Google | Scheme::Http | Scheme::Https => return None,
    };
    // What may name a file, in whatever letters.
    let is_path = |name: &str| name.contains("FILE") || name.contains("PATH");
    let set = |(name, value): &(&String, &String)| name.starts_with(family) && !value.is_empty();
    let mut texts = variables.iter().filter(set).filter(|(n, _)| !is_path(n));
    let unfit = |value: &str| {
        let is_plain = value.bytes().all(|b| (0x20..0x7f).contains(&b));
        !is_plain || value.trim() != value
    };
    if let Some((name, _)) = texts.find(|(_, value)| unfit(value)) {
        return Some(format!(
            "{} has a line end, a space at an end, or a character that is not ASCII: set it without",
            shown::text(name)
        ));
    }
    let mut given = servers.iter().filter_map(|name| {
        let url = variables.get(*name).filter(|url| !url.is_empty())?;
        Some((*name, url))
    });
    given.find_map(|(name, url)| is_bad_url(url).map(|why| format!("{name} {why}")))
}

/// What is wrong with the address of a server.
fn is_bad_url(url: &str) -> Option<String> {
    if url.contains('@') {
        return Some(
            "has a user or password in it; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are for these"
                .to_owned(),
        );
    }
    (!is_server(url)).then(|| {
        format!(
            "is `{}`; expected an address such as https://host or http://host:9000",
            shown::text(url)
        )
    })
}

/// The server, where the address of a store does not say it: two of different servers are different stores.
pub(super) fn server(scheme: Scheme, variables: &Variables) -> Option<String> {
    let last_of = |names: &[&str]| {
        let mut set = names.iter().rev().filter_map(|name| variables.get(*name));
        let found = set.find(|value| !value.is_empty());
        found.map(|url| url.trim_end_matches('/').to_owned())
    };
    match scheme {
        Scheme::S3 => last_of(&S3_SERVERS),
        Scheme::Azure => {
            let on = |value: &String| !value.is_empty() && value != "false" && value != "0";
            let emulator = variables.get(AZURE_EMULATOR).is_some_and(on);
            let server = match emulator {
                true => Some("emulator".to_owned()),
                false => last_of(&AZURE_SERVERS),
            };
            let account = variables.get(AZURE_ACCOUNT).cloned();
            let parts: Vec<String> = server.into_iter().chain(account).collect();
            (!parts.is_empty()).then(|| parts.join("/"))
        }
        Scheme::Google => last_of(&["GOOGLE_BASE_URL"]),
        Scheme::Http | Scheme::Https => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(all: &[(&str, &str)]) -> Variables {
        let owned = all.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        owned.collect()
    }

    #[test]
    fn what_the_client_cannot_send_is_named_and_not_shown() {
        for (name, value, told) in [
            (
                "AWS_ACCESS_KEY_ID",
                "hunter2hunter2\n",
                "AWS_ACCESS_KEY_ID has a line end",
            ),
            ("AWS_SESSION_TOKEN", "gr\u{fc}n", "AWS_SESSION_TOKEN has"),
            ("AWS_REGION", " eu-west-1", "AWS_REGION has"),
            (
                "AWS_ENDPOINT_URL",
                "localhost:9000",
                "AWS_ENDPOINT_URL is `localhost:9000`",
            ),
            (
                "AWS_ENDPOINT_URL",
                "http://",
                "AWS_ENDPOINT_URL is `http://`",
            ),
            (
                "AWS_ENDPOINT_URL_S3",
                "http://host:99999",
                "AWS_ENDPOINT_URL_S3 is",
            ),
            ("AWS_ENDPOINT", "http://host:", "AWS_ENDPOINT is"),
            ("AWS_ENDPOINT", "ftp://host", "AWS_ENDPOINT is"),
            (
                "AWS_ENDPOINT",
                "http://me:hunter2@host",
                "AWS_ENDPOINT has a user",
            ),
        ] {
            let why = fault(Scheme::S3, &variables(&[(name, value)])).expect(value);
            assert!(why.starts_with(told) && !why.contains("hunter2"), "{why}");
        }
        let fine = [
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:9000/"),
            ("AWS_ENDPOINT", "https://[::1]"),
            ("AWS_ENDPOINT_URL_S3", "https://s3.example.com/path"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/home/j\u{fc}rgen/key"),
            ("AZURE_STORAGE_ACCOUNT_KEY", "of no interest\n"),
            ("AWS_SECRET_ACCESS_KEY", ""),
        ];
        assert_eq!(fault(Scheme::S3, &variables(&fine)), None);
        let of_azure = fault(Scheme::Azure, &variables(&fine)).expect("a fault");
        assert!(
            of_azure.starts_with("AZURE_STORAGE_ACCOUNT_KEY has"),
            "{of_azure}"
        );
    }

    #[test]
    fn stores_of_two_servers_are_told_apart() {
        let of = |scheme, all: &[(&str, &str)]| server(scheme, &variables(all));
        let one = ("AWS_ENDPOINT_URL", "http://one:9000/");
        assert_eq!(of(Scheme::S3, &[one]).as_deref(), Some("http://one:9000"));
        let other = ("AWS_ENDPOINT_URL_S3", "http://other");
        assert_eq!(
            of(Scheme::S3, &[one, other]).as_deref(),
            Some("http://other")
        );
        assert_eq!(of(Scheme::S3, &[]), None);
        assert_eq!(of(Scheme::Google, &[one]), None);
        let account = (AZURE_ACCOUNT, "mine");
        assert_eq!(of(Scheme::Azure, &[account]).as_deref(), Some("mine"));
        let emulated = of(Scheme::Azure, &[account, (AZURE_EMULATOR, "true")]);
        assert_eq!(emulated.as_deref(), Some("emulator/mine"));
    }
}
