//! What an end of a lab saw of many transfers: whether each client said its script, and
//! whether each data connection had the addresses of its control connection.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ftp_alg_lab::{ControlLine, Result};

use crate::common::*;

/// A running capture of control connections and of the first packets of all others.
pub struct Witness {
    capture: Capture,
    port: u16,
}

/// What a [`Witness`] says at the end.
pub struct Testimony {
    /// What was said by anyone who asked for a file, by the file's name.
    said: BTreeMap<String, BTreeSet<String>>,
    /// Announcements that no connection between the same two addresses followed.
    pub strays: Vec<String>,
}

impl Witness {
    /// Watches `interface` of `host`, where control connections go to `port`.
    pub fn start(host: &Host, interface: &str, port: u16) -> Result<Self> {
        let opens = "tcp[tcpflags] & tcp-syn != 0 or (ip6 and ip6[6] = 6 and ip6[53] & 2 != 0)";
        let filter = format!("tcp port {port} or {opens}");
        Ok(Self { capture: Capture::start(host, interface, &filter)?, port })
    }

    /// Ends the capture and reads it.
    pub fn finish(self) -> Result<Testimony> {
        let seen = self.capture.finish()?;
        let opened = opened(&seen)?;
        let mut streams: BTreeMap<String, Vec<ControlLine>> = BTreeMap::new();
        for line in seen.control_lines_of(self.port)? {
            streams.entry(line.stream.clone()).or_default().push(line);
        }
        let mut testimony = Testimony { said: BTreeMap::new(), strays: Vec::new() };
        for lines in streams.values() {
            testimony.read(lines, &opened);
        }
        Ok(testimony)
    }
}

impl Testimony {
    fn read(&mut self, lines: &[ControlLine], opened: &BTreeSet<(IpAddr, SocketAddr)>) {
        let mut said = BTreeSet::new();
        for line in lines {
            let word = line.text.split(' ').next().unwrap_or_default().to_uppercase();
            if line.is_command && ["PORT", "PASV", "EPRT", "EPSV"].contains(&word.as_str()) {
                said.insert(word.clone());
            }
            // Who speaks announces its own port, so the other end opens the connection.
            if let Some(port) = announced_port(&word, &line.text) {
                let expected = (line.to, SocketAddr::new(line.from, port));
                if !opened.contains(&expected) {
                    let (from, to) = expected;
                    self.strays.push(format!("{}: nothing came from {from} to {to}", line.text));
                }
            }
            if line.is_command && ["RETR", "STOR"].contains(&word.as_str()) {
                let name = line.text.rsplit([' ', '/']).next().unwrap_or_default();
                self.said.entry(name.to_owned()).or_default().append(&mut said);
            }
        }
    }

    /// What is wrong with the transfer of `name` if it was to be announced by `verb`.
    pub fn objection(&self, name: &str, verb: Verb) -> Option<String> {
        let said = self.said.get(name).cloned().unwrap_or_default();
        let wanted = BTreeSet::from([verb.to_string()]);
        (said != wanted).then(|| format!("{verb} was wanted for {name}, and {said:?} was said"))
    }
}

/// Initiator and target of every connection that was opened.
fn opened(seen: &CaptureAnalysis) -> Result<BTreeSet<(IpAddr, SocketAddr)>> {
    let rows = seen.fields(
        "tcp.flags.syn == 1 && tcp.flags.ack == 0",
        &["ip.src", "ipv6.src", "ip.dst", "ipv6.dst", "tcp.dstport"],
    )?;
    let read = |row: Vec<String>| {
        let [src4, src6, dst4, dst6, port] = row.as_slice() else { return None };
        let target = (dst4.to_owned() + dst6).parse().ok()?;
        Some(((src4.to_owned() + src6).parse().ok()?, SocketAddr::new(target, port.parse().ok()?)))
    };
    Ok(rows.into_iter().filter_map(read).collect())
}

/// The port that a line announces, if it announces one.
fn announced_port(word: &str, text: &str) -> Option<u16> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|number| !number.is_empty());
    let last: u16 = numbers.next_back()?.parse().ok()?;
    match word {
        "EPRT" | "229" => Some(last),
        "PORT" | "227" => Some(numbers.next_back()?.parse::<u16>().ok()? * 256 + last),
        _ => None,
    }
}
