//! Which request gets which answer.
//!
//! Without the password, where one is needed, each request gets 401, whatever it asks for.
//!
//! Against DNS rebinding: on a loopback address, only a request to a name of the loopback address gets the page and its
//! JSON. A page of another site whose name suddenly resolves to 127.0.0.1 still sends that name as the `Host`.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Mutex,
};

use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    header::{self, HeaderName, HeaderValue},
    http::uri::Authority,
};
use prometheus_client::encoding::prometheus_text::CONTENT_TYPE;

use super::{answers::Answers, password::Password};
use crate::daemon::shard::lock;

const PLAIN: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// The headers of every answer.
const HEADERS: [(HeaderName, &str); 5] = [
    (header::CACHE_CONTROL, "no-store"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// The status, type and text of an answer.
type Answer = (StatusCode, &'static str, String);
/// What makes the answer to a request for a path.
type Route = fn(&Answers, &Uri) -> Answer;

/// The path of the metrics. The others are of the page.
const METRICS: &str = "/metrics";

fn route(path: &str) -> Option<Route> {
    Some(match path {
        METRICS => |answers, _| match answers.metrics() {
            Some(text) => found(CONTENT_TYPE, text),
            None => refused(StatusCode::INTERNAL_SERVER_ERROR, "No metrics."),
        },
        "/" => |_, _| found("text/html; charset=utf-8", include_str!("page/index.html")),
        "/page.css" => |_, _| found("text/css; charset=utf-8", include_str!("page/page.css")),
        "/page.js" => |_, _| found("text/javascript; charset=utf-8", include_str!("page/page.js")),
        "/icon.svg" => |_, _| found("image/svg+xml", include_str!("page/icon.svg")),
        "/status.json" => |answers, _| found(JSON, answers.status()),
        "/sessions.json" => |answers, _| found(JSON, answers.sessions()),
        "/events.json" => |answers, uri| match after(uri) {
            Some(after) => found(JSON, answers.events(after)),
            None => refused(StatusCode::BAD_REQUEST, "after is no ID of an event."),
        },
        _ => return None,
    })
}

/// What clients get, and which clients.
pub(in crate::daemon) struct Site {
    pub(in crate::daemon) answers: Answers,
    /// Whether the listener's address is a loopback address.
    pub(in crate::daemon) is_local: bool,
    /// Whether there is a page.
    pub(in crate::daemon) has_page: bool,
    /// `None` admits all clients.
    pub(in crate::daemon) password: Mutex<Option<Password>>,
}

/// The answer to `request`.
pub(super) fn respond<B>(request: &Request<B>, site: &Site) -> Response<String> {
    let (status, kind, text) = answer(request, site);
    let mut response = Response::new(text);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let further = match status {
        StatusCode::METHOD_NOT_ALLOWED => Some((header::ALLOW, "GET, HEAD")),
        StatusCode::UNAUTHORIZED => Some((header::WWW_AUTHENTICATE, "Basic realm=\"ftp-alg\"")),
        _ => None,
    };
    if let Some((name, value)) = further {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn answer<B>(request: &Request<B>, site: &Site) -> Answer {
    let Site { answers, is_local, has_page, password } = site;
    if lock(password).as_ref().is_some_and(|password| !password.is_in(request.headers())) {
        return refused(
            StatusCode::UNAUTHORIZED,
            "Send the user and password of metrics.password-file.",
        );
    }
    let path = request.uri().path();
    let is_page = path != METRICS;
    let route = match route(path) {
        Some(route) if *has_page || !is_page => route,
        _ if *has_page => return refused(StatusCode::NOT_FOUND, "Only / and /metrics are here."),
        _ => {
            let line = "Only /metrics is here, because metrics.page is false.";
            return refused(StatusCode::NOT_FOUND, line);
        }
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return refused(StatusCode::METHOD_NOT_ALLOWED, "Use GET.");
    }
    if *is_local && is_page && !names_loopback(request.uri(), request.headers()) {
        return refused(
            StatusCode::FORBIDDEN,
            "This page is only at localhost and at loopback addresses: use http://localhost with this port.",
        );
    }
    route(answers, request.uri())
}

fn found(kind: &'static str, text: impl Into<String>) -> Answer {
    (StatusCode::OK, kind, text.into())
}

fn refused(status: StatusCode, line: &str) -> Answer {
    (status, PLAIN, format!("{line}\n"))
}

/// The ID in the query `after=ID`; 0 without one.
fn after(uri: &Uri) -> Option<u64> {
    let mut parts = uri.query().unwrap_or_default().split('&');
    parts.find_map(|part| part.strip_prefix("after=")).map_or(Some(0), |id| id.parse().ok())
}

/// Whether the request names `localhost` or a loopback address, as its only host.
fn names_loopback(uri: &Uri, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let named = Authority::try_from(host.as_bytes());
    named.is_ok_and(|named| is_loopback(named.host())) && uri.host().is_none_or(is_loopback)
}

fn is_loopback(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match address {
        Some(address) => address.parse().is_ok_and(|address: Ipv6Addr| address.is_loopback()),
        None => {
            host.eq_ignore_ascii_case("localhost")
                || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_loopback_address_are_known() {
        for (host, is_local) in [
            ("localhost", true),
            ("LOCALHOST:9821", true),
            ("127.0.0.1:9821", true),
            ("127.3.2.1", true),
            ("[::1]:9821", true),
            ("[::1]", true),
            ("gateway", false),
            ("localhost.example", false),
            ("127.0.0.1.example:9821", false),
            ("localhost@evil.example", false),
            ("10.0.0.1:9821", false),
            ("[::2]", false),
            ("", false),
            ("[", false),
            ("a b", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
            assert_eq!(names_loopback(&Uri::from_static("/"), &headers), is_local, "{host}");
            headers.append(header::HOST, HeaderValue::from_static("localhost"));
            assert!(!names_loopback(&Uri::from_static("/"), &headers), "{host} and another");
        }
        assert!(!names_loopback(&Uri::from_static("/"), &HeaderMap::new()));
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("localhost"));
        assert!(!names_loopback(&Uri::from_static("http://evil.example/"), &headers));
        assert!(names_loopback(&Uri::from_static("http://localhost:9821/"), &headers));
    }
}
