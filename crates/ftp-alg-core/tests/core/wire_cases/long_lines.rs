//! Lines of a client that are longer than what is stored of them. They are forwarded, and scanned to their end.

use super::{ambiguous_lines::say_without_bounce, *};

const BOUNCE: &str = "PORT 10,99,99,99,9,9\r\n";

fn begun(greeted: bool) -> Sim {
    let scenario = without_nagle(Nat::Masquerade);
    if greeted { Sim::logged_in(scenario) } else { Sim::new(scenario) }
}

/// A client that has begun TLS after an `AUTH` that the server has accepted, by 200.
fn possibly_encrypted() -> Sim {
    let mut sim = begun(true);
    sim.play("> AUTH TLS < 200 ok");
    sim.server.read();
    sim
}

/// The lengths at which the limit (1024 bytes) falls into the verb, or close to it.
fn near_limit() -> impl Iterator<Item = usize> {
    (1000..1030).chain([100, 1100, 3000])
}

#[test]
fn no_bounce_hides_where_the_stored_line_ends() {
    for greeted in [false, true] {
        for end in words(b"\r|\n|\0|\r\0|\r\r\r|\r\xff\xf4z") {
            for length in near_limit() {
                let long = [b"SIZE ", &[b'x'; 3000][..length], end].concat();
                for [one, two] in [
                    [&b"PO"[..], b"RT 10,99,99,99,9,9\r\n"],
                    [b"PORT", b" 10,99,99,99,9,9\r\n"],
                    [b"PORT", b"\n10,99,99,99,9,9\r\n"],
                    [b"PORT\0", b" 10,99,99,99,9,9\r\n"],
                    [b"P\0O\0", b"RT 10,99,99,99,9,9\r\n"],
                ] {
                    let both = [&long, one].concat();
                    for pieces in [&[&long, one, two][..], &[&both, two]] {
                        say_without_bounce(&mut begun(greeted), pieces.iter().copied());
                    }
                }
            }
        }
    }
}

#[test]
fn no_bounce_hides_behind_a_long_record_of_a_server_without_tls() {
    for length in near_limit() {
        for end in ["\n", "\r\n", "\r", "\0"] {
            let long = format!("\u{16}{}{end}", "x".repeat(length));
            for cut in [0, 2, 4, 5] {
                let (one, two) = BOUNCE.split_at(cut);
                let pieces = [long.as_bytes(), one.as_bytes(), two.as_bytes()];
                say_without_bounce(&mut possibly_encrypted(), pieces);
            }
            let pieces = [long.as_bytes(), b"PORT\n", b"10,99,99,99,9,9\r\n"];
            say_without_bounce(&mut possibly_encrypted(), pieces);
        }
        let mut sim = possibly_encrypted();
        sim.say(Client, format!("\u{16}{}\n", "x".repeat(length)).as_bytes());
        sim.say(Server, b"500 what?\r\n");
        say_without_bounce(&mut sim, [BOUNCE.as_bytes()]);
    }
}

/// Everything else in a long line passes as it is.
#[test]
fn long_lines_pass_unchanged() {
    for text in ["xPORT 1", " PORT", "\u{e9}\u{e9}", "EPRT|", "POR T "] {
        for length in near_limit() {
            let line = format!("STOR {}{text}\r\n", text.repeat(length / text.len()));
            for cut in [5, length / 2, length, line.len() - 2] {
                let cut = (0..=cut).rev().find(|at| line.is_char_boundary(*at)).unwrap();
                let (one, two) = line.as_bytes().split_at(cut);
                let mut sim = begun(true);
                let got = sim.say_in_pieces(Client, [one, two]);
                assert_eq!(got, line.as_bytes(), "{text:?} {length} {cut}");
                assert_eq!(sim.dropped, 0);
            }
        }
    }
}
