//! Parsing and rewriting of announcements in all forms.

use super::*;

/// What is read of an announcement: address, port, and the place of both; or why not.
fn read(line: &str) -> String {
    let (bytes, argument) = (line.as_bytes(), line.as_bytes().get(5..).unwrap_or_default());
    let parsed = match &line[..3] {
        "POR" => Announcement::parse_port(argument, 5),
        "EPR" => Announcement::parse_eprt(argument, 5),
        "227" => Announcement::parse_227(&Text::new(bytes)),
        _ => Announcement::parse_229(&Text::new(bytes)),
    };
    match parsed {
        Ok(Announcement { address, port, endpoint, .. }) => {
            let address = address.map_or("-".to_owned(), |address| address.to_string());
            format!("{address} {port} at {endpoint:?}")
        }
        Err(error) => format!("{error:?}"),
    }
}

#[track_caller]
fn assert_read(table: &str) {
    for row in table.trim().lines() {
        let (lines, expected) = row.trim().split_once(" => ").unwrap();
        for line in lines.split(" & ") {
            let read = read(line);
            assert!(
                read == expected || read.split(" at ").next() == Some(expected),
                "{line}: {read}"
            );
        }
    }
}

#[test]
fn announcements_are_read_strictly() {
    assert_read(
        r"
        227 Logout. & 227 (1,2,3,4,5) & 227 (1,2,3,4,5,6,7) & 227 & 227 (1,,2) => Form(Pasv)
        227 (10,0,0,1,256,22) => Octet { kind: Pasv, number: 256 }
        229 (|||50069) & 229 (||50069|) & 229 (|1|1.2.3.4|50069|) & 229 & 229 ||| => Form(Epsv)
        229 (|||65558|) => Port { kind: Epsv, number: 65558 }
        229 (|||0|) => Port { kind: Epsv, number: 0 }
        PORT 192,168,150,80,14,178 => 192.168.150.80 3762 at 5..26
        PORT 10,0,0,2,256,22 => Octet { kind: Port, number: 256 }
        PORT 300,1,1,1,4,1 => Octet { kind: Port, number: 300 }
        PORT 1,2,3 & PORT & PORT 1,2,3,4,5,6,7 & PORT (1,2,3,4,5,6) & PORT 1,2,3,4,5,6x => Form(Port)
        PORT 10,0,0,2,0,0 => Port { kind: Port, number: 0 }
        EPRT |1|132.235.1.2|6275| => 132.235.1.2 6275 at 8..24
        EPRT !2!1080::8:800:200C:417A!5282! => 1080::8:800:200c:417a 5282
        EPRT |2|fe80::1%eth0|5282| => Scope
        EPRT |3|x|5282| => Family
        EPRT |1|10.0.0.2|65558| => Port { kind: Eprt, number: 65558 }
        EPRT & EPRT | & EPRT |1|10.0.0.2|80 & EPRT |1|::1|80| & EPRT |1|10.0.0.2|80|x & EPRT 1111 => Form(Eprt)
        EPRT |1|10.0.0.0002|80| & EPRT |1|10.0.0|80| & EPRT |1|10.0.0.2.3|80| => Form(Eprt)
        EPRT |1|10.0.0.256|80| & EPRT |1|10.0..2|80| & EPRT a2a::1a80a & EPRT .2.::1.80. => Form(Eprt)
        ",
    );
    // The family stays.
    let eprt = |said: &[u8]| Announcement::parse_eprt(said, 0).unwrap();
    let v6 = eprt(b"!2!1080::8:800:200C:417A!5282!");
    let text = v6.replacement_text("[2001:db8::1]:7".parse().unwrap(), Padding::None).unwrap();
    assert_eq!(text, &b"2001:db8::1!7"[..]);
    let v4 = eprt(b"|1|132.235.1.2|6275|");
    assert_eq!(v4.replacement_text("[::1]:1".parse().unwrap(), Padding::None), None);
}

#[test]
fn the_family_of_an_eprt_is_read_as_the_most_tolerant_server_reads_it() {
    let all = |families: &str, address: &str, expected: &str| {
        for family in families.split(',') {
            let line = format!("EPRT |{family}|{address}|5000|");
            assert_eq!(read(&line).split(" at ").next(), Some(expected), "{line}");
        }
    };
    all("1,01,001, 1,1 ,\t1,+1, +01", "10.99.99.99", "10.99.99.99 5000");
    all("2,02,002, +2", "fd99::9", "fd99::9 5000");
    // Apache's server takes any address, and ftp-srv families such as `constructor`.
    let others = ",3,+3,03,10,257,x,constructor,-,++";
    all(others, "10.99.99.99", "10.99.99.99 5000");
    all(others, "fd99::9", "fd99::9 5000");
    all(others, "x", "Family");
    all(others, "third.example.net", "Form(Eprt)");
    let unclear = "1x,x1,1.0,-1,0x1,1 2,++1,0000000001,4294967297,\"1\",012";
    all(unclear, "10.99.99.99", "Form(Eprt)");
}

/// Devices pad numbers to three digits. What `inet_aton` takes for another address or port is refused.
#[test]
fn zeros_before_a_number_of_an_eprt_are_decimal_unless_octal_differs() {
    assert_read(
        r"
        EPRT |1|10.0.0.2|02000| & EPRT |1|10.0.0.2|01750| => Form(Eprt)
        EPRT |1|10.0.0.2|00009| => 10.0.0.2 9
        EPRT |1|10.0.0.2|08080| => 10.0.0.2 8080
        EPRT |1|192.168.150.080|5000| => 192.168.150.80 5000
        EPRT |1|10.001.009.007|5000| => 10.1.9.7 5000
        EPRT |1|000.0.0.099|5000| => 0.0.0.99 5000
        EPRT |1|10.0.0.012|5000| & EPRT |1|010.1.9.7|5000| => Form(Eprt)
        ",
    );
}

/// Leading zeros only for a server that is known to read them as decimal: some read such a number as octal.
#[test]
fn zeros_preserve_the_length_of_a_rewritten_port() {
    for (said, address, port_with_zeros) in [
        ("192,168,150,8,14,178", "198.51.100.1", "14,0178"),
        ("192,168,150,80,4,1", "198.51.100.1", "4,001"),
        ("192,168,150,80,4,77", "198.51.100.1", "4,0077"),
        ("192,168,1,80,4,1", "10.0.0.1", "04,0001"),
        ("10,0,0,2,4,1", "198.51.100.1", "4,1"),
        ("10,0,0,2,4,1", "10.0.0.3", "4,1"),
        // The client's own zeros keep the same length.
        ("10,0,0,20,04,001", "10.0.0.1", "04,0001"),
        ("192,168,150,80,200,10", "198.51.100.1", "200,0010"),
        ("192,168,150,80,200,100", "198.51.100.1", "0200,0100"),
        ("192,168,150,180,200,100", "198.51.100.1", "200,100"),
        ("192,168,150,80,200,1", "198.51.100.1", "200,001"),
    ] {
        let read = Announcement::parse_port(said.as_bytes(), 0).unwrap();
        let new = SocketAddr::new(address.parse().unwrap(), read.port);
        let [high, low] = read.port.to_be_bytes();
        let port = format!("{high},{low}");
        for (padding, port) in
            [(Padding::Zeros, port_with_zeros), (Padding::None, &*port), (Padding::Blanks, &*port)]
        {
            let text = read.replacement_text(new, padding).unwrap();
            let heard = format!("{},{port}", address.replace('.', ","));
            assert_eq!(std::str::from_utf8(&text), Ok(&*heard), "{said}");
        }
        assert_eq!(read.replacement_text("[::1]:1".parse().unwrap(), Padding::None), None);
    }
    let fits = |port| AnnouncementKind::Port.fits_port(port, 5, Padding::Blanks);
    assert!(fits(100 << 8 | 9) && fits(10 << 8 | 99) && !fits(4 << 8 | 1) && !fits(14 << 8 | 178));
}

#[test]
fn blanks_preserve_the_length_of_a_rewritten_227() {
    for (said, new, heard) in [
        ("227 Mode (10,0,0,209,4,1)", "10.0.0.1:1025", "227 Mode   (10,0,0,1,4,1)"),
        ("227 (255,255,255,255,4,1).", "1.1.1.1:1025", "227         (1,1,1,1,4,1)."),
        ("227 Mode (10,0,0,1,4,1)", "10.0.0.209:1025", "227 Mode (10,0,0,209,4,1)"),
        ("227 Mode (10,0,0,2,4,1)", "10.0.0.1:1025", "227 Mode (10,0,0,1,4,1)"),
        // Without a parenthesis, no reader expects blanks there.
        ("227 Mode 10,0,0,209,4,1", "10.0.0.1:1025", "227 Mode 10,0,0,1,4,1"),
        ("227 Mode ( 10,0,0,209,4,1)", "10.0.0.1:1025", "227 Mode ( 10,0,0,1,4,1)"),
    ] {
        let read = Announcement::parse_227(&Text::new(said.as_bytes())).unwrap();
        let edited = |padding| {
            let (range, text) = read.edit(new.parse().unwrap(), padding).unwrap();
            let mut line = said.to_owned();
            line.replace_range(range, std::str::from_utf8(&text).unwrap());
            line
        };
        assert_eq!(edited(Padding::Blanks), heard, "{said}");
        let bare = heard.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(edited(Padding::None), bare, "{said}");
    }
}

#[test]
fn a_padded_port_fills_its_room_and_no_more() {
    for [high, low] in [[0, 9], [9, 0], [9, 99], [99, 9], [255, 7], [7, 255], [255, 255]] {
        let shortest = digits(high) + 1 + digits(low);
        for room in 0..=9 {
            let text = host_port([1, 1, 1, 1, high, low], room, MAX_WIDTH);
            let port = str::from_utf8(&text).unwrap().splitn(5, ',').last().unwrap();
            assert_eq!(port.len(), shortest.max(room), "{port} in {room}");
        }
    }
}
