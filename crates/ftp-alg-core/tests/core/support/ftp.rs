//! What FTP ends say: announcements of endpoints, a login, and a server that answers.

use std::net::{IpAddr, SocketAddr};

use ftp_alg_core::{
    packet::flags,
    session::Side::{self, Client, Server},
};

use super::{
    scenario::Scenario,
    script::{LOGIN, Message, messages},
    segment::Segment,
    sim::Sim,
};

/// `h1,h2,h3,h4,p1,p2`.
pub fn host_port(endpoint: SocketAddr) -> String {
    let IpAddr::V4(ip) = endpoint.ip() else { panic!("a host-port of IPv6") };
    let ([a, b, c, d], [high, low]) = (ip.octets(), endpoint.port().to_be_bytes());
    format!("{a},{b},{c},{d},{high},{low}")
}

/// `PORT`, or over IPv6 `EPRT`.
pub fn active(endpoint: SocketAddr) -> String {
    if endpoint.is_ipv4() { format!("PORT {}\r\n", host_port(endpoint)) } else { eprt(endpoint) }
}

pub fn eprt(endpoint: SocketAddr) -> String {
    let family = if endpoint.is_ipv4() { 1 } else { 2 };
    format!("EPRT |{family}|{}|{}|\r\n", endpoint.ip(), endpoint.port())
}

/// A `PORT` that is shorter than `length`, with as many zeros before the numbers of its port, up to four digits each. As
/// it is where that is not enough.
pub fn filled(line: &str, length: usize) -> String {
    let numbers = line.strip_prefix("PORT ").and_then(|line| line.strip_suffix("\r\n"));
    let Some((address, low)) = numbers.and_then(|numbers| numbers.rsplit_once(',')) else {
        return line.to_owned();
    };
    let Some((address, high)) = address.rsplit_once(',') else { return line.to_owned() };
    (low.len()..=4)
        .flat_map(|low| (high.len()..=4).map(move |high| (high, low)))
        .map(|(high_width, low_width)| {
            format!("PORT {address},{high:0>high_width$},{low:0>low_width$}\r\n")
        })
        .rfind(|line| line.len() == length)
        .unwrap_or_else(|| line.to_owned())
}

/// A 227 that is shorter than `length`, with as many blanks before its parenthesis.
pub fn with_blanks(line: &str, length: usize) -> String {
    line.replacen('(', &format!("{}(", " ".repeat(length.saturating_sub(line.len()))), 1)
}

/// A 227, or over IPv6 a 229.
pub fn passive(endpoint: SocketAddr) -> String {
    if endpoint.is_ipv4() {
        format!("227 Entering Passive Mode ({})\r\n", host_port(endpoint))
    } else {
        format!("229 Entering Extended Passive Mode (|||{}|)\r\n", endpoint.port())
    }
}

/// The endpoint at the address of `like`.
pub fn at(like: SocketAddr, port: u16) -> SocketAddr {
    SocketAddr::new(like.ip(), port)
}

/// The line that a server gets in place of one that is refused.
pub fn crossed_out(line: &str) -> String {
    let crossed = |c: char| if matches!(c, ' ' | '\r' | '\n') { c } else { 'X' };
    line.chars().map(crossed).collect()
}

impl Sim {
    /// A connection on which the server has accepted a login.
    pub fn logged_in(scenario: Scenario) -> Self {
        Self::after(scenario, LOGIN)
    }

    /// Plays a script. Each message must arrive as [`said_and_heard`](Self::said_and_heard) has it.
    #[track_caller]
    pub fn play(&mut self, script: &str) {
        for Message { from_client, text, .. } in messages(script) {
            let side = if from_client { Client } else { Server };
            let lines = text.split_inclusive('\n').map(|line| self.said_and_heard(line));
            let (said, heard): (String, String) = lines.collect();
            assert_eq!(self.tell(side, &said), heard, "{script}: {}", self.summary());
        }
    }

    /// A line of a script, as it is said and as it is heard. `ACTIVE 22` and `PASSIVE 22` announce this port, `PASSIVE` asks
    /// for one. `said => heard` is changed, `said => X` crossed out, and `said => =` unchanged, as all others.
    fn said_and_heard(&self, line: &str) -> (String, String) {
        let [text, end] = {
            let text = line.trim_end_matches(['\r', '\n']);
            [text, &line[text.len()..]]
        };
        if let Some((said, heard)) = text.split_once(" => ") {
            let (said, _) = self.said_and_heard(&format!("{said}{end}"));
            let heard = match heard {
                "X" => crossed_out(&said),
                "=" => said.clone(),
                heard => format!("{heard}{end}"),
            };
            return (said, heard);
        }
        let lines = match text.split_once(' ') {
            Some(("ACTIVE", port)) => self.active(port.parse().unwrap()),
            Some(("PASSIVE", port)) => self.passive(port.parse().unwrap()),
            _ if text == "PASSIVE" => [self.passive_command(); 2].map(str::to_owned),
            _ => return (line.to_owned(), line.to_owned()),
        };
        lines.map(|line| line.replace("\r\n", end)).into()
    }

    /// Plays a script, whatever arrives of it.
    pub fn hear(&mut self, script: &str) {
        for Message { from_client, text, .. } in messages(script) {
            let said: String =
                text.split_inclusive('\n').map(|line| self.said_and_heard(line).0).collect();
            self.say(if from_client { Client } else { Server }, said.as_bytes());
        }
    }

    /// A connection on which this script was played.
    #[track_caller]
    pub fn after(scenario: Scenario, script: &str) -> Self {
        let mut sim = Self::new(scenario);
        sim.play(script);
        sim
    }

    /// The client's announcement of this port, as the client says it and as the server hears it.
    pub fn active(&self, port: u16) -> [String; 2] {
        [self.translation.client, self.translation.client_external].map(|end| active(at(end, port)))
    }

    /// The server's announcement of this port, as the server says it and as the client hears it.
    pub fn passive(&self, port: u16) -> [String; 2] {
        [self.translation.server, self.translation.server_external]
            .map(|end| passive(at(end, port)))
    }

    /// `PASV`, or over IPv6 `EPSV`.
    pub fn passive_command(&self) -> &'static str {
        if self.translation.server.is_ipv4() { "PASV\r\n" } else { "EPSV\r\n" }
    }

    /// Asserts that the session is inspected: an announcement of the client opens a pinhole.
    #[track_caller]
    pub fn assert_inspected(&mut self) {
        let (opened, [said, seen]) = (self.kernel.opened.len(), self.active(2200));
        assert_eq!(self.tell(Client, &said), seen, "{}", self.summary());
        assert_eq!(self.kernel.opened.len(), opened + 1);
    }

    /// The next segment of `side`, which acknowledges all.
    pub fn next_segment(&self, side: Side, payload: &[u8]) -> Segment {
        let (own, peer) = match side {
            Client => (&self.client, &self.server),
            Server => (&self.server, &self.client),
        };
        Segment {
            seq: own.next_number(),
            ack: peer.next_number(),
            flags: flags::ACK,
            window: 1000,
            payload: payload.into(),
            ..Segment::default()
        }
    }

    /// Has `side` say this, waits until all is still, and gives what the peer received.
    pub fn tell(&mut self, side: Side, said: &str) -> String {
        text(self.say(side, said.as_bytes()))
    }

    /// Has `side` say `pieces` one after the other, each when all is still, and gives what the peer received.
    pub fn say_in_pieces<'a>(
        &mut self,
        side: Side,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> Vec<u8> {
        pieces.into_iter().flat_map(|piece| self.say(side, piece)).collect()
    }

    /// As [`say_in_pieces`](Self::say_in_pieces), in two that are cut at `at`.
    pub fn tell_cut(&mut self, side: Side, said: &str, at: usize) -> String {
        let (first, second) = said.as_bytes().split_at(at);
        text(self.say_in_pieces(side, [first, second]))
    }

    /// Closes both ends, `first` before the other. Nothing must be left.
    #[track_caller]
    pub fn assert_ends(mut self, first: Side) {
        for side in [first, first.peer()] {
            self.close(side);
            self.settle();
        }
        self.assert_nothing_left();
    }

    /// Lets the client ask and the server answer; gives what each received.
    pub fn exchange(&mut self, command: &str, reply: &str) -> (String, String) {
        (self.tell(Client, command), self.tell(Server, reply))
    }

    /// Has the client write `pieces`, and a model of a server answer. Returns the lines that the server receives.
    pub fn serve<'a>(&mut self, pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
        let mut server = ServerModel::new(self.translation.server.ip(), 5000);
        pieces.into_iter().for_each(|piece| self.write(Client, piece));
        self.converse(&mut server);
        server.lines
    }

    /// Lets the two ends talk until all is still: `server` answers what the server hears.
    pub fn converse(&mut self, server: &mut ServerModel) {
        loop {
            let heard = self.server.read();
            let answer = server.hear(&heard);
            if server.pauses {
                answer.split_inclusive(|byte| *byte == b'\n').for_each(|line| {
                    self.write(Server, line);
                });
            } else if !answer.is_empty() {
                self.write(Server, &answer);
            }
            if server.has_ended {
                server.has_ended = false;
                self.close(Server);
            }
            if !self.step() {
                break;
            }
        }
    }
}

pub fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// A server that answers line by line, and unknown commands with 500.
pub struct ServerModel {
    own: IpAddr,
    port: u16,
    unfinished: Vec<u8>,
    /// What it heard.
    pub lines: Vec<String>,
    /// For each line that it answered, whether it answers one that was crossed out.
    pub refusals: Vec<bool>,
    /// Answers `PORT` and `EPRT` with 500.
    pub refuses_active: bool,
    /// Writes one line at a time.
    pub pauses: bool,
    has_ended: bool,
}

impl ServerModel {
    /// One at `own`, whose data ports count from `port`.
    pub fn new(own: IpAddr, port: u16) -> Self {
        Self {
            own,
            port,
            unfinished: Vec::new(),
            lines: Vec::new(),
            refusals: Vec::new(),
            refuses_active: false,
            pauses: false,
            has_ended: false,
        }
    }

    pub fn hear(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.unfinished.extend_from_slice(bytes);
        let mut answers = String::new();
        while let Some(end) = self.unfinished.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.unfinished.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line).into_owned();
            if !line.trim().is_empty() {
                let answer = self.answer(line.trim());
                let is_refusal = line.starts_with("XXXX ");
                self.refusals.extend(answer.lines().map(|_| is_refusal));
                answers += &answer;
            }
            self.lines.push(line);
        }
        answers.into_bytes()
    }

    fn answer(&mut self, line: &str) -> String {
        let verb = line.split(' ').next().unwrap_or_default().to_ascii_uppercase();
        match &*verb {
            "USER" => "331 password\r\n".into(),
            "PASS" => "230 in\r\n".into(),
            "TYPE" | "NOOP" => "200 ok\r\n".into(),
            "PORT" | "EPRT" if self.refuses_active => "500 no\r\n".into(),
            "PORT" | "EPRT" => format!("200 {verb} ok\r\n"),
            "PASV" | "EPSV" => {
                self.port += 1;
                let endpoint = SocketAddr::new(self.own, self.port);
                if verb == "PASV" {
                    passive(endpoint)
                } else {
                    format!("229 Entering Extended Passive Mode (|||{}|)\r\n", self.port)
                }
            }
            "LIST" | "RETR" | "STOR" => "150 here\r\n226 done\r\n".into(),
            "STAT" => {
                "211-Status\r\n227 Entering Passive Mode (10,0,0,1,0,22)\r\n211 End\r\n".into()
            }
            "QUIT" => {
                self.has_ended = true;
                "221 bye\r\n".into()
            }
            _ => "500 what?\r\n".into(),
        }
    }
}
