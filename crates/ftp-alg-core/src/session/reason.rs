//! Refusal reasons, and the error reply that the client gets.
//!
//! The error reply replaces a server's reply: a refused 227 or 229, or the server's reply to a crossed out command.
//! Sequence numbers stay the same if it fits into the reply that it replaces, so each reason has a short and a long
//! text.

use serde::{Deserialize, Serialize};

use super::compact::SmallBytes;

/// Reasons, each with what it means, its name in `ftp-alg status`, and what to do: docs/counters.md is made from it.
macro_rules! reasons {
    ($(#[$of:meta])* $all:ident { $($(#[doc = $means:literal])+ $reason:ident = $name:literal $(: $remedy:literal)?,)+ }) => {
        $(#[$of])*
        pub enum $all { $($(#[doc = $means])+ $reason,)+ }

        impl $all {
            /// Every reason.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$reason),+];
            /// The name of each in `ftp-alg status`, what it means, in Markdown, and what to do.
            pub const MEANINGS: &[[&str; 3]] =
                &[$([$name, concat!($($means),+).trim_ascii_start(), concat!($($remedy)?)]),+];

            /// Name in `ftp-alg status`.
            pub fn name(self) -> &'static str {
                Self::MEANINGS[self as usize][0]
            }

            /// What to do; empty if nothing.
            pub fn remedy(self) -> &'static str {
                Self::MEANINGS[self as usize][2]
            }
        }
    };
}

pub(super) use reasons;

reasons! {
    /// Why the gateway refuses an announcement or a command. One byte, because it is stored with the pending command.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    RefusalReason {
        /// the announcement names [another host](troubleshooting.md#the-address-is-wrong) than its sender (FTP bounce)
        ForeignAddress = "foreign_address": "if the server means itself, let it announce its own address, or set replace-foreign-address = true in a [[server]] with its address; if others are wanted, foreign-address = \"allow\"",
        /// the address is of another family than the control connection
        OtherFamily = "other_family": "let clients use EPSV, or the server announce an address of the connection's family",
        /// the port is below `min-data-port`
        LowPort = "low_port": "raise the server's passive ports, or lower min-data-port in [policy] or [[network]]",
        /// the port is one of `deny-ports`
        DeniedPort = "denied_port": "give the server other passive ports, or take these out of deny-ports in [policy] or [[network]]",
        /// nobody can read the address or the port
        Malformed = "malformed": "look at the sender: the log has the line",
        /// an announcement of more than 512 bytes
        TooLong = "too_long": "look at the client",
        /// after `EPSV ALL` only `EPSV` is allowed (RFC 2428)
        EpsvOnly = "epsv_only": "look at the client",
        /// the external address is a name that has no address yet
        Unresolved = "unresolved": "correct the name in external-address or /etc/resolv.conf, or set an address there",
        /// a [limit of pinholes](limits.md#pinholes) is reached
        PinholeLimit = "pinhole_limit": "see in `ftp-alg pinholes` whose are open, or raise max-pinholes-per-client in [policy] or [[network]]",
        /// all ports that may be announced are in use
        NoFreePort = "no_free_port": "widen port-range in [nat]",
        /// the kernel did not open the pinhole
        KernelRefused = "kernel_refused": "the event kernel says why",
        /// `auth-tls` is `"refuse"`
        AuthTls = "auth_tls": "use plain FTP, or set auth-tls = \"pass\" in [policy] or [[network]]",
        /// urgent data in the line would change the command
        UrgentData = "urgent_data": "look at the client: it may attack",
        /// some servers may see another command in the line: it has Telnet commands, a bare CR or LF, or a NUL
        Ambiguous = "ambiguous": "look at the client: it may attack",
    }
}

impl RefusalReason {
    /// The reply code for a command: 504 if another parameter would be accepted (RFC 2577 section 3), 425 if a retry
    /// may succeed, 534 if policy forbids it (RFC 2228).
    fn code(self) -> u16 {
        match self {
            Self::ForeignAddress | Self::OtherFamily | Self::LowPort | Self::DeniedPort => 504,
            Self::Malformed => 501,
            Self::TooLong | Self::UrgentData | Self::Ambiguous => 500,
            Self::EpsvOnly => 503,
            Self::Unresolved | Self::PinholeLimit | Self::NoFreePort | Self::KernelRefused => 425,
            Self::AuthTls => 534,
        }
    }

    /// A short text, which fits into a usual server reply, and a longer one.
    fn texts(self, passive: bool) -> [&'static str; 2] {
        match self {
            Self::ForeignAddress if passive => [
                "Gateway: not the server's address.",
                "Refused by the gateway: the server announced the address of another host.",
            ],
            Self::ForeignAddress => [
                "Gateway: not your own address.",
                "Refused by the gateway: the address is not the client's.",
            ],
            Self::OtherFamily => [
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
            Self::PinholeLimit => [
                "Gateway: too many data ports.",
                "Refused by the gateway: too many data ports are open. Try again later.",
            ],
            Self::NoFreePort => [
                "Gateway: no free external port.",
                "Refused by the gateway: no external port is free. Try again later.",
            ],
            Self::KernelRefused => [
                "Gateway: cannot open a port.",
                "Refused by the gateway: it cannot open a data port. Try again later.",
            ],
            Self::AuthTls => {
                ["Gateway policy refuses AUTH.", "Refused by the gateway: its policy is plain FTP."]
            }
            Self::UrgentData => [
                "Gateway: urgent data in a line.",
                "Refused by the gateway: urgent data in a line.",
            ],
            Self::Ambiguous => [
                "Gateway: control byte in a line.",
                "Refused by the gateway: control bytes in a line.",
            ],
        }
    }

    /// The reason in `line`, the last line of a reply, if a gateway wrote it.
    pub fn of_reply(line: &[u8]) -> Option<Self> {
        let text = line.trim_ascii_end().get(4..)?;
        Self::ALL.into_iter().find(|reason| {
            let texts = [false, true].map(|passive| reason.texts(passive));
            texts.as_flattened().iter().any(|own| own.as_bytes() == text)
        })
    }

    /// The error reply in place of `room` bytes of the server, without a line end. The longer text is used if it fits,
    /// else the shorter one if that fits, padded with blanks; otherwise the longer one, which exceeds `room`. `passive`
    /// is set for a 227 or 229. `code` is the code of a multi-line reply whose first lines the client already has,
    /// because the last line must repeat it.
    pub fn reply(self, passive: bool, code: Option<u16>, room: usize) -> SmallBytes {
        let own = if passive { 425 } else { self.code() };
        let code = code.unwrap_or(own);
        let [short, long] = self.texts(passive).map(|text| format!("{code} {text}"));
        let text = if long.len() > room && short.len() <= room { short } else { long };
        SmallBytes::Heap(format!("{text:room$}").into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_shows_its_reason() {
        for other in ["", "425", "425 Cannot open", "425 Gateway: full.", "Gateway: port is in"] {
            assert_eq!(RefusalReason::of_reply(other.as_bytes()), None, "{other}");
        }
        for (reason, passive) in
            RefusalReason::ALL.into_iter().flat_map(|one| [(one, false), (one, true)])
        {
            for room in [0, 40, 120] {
                let reply = [&*reason.reply(passive, None, room), b"\r\n"].concat();
                assert_eq!(RefusalReason::of_reply(&reply), Some(reason));
            }
            // A text that does not fit is not truncated.
            let [short, long] = reason.texts(passive);
            assert!(short.len() < 35 && short.len() <= long.len(), "{long}");
            let reply =
                |room| String::from_utf8(reason.reply(passive, Some(227), room).to_vec()).unwrap();
            assert_eq!(reply(0), format!("227 {long}"));
            assert!(reply(0).len() <= 84);
            assert_eq!(reply(short.len() + 4), format!("227 {short}"));
            assert_eq!(reply(200).trim_end(), format!("227 {long}"));
            assert!(!long.contains(|c: char| c.is_ascii_digit() || c == '|'), "{long}");
        }
    }
}
