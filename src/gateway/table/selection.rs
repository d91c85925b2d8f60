//! The part of the rules that tells harmless packets, made from the tables that say what they are
//! ([`engine::harmless`](ftp_alg_core::engine::harmless)): nftables has no loop, so there is a rule for each byte of a line,
//! and a chain for each place where a line may end.

use std::fmt::Write as _;

use ftp_alg_core::engine::harmless::{ARGUMENT, COMMANDS, MAX_COMMAND, MAX_REPLY, SHORT_COMMANDS};

/// Where what is known to be whole goes.
const PASSED: &str = "copied";
/// Where everything else goes.
const OTHER: &str = "wake";

/// What chains stand in the files, in whose place these are put.
pub(super) const PLACE: &str =
    "\tchain commands {\n\t\tgoto wake\n\t}\n\tchain replies {\n\t\tgoto wake\n\t}\n";

/// Clears the bits by which small letters differ, of four and of three.
const CASE: u32 = 0xdfdf_dfdf;
const SHORT_CASE: u32 = CASE >> 8;
/// Lengths of verbs; the longer is that of a reply's code and blank, too.
const START: usize = 4;
const SHORT: usize = 3;

/// Chains `commands` and `replies`, and those that they go to. A test on a byte that is not there does not match.
pub(super) fn chains() -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for at in SHORT..=MAX_COMMAND.max(MAX_REPLY) - 2 {
        let _ = write!(
            text,
            "\tchain end_{at} {{\n\
             \t\t@ih,{},8 0-255 goto {OTHER}\n\
             \t\t@ih,{},16 0x0d0a goto {PASSED}\n\
             \t\tgoto {OTHER}\n\
             \t}}\n",
            (at + 2) * 8,
            at * 8,
        );
    }
    commands(&mut text);
    replies(&mut text);
    text
}

/// A verb, perhaps a blank and an argument. A byte that would be the blank of a short verb belongs to no longer one.
fn commands(text: &mut String) {
    let verbs = COMMANDS.map(|verb| format!("{:#010x}", u32::from_be_bytes(verb))).join(", ");
    let short = SHORT_COMMANDS.map(|[a, b, c]| format!("0x{a:02x}{b:02x}{c:02x}")).join(", ");
    let (lowest, highest) = (ARGUMENT.start(), ARGUMENT.end());
    let _ = write!(
        text,
        "\tchain commands {{\n\
         \t\t@ih,0,32 & {CASE:#010x} {{ {verbs} }} goto verb_{START}\n\
         \t\t@ih,0,24 & {SHORT_CASE:#08x} != {{ {short} }} goto {OTHER}\n\
         \t\t@ih,{},8 != {blank:#04x} goto end_{SHORT}\n\
         \t\t@ih,{},8 != {lowest:#04x}-{highest:#04x} goto end_{START}\n\
         \t\tgoto argument\n\
         \t}}\n\
         \tchain verb_{START} {{\n\
         \t\t@ih,{},8 != {blank:#04x} goto end_{START}\n\
         \t\tgoto argument\n\
         \t}}\n\
         \tchain argument {{\n",
        SHORT * 8,
        START * 8,
        START * 8,
        blank = b' ',
    );
    for at in START + 1..=MAX_COMMAND - 2 {
        let place = at * 8;
        let _ = writeln!(text, "\t\t@ih,{place},8 != {lowest:#04x}-{highest:#04x} goto end_{at}");
    }
    let _ = write!(text, "\t\tgoto {OTHER}\n\t}}\n");
}

/// A code and a blank, but not of an announcement, then anything up to a line feed but such a code: of what is sent again
/// from within a line, nothing begins as an announcement.
fn replies(text: &mut String) {
    let announcing =
        [b"227", b"229"].map(|[a, b, c]| format!("0x{a:02x}{b:02x}{c:02x}")).join(", ");
    let _ = write!(
        text,
        "\tchain replies {{\n\
         \t\t@ih,0,24 {{ {announcing} }} goto {OTHER}\n\
         \t\t@ih,0,8 != {:#04x}-{:#04x} goto {OTHER}\n\
         \t\t@ih,24,8 != {:#04x} goto {OTHER}\n",
        b'1', b'5', b' ',
    );
    let mut checks = String::new();
    for end in START..=MAX_REPLY - 2 {
        // Of the two digits that both codes begin with, one is at an even place.
        if end % 2 == 0 {
            let _ = writeln!(text, "\t\t@ih,{},8 {:#04x} jump code_{end}", end * 8, b'2');
            let _ = writeln!(checks, "\tchain code_{end} {{");
            for at in [end - 1, end] {
                let _ = writeln!(checks, "\t\t@ih,{},24 {{ {announcing} }} goto {OTHER}", at * 8);
            }
            let _ = writeln!(checks, "\t}}");
        }
        let _ = writeln!(text, "\t\t@ih,{},8 {:#04x} goto end_{end}", (end + 1) * 8, b'\n');
    }
    let _ = write!(text, "\t\tgoto {OTHER}\n\t}}\n");
    text.push_str(&checks);
}
