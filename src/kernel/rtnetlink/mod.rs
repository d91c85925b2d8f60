//! Whether a route to an address leads to an interface, by rtnetlink, which needs no rights.
//!
//! Anybody who can forge a packet of a session causes a question, and the worker waits for the answer. So a [`Budget`]
//! bounds the time of all answers. When the time is spent, the answer is no, because only an opening has to be certain.

mod messages;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::ControlFlow::{self, Break, Continue},
    time::{Duration, Instant},
};

use ftp_alg_core::engine::{KernelError, RouteLookup};
use libc::{RTM_GETROUTE, RTM_GETRULE};

use self::messages::{
    Nexthop, RTM_GETNEXTHOP, Route, RouteRequest, RoutingRule, nexthop_request, parse_mark_rule,
    parse_nexthop, parse_route, parse_rule, rules_request, table_request,
};
use super::{
    budget::{Budget, Stopwatch},
    netlink::{DONE, ERROR, Message, Socket, put_message},
};

/// Addresses that only default routes cover (RFC 5737, RFC 3849).
const FAR: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(192, 0, 2, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
const MAIN: u32 = libc::RT_TABLE_MAIN as u32;
/// The time after which reading of a routing table ends. The kernel's own walk to the first route that leads to the
/// interface cannot be ended: it takes 150 ms in a table of 300,000 routes (IPv6: 450 ms).
const LONGEST_DUMP: Duration = Duration::from_millis(200);
/// Errors that mean: no route, or one that refuses. The interface or the nexthop object may have been deleted.
const NO_OBJECT: [i32; 6] =
    [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL, libc::ENODEV, libc::ENOENT];
/// How often the log says that answers are missing.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// Looks routes up, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Routes {
    socket: Socket,
    /// For look-ups of single objects, each of which takes microseconds.
    look_ups: Budget,
    /// For reading of routing tables.
    dumps: Budget,
    reported: Option<Instant>,
}

/// Routing tables one of which may have a route.
struct Tables {
    /// The best route.
    best: Option<Route>,
    /// Tables that a rule names.
    of_rules: Vec<u32>,
    /// Whether the main table may have routes that look-ups do not find.
    main: bool,
}

/// How the reading of a dump ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Found,
    /// Nothing was found.
    Complete,
    /// There was no time for all of it.
    CutShort,
}

impl Routes {
    /// Opens the socket.
    pub fn new() -> io::Result<Self> {
        let [look_ups, dumps] = [(); 2].map(|()| Budget::new(Instant::now()));
        Ok(Self { socket: open()?, look_ups, dumps, reported: None })
    }

    /// Whether a route to the address leads to the interface (feasible reverse path, RFC 3704 section 2.3):
    ///
    /// - the best one, or one to the interface of its VRF;
    /// - another one with the same prefix in any routing table, for example a default route with a higher metric, or
    ///   that of another uplink;
    /// - a default route, if the best one leads to a router on an interface that has a default route as well.
    pub fn has_route(&mut self, lookup: RouteLookup) -> Result<bool, KernelError> {
        let what = || format!("route to {}", lookup.address);
        self.find(lookup).map_err(|source| KernelError::System { what: what(), source })
    }

    /// Whether a default route leads to the interface, as far as is known.
    pub fn is_uplink(&mut self, interface: u32) -> bool {
        [IpAddr::V4(FAR.0), IpAddr::V6(FAR.1)].into_iter().any(|address| {
            let lookup = RouteLookup { address, interface, used: 0, mark: 0 };
            // This machine may have no IPv6.
            self.find(lookup).unwrap_or(address.is_ipv4())
        })
    }

    fn find(&mut self, lookup: RouteLookup) -> io::Result<bool> {
        let now = Instant::now();
        if !self.look_ups.allows(now) {
            self.report(now);
            return Ok(false);
        }
        let stopwatch = Stopwatch::start();
        let answer = self.look_up(lookup);
        self.look_ups.charge(stopwatch.elapsed());
        match answer? {
            Break(answer) => Ok(answer),
            Continue(tables) => self.read_tables(lookup, tables),
        }
    }

    /// The answer as far as look-ups give it, or else what to read.
    fn look_up(&mut self, lookup: RouteLookup) -> io::Result<ControlFlow<bool, Tables>> {
        let RouteLookup { address, interface, used, mark } = lookup;
        let anywhere = RouteRequest { address, mark, interface: None, source: None, entry: true };
        let there = RouteRequest { interface: Some(interface), ..anywhere };
        let best = self.get(anywhere)?;
        match &best {
            Some(best) if best.is_local => return Ok(Break(false)),
            Some(best) if best.interfaces.contains(&interface) => {
                return Ok(Break(true));
            }
            _ => {}
        }
        let path = self.get(there)?;
        if let Some(path) = &path {
            let leads_there = path.interfaces.contains(&interface);
            // The interface of a VRF stands for all of its ports, and has its own routing table.
            let leads_to_used = !leads_there && path.interfaces.contains(&used);
            if leads_to_used || !leads_there && path.is_exact {
                return Ok(Break(leads_to_used));
            }
            if let Some(best) = best.as_ref().filter(|_| leads_there)
                && (best.has_prefix_of(path)
                    || path.is_default() && self.leads_to_an_uplink(best, anywhere)?)
            {
                return Ok(Break(true));
            }
        }
        let rules = self.rules(address)?;
        // Most tables are found by a look-up that meets the conditions of their rule.
        for RoutingRule { table, mark, source } in &rules {
            let found = self.get(RouteRequest {
                mark: mark.unwrap_or(there.mark),
                source: *source,
                ..there
            })?;
            if let Some(found) = found
                && found.is_exact
                && found.table == *table
                && found.interfaces.contains(&interface)
                && best.as_ref().is_none_or(|best| best.has_prefix_of(&found))
            {
                return Ok(Break(true));
            }
        }
        let main = match (&best, &path) {
            (Some(best), path) if address.is_ipv4() => {
                self.hides_paths(best, path.as_ref(), anywhere)?
            }
            (Some(best), Some(path)) => !best.is_exact || !path.is_exact,
            _ => false,
        };
        let mut of_rules: Vec<_> = rules.iter().map(|rule| rule.table).collect();
        of_rules.dedup();
        Ok(Continue(Tables { best, main, of_rules }))
    }

    /// Whether a route leads to a router on an interface that has a default route.
    fn leads_to_an_uplink(&mut self, route: &Route, request: RouteRequest) -> io::Result<bool> {
        for interface in route.interfaces.iter().filter(|_| route.has_gateway) {
            let request = RouteRequest { interface: Some(*interface), ..request.to_far() };
            if self.get(request)?.is_some_and(|default| default.is_default()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether there may be an IPv4 route that a look-up with its interface does not find: the kernel looks no further
    /// than the first nexthop object of a prefix (`goto miss` in fib_table_lookup()).
    fn hides_paths(
        &mut self,
        best: &Route,
        path: Option<&Route>,
        request: RouteRequest,
    ) -> io::Result<bool> {
        let has_object = |route: &Route| route.nexthop.is_some();
        if has_object(best) || path.is_some_and(has_object) {
            return Ok(true);
        }
        // A route to a router leads to uplinks, whose default routes may be hidden.
        Ok(best.has_gateway && self.get(request.to_far())?.as_ref().is_some_and(has_object))
    }

    fn read_tables(&mut self, lookup: RouteLookup, tables: Tables) -> io::Result<bool> {
        let RouteLookup { address, interface, .. } = lookup;
        let Tables { mut best, of_rules, main } = tables;
        if !main && of_rules.is_empty() {
            return Ok(false);
        }
        if let Some(best) = best.as_mut().filter(|best| !best.is_exact) {
            let Some(length) = self.longest_prefix(best, address)? else { return Ok(false) };
            (best.prefix_length, best.is_exact) = (length, true);
        }
        let is_path = |route: &Route| {
            route.covers(address) && best.as_ref().is_none_or(|best| best.has_prefix_of(route))
        };
        for table in main.then_some(MAIN).into_iter().chain(of_rules) {
            if self.has_route_in(table, address, interface, is_path)? {
                return Ok(true);
            }
        }
        let Some(best) = best.as_ref().filter(|best| main && best.has_gateway) else {
            return Ok(false);
        };
        if self.has_route_in(MAIN, address, interface, Route::is_default)? {
            for interface in &best.interfaces {
                if self.has_route_in(MAIN, address, *interface, Route::is_default)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// The rules that name a routing table, without those that a lookup without a rule's conditions uses.
    fn rules(&mut self, of_family: IpAddr) -> io::Result<Vec<RoutingRule>> {
        let mut rules = Vec::new();
        dump(RTM_GETRULE, &rules_request(of_family), |message| {
            rules.extend(parse_rule(message.body));
            false
        })?;
        let usual = [libc::RT_TABLE_MAIN, libc::RT_TABLE_LOCAL, libc::RT_TABLE_UNSPEC];
        rules.retain(|RoutingRule { table, .. }| !usual.contains(&(*table as u8)) || *table > 255);
        rules.sort_unstable();
        rules.dedup();
        Ok(rules)
    }

    /// The length of the prefix of the best route, according to the main table; `None` if that is not certain.
    fn longest_prefix(&mut self, best: &Route, address: IpAddr) -> io::Result<Option<u8>> {
        let Some(interface) = best.interfaces.first() else { return Ok(None) };
        let mut longest = None;
        let reading = self.read_table(MAIN, address, *interface, |route| {
            longest = longest.max(route.covers(address).then_some(route.prefix_length));
            false
        })?;
        Ok(longest.filter(|_| reading == Reading::Complete))
    }

    /// Whether a table has such a route that leads to an interface. The answer is no if there is no time to read the
    /// table.
    fn has_route_in(
        &mut self,
        table: u32,
        of_family: IpAddr,
        interface: u32,
        is_it: impl Fn(&Route) -> bool,
    ) -> io::Result<bool> {
        Ok(self.read_table(table, of_family, interface, is_it)? == Reading::Found)
    }

    /// Reads the routes of a table that lead to an interface, until `is_it` accepts one.
    fn read_table(
        &mut self,
        table: u32,
        of_family: IpAddr,
        interface: u32,
        mut is_it: impl FnMut(&Route) -> bool,
    ) -> io::Result<Reading> {
        let now = Instant::now();
        if !self.dumps.allows(now) {
            self.report(now);
            return Ok(Reading::CutShort);
        }
        let stopwatch = Stopwatch::start();
        let reading = dump(RTM_GETROUTE, &table_request(of_family, table, interface), |message| {
            parse_route(message.body).as_ref().is_some_and(&mut is_it)
        });
        self.dumps.charge(stopwatch.elapsed());
        reading
    }

    /// The route that a request asks for, with its interfaces.
    fn get(&mut self, request: RouteRequest) -> io::Result<Option<Route>> {
        let Some(mut route) = self.get_route(request)? else { return Ok(None) };
        let Some(id) = route.nexthop else { return Ok(Some(route)) };
        if request.address.is_ipv6() {
            // rt6_get_pcpu_route() may find the entry of another route with the same nexthop object.
            let Some(packet) = self.get_route(RouteRequest { entry: false, ..request })? else {
                return Ok(None);
            };
            (route.interfaces, route.has_gateway) = (packet.interfaces, packet.has_gateway);
            (route.is_local, route.is_exact) = (packet.is_local, false);
        } else if route.interfaces.is_empty()
            && let Some(nexthop) = self.nexthop(id)?
        {
            // With net.ipv4.nexthop_compat_mode=0 the kernel does not say where a nexthop object leads.
            route.interfaces.extend(nexthop.interface);
            route.has_gateway = nexthop.has_gateway || !nexthop.members.is_empty();
            for member in nexthop.members {
                route.interfaces.extend(self.nexthop(member)?.and_then(|member| member.interface));
            }
        }
        Ok(Some(route))
    }

    fn get_route(&mut self, request: RouteRequest) -> io::Result<Option<Route>> {
        self.ask(RTM_GETROUTE, &request.body(), parse_route)
    }

    fn nexthop(&mut self, id: u32) -> io::Result<Option<Nexthop>> {
        self.ask(RTM_GETNEXTHOP, &nexthop_request(id), parse_nexthop)
    }

    /// Asks for one object.
    fn ask<T>(
        &mut self,
        kind: u16,
        body: &[u8],
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> io::Result<Option<T>> {
        let mut object = None;
        let each = |message: &Message<'_>| object = parse(message.body);
        let answered = self.socket.request(kind, 0, body, |_| {}, each);
        match answered {
            Err(error) if error.raw_os_error().is_some_and(|errno| NO_OBJECT.contains(&errno)) => {
                Ok(None)
            }
            answered => answered.map(|_| object),
        }
    }

    /// Says that an answer is missing, from time to time.
    #[cold]
    fn report(&mut self, now: Instant) {
        let is_due = self.reported.is_none_or(|then| now.duration_since(then) >= REPORT_INTERVAL);
        if is_due {
            self.reported = Some(now);
            tracing::warn!(
                "route look-ups take more than a tenth of the time: some are left out, so what arrives on another \
                 interface opens nothing"
            );
        }
    }
}

/// The rules of policy routing (`ip rule`) of this network namespace that compare the packet mark of TCP packets.
pub fn mark_rules() -> io::Result<Vec<ftp_alg_firewall::RoutingRule>> {
    // A kernel without policy routing has none, and one without IPv6 none of that family.
    const ABSENT: [Option<i32>; 2] = [Some(libc::EOPNOTSUPP), Some(libc::EAFNOSUPPORT)];
    let mut rules = Vec::new();
    let mut socket = Socket::open_route()?;
    for family in [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()] {
        let each = |message: &Message<'_>| rules.extend(parse_mark_rule(message.body));
        if let Err(error) = socket.dump(RTM_GETRULE, &rules_request(family), each)
            && !ABSENT.contains(&error.raw_os_error())
        {
            return Err(error);
        }
    }
    Ok(rules)
}

impl RouteRequest {
    /// The same request for an address that only default routes cover.
    fn to_far(self) -> Self {
        let address = if self.address.is_ipv4() { FAR.0.into() } else { FAR.1.into() };
        Self { address, ..self }
    }
}

fn open() -> io::Result<Socket> {
    let socket = Socket::open_route()?;
    // A dump has only the routes that the request describes.
    socket.set_option(libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, 1)?;
    Ok(socket)
}

/// Reads a dump until `is_it` accepts a message, or for [`LONGEST_DUMP`]: the end of the socket ends the dump. A table
/// that does not exist any more has none.
fn dump(
    kind: u16,
    body: &[u8],
    mut is_it: impl FnMut(&Message<'_>) -> bool,
) -> io::Result<Reading> {
    let mut socket = open()?;
    let sequence = socket.next_sequence();
    let mut request = Vec::new();
    put_message(&mut request, kind, libc::NLM_F_DUMP, sequence, body, |_| {});
    let (mut reading, mut errno) = (Reading::CutShort, 0);
    let stopwatch = Stopwatch::start();
    socket.ask_by_datagram(&request, |messages| {
        for message in messages.filter(|message| message.sequence == sequence) {
            match message.kind {
                _ if reading == Reading::Found => {}
                ERROR | DONE => (reading, errno) = (Reading::Complete, message.errno()),
                _ if is_it(&message) => reading = Reading::Found,
                _ => {}
            }
        }
        match reading == Reading::CutShort && stopwatch.elapsed() < LONGEST_DUMP {
            true => Continue(()),
            false => Break(()),
        }
    })?;
    match errno {
        0 | libc::ENOENT | libc::ENODEV => Ok(reading),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}
