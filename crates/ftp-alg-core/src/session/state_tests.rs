//! The table of states, printed as `states.md` shows it.

use std::fmt::Write;

use super::*;

const PHASES: [Phase; 12] = [
    Phase::NotGreeted,
    Phase::TextFirst,
    Phase::CommandFirst,
    Phase::CommandAfterText,
    Phase::ClientFirst,
    Phase::Greeted,
    Phase::Verified,
    Phase::OutOfStep,
    Phase::PacketsMissed,
    Phase::PickedUp,
    Phase::PickedUpFtp,
    Phase::NotFtp,
];

const LOGINS: [Login; 6] =
    [Login::NotYet, Login::None, Login::Asked, Login::Accepted, Login::InTls, Login::Restarted];

const TLS: [Tls; 5] =
    [Tls::No, Tls::ByClient, Tls::ByBoth, Tls::StillOf(Side::Client), Tls::StillOf(Side::Server)];

const READS: [(Read, &str); 27] = [
    (Read::FirstCommand, "a command of those that only FTP clients send first"),
    (Read::Command, "a command of FTP, behind the greeting"),
    (Read::OtherClient, "a line that no FTP client sends there"),
    (Read::GreetingStart, "the first line of a 220 in several lines"),
    (Read::Reply220, "a reply 220"),
    (Read::Reply, "another reply"),
    (Read::Banner, "a line that may precede the greeting"),
    (Read::OtherServer, "the first line of another protocol's server"),
    (Read::FtpReply, "a reply that only FTP servers give to a login or `AUTH`"),
    (Read::LoginAccepted, "a login is accepted"),
    (Read::LoginOutdated, "a login is accepted, `USER` or `REIN` follows"),
    (Read::LoginRefused, "another login is refused"),
    (Read::LoginRestarted, "`USER` or `REIN`"),
    (Read::LoginDoubted, "a login may have been accepted"),
    (Read::PasswordAsked, "331 to `PASS`, or although no reply was due"),
    (
        Read::LoginForgotten,
        "`REIN` is accepted; 332 although no reply was due; 234 or 334 that may be another reply",
    ),
    (Read::AuthAccepted, "234 or 334 to `AUTH`, for certain or before the login"),
    (Read::TlsByte(Side::Client), "the client's line begins like TLS"),
    (Read::TlsByte(Side::Server), "the server's line begins like TLS"),
    (Read::TlsOfBoth, "handshakes of both ends"),
    (Read::NoTls, "a reply to a record, or text behind one before handshakes of both"),
    (Read::TlsEnd(Side::Client, Login::InTls), "the client ends TLS between two records (`CCC`)"),
    (Read::TlsEnd(Side::Server, Login::InTls), "the server ends TLS between two records"),
    (Read::Missed, "an end acknowledges bytes that were never seen"),
    (Read::Doubted, "what was read may have come from elsewhere"),
    (Read::InStep, "a complete reply that shows that the dialogue is in step"),
    (Read::Reset, "the gateway ends the connection"),
];

/// The rows of one table: from which of `states` something read leads to another one, by their `name`. What has no name
/// is left out.
fn rows(states: &[State], reads: &[(Read, &str)], name: impl Fn(State) -> String) -> String {
    let mut table = String::new();
    for &(read, words) in reads {
        let mut groups: Vec<(String, Vec<String>)> = Vec::new();
        for &state in states {
            let next = state.next(read);
            if [String::new(), name(state)].contains(&name(next)) {
                continue;
            }
            // The engine reports what came from elsewhere itself.
            let effect = state.event_of_change(next).filter(|_| read != Read::Doubted);
            let effect = effect.map_or("-".to_owned(), |event| format!("`{event:?}`"));
            let end = format!("{} | {effect}", name(next));
            match groups.iter_mut().find(|(other, _)| *other == end) {
                Some((_, from)) => from.push(name(state)),
                None => groups.push((end, vec![name(state)])),
            }
        }
        for (end, from) in groups {
            let is_any = from.len() == states.len() && from.len() > 2;
            let from = if is_any { "any".to_owned() } else { from.join(", ") };
            writeln!(table, "| {from} | {words} | {end} |").unwrap();
        }
    }
    table
}

#[test]
fn the_table_in_the_documentation_is_this_one() {
    assert!(PHASES.is_sorted() && PHASES.len() == Phase::NotFtp as usize + 1);
    let phases = PHASES.map(|phase| State::at(phase, Login::NotYet));
    let logins = LOGINS.map(|login| State::at(Phase::Verified, login));
    let lines = TLS.map(|tls| Inspection::Lines { login: Login::Accepted, tls });
    let inspections =
        lines.into_iter().chain([Inspection::Records, Inspection::Off, Inspection::OtherProtocol]);
    let inspections: Vec<_> =
        inspections.map(|inspection| State { phase: Phase::Verified, inspection }).collect();

    let of_phases = rows(&phases, &READS, |state| format!("`{:?}`", state.phase));
    let of_logins = rows(&logins, &READS, |state| match state.inspection {
        Inspection::Lines { login, .. } => format!("`{login:?}`"),
        _ => String::new(),
    });
    let of_inspection = |state: State| match state.inspection {
        Inspection::Lines { tls: Tls::No, .. } => "`Lines`".to_owned(),
        Inspection::Lines { tls, .. } => format!("`{tls:?}`"),
        other => format!("`{other:?}`"),
    };
    let of_inspections = rows(&inspections, &READS, of_inspection);
    // The only one that depends on the phase.
    let early =
        [Phase::CommandFirst, Phase::ClientFirst].map(|phase| State::at(phase, Login::NotYet));
    let name = |state| match of_inspection(state) {
        name if name == "`Lines`" => format!("{name} in `{:?}`", state.phase),
        name => name,
    };
    let of_early = rows(&early, &[(Read::Reply, "another reply")], name);
    let of_inspections = of_early + &of_inspections;
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/src/session/states.md");
    let page = std::fs::read_to_string(page).unwrap();
    let head = "| state | read | next | effect |\n| --- | --- | --- | --- |\n";
    let tables = [of_phases, of_logins, of_inspections].map(|rows| format!("{head}{rows}"));
    let is_there = tables.iter().all(|table| page.contains(&format!("\n\n{table}\n")));
    assert!(is_there, "states.md lacks one of these:\n{}", tables.join("\n"));
}

#[test]
fn nothing_leads_back_to_a_phase_that_opens_pinholes() {
    for phase in PHASES.into_iter().filter(|phase| phase.opens_nothing_more()) {
        for (read, _) in READS {
            let next = State::at(phase, Login::None).next(read).phase;
            assert!(next.opens_nothing_more(), "{phase:?}, {read:?}: {next:?}");
        }
    }
}

#[test]
fn nothing_leads_back_from_an_inspection_that_has_ended() {
    for inspection in [Inspection::Off, Inspection::OtherProtocol, Inspection::Reset] {
        for (read, _) in READS {
            let next = State { inspection, ..State::NEW }.next(read).inspection;
            assert!(
                next == inspection || read == Read::Reset,
                "{inspection:?}, {read:?}: {next:?}"
            );
        }
    }
}
