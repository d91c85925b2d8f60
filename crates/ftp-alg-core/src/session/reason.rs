//! Why something is refused, and the reply by which the client hears of it.
//!
//! The reply takes the place of the server's: of a 227 or 229 that is refused, or of the server's answer to a command
//! that was crossed out. Numbers do not change where it fits into the line that it replaces, so there are two texts
//! for each reason.

use serde::{Deserialize, Serialize};

use super::few::Bytes;

/// Why the gateway refuses an announcement or a command. One byte, as it is kept with the command until the reply comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// The announcement names another host than its sender (`policy.foreign-address`).
    Address,
    /// The address is of another family than the control connection.
    Family,
    /// The port is below `policy.min-data-port`.
    LowPort,
    /// The port is one of `policy.deny-ports`.
    DeniedPort,
    /// No server could read it.
    Malformed,
    /// The line is longer than is held back.
    TooLong,
    /// `EPSV ALL` was accepted.
    EpsvOnly,
    /// The name of the external address has not been looked up yet.
    Unresolved,
    /// There are as many pinholes as there may be.
    Limit,
    /// No external port is free.
    NoPort,
    /// The kernel did not open the pinhole.
    Kernel,
    /// `policy.auth-tls` is `"refuse"`.
    Auth,
    /// The line has an urgent byte and is another command without it.
    Urgent,
    /// Some server may read another command in the line.
    Hidden,
}

impl Reason {
    /// The code for a command: 504 for what another parameter would be allowed (RFC 2577 section 3), 425 for what may
    /// work later, 534 for what policy forbids (RFC 2228).
    fn code(self) -> u16 {
        match self {
            Self::Address | Self::Family | Self::LowPort | Self::DeniedPort => 504,
            Self::Malformed => 501,
            Self::TooLong | Self::Urgent | Self::Hidden => 500,
            Self::EpsvOnly => 503,
            Self::Unresolved | Self::Limit | Self::NoPort | Self::Kernel => 425,
            Self::Auth => 534,
        }
    }

    /// A short text, which fits into what servers usually say, and a longer one.
    fn texts(self, passive: bool) -> [&'static str; 2] {
        match self {
            Self::Address if passive => [
                "Gateway: not the server's address.",
                "Refused by the gateway: the server announced the address of another host.",
            ],
            Self::Address => [
                "Gateway: not your own address.",
                "Refused by the gateway: the address is not the client's.",
            ],
            Self::Family => [
                "Gateway: wrong address family.",
                "Refused by the gateway: the address is of another family than the connection.",
            ],
            Self::LowPort => [
                "Gateway: below min-data-port.",
                "Refused by the gateway: the port is below its min-data-port.",
            ],
            Self::DeniedPort => [
                "Gateway: port is in deny-ports.",
                "Refused by the gateway: the port is one of its deny-ports.",
            ],
            Self::Malformed => [
                "Gateway: no valid endpoint.",
                "Refused by the gateway: the address or the port is not valid.",
            ],
            Self::TooLong => {
                ["Gateway: line too long.", "Refused by the gateway: the line is too long."]
            }
            Self::EpsvOnly => [
                "Gateway: EPSV ALL was said.",
                "Refused by the gateway: after EPSV ALL there is EPSV only.",
            ],
            Self::Unresolved => [
                "Gateway: name not resolved yet.",
                "Refused by the gateway: its external name is not resolved yet.",
            ],
            Self::Limit => [
                "Gateway: too many data ports.",
                "Refused by the gateway: too many data ports are open. Try again later.",
            ],
            Self::NoPort => [
                "Gateway: no free external port.",
                "Refused by the gateway: no external port is free. Try again later.",
            ],
            Self::Kernel => [
                "Gateway: cannot open a port.",
                "Refused by the gateway: it cannot open a data port. Try again later.",
            ],
            Self::Auth => {
                ["Gateway policy refuses AUTH.", "Refused by the gateway: its policy is plain FTP."]
            }
            Self::Urgent => [
                "Gateway: urgent data in a line.",
                "Refused by the gateway: urgent data in a line.",
            ],
            Self::Hidden => [
                "Gateway: control byte in a line.",
                "Refused by the gateway: control bytes in a line.",
            ],
        }
    }

    /// What takes the place of `room` bytes of the server, without a line end: the longer text where it fits, the
    /// shorter one where that does, filled up with blanks; else the longer one, which is longer than `room`. `passive`
    /// for a 227 or 229. `code` is that of a reply whose first lines the client has, and which must end with the same.
    pub fn reply(self, passive: bool, code: Option<u16>, room: usize) -> Bytes {
        let own = if passive { 425 } else { self.code() };
        let code = code.unwrap_or(own);
        let [short, long] = self.texts(passive).map(|text| format!("{code} {text}"));
        let text = if long.len() > room && short.len() <= room { short } else { long };
        Bytes::Heap(format!("{text:room$}").into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Reason; 14] = [
        Reason::Address,
        Reason::Family,
        Reason::LowPort,
        Reason::DeniedPort,
        Reason::Malformed,
        Reason::TooLong,
        Reason::EpsvOnly,
        Reason::Unresolved,
        Reason::Limit,
        Reason::NoPort,
        Reason::Kernel,
        Reason::Auth,
        Reason::Urgent,
        Reason::Hidden,
    ];

    #[test]
    fn each_reason_fits_into_what_servers_say() {
        let usual = [
            "227 Entering Passive Mode (10,0,0,5,4,1)",
            "229 Entering Extended Passive Mode (|||5006|)",
            "530 Please login with USER and PASS.",
        ];
        for (reason, line) in ALL.into_iter().flat_map(|reason| usual.map(|line| (reason, line))) {
            let passive = line.starts_with('2');
            let reply = reason.reply(passive, None, line.len());
            assert_eq!(reply.len(), line.len(), "{}", reply.escape_ascii());
            let text = String::from_utf8(reply.to_vec()).unwrap();
            assert!(text.to_lowercase().contains("gateway"), "{text}");
            assert_eq!(text.starts_with("425 "), passive || reason.code() == 425, "{text}");
        }
    }

    #[test]
    fn a_text_that_does_not_fit_is_whole() {
        for reason in ALL {
            for passive in [false, true] {
                let [short, long] = reason.texts(passive);
                assert!(short.len() < 35 && short.len() <= long.len(), "{long}");
                let reply = |room| {
                    String::from_utf8(reason.reply(passive, Some(227), room).to_vec()).unwrap()
                };
                assert_eq!(reply(0), format!("227 {long}"));
                assert!(reply(0).len() <= 84);
                assert_eq!(reply(short.len() + 4), format!("227 {short}"));
                assert_eq!(reply(200).trim_end(), format!("227 {long}"));
                assert!(!long.contains(|c: char| c.is_ascii_digit() || c == '|'), "{long}");
            }
        }
    }
}
