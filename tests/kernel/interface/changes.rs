//! A pinhole is opened, and others are closed, in one transaction; what is refused hinders nothing else.

use std::{
    io::Read as _,
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use ftp_alg::kernel::{
    LinuxKernel, RuleParameters,
    conntrack::{admitted_connections, consumed_pinholes},
    parameters::CtMarkUse,
    table::{Commits, PinholeSets, Table},
};
use ftp_alg_core::engine::{Kernel as _, KernelError, PinholeEnds};
use ftp_alg_lab::wait_for;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::lab::*;

/// Longer than 65,536 take in an emulator.
const LIFETIME: Duration = Duration::from_secs(600);

/// A gateway whose table has its own rules alone.
pub struct Place {
    pub lab: Lab,
    _table: Table,
    outcomes: Vec<Result<(), KernelError>>,
}

impl Place {
    pub fn new() -> Self {
        Self::with(&RuleParameters::default())
    }

    pub fn with(parameters: &RuleParameters) -> Self {
        let lab = Lab::new();
        let table = lab.on_gateway(|| Table::install(parameters, &Commits::default()).unwrap());
        Self { lab, _table: table, outcomes: vec![Err(KernelError::Unknown)] }
    }

    /// A writer that knows this kernel, and one that knows what Linux 6.1 does.
    pub fn writers(&self) -> [PinholeSets; 2] {
        self.lab.on_gateway(|| {
            let new = || PinholeSets::new(&Commits::default()).unwrap();
            [new(), new().for_older_kernels()]
        })
    }

    /// Opens pinholes, and closes others with the first of them. Tells in how many transactions the kernel did it.
    pub fn change(
        &mut self,
        writer: &mut PinholeSets,
        closed: &[PinholeEnds],
        opened: &[PinholeEnds],
    ) -> u32 {
        let before = self.generation();
        if opened.is_empty() {
            writer.close(closed).unwrap();
        }
        self.outcomes.clear();
        for (index, ends) in opened.iter().enumerate() {
            let closed = if index == 0 { closed } else { &[] };
            self.outcomes.push(writer.open(&opening(*ends, LIFETIME), closed));
        }
        self.generation() - before
    }

    /// Opens a pinhole of a control connection with this ct mark.
    pub fn open_with_mark(&mut self, writer: &mut PinholeSets, pinhole: PinholeEnds, ct_mark: u32) {
        let mut opening = opening(pinhole, LIFETIME);
        opening.control.ct_mark = ct_mark;
        writer.open(&opening, &[pinhole]).unwrap();
    }

    /// The ct mark of the connection that `client` initiated.
    pub fn ct_mark_of(&self, client: &TcpStream) -> u32 {
        let (from, to) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let family = if from.is_ipv4() { "ipv4" } else { "ipv6" };
        // An earlier connection to another port may have had the same source port.
        let ports = format!("--sport {} --dport {}", from.port(), to.port());
        let list = format!("conntrack -L -f {family} -p tcp {ports}");
        let known = self.lab.gateway_sh(&list);
        let mark = known.split_once("mark=").unwrap().1.split_whitespace().next();
        mark.unwrap().parse().unwrap()
    }

    /// Which openings were refused, and why.
    fn refused(&self) -> Vec<(usize, String)> {
        let outcomes = self.outcomes.iter().enumerate();
        outcomes
            .filter_map(|(index, outcome)| Some((index, outcome.as_ref().err()?.to_string())))
            .collect()
    }

    /// How many transactions there were in the gateway's namespace.
    fn generation(&self) -> u32 {
        self.lab.on_gateway(|| {
            let protocol = Protocol::from(libc::NETLINK_NETFILTER);
            let mut socket =
                Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(protocol)).unwrap();
            let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | libc::NFT_MSG_GETGEN) as u16;
            let mut request = 20_u32.to_ne_bytes().to_vec();
            request.extend(kind.to_ne_bytes());
            request.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
            request.resize(20, 0);
            socket.send(&request).unwrap();
            let mut answer = [0; 1000];
            let length = socket.read(&mut answer).unwrap();
            // Both headers and that of the attribute.
            assert!(length >= 28 && answer[22..24] == 1_u16.to_ne_bytes());
            u32::from_be_bytes(answer[24..28].try_into().unwrap())
        })
    }

    /// Keys of a set.
    fn elements(&self, set: &str) -> usize {
        self.lab
            .gateway_sh(&format!("nft list set inet ftp_alg {set} | grep -o expires | wc -l; :"))
            .trim()
            .parse()
            .unwrap()
    }
}

/// Translated both ways, and all others different.
fn translated(number: u16) -> PinholeEnds {
    let target = at(SERVER, 4000 + number);
    PinholeEnds { target, source: ip(EXTERNAL), ..pinhole(CLIENT, at(SERVER2, 50_000 + number)) }
}

#[test]
fn one_pinhole_opens_and_many_close_in_one_transaction() {
    let mut place = Place::new();
    for mut writer in place.writers() {
        let mut holes: Vec<_> = (0..30).map(translated).collect();
        holes.extend((0..10).map(|number| pinhole(CLIENT6, at(SERVER6, 4000 + number))));
        assert_eq!(place.change(&mut writer, &[], &holes), 40);
        assert_eq!(place.refused(), []);
        assert_eq!(writer.list_open().unwrap().unwrap().len(), 40);
        // The same ones, and others in place of some.
        holes.truncate(35);
        let closed = holes.clone();
        holes.rotate_left(7);
        holes.extend((100..110).map(translated));
        let closed_too: Vec<_> =
            (5..10).map(|number| pinhole(CLIENT6, at(SERVER6, 4000 + number))).collect();
        let all = [closed, closed_too].concat();
        assert_eq!(place.change(&mut writer, &all, &holes), 45);
        assert_eq!(place.refused(), []);
        assert_eq!(writer.list_open().unwrap().unwrap().len(), 45);
        assert_eq!(place.change(&mut writer, &holes, &[]), 1);
        assert_eq!(writer.list_open().unwrap().unwrap(), []);
        // Nothing is left to be done.
        assert_eq!(place.change(&mut writer, &[], &[]), 0);
    }
}

#[test]
fn refused_openings_do_not_hinder_the_others() {
    let mut place = Place::new();
    for mut writer in place.writers() {
        let holes: Vec<_> = (0..20).map(translated).collect();
        assert_eq!(place.change(&mut writer, &[], &holes[7..8]), 1);
        assert_eq!(place.change(&mut writer, &[], &holes), 19);
        let taken = KernelError::Taken.to_string();
        assert_eq!(place.refused(), [(7, taken.clone())]);
        assert_eq!(writer.list_open().unwrap().unwrap().len(), 20);
        // One with mixed families, and two with the same ends.
        let [mut others, last] = [200, 300].map(|number| [translated(number); 2]);
        others[1].initiator = ip(CLIENT6);
        let tried = [others, last].concat();
        assert_eq!(place.change(&mut writer, &holes, &tried), 2);
        let refused = place.refused();
        assert_eq!((refused.len(), refused[0].0, &refused[1]), (2, 1, &(3, taken)));
        assert!(refused[0].1.contains("IPv4 and IPv6"), "{refused:?}");
        assert_eq!(writer.list_open().unwrap().unwrap().len(), 2);
        assert_eq!(place.change(&mut writer, &tried, &[]), 1);
    }
}

#[test]
fn leftovers_of_a_used_pinhole_are_replaced() {
    let place = Place::new();
    place.lab.drop_by_default();
    // Neither wrote the leftovers of the other, and one knows only what Linux 6.1 does.
    let mut writers = place.lab.on_gateway(|| {
        let new = || PinholeSets::new(&Commits::default()).unwrap();
        [new(), new().for_older_kernels(), new().for_older_kernels()]
    });
    let mut last = None;
    let arrival = at(SERVER2, 50_000);
    for (count, (target, source)) in [
        (at(SERVER, 4000), EXTERNAL),
        (at(SERVER, 4000), EXTERNAL2),
        (arrival, CLIENT),
        (at(SERVER, 4001), EXTERNAL),
        (at(SERVER, 4001), CLIENT),
        (arrival, EXTERNAL2),
        (arrival, CLIENT),
    ]
    .into_iter()
    .cycle()
    .take(20)
    .enumerate()
    {
        let hole = PinholeEnds { target, source: ip(source), ..pinhole(CLIENT, arrival) };
        let opening = opening(hole, LIFETIME);
        let writer = &mut writers[count % 3];
        writer.open(&opening, last.as_slice()).unwrap();
        assert!(matches!(writer.open(&opening, &[]), Err(KernelError::Taken)));
        // It may be used, or still be open, when it is closed.
        if count % 5 != 4 {
            let listener = listen(&place.lab.server, hole.target);
            let mut stream = connect(&place.lab.client, CLIENT, hole.arrival);
            assert_eq!(exchange(&mut stream, &listener).1.ip(), hole.source);
        }
        last = Some(hole);
    }
    for writer in &mut writers {
        writer.close(last.as_slice()).unwrap();
    }
    assert!(writers[0].list_open().unwrap().unwrap().is_empty());
}

#[test]
fn a_full_set_refuses_what_has_no_room() {
    let mut place = Place::new();
    let [mut this, mut older] = place.writers();
    let hole = |number: u32| {
        let initiator = std::net::Ipv4Addr::from(0x0a80_0000 + number).to_string();
        pinhole(&initiator, at(SERVER, 4000))
    };
    let many: Vec<_> = (0..65_530).map(hole).collect();
    assert_eq!(place.change(&mut this, &[], &many), 65_530);
    assert_eq!(place.refused(), []);
    for writer in [&mut this, &mut older] {
        let more: Vec<_> = (70_000..70_010).map(hole).collect();
        assert_eq!(place.change(writer, &[], &more), 6);
        let refused: Vec<_> = place.refused().iter().map(|(index, _)| *index).collect();
        assert_eq!(refused, [6, 7, 8, 9]);
        assert!(matches!(place.outcomes[6], Err(KernelError::Full { .. })));
        // What is closed in a transaction makes no room in it.
        assert_eq!(place.change(writer, &more, &[]), 1);
    }
    // No transaction is longer than the kernel takes.
    assert_eq!(place.change(&mut older, &many[..1000], &[]), 8);
    assert_eq!(place.elements("pinholes4"), 64_530);
}

#[test]
fn without_the_table_nothing_is_to_be_closed() {
    let mut place = Place::new();
    place.lab.gateway_sh("nft delete table inet ftp_alg");
    for mut writer in place.writers() {
        let holes: Vec<_> = (0..3).map(translated).collect();
        assert_eq!(place.change(&mut writer, &holes, &[]), 0);
        assert_eq!(place.change(&mut writer, &holes[..1], &holes[1..]), 0);
        let refused = place.refused();
        assert!(
            refused.len() == 2 && refused[0].1.contains("table inet ftp_alg is gone"),
            "{refused:?}"
        );
    }
}

#[test]
fn a_port_in_use_is_refused_among_others() {
    let place = Place::new();
    let mut kernel = place
        .lab
        .on_gateway(|| LinuxKernel::new(&RuleParameters::default(), &Commits::default()).unwrap());
    let to =
        |arrival: SocketAddr| PinholeEnds { target: at(CLIENT, 4000), ..pinhole(SERVER, arrival) };
    let holes = [1, 2, 3].map(|number| to(at(EXTERNAL, 50_000 + number)));
    let openings = holes.map(|pinhole| opening(pinhole, LIFETIME));
    let outcomes = place.lab.on_gateway(|| {
        let _listener = std::net::TcpListener::bind(holes[1].arrival).unwrap();
        openings.map(|opening| kernel.open(&opening, &[]))
    });
    assert!(matches!(outcomes, [Ok(()), Err(KernelError::Taken), Ok(())]), "{outcomes:?}");
    assert_eq!(kernel.list_open().unwrap().len(), 2);
}

/// As `init_conntrack` does for a child of the kernel's helper: at once, if rules of others need it. The packet mark is
/// theirs.
#[test]
fn a_data_connection_inherits_the_operators_bits_of_the_ct_mark() {
    const OPERATORS: u32 = 0x8000_0015;
    for (ct_mark_use, mark, at_mangle) in [
        (CtMarkUse::None, OPERATORS, 0),
        (CtMarkUse::Restored, OPERATORS, OPERATORS),
        (CtMarkUse::Compared, OPERATORS, OPERATORS),
        (CtMarkUse::Restored, 0, 0),
    ] {
        let mut place = Place::with(&RuleParameters::default().with_ct_mark_use(ct_mark_use));
        let ends = [(CLIENT, SERVER), (CLIENT6, SERVER6)];
        for (number, mut writer) in (0..).zip(place.writers()) {
            for (from, to) in ends {
                let port = 4000 + number;
                let hole = pinhole(from, at(to, port));
                place.lab.gateway_sh(&format!(
                    "nft 'add table inet seen; delete table inet seen; table inet seen {{ \
                     chain early {{ type filter hook prerouting priority mangle; \
                       tcp flags syn / syn,ack tcp dport {port} ct mark {at_mangle} counter; }}; \
                     chain routed {{ type filter hook forward priority 0; \
                       tcp dport {port} meta mark != 0 counter; }}; }}'"
                ));
                place.open_with_mark(&mut writer, hole, mark);
                let listener = listen(&place.lab.server, hole.target);
                let mut client = connect(&place.lab.client, from, hole.arrival);
                exchange(&mut client, &listener);
                let seen = place.lab.gateway_sh("nft list table inet seen");
                // A retransmitted SYN has our bit.
                let counts = ["packets 1 ", "packets 0 "].map(|count| seen.matches(count).count());
                assert_eq!(counts, [1, 1], "{ct_mark_use:?} {seen}");
                assert_eq!(place.ct_mark_of(&client), mark | 0x4000_0000, "{ct_mark_use:?}");
                // The firewall lets them pass, but nobody admits them: the pinhole is consumed, then it is closed.
                let mut second = connect(&place.lab.client, from, hole.arrival);
                exchange(&mut second, &listener);
                assert_eq!(place.ct_mark_of(&second), 0, "{ct_mark_use:?}");
                place.open_with_mark(&mut writer, hole, mark);
                writer.close(&[hole]).unwrap();
                let mut third = connect(&place.lab.client, from, hole.arrival);
                exchange(&mut third, &listener);
                assert_eq!(place.ct_mark_of(&third), 0, "{ct_mark_use:?}");
            }
        }
    }
}

#[test]
fn an_accepted_syn_may_not_be_repeated() {
    let mut place = Place::new();
    place.lab.masquerade();
    place.lab.drop_by_default();
    let [mut writer, _] = place.writers();
    let translated =
        PinholeEnds { target: at(CLIENT, 4000), ..pinhole(SERVER, at(EXTERNAL, 50_000)) };
    for hole in [translated, pinhole(SERVER, at(CLIENT, 4001))] {
        place.change(&mut writer, &[], &[hole]);
        let listener = listen(&place.lab.client, hole.target);
        // Conntrack knows the ends of the second one, which are those of the first one.
        let from = |port| {
            let limit = Duration::from_millis(700);
            connect_within(&place.lab.server, at(SERVER, port), hole.arrival, limit)
        };
        let mut first = connect_from(&place.lab.server, at(SERVER, 2020), hole.arrival).unwrap();
        let (accepted, _) = exchange(&mut first, &listener);
        assert!(from(2021).is_err(), "a second connection came in");
        // A reset of a connection that was open.
        SockRef::from(&accepted).set_linger(Some(Duration::ZERO)).unwrap();
        drop(accepted);
        assert!(first.read(&mut [0]).is_err(), "it was reset");
        drop(first);
        assert!(from(2020).is_err(), "a second connection came in");
        assert!(from(2021).is_err(), "a second connection came in");
    }
}

#[test]
fn a_renewed_pinhole_stays_open_and_a_consumed_one_stays_closed() {
    let place = Place::new();
    place.lab.masquerade();
    place.lab.drop_by_default();
    for (port, mut writer) in (4000..).zip(place.writers()) {
        let target = at(CLIENT, port);
        let hole = PinholeEnds { target, ..pinhole(SERVER, at(EXTERNAL, 46_000 + port)) };
        let (short, long) = (opening(hole, Duration::from_secs(60)), opening(hole, LIFETIME));
        writer.open(&short, &[]).unwrap();
        assert!(writer.renew(&long).unwrap());
        let open = writer.list_open().unwrap().unwrap();
        assert!(open.len() == 1 && open[0].remaining > Duration::from_secs(500), "{open:?}");
        let listener = listen(&place.lab.client, hole.target);
        let mut first = connect(&place.lab.server, SERVER, hole.arrival);
        exchange(&mut first, &listener);
        assert!(!writer.renew(&long).unwrap());
        assert_eq!(writer.list_open().unwrap().unwrap(), []);
        assert!(is_silent(&place.lab.server, SERVER, hole.arrival), "a second connection came in");
    }
}

/// A server with one passive port names it again. The connection before stays in conntrack for minutes.
#[test]
fn a_connection_that_is_over_consumes_no_new_pinhole() {
    let mut place = Place::new();
    let [mut writer, _] = place.writers();
    let parameters = RuleParameters::default();
    place.lab.drop_by_default();
    let hole = pinhole(CLIENT, at(SERVER, 50_000));
    let listener = listen(&place.lab.server, hole.arrival);
    let key = (hole.initiator, hole.arrival);
    let connections = |lab: &Lab| {
        lab.on_gateway(|| {
            [consumed_pinholes(&parameters), admitted_connections(&parameters)]
                .map(|found| found.unwrap().contains(&key))
        })
    };
    for closes_first in [Some(true), Some(false), None] {
        place.change(&mut writer, &[], &[hole]);
        let mut client = connect(&place.lab.client, CLIENT, hole.arrival);
        let (mut server, _) = exchange(&mut client, &listener);
        assert_eq!(connections(&place.lab), [true, true]);
        match closes_first {
            // It may still send.
            Some(true) => client.shutdown(Shutdown::Write).unwrap(),
            Some(false) => server.shutdown(Shutdown::Write).unwrap(),
            None => SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap(),
        }
        let mut rest = [0];
        match closes_first {
            Some(true) => assert_eq!(server.read(&mut rest).unwrap(), 0),
            Some(false) => assert_eq!(client.read(&mut rest).unwrap(), 0),
            None => {}
        }
        assert_eq!(connections(&place.lab), [true, true], "{closes_first:?}: only one end closed");
        drop((client, server));
        wait_for("the end", || connections(&place.lab) == [false, true]);
    }
}
