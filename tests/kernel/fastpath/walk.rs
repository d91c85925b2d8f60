//! Random dialogues with random errors: program and model decide every packet alike, and the engine rewrites as they do.
//!
//! `FTP_ALG_DIALOGUES` is their number (12,000 by default), `FTP_ALG_SEED` the seed (0).

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ftp_alg_core::ftp::{Announcement, Padding};

use super::{
    admitted_syns::{AdmittedSyns, DataSyn},
    data::syn,
    frames::*,
    layout::*,
    model::{Expected, GREETINGS, Passed, Segment, decide, random_request},
    rng::Rng,
    scene::*,
};

const BYPASSABLE: [&str; 20] = [
    "NOOP", "PWD", "CWD", "CDUP", "TYPE", "SIZE", "MDTM", "REST", "RETR", "STOR", "APPE", "LIST",
    "NLST", "MLSD", "DELE", "MKD", "RMD", "RNFR", "RNTO", "SYST",
];

/// Announced ports. They are few, so that flows find pinholes of others.
const PORTS: [u16; 8] = [1, 1025, 2047, 2049, 12345, 34567, 51423, 65534];
/// Those that are barred: first and last ones of a word of bits, and one in between.
const BARRED: [u16; 3] = [1030, 2048, 65535];
const INSPECTED_MARK: u32 = 0x6_0000;

#[test]
fn program_and_model_decide_random_dialogues_alike() {
    let from_environment =
        |name, otherwise| env::var(name).map_or(otherwise, |value| value.parse().unwrap());
    let mut rng = Rng::new(from_environment("FTP_ALG_SEED", 0));
    let mut walk = Walk {
        scene: Scene::new(),
        pinholes: BTreeMap::new(),
        admitted_syns: AdmittedSyns::default(),
        barred: BTreeSet::from(BARRED),
        has_heartbeat: true,
        packets: 0,
        counts: BTreeMap::new(),
    };
    BARRED.iter().for_each(|port| walk.scene.bar(*port));
    let dialogues = from_environment("FTP_ALG_DIALOGUES", 12_000);
    for id in 1..=dialogues {
        walk.dialogue(id, &mut rng);
        if walk.pinholes.len() > 12 {
            walk.close_pinholes();
        }
    }
    let Walk { packets, counts, .. } = walk;
    println!("{packets} packets: {counts:?}");
    let is_thorough = LEAST.iter().all(|(what, least)| counts.get(what) > Some(least));
    assert!(dialogues < 12_000 || is_thorough, "{packets} packets: {counts:?}");
}

/// What happens in 12,000 dialogues, and more than how often.
const LEAST: [(&str, usize); 20] = [
    ("handed back", 500),
    ("other IP headers handed back", 20),
    ("wrong checksums handed back", 20),
    ("behind what was handed back", 500),
    ("odd flags without a payload", 40),
    ("dropped by the kernel", 200),
    ("retransmitted", 500),
    ("lines", 500),
    ("opened", 500),
    ("opened over IPv6", 500),
    ("rewritten", 500),
    ("rewritten over IPv6", 150),
    ("acknowledgements adjusted", 500),
    ("lengths changed", 400),
    ("lengths changed over IPv6", 100),
    ("consumed", 100),
    ("SYNs retransmitted", 20),
    ("SYNs of rules", 20),
    ("SYNs admitted again", 20),
    ("others' pinholes", 500),
];

struct Walk {
    scene: Scene,
    pinholes: BTreeMap<PinholeKey, Pinhole>,
    admitted_syns: AdmittedSyns,
    barred: BTreeSet<u16>,
    /// Whether there is a heartbeat, without which no pinhole is opened.
    has_heartbeat: bool,
    packets: usize,
    counts: BTreeMap<&'static str, usize>,
}

impl Walk {
    fn count(&mut self, what: &'static str, happened: bool) {
        *self.counts.entry(what).or_default() += usize::from(happened);
    }

    /// A flow, from its handover until it is handed back, or for some lines.
    fn dialogue(&mut self, id: u64, rng: &mut Rng) {
        let mut flow = some_flow(rng);
        let [client, server] = [Side::Client, Side::Server].map(|side| tuple(&flow, side));
        for ((source, destination), side) in [(client, Side::Client), (server, Side::Server)] {
            self.scene.set_tuple(PacketTuple::new(source, destination), id, side);
        }
        self.scene.set_flow(id, &flow);
        self.has_heartbeat = rng.chance(0.97);
        let is_gone = *rng.pick(&[0, now() - 1]);
        let deadline = if self.has_heartbeat { now() + 60 * SECOND } else { is_gone };
        self.scene.heartbeat.set(0, deadline, 0).unwrap();
        let (mut frames, mut foreign) = (Vec::<(Side, Frame)>::new(), Vec::new());
        for _ in 0..rng.below(30) + 10 {
            let (side, mut frame) = if !frames.is_empty() && rng.chance(0.1) {
                frames[frames.len() - 1 - rng.below(frames.len().min(3))].clone()
            } else {
                let is_reply = !matches!(flow.dialogue, READY | LOGIN_DUE);
                let has_fin = [Side::Client, Side::Server].map(|side| has_sent_fin(&flow, side));
                // Those of both sides may cross.
                let is_fin = rng.chance(if has_fin == [false; 2] { 0.03 } else { 0.4 });
                let is_odd =
                    rng.chance(if is_fin || flow.dialogue == FIN_DUE { 0.5 } else { 0.02 });
                let side = if is_reply != is_odd { Side::Server } else { Side::Client };
                let (source, destination) = if side == Side::Client { client } else { server };
                let mut frame = Frame::new(source, destination, ACK | PSH);
                frame.seq = flow.next_seq[side.index()];
                let shifted = flow.seq_offset[side.other().index()];
                frame.ack = flow.next_seq[side.other().index()].wrapping_add(shifted);
                if rng.chance(0.1) {
                    let odd = [RST, ACK | RST, SYN, ACK | SYN, ACK | URG];
                    frame.flags = if rng.chance(0.98) { ACK } else { *rng.pick(&odd) };
                    frame.ack = frame.ack.wrapping_sub(u32::try_from(rng.below(3)).unwrap() * 20);
                } else if is_fin {
                    frame.flags |= FIN;
                    frame.ack = frame.ack.wrapping_sub(u32::try_from(rng.below(3)).unwrap());
                } else {
                    frame.payload = some_line(rng, &flow, side).into_bytes();
                    let tail = rng.chance(0.02).then(|| *rng.pick(b" ,|1a)"));
                    frame.payload.extend(tail.into_iter().chain(*b"\r\n"));
                }
                (side, frame)
            };
            if !frame.payload.is_empty() && rng.chance(0.04) {
                corrupt(rng, &mut frame.payload);
            }
            if rng.chance(0.04) {
                change_headers(rng, &mut frame);
            }
            if rng.chance(0.1) {
                frame.tcp_options = some_options(rng);
            }
            frame.padding = rng.below(7);
            if rng.chance(0.05) {
                foreign.extend(self.insert_foreign(id, &flow, rng));
            }
            self.packet(id, &mut flow, side, &frame);
            if flow.handed_over == 0 && rng.chance(0.5) {
                break;
            }
            frames.push((side, frame));
            if let Some(key) = last_pinhole(&flow)
                && rng.chance(0.15)
            {
                self.syn(id, key, rng);
            }
            if let Some(key) = last_pinhole(&flow)
                && rng.chance(0.05)
            {
                self.syn_of_rules(key, rng);
            }
        }
        for key in foreign {
            if self.pinholes.remove(&key).is_some() {
                self.scene.remove_pinhole(key);
            }
        }
        for (source, destination) in [client, server] {
            self.scene.remove_tuple(PacketTuple::new(source, destination));
        }
        self.scene.remove_flow(id);
    }

    /// A pinhole that the flow may announce, and that is reserved or belongs to another flow: of any age, unless the flow has
    /// opened it before.
    fn insert_foreign(&mut self, id: u64, flow: &Flow, rng: &mut Rng) -> Option<PinholeKey> {
        let port = *rng.pick(&PORTS);
        let key = *rng.pick(&[
            PinholeKey { initiator: flow.active_initiator, arrival: flow.active_arrival, port },
            PinholeKey { initiator: flow.passive_initiator, arrival: flow.passive_arrival, port },
            last_pinhole(flow).unwrap_or(flow.pinhole),
        ]);
        if key.port == 0 || self.pinholes.contains_key(&key) {
            return None;
        }
        let (flow, deadline) = match Some(key) == last_pinhole(flow) {
            true => (id + 1, u64::MAX),
            false => (*rng.pick(&[0, id + 1]), *rng.pick(&[0, u64::MAX])),
        };
        let interface = LOOPBACK;
        let pinhole = Pinhole { flow, deadline, line: 1, mark: 2, interface, ..Pinhole::default() };
        self.scene.set_pinhole(key, pinhole);
        self.pinholes.insert(key, pinhole);
        self.count("others' pinholes", true);
        Some(key)
    }

    fn packet(&mut self, id: u64, flow: &mut Flow, side: Side, frame: &Frame) {
        self.packets += 1;
        if is_dropped(frame) || flow.handed_over == 0 {
            assert_eq!(self.scene.run(frame), unchanged(frame), "{frame:?}");
            assert_eq!((self.scene.flow(id), self.scene.lines()), (*flow, vec![]), "{frame:?}");
            self.count("dropped by the kernel", is_dropped(frame));
            self.count("behind what was handed back", flow.handed_over == 0);
            return;
        }
        let is_right = frame.checksum == Checksum::Right;
        let segment = Segment {
            side,
            seq: frame.seq,
            ack: frame.ack,
            has_only_ack_and_push: frame.flags & !(PSH | FIN) == ACK && is_plain(frame) && is_right,
            has_plain_options: [0, TIMESTAMPS.len()].contains(&frame.tcp_options.len())
                && frame.tcp_options.iter().zip(TIMESTAMPS).take(4).all(|(is, usual)| *is == usual),
            is_fin: frame.flags & FIN != 0,
            mark: frame.mark,
            payload: &frame.payload,
        };
        let (before, is_v6) = (*flow, flow.client.is_ipv6());
        let expected = if frame.payload.is_empty() && frame.flags & (SYN | RST | URG) != 0 {
            self.count("odd flags without a payload", true);
            flow.handed_over = 0;
            Expected::HandBack
        } else {
            flow.pinhole_timeout *= u64::from(self.has_heartbeat);
            decide(id, flow, &mut self.pinholes, &self.barred, &segment)
        };
        flow.pinhole_timeout = before.pinhole_timeout;
        let outcome = self.scene.run(frame);
        let lines = self.scene.lines();
        let what = format!("{frame:?}\nof {before:?}\nexpected: {expected:?}");
        let (passed, opened) = match &expected {
            Expected::MarkOnly => {
                let is_marked = frame.mark == 0 && is_plain(frame);
                let mark = if is_marked { INSPECTED_MARK } else { frame.mark };
                assert_eq!(outcome, Outcome { mark, ..unchanged(frame) }, "{what}");
                assert_eq!(lines, [], "{what}");
                (None, None)
            }
            Expected::HandBack => {
                assert_eq!(outcome, unchanged(frame), "{what}");
                assert_eq!(lines, [], "{what}");
                self.count("handed back", true);
                self.count("other IP headers handed back", !is_plain(frame));
                self.count("wrong checksums handed back", !is_right);
                (None, None)
            }
            Expected::Pass(passed) => {
                assert_eq!(lines, [], "{what}");
                let only_acknowledges = frame.payload.is_empty() && frame.flags & FIN == 0;
                self.count("acknowledgements adjusted", only_acknowledges);
                self.count("retransmitted", !only_acknowledges);
                (Some((passed, outcome)), None)
            }
            Expected::NextLine(passed, opened, consumed) => {
                let [line] = &lines[..] else { panic!("{lines:?} {what}") };
                assert_eq!((line.flow, line.number, line.side), (id, flow.line_count, side as u32));
                assert_eq!(
                    (line.seq, line.ack, line.line()),
                    (frame.seq, frame.ack, &frame.payload[..])
                );
                assert_eq!(line.opened_pinhole == 1, opened.is_some(), "{what}");
                assert_eq!(line.is_fin == 1, segment.is_fin, "{what}");
                assert_eq!(u32::from(line.port_digits), before.port_digits, "{what}");
                assert_eq!(line.consumed_pinhole, consumed.unwrap_or(0), "{what}");
                self.count("lines", true);
                self.count("consumed", consumed.is_some());
                (Some((passed, outcome)), *opened)
            }
        };
        if let Some((passed, outcome)) = passed {
            assert_eq!(outcome.mark, INSPECTED_MARK, "{what}");
            let text = payload(&outcome.bytes);
            let Passed { seq, ack, payload } = passed.clone();
            assert_eq!(
                text.escape_ascii().to_string(),
                payload.escape_ascii().to_string(),
                "{what}"
            );
            let is_rewritten = payload != frame.payload;
            if is_rewritten && let Some(key) = opened.filter(|_| side == Side::Client) {
                let rewritten = by_engine(&frame.payload, key.arrival(), before.port_digits);
                assert_eq!(payload, rewritten, "{what}");
            }
            let is_other_length = payload.len() != frame.payload.len();
            self.count("rewritten", is_rewritten);
            self.count("rewritten over IPv6", is_rewritten && is_v6);
            self.count("lengths changed", is_other_length);
            self.count("lengths changed over IPv6", is_other_length && is_v6);
            // A line of another length has no padding any more.
            let padding = if is_other_length { 0 } else { frame.padding };
            let sent_frame = Frame { seq, ack, payload, padding, ..frame.clone() };
            assert_eq!(outcome.bytes, sent_frame.to_bytes(), "{what}");
        }
        assert_eq!(self.scene.flow(id), *flow, "{what}");
        if let Some(pinhole) = opened.and_then(|key| self.pinholes.get_mut(&key)) {
            pinhole.deadline = lines[0].at_ns + flow.pinhole_timeout;
            self.count("opened", true);
            self.count("opened over IPv6", is_v6);
        }
        assert_eq!(self.scene.pinholes(), self.pinholes, "{what}");
    }

    /// A SYN for the flow's last pinhole, which may have been consumed, and its retransmission, perhaps behind its answer.
    fn syn(&mut self, id: u64, key: PinholeKey, rng: &mut Rng) {
        let seq = u32::try_from(rng.below(2)).unwrap();
        let mut changed = Frame { seq, ..syn(key) };
        change_headers(rng, &mut changed);
        let is_wrong =
            changed.checksum != Checksum::Right || changed.flags & (FIN | RST | URG) != 0;
        if is_wrong || is_dropped(&changed) || !is_plain(&changed) {
            assert_eq!(self.scene.run(&changed), unchanged(&changed), "{changed:?}");
        }
        if self.pinholes.get(&key).is_some_and(|open| open.flow == id) {
            let is_admitted = self.is_admitted(key, seq);
            self.count("SYNs retransmitted", !is_admitted);
            if rng.chance(0.3) {
                self.answer(key, seq + u32::from(rng.chance(0.8)), rng);
            }
        }
        let is_admitted = self.is_admitted(key, seq);
        self.count("SYNs admitted again", is_admitted);
    }

    fn answer(&mut self, key: PinholeKey, ack: u32, rng: &mut Rng) {
        let Frame { source, destination, .. } = syn(key);
        let mut answer = Frame { ack, ..Frame::new(destination, source, SYN | ACK) };
        if rng.chance(0.5) {
            // NAT has translated the SYN. The answer has its port.
            answer.source.set_ip(key.initiator);
            answer.destination = SocketAddr::new(key.arrival, 9999);
        }
        assert_eq!(self.scene.run(&answer).mark, 0);
        self.admitted_syns.answer(destination.port(), ack);
    }

    /// A SYN for the flow's last pinhole, which the rules have, too, or have had.
    fn syn_of_rules(&mut self, key: PinholeKey, rng: &mut Rng) {
        let until = if rng.chance(0.8) { u64::MAX } else { now() - 1 };
        self.scene.set_rules_pinhole(key, until);
        let until = Duration::from_nanos(until);
        self.admitted_syns.insert_rules_pinhole(key, until);
        self.is_admitted(key, u32::try_from(rng.below(2)).unwrap());
    }

    /// Whether program and model admit a SYN.
    fn is_admitted(&mut self, key: PinholeKey, seq: u32) -> bool {
        let frame = Frame { seq, ..syn(key) };
        let data_syn = DataSyn { source: frame.source, destination: frame.destination, seq };
        let now = Duration::from_nanos(now());
        let open = self.scene.pinhole(key);
        assert_eq!(open, self.pinholes.get(&key).copied());
        let mark = match &open {
            Some(pinhole) => Some(pinhole.mark).filter(|_| !self.admitted_syns.has(now, &data_syn)),
            None => self.admitted_syns.readmission(now, &data_syn),
        };
        assert_eq!(self.scene.run(&frame).mark, mark.unwrap_or(0), "{key:?} {open:?}");
        if open.is_none() {
            let is_of_rules = self.admitted_syns.insert_if_of_rules(now, &data_syn);
            self.count("SYNs of rules", is_of_rules);
        } else if mark.is_some() {
            self.pinholes.remove(&key);
            self.admitted_syns.insert(now, &data_syn, mark);
        }
        mark.is_some()
    }

    /// Closes all pinholes, by their SYNs.
    fn close_pinholes(&mut self) {
        let keys: Vec<PinholeKey> = self.pinholes.keys().copied().collect();
        for key in keys {
            self.packets += 1;
            assert!(self.is_admitted(key, u32::try_from(self.packets).unwrap() + 2));
        }
    }
}

/// A `PORT` or `EPRT` as the engine rewrites it.
fn by_engine(line: &[u8], named: SocketAddr, port_digits: u32) -> Vec<u8> {
    let is_port = line[..4].eq_ignore_ascii_case(b"PORT");
    let (parse, start, end): (fn(&[u8], usize) -> _, _, _) = if is_port {
        (Announcement::parse_port, 5, "\r\n")
    } else {
        (Announcement::parse_eprt, 8, "|\r\n")
    };
    let read = parse(&line[5..line.len() - 2], 0).unwrap();
    let padding = Padding::from_digits(usize::try_from(port_digits).unwrap());
    let text = read.replacement_text(named, padding).unwrap();
    [&line[..start], &text, end.as_bytes()].concat()
}

fn has_sent_fin(flow: &Flow, side: Side) -> bool {
    flow.last_line[side.index()].length as usize > LONGEST_LINE
}

fn some_address(rng: &mut Rng, is_v6: bool) -> IpAddr {
    let v4 = ["10.0.0.2", "192.168.150.80", "172.16.9.113", "1.2.3.4", "203.113.113.177"];
    let v6 = [
        "2001:db8:1::2",
        "fd00:150::80",
        "fd00::",
        "2001:db8::a0:b1c2:d3",
        "fd00:1111:2222:3333:4444:5555:6666:7777",
    ];
    let text = *rng.pick(&if is_v6 { v6 } else { v4 });
    ip(text)
}

/// An address that the gateway may put in the place of another one.
fn some_public_address(rng: &mut Rng, is_v6: bool) -> IpAddr {
    if rng.chance(0.7) {
        let mut octet = |_| *rng.pick(&[0, 0, 1, 9, 10, 42, 99, 100, 178, 255_u8]);
        // Of any length, but not of the other family, as ::ffff:0:0/96 would be.
        return match is_v6 {
            true => {
                std::array::from_fn::<_, 16, _>(|at| if at == 0 { 0xfd } else { octet(at) }).into()
            }
            false => std::array::from_fn::<_, 4, _>(octet).into(),
        };
    }
    let v6 =
        ["2001:db8:7::1", "2001:db8:7::", "64:ff9b::", "fdff:1111:2222:3333:4444:5555:6666:8888"];
    let text = if is_v6 { *rng.pick(&v6) } else { *rng.pick(&["198.51.100.1", "9.9.9.9"]) };
    ip(text)
}

fn some_flow(rng: &mut Rng) -> Flow {
    let is_v6 = rng.chance(0.5);
    let client = some_address(rng, is_v6);
    let client_port = 1024 + u16::try_from(rng.below(60000)).unwrap();
    let server = if is_v6 { SERVER6 } else { SERVER.ip() };
    let [announced_client, announced_server] = [client, server]
        .map(|own| if rng.chance(0.5) { own } else { some_public_address(rng, is_v6) });
    let start = [rng.next() as u32, 0xffff_ff00][rng.below(2)];
    let next_seq = [start, rng.next() as u32];
    let port_digits = *rng.pick(&[0, 1, 4]);
    let [first_client_port, last_client_port] =
        *rng.pick(&[[0, u16::MAX], [0, u16::MAX], [1024, 30_000]]);
    let adjusted = rng.chance(0.5);
    let offsets = match adjusted {
        true => next_seq.map(|next| some_seq_offset(rng, next)),
        false => [(0, 0); 2],
    };
    let flow = between(client, announced_client, server, announced_server);
    Flow {
        next_seq,
        pinhole_timeout: if rng.chance(0.95) { flow.pinhole_timeout } else { 0 },
        line_count: rng.next() as u32 >> 1,
        dialogue: *rng.pick(&[
            READY,
            READY,
            READY,
            PASV_PENDING,
            EPSV_PENDING,
            PORT_PENDING,
            LOGIN_DUE,
            GREETING_DUE,
        ]),
        client_port,
        inspected_mark: INSPECTED_MARK,
        port_digits,
        first_client_port,
        last_client_port,
        adjusted: adjusted.into(),
        seq_offset: offsets.map(|(by, _)| by),
        offset_since: offsets.map(|(_, since)| since),
        ..flow
    }
}

/// A sequence offset, and the first sequence number that has it, for a side whose next one is `next`.
fn some_seq_offset(rng: &mut Rng, next: u32) -> (u32, u32) {
    let by = *rng.pick(&[0, 3, u32::MAX, 70_000, 1 << 31]);
    (by, next.wrapping_sub(*rng.pick(&[0, 0, 15, 1 << 30])))
}

const NO_OPERATION: u8 = 1;
/// In the usual form.
const TIMESTAMPS: [u8; 12] = [NO_OPERATION, NO_OPERATION, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8];

/// Mostly timestamps in the usual form.
fn some_options(rng: &mut Rng) -> Vec<u8> {
    let padding = [NO_OPERATION; 4];
    match rng.below(20) {
        0 => [&TIMESTAMPS[2..], &padding[..2]].concat(),
        1 => [&TIMESTAMPS[..], &padding].concat(),
        2 => [&padding[..2], &[5, 10], &TIMESTAMPS[4..]].concat(), // SACK
        3 => vec![NO_OPERATION; 40],
        _ => TIMESTAMPS.to_vec(),
    }
}

/// Mostly the number, sometimes one that is the same in its lowest bits, or a leading zero before it.
fn some_digits(rng: &mut Rng, number: u16, bits: u32) -> String {
    match rng.below(60) {
        0 => format!("0{number}"),
        1 => (u64::from(number) + (1 << bits)).to_string(),
        2 => (u64::from(number) + (1 << 32)).to_string(),
        _ => number.to_string(),
    }
}

/// Commands that are the next line in no state, or in few. `~` is a blank at the end of one, or two blanks.
const ODD_COMMANDS: &str = "\
    ABOR  ABOR~  ACCT a  ALLO 1  AUTH TLS  CCC  CLNT a  CPSV  FEAT  HELP  HOST a  LANG  LPRT 1  LPSV  MFMT a  \
    MODE Z  NOOP\ta  OPTS UTF8 ON  PASS / HTTP/1.1  PASS a  PBSZ 0  PROT P  QUIT now  QUIT~  REIN  SITE x  SMNT x  \
    SPSV  STAT  STOU  STRU F  USER a b  USER x  XCWD a  XPWD  ~NOOP  LIST / ICAP/12.34  RETR / HTTP/1.1  \
    EPRT  EPRT~  EPSV 1  EPSV ALL  EPSV~  PASV a  PASV~  PORT  PORT~  PORT~~  PORT\t10,0,0,2,4,1  PORT 1,2,3,4,5  \
    EPRT !1!10.0.0.2!1025!  EPRT |1|10,0,0,2|1025|  EPRT |1|10.0.0.2|1025  EPRT |||1025|  EPRT |2|::1|1025|  \
    EPRT |2|[2001:db8:1::2]|1025|  EPRT |2|2001:db8:1::2%lan|1025|  EPRT |2|2001:db8:1::0.0.0.2|1025|";
/// As above, replies.
const ODD_REPLIES: &str = "\
    000 x  099 x  120 later  150-wait  200-ok  20 ok  2000 ok  200  200ok  200\tok  ~200 ok  220 later  227~  \
    227 192,0,2,9,4,1  227 =192,0,2,9,4,1  227 (192,0,2,9,4,1) (  227 () (192,0,2,9,4,1)  227 (192.0.2.9.4.1)  \
    227-Entering (192,0,2,9,4,1)  228 (192,0,2,9,4,1)  229~  229 |||1025|  229 (!!!1025!)  229 (|||1025|)(  \
    229 (||||)  229 (|1|192.0.2.9|1025|)  229 (|||70000|)  229-Entering (|||1025|)  230 in  230-in  231 out  \
    232 in  234 TLS  239 x  250-no  257 x  300~  331 who  331-password  332 which  339 x  350 (192,0,2,9,4,1)  421 bye  \
    600 x  950 x  ok then";

/// Mostly the expected line, sometimes another one.
fn some_line(rng: &mut Rng, flow: &Flow, side: Side) -> String {
    let free = rng.chance(0.9);
    let port = if free { *rng.pick(&PORTS) } else { *rng.pick(&[0, 1030, 2048, 65535]) };
    let [high, low] = [port >> 8, port & 255].map(|part| some_digits(rng, part, 8));
    let numbers = |address: IpAddr| format!("{address},{high},{low}").replace('.', ",");
    let port = some_digits(rng, port, 16);
    let is_v6 = flow.client.is_ipv6() != rng.chance(0.02);
    let other = some_address(rng, is_v6);
    let pick = |rng: &mut Rng, own| if rng.chance(0.95) { own } else { other };
    let client = pick(rng, flow.client);
    let server = pick(rng, flow.server);
    // A line of 128 bytes is the longest one.
    let length = if rng.chance(0.1) { 120 + rng.below(6) } else { rng.below(60) };
    let named = if rng.chance(0.95) { client.to_string() } else { other_spelling(rng, client) };
    let eprt = format!("EPRT |{}|{named}|{port}|", if is_v6 { 2 } else { 1 });
    // Over IPv6 PORT and 227 are handed back, so they are rare.
    let [port_command, pasv] = match flow.client.is_ipv6() && rng.chance(0.9) {
        true => [eprt.clone(), "EPSV".to_owned()],
        false => [format!("PORT {}", numbers(client)), "PASV".to_owned()],
    };
    let commands = [
        format!("{}{}", rng.pick(&BYPASSABLE), rng.pick(&["", " some thing"])),
        (*rng.pick(&["retr a b", "RETR pub/1", "RETR a b/1.", "CWD a b/c"])).to_owned(),
        format!("Cwd {}", "d".repeat(length)),
        port_command.clone(),
        port_command.replacen("PORT", "port", 1),
        port_command,
        eprt,
        pasv.clone(),
        pasv,
        "EPSV".to_owned(),
    ];
    let mut text = *rng.pick(&["", "Entering Passive Mode ", "=", "x, y "]);
    let mut end = *rng.pick(&["", ".", " 1,2,3", ")"]);
    if rng.chance(0.05) {
        // The program moves no more than 16 bytes behind an announcement.
        let tails = [("", " 3456789 1234"), ("", " 3456789 12345")];
        (text, end) = *rng.pick(&[("mode 2 ", ""), ("", "("), ("(a) ", ""), tails[0], tails[1]]);
    }
    let close = if rng.chance(0.97) { ")" } else { *rng.pick(&["", "]", " )", ",1)", "|)"]) };
    let passive = format!("227 {text}({}{close}{end}", numbers(server));
    let extended = format!("229 {text}(|||{port}|{close}{end}");
    let codes =
        [125, 100, 199, 200, 211, 225, 240, 250, 256, 299, 300, 330, 340, 350, 425, 426, 450, 599];
    let coded = format!("{} (1,2,3,4,5,6) is no address", rng.pick(&codes));
    let plain = ["200 ok", "226 (done)", "150 wait", "550 no", &coded];
    if rng.chance(0.05) {
        let odd = if side == Side::Client { ODD_COMMANDS } else { ODD_REPLIES };
        let odd: Vec<_> = odd.split("  ").map(str::trim).collect();
        return rng.pick(&odd).replace('~', " ");
    }
    if side == Side::Server && rng.chance(0.02) {
        return (*rng.pick(&[&passive, &extended, "200 ok"])).to_owned();
    }
    match (side, flow.dialogue) {
        (Side::Client, LOGIN_DUE) if rng.chance(0.95) => {
            (*rng.pick(&["USER a", "pass b", "PASS ", "user c d"])).to_owned()
        }
        (Side::Server, GREETING_DUE) if rng.chance(0.95) => rng.pick(&GREETINGS).0.to_owned(),
        (Side::Server, LOGIN_PENDING) if rng.chance(0.95) => {
            (*rng.pick(&["331 password for a", "331 ", "230 in", "530 no"])).to_owned()
        }
        (Side::Client, _) if rng.chance(0.04) => random_request(|bound| rng.below(bound)),
        (Side::Client, COMMAND_PENDING | FIN_DUE) if rng.chance(0.5) => "ABOR".to_owned(),
        (Side::Client, _) if rng.chance(0.04) => (*rng.pick(&["QUIT", "quit", "abor"])).to_owned(),
        (Side::Client, _) => rng.pick(&commands).clone(),
        (Side::Server, PASV_PENDING) if rng.chance(0.98) => passive,
        (Side::Server, EPSV_PENDING) if rng.chance(0.98) => extended,
        (Side::Server, PORT_PENDING) if rng.chance(0.95) => "200 ok".to_owned(),
        (Side::Server, _) => (*rng.pick(&plain)).to_owned(),
    }
}

/// Another text of the same address.
fn other_spelling(rng: &mut Rng, address: IpAddr) -> String {
    let text = address.to_string();
    match address {
        IpAddr::V4(_) => text.replacen('.', ".0", 1),
        IpAddr::V6(address) => match rng.below(3) {
            0 => text.to_uppercase(),
            1 => text.replacen(":", ":0", 1),
            _ => address.segments().map(|segment| format!("{segment:x}")).join(":"),
        },
    }
}

/// Changes a line at random.
fn corrupt(rng: &mut Rng, line: &mut Vec<u8>) {
    let at = rng.below(line.len());
    match rng.below(9) {
        0 => line[at] = rng.next() as u8,
        1 => line[at] = *rng.pick(b"(),.|:a0123456789 \r\n\0"),
        2 => line[at] ^= *rng.pick(&[1, 0x10, 0x20, 0x40, 0x60, 0x80]),
        3 => line.truncate(at.max(1)),
        4 => line.insert(at, *rng.pick(b"0129 ,|(")),
        5 => drop(line.remove(at)),
        6 => line.extend_from_slice(b"NOOP\r\n"),
        7 => line.make_ascii_uppercase(),
        _ => line.make_ascii_lowercase(),
    }
    if line.is_empty() {
        line.push(b'x');
    }
}

/// Changes one property of the headers at random.
fn change_headers(rng: &mut Rng, frame: &mut Frame) {
    let is_v4 = frame.source.is_ipv4();
    let is_acknowledgement = frame.payload.is_empty() && frame.flags & (SYN | FIN) == 0;
    let difference = *rng.pick(&[1, u32::MAX, 10, 1 << 31]);
    match rng.below(11) {
        0 => frame.ttl = *rng.pick(&[0, 1, 2]),
        1 => frame.destination_mac = *rng.pick(&[[2, 0, 0, 0, 0, 2], [0xff; 6]]),
        2 => frame.destination_mac = *rng.pick(&[[0x33, 0x33, 0, 0, 0, 1], [1, 0, 0x5e, 0, 0, 1]]),
        3 if is_v4 => frame.wrong_ip_checksum = 0x100,
        4 if is_v4 => frame.ip_options = vec![NO_OPERATION; *rng.pick(&[4, 40])],
        5 if is_v4 => frame.more_fragments = true,
        6 => frame.seq = frame.seq.wrapping_add(difference),
        7 => frame.ack = frame.ack.wrapping_add(difference),
        8 => frame.flags |= *rng.pick(&[ECE, CWR, NS]),
        9 => frame.mark = *rng.pick(&[1, INSPECTED_MARK, u32::MAX]),
        _ if rng.chance(0.5) => frame.flags ^= *rng.pick(&[ACK, FIN, SYN, RST, URG]),
        _ if is_acknowledgement => {} // the program verifies no checksum of it
        _ => frame.checksum = Checksum::WrongBy(*rng.pick(&[1, 0x100, 0x8000])),
    }
}

/// Whether the kernel drops the packet, or gives it to no one here.
fn is_dropped(frame: &Frame) -> bool {
    let is_checksum_wrong = frame.wrong_ip_checksum != 0 && frame.ip_options.is_empty();
    frame.ttl <= 1 || is_checksum_wrong || frame.destination_mac != [0; 6]
}

/// Whether the IP header has no options, and the packet is no fragment.
fn is_plain(frame: &Frame) -> bool {
    frame.ip_options.is_empty() && !frame.more_fragments
}

fn unchanged(frame: &Frame) -> Outcome {
    Outcome { mark: frame.mark, bytes: frame.to_bytes() }
}
