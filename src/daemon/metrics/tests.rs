//! Tests of the text, of its list in the documentation, and of the endpoint with clients that misbehave.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
    thread,
    time::Duration,
};

use ftp_alg_core::engine::Counters;

use super::{
    families::{Reading, families, text},
    *,
};
use crate::daemon::{
    health::ProblemName,
    snapshot::{ClientBytes, PairStatus, RunningTotals, ServerTotals, Status, TransferTotals},
    status_source::fixed::FixedSource,
};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");

fn status() -> Status {
    let mut counters = Counters { packets: 12, rewrites: 3, ..Counters::default() };
    counters.limits.client_pinholes = 4;
    counters.unread.no_session = 5;
    let server =
        |text: &str| ServerTotals { bytes_up: 9, ..ServerTotals::new(text.parse().unwrap()) };
    let client = |text: &str| ClientBytes { client: text.to_owned(), bytes: 8 };
    let transfers = TransferTotals {
        servers: ["10.0.0.5", "2001:db8::5"].map(server).into(),
        top_clients: ["10.0.0.7", "2001:db8::/64"].map(client).into(),
        ..TransferTotals::default()
    };
    Status {
        transfers,
        running: RunningTotals { transfers: 6, bytes_up: Some(5), ..RunningTotals::default() },
        sessions: 7,
        counters,
        queue_waiting: Some(2),
        pair: Some(PairStatus::healthy()),
        findings: ["table", "notrack", "notrack", "state"]
            .map(|name| ProblemName::from_name(name).unwrap().finding("text"))
            .into_iter()
            .collect(),
        ..Status::new("nftables", Duration::from_secs(3))
    }
}

fn reading() -> Reading {
    let times = DecisionTimes::default();
    times.observe(Duration::from_micros(5));
    times.observe(Duration::from_micros(6));
    times.observe(Duration::from_secs(1));
    Reading { status: status(), started: 1_795_000_000, decisions: times.read() }
}

#[test]
fn the_text_has_the_values_of_the_status() {
    let text = text(&reading()).unwrap();
    let version = env!("FTP_ALG_VERSION");
    for line in [
        "ftp_alg_sessions 7",
        "ftp_alg_problems{name=\"table\",severity=\"problem\"} 1",
        "ftp_alg_problems{name=\"notrack\",severity=\"problem\"} 2",
        "ftp_alg_problems{name=\"state\",severity=\"warning\"} 1",
        "ftp_alg_warnings 1",
        &format!("ftp_alg_build_info{{version=\"{version}\"}} 1"),
        "ftp_alg_start_time_seconds 1795000000",
        "ftp_alg_rewrites_total 3",
        "ftp_alg_refusals_total{reason=\"foreign_address\"} 0",
        "ftp_alg_limits_reached_total{limit=\"client_pinholes\"} 4",
        "ftp_alg_packets_unread_total{reason=\"no_session\"} 5",
        "ftp_alg_queue_waiting_packets 2",
        "ftp_alg_server_transfers_total{server=\"10.0.0.5\",result=\"no-data-connection\"} 0",
        "ftp_alg_server_transfer_bytes_total{server=\"2001:db8::5\",direction=\"up\"} 9",
        "ftp_alg_pair_active 1",
        "ftp_alg_pair_role_seconds 60",
        "ftp_alg_pair_lag_seconds 0",
        "ftp_alg_running_transfers 6",
        "ftp_alg_running_transfer_bytes{direction=\"up\"} 5",
        "ftp_alg_top_client_bytes{client=\"2001:db8::/64\"} 8",
        "# TYPE ftp_alg_decision_seconds histogram",
        "ftp_alg_decision_seconds_bucket{le=\"5e-06\"} 1",
        "ftp_alg_decision_seconds_bucket{le=\"1e-05\"} 2",
        "ftp_alg_decision_seconds_bucket{le=\"+Inf\"} 3",
        "ftp_alg_decision_seconds_count 3",
        "ftp_alg_decision_seconds_sum 1.000011",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing:\n{text}");
    }
    let mut unknown = reading();
    (unknown.status.queue_waiting, unknown.status.pair) = (None, None);
    let text = self::text(&unknown).unwrap();
    assert!(!text.contains("ftp_alg_queue_waiting_packets") && !text.contains("_pair_"), "{text}");
}

/// What a metric counts is its help text, which the endpoint has.
#[test]
fn the_page_of_metrics_has_each_with_its_labels() {
    let page = fs::read_to_string(PAGE).unwrap();
    let (_, list) = page.split_once("\n## List\n").unwrap();
    let list = list.split_whitespace().collect::<Vec<_>>().join(" ");
    let families = families(&reading());
    for family in &families {
        assert!(family.help.ends_with('.'), "{}", family.help);
        let labels: Vec<_> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = if labels.is_empty() { "" } else { &format!(" ({})", labels.join(", ")) };
        let entry = format!("`{}`{labels}", family.name());
        let ends = [",", ";", ".", " "].map(|end| format!("{entry}{end}"));
        assert!(ends.iter().any(|end| list.contains(end)), "the page has no {entry}");
    }
    assert_eq!(list.matches("`ftp_alg_").count(), families.len());
}

/// An endpoint at a free port.
struct Endpoint {
    address: SocketAddr,
    source: Arc<FixedSource>,
    _served: MetricsEndpoint,
}

fn endpoint() -> Endpoint {
    let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let (address, source) = (listener.local_addr().unwrap(), Arc::new(FixedSource::new(status())));
    let answers = Answers::new(source.clone(), Arc::default());
    let site = Site { answers, is_local: true, has_page: true, password: Mutex::default() };
    Endpoint { address, source, _served: MetricsEndpoint::serve(listener, site).unwrap() }
}

impl Endpoint {
    fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).unwrap()
    }

    /// Everything that `request` gets, until the endpoint closes the connection.
    fn answer(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        // The endpoint may close the connection before it has read everything.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
            _ => String::from_utf8(answer).unwrap(),
        }
    }

    fn get(&self, path: &str, host: &str) -> String {
        self.answer(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())
    }

    fn scrape(&self) -> String {
        let answer = self.get("/metrics", "gateway");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("\nftp_alg_sessions 7\n"), "{answer}");
        answer
    }
}

#[test]
fn other_paths_and_methods_are_refused() {
    let endpoint = endpoint();
    for (request, status) in [
        ("GET /events.json?after=x HTTP/1.1", "400 Bad Request"),
        ("POST / HTTP/1.1", "405 Method Not Allowed"),
        ("GET /../metrics HTTP/1.1", "404 Not Found"),
        ("POST /metrics HTTP/1.1", "405 Method Not Allowed"),
        ("CONNECT gateway:21 HTTP/1.1", "404 Not Found"),
    ] {
        let answer = endpoint.answer(format!("{request}\r\nHost: localhost\r\n\r\n").as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request}: {answer}");
    }
    assert_eq!(endpoint.source.asked.load(Relaxed), 0);
}

#[test]
fn a_browser_gets_the_page_and_its_json() {
    let endpoint = endpoint();
    for (path, kind, text) in [
        ("/", "text/html; charset=utf-8", "<!doctype html>"),
        ("/page.css", "text/css; charset=utf-8", ":root"),
        ("/page.js", "text/javascript; charset=utf-8", "\"use strict\""),
        ("/icon.svg", "image/svg+xml", "<svg"),
        ("/status.json", "application/json", "\"sessions\":7"),
        ("/sessions.json", "application/json", "[]"),
        ("/events.json?after=3", "application/json", "\"lost\":0"),
    ] {
        let answer = endpoint.get(path, "localhost:9821");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{path}: {head}");
        assert!(head.contains(&format!("content-type: {kind}\r\n")), "{path}: {head}");
        assert!(body.contains(text), "{path}: {body}");
        for header in [
            "cache-control: no-store",
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; ",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
        ] {
            assert!(head.contains(header), "{path}: {header} is missing in {head}");
        }
        assert!(!head.contains("unsafe"), "{head}");
    }
}

#[test]
fn a_name_that_was_bound_to_the_loopback_address_gets_no_page() {
    let endpoint = endpoint();
    for path in [
        "/",
        "/page.css",
        "/page.js",
        "/icon.svg",
        "/status.json",
        "/sessions.json",
        "/events.json",
    ] {
        let answer = endpoint.get(path, "rebound.example:9821");
        assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{path}: {answer}");
        let old = endpoint.answer(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes());
        assert!(old.starts_with("HTTP/1.0 403 Forbidden\r\n"), "{path}: {old}");
        assert!(endpoint.get(path, "127.0.0.1:9821").starts_with("HTTP/1.1 200 "), "{path}");
    }
    endpoint.scrape();
}

/// Clients choose names of files and users, and CSS and markup of the page have no place for them.
#[test]
fn the_page_makes_no_markup_of_texts() {
    let script = include_str!("page/page.js");
    for wrong in
        ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", ".style"]
    {
        assert!(!script.contains(wrong), "{wrong}");
    }
    let page = include_str!("page/index.html");
    for wrong in ["style=", "<style", "onclick", "onload", "http:", "https:", "<script>"] {
        assert!(!page.contains(wrong), "{wrong}");
    }
    let files = [page, include_str!("page/page.css"), script];
    assert!(files.iter().map(|file| file.len()).sum::<usize>() < 64 * 1024);
}

#[test]
fn slow_clients_keep_no_scrape_waiting() {
    let endpoint = endpoint();
    let mut slow: Vec<_> = (0..20).map(|_| endpoint.connect()).collect();
    for byte in b"GET " {
        for stream in &mut slow {
            // The endpoint has ended most of them.
            let _ = stream.write_all(&[*byte]);
        }
        endpoint.scrape();
    }
    let newest = slow.last_mut().unwrap();
    newest.set_nonblocking(true).unwrap();
    assert!(is_open(newest), "no scrape waited for its time limit");
    assert!(!is_open(&mut slow[0]), "the oldest made room");
}

/// Whether the endpoint leaves a connection open, without an answer.
fn is_open(stream: &mut TcpStream) -> bool {
    let read = stream.read(&mut [0; 100]);
    read.is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
}

#[test]
fn a_client_that_does_not_end_its_request_is_disconnected() {
    let endpoint = endpoint();
    let mut slow = endpoint.connect();
    slow.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    while is_open(&mut slow) {
        let _ = slow.write_all(b"x");
    }
    endpoint.scrape();
}

#[test]
fn many_requests_read_the_state_a_few_times() {
    let endpoint = endpoint();
    let begin = std::time::Instant::now();
    for _ in 0..100 {
        endpoint.scrape();
        endpoint.get("/status.json", "localhost");
        endpoint.get("/sessions.json", "localhost");
    }
    // Of each of the three: `FixedSource` counts what it is asked for.
    let most = 3 * (begin.elapsed().as_millis() / 100 + 1);
    assert!(u128::from(endpoint.source.asked.load(Relaxed)) <= most);
}

#[test]
fn the_endpoint_ends_while_clients_are_connected() {
    let endpoint = endpoint();
    let (address, clients) = (endpoint.address, [endpoint.connect(), endpoint.connect()]);
    endpoint.scrape();
    let again = bind(address).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AddrInUse);
    thread::spawn(|| drop(endpoint)).join().unwrap();
    bind(address).unwrap();
    drop(clients);
}
