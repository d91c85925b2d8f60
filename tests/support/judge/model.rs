//! What the program should do with a line, in the plainest words: a second implementation, which shares nothing with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use super::layout::{
    ANNOUNCED, EPSV, Flow, GREETING, HoleKey, LOGIN, LOGIN_REPLY, NOTHING, OTHER, PASV, Side,
};

/// A packet of the flow, with nothing unusual in its IP header.
pub struct Segment<'a> {
    pub side: Side,
    pub seq: u32,
    pub ack: u32,
    pub has_only_ack_and_push: bool,
    /// Whether its header has no option but timestamps, as everyone writes them.
    pub has_plain_options: bool,
    /// Whether it has the flag FIN as well.
    pub ends: bool,
    pub mark: u32,
    pub payload: &'a [u8],
}

/// What should become of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Expected {
    /// Nothing: it is queued, and the flow handed back.
    HandsBack,
    /// Nothing but the mark, if it has none: the rules let it pass.
    Unheeded,
    /// It passes like this, without a step.
    Again(Passed),
    /// It passes like this, and is a step. The pinhole that it opens; the step whose pinhole is known to be gone.
    Step(Passed, Option<HoleKey>, Option<u32>),
}

/// What of a packet may be another when it passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    pub seq: u32,
    pub ack: u32,
    pub payload: Vec<u8>,
}

/// What a line is.
enum Meaning {
    /// A command, and what the client awaits then.
    Command(u32),
    /// A command that announces; the port, and what the line becomes.
    Announces(u16, String),
    /// `USER` or `PASS`.
    LogsIn,
    /// 220, and whether it is of a server that takes four digits.
    Greets(bool),
    /// 331.
    AsksPassword,
    /// 230.
    LoggedIn,
    Preliminary,
    Completion,
    Other,
    Passive(u16, String),
    ExtendedPassive(u16),
}

/// Pinholes by their keys, and the flow that each belongs to.
pub type Holes = BTreeMap<HoleKey, u64>;

/// Decides, and changes flow and pinholes as the program should.
pub fn decide(
    id: u64,
    flow: &mut Flow,
    holes: &mut Holes,
    barred: &BTreeSet<u16>,
    segment: &Segment,
) -> Expected {
    let expected = consider(id, flow, holes, barred, segment).unwrap_or(Expected::HandsBack);
    if expected == Expected::HandsBack {
        flow.judged = false;
    }
    expected
}

fn consider(
    id: u64,
    flow: &mut Flow,
    holes: &mut Holes,
    barred: &BTreeSet<u16>,
    segment: &Segment,
) -> Option<Expected> {
    let side = segment.side;
    let only_acknowledges = segment.payload.is_empty() && !segment.ends;
    if only_acknowledges && flow.shifts.is_none() {
        return Some(Expected::Unheeded);
    }
    if segment.mark != 0 || !segment.has_only_ack_and_push {
        return None;
    }
    let [seq, ack] = shifted(flow, segment)?;
    let passed = |payload| Passed { seq, ack, payload };
    if only_acknowledges {
        return Some(Expected::Again(passed(Vec::new())));
    }
    if segment.ends {
        return end(flow, segment, passed(Vec::new()));
    }
    if segment.payload.len() < 6 || segment.payload.len() > 128 {
        return None;
    }
    let line = std::str::from_utf8(segment.payload).ok()?.strip_suffix("\r\n")?;
    if !line.chars().all(|one| one == ' ' || one.is_ascii_graphic()) {
        return None;
    }
    let meaning = if side == Side::Client { command(line, flow)? } else { reply(line, flow)? };
    let heard = match &meaning {
        Meaning::Announces(_, text) | Meaning::Passive(_, text) => text.clone(),
        _ => line.to_owned(),
    };
    let growth = (heard.len() as u32).wrapping_sub(line.len() as u32);
    if growth != 0 && flow.shifts.is_none() {
        return None;
    }
    let heard = passed(format!("{heard}\r\n").into_bytes());
    let last = (segment.seq, Some(segment.payload.to_vec()));
    if flow.last[side.index()] == last {
        return Some(Expected::Again(heard));
    }
    if flow.has_ended(side) {
        return None;
    }
    let next = [flow.next[side.index()], flow.next[side.other().index()]];
    if next != [segment.seq, ack] {
        return None;
    }
    let awaits = match (&meaning, flow.awaits) {
        (Meaning::Command(awaits), NOTHING) => *awaits,
        (Meaning::Announces(..), NOTHING) => ANNOUNCED,
        (Meaning::Preliminary, OTHER) => OTHER,
        (Meaning::Completion, OTHER | ANNOUNCED) => NOTHING,
        (Meaning::Other, OTHER) => NOTHING,
        (Meaning::Passive(..), PASV) => NOTHING,
        (Meaning::ExtendedPassive(_), EPSV) => NOTHING,
        (Meaning::Greets(_), GREETING) => LOGIN,
        (Meaning::LogsIn, LOGIN) => LOGIN_REPLY,
        (Meaning::AsksPassword, LOGIN_REPLY) => LOGIN,
        (Meaning::LoggedIn, LOGIN_REPLY) => NOTHING,
        _ => return None,
    };
    let ends_transfer = matches!(meaning, Meaning::Completion) && flow.awaits == OTHER;
    let is_gone = flow.hole.is_some_and(|hole| !holes.contains_key(&hole));
    let consumed = (ends_transfer && is_gone).then_some(flow.hole_step);
    let takes_four = matches!(meaning, Meaning::Greets(true));
    let opened = match meaning {
        Meaning::Announces(port, _) => {
            Some(HoleKey { initiator: flow.active_initiator, arrival: flow.client_arrival, port })
        }
        Meaning::Passive(port, _) | Meaning::ExtendedPassive(port) => {
            Some(HoleKey { initiator: flow.passive_initiator, arrival: flow.server_arrival, port })
        }
        _ => None,
    };
    if let Some(key) = opened {
        if key.port == 0 || barred.contains(&key.port) {
            return None;
        }
        if holes.get(&key).is_some_and(|owner| *owner != id) {
            return None;
        }
        if let Some(old) = flow.hole
            && holes.get(&old) == Some(&id)
        {
            holes.remove(&old);
        }
        holes.insert(key, id);
        (flow.hole, flow.hole_step) = (Some(key), flow.steps + 1);
    }
    if takes_four && flow.digits > 0 {
        flow.digits = 4;
    }
    flow.awaits = awaits;
    flow.steps += 1;
    let length = u32::try_from(segment.payload.len()).unwrap();
    flow.next[side.index()] = segment.seq.wrapping_add(length);
    flow.last[side.index()] = last;
    if let Some(shifts) = &mut flow.shifts
        && growth != 0
    {
        let (by, _) = shifts[side.index()];
        shifts[side.index()] = (by.wrapping_add(growth), flow.next[side.index()]);
    }
    Some(Expected::Step(heard, opened, consumed))
}

/// The numbers with which a packet passes. None if they may have been shifted otherwise when they were sent.
fn shifted(flow: &Flow, segment: &Segment) -> Option<[u32; 2]> {
    let Some(shifts) = flow.shifts else { return Some([segment.seq, segment.ack]) };
    let (own, own_since) = shifts[segment.side.index()];
    let (other, other_since) = shifts[segment.side.other().index()];
    let ack = segment.ack.wrapping_sub(other);
    let is_known = |number: u32, since: u32| number.wrapping_sub(since) < 1 << 31;
    let are_known = is_known(segment.seq, own_since) && is_known(ack, other_since);
    (segment.has_plain_options && are_known).then(|| [segment.seq.wrapping_add(own), ack])
}

fn end(flow: &mut Flow, segment: &Segment, passed: Passed) -> Option<Expected> {
    let side = segment.side;
    if !segment.payload.is_empty() {
        return None;
    }
    if flow.last[side.index()] == (segment.seq, None) {
        return Some(Expected::Again(passed));
    }
    let [own, other] = [flow.next[side.index()], flow.next[side.other().index()]];
    let crosses = flow.has_ended(side.other()) && passed.ack.wrapping_add(1) == other;
    let is_next = segment.seq == own && (passed.ack == other || crosses);
    if flow.has_ended(side) || !is_next || flow.awaits != NOTHING {
        return None;
    }
    flow.steps += 1;
    flow.next[side.index()] = segment.seq.wrapping_add(1);
    flow.last[side.index()] = (segment.seq, None);
    Some(Expected::Step(passed, None, None))
}

fn command(line: &str, flow: &Flow) -> Option<Meaning> {
    let (verb, argument) = match line.split_once(' ') {
        Some((verb, argument)) => (verb, Some(argument)),
        None => (line, None),
    };
    if let [_, _, version] = line.split(' ').collect::<Vec<_>>()[..]
        && version.contains('/')
        && version.ends_with(|one: char| one.is_ascii_digit())
    {
        return None;
    }
    match verb.to_ascii_uppercase().as_str() {
        "NOOP" | "PWD" | "CWD" | "CDUP" | "TYPE" | "SIZE" | "MDTM" | "REST" | "RETR" | "STOR"
        | "APPE" | "LIST" | "NLST" | "MLSD" | "DELE" | "MKD" | "RMD" | "RNFR" | "RNTO" | "SYST"
        | "QUIT" => Some(Meaning::Command(OTHER)),
        "USER" | "PASS" => (!argument?.contains(' ')).then_some(Meaning::LogsIn),
        "PASV" if argument.is_none() => Some(Meaning::Command(PASV)),
        "EPSV" if argument.is_none() => Some(Meaning::Command(EPSV)),
        "PORT" => {
            let (address, high, low) = host_port(argument?)?;
            if address != *flow.client.ip() {
                return None;
            }
            let text = if flow.client_named == address {
                line.to_owned()
            } else {
                let start = format!("{verb} {},", with_commas(flow.client_named));
                filled_with_zeros(&start, high, low, line.len(), flow.digits)
                    .unwrap_or_else(|| format!("{start}{high},{low}"))
            };
            Some(Meaning::Announces(port(high, low), text))
        }
        "EPRT" => {
            let fields: Vec<&str> = argument?.split('|').collect();
            let ["", "1", address, port, ""] = fields[..] else { return None };
            let [a, b, c, d] = numbers(address, '.', 255)?[..] else { return None };
            let port = u16::try_from(number(port, 65535)?).ok()?;
            if [a, b, c, d] != octets(*flow.client.ip()) {
                return None;
            }
            let text = format!("{verb} |1|{}|{port}|", flow.client_named);
            Some(Meaning::Announces(port, text))
        }
        _ => None,
    }
}

fn reply(line: &str, flow: &Flow) -> Option<Meaning> {
    let (code, text) = line.split_at_checked(3)?;
    let text = text.strip_prefix(' ')?;
    if !code.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    match code.parse().ok()? {
        230 => Some(Meaning::LoggedIn),
        331 => Some(Meaning::AsksPassword),
        220 => {
            let known = ["(vsFTPd ", "ProFTPD ", "FileZilla Server", "pyftpdlib "];
            Some(Meaning::Greets(known.iter().any(|name| text.starts_with(name))))
        }
        120 | 228 | 257 | 231..=239 | 332..=339 | 421 => None,
        100..=199 => Some(Meaning::Preliminary),
        227 => {
            let (before, inside, after) = parenthesis(text)?;
            let (address, high, low) = host_port(inside)?;
            if address != *flow.server.ip() {
                return None;
            }
            if flow.server_named == address {
                return Some(Meaning::Passive(port(high, low), line.to_owned()));
            }
            let named = with_commas(flow.server_named);
            let end = format!("({named},{high},{low}){after}");
            let mut text = format!("227 {before}");
            let length = text.len() + end.len();
            if length > line.len() && !may_grow(length, ")".len() + after.len()) {
                return None;
            }
            while text.len() + end.len() < line.len() {
                text.push(' ');
            }
            Some(Meaning::Passive(port(high, low), text + &end))
        }
        229 => {
            let (_, inside, _) = parenthesis(text)?;
            let port = number(inside.strip_prefix("|||")?.strip_suffix('|')?, 65535)?;
            Some(Meaning::ExtendedPassive(u16::try_from(port).ok()?))
        }
        200..=299 => Some(Meaning::Completion),
        300..=599 => Some(Meaning::Other),
        _ => None,
    }
}

/// Whether the program makes it this line, with `after` behind what it announces.
fn may_grow(line: usize, after: usize) -> bool {
    line + "\r\n".len() <= 128 && after + "\r\n".len() <= 16
}

/// What is before, in and behind the only parenthesis, if no digit is before it.
fn parenthesis(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once('(')?;
    let (inside, after) = rest.split_once(')')?;
    let is_only = !rest.contains('(') && !before.contains(|one: char| one.is_ascii_digit());
    is_only.then_some((before, inside, after))
}

fn host_port(text: &str) -> Option<(Ipv4Addr, u32, u32)> {
    let [a, b, c, d, high, low] = numbers(text, ',', 255)?[..] else { return None };
    let octets = [a, b, c, d].map(|octet| u8::try_from(octet).unwrap());
    Some((octets.into(), high, low))
}

fn numbers(text: &str, separator: char, most: u32) -> Option<Vec<u32>> {
    text.split(separator).map(|one| number(one, most)).collect()
}

/// A number as it is usually written: that is what tells it from one with zeros or a sign.
fn number(text: &str, most: u32) -> Option<u32> {
    let number: u32 = text.parse().ok()?;
    (number.to_string() == text && number <= most).then_some(number)
}

fn port(high: u32, low: u32) -> u16 {
    u16::try_from(high * 256 + low).unwrap()
}

fn octets(address: Ipv4Addr) -> [u32; 4] {
    address.octets().map(u32::from)
}

fn with_commas(address: Ipv4Addr) -> String {
    address.to_string().replace('.', ",")
}

fn filled_with_zeros(
    start: &str,
    high: u32,
    low: u32,
    length: usize,
    digits: u32,
) -> Option<String> {
    let most = digits.min(4) as usize;
    let (mut high, mut low) = (high.to_string(), low.to_string());
    while digits > 0 && start.len() + high.len() + 1 + low.len() < length {
        if low.len() < most {
            low.insert(0, '0');
        } else if high.len() < most {
            high.insert(0, '0');
        } else {
            return None;
        }
    }
    (digits > 0).then(|| format!("{start}{high},{low}"))
}
