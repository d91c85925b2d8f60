//! The header of the PROXY protocol, versions 1 and 2 (haproxy.org, `proxy-protocol.txt`), which a load balancer sends
//! before the client's first byte. It names the client; here it is only skipped.
//!
//! A server that does not know the protocol reads the header as lines of its client, so a client may send one to have a
//! command in it pass. A header of version 1 is one line with a verb of its own. One of version 2 begins with a line
//! `QUIT`, for servers that end lines at LF. For others lines go on behind it, so what they read counts.

/// The first bytes of a header of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Limit of a header of version 1.
const MAX_V1: usize = 107;

/// Length of the header at the start of `bytes`, if all of it is there. The protocol asks its sender for one segment.
pub fn header_len(bytes: &[u8]) -> Option<usize> {
    if bytes.starts_with(SIGNATURE) { v2_len(bytes) } else { v1_len(bytes) }
}

fn v1_len(bytes: &[u8]) -> Option<usize> {
    let end = memchr::memchr(b'\n', &bytes[..bytes.len().min(MAX_V1)])? + 1;
    let text = bytes[..end].strip_suffix(b"\r\n")?;
    let families: [&[u8]; 3] = [b"TCP4 ", b"TCP6 ", b"UNKNOWN"];
    let rest = text.strip_prefix(b"PROXY ")?;
    let is_header = families.iter().any(|family| rest.starts_with(family));
    let is_plain = text.iter().all(|byte| (b' '..=b'~').contains(byte));
    (is_header && is_plain).then_some(end)
}

fn v2_len(bytes: &[u8]) -> Option<usize> {
    let [version_and_command, _family, high, low, ..] = bytes[SIGNATURE.len()..] else {
        return None;
    };
    let end = SIGNATURE.len() + 4 + usize::from(u16::from_be_bytes([high, low]));
    (matches!(version_and_command, 0x20 | 0x21) && end <= bytes.len()).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, behind: &[u8]) -> Vec<u8> {
        let length = (behind.len() as u16).to_be_bytes();
        [SIGNATURE, &[command, 0x11][..], &length, behind].concat()
    }

    #[test]
    fn a_whole_header_is_recognised() {
        for header in [
            b"PROXY TCP4 203.0.113.7 198.51.100.9 40000 21\r\n".to_vec(),
            b"PROXY TCP6 2001:db8::7 2001:db8::9 40000 21\r\n".to_vec(),
            b"PROXY UNKNOWN\r\n".to_vec(),
            v2(0x21, &[203, 0, 113, 7, 198, 51, 100, 9, 0x9c, 0x40, 0, 21]),
            // The address 10.0.0.13, with a TLV behind it.
            v2(0x21, b"\x0a\0\0\x0d\xc6\x33\x64\x09\x9c\x40\0\x15\x05\0\x04abcd"),
            v2(0x20, b""),
            v2(0x21, &[10, 13, 10, 1, 198, 51, 100, 9, 13, 10, 0, 21]),
        ] {
            let length = header.len();
            assert_eq!(header_len(&header), Some(length), "{}", header.escape_ascii());
            assert_eq!(header_len(&[&header[..], b"USER joe\r\n"].concat()), Some(length));
            for cut in 0..length {
                assert_eq!(header_len(&header[..cut]), None, "{}", header.escape_ascii());
            }
        }
    }

    #[test]
    fn other_bytes_are_no_header() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(MAX_V1));
        for bytes in [
            b"PROXY / HTTP/1.1\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.7\n".to_vec(),
            b"PROXY TCP4 \rPORT 10,0,0,5,0,22\r\n".to_vec(),
            b"PROXY TCP4 \0PORT 10,0,0,5,0,22\r\n".to_vec(),
            b" PROXY TCP4 x\r\n".to_vec(),
            b"proxy TCP4 x\r\n".to_vec(),
            b"USER joe\r\n".to_vec(),
            long.into_bytes(),
            v2(0x11, b""),
        ] {
            assert_eq!(header_len(&bytes), None, "{}", bytes.escape_ascii());
        }
    }
}
