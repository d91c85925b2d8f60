//! Announcements: a rewritten announcement can be parsed, and has the new endpoint.
//!
//! The input has one byte for the kind and the padding, 18 bytes for the new endpoint, and the text.

#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ftp_alg_core::ftp::{Announcement, AnnouncementKind, MalformedAnnouncement, Padding, Text};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&[form, high, low, ref address @ ..], text)) = data.split_first_chunk::<19>() else {
        return;
    };
    let kind = [
        AnnouncementKind::Port,
        AnnouncementKind::Eprt,
        AnnouncementKind::Pasv,
        AnnouncementKind::Epsv,
    ][usize::from(form & 3)];
    let ip: IpAddr = match address {
        [a, b, c, d, ..] if form & 4 == 0 => Ipv4Addr::new(*a, *b, *c, *d).into(),
        _ => Ipv6Addr::from(*address).into(),
    };
    let new = SocketAddr::new(ip, u16::from_be_bytes([high, low]).max(1));

    if let Ok(announcement) = read(kind, text) {
        let padding = [Padding::None, Padding::Blanks, Padding::Zeros, Padding::Zeros]
            [usize::from(form >> 3 & 3)];
        round_trip(&announcement, text, new, padding);
    }
    numbers(kind, address);
});

fn read(kind: AnnouncementKind, text: &[u8]) -> Result<Announcement, MalformedAnnouncement> {
    match kind {
        AnnouncementKind::Port => Announcement::parse_port(text, 0),
        AnnouncementKind::Eprt => Announcement::parse_eprt(text, 0),
        AnnouncementKind::Pasv => Announcement::parse_227(&Text::new(text)),
        AnnouncementKind::Epsv => Announcement::parse_229(&Text::new(text)),
    }
}

/// Announces `new` in place of the endpoint of `text`, as a session does. `zeros` may preserve the length.
fn round_trip(announcement: &Announcement, text: &[u8], new: SocketAddr, padding: Padding) {
    let Announcement { kind, address, port, ref endpoint, .. } = *announcement;
    assert!(port > 0);
    assert_eq!(address.is_none(), kind == AnnouncementKind::Epsv);
    let Some(rewritten) = announcement.replacement_text(new, padding) else {
        let v6 = new.is_ipv6();
        assert!(
            address.is_some_and(|address| address.is_ipv6() != v6),
            "{kind} cannot express {new}"
        );
        return;
    };
    let room = announcement.room_for_port(new.ip(), padding).filter(|_| padding != Padding::None);
    if room.is_some_and(|room| kind.fits_port(new.port(), room, padding)) {
        assert_eq!(rewritten.len(), endpoint.len(), "{rewritten:?}");
    }
    let place = match kind.is_active() {
        true => endpoint.clone(),
        false => Text::new(text).line_range(endpoint.clone()),
    };
    let mut line = text[..place.start].to_vec();
    line.extend_from_slice(&rewritten);
    line.extend_from_slice(&text[place.end..]);
    let again = read(kind, &line).expect("a rewritten announcement can be parsed");
    assert_eq!(again.kind, kind);
    // A 227 over IPv6 that names 0.0.0.0 goes on doing so.
    let unspecified = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let keeps = kind == AnnouncementKind::Pasv && address == Some(unspecified) && new.is_ipv6();
    assert_eq!(again.address, address.map(|_| if keeps { unspecified } else { new.ip() }));
    assert_eq!(again.port, new.port());
    // No other part of the line is parsed as the endpoint.
    assert_eq!(again.endpoint, endpoint.start..endpoint.start + rewritten.len());
}

/// Writes numbers into each kind of announcement. Numbers that are no octet or no port must be rejected, all others parsed.
fn numbers(kind: AnnouncementKind, bytes: &[u8; 16]) {
    let wide = |at: usize| u32::from(u16::from_be_bytes([bytes[at], bytes[at + 1]])) % 512;
    let numbers = [0, 2, 4, 6, 8, 10].map(wide);
    let [a, b, c, d, high, low] = numbers;
    let port = u32::from_be_bytes([0, bytes[12] & 1, bytes[13], bytes[14]]);
    let six = format!("{a},{b},{c},{d},{high},{low}");
    let (text, fits) = match kind {
        AnnouncementKind::Port => (six, numbers.iter().all(|n| *n < 256) && (high, low) != (0, 0)),
        AnnouncementKind::Pasv => {
            (format!("227 ({six})"), numbers.iter().all(|n| *n < 256) && (high, low) != (0, 0))
        }
        AnnouncementKind::Eprt => {
            let octets = numbers[..4].iter().all(|n| *n < 256);
            (format!("|1|{a}.{b}.{c}.{d}|{port}|"), octets && (1..65536).contains(&port))
        }
        AnnouncementKind::Epsv => (format!("229 (|||{port}|)"), (1..65536).contains(&port)),
    };
    let read = read(kind, text.as_bytes());
    assert_eq!(read.is_ok(), fits, "{text}: {read:?}");
    let Ok(Announcement { address, port: found, .. }) = read else { return };
    let octets = [a, b, c, d].map(|n| n as u8); // they fit
    match kind {
        AnnouncementKind::Epsv => assert_eq!((address, u32::from(found)), (None, port)),
        AnnouncementKind::Eprt => {
            assert_eq!((address, u32::from(found)), (Some(Ipv4Addr::from(octets).into()), port));
        }
        AnnouncementKind::Port | AnnouncementKind::Pasv => {
            let expected = (Some(Ipv4Addr::from(octets).into()), high << 8 | low);
            assert_eq!((address, u32::from(found)), expected);
        }
    }
}
