//! Random transfers of two sessions over few ports, and what their client forges: bytes that are reported are right. They are
//! as many as `PROPTEST_CASES` says.

use proptest::prelude::*;

use super::{
    tests::{Row, Test, event, stored_to, transfer_of},
    *,
};
use crate::{ftp::Reply, session::TransferVerb};

const CLIENTS: [&str; 2] = ["10.0.0.7:50069", "10.0.0.7:50070"];
const SERVERS: [&str; 3] = ["203.0.113.9:20", "203.0.113.9:5001", "203.0.113.9:5002"];

/// What becomes of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Stored,
    Retrieved,
    /// The server reports success before the end of the data connection.
    RetrievedEarly,
    /// The server has sent some, and reports a failure.
    Failed,
    /// There is no data connection, after a preliminary reply.
    NotConnected,
    Refused,
    /// The gateway does not know the command.
    Hidden,
}

/// A transfer of one of two sessions, after its last one.
#[derive(Clone, Debug)]
struct Played {
    session: u64,
    client: usize,
    server: usize,
    fate: Fate,
    bytes: u32,
    /// How many milliseconds pass before it, and while it moves its bytes.
    millis: [u64; 2],
    /// What the client forges: when, flags, and a distance from its sequence numbers, and from those that it acknowledges.
    forged: Vec<(u64, &'static str, [u32; 2])>,
}

fn played() -> impl Strategy<Value = Played> {
    let fate = prop::sample::select(vec![
        Fate::Stored,
        Fate::Retrieved,
        Fate::RetrievedEarly,
        Fate::Failed,
        Fate::NotConnected,
        Fate::Refused,
        Fate::Hidden,
    ]);
    let distance = prop_oneof![1_u32..50, 1_000_000_u32..1_000_100];
    let flags = prop::sample::select(vec!["SA", "FA", "F", "RA", "R"]);
    let forged = (0_u64..60, flags, [distance.clone(), distance]);
    let forged = prop::collection::vec(forged, 0..3);
    let ends = (0..2_u64, 0..CLIENTS.len(), 0..SERVERS.len());
    let all = (ends, fate, 0..50_000_u32, [0_u64..20, 0_u64..40], forged);
    all.prop_map(|((session, client, server), fate, bytes, millis, forged)| Played {
        session,
        client,
        server,
        fate,
        bytes,
        millis,
        forged,
    })
}

/// What happens at a time in milliseconds: packets before the transfers whose events come then.
enum Step {
    Packet(Row<'static>),
    End(u64, Transfer),
}

/// The reported bytes of these transfers, by their place.
fn reported(all: &[Played]) -> Vec<(usize, Option<u64>)> {
    let mut test = Test::new();
    let start = test.now;
    let at = |millis| start + Duration::from_millis(millis);
    let (mut steps, mut free, mut busy) = (Vec::new(), [10_u64; 2], Vec::new());
    for (place, one) in (0_u32..).zip(all) {
        let (client, server) = (CLIENTS[one.client], SERVERS[one.server]);
        let announced = free[one.session as usize] + one.millis[0];
        let (began, last) = (announced + 2, announced + 3 + one.millis[1]);
        let is_taken = |(ends, from, until): &([usize; 2], u64, u64)| {
            *ends == [one.client, one.server] && *from <= last + 1 && began <= *until
        };
        let mut fate = one.fate;
        if !matches!(fate, Fate::Refused | Fate::NotConnected) && busy.iter().any(is_taken) {
            fate = Fate::NotConnected;
        }
        let has_connection = !matches!(fate, Fate::Refused | Fate::NotConnected);
        // No client guesses initial sequence numbers.
        let (ours, theirs) = (3_000_000 * place, 500_000_000 + 3_000_000 * place);
        let is_upload = fate == Fate::Stored;
        if has_connection {
            busy.push(([one.client, one.server], began, last + 1));
            let [up, down] = if is_upload { [one.bytes, 0] } else { [0, one.bytes] };
            let (up, down) = (theirs + 1 + up, ours + 1 + down);
            let clients = (client, server, "FA", up, if is_upload { ours + 1 } else { down + 1 });
            let servers = (server, client, "FA", down, if is_upload { up + 1 } else { theirs + 1 });
            let ends = if is_upload { [clients, servers] } else { [servers, clients] };
            steps.push((began, Step::Packet((server, client, "S", ours, 0))));
            steps.push((began, Step::Packet((client, server, "SA", theirs, ours + 1))));
            steps.extend([last, last + 1].into_iter().zip(ends.map(Step::Packet)));
            for (later, flags, [ahead, acknowledged]) in &one.forged {
                let (seq, acknowledged) = (up + ahead, ours + 1 + acknowledged);
                steps.push((
                    began + later,
                    Step::Packet((client, server, flags, seq, acknowledged)),
                ));
            }
        }
        let (code, ended) = match fate {
            Fate::Stored | Fate::Retrieved => (226, last + 2),
            Fate::RetrievedEarly => (226, began + 1),
            Fate::Failed => (451, last + 2),
            Fate::NotConnected => (425, began + 1),
            Fate::Refused => (550, began),
            Fate::Hidden => (0, last + 2),
        };
        free[one.session as usize] = ended + 1;
        let ended_transfer = Transfer {
            verb: if is_upload { TransferVerb::Stor } else { TransferVerb::Retr },
            path: Some(place.to_string().into()),
            announced: Some(at(announced)),
            duration: Duration::from_millis(ended - announced - 1),
            has_started: fate != Fate::Refused,
            end: TransferEnd::Replied(Reply { code }),
            ended: Some(at(ended)),
            ..stored_to(client)
        };
        if fate != Fate::Hidden {
            steps.push((ended + 50, Step::End(one.session, ended_transfer)));
        }
    }
    steps.sort_by_key(|(millis, _)| *millis);
    let mut finished = VecDeque::new();
    for (millis, step) in steps {
        test.now = at(millis);
        match step {
            Step::Packet(row) => test.observe_at(test.now, row),
            Step::End(session, transfer) => {
                let ended = Event { session, ..event(transfer) };
                finished.extend(test.tracker.end(test.now, (), ended));
                finished.extend(test.tracker.take_finished(test.now, |_, _| true));
            }
        }
    }
    finished.extend(test.tracker.take_all());
    let transfers = finished.into_iter().map(|((), event)| transfer_of(event));
    transfers.map(|one| (one.path.unwrap().parse().unwrap(), one.bytes)).collect()
}

proptest! {
    #[test]
    fn bytes_of_random_transfers_are_right_or_null(all in prop::collection::vec(played(), 1..8)) {
        for (place, bytes) in reported(&all) {
            let Played { bytes: moved, fate, .. } = all[place];
            prop_assert!(bytes.is_none_or(|bytes| bytes == u64::from(moved)), "{place}: {bytes:?}");
            let fails = matches!(fate, Fate::NotConnected | Fate::Refused);
            prop_assert!(!fails || bytes.is_none(), "{place}");
        }
    }

    /// Of one session, one after the other, over few ports.
    #[test]
    fn bytes_of_transfers_without_others_are_known(all in prop::collection::vec(played(), 1..5)) {
        let plain = |one: &Played| Played { session: 0, forged: Vec::new(), ..one.clone() };
        let is_plain = |one: &Played| !matches!(one.fate, Fate::Hidden | Fate::RetrievedEarly);
        let alone: Vec<_> = all.iter().take(1).map(plain).collect();
        let in_turn: Vec<_> = all.iter().map(plain).filter(is_plain).collect();
        for all in [alone, in_turn] {
            for (place, known) in reported(&all) {
                let Played { bytes, fate, .. } = all[place];
                let moves = matches!(fate, Fate::Stored | Fate::Retrieved | Fate::RetrievedEarly);
                let is_right = known == moves.then_some(u64::from(bytes));
                prop_assert!(fate == Fate::Failed || is_right, "{place}: {known:?}");
            }
        }
    }
}
