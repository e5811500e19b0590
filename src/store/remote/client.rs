//! Objects by name, as blocking calls: the only file that knows the asynchronous runtime.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::path::Path as ObjectPath;
use object_store::{
    BackoffConfig, GetOptions, GetRange, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions,
    RetryConfig,
};
use tokio::runtime::Runtime;

use super::address::{Address, Scheme};
use super::ending::changing;
use super::http::{BodyLimit, Connector};
use super::names::Object;
use super::variables;
use crate::shown;
use crate::store::Error;

/// How often something is tried of which nobody knows whether it was carried out.
const TRIES: u32 = 5;
/// Before the second of them; each later pause is twice as long.
const PAUSE: Duration = Duration::from_millis(300);
/// The most objects of a list: sixteen million packs are 4 PB.
const LIST_LIMIT: usize = 1 << 24;

/// Names and values of the environment.
pub type Variables = BTreeMap<String, String>;

/// Object storage, at an address. Its calls may come from several threads at once.
pub(super) struct Client {
    store: Box<dyn ObjectStore>,
    runtime: Runtime,
    pub(super) address: Address,
    /// What no message may show.
    secrets: Vec<String>,
}

/// An object as a list has it.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    /// Below the address.
    pub(super) name: String,
    pub(super) bytes: u64,
    /// By the server's clock.
    pub(super) modified: SystemTime,
}

impl Client {
    /// Nothing is sent yet.
    pub(super) fn new(address: Address, variables: &Variables) -> Result<Self, Error> {
        let refuse =
            |why: String| Error::Refused(format!("the store {address} cannot be opened: {why}"));
        if let Some(why) = variables::fault(address.scheme, variables) {
            return Err(refuse(why));
        }
        let store = match address.scheme {
            Scheme::S3 => s3(&address, variables),
            Scheme::Google => google(&address, variables),
            Scheme::Azure => azure(&address, variables),
            Scheme::Http | Scheme::Https => http(&address),
        };
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().build();
        let secrets = secrets(variables);
        Ok(Self {
            store: store.map_err(|why| refuse(hidden(&why, &secrets)))?,
            runtime: runtime.map_err(|e| refuse(e.to_string()))?,
            address,
            secrets,
        })
    }

    /// The bytes of an object, of which more than `limit` are an error.
    pub(super) fn get(&self, name: &str, limit: u64) -> Result<Bytes, Error> {
        let got = self.get_with(name, limit, None);
        got.map(|(bytes, _)| bytes)
    }

    /// Some bytes of an object, and how many it has.
    pub(super) fn get_range(&self, name: &str, bytes: Range<u64>) -> Result<(Bytes, u64), Error> {
        self.get_with(name, bytes.end - bytes.start, Some(bytes.into()))
    }

    fn get_with(
        &self,
        name: &str,
        limit: u64,
        range: Option<GetRange>,
    ) -> Result<(Bytes, u64), Error> {
        let mut options = GetOptions::default();
        options.extensions.insert(BodyLimit(limit));
        options.range = range;
        let path = self.path(name)?;
        let got = self.runtime.block_on(async {
            let found = self.store.get_opts(&path, options).await?;
            let all = found.meta.size;
            Ok((found.bytes().await?, all))
        });
        got.map_err(|e| self.failed("read", name, &e))
    }

    /// Puts an object where none of its name is; says whether there was none. A put that nobody answered is tried again.
    pub(super) fn put_new(&self, name: &str, bytes: &Bytes) -> Result<bool, Error> {
        match self.try_put(name, bytes, PutMode::Create) {
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            // Storage without conditions: the name says what the bytes are, so a second put changes nothing.
            Err(e) if lacks_conditions(&e) => self.put(name, bytes).map(|()| true),
            Err(e) => Err(self.failed("write", name, &e)),
            Ok(()) => Ok(true),
        }
    }

    /// Puts an object, whatever was there.
    pub(super) fn put(&self, name: &str, bytes: &Bytes) -> Result<(), Error> {
        let put = self.try_put(name, bytes, PutMode::Overwrite);
        put.map_err(|e| self.failed("write", name, &e))
    }

    fn try_put(&self, name: &str, bytes: &Bytes, mode: PutMode) -> object_store::Result<()> {
        let path = ObjectPath::parse(self.address.object(name))?;
        let _changing = changing();
        again(|| {
            let options = PutOptions::from(mode.clone());
            let put = self.store.put_opts(&path, bytes.clone().into(), options);
            self.runtime.block_on(put).map(|_| ())
        })
    }

    /// Removes an object; one that is gone already is no error.
    pub(super) fn remove(&self, name: &str) -> Result<(), Error> {
        let _changing = changing();
        self.remove_at_the_end(name)
    }

    /// The same for who lets nothing else be changed.
    pub(super) fn remove_at_the_end(&self, name: &str) -> Result<(), Error> {
        let path = self.path(name)?;
        match again(|| self.runtime.block_on(self.store.delete(&path))) {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            done => done.map_err(|e| self.failed("remove", name, &e)),
        }
    }

    /// An object without its bytes; None where there is none.
    pub(super) fn look(&self, name: &str) -> Result<Option<Object>, Error> {
        let path = self.path(name)?;
        match self.runtime.block_on(self.store.head(&path)) {
            Ok(found) => Ok(Some(Object {
                bytes: found.size,
                modified: found.last_modified.into(),
            })),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.failed("look for", name, &e)),
        }
    }

    /// The objects below `folder`, or all where it is empty.
    pub(super) fn list(&self, folder: &str) -> Result<Vec<Listed>, Error> {
        let found = self.list_up_to(folder, LIST_LIMIT)?;
        found.ok_or_else(|| {
            let why = format!("expected at most {LIST_LIMIT} objects");
            self.error("list", folder, why, false)
        })
    }

    /// The same; None of more than `most`.
    pub(super) fn list_up_to(
        &self,
        folder: &str,
        most: usize,
    ) -> Result<Option<Vec<Listed>>, Error> {
        let root = self.address.object("");
        let prefix = self.path(folder)?;
        let listed = self.runtime.block_on(async {
            let mut stream = self.store.list(Some(&prefix));
            let mut found = Vec::new();
            while let Some(object) = stream.try_next().await? {
                let name = object.location.as_ref().strip_prefix(root.as_str());
                let Some(name) = name else { continue };
                if found.len() == most {
                    return Ok(None);
                }
                found.push(Listed {
                    name: name.trim_start_matches('/').to_owned(),
                    bytes: object.size,
                    modified: object.last_modified.into(),
                });
            }
            Ok(Some(found))
        });
        listed.map_err(|e| self.failed("list", folder, &e))
    }

    fn path(&self, name: &str) -> Result<ObjectPath, Error> {
        let path = ObjectPath::parse(self.address.object(name));
        path.map_err(|e| self.failed("name", name, &e.into()))
    }

    fn failed(&self, action: &'static str, name: &str, e: &object_store::Error) -> Error {
        let is_absent = matches!(e, object_store::Error::NotFound { .. });
        let why = hidden(&reason(e, self.address.scheme), &self.secrets);
        self.error(action, name, why, is_absent)
    }

    fn error(&self, action: &'static str, name: &str, why: String, is_absent: bool) -> Error {
        let slash = if name.is_empty() { "" } else { "/" };
        Error::Remote {
            action,
            object: format!("{}{slash}{}", self.address, shown::text(name)),
            why,
            is_absent,
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing of the credentials.
        write!(f, "Client({})", self.address)
    }
}

/// Does what can be done twice until it is done or refused.
fn again(mut work: impl FnMut() -> object_store::Result<()>) -> object_store::Result<()> {
    let mut pause = PAUSE;
    for _ in 1..TRIES {
        match work() {
            Err(e) if is_passing(&e) => std::thread::sleep(pause),
            done => return done,
        }
        pause *= 2;
    }
    work()
}

fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(8),
            base: 2.0,
        },
        max_retries: 8,
        retry_timeout: Duration::from_secs(180),
    }
}

type Opened = Result<Box<dyn ObjectStore>, String>;

/// Whether one of these is set. Where none is, the address of the cloud's own machines is asked for credentials, and on any other machine
/// nothing answers.
fn has_any(variables: &Variables, names: &[&str]) -> bool {
    let has = |name: &&str| variables.get(*name).is_some_and(|value| !value.is_empty());
    names.iter().any(has)
}

fn s3(address: &Address, variables: &Variables) -> Opened {
    let named = [
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_METADATA_ENDPOINT",
        "AWS_SKIP_SIGNATURE",
    ];
    if !has_any(variables, &named) {
        return Err(
            "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_ENDPOINT_URL where it is not Amazon's), or AWS_SKIP_SIGNATURE=true for a public bucket".to_owned(),
        );
    }
    let mut builder = AmazonS3Builder::new();
    for (name, value) in variables.iter().filter(|(_, value)| !value.is_empty()) {
        let key = name.starts_with("AWS_").then(|| name.to_ascii_lowercase());
        if let Some(Ok(key)) = key.map(|key| key.parse::<AmazonS3ConfigKey>()) {
            builder = builder.with_config(key, value);
        }
    }
    // One by one: not all servers know how to remove several at once.
    let built = builder
        .with_bucket_name(&address.bucket)
        .with_disable_bulk_delete(true)
        .with_http_connector(Connector)
        .with_retry(retry())
        .build();
    Ok(Box::new(built.map_err(|e| e.to_string())?))
}

fn google(address: &Address, variables: &Variables) -> Opened {
    let named = [
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_PATH",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
        "SERVICE_ACCOUNT",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_SKIP_SIGNATURE",
        "GCE_METADATA_HOST",
    ];
    // What `gcloud auth application-default login` leaves.
    let home = variables.get("HOME").or_else(|| variables.get("APPDATA"));
    let login = home.is_some_and(|home| {
        let file = "gcloud/application_default_credentials.json";
        [".config", ""]
            .iter()
            .any(|folder| Path::new(home).join(folder).join(file).is_file())
    });
    if !login && !has_any(variables, &named) {
        return Err(
            "no credentials: set GOOGLE_SERVICE_ACCOUNT, the file of a service account's key, or log in by `gcloud auth application-default login`; on a machine of Google's own GCE_METADATA_HOST=metadata.google.internal; GOOGLE_SKIP_SIGNATURE=true for a public bucket".to_owned(),
        );
    }
    let mut builder = GoogleCloudStorageBuilder::new();
    for (name, value) in variables.iter().filter(|(_, value)| !value.is_empty()) {
        let key = match name.as_str() {
            "SERVICE_ACCOUNT" => Some("google_service_account".to_owned()),
            name if name.starts_with("GOOGLE_") => Some(name.to_ascii_lowercase()),
            _ => None,
        };
        if let Some(Ok(key)) = key.map(|key| key.parse::<GoogleConfigKey>()) {
            builder = builder.with_config(key, value);
        }
    }
    let built = builder
        .with_bucket_name(&address.bucket)
        .with_http_connector(Connector)
        .with_retry(retry())
        .build();
    Ok(Box::new(built.map_err(|e| e.to_string())?))
}

fn azure(address: &Address, variables: &Variables) -> Opened {
    let emulator = "AZURE_STORAGE_USE_EMULATOR";
    if !has_any(variables, &["AZURE_STORAGE_ACCOUNT_NAME", emulator]) {
        return Err(
            "no account: set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN".to_owned(),
        );
    }
    let named = [
        emulator,
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_ACCESS_KEY",
        "AZURE_STORAGE_SAS_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
        "AZURE_STORAGE_TOKEN",
        "AZURE_CLIENT_SECRET",
        "AZURE_STORAGE_CLIENT_SECRET",
        "AZURE_FEDERATED_TOKEN_FILE",
        "AZURE_MSI_ENDPOINT",
        "AZURE_IDENTITY_ENDPOINT",
        "AZURE_USE_AZURE_CLI",
        "AZURE_CREDENTIAL_TYPE",
        "AZURE_SKIP_SIGNATURE",
    ];
    if !has_any(variables, &named) {
        return Err(
            "no credentials: set AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN or AZURE_USE_AZURE_CLI=true; on a machine of Azure's own AZURE_CREDENTIAL_TYPE=managed_identity; AZURE_SKIP_SIGNATURE=true for a public container".to_owned(),
        );
    }
    let mut builder = MicrosoftAzureBuilder::new();
    for (name, value) in variables.iter().filter(|(_, value)| !value.is_empty()) {
        let key = name
            .starts_with("AZURE_")
            .then(|| name.to_ascii_lowercase());
        if let Some(Ok(key)) = key.map(|key| key.parse::<AzureConfigKey>()) {
            builder = builder.with_config(key, value);
        }
    }
    let built = builder
        .with_container_name(&address.bucket)
        .with_http_connector(Connector)
        .with_retry(retry())
        .build();
    Ok(Box::new(built.map_err(|e| e.to_string())?))
}

fn http(address: &Address) -> Opened {
    let root = Address {
        prefix: String::new(),
        ..address.clone()
    };
    let built = HttpBuilder::new()
        .with_url(root.to_string())
        .with_http_connector(Connector)
        .with_retry(retry())
        .build();
    Ok(Box::new(built.map_err(|e| e.to_string())?))
}

/// Whether another try may do. The crate itself tries again only what it knows to be harmless.
fn is_passing(e: &object_store::Error) -> bool {
    let object_store::Error::Generic { source, .. } = e else {
        return false;
    };
    // A refusal names its status.
    let text = source.to_string();
    !text.contains("status code: 4") && !text.contains("redirect")
}

fn lacks_conditions(e: &object_store::Error) -> bool {
    match e {
        object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. } => {
            true
        }
        object_store::Error::Generic { source, .. } => {
            let text = source.to_string();
            text.contains("status code: 501") || text.contains("<Code>NotImplemented</Code>")
        }
        _ => false,
    }
}

/// Why, in words of the server where it has some, and what to do.
fn reason(e: &object_store::Error, scheme: Scheme) -> String {
    let text = e.to_string();
    let code = element(&text, "Code").unwrap_or_default();
    let advice = match code {
        "RequestTimeTooSkewed" => "; this machine's clock is wrong: set it",
        "NoSuchBucket" => "; make the bucket first",
        "ContainerNotFound" => "; make the container first",
        "AuthenticationFailed" | "AuthorizationFailure" => {
            "; see AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
        }
        "SignatureDoesNotMatch" | "InvalidAccessKeyId" | "ExpiredToken" => {
            "; see AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
        }
        "PermanentRedirect" | "AuthorizationHeaderMalformed" => "; see AWS_REGION",
        _ => match e {
            object_store::Error::PermissionDenied { .. }
            | object_store::Error::Unauthenticated { .. } => match scheme {
                Scheme::S3 => "; see what AWS_ACCESS_KEY_ID may do there",
                _ => "; see what the credentials may do there",
            },
            _ => "",
        },
    };
    if !code.is_empty() {
        let message = element(&text, "Message").unwrap_or_default();
        // Azure's goes on with the number of the request.
        let message = message.lines().next().unwrap_or_default();
        return format!("{}: {}{advice}", shown::text(code), shown::text(message));
    }
    match e {
        object_store::Error::NotFound { .. } => "there is no such object".to_owned(),
        _ => {
            // The last cause is the system's or the server's own word.
            let mut last: &dyn std::error::Error = e;
            while let Some(source) = last.source() {
                last = source;
            }
            format!("{}{advice}", shown::text(&last.to_string()))
        }
    }
}

/// The text of an XML element.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>"))
        .map(|(inner, _)| inner)
}

/// The values of the environment that nobody is to see.
fn secrets(variables: &Variables) -> Vec<String> {
    const FAMILIES: [&str; 4] = ["AWS_", "AZURE_", "GOOGLE_", "SERVICE_ACCOUNT"];
    const KINDS: [&str; 6] = ["KEY", "SECRET", "TOKEN", "SAS", "PASSWORD", "CREDENTIAL"];
    let is_secret = |name: &str| {
        FAMILIES.iter().any(|family| name.starts_with(family))
            && KINDS.iter().any(|kind| name.contains(kind))
    };
    let found = variables.iter().filter(|(name, _)| is_secret(name));
    found
        .map(|(_, value)| value.clone())
        // Shorter ones are words like `true`, and would cut messages to pieces.
        .filter(|value| value.len() >= 8)
        .collect()
}

fn hidden(text: &str, secrets: &[String]) -> String {
    let mut text = text.to_owned();
    for secret in secrets {
        text = text.replace(secret, "***");
    }
    text
}
