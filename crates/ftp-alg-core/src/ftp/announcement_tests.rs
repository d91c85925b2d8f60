//! Parsing and rewriting of announcements in all forms.

use super::*;

fn pasv(line: &str) -> Result<Announcement, MalformedAnnouncement> {
    Announcement::parse_227(&Text::new(line.as_bytes()))
}

fn epsv(line: &str) -> Result<u16, MalformedAnnouncement> {
    Announcement::parse_229(&Text::new(line.as_bytes())).map(|a| a.port)
}

#[test]
fn a_malformed_227_is_rejected() {
    for line in ["227 Logout.", "227 (1,2,3,4,5)", "227 (1,2,3,4,5,6,7)", "227", "227 (1,,2)"] {
        assert_eq!(pasv(line), Err(MalformedAnnouncement::Form(AnnouncementKind::Pasv)), "{line}");
    }
    let octet = MalformedAnnouncement::Octet { kind: AnnouncementKind::Pasv, number: 256 };
    assert_eq!(pasv("227 (10,0,0,1,256,22)"), Err(octet));
}

#[test]
fn a_malformed_229_is_rejected() {
    for line in ["229 (|||50069)", "229 (||50069|)", "229 (|1|1.2.3.4|50069|)", "229", "229 |||"] {
        assert_eq!(epsv(line), Err(MalformedAnnouncement::Form(AnnouncementKind::Epsv)), "{line}");
    }
    let port = |number| Err(MalformedAnnouncement::Port { kind: AnnouncementKind::Epsv, number });
    assert_eq!(epsv("229 (|||65558|)"), port(65558));
    assert_eq!(epsv("229 (|||0|)"), port(0));
}

#[test]
fn port_is_parsed_strictly() {
    let found = Announcement::parse_port(b"192,168,150,80,14,178", 5).unwrap();
    assert_eq!(found.address, Some("192.168.150.80".parse().unwrap()));
    assert_eq!((found.port, found.endpoint), (3762, 5..26));
    let octet = |number| Err(MalformedAnnouncement::Octet { kind: AnnouncementKind::Port, number });
    assert_eq!(Announcement::parse_port(b"10,0,0,2,256,22", 0), octet(256));
    assert_eq!(Announcement::parse_port(b"300,1,1,1,4,1", 0), octet(300));
    for argument in [&b"1,2,3"[..], b"", b"1,2,3,4,5,6,7", b"(1,2,3,4,5,6)", b"1,2,3,4,5,6x"] {
        let read = Announcement::parse_port(argument, 0);
        assert_eq!(read, Err(MalformedAnnouncement::Form(AnnouncementKind::Port)), "{argument:?}");
    }
    let zero = MalformedAnnouncement::Port { kind: AnnouncementKind::Port, number: 0 };
    assert_eq!(Announcement::parse_port(b"10,0,0,2,0,0", 0), Err(zero));
}

#[test]
fn eprt_is_parsed_in_both_families() {
    let v4 = Announcement::parse_eprt(b"|1|132.235.1.2|6275|", 5).unwrap();
    assert_eq!((v4.address, v4.port), (Some("132.235.1.2".parse().unwrap()), 6275));
    assert_eq!(v4.endpoint, 8..24);
    let v6 = Announcement::parse_eprt(b"!2!1080::8:800:200C:417A!5282!", 0).unwrap();
    assert_eq!(v6.address, Some("1080::8:800:200c:417a".parse().unwrap()));
    assert_eq!(
        v6.replacement_text("[2001:db8::1]:7".parse().unwrap(), Padding::None).unwrap(),
        &b"2001:db8::1!7"[..]
    );

    // The family stays.
    assert_eq!(v4.replacement_text("[::1]:1".parse().unwrap(), Padding::None), None);
    assert_eq!(
        Announcement::parse_eprt(b"|2|fe80::1%eth0|5282|", 0),
        Err(MalformedAnnouncement::Scope)
    );
    assert_eq!(Announcement::parse_eprt(b"|3|x|5282|", 0), Err(MalformedAnnouncement::Family));
    let port = MalformedAnnouncement::Port { kind: AnnouncementKind::Eprt, number: 65558 };
    assert_eq!(Announcement::parse_eprt(b"|1|10.0.0.2|65558|", 0), Err(port));
    for argument in [
        &b""[..],
        b"|",
        b"|1|10.0.0.2|80",
        b"|1|::1|80|",
        b"|1|10.0.0.2|80|x",
        b"1111",
        b"|1|10.0.0.0002|80|",
        b"|1|10.0.0|80|",
        b"|1|10.0.0.2.3|80|",
        b"|1|10.0.0.256|80|",
        b"|1|10.0..2|80|",
        b"a2a::1a80a",
        b".2.::1.80.",
    ] {
        let read = Announcement::parse_eprt(argument, 0);
        assert_eq!(read, Err(MalformedAnnouncement::Form(AnnouncementKind::Eprt)), "{argument:?}");
    }
}

#[test]
fn the_family_of_an_eprt_is_read_as_the_most_tolerant_server_reads_it() {
    let family = |said: &str, address: &str| {
        Announcement::parse_eprt(format!("|{said}|{address}|5000|").as_bytes(), 0)
            .map(|read| read.address.unwrap().to_string())
    };
    for one in ["1", "01", "001", " 1", "1 ", "\t1", "+1", " +01"] {
        assert_eq!(family(one, "10.99.99.99"), Ok("10.99.99.99".into()), "{one:?}");
    }
    for two in ["2", "02", "002", " +2"] {
        assert_eq!(family(two, "fd99::9"), Ok("fd99::9".into()), "{two:?}");
    }
    // Apache's server takes any address, and ftp-srv families such as `constructor`.
    for other in ["", "3", "+3", "03", "10", "257", "x", "constructor", "-", "++"] {
        assert_eq!(family(other, "10.99.99.99"), Ok("10.99.99.99".into()), "{other:?}");
        assert_eq!(family(other, "fd99::9"), Ok("fd99::9".into()), "{other:?}");
        assert_eq!(family(other, "x"), Err(MalformedAnnouncement::Family), "{other:?}");
        let host = family(other, "third.example.net");
        assert_eq!(host, Err(MalformedAnnouncement::Form(AnnouncementKind::Eprt)), "{other:?}");
    }
    let form = Err(MalformedAnnouncement::Form(AnnouncementKind::Eprt));
    for unclear in
        ["1x", "x1", "1.0", "-1", "0x1", "1 2", "++1", "0000000001", "4294967297", "\"1\"", "012"]
    {
        assert_eq!(family(unclear, "10.99.99.99"), form, "{unclear:?}");
    }
}

#[test]
fn a_port_that_is_another_in_octal_is_no_port_of_an_eprt() {
    for (port, read) in
        [("02000", None), ("01750", None), ("00009", Some(9)), ("08080", Some(8080))]
    {
        let said = format!("|1|10.0.0.2|{port}|");
        let parsed = Announcement::parse_eprt(said.as_bytes(), 0);
        assert_eq!(parsed.ok().map(|parsed| parsed.port), read, "{said}");
    }
}

/// Devices pad numbers to three digits. What `inet_aton` takes for another address is refused.
#[test]
fn zeros_before_a_number_of_an_eprt_are_decimal_unless_octal_differs() {
    for (said, means) in [
        ("192.168.150.080", Some("192.168.150.80")),
        ("10.001.009.007", Some("10.1.9.7")),
        ("000.0.0.099", Some("0.0.0.99")),
        ("10.0.0.012", None),
        ("010.1.9.7", None),
    ] {
        let read = Announcement::parse_eprt(format!("|1|{said}|5000|").as_bytes(), 0);
        let address = read.ok().and_then(|read| read.address);
        assert_eq!(address, means.map(|means| means.parse().unwrap()), "{said}");
    }
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
