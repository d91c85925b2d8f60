//! Announcements: the endpoint in `PORT`, `EPRT`, 227 and 229, in all forms seen in practice.
//!
//! Commands are parsed strictly, as servers do. Replies are parsed leniently, as clients do: RFC 1123 section 4.1.2.6
//! asks a client to scan a 227 for digits, because its punctuation was never fixed.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Range,
};

use serde::{Deserialize, Serialize};
use tinyvec::TinyVec;

use super::Text;

/// The kind of announcement. Log lines and JSON use the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum AnnouncementKind {
    /// `PORT h1,h2,h3,h4,p1,p2` (RFC 959 section 4.1.2).
    Port,
    /// `EPRT |family|address|port|` (RFC 2428 section 2).
    Eprt,
    /// `227 ... (h1,h2,h3,h4,p1,p2)` (RFC 959 section 4.2).
    Pasv,
    /// `229 ... (|||port|)` (RFC 2428 section 3).
    Epsv,
}

impl AnnouncementKind {
    /// Whether the client announces (active mode), not the server.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Port | Self::Eprt)
    }

    /// Whether `start`, of the argument of such a command, may become one that names `address` in its usual form.
    pub fn may_name(self, start: &[u8], address: IpAddr) -> bool {
        let family = if address.is_ipv4() { '1' } else { '2' };
        let delimiter = char::from(start.first().copied().unwrap_or(b'|'));
        let usual = match self {
            Self::Port => format!("{address},").replace('.', ","),
            _ => format!("{delimiter}{family}{delimiter}{address}{delimiter}"),
        };
        start.iter().zip(usual.as_bytes()).all(|(one, other)| one.eq_ignore_ascii_case(other))
    }
}

impl fmt::Display for AnnouncementKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Port => "PORT",
            Self::Eprt => "EPRT",
            Self::Pasv => "PASV",
            Self::Epsv => "EPSV",
        })
    }
}

/// An endpoint that one end of a control connection announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The kind of announcement.
    pub kind: AnnouncementKind,
    /// The address; `None` in a 229, which implies the server's own.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// Position of the endpoint in the text: the bytes that a rewrite replaces.
    pub endpoint: Range<usize>,
    /// The byte that separates the fields of an `EPRT` or a 229.
    delimiter: u8,
    /// Whether a parenthesis precedes the endpoint of a 227, so that blanks may precede the parenthesis.
    pub has_parenthesis: bool,
}

/// The text of an endpoint in an announcement. Most need no heap memory.
pub type EndpointText = TinyVec<[u8; 28]>;

/// By what a rewritten announcement may keep its length (benches/studies/lengths.md).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Padding {
    /// Nothing: the length may change.
    #[default]
    None,
    /// Blanks in a 227, and another external port in a `PORT`.
    Blanks,
    /// In a `PORT` also leading zeros, up to four digits in each number of its port. Only for a server that is known to
    /// read them as decimal: others take such a number for octal.
    Zeros,
}

/// Servers that read numbers of any length in a `PORT` as decimal, by the start of their greeting text
/// (benches/studies/lengths.md).
const DECIMAL_GREETINGS: [&[u8]; 5] = [
    b"(vsFTPd ",
    b"ProFTPD ",
    b"--------- Welcome to Pure-FTPd",
    b"FileZilla Server",
    b"pyftpdlib ",
];

impl Padding {
    /// Whether `line`, of a greeting, names a server that reads leading zeros as decimal.
    pub fn accepts_zeros(line: &[u8]) -> bool {
        let text = line.strip_prefix(b"220").and_then(|rest| rest.get(1..)).unwrap_or_default();
        DECIMAL_GREETINGS.iter().any(|name| text.starts_with(name))
    }

    /// Maximum number of digits to pad a number to; 0 if the length may change.
    pub fn digits(self) -> usize {
        match self {
            Self::None => 0,
            Self::Blanks => 1,
            Self::Zeros => 4,
        }
    }

    /// The padding to this many digits.
    pub fn from_digits(digits: usize) -> Self {
        match digits {
            0 => Self::None,
            1 => Self::Blanks,
            _ => Self::Zeros,
        }
    }

    /// Length of the longest port in this form.
    fn longest(self) -> usize {
        2 * self.digits().max(3) + 1
    }
}

/// Why an announcement cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedAnnouncement {
    /// The text does not have the form of its kind.
    #[error("{0} is malformed")]
    Form(AnnouncementKind),
    /// A number of a host-port is above 255.
    #[error("{number} in {kind} is above 255")]
    Octet {
        /// The kind of announcement.
        kind: AnnouncementKind,
        /// The number.
        number: u32,
    },
    /// A port is out of range.
    #[error("port {number} in {kind} is not between 1 and 65535")]
    Port {
        /// The kind of announcement.
        kind: AnnouncementKind,
        /// The number.
        number: u32,
    },
    /// The address of an `EPRT` does not belong to the family it names, or the family is not 1 or 2. The server answers
    /// 522.
    #[error("EPRT names a family that is not served here")]
    Family,
    /// The address of an `EPRT` has a scope (`fe80::1%eth0`), which other machines cannot interpret.
    #[error("EPRT names a scoped address")]
    Scope,
}

impl AnnouncementKind {
    /// Whether `port` can be written with exactly `length` bytes.
    pub fn fits_port(self, port: u16, length: usize, padding: Padding) -> bool {
        let [high, low] = port.to_be_bytes().map(digits);
        match self {
            Self::Port if padding == Padding::Zeros => {
                (high + 1 + low..=padding.longest()).contains(&length)
            }
            Self::Port | Self::Pasv => high + 1 + low == length,
            Self::Eprt | Self::Epsv => digits(port) == length,
        }
    }
}

impl Announcement {
    /// Parses the argument of `PORT`, which starts at `start` of the text.
    pub fn parse_port(argument: &[u8], start: usize) -> Result<Self, MalformedAnnouncement> {
        let kind = AnnouncementKind::Port;
        let read = six_numbers(argument, 0).filter(|(_, end)| *end == argument.len());
        let (numbers, end) = read.ok_or(MalformedAnnouncement::Form(kind))?;
        Self::of_numbers(kind, numbers, start..start + end)
    }

    /// The announcement of these six numbers at `endpoint` of the text.
    fn of_numbers(
        kind: AnnouncementKind,
        numbers: [u32; 6],
        endpoint: Range<usize>,
    ) -> Result<Self, MalformedAnnouncement> {
        let octet = |number: u32| {
            u8::try_from(number).map_err(|_| MalformedAnnouncement::Octet { kind, number })
        };
        let [a, b, c, d, high, low] = numbers;
        let address = Ipv4Addr::new(octet(a)?, octet(b)?, octet(c)?, octet(d)?);
        let port = checked_port(kind, u16::from_be_bytes([octet(high)?, octet(low)?]).into())?;
        let (address, has_parenthesis) = (Some(address.into()), false);
        Ok(Self { kind, address, port, endpoint, delimiter: b',', has_parenthesis })
    }

    /// Parses the argument of `EPRT`, which starts at `start` of the text.
    pub fn parse_eprt(argument: &[u8], start: usize) -> Result<Self, MalformedAnnouncement> {
        let form = || MalformedAnnouncement::Form(AnnouncementKind::Eprt);
        let (&delimiter, rest) = argument.split_first().ok_or_else(form)?;
        if !is_delimiter(delimiter) {
            return Err(form());
        }
        let fields: Vec<&[u8]> = rest.split(|b| *b == delimiter).collect();
        let [family, address, port, b""] = fields[..] else { return Err(form()) };
        let port = number(port).filter(|_| !is_other_in_octal(port)).ok_or_else(form)?;
        let port = checked_port(AnnouncementKind::Eprt, port)?;
        let text = std::str::from_utf8(address).map_err(|_| form())?;
        // Some servers ignore the family, or look it up as a name, and take the address as it is.
        let family_number = match family_number(family) {
            Some(number @ (1 | 2)) => Some(number),
            Some(_) if parse_ipv4(address).is_some() => Some(1),
            Some(_) if address.iter().any(|byte| matches!(byte, b'.' | b':')) => Some(2),
            other => other,
        };
        let address: IpAddr = match family_number {
            Some(1) => parse_ipv4(address).ok_or_else(form)?.into(),
            // RFC 2428: the delimiter must not occur in an address. The rewritten address could contain it.
            Some(2) if is_in_ipv6(delimiter) => return Err(form()),
            Some(2) if text.contains('%') => return Err(MalformedAnnouncement::Scope),
            Some(2) => text.parse::<Ipv6Addr>().map_err(|_| form())?.into(),
            Some(_) => return Err(MalformedAnnouncement::Family),
            None => return Err(form()),
        };
        let first = start + 1 + family.len() + 1;
        let endpoint = first..start + argument.len() - 1;
        let (kind, address, has_parenthesis) = (AnnouncementKind::Eprt, Some(address), false);
        Ok(Self { kind, address, port, endpoint, delimiter, has_parenthesis })
    }

    /// Finds the host-port in the text of a 227.
    pub fn parse_227(text: &Text<'_>) -> Result<Self, MalformedAnnouncement> {
        let bytes = text.bytes();
        let mut at = 3; // past the code
        while let Some(digit) = bytes.get(at..).and_then(|b| b.iter().position(u8::is_ascii_digit))
        {
            at += digit;
            if let Some((numbers, end)) = six_numbers(bytes, at) {
                let has_parenthesis = at.checked_sub(1).and_then(|at| bytes.get(at)) == Some(&b'(');
                let read = Self::of_numbers(AnnouncementKind::Pasv, numbers, at..end)?;
                return Ok(Self { has_parenthesis, ..read });
            }
            at += bytes[at..].iter().take_while(|b| matches!(b, b'0'..=b'9' | b',' | b' ')).count();
        }
        Err(MalformedAnnouncement::Form(AnnouncementKind::Pasv))
    }

    /// Finds the port in the text of a 229.
    pub fn parse_229(text: &Text<'_>) -> Result<Self, MalformedAnnouncement> {
        let bytes = text.bytes();
        for at in 3..bytes.len() {
            let [d, second, third, rest @ ..] = &bytes[at..] else { break };
            if !is_delimiter(*d) || d != second || d != third {
                continue;
            }
            let Some((port, digits)) = leading_number(rest) else { continue };
            if rest.get(digits) != Some(d) {
                continue;
            }
            let port = checked_port(AnnouncementKind::Epsv, port)?;
            let endpoint = at + 3..at + 3 + digits;
            return Ok(Self {
                kind: AnnouncementKind::Epsv,
                address: None,
                port,
                endpoint,
                delimiter: *d,
                has_parenthesis: false,
            });
        }
        Err(MalformedAnnouncement::Form(AnnouncementKind::Epsv))
    }

    /// Number of bytes that remain for the port if `address` replaces the announced one and the length stays. `None` if
    /// no port fits.
    pub fn room_for_port(&self, address: IpAddr, padding: Padding) -> Option<usize> {
        let address = match (self.kind, address) {
            (AnnouncementKind::Epsv, _) => return Some(self.endpoint.len()),
            (_, IpAddr::V4(ip)) => ip.octets().map(digits).iter().sum::<usize>() + 3,
            (_, IpAddr::V6(ip)) => ip.to_string().len(),
        };
        let lengths = match self.kind {
            AnnouncementKind::Port => 3..=padding.longest(),
            AnnouncementKind::Pasv => 3..=Padding::None.longest(),
            AnnouncementKind::Eprt | AnnouncementKind::Epsv => 1..=5,
        };
        self.endpoint.len().checked_sub(address + 1).filter(|room| lengths.contains(room))
    }

    /// The range to replace and its replacement if `new` is announced instead; `None` if that is the same, or cannot be
    /// expressed. If `padding` requires that a 227 keeps its length, a shorter one is padded with blanks before the
    /// parenthesis (benches/studies/lengths.md).
    pub fn edit(&self, new: SocketAddr, padding: Padding) -> Option<(Range<usize>, EndpointText)> {
        if self.port == new.port() && self.address.is_none_or(|address| address == new.ip()) {
            return None;
        }
        let text = self.replacement_text(new, padding)?;
        let Range { start, end } = self.endpoint;
        let missing = self.endpoint.len().saturating_sub(text.len());
        if missing == 0 || padding == Padding::None || !self.has_parenthesis {
            return Some((start..end, text));
        }
        let mut padded = EndpointText::new();
        padded.extend(std::iter::repeat_n(b' ', missing));
        padded.push(b'(');
        padded.extend_from_slice(&text);
        Some((start - 1..end, padded))
    }

    /// The replacement of the endpoint if `new` is announced instead; as long as the endpoint if `padding` makes that
    /// possible. `None` if the kind cannot express it: an IPv6 address in a host-port. But a 227 that names 0.0.0.0 goes
    /// on doing so.
    pub fn replacement_text(&self, new: SocketAddr, padding: Padding) -> Option<EndpointText> {
        let unspecified = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let keeps_address = new.is_ipv6() && self.address == Some(unspecified);
        let is_passive = self.kind == AnnouncementKind::Pasv;
        let address = if keeps_address && is_passive { unspecified } else { new.ip() };
        Some(match (self.kind, address) {
            (AnnouncementKind::Port | AnnouncementKind::Pasv, IpAddr::V4(ip)) => {
                let ([a, b, c, d], [high, low]) = (ip.octets(), new.port().to_be_bytes());
                let room =
                    self.room_for_port(address, padding).filter(|_| padding != Padding::None);
                let room = room.filter(|room| self.kind.fits_port(new.port(), *room, padding));
                host_port([a, b, c, d, high, low], room.unwrap_or_default(), padding.digits())
            }
            (AnnouncementKind::Port | AnnouncementKind::Pasv, IpAddr::V6(_)) => return None,
            // The family precedes the endpoint and is not replaced.
            (AnnouncementKind::Eprt, ip)
                if self.address.is_some_and(|old| old.is_ipv4() == ip.is_ipv4()) =>
            {
                to_endpoint_text(&format!("{ip}{}{}", char::from(self.delimiter), new.port()))
            }
            (AnnouncementKind::Eprt, _) => return None,
            (AnnouncementKind::Epsv, _) => to_endpoint_text(&new.port().to_string()),
        })
    }
}

fn digits(number: impl Into<u16>) -> usize {
    let number = number.into();
    1 + [10, 100, 1000, 10_000].iter().filter(|power| number >= **power).count()
}

fn to_endpoint_text(text: &str) -> EndpointText {
    text.as_bytes().into()
}

/// The most digits of a number in a host-port, with a leading zero.
const MAX_WIDTH: usize = 4;

/// Writes six numbers with commas. Not with `format!`, which costs a tenth of a rewrite. If the last two take less than
/// `room`, the last one is padded with zeros up to `most` digits, then the other.
fn host_port(numbers: [u8; 6], room: usize, most: usize) -> EndpointText {
    let [.., high, low] = numbers.map(digits);
    let zeros = room.saturating_sub(high + 1 + low);
    let low = low.max(most.min(low + zeros));
    let widths = [1, 1, 1, 1, high.max(room.saturating_sub(1 + low)), low];
    let mut text = [0; "255,255,255,255,0255,0255,".len() + MAX_WIDTH];
    let mut length = 0;
    for (number, width) in numbers.into_iter().zip(widths) {
        let width = digits(number).max(width).min(MAX_WIDTH);
        let places = [0, number / 100, number / 10 % 10, number % 10].map(|digit| b'0' + digit);
        // All places, shifted so that those which are not wanted are missing at the start.
        let wanted = u32::from_le_bytes(places) >> (8 * (MAX_WIDTH - width));
        text[length..length + MAX_WIDTH].copy_from_slice(&wanted.to_le_bytes());
        length += width;
        text[length] = b',';
        length += 1;
    }
    text[..length - 1].into()
}

/// The six numbers with commas in `bytes` that start at `at`, and where they end. With a seventh number the result is
/// `None`, because it is unclear which six are meant.
fn six_numbers(bytes: &[u8], at: usize) -> Option<([u32; 6], usize)> {
    let (mut numbers, mut end) = ([0; 6], at);
    for (i, number) in numbers.iter_mut().enumerate() {
        let start = if i == 0 { at } else { skip_comma(bytes, end)? };
        let digits;
        (*number, digits) = leading_number(bytes.get(start..)?)?;
        end = start + digits;
    }
    let next = skip_comma(bytes, end).and_then(|next| bytes.get(next));
    (!next.is_some_and(u8::is_ascii_digit)).then_some((numbers, end))
}

/// Skips a comma and the blanks around it.
fn skip_comma(bytes: &[u8], at: usize) -> Option<usize> {
    let blanks = |from: usize| bytes[from..].iter().take_while(|byte| **byte == b' ').count();
    let comma = at + blanks(at);
    (bytes.get(comma) == Some(&b',')).then(|| comma + 1 + blanks(comma + 1))
}

/// One to nine digits.
fn number(digits: &[u8]) -> Option<u32> {
    let (number, length) = leading_number(digits)?;
    (length == digits.len()).then_some(number)
}

/// The number of one to nine digits at the start of `bytes`, and its number of digits.
fn leading_number(bytes: &[u8]) -> Option<(u32, usize)> {
    let length = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let value = |number: u32, digit: &u8| number * 10 + u32::from(digit - b'0');
    (1..=9).contains(&length).then(|| (bytes[..length].iter().fold(0, value), length))
}

fn checked_port(kind: AnnouncementKind, number: u32) -> Result<u16, MalformedAnnouncement> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(MalformedAnnouncement::Port { kind, number }),
    }
}

/// The family of an `EPRT` as the most tolerant server reads it: behind blanks, a plus sign and zeros. 0 for what no
/// server can read as a number, `None` for what servers read differently.
fn family_number(field: &[u8]) -> Option<u32> {
    if !field.iter().any(u8::is_ascii_digit) {
        return Some(0);
    }
    let field = field.trim_ascii();
    let digits = field.strip_prefix(b"+").unwrap_or(field);
    number(digits).filter(|_| !is_other_in_octal(digits))
}

/// Whether a server that takes numbers with a leading zero for octal (`inet_aton`) reads another one than others.
fn is_other_in_octal(digits: &[u8]) -> bool {
    let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
    zeros > 0 && digits.len() - zeros > 1 && digits.iter().all(|digit| *digit < b'8')
}

/// The IPv4 address in decimal. Devices write numbers with leading zeros. Some servers read those as octal
/// (`inet_aton`), so such a number counts only if it is none in octal, or the same.
fn parse_ipv4(text: &[u8]) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut numbers = text.split(|byte| *byte == b'.');
    for octet in &mut octets {
        let digits = numbers.next().filter(|digits| digits.len() <= 3)?;
        *octet = u8::try_from(number(digits).filter(|_| !is_other_in_octal(digits))?).ok()?;
    }
    numbers.next().is_none().then_some(octets.into())
}

/// RFC 2428 section 2: ASCII 33 to 126. A digit is excluded, because the fields consist of digits.
fn is_delimiter(byte: u8) -> bool {
    byte.is_ascii_graphic() && !byte.is_ascii_digit()
}

/// Whether `byte` may occur in an IPv6 address.
fn is_in_ipv6(byte: u8) -> bool {
    byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.')
}

#[cfg(test)]
#[path = "announcement_tests.rs"]
mod tests;
