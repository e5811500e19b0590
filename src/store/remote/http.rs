//! HTTP for the `object_store` crate, by the client that the program has already: its own brings a second one, HTTP/2 and a second
//! set of TLS.

use std::io::Read as _;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::Body as _;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
    HttpResponse, HttpResponseBody, HttpService,
};
use ureq::Agent;
use ureq::http::{Response, Uri};

/// A connection that brings nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(60);
/// The largest answer where nobody says what to expect: a page of a list, or an error.
const ANSWER_LIMIT_BYTES: u64 = 16 << 20;

/// The largest body of an answer, with a request: what is longer is not taken into memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyLimit(pub(super) u64);

/// Whether a text is the address of a server, with a port that may be.
pub(super) fn is_server(url: &str) -> bool {
    let parsed: Option<Uri> = url.parse().ok();
    parsed.is_some_and(|uri| {
        let is_known = matches!(uri.scheme_str(), Some("http" | "https"));
        let has_host = uri.host().is_some_and(|host| !host.is_empty());
        // The parser takes any digits behind a colon.
        let authority = uri.authority().map_or("", |a| a.as_str());
        let port = authority.rsplit_once(':').map(|(_, port)| port);
        let is_port = |port: &str| port.ends_with(']') || port.parse::<u16>().is_ok_and(|p| p > 0);
        is_known && has_host && port.is_none_or(is_port)
    })
}

/// Makes clients of [`ureq`].
#[derive(Debug)]
pub(super) struct Connector;

#[derive(Debug)]
struct Service {
    agent: Agent,
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let config = Agent::config_builder()
            .user_agent(concat!("plumb/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            // What was signed for one server goes to no other.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(SILENCE))
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE))
            .build();
        Ok(HttpClient::new(Service {
            agent: config.into(),
        }))
    }
}

#[async_trait::async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let agent = self.agent.clone();
        let done = tokio::task::spawn_blocking(move || send(&agent, request)).await;
        done.unwrap_or_else(|e| Err(HttpError::new(HttpErrorKind::Unknown, e)))
    }
}

/// Sends a request and reads all of the answer: a body that is cut is an error of the request, and so tried again.
fn send(agent: &Agent, request: HttpRequest) -> Result<HttpResponse, HttpError> {
    let (parts, body) = request.into_parts();
    let limit = parts.extensions.get::<BodyLimit>().map(|limit| limit.0);
    let body = gathered(body)?;
    // The answer to HEAD has the length of what it does not bring.
    let is_whole_expected = parts.method != "HEAD";
    let sent = match body.is_empty() && !parts.headers.contains_key("content-length") {
        true => agent.run(ureq::http::Request::from_parts(parts, ())),
        false => agent.run(ureq::http::Request::from_parts(parts, &body[..])),
    };
    let response = sent.map_err(failed)?;
    let limit = match response.status().is_success() {
        true => limit.unwrap_or(ANSWER_LIMIT_BYTES),
        false => ANSWER_LIMIT_BYTES,
    };
    let (parts, body) = response.into_parts();
    let mut bytes = Vec::new();
    let mut reader = body.into_with_config().limit(u64::MAX).reader();
    // One more than allowed tells a longer body, whatever its header said.
    let read = (&mut reader).take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|e| HttpError::new(HttpErrorKind::Interrupted, e))?;
    let length = parts.headers.get("content-length");
    let length = length.and_then(|n| n.to_str().ok()?.parse::<usize>().ok());
    if is_whole_expected && length.is_some_and(|n| n > bytes.len()) && (bytes.len() as u64) <= limit
    {
        let why = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        return Err(HttpError::new(HttpErrorKind::Interrupted, why));
    }
    if bytes.len() as u64 > limit {
        let why = std::io::Error::other(format!("an answer of more than {limit} bytes"));
        return Err(HttpError::new(HttpErrorKind::Decode, why));
    }
    Ok(Response::from_parts(parts, HttpResponseBody::from(bytes)))
}

/// A body's bytes, which are all there already.
fn gathered(mut body: HttpRequestBody) -> Result<Bytes, HttpError> {
    if let Some(bytes) = body.as_bytes() {
        return Ok(bytes.clone());
    }
    let mut context = Context::from_waker(Waker::noop());
    let mut pieces: Vec<Bytes> = Vec::new();
    while let Poll::Ready(Some(frame)) = Pin::new(&mut body).poll_frame(&mut context) {
        pieces.extend(frame?.into_data().ok());
    }
    Ok(match pieces.len() {
        1 => pieces.remove(0),
        _ => pieces.concat().into(),
    })
}

fn failed(e: ureq::Error) -> HttpError {
    // TLS's word for an answer that is none of its own. Asking again gives the same.
    if e.to_string().contains("InvalidContentType") {
        let why = "the server speaks no TLS there: is it http:// in place of https://?";
        return HttpError::new(HttpErrorKind::Unknown, std::io::Error::other(why));
    }
    let kind = match &e {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => HttpErrorKind::Connect,
        ureq::Error::Timeout(_) => HttpErrorKind::Timeout,
        ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
            HttpErrorKind::Connect
        }
        ureq::Error::Io(_) | ureq::Error::Protocol(_) => HttpErrorKind::Interrupted,
        _ => HttpErrorKind::Unknown,
    };
    HttpError::new(kind, e)
}
