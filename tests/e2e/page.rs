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

/// JavaScript: whether `text` is in a cell with `title` in the table of `section`.
fn has(section: &str, title: &str, text: &str) -> String {
    format!(
        "[...document.querySelectorAll('#{section} td[data-label=\"{title}\"]')].some(cell => cell.textContent.includes({}))",
        json!(text)
    )
}

#[test]
fn the_page_shows_what_happens_and_what_it_misses() {
    let Some(browser) = browser() else { return };
    let (gateway, _server) = served(Topology::Masquerade, LISTEN, json!({}));
    let [mut retrieve, refused] = [passive_transfer("PASV"), ask("PORT 192,168,150,80,0,99")];
    retrieve[3] = say(&format!("RETR {MARKUP}"));
    let client = hold(&gateway.lab, (login(), retrieve, refused, gate()));
    let shown = [
        has("sessions", "Client", "192.168.150.80:"),
        has("transfers", "File", MARKUP),
        has("failures", "What and why", "PORT 192.168.150.80:99: port 99"),
        // The second poll.
        "document.querySelector('figure .curve').getAttribute('d').includes('L')".to_owned(),
    ]
    .join(" && ");
    let offline = "document.querySelector('#offline')";
    let ask = json!({
        "state": "document.querySelector('#state').textContent",
        "images": "document.images.length",
        "width": "document.scrollingElement.scrollWidth - innerWidth",
        "ground": "getComputedStyle(document.body).backgroundColor",
        "focus": "document.activeElement.id || document.activeElement.textContent",
        "outline": "getComputedStyle(document.activeElement).outlineStyle",
        // What a slow reader gets.
        "missed": "(takeEvents({events: [], lost: 1234}), document.querySelector('#missed').innerText)",
        "offline": format!("{offline}.innerText"),
    });
    let nothing =
        "document.querySelector('#transfers .note').textContent === 'Nothing matches the filter.'";
    let sorted = "document.querySelector('#sessions th').getAttribute('aria-sort') === 'ascending'";
    let looked = look(
        &gateway.lab,
        &browser,
        &json!([
            {"width": 1280, "scheme": "light", "until": shown, "ask": ask},
            {"width": 360, "scheme": "dark", "until": shown, "ask": ask},
            // The filter has the first place in the order of the keyboard, then come the headers of the tables.
            {"until": shown, "keys": ["Tab", "text:no-such-file"], "then": nothing, "ask": ask},
            {"until": shown, "keys": ["Tab", "Tab", "Tab", "Enter"], "then": sorted, "ask": ask},
            {"stays": true, "ends": gateway.daemon.id(), "then": format!("!{offline}.hidden"), "ask": ask},
        ]),
    );
    let [light, dark, filtered, sorted, ended] = &looked["views"].as_array().unwrap()[..] else {
        panic!("{looked}");
    };
    for view in [light, dark] {
        assert!(view["width"].as_i64().unwrap() <= 0, "it scrolls sideways: {view}");
        assert_eq!(view["images"], 0, "a file's name became markup: {view}");
        assert!(!view["state"].as_str().unwrap().contains("problem"), "{view}");
        assert!(view["missed"].as_str().unwrap().starts_with("1,234 events were missed"), "{view}");
    }
    assert_ne!(light["ground"], dark["ground"]);
    assert_eq!(filtered["focus"], "filter", "{filtered}");
    assert_eq!((&sorted["focus"], &sorted["outline"]), (&json!("Session"), &json!("solid")));
    let text = ended["offline"].as_str().unwrap();
    assert!(text.starts_with("The daemon does not answer since "), "{text}");
    for request in looked["requests"].as_array().unwrap() {
        let request = request.as_str().unwrap();
        assert!(request.starts_with(URL) || request == "about:blank", "{request}");
    }
    client.release();
}

/// No part says something else than another one, also while it is loaded.
#[test]
fn the_page_shows_each_answer_whole() {
    let Some(browser) = browser() else { return };
    let gateway = gateway_with(Topology::Routed, LISTEN);
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
        return $('facts').querySelector('dd').textContent;
    })()";
    let view = json!({
        "before": before,
        "until": "lastAnswer !== null",
        "ask": {"loading": "seen.slice(0, 6)", "contradicting": contradicting},
    });
    let looked = look(&gateway.lab, &browser, &json!([view]));
    assert_eq!(looked["console"], json!([]), "{looked}");
    let view = &looked["views"][0];
    for text in view["loading"].as_array().unwrap() {
        let lines: Vec<_> =
            text.as_str().unwrap().lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(lines, ["ftp-alg", "Health", "Waiting for the daemon."], "{looked}");
    }
    assert_eq!(view["contradicting"], "0", "{looked}");
}
