//! A pinhole is opened, and others are closed, in one transaction; what is refused hinders nothing else.

use std::{io::Read as _, net::Shutdown, time::Duration};

use ftp_alg::kernel::{
    RuleParameters,
    conntrack::{admitted_connections, consumed_pinholes},
    parameters::CtMarkUse,
    table::{Commits, PinholeSets, Table},
};
use ftp_alg_core::engine::{KernelError, PinholeEnds};
use ftp_alg_lab::wait_for;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::lab::*;

/// Longer than 65,536 take in an emulator.
const LIFETIME: Duration = Duration::from_secs(600);

/// A gateway whose table has its own rules alone.
pub struct Place {
    pub lab: Lab,
    _table: Table,
}

impl Place {
    pub fn new() -> Self {
        Self::with(&RuleParameters::default())
    }

    pub fn with(parameters: &RuleParameters) -> Self {
        let lab = Lab::new();
        let table = lab.on_gateway(|| Table::install(parameters, &Commits::default()).unwrap());
        Self { lab, _table: table }
    }

    /// A writer that knows this kernel, and one that knows what Linux 6.1 does.
    pub fn writers(&self) -> [PinholeSets; 2] {
        self.lab.on_gateway(|| {
            let new = || PinholeSets::new(&Commits::default()).unwrap();
            [new(), new().for_older_kernels()]
        })
    }

    /// Opens a pinhole of a control connection with this ct mark.
    pub fn open_with_mark(&self, writer: &mut PinholeSets, pinhole: PinholeEnds, ct_mark: u32) {
        let mut opening = opening(pinhole, LIFETIME);
        opening.control.ct_mark = ct_mark;
        writer.open(&opening, &[pinhole]).unwrap();
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
}

pub fn open(writer: &mut PinholeSets, hole: PinholeEnds) {
    writer.open(&opening(hole, LIFETIME), &[]).unwrap();
}

/// Translated both ways, and all others different.
fn translated(number: u16) -> PinholeEnds {
    let target = at(SERVER, 4000 + number);
    PinholeEnds { target, source: ip(EXTERNAL), ..pinhole(CLIENT, at(SERVER2, 50_000 + number)) }
}

#[test]
fn one_pinhole_opens_and_many_close_in_one_transaction() {
    let place = Place::new();
    let over_v6 = |number: u16| pinhole(CLIENT6, at(SERVER6, 4000 + number));
    let holes: Vec<_> = (0..30).map(translated).chain((0..10).map(over_v6)).collect();
    for mut writer in place.writers() {
        holes.iter().for_each(|hole| open(&mut writer, *hole));
        let opened = |writer: &mut PinholeSets| writer.list_open().unwrap().unwrap().len();
        assert_eq!(opened(&mut writer), 40);
        let before = place.generation();
        // In place of one that is closed with it, and of one that stays.
        writer.open(&opening(holes[7], LIFETIME), &holes[5..35]).unwrap();
        assert_eq!((place.generation() - before, opened(&mut writer)), (1, 11));
        let refused = writer.open(&opening(holes[7], LIFETIME), &holes[..2]);
        assert!(matches!(refused, Err(KernelError::Taken)), "{refused:?}");
        assert_eq!((place.generation() - before, opened(&mut writer)), (2, 9));
        writer.close(&holes).unwrap();
        assert_eq!((place.generation() - before, opened(&mut writer)), (3, 0));
        // Nothing is left to be done.
        writer.close(&[]).unwrap();
        assert_eq!(place.generation() - before, 3);
    }
}

#[test]
fn many_pinholes_open_in_few_transactions_and_refused_ones_hinder_no_others() {
    let place = Place::new();
    for mut writer in place.writers() {
        open(&mut writer, translated(3));
        let openings: Vec<_> =
            (0..300).map(|number| opening(translated(number), LIFETIME)).collect();
        let before = place.generation();
        let errors = writer.open_many(&openings);
        assert!(matches!(errors[..], [KernelError::Taken]), "{errors:?}");
        assert_eq!(writer.list_open().unwrap().unwrap().len(), 300);
        assert_eq!(place.generation() - before, 3);
        let all: Vec<_> = (0..300).map(translated).collect();
        writer.close(&all).unwrap();
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
    let ends = [
        (at(SERVER, 4000), EXTERNAL),
        (at(SERVER, 4000), EXTERNAL2),
        (arrival, CLIENT),
        (at(SERVER, 4001), EXTERNAL),
        (at(SERVER, 4001), CLIENT),
        (arrival, EXTERNAL2),
        (arrival, CLIENT),
    ];
    for (count, (target, source)) in ends.into_iter().cycle().take(20).enumerate() {
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
    let place = Place::new();
    let [mut this, mut older] = place.writers();
    let hole = |number: u32| {
        let initiator = std::net::Ipv4Addr::from(0x0a80_0000 + number).to_string();
        pinhole(&initiator, at(SERVER, 4000))
    };
    let many: Vec<_> = (0..65_536).map(hole).collect();
    many.iter().for_each(|hole| open(&mut this, *hole));
    for writer in [&mut this, &mut older] {
        let refused = writer.open(&opening(hole(70_000), LIFETIME), &[]);
        assert!(matches!(refused, Err(KernelError::Full { .. })), "{refused:?}");
    }
    // No transaction is longer than the kernel takes.
    let before = place.generation();
    older.close(&many[..1000]).unwrap();
    assert_eq!(place.generation() - before, 8);
    assert_eq!(older.list_open().unwrap().unwrap().len(), 64_536);
}

#[test]
fn without_the_table_nothing_is_to_be_closed() {
    let place = Place::new();
    place.lab.gateway_sh("nft delete table inet ftp_alg");
    for mut writer in place.writers() {
        let [closed, opened] = [0, 1].map(translated);
        writer.close(&[closed]).unwrap();
        let error = writer.open(&opening(opened, LIFETIME), &[closed]).unwrap_err().to_string();
        assert!(error.contains("table inet ftp_alg is gone"), "{error}");
    }
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
        let place = Place::with(&RuleParameters::default().with_ct_mark_use(ct_mark_use));
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
                assert_eq!(place.lab.ct_mark_of(&client), mark | 0x4000_0000, "{ct_mark_use:?}");
                // The firewall lets them pass, but nobody admits them: the pinhole is consumed, then it is closed.
                let mut second = connect(&place.lab.client, from, hole.arrival);
                exchange(&mut second, &listener);
                assert_eq!(place.lab.ct_mark_of(&second), 0, "{ct_mark_use:?}");
                place.open_with_mark(&mut writer, hole, mark);
                writer.close(&[hole]).unwrap();
                let mut third = connect(&place.lab.client, from, hole.arrival);
                exchange(&mut third, &listener);
                assert_eq!(place.lab.ct_mark_of(&third), 0, "{ct_mark_use:?}");
            }
        }
    }
}

#[test]
fn an_accepted_syn_may_not_be_repeated() {
    let place = Place::new();
    place.lab.masquerade();
    place.lab.drop_by_default();
    let [mut writer, _] = place.writers();
    let translated =
        PinholeEnds { target: at(CLIENT, 4000), ..pinhole(SERVER, at(EXTERNAL, 50_000)) };
    for hole in [translated, pinhole(SERVER, at(CLIENT, 4001))] {
        open(&mut writer, hole);
        let listener = listen(&place.lab.client, hole.target);
        // Conntrack knows the ends of the second one, which are those of the first one.
        let from = |port| {
            let limit = Duration::from_millis(700);
            connect_within(&place.lab.server, at(SERVER, port), hole.arrival, limit)
        };
        let mut first = connect_from(&place.lab.server, at(SERVER, 2020), hole.arrival);
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
    let place = Place::new();
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
        open(&mut writer, hole);
        let mut client = connect(&place.lab.client, CLIENT, hole.arrival);
        let (server, _) = exchange(&mut client, &listener);
        assert_eq!(connections(&place.lab), [true, true]);
        if let Some(is_client) = closes_first {
            // The other one may still send.
            let (first, mut second) =
                if is_client { (&client, &server) } else { (&server, &client) };
            first.shutdown(Shutdown::Write).unwrap();
            assert_eq!(second.read(&mut [0]).unwrap(), 0);
        } else {
            SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
        }
        assert_eq!(connections(&place.lab), [true, true], "{closes_first:?}: only one end closed");
        drop((client, server));
        wait_for("the end", || connections(&place.lab) == [false, true]);
    }
}
