//! Dialogues that are written down in `tests/e2e/common/dialogues`, played through a gateway. `dialogue.py`
//! describes their format.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ftp_alg_lab::{Family, Host, Script};
use serde::Deserialize;
use serde_json::json;

use crate::common::wait_for;

/// One playing of one transcript.
pub struct Playing {
    pub file: PathBuf,
    pub address: IpAddr,
    pub text: String,
}

/// Every transcript over IPv4, and over IPv6 those that announce nothing that is IPv4 only; in an
/// order of their names. `dialled` is the address of the server, as the client knows it.
pub fn all(dialled: impl Fn(Family) -> IpAddr) -> Vec<Playing> {
    let mut all = over_ipv4(dialled(Family::V4));
    let extended = over_ipv4(dialled(Family::V6));
    all.extend(extended.into_iter().filter(|one| !one.text.contains("{host-port}")));
    all
}

/// Every transcript over IPv4.
pub fn over_ipv4(address: IpAddr) -> Vec<Playing> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/common/dialogues");
    let entries = fs::read_dir(&directory).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let playing = |file: PathBuf| {
        let text = fs::read_to_string(&file).unwrap();
        Playing { file, address, text }
    };
    files.into_iter().map(playing).collect()
}

impl Playing {
    fn name(&self) -> String {
        format!("{} to {}", self.file.file_stem().unwrap().to_string_lossy(), self.address)
    }

    fn lines(&self) -> impl Iterator<Item = &str> {
        self.text.lines().filter(|line| !line.starts_with('#'))
    }

    /// How many announcements it has.
    pub fn announcements(&self) -> usize {
        self.lines().filter(|line| line.contains("{host-port}") || line.contains("{port}")).count()
    }

    /// How many bytes each of its transfers moves.
    fn transfers(&self) -> Vec<u64> {
        let counts = self.lines().filter_map(|line| {
            line.strip_prefix("-- download ").or(line.strip_prefix("-- upload "))
        });
        counts.map(|count| count.parse().unwrap()).collect()
    }
}

/// What one end of a dialogue tells of it.
#[derive(Debug, Deserialize)]
struct Report {
    peer: String,
    said: Vec<String>,
    heard: Vec<String>,
    announced: Vec<HeardAnnouncement>,
    data: Vec<Data>,
    error: Option<String>,
}

#[derive(Debug, Deserialize)]
struct HeardAnnouncement {
    line: usize,
    address: String,
}

/// A data connection; nothing was moved if its transfer failed.
#[derive(Debug, Deserialize)]
struct Data {
    peer: String,
    moved: Option<u64>,
    sha256: Option<String>,
}

/// How the speakers' lines are put into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segments {
    /// A segment a line.
    Lines,
    /// Successive lines of one speaker in one.
    Turns,
}

/// Plays dialogues one after another; one line for each thing that was not as it must be:
///
/// - every line arrives as it was said, but for the endpoint of an announcement;
/// - every announcement names the address that its reader has the other end's control connection at;
/// - every data connection has that address as its peer, at both ends;
/// - every byte that goes into a data connection comes out of it.
pub fn failures(
    server: &Host,
    client: &Host,
    dialogues: &[Playing],
    segments: Segments,
) -> Vec<String> {
    let all = play(server, client, dialogues, segments, None);
    all.unwrap_or_else(|error| vec![vec![error]]).concat()
}

/// As [`failures`], for each dialogue; an error if not all were played. An end that waits for longer than `limit`
/// seconds gives up.
pub fn play(
    server: &Host,
    client: &Host,
    dialogues: &[Playing],
    segments: Segments,
    limit: Option<u64>,
) -> Result<Vec<Vec<String>>, String> {
    let limit = limit.unwrap_or(30);
    let command = |role: &str, host: &Host| {
        let transcripts: Vec<_> =
            dialogues.iter().map(|one| json!([one.file, one.address.to_string()])).collect();
        let plan = json!({"role": role, "together": segments == Segments::Turns,
            "transcripts": transcripts, "limit": limit});
        host.script_command(Script::Dialogue, &[&plan.to_string()]).unwrap()
    };
    let mut speaker = server.start(command("server", server), "dialogues").unwrap();
    server.wait_for_port(21, Duration::from_secs(60)).unwrap();
    let limit = Duration::from_secs(4 * limit * (1 + dialogues.len() as u64));
    let of_client = client.finish(command("client", client), b"", limit).unwrap();
    let waits = format!("the end of the server's script (the client's said {of_client:?})");
    wait_for(&waits, || speaker.exit_status().is_some());
    let (of_server, of_client) =
        (speaker.log(), of_client.stdout_text() + &of_client.stderr_text());
    let (by_server, by_client) = (reports(&of_server), reports(&of_client));
    if by_server.len() != dialogues.len() || by_client.len() != dialogues.len() {
        return Err(format!("not all were played: {of_server} {of_client}"));
    }
    let played = dialogues.iter().zip(by_server).zip(by_client);
    Ok(played
        .map(|((dialogue, server), client)| {
            let wrong = decide(dialogue, &server, &client).into_iter();
            wrong.map(|wrong| format!("{}: {wrong}", dialogue.name())).collect()
        })
        .collect())
}

fn reports(log: &str) -> Vec<Report> {
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn decide(dialogue: &Playing, server: &Report, client: &Report) -> Vec<String> {
    let mut wrong = Vec::new();
    for (role, report) in [("server", server), ("client", client)] {
        if let Some(error) = &report.error {
            wrong.push(format!("{role}: {error}"));
        }
        for heard in report.announced.iter().filter(|heard| heard.address != report.peer) {
            let line = &report.heard[heard.line];
            wrong.push(format!("{role}: announcement {line:?} from {}", report.peer));
        }
        for data in report.data.iter().filter(|data| data.peer != report.peer) {
            let (control, data) = (&report.peer, &data.peer);
            wrong.push(format!("{role}: control connection with {control}, data with {data}"));
        }
    }
    if !wrong.is_empty() {
        return wrong;
    }
    for (speaker, listener) in [(server, client), (client, server)] {
        let announced = |at: usize| listener.announced.iter().any(|heard| heard.line == at);
        let count = speaker.said.len().max(listener.heard.len());
        for at in (0..count).filter(|at| !announced(*at)) {
            let (said, heard) = (speaker.said.get(at), listener.heard.get(at));
            if said != heard {
                wrong.push(format!("{said:?} was heard as {heard:?}"));
            }
        }
    }
    let announced = server.announced.len() + client.announced.len();
    let expected = dialogue.announcements();
    if announced != expected {
        wrong.push(format!("{announced} announcements were heard, not {expected}"));
    }
    let moved: Vec<Option<u64>> = server.data.iter().map(|data| data.moved).collect();
    let expected: Vec<Option<u64>> = dialogue.transfers().into_iter().map(Some).collect();
    if moved != expected {
        wrong.push(format!("{moved:?} bytes were moved, not {expected:?}"));
    }
    if !server.data.iter().map(|data| &data.sha256).eq(client.data.iter().map(|data| &data.sha256))
    {
        wrong.push("other bytes came out of a data connection than went in".to_owned());
    }
    wrong
}
