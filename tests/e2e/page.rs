//! The page at `/` of the metrics listener, in headless Chromium.

use crate::common::*;

pub const LISTEN: &str = "[metrics]\nlisten = \"127.0.0.1:9821\"\n";
const URL: &str = "http://127.0.0.1:9821/";
/// The name of a file that would be a script if the page took it for markup.
const MARKUP: &str = "<img src=x onerror=alert(1)>.csv";

/// The directory of the browser that packaging/provision unpacked. `None`, with the reason printed, where the
/// distribution has none.
pub fn browser() -> Option<PathBuf> {
    let cache = std::env::var("FTP_ALG_LAB_CACHE").unwrap_or("/var/cache/ftp-alg-lab".to_owned());
    let directory = PathBuf::from(cache).join("browser");
    if let Ok(why) = fs::read_to_string(directory.join("absent")) {
        eprintln!("SKIPPED, the page is not tested: {why}");
        return None;
    }
    let is_complete = directory.join("complete").exists();
    assert!(is_complete, "{} is missing: run packaging/provision", directory.display());
    Some(directory)
}

/// What the `views` of the page in the browser of `directory` show (see `browser.py`).
pub fn look(lab: &Lab, directory: &Path, views: &Value) -> Value {
    let script = lab.gateway.write("browser.py", include_bytes!("common/browser.py")).unwrap();
    let mut command = lab.gateway.command("/usr/bin/python3");
    command.arg(script).arg(directory);
    let plan = json!({"url": URL, "views": views}).to_string();
    let limit = scaled_timeout(Duration::from_secs(240));
    let looked = lab.gateway.finish(command, plan.as_bytes(), limit).unwrap();
    let looked = looked.success().unwrap_or_else(|error| panic!("{error}")).stdout_text();
    serde_json::from_str(&looked).unwrap_or_else(|error| panic!("{error}: {looked}"))
}

/// JavaScript: the texts of the cells with `title` in the table of `section`.
fn cells(section: &str, title: &str) -> String {
    format!(
        "[...document.querySelectorAll('#{section} td[data-label=\"{title}\"]')].map(cell => cell.textContent)"
    )
}

/// JavaScript: whether [`cells`] has `text`.
fn has(section: &str, title: &str, text: &str) -> String {
    format!("{}.some(text => text.includes({}))", cells(section, title), json!(text))
}

/// JavaScript: the value of a property of the page's style.
fn style(element: &str, property: &str) -> String {
    format!("getComputedStyle(document.querySelector('{element}')).{property}")
}

/// A gateway with a session that waits, a transfer of 123,456 bytes to a file with markup in its name, and a refusal.
fn busy_gateway() -> (Gateway, Server, GatedClient) {
    let gateway = gateway_with(Topology::Masquerade, LISTEN);
    let server = Server::start(ServerKind::Vsftpd, &gateway.lab.server).unwrap();
    curl(&gateway.lab, &server, Mode::Passive).upload("large.csv", &vec![b'x'; 123_456]).unwrap();
    server.put(MARKUP, b"12345").unwrap();
    let (user, password) = server.login();
    let steps = [
        login_as(("eve", "guessed")),
        login_as((user, password))[1..].to_vec(),
        ask("PORT 192,168,150,80,0,99"),
        ask("EPSV"),
        ask("RETR pub/missing.csv"),
        ask("PASV"),
        vec![dial(), say(&format!("RETR pub/{MARKUP}")), reply(), drain(), reply()],
        vec![gate()],
    ];
    let client = hold(&gateway.lab, steps.concat());
    (gateway, server, client)
}

#[test]
fn the_page_shows_what_happens() {
    let Some(browser) = browser() else { return };
    let (gateway, _server, client) = busy_gateway();
    let shown = [
        has("sessions", "Client", "192.168.150.80:"),
        has("transfers", "Bytes", "123,456"),
        has("transfers", "File", MARKUP),
        has("failures", "What and why", "min-data-port"),
        has("failures", "What and why", "login refused: "),
        has("failures", "What and why", "missing.csv: refused, 550"),
        "document.querySelector('#state[data-state]')".to_owned(),
        // The second poll.
        "document.querySelector('figure .curve').getAttribute('d').includes('L')".to_owned(),
    ]
    .join(" && ");
    let ask = json!({
        "state": "document.querySelector('#state').textContent",
        "files": cells("transfers", "File"),
        "images": "document.images.length",
        "width": "document.scrollingElement.scrollWidth - innerWidth",
        "ground": style("body", "backgroundColor"),
        "text": style("body", "color"),
        "rows": "document.querySelectorAll('#transfers tbody tr').length",
        "focus": "document.activeElement.id || document.activeElement.textContent",
        "outline": "getComputedStyle(document.activeElement).outlineStyle",
        "refused": cells("failures", "What and why"),
        "state class": "document.querySelector('#sessions td[data-label=State]')?.className",
        "sort": "document.querySelector('#sessions th').getAttribute('aria-sort')",
    });
    let filtered = "document.querySelectorAll('#transfers tbody tr').length === 1";
    let sorted = "document.querySelector('#sessions th').getAttribute('aria-sort') === 'ascending'";
    let looked = look(
        &gateway.lab,
        &browser,
        &json!([
            {"width": 1280, "scheme": "light", "until": shown, "ask": ask},
            {"width": 360, "scheme": "dark", "until": shown, "ask": ask},
            // The filter has the first place in the order of the keyboard, then come the headers of the tables.
            {"until": shown, "keys": ["Tab", "text:large"], "then": filtered, "ask": ask},
            {"until": shown, "keys": ["Tab", "Tab", "Tab", "Enter"], "then": sorted, "ask": ask},
            {"until": shown, "keys": ["/", "text:no-such-file"],
             "then": "document.querySelector('#transfers .note').textContent === 'Nothing matches the filter.'"},
        ]),
    );
    let [light, dark, filtered, sorted, _] = &looked["views"].as_array().unwrap()[..] else {
        panic!("{looked}");
    };
    for view in [light, dark] {
        assert!(view["width"].as_i64().unwrap() <= 0, "it scrolls sideways: {view}");
        assert_eq!(view["images"], 0, "a file's name became markup: {view}");
        assert_eq!(view["state class"], "fixed", "a state has one line: {view}");
        let refused = view["refused"].to_string();
        assert!(!refused.contains("->"), "the ends have columns: {view}");
        assert!(refused.contains("\"PORT 192.168"), "as in top: {view}");
    }
    let problems = gateway.daemon.status().unwrap()["problems"].as_array().unwrap().len();
    assert_eq!(problems, 0);
    assert!(!light["state"].as_str().unwrap().contains("problem"), "{light}");
    assert_ne!(light["ground"], dark["ground"]);
    assert_ne!(light["text"], dark["text"]);
    assert_eq!(filtered["focus"], "filter", "{filtered}");
    assert_eq!((&sorted["focus"], &sorted["outline"]), (&json!("Session"), &json!("solid")));
    assert_eq!(looked["console"], json!([]), "{looked}");
    for request in looked["requests"].as_array().unwrap() {
        let request = request.as_str().unwrap();
        assert!(request.starts_with(URL) || request == "about:blank", "{request}");
    }
    client.release();
    gateway.assert_tidy();
}

/// While it is loaded, no part says something else than another one.
#[test]
fn the_page_shows_each_answer_whole() {
    let Some(browser) = browser() else { return };
    let gateway = gateway_with(Topology::Routed, LISTEN);
    let before_the_first = "(() => {
        document.body.append(make('div', {id: 'new'}));
        const columns = [{title: 'A', value: (row) => row}];
        const table = new Table('new', {columns, key: (row) => row, sort: {title: 'A'}, empty: 'none'});
        const first = table.note.textContent;
        table.set([]);
        return [first, table.note.textContent];
    })()";
    let while_reading = "(async () => {
        const [real, shown] = [get, () => $('facts').textContent.includes('1,234')];
        let early;
        get = async (path) => {
            if (path === 'sessions.json') early = shown();
            const answer = await real(path);
            return path === 'status.json' ? {...answer, pinholes: 1234} : answer;
        };
        await readAll();
        get = real;
        return [early, shown()];
    })()";
    // What is visible when each request begins, and when its answer is there.
    let before = "window.seen = [];
        const real = window.fetch;
        window.fetch = async (...what) => {
            seen.push(document.body.innerText);
            const answer = await real(...what);
            seen.push(document.body.innerText);
            return answer;
        };";
    // The list is newer than the status.
    let contradicting = "(async () => {
        const real = get;
        get = async (path) => {
            const answer = await real(path);
            return path === 'status.json' ? {...answer, sessions: 7} : answer;
        };
        await readAll();
        get = real;
        const notes = ['transfers', 'failures'].map(id => $(id).querySelector('.note').textContent);
        return [$('facts').querySelector('dd').textContent, ...notes];
    })()";
    let view = json!({
        "before": before,
        "until": "lastAnswer !== null",
        "ask": {
            "loading": "seen.slice(0, 6)",
            "first": before_the_first,
            "reading": while_reading,
            "contradicting": contradicting,
        },
    });
    let looked = look(&gateway.lab, &browser, &json!([view]));
    let view = &looked["views"][0];
    assert_eq!(view["first"], json!(["", "none"]), "{looked}");
    assert_eq!(view["reading"], json!([false, true]), "{looked}");
    for text in view["loading"].as_array().unwrap() {
        let lines: Vec<_> =
            text.as_str().unwrap().lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(lines, ["ftp-alg", "Health", "Waiting for the daemon."], "{looked}");
    }
    let said = ["0", "No stored event is of a transfer.", "No stored event is of a failure."];
    assert_eq!(view["contradicting"], json!(said), "{looked}");
}

#[test]
fn the_page_says_what_it_misses() {
    let Some(browser) = browser() else { return };
    let gateway = gateway_with(Topology::Routed, LISTEN);
    let looked = look(
        &gateway.lab,
        &browser,
        &json!([
            {"until": "lastAnswer !== null",
             // What a slow reader gets.
             "ask": {"missed": "(takeEvents({events: [], lost: 1234}), document.querySelector('#missed').innerText)"}},
            {"stays": true, "ends": gateway.daemon.id(), "then": "!document.querySelector('#offline').hidden",
             "ask": {"offline": "document.querySelector('#offline').innerText",
                     "role": "document.querySelector('#offline').getAttribute('role')"}},
        ]),
    );
    let [missed, offline] = &looked["views"].as_array().unwrap()[..] else { panic!("{looked}") };
    let text = missed["missed"].as_str().unwrap();
    assert!(text.starts_with("1,234 events were missed"), "{text}");
    let text = offline["offline"].as_str().unwrap();
    assert!(text.starts_with("The daemon does not answer since "), "{text}");
    assert_eq!(offline["role"], "alert");
}
