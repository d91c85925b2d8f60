//! The part of the rules that tells harmless commands, made from the tables that say what they are
//! ([`engine::harmless`](crate::engine::harmless)): nftables has no loop, so there is a rule for each byte of the argument,
//! and a chain for each place where the line may end.

use std::fmt::Write as _;

use crate::engine::harmless::{ARGUMENT, COMMANDS, MAX_COMMAND, MIN_COMMAND};

/// Where a command is known to be whole.
const PASSED: &str = "copied";
/// Where everything else goes.
const OTHER: &str = "wake";

/// Clears the bit by which small letters differ.
const CASE: u32 = 0xdfdf_dfdf;

/// Chain `commands`, and those that it goes to.
pub(super) fn commands() -> String {
    let verb_end = MIN_COMMAND - 2;
    let ends = verb_end..=MAX_COMMAND - 2;
    let mut text = String::new();
    // Writing to a String cannot fail. A test on a byte that is not there does not match.
    for at in ends.clone() {
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
    let verbs = COMMANDS.map(|verb| format!("{:#010x}", u32::from_be_bytes(verb))).join(", ");
    let _ = write!(
        text,
        "\tchain commands {{\n\
         \t\t@ih,0,32 & {CASE:#010x} != {{ {verbs} }} goto {OTHER}\n\
         \t\t@ih,{},8 != {:#04x} goto end_{verb_end}\n",
        verb_end * 8,
        b' ',
    );
    let (lowest, highest) = (ARGUMENT.start(), ARGUMENT.end());
    for at in ends.skip(1) {
        let _ =
            writeln!(text, "\t\t@ih,{},8 != {lowest:#04x}-{highest:#04x} goto end_{at}", at * 8);
    }
    let _ = write!(text, "\t\tgoto {OTHER}\n\t}}\n");
    text
}
