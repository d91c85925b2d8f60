//! The two ends of a connection, and the interfaces on which they are (reverse path, RFC 3704).
//!
//! Each end knows the sequence numbers, so it can forge packets of the other end, or tell another host how to. A forged
//! packet arrives on an interface on which the other end is not. A packet is read only if it arrived on
//!
//! - the interface by which the kernel sends packets to its sender, as the last packet to that end showed; or
//! - another one, if a route to the sender leads there, so that replies may take another path.
//!
//! The first interface follows routes as they change. New data from elsewhere is dropped twice, because the routes may
//! be about to change. If the sender retransmits the data from there once more, a server's packets pass unread from then
//! on. A client's packets are read, because the policy may refuse a command, but they count as missed and open nothing.

use serde::{Deserialize, Serialize};

/// One end of a control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    /// The end that sends commands.
    Client,
    /// The end that sends replies.
    Server,
}

impl Side {
    /// The other end.
    pub fn peer(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// The index of an interface, in two bytes. 0 is this machine: nobody else can send from it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Interface(u16);

impl Interface {
    const THIS_MACHINE: Self = Self(0);
    /// Any interface with an index that two bytes cannot hold. It [is](Self::is) no interface, not even itself.
    const HIGH: Self = Self(u16::MAX);

    fn new(index: u32) -> Self {
        u16::try_from(index).map_or(Self::HIGH, Self)
    }

    fn is(self, index: u32) -> bool {
        self != Self::HIGH && self == Self::new(index)
    }
}

/// What is known about the interface of one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knowledge {
    Nothing = 0,
    /// A packet arrived on it.
    Seen = 1,
    /// The kernel sends packets to the end by it.
    Used = 2,
    /// A route to the end leads there.
    HasRoute = 3,
}

/// The interfaces of client and server. Stored as bytes, because numbers would need alignment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interfaces {
    indices: [[u8; 2]; 2],
    /// Two bits for each end; [`REPORTED`], [`COPIES`] and [`OF_SERVER`].
    flags: u8,
}

/// Why an announcement opens nothing while an interface is doubtful.
pub(super) const DOUBTFUL_INTERFACE: &str =
    "lines of an end arrive on an interface to which no route to it leads";

/// The bits that say what is known of the interfaces of both ends.
const KNOWLEDGE: u8 = 0xf;
/// Both are [used](Knowledge::Used).
const BOTH_USED: u8 = Knowledge::Used as u8 | (Knowledge::Used as u8) << 2;
/// The bit that says that packets from elsewhere were reported.
const REPORTED: u8 = 1 << 4;
/// How many copies of an end's next bytes came from elsewhere, and whether the last one was the server's.
const COPIES: u8 = 3 << 5;
const OF_SERVER: u8 = 1 << 7;
/// Number of copies that are dropped. The next copy shows that the sender is there, and retransmits.
const MAX_COPIES: u8 = 2;

const ENDS: [Side; 2] = [Side::Client, Side::Server];

/// A question to the kernel: does a route to this end lead to the interface with this index?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteQuestion {
    /// The end.
    pub end: Side,
    /// The interface's index.
    pub interface: u32,
    /// The index of the interface by which packets go there; 0 if it is not known.
    pub used: u32,
}

impl Interfaces {
    /// Whether a packet of `from` between these interfaces changes nothing and raises no question, because it comes and
    /// goes as the last ones of both ends did. Most do, so this is quick.
    #[inline]
    pub fn are_settled(&self, from: Side, input: u32, output: u32) -> bool {
        let ends = if from == Side::Client { [input, output] } else { [output, input] };
        let indices = self.indices.map(|bytes| u32::from(u16::from_ne_bytes(bytes)));
        self.flags & (KNOWLEDGE | COPIES) == BOTH_USED
            && indices == ends
            && (input | output) < Interface::HIGH.0.into()
    }

    /// Whether `end` is at the interface with this index.
    pub fn is_at(&self, end: Side, index: u32) -> bool {
        self.of(end).is(index)
    }

    /// Notes that a packet of `from` arrived on the interface `input`. Returns a question if earlier packets arrived on
    /// another one.
    #[inline]
    pub fn take_input(&mut self, from: Side, input: u32) -> Option<RouteQuestion> {
        if self.flags & COPIES != 0 && self.copies_of() == from && self.of(from).is(input) {
            self.flags &= !(COPIES | OF_SERVER);
        }
        let is_own = Interface::new(input) == Interface::THIS_MACHINE;
        match self.known(from) {
            Knowledge::Nothing if is_own => self.set(from, input, Knowledge::HasRoute),
            Knowledge::Nothing => self.set(from, input, Knowledge::Seen),
            _ if is_own || self.of(from).is(input) => {}
            known => {
                let is_known = known == Knowledge::Used && self.of(from) != Interface::HIGH;
                let used = if is_known { self.of(from).0.into() } else { 0 };
                return Some(RouteQuestion { end: from, interface: input, used });
            }
        }
        None
    }

    /// Notes that the kernel sends a packet to `to` by the interface `output`. Returns a question if packets of `to`
    /// arrive on another interface, about which nothing is known.
    #[inline]
    pub fn take_output(&mut self, to: Side, output: u32) -> Option<RouteQuestion> {
        let interface = self.of(to);
        let is_same = interface.is(output);
        match self.known(to) {
            Knowledge::HasRoute if !is_same => {}
            Knowledge::Seen if !is_same && interface != Interface::HIGH => {
                return Some(RouteQuestion {
                    end: to,
                    interface: interface.0.into(),
                    used: output,
                });
            }
            _ => self.set(to, output, Knowledge::Used),
        }
        None
    }

    /// Notes that a route to `end` leads to `interface`.
    pub fn set_has_route(&mut self, RouteQuestion { end, interface, .. }: RouteQuestion) {
        self.set(end, interface, Knowledge::HasRoute);
    }

    /// Counts a copy of the next bytes of `from` that came from elsewhere. Returns whether there were [so many
    /// before](Self::are_copies_enough).
    pub fn count_copy(&mut self, from: Side) -> bool {
        let are_enough = self.are_copies_enough();
        if !are_enough {
            self.flags = (self.flags & !OF_SERVER) + (1 << 5);
            self.flags |= if from == Side::Server { OF_SERVER } else { 0 };
        }
        are_enough
    }

    /// Whether there were so many copies from elsewhere that only an end can have sent them.
    pub fn are_copies_enough(&self) -> bool {
        self.flags & COPIES == MAX_COPIES << 5
    }

    /// The end whose copy came last.
    fn copies_of(&self) -> Side {
        if self.flags & OF_SERVER == 0 { Side::Client } else { Side::Server }
    }

    /// Whether packets of an end arrive on an interface of which nothing else is known.
    #[inline]
    pub fn are_doubtful(&self) -> bool {
        ENDS.iter().any(|end| self.known(*end) == Knowledge::Seen)
    }

    /// Whether packets of `end` have arrived on another interface, of which nothing else is known.
    pub fn contradicts(&self, RouteQuestion { end, interface, .. }: RouteQuestion) -> bool {
        self.known(end) == Knowledge::Seen && !self.of(end).is(interface)
    }

    /// The question that would end the doubt about an interface.
    pub fn question(&self) -> Option<RouteQuestion> {
        ENDS.into_iter().find_map(|end| self.question_of(end))
    }

    /// The same about the interface of an end.
    pub fn question_of(&self, end: Side) -> Option<RouteQuestion> {
        let interface = self.of(end);
        let is_doubtful = self.known(end) == Knowledge::Seen && interface != Interface::HIGH;
        is_doubtful.then(|| RouteQuestion { end, interface: interface.0.into(), used: 0 })
    }

    /// The indices of client's and server's interface; `None` if one is unknown or doubtful.
    pub fn indices(&self) -> Option<[u32; 2]> {
        let is_certain = |end: &Side| {
            matches!(self.known(*end), Knowledge::Used | Knowledge::HasRoute)
                && self.of(*end) != Interface::HIGH
        };
        ENDS.iter().all(is_certain).then(|| ENDS.map(|end| self.of(end).0.into()))
    }

    /// Whether this machine is this end.
    pub fn is_this_machine(&self, end: Side) -> bool {
        self.known(end) != Knowledge::Nothing && self.of(end) == Interface::THIS_MACHINE
    }

    fn of(&self, end: Side) -> Interface {
        Interface(u16::from_ne_bytes(self.indices[end as usize]))
    }

    fn known(&self, end: Side) -> Knowledge {
        const ALL: [Knowledge; 4] =
            [Knowledge::Nothing, Knowledge::Seen, Knowledge::Used, Knowledge::HasRoute];
        ALL[usize::from(self.flags >> (2 * end as u8) & 3)]
    }

    fn set(&mut self, end: Side, index: u32, known: Knowledge) {
        self.indices[end as usize] = Interface::new(index).0.to_ne_bytes();
        let shift = 2 * end as u8;
        self.flags = self.flags & !(3 << shift) | (known as u8) << shift;
    }

    /// Forgets the indices, which another machine gave, and copies. The kernel sent packets to both ends by some interface,
    /// so the next packet from elsewhere raises a question.
    pub fn leave_machine(&mut self) {
        for end in ENDS {
            if self.known(end) != Knowledge::Nothing {
                self.set(end, Interface::HIGH.0.into(), Knowledge::Used);
            }
        }
        self.flags &= !(COPIES | OF_SERVER);
    }

    /// Whether this is the first call.
    pub fn report_once(&mut self) -> bool {
        let is_first = self.flags & REPORTED == 0;
        self.flags |= REPORTED;
        is_first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAN: u32 = 2;
    const WAN: u32 = 3;
    const UPLINK: u32 = 4;

    /// After a SYN-ACK from the WAN to the LAN.
    fn after_syn_ack() -> Interfaces {
        let mut interfaces = Interfaces::default();
        assert_eq!(interfaces.take_input(Side::Server, WAN), None);
        assert_eq!(interfaces.take_output(Side::Client, LAN), None);
        interfaces
    }

    fn confirmed() -> Interfaces {
        let mut interfaces = after_syn_ack();
        assert!(interfaces.are_doubtful());
        assert_eq!(interfaces.take_input(Side::Client, LAN), None);
        assert_eq!(interfaces.take_output(Side::Server, WAN), None);
        assert_eq!(interfaces.indices(), Some([LAN, WAN]));
        interfaces
    }

    #[test]
    fn settled_interfaces_take_a_packet_without_a_change() {
        let all = [0, LAN, WAN, UPLINK, u16::MAX.into(), 1 << 16];
        let mut states = vec![Interfaces::default(), after_syn_ack(), confirmed()];
        let mut settled = 0;
        // All states that three more packets can lead to.
        for _ in 0..3 {
            for before in states.clone() {
                for (from, input, output) in ENDS.iter().flat_map(|from| {
                    all.iter().flat_map(move |input| all.map(|output| (*from, *input, output)))
                }) {
                    let mut after = before;
                    let questions =
                        [after.take_input(from, input), after.take_output(from.peer(), output)];
                    if before.are_settled(from, input, output) {
                        assert_eq!(
                            (questions, after),
                            ([None; 2], before),
                            "{from:?} {input} {output}"
                        );
                        settled += 1;
                    }
                    let [mut counted, mut other] = [after; 2];
                    counted.count_copy(from);
                    other.count_copy(from.peer());
                    for state in [after, counted, other] {
                        if !states.contains(&state) {
                            states.push(state);
                        }
                    }
                }
            }
        }
        assert!(settled > 30, "{settled}");
        assert!(confirmed().are_settled(Side::Client, LAN, WAN));
    }

    #[test]
    fn replies_may_take_another_path_if_a_route_leads_there() {
        let mut interfaces = confirmed();
        let question = interfaces.take_input(Side::Server, UPLINK).unwrap();
        interfaces.set_has_route(question);
        for _ in 0..2 {
            assert_eq!(interfaces.take_output(Side::Server, WAN), None);
            assert_eq!(interfaces.take_input(Side::Server, UPLINK), None);
        }
        // From the next packet by the same interface on it follows the kernel's route again.
        assert_eq!(interfaces.take_output(Side::Server, UPLINK), None);
        assert_eq!(interfaces.take_output(Side::Server, WAN), None);
        assert_eq!(interfaces.indices(), Some([LAN, WAN]));
    }

    #[test]
    fn packets_of_this_machine_are_never_questioned() {
        let mut interfaces = Interfaces::default();
        assert_eq!(interfaces.take_input(Side::Client, 0), None);
        assert_eq!(interfaces.take_output(Side::Server, WAN), None);
        assert!(!interfaces.are_doubtful());
        // As the kernel sends a reset in the name of the server, by `reject`.
        assert_eq!(interfaces.take_input(Side::Server, 0), None);
        assert_eq!(interfaces.indices(), Some([0, WAN]));
    }

    #[test]
    fn a_high_index_equals_no_other() {
        let (high, higher) = (u32::from(u16::MAX), 1 << 16);
        let mut interfaces = after_syn_ack();
        assert_eq!(interfaces.take_output(Side::Client, high), None);
        assert_eq!(interfaces.take_output(Side::Server, WAN), None);
        for index in [high, higher] {
            let question = interfaces.take_input(Side::Client, index).unwrap();
            assert_eq!((question.end, question.interface), (Side::Client, index));
        }
        assert_eq!(interfaces.indices(), None);
        assert!(!interfaces.are_doubtful());
    }
}
