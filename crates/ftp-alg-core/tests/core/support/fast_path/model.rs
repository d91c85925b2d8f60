//! A model of the fast path's program: a second, simple implementation that shares no code with it.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::{BTreeMap, BTreeSet};

use super::layout::{
    ABOR_PENDING, COMMAND_PENDING, EPSV_PENDING, FIN_DUE, Flow, GREETING_DUE, LOGIN_DUE,
    LOGIN_PENDING, LONGEST_LINE, PASV_PENDING, PORT_PENDING, Pinhole, PinholeKey, QUIT_PENDING,
    READY, Side, last_pinhole, saved_line, text,
};

/// A packet of the flow, with a plain IP header.
pub struct Segment<'a> {
    pub side: Side,
    pub seq: u32,
    pub ack: u32,
    pub has_only_ack_and_push: bool,
    /// Whether the TCP header has no options, or only timestamps in the usual form.
    pub has_plain_options: bool,
    /// Whether it also has the FIN flag.
    pub is_fin: bool,
    pub mark: u32,
    pub payload: &'a [u8],
}

/// What the program should do with a packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Expected {
    /// Hand the flow back and not change the packet, so that it is queued.
    HandBack,
    /// Set the mark, if the packet has none.
    MarkOnly,
    /// Let the packet pass like this. The flow does not advance: a retransmission, or an adjusted acknowledgement.
    Pass(Passed),
    /// Let the packet pass like this, as the next line. The pinhole that it opens; the number of the line whose
    /// pinhole was consumed.
    NextLine(Passed, Option<PinholeKey>, Option<u32>),
}

/// The fields that the program may change in a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    pub seq: u32,
    pub ack: u32,
    pub payload: Vec<u8>,
}

/// The kind of a line.
enum Meaning {
    /// A bypassable command, `PASV`, `EPSV`, `QUIT` or `ABOR`, and the state of the dialogue after it.
    Command(u32),
    /// `PORT` or `EPRT`: the announced port, and the line after the rewrite.
    Announcing(u16, String),
    /// `USER` or `PASS`.
    LoginCommand,
    /// 220, and whether the server takes four port digits.
    Greeting(bool),
    /// 331, which asks for a password.
    AsksPassword,
    /// 230, which accepts the login.
    LoggedIn,
    Preliminary,
    Completion,
    OtherReply,
    Passive(u16, String),
    ExtendedPassive(u16),
}

/// Decides about a packet, and changes flow and pinholes as the program should. A new pinhole gets no deadline, because
/// this knows no time.
pub fn decide(
    id: u64,
    flow: &mut Flow,
    pinholes: &mut BTreeMap<PinholeKey, Pinhole>,
    barred: &BTreeSet<u16>,
    segment: &Segment,
) -> Expected {
    let expected = try_decide(id, flow, pinholes, barred, segment).unwrap_or(Expected::HandBack);
    if expected == Expected::HandBack {
        flow.handed_over = 0;
    }
    expected
}

fn try_decide(
    id: u64,
    flow: &mut Flow,
    pinholes: &mut BTreeMap<PinholeKey, Pinhole>,
    barred: &BTreeSet<u16>,
    segment: &Segment,
) -> Option<Expected> {
    let side = segment.side;
    let only_acknowledges = segment.payload.is_empty() && !segment.is_fin;
    if only_acknowledges && flow.adjusted == 0 {
        return Some(Expected::MarkOnly);
    }
    if segment.mark != 0 || !segment.has_only_ack_and_push {
        return None;
    }
    let [seq, ack] = adjusted_numbers(flow, segment)?;
    let passed = |payload| Passed { seq, ack, payload };
    if only_acknowledges {
        return Some(Expected::Pass(passed(Vec::new())));
    }
    if segment.is_fin {
        return decide_fin(flow, segment, passed(Vec::new()));
    }
    if segment.payload.len() < 6 || segment.payload.len() > 128 {
        return None;
    }
    let line = std::str::from_utf8(segment.payload).ok()?.strip_suffix("\r\n")?;
    if !line.chars().all(|one| one == ' ' || one.is_ascii_graphic()) {
        return None;
    }
    let meaning = if side == Side::Client { command(line, flow)? } else { reply(line, flow)? };
    let allowed = flow.first_client_port..=flow.last_client_port;
    if matches!(meaning, Meaning::Announcing(port, _) if !allowed.contains(&port)) {
        return None;
    }
    let delivered = match &meaning {
        Meaning::Announcing(_, text) | Meaning::Passive(_, text) => text.clone(),
        _ => line.to_owned(),
    };
    let growth = (delivered.len() as u32).wrapping_sub(line.len() as u32);
    if growth != 0 && flow.adjusted == 0 {
        return None;
    }
    let delivered = passed(format!("{delivered}\r\n").into_bytes());
    let last = saved_line(segment.seq, Some(segment.payload));
    if flow.last_line[side.index()] == last {
        return Some(Expected::Pass(delivered));
    }
    if has_sent_fin(flow, side) {
        return None;
    }
    let next = [flow.next_seq[side.index()], flow.next_seq[side.other().index()]];
    if next != [segment.seq, ack] {
        return None;
    }
    let dialogue = match (&meaning, flow.dialogue) {
        (Meaning::Command(dialogue), READY) => *dialogue,
        (Meaning::Command(ABOR_PENDING), COMMAND_PENDING) => ABOR_PENDING,
        (Meaning::Announcing(..), READY) => PORT_PENDING,
        (Meaning::Preliminary, COMMAND_PENDING) => COMMAND_PENDING,
        (Meaning::Completion, COMMAND_PENDING | PORT_PENDING) => READY,
        (Meaning::OtherReply, COMMAND_PENDING) => READY,
        (Meaning::Completion | Meaning::OtherReply, QUIT_PENDING) => FIN_DUE,
        (Meaning::Passive(..), PASV_PENDING) => READY,
        (Meaning::ExtendedPassive(_), EPSV_PENDING) => READY,
        (Meaning::Greeting(_), GREETING_DUE) => LOGIN_DUE,
        (Meaning::LoginCommand, LOGIN_DUE) => LOGIN_PENDING,
        (Meaning::AsksPassword, LOGIN_PENDING) => LOGIN_DUE,
        (Meaning::LoggedIn, LOGIN_PENDING) => READY,
        _ => return None,
    };
    let completes_transfer =
        matches!(meaning, Meaning::Completion) && flow.dialogue == COMMAND_PENDING;
    let old = last_pinhole(flow);
    let is_consumed = old.is_some_and(|pinhole| !pinholes.contains_key(&pinhole));
    let consumed = (completes_transfer && is_consumed).then_some(flow.pinhole_line);
    let takes_four_digits = matches!(meaning, Meaning::Greeting(true));
    let opened = match meaning {
        Meaning::Announcing(port, _) => Some(PinholeKey {
            initiator: flow.active_initiator,
            arrival: flow.active_arrival,
            port,
        }),
        Meaning::Passive(port, _) | Meaning::ExtendedPassive(port) => Some(PinholeKey {
            initiator: flow.passive_initiator,
            arrival: flow.passive_arrival,
            port,
        }),
        _ => None,
    };
    if let Some(key) = opened {
        if flow.pinhole_timeout == 0 || key.port == 0 || barred.contains(&key.port) {
            return None;
        }
        if pinholes.get(&key).is_some_and(|existing| existing.flow != id) {
            return None;
        }
        pinholes.retain(|key, pinhole| Some(*key) != old || pinhole.flow != id);
        let line = flow.line_count + 1;
        let mark = [flow.active_mark, flow.passive_mark][side.index()];
        let interface = flow.interface[side.other().index()];
        pinholes.insert(key, Pinhole { flow: id, line, mark, interface, ..Pinhole::default() });
        (flow.pinhole, flow.pinhole_line) = (key, line);
    }
    if takes_four_digits && flow.port_digits > 0 {
        flow.port_digits = 4;
    }
    flow.dialogue = dialogue;
    flow.line_count += 1;
    let length = u32::try_from(segment.payload.len()).unwrap();
    flow.next_seq[side.index()] = segment.seq.wrapping_add(length);
    flow.last_line[side.index()] = last;
    if growth != 0 {
        let offset = &mut flow.seq_offset[side.index()];
        *offset = offset.wrapping_add(growth);
        flow.offset_since[side.index()] = flow.next_seq[side.index()];
    }
    Some(Expected::NextLine(delivered, opened, consumed))
}

/// The adjusted numbers of a packet. `None` if the packet may be older than the current sequence offsets.
fn adjusted_numbers(flow: &Flow, segment: &Segment) -> Option<[u32; 2]> {
    if flow.adjusted == 0 {
        return Some([segment.seq, segment.ack]);
    }
    let of = |side: Side| (flow.seq_offset[side.index()], flow.offset_since[side.index()]);
    let (own, own_since) = of(segment.side);
    let (other, other_since) = of(segment.side.other());
    let ack = segment.ack.wrapping_sub(other);
    let is_known = |number: u32, since: u32| number.wrapping_sub(since) < 1 << 31;
    let are_known = is_known(segment.seq, own_since) && is_known(ack, other_since);
    (segment.has_plain_options && are_known).then(|| [segment.seq.wrapping_add(own), ack])
}

fn has_sent_fin(flow: &Flow, side: Side) -> bool {
    flow.last_line[side.index()].length as usize == LONGEST_LINE + 1
}

fn decide_fin(flow: &mut Flow, segment: &Segment, passed: Passed) -> Option<Expected> {
    let side = segment.side;
    if !segment.payload.is_empty() {
        return None;
    }
    if flow.last_line[side.index()] == saved_line(segment.seq, None) {
        return Some(Expected::Pass(passed));
    }
    let [own, other] = [flow.next_seq[side.index()], flow.next_seq[side.other().index()]];
    let crosses = has_sent_fin(flow, side.other()) && passed.ack.wrapping_add(1) == other;
    let is_next = segment.seq == own && (passed.ack == other || crosses);
    if has_sent_fin(flow, side) || !is_next || ![READY, FIN_DUE].contains(&flow.dialogue) {
        return None;
    }
    flow.line_count += 1;
    flow.next_seq[side.index()] = segment.seq.wrapping_add(1);
    flow.last_line[side.index()] = saved_line(segment.seq, None);
    Some(Expected::NextLine(passed, None, None))
}

fn command(line: &str, flow: &Flow) -> Option<Meaning> {
    let (verb, argument) = match line.split_once(' ') {
        Some((verb, argument)) => (verb, Some(argument)),
        None => (line, None),
    };
    if is_bypassable(line) {
        return Some(Meaning::Command(COMMAND_PENDING));
    }
    match verb.to_ascii_uppercase().as_str() {
        "USER" | "PASS" => (!argument?.contains(' ')).then_some(Meaning::LoginCommand),
        "PASV" if argument.is_none() => Some(Meaning::Command(PASV_PENDING)),
        "EPSV" if argument.is_none() => Some(Meaning::Command(EPSV_PENDING)),
        "QUIT" if argument.is_none() => Some(Meaning::Command(QUIT_PENDING)),
        "ABOR" if argument.is_none() => Some(Meaning::Command(ABOR_PENDING)),
        "PORT" => {
            let (high, low) = host_port(argument?, flow, Side::Client)?;
            let text = if text(&flow.announced[0]).is_empty() {
                line.to_owned()
            } else {
                let start = format!("{verb} {},", with_commas(text(&flow.announced[0])));
                with_leading_zeros(&start, high, low, line.len(), flow.port_digits)
                    .unwrap_or_else(|| format!("{start}{high},{low}"))
            };
            Some(Meaning::Announcing(port(high, low), text))
        }
        "EPRT" => {
            let fields: Vec<&str> = argument?.split('|').collect();
            let ["", protocol, address, port, ""] = fields[..] else { return None };
            let port = u16::try_from(number(port, 65535)?).ok()?;
            if address != text(&flow.own[0]) || protocol.as_bytes() != [flow.own[0].protocol] {
                return None;
            }
            let announced = match text(&flow.announced[0]) {
                "" => address,
                other => other,
            };
            Some(Meaning::Announcing(port, format!("{verb} |{protocol}|{announced}|{port}|")))
        }
        _ => None,
    }
}

/// Whether the line is a command that announces nothing and changes no rights.
pub fn is_bypassable(line: &str) -> bool {
    const VERBS: [&str; 20] = [
        "NOOP", "PWD", "CWD", "CDUP", "TYPE", "SIZE", "MDTM", "REST", "RETR", "STOR", "APPE",
        "LIST", "NLST", "MLSD", "DELE", "MKD", "RMD", "RNFR", "RNTO", "SYST",
    ];
    let verb = line.split(' ').next().unwrap_or_default().to_ascii_uppercase();
    VERBS.contains(&verb.as_str()) && !may_be_request(line)
}

/// Whether the line may be a request of another protocol, as the program has it.
fn may_be_request(line: &str) -> bool {
    let version = line.rsplit(' ').next().unwrap_or_default();
    line.ends_with(' ')
        || line.split(' ').count() >= 3
            && version.contains('/')
            && version.ends_with(|one: char| one.is_ascii_digit())
}

/// A line that resembles a request of another protocol: what only some readers take for one. `below` gives a random
/// number below a bound.
pub fn random_request(mut below: impl FnMut(usize) -> usize) -> String {
    const VERBS: [&str; 7] = ["TYPE", "retr", "CWD", "QUIT", "PWD", "STOR", "NOOP"];
    const PARTS: [&str; 10] =
        [" ", "  ", "/", "*", "a:b", "x", "1", "HTTP/1.1", "RTSP/1.", " / HTTP/1.1"];
    let mut line = VERBS[below(VERBS.len())].to_owned();
    for _ in 0..below(6) {
        line += PARTS[below(PARTS.len())];
    }
    line
}

/// Greetings, and whether their server reads leading zeros in a `PORT` as decimal (benches/studies/lengths.md).
pub const GREETINGS: [(&str, bool); 9] = [
    ("220 ready", false),
    ("220 (vsFTPd 3.0.3)", true),
    ("220 ProFTPD Server (lab) [192.0.2.9]", true),
    ("220 FileZilla Server 1.7.0", true),
    ("220 pyftpdlib 1.5.7 ready.", true),
    ("220 pyftpdlib", false),
    ("220 pyftpdlic ready.", false),
    ("220 FileZilla Serves", false),
    ("220 Proftpd ", false),
];

fn reply(line: &str, flow: &Flow) -> Option<Meaning> {
    let (code, said) = line.split_at_checked(3)?;
    let said = said.strip_prefix(' ')?;
    if !code.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    match code.parse().ok()? {
        230 => Some(Meaning::LoggedIn),
        331 => Some(Meaning::AsksPassword),
        220 => {
            let known = ["(vsFTPd ", "ProFTPD ", "FileZilla Server", "pyftpdlib "];
            Some(Meaning::Greeting(known.iter().any(|name| said.starts_with(name))))
        }
        120 | 228 | 257 | 231..=239 | 332..=339 | 421 => None,
        100..=199 => Some(Meaning::Preliminary),
        227 => {
            let (before, inside, after) = parenthesis(said)?;
            let (high, low) = host_port(inside, flow, Side::Server)?;
            if text(&flow.announced[1]).is_empty() {
                return Some(Meaning::Passive(port(high, low), line.to_owned()));
            }
            let named = with_commas(text(&flow.announced[1]));
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
            let (_, inside, _) = parenthesis(said)?;
            let port = number(inside.strip_prefix("|||")?.strip_suffix('|')?, 65535)?;
            Some(Meaning::ExtendedPassive(u16::try_from(port).ok()?))
        }
        200..=299 => Some(Meaning::Completion),
        300..=599 => Some(Meaning::OtherReply),
        _ => None,
    }
}

/// Whether the program can write a line of this length, with a tail of `after` bytes after the announcement.
fn may_grow(line: usize, after: usize) -> bool {
    line + "\r\n".len() <= 128 && after + "\r\n".len() <= 16
}

/// The text before, in and after the parenthesis, if there is only one, and no digit before it.
fn parenthesis(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once('(')?;
    let (inside, after) = rest.split_once(')')?;
    let is_only = !rest.contains('(') && !before.contains(|one: char| one.is_ascii_digit());
    is_only.then_some((before, inside, after))
}

/// The numbers of the port, behind the own address of `side`.
fn host_port(text_of_line: &str, flow: &Flow, side: Side) -> Option<(u32, u32)> {
    let own = &flow.own[side.index()];
    let mut numbers = text_of_line.rsplitn(3, ',');
    let [low, high] = [number(numbers.next()?, 255)?, number(numbers.next()?, 255)?];
    let is_own = own.protocol == b'1' && numbers.next()? == with_commas(text(own));
    is_own.then_some((high, low))
}

/// A decimal number up to `most`, without leading zeros and without a sign.
fn number(text: &str, most: u32) -> Option<u32> {
    let number: u32 = text.parse().ok()?;
    (number.to_string() == text && number <= most).then_some(number)
}

fn port(high: u32, low: u32) -> u16 {
    u16::try_from(high * 256 + low).unwrap()
}

fn with_commas(address: &str) -> String {
    address.replace('.', ",")
}

fn with_leading_zeros(
    start: &str,
    high: u32,
    low: u32,
    length: usize,
    port_digits: u32,
) -> Option<String> {
    let most = port_digits.min(4) as usize;
    let (mut high, mut low) = (high.to_string(), low.to_string());
    while port_digits > 0 && start.len() + high.len() + 1 + low.len() < length {
        if low.len() < most {
            low.insert(0, '0');
        } else if high.len() < most {
            high.insert(0, '0');
        } else {
            return None;
        }
    }
    (port_digits > 0).then(|| format!("{start}{high},{low}"))
}
