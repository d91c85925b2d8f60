//! The part of the packet selection that nft's language cannot say: whether a packet is exactly one plain
//! line of a few kinds. Classic BPF programs for the iptables match `bpf` (xt_bpf), through nft_compat.
//!
//! What a line must be is in `engine::harmless`; here it only becomes programs. A program that meets anything
//! it does not expect, as a packet that is cut, does not match, and the packet is queued.

use std::{
    ffi::{CStr, CString},
    ptr::NonNull,
};

use libc::sock_filter;
use nftnl::{
    Chain, Rule,
    expr::{Expression, Verdict},
};
use nftnl_sys as sys;

use super::nft::{self, Extension};
use crate::engine::harmless::{ANNOUNCING, COMMANDS, MAX_LINE, MIN_LINE, REPLIES};

/// Instructions of one program (XT_BPF_MAX_NUM_INSTR).
const MOST_INSTRUCTIONS: usize = 64;
/// `struct xt_bpf_info`: the number of instructions, they, and a pointer of the kernel's own.
const INFO: usize = 8 + MOST_INSTRUCTIONS * 8 + 8;
/// Words of a line that one program can look at.
const WORDS: usize = 6;

/// Chains of our table, and what a packet must be to go on from there: what is short, which is most, is told by
/// fewer programs.
const RULES: [(&CStr, Line, usize); 4] = [
    (c"commands", Line::Command, 37),
    (c"commands", Line::Command, MAX_LINE),
    (c"replies", Line::Reply, 77),
    (c"replies", Line::Reply, MAX_LINE),
];
/// Where it goes.
const PASSED: &CStr = c"copied";

/// The kinds of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Command,
    Reply,
}

/// Lowest byte of a line, and of a line without blanks.
const PLAIN: u8 = 0x20;
const NO_BLANK: u8 = 0x21;

/// A program under construction. Its jumps out of it are set when its length is known: classic BPF has
/// forward jumps only, by the number of instructions that are left out.
#[derive(Default)]
struct Program {
    code: Vec<sock_filter>,
    /// Conditions that end it without a match, and whether by holding.
    failing: Vec<(usize, bool)>,
    /// Conditions that end it with a match by not holding.
    done: Vec<usize>,
}

// As classic BPF is written (linux/bpf_common.h).
const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B;
const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H;
const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W;
const AT: u32 = libc::BPF_ABS;
const AT_X: u32 = libc::BPF_IND;
const LOAD_LENGTH: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_LEN;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const IF: u32 = libc::BPF_JMP | libc::BPF_K;
const DO: u32 = libc::BPF_ALU | libc::BPF_K;
const DO_X: u32 = libc::BPF_ALU | libc::BPF_X;

/// FIN, SYN, RST, URG: of a packet with one of them more counts than what it says.
const OTHER_FLAGS: u32 = 0x27;

impl Program {
    fn put(&mut self, code: u32, k: u32) -> &mut Self {
        self.code.push(sock_filter { code: code as u16, jt: 0, jf: 0, k });
        self
    }

    /// Goes on if the condition on A holds; otherwise there is no match.
    fn need(&mut self, condition: u32, k: u32) -> &mut Self {
        self.failing.push((self.code.len(), false));
        self.put(IF | condition, k)
    }

    /// Goes on if the condition on A does not hold; otherwise there is no match.
    fn forbid(&mut self, condition: u32, k: u32) -> &mut Self {
        self.failing.push((self.code.len(), true));
        self.put(IF | condition, k)
    }

    /// Goes on if A is one of `values`; otherwise there is no match.
    fn need_one_of(&mut self, values: &[u32]) -> &mut Self {
        let Some((last, others)) = values.split_last() else { return self };
        for (index, value) in others.iter().enumerate() {
            let skipped = (values.len() - 1 - index) as u8; // of a table that is shorter than a program
            self.code.push(sock_filter {
                code: (IF | libc::BPF_JEQ) as u16,
                jt: skipped,
                jf: 0,
                k: *value,
            });
        }
        self.need(libc::BPF_JEQ, *last)
    }

    /// Needs TCP over IPv4 or bare IPv6, none of [`OTHER_FLAGS`]. Then X is where the payload starts, which is
    /// kept in `M[1]`, and A and `M[0]` are its length.
    fn start() -> Self {
        let mut program = Self::default();
        let p = &mut program;
        p.put(LOAD_BYTE | AT, 0).put(DO | libc::BPF_AND, 0xf0);
        p.code.push(sock_filter { code: (IF | libc::BPF_JEQ) as u16, jt: 0, jf: 2, k: 0x40 });
        p.put(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0).put(JUMP, 4);
        p.need(libc::BPF_JEQ, 0x60);
        p.put(LOAD_BYTE | AT, 6).need(libc::BPF_JEQ, libc::IPPROTO_TCP as u32);
        p.put(libc::BPF_LDX | libc::BPF_IMM, 40);
        p.put(LOAD_BYTE | AT_X, 13).forbid(libc::BPF_JSET, OTHER_FLAGS);
        p.put(LOAD_BYTE | AT_X, 12)
            .put(DO | libc::BPF_AND, 0xf0)
            .put(DO | libc::BPF_RSH, 2)
            .put(DO_X | libc::BPF_ADD, 0)
            .put(libc::BPF_MISC | libc::BPF_TAX, 0)
            .put(libc::BPF_STX, 1)
            .put(LOAD_LENGTH, 0)
            .put(DO_X | libc::BPF_SUB, 0)
            .put(libc::BPF_ST, 0);
        program
    }

    /// Needs CR LF at the end of the payload, and four plain bytes before it. X is where the payload starts.
    fn end_of_line(&mut self) -> &mut Self {
        self.put(LOAD_LENGTH, 0)
            .put(DO | libc::BPF_SUB, MIN_LINE as u32)
            .put(libc::BPF_MISC | libc::BPF_TAX, 0)
            .put(LOAD_HALF | AT_X, MIN_LINE as u32 - 2)
            .need(libc::BPF_JEQ, u32::from(u16::from_be_bytes(*b"\r\n")))
            .word_of(PLAIN, 0)
            .put(libc::BPF_LDX | libc::BPF_W | libc::BPF_MEM, 1)
    }

    /// Needs each of the four bytes at X and `offset` to be from `lowest` to 0x7f. With their highest bits clear,
    /// adding to each carries nothing over, and sets the highest bit of those that are not below it.
    fn word_of(&mut self, lowest: u8, offset: u32) -> &mut Self {
        self.put(LOAD_WORD | AT_X, offset)
            .forbid(libc::BPF_JSET, 0x8080_8080)
            .put(DO | libc::BPF_ADD, u32::from_be_bytes([0x80 - lowest; 4]))
            .put(DO | libc::BPF_AND, 0x8080_8080)
            .need(libc::BPF_JEQ, 0x8080_8080)
    }

    /// What is of `kind` by its first and its last bytes, and not longer than `longest`.
    fn of_kind(kind: Line, longest: usize) -> Self {
        let mut program = Self::start();
        let p = &mut program;
        p.need(libc::BPF_JGE, MIN_LINE as u32).forbid(libc::BPF_JGT, longest as u32);
        p.end_of_line().put(LOAD_WORD | AT_X, 0);
        match kind {
            Line::Command => {
                p.put(DO | libc::BPF_OR, 0x2020_2020).need_one_of(&words(&COMMANDS));
            }
            Line::Reply => {
                for code in words(&ANNOUNCING) {
                    p.forbid(libc::BPF_JEQ, code);
                }
                p.put(LOAD_BYTE | AT_X, 3).need(libc::BPF_JEQ, b' '.into());
                p.put(LOAD_BYTE | AT_X, 0).need_one_of(&REPLIES.map(u32::from));
            }
        }
        program
    }

    /// Matches here unless the payload is at least so long.
    fn done_below(&mut self, length: u32) -> &mut Self {
        self.put(LOAD_WORD | libc::BPF_MEM, 0);
        self.done.push(self.code.len());
        self.put(IF | libc::BPF_JGE, length)
    }

    /// A blank behind the verb, and none in the first three and the last four bytes of the argument, if there is one.
    fn argument() -> Self {
        let mut program = Self::start();
        let p = &mut program;
        p.done_below(MIN_LINE as u32 + 1).put(LOAD_BYTE | AT_X, 4).need(libc::BPF_JEQ, b' '.into());
        for at in 5..8 {
            p.done_below(at + 3)
                .put(LOAD_BYTE | AT_X, at)
                .need(libc::BPF_JGE, NO_BLANK.into())
                .forbid(libc::BPF_JGE, 0x80);
        }
        p.done_below(11)
            .put(LOAD_LENGTH, 0)
            .put(DO | libc::BPF_SUB, MIN_LINE as u32)
            .put(libc::BPF_MISC | libc::BPF_TAX, 0)
            .word_of(NO_BLANK, 0);
        program
    }

    /// What has no bytes below `lowest` from word `first` of the payload on, as far as one program can look. The
    /// last four bytes before CR LF were looked at.
    fn words_from(first: usize, lowest: u8) -> Self {
        let mut program = Self::start();
        let p = &mut program;
        for word in first..first + WORDS {
            let offset = 4 * word as u32;
            p.done_below(offset + MIN_LINE as u32).word_of(lowest, offset);
        }
        program
    }

    fn finish(mut self) -> Vec<sock_filter> {
        // Whatever went on to the end matches.
        let yes = self.code.len();
        self.put(libc::BPF_RET | libc::BPF_K, u32::MAX).put(libc::BPF_RET | libc::BPF_K, 0);
        let distance = |from: usize, to: usize| (to - from - 1) as u8; // of at most 64
        for (at, by_holding) in self.failing {
            let jump = &mut self.code[at];
            *(if by_holding { &mut jump.jt } else { &mut jump.jf }) = distance(at, yes + 1);
        }
        for at in self.done {
            self.code[at].jf = distance(at, yes);
        }
        debug_assert!(self.code.len() <= MOST_INSTRUCTIONS);
        self.code
    }
}

fn words(values: &[[u8; 4]]) -> Vec<u32> {
    values.iter().map(|value| u32::from_be_bytes(*value)).collect()
}

/// The programs that all must match a packet of `kind` that is not longer than `longest`.
fn programs(kind: Line, longest: usize) -> Vec<Vec<sock_filter>> {
    let (argument, start, lowest) = match kind {
        Line::Command => (Some(Program::argument()), 2, NO_BLANK),
        Line::Reply => (None, 0, PLAIN),
    };
    let scans = (start..(longest - 2) / 4).step_by(WORDS);
    let scans = scans.map(|first| Program::words_from(first, lowest));
    std::iter::once(Program::of_kind(kind, longest))
        .chain(argument)
        .chain(scans)
        .map(Program::finish)
        .collect()
}

/// The rules that tell harmless lines, for our table.
pub(super) fn rules(table: &nftnl::Table, mut each: impl FnMut(&Rule<'_>)) {
    for (chain, kind, longest) in RULES {
        let chain = Chain::new(chain, table);
        let mut rule = Rule::new(&chain);
        for program in programs(kind, longest) {
            rule.add_expr(&Match(program));
        }
        rule.add_expr(&Verdict::Goto { chain: CString::from(PASSED) });
        each(&rule);
    }
}

/// One rule with such a match, to see whether the kernel has it.
pub(super) fn probe<'a>(chain: &'a Chain<'a>) -> Rule<'a> {
    let mut rule = Rule::new(chain);
    rule.add_expr(&Match(Program::start().finish()));
    rule
}

/// What tells these programs from those of another version.
pub(super) fn fingerprint() -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(PASSED.to_bytes());
    for (chain, kind, longest) in RULES {
        hasher.update(chain.to_bytes());
        for sock_filter { code, jt, jf, k } in programs(kind, longest).into_iter().flatten() {
            hasher.update(&code.to_ne_bytes());
            hasher.update(&[jt, jf]);
            hasher.update(&k.to_ne_bytes());
        }
    }
    hasher.finalize()
}

/// The iptables match `bpf` as an nftables expression; only nft_compat knows it.
struct Match(Vec<sock_filter>);

impl Expression for Match {
    fn to_expr(&self, _rule: &Rule<'_>) -> NonNull<sys::nftnl_expr> {
        let mut info = [0; INFO];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(place) = info.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        put(0, &(self.0.len() as u16).to_ne_bytes());
        for (index, sock_filter { code, jt, jf, k }) in self.0.iter().enumerate() {
            let at = 4 + 8 * index;
            put(at, &code.to_ne_bytes());
            put(at + 2, &[*jt, *jf]);
            put(at + 4, &k.to_ne_bytes());
        }
        nft::extension(Extension::Match, c"bpf", 0, &info)
    }
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use std::os::{fd::AsRawFd, unix::net::UnixDatagram};

    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;
    use crate::engine::harmless;

    /// The kernel's own classic BPF, on a socket of its own: what a program matches comes through.
    struct Filter {
        sender: UnixDatagram,
        receiver: UnixDatagram,
    }

    impl Filter {
        fn new(mut program: Vec<sock_filter>) -> Self {
            let (sender, receiver) = UnixDatagram::pair().unwrap();
            receiver.set_nonblocking(true).unwrap();
            let program =
                libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
            // SAFETY: the program is alive, and the kernel copies it.
            let done = unsafe {
                libc::setsockopt(
                    receiver.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_ATTACH_FILTER,
                    (&raw const program).cast(),
                    size_of::<libc::sock_fprog>() as u32,
                )
            };
            assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
            Self { sender, receiver }
        }

        fn matches(&self, packet: &[u8]) -> bool {
            // A datagram that the filter drops is refused to its sender.
            let _ = self.sender.send(packet);
            self.receiver.recv(&mut [0; 2048]).is_ok()
        }
    }

    /// The filters of each rule.
    struct Filters(Vec<(Line, Vec<Filter>)>);

    impl Filters {
        fn new() -> Self {
            let filters = |programs: Vec<Vec<sock_filter>>| programs.into_iter().map(Filter::new);
            let rule = |(_, kind, longest)| (kind, filters(programs(kind, longest)).collect());
            Self(RULES.map(rule).into())
        }

        fn kinds(&self, packet: &[u8]) -> Vec<Line> {
            let all = |filters: &[Filter]| filters.iter().all(|filter| filter.matches(packet));
            let mut kinds: Vec<_> =
                self.0.iter().filter(|(_, filters)| all(filters)).map(|(kind, _)| *kind).collect();
            kinds.dedup();
            kinds
        }
    }

    fn expected(payload: &[u8]) -> Vec<Line> {
        [
            (Line::Command, harmless::is_harmless_command(payload)),
            (Line::Reply, harmless::is_harmless_reply(payload)),
        ]
        .into_iter()
        .filter_map(|(kind, is)| is.then_some(kind))
        .collect()
    }

    /// `payload` in packets of both families, without and with TCP options.
    fn packets(payload: &[u8]) -> Vec<Vec<u8>> {
        let v4 = || PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        let v6 = || PacketBuilder::ipv6([1; 16], [2; 16], 64);
        let options = [etherparse::TcpOptionElement::Timestamp(1, 2)];
        let mut packets = vec![Vec::new(); 4];
        v4().tcp(1, 21, 7, 9).write(&mut packets[0], payload).unwrap();
        let with = v4().tcp(1, 21, 7, 9).options(&options).unwrap();
        with.write(&mut packets[1], payload).unwrap();
        v6().tcp(1, 21, 7, 9).write(&mut packets[2], payload).unwrap();
        let with = v6().tcp(1, 21, 7, 9).options(&options).unwrap();
        with.write(&mut packets[3], payload).unwrap();
        packets
    }

    #[test]
    fn programs_fit_and_the_kernel_takes_them() {
        for (_, kind, longest) in RULES {
            assert!(programs(kind, longest).iter().all(|p| p.len() <= MOST_INSTRUCTIONS));
        }
        let filters = Filters::new();
        for (line, kind) in [
            ("RETR a-file\r\n", Some(Line::Command)),
            ("RETR a file\r\n", None),
            ("noop\r\n", Some(Line::Command)),
            ("PASV\r\n", Some(Line::Command)),
            ("226 done\r\n", Some(Line::Reply)),
            ("227 Entering Passive Mode (1,2,3,4,5,6)\r\n", None),
            ("RETR a\r\nSTAT\r\n", None),
            ("", None),
        ] {
            for packet in packets(line.as_bytes()) {
                assert_eq!(filters.kinds(&packet), Vec::from_iter(kind), "{line:?}");
            }
        }
    }

    #[test]
    fn a_byte_that_is_not_plain_is_found_wherever_it_is() {
        let filters = Filters::new();
        for length in
            [MIN_LINE, 7, 8, 9, 10, 11, 12, 31, 32, 33, 100, MAX_LINE - 1, MAX_LINE, MAX_LINE + 1]
        {
            for start in ["RETR ", "200 ", "227 "] {
                let mut line = vec![b'x'; length];
                line[length - 2..].copy_from_slice(b"\r\n");
                let kept = start.len().min(length - 2);
                line[..kept].copy_from_slice(&start.as_bytes()[..kept]);
                let packet = &packets(&line)[length % 4];
                assert_eq!(filters.kinds(packet), expected(&line), "{length} {start}");
                for at in 0..length {
                    for byte in [0, b'\n', b'\r', 0x1f, 0x20, 0x7f, 0x80, 0xff] {
                        let mut other = line.clone();
                        other[at] = byte;
                        let packet = &packets(&other)[at % 4];
                        assert_eq!(filters.kinds(packet), expected(&other), "{other:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn flags_that_matter_and_fragments_of_packets_match_nothing() {
        let filters = Filters::new();
        let whole = &packets(b"RETR x\r\n")[0];
        for flag in [1, 2, 4, 0x20] {
            let mut packet = whole.clone();
            packet[20 + 13] |= flag;
            assert!(filters.kinds(&packet).is_empty());
        }
        for cut in 0..whole.len() {
            assert!(filters.kinds(&whole[..cut]).is_empty(), "{cut}");
        }
    }

    proptest! {
        #[test]
        fn the_programs_say_what_the_tables_say(start in "(RETR|stor|LIST|PASV|EPSV|NOOP|PORT|2[0-9]{2}|[1-6][0-9]{2}|)[ \r-]?",
                                                rest in proptest::collection::vec(prop_oneof![9 => 0x20u8..0x7f, 1 => any::<u8>()], 0..140),
                                                end in "(\r\n|\n|\r|)") {
            thread_local!(static FILTERS: Filters = Filters::new());
            let payload = [start.as_bytes(), &rest, end.as_bytes()].concat();
            for packet in packets(&payload) {
                let kinds = FILTERS.with(|filters| filters.kinds(&packet));
                prop_assert_eq!(kinds, expected(&payload));
            }
        }
    }
}
