//! `ftp-alg setup --pair`: the files of two gateways, of which one may fail.

use std::{
    fmt::Display,
    fs,
    io::{self, IsTerminal as _, Write as _},
    net::Ipv4Addr,
    path::PathBuf,
    str::FromStr,
};

use clap::Args;
use ipnetwork::IpNetwork;

use crate::cli::{Failure, output};

/// Both machines, each with its priority. The greater one is active if both start at once.
const MACHINES: [(&str, &str); 2] = [("gw-1", "150"), ("gw-2", "100")];
/// The virtual router of the first address.
const FIRST_ROUTER: usize = 51;
/// The files of a machine.
const FILES: [(&str, &str); 7] = [
    ("etc/keepalived/keepalived.conf", include_str!("pair/keepalived.conf")),
    ("etc/conntrackd/conntrackd.conf", include_str!("pair/conntrackd.conf")),
    ("etc/redis-ftp-alg.conf", include_str!("pair/redis.conf")),
    ("etc/systemd/system/redis-ftp-alg.service", include_str!("pair/redis.service")),
    ("etc/ftp-alg.toml", include_str!("pair/ftp-alg.toml")),
    ("etc/nftables.conf", include_str!("pair/nftables.conf")),
    ("etc/sysctl.d/ftp-alg-pair.conf", include_str!("pair/sysctl.conf")),
];
/// A virtual router of keepalived.
const INSTANCE: &str = include_str!("pair/instance.conf");

#[derive(Args, Debug)]
pub(super) struct PairOptions {
    /// Print the files of two gateways, of which one may fail
    #[arg(long, conflicts_with_all = ["apply", "undo", "check", "gateway", "json"])]
    pub(super) pair: bool,
    /// With --pair: write the files below DIR/gw-1 and DIR/gw-2
    #[arg(long, value_name = "DIR", requires = "pair")]
    output: Option<PathBuf>,
    /// With --pair: the interface of the link between both
    #[arg(long, value_name = "IF", requires = "pair")]
    link: Option<String>,
    /// With --pair: the address of gw-1 on the link
    #[arg(long, value_name = "IP", requires = "pair")]
    gw_1: Option<Ipv4Addr>,
    /// With --pair: the address of gw-2 on the link
    #[arg(long, value_name = "IP", requires = "pair")]
    gw_2: Option<Ipv4Addr>,
    /// With --pair: interfaces to clients with their virtual addresses
    #[arg(long, value_name = "IF=IP/LENGTH,..", requires = "pair")]
    inside: Option<Side>,
    /// With --pair: interfaces to servers with their virtual addresses
    #[arg(long, value_name = "IF=IP/LENGTH,..", requires = "pair")]
    outside: Option<Side>,
}

impl PairOptions {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let pair = Pair {
            link: answer(self.link.as_ref(), "The interface of the link between both, as sync0")?,
            own: [
                answer(self.gw_1.as_ref(), "The address of gw-1 on the link, as 10.99.0.1")?,
                answer(self.gw_2.as_ref(), "The address of gw-2 on the link, as 10.99.0.2")?,
            ],
            inside: answer(self.inside.as_ref(), "To clients, as lan0=10.0.0.1/24")?,
            outside: answer(self.outside.as_ref(), "To servers, as wan0=198.51.100.1/24")?,
        };
        for (number, (machine, _)) in MACHINES.iter().enumerate() {
            for (path, content) in pair.files(number) {
                let Some(directory) = &self.output else {
                    output::print(&format!("==> {machine}: /{path}\n{content}\n"))?;
                    continue;
                };
                let file = directory.join(machine).join(path);
                fs::create_dir_all(file.parent().unwrap_or(directory))
                    .and_then(|()| fs::write(&file, content))
                    .map_err(|error| {
                        Failure::Failed(format!("cannot write {}: {error}", file.display()))
                    })?;
            }
        }
        Ok(())
    }
}

/// The answer that an option gives, or that somebody at the terminal gives.
fn answer<T>(given: Option<&T>, question: &str) -> Result<T, Failure>
where
    T: Clone + FromStr<Err: Display>,
{
    if let Some(given) = given {
        return Ok(given.clone());
    }
    if !io::stdin().is_terminal() {
        let needed = "--pair needs --link, --gw-1, --gw-2, --inside and --outside, or a terminal";
        return Err(Failure::Usage(needed.to_owned()));
    }
    loop {
        let mut stderr = io::stderr();
        write!(stderr, "{question}: ").and_then(|()| stderr.flush()).map_err(Failure::failed)?;
        let mut line = String::new();
        if io::stdin().read_line(&mut line).map_err(Failure::failed)? == 0 {
            return Err(Failure::failed("no answer"));
        }
        match line.trim().parse() {
            Ok(answer) => return Ok(answer),
            Err(error) => writeln!(stderr, "{error}").map_err(Failure::failed)?,
        }
    }
}

/// The interfaces of one side, each with a virtual address.
#[derive(Clone, Debug)]
struct Side(Vec<(String, IpNetwork)>);

impl FromStr for Side {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = |part: &str| {
            let (interface, address) = part.trim().split_once('=')?;
            let address = address.parse().ok().filter(|_| address.contains('/'))?;
            (!interface.is_empty()).then(|| (interface.to_owned(), address))
        };
        let addresses: Option<_> = text.split(',').map(address).collect();
        addresses.map(Self).ok_or_else(|| format!("`{text}` is not like lan0=10.0.0.1/24"))
    }
}

impl Side {
    /// The interfaces for a set of nft.
    fn interfaces(&self) -> String {
        self.0.iter().map(|(name, _)| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
    }
}

/// A pair of gateways.
struct Pair {
    link: String,
    /// The address of each machine on the link.
    own: [Ipv4Addr; 2],
    inside: Side,
    outside: Side,
}

impl Pair {
    /// The files of a machine: paths and texts.
    fn files(&self, machine: usize) -> [(&'static str, String); 7] {
        let (names, instances) = self.instances();
        let has_v6 = self.inside.0.iter().chain(&self.outside.0).any(|(_, one)| one.is_ipv6());
        let (name, priority) = MACHINES[machine];
        let values = [
            ("@INSTANCES@\n", instances),
            ("@NAMES@", names),
            ("@MACHINE@", name.to_owned()),
            ("@PRIORITY@", priority.to_owned()),
            ("@LINK@", self.link.clone()),
            ("@OWN@", self.own[machine].to_string()),
            ("@PEER@", self.own[1 - machine].to_string()),
            ("@INSIDE@", self.inside.interfaces()),
            ("@OUTSIDE@", self.outside.interfaces()),
            ("@SNAT@", self.source_nat()),
            ("@V6@", if has_v6 { "" } else { "# " }.to_owned()),
        ];
        FILES.map(|(path, template)| (path, filled(template, &values)))
    }

    /// The virtual routers, one for each address: their names, and their texts.
    fn instances(&self) -> (String, String) {
        let (mut names, mut texts) = (String::new(), String::new());
        let addresses = self.inside.0.iter().chain(&self.outside.0);
        for (router, (interface, address)) in (FIRST_ROUTER..).zip(addresses) {
            // VRRP wants a link-local address first. Hosts have it as their router.
            let first = format!("fe80::{router}/64\n    ");
            let first = if address.is_ipv6() { first } else { String::new() };
            let values = [
                ("@ID@", router.to_string()),
                ("@INTERFACE@", interface.clone()),
                ("@ADDRESSES@", first + &address.to_string()),
            ];
            names += &format!(" router{router}");
            texts += &filled(INSTANCE, &values);
        }
        (names, texts)
    }

    /// The rules that translate inner IPv4 addresses to the virtual one of each interface outside.
    fn source_nat(&self) -> String {
        let mut rules = String::new();
        for (to, outer) in self.outside.0.iter().filter(|(_, outer)| outer.is_ipv4()) {
            for (_, inner) in self.inside.0.iter().filter(|(_, inner)| inner.is_ipv4()) {
                let (from, length) = (inner.network(), inner.prefix());
                let outer = outer.ip();
                rules +=
                    &format!("\t\toifname \"{to}\" ip saddr {from}/{length} snat ip to {outer}\n");
            }
        }
        rules
    }
}

fn filled(template: &str, values: &[(&str, String)]) -> String {
    values.iter().fold(template.to_owned(), |text, (name, value)| text.replace(name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_both_machines_have_their_addresses() {
        let pair = Pair {
            link: "sync0".parse().unwrap(),
            own: [[10, 99, 0, 1].into(), [10, 99, 0, 2].into()],
            inside: "lan0=10.0.0.1/24, lan0=fd00:150::1/64,lan1=10.1.0.1/24".parse().unwrap(),
            outside: "wan0=198.51.100.1/24".parse().unwrap(),
        };
        let [one, other] = [0, 1].map(|machine| pair.files(machine).map(|(_, text)| text).concat());
        let is_filled =
            |text: &str| !text.split('@').skip(1).any(|part| part.starts_with(char::is_uppercase));
        assert!(is_filled(&one) && is_filled(&other), "{one}");
        for line in [
            "group { router51 router52 router53 router54 }",
            "  interface lan0\n  virtual_router_id 51\n  priority 150\n",
            "  virtual_ipaddress {\n    fe80::52/64\n    fd00:150::1/64\n  }",
            "oifname \"wan0\" ip saddr 10.1.0.0/24 snat ip to 198.51.100.1\n",
            "\nnet.ipv6.conf.all.forwarding = 1",
            "peer = \"10.99.0.2:6379\"",
        ] {
            assert!(one.contains(line), "{line}\n{one}");
        }
        assert!(other.contains("peer = \"10.99.0.1:6379\""), "{other}");
    }

    #[test]
    fn only_interfaces_and_prefixes_are_sides() {
        for wrong in ["lan0", "lan0=10.0.0.1", "=10.0.0.1/24", "lan0=x/24", ""] {
            assert!(wrong.parse::<Side>().is_err(), "{wrong}");
        }
    }
}
