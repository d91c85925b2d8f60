//! Reads the operator's firewall for `ftp_alg_firewall`: by the programs that print rules (`nft`, `iptables-save`), and
//! by rtnetlink. Changes nothing.

mod links;
mod reader;

use std::{
    io,
    sync::mpsc::{self, Receiver},
    thread,
};

use ftp_alg_firewall::{Firewall, Gateway, IpVersion, Origin, PacketClass};
use serde_json::json;

use super::{
    broker::{run_for_output, run_with_input},
    legacy_iptables::uses_legacy,
    netlink::{Socket, nft},
    parameters::{Backend, TABLE as OURS},
    rtnetlink,
};
pub use links::links;
pub use reader::RulesetReader;

/// The address families whose chains may see control or data connections.
const FAMILIES: [(i32, &str); 5] = [
    (libc::NFPROTO_IPV4, "ip"),
    (libc::NFPROTO_IPV6, "ip6"),
    (libc::NFPROTO_INET, "inet"),
    (libc::NFPROTO_NETDEV, "netdev"),
    (libc::NFPROTO_BRIDGE, "bridge"),
];

impl From<Backend> for PacketClass {
    /// The class of the data connections of a back end.
    fn from(backend: Backend) -> Self {
        match backend {
            Backend::Conntrack => Self::RelatedData,
            Backend::Nftables => Self::MarkedData,
        }
    }
}

/// Reads all rules of this network namespace.
pub fn read(gateway: Gateway) -> Firewall {
    read_rules(gateway, true)
}

/// Reads all rules without the texts of nftables rules, in a thread of its own.
pub fn read_in_background(gateway: Gateway) -> Receiver<Firewall> {
    let (sender, receiver) = mpsc::channel();
    // Nobody may wait for them any more.
    thread::spawn(move || drop(sender.send(read_rules(gateway, false))));
    receiver
}

/// Reads the rules. With `texts`, messages name nftables rules by their texts, which take longer to read; otherwise by
/// their handles. Errors go to [`Firewall::read_errors`].
fn read_rules(gateway: Gateway, texts: bool) -> Firewall {
    let json = list_tables(&["--json", "--file", "-"], |family, name| {
        let table = json!({"family": family, "name": name});
        Some(json!({"nftables": [{"list": {"table": table}}]}).to_string())
    });
    // The listing is mostly for display, so its absence is no error. It has the devices of chains at ingress and
    // egress.
    let listing = list_tables(&["--stateless", "--handle", "--file", "-"], |family, name| {
        // nft does not read a name with other characters as one word.
        let is_in_word = |one: char| one.is_ascii_alphanumeric() || "_-./".contains(one);
        let is_wanted = texts || family == "netdev";
        (is_wanted && name.chars().all(is_in_word)).then(|| format!("list table {family} {name}\n"))
    });
    let mut firewall = Firewall::new(gateway);
    let added = json.and_then(|json| {
        let added = firewall.add_nft(&json, &listing.unwrap_or_default());
        added.map_err(|error| io::Error::other(format!("cannot parse the output of nft: {error}")))
    });
    firewall.read_errors.extend(added.err().map(|error| format!("nftables: {error}")));
    match rtnetlink::mark_rules() {
        Ok(rules) => firewall.routing_rules = rules,
        Err(error) => firewall.read_errors.push(format!("ip rule: {error}")),
    }
    for ip in IpVersion::BOTH {
        let over_nft = firewall.has_iptables_tables(ip).then_some(Origin::IptablesNft);
        let legacy = uses_legacy(ip).unwrap_or_else(|error| {
            let program = Origin::IptablesLegacy.program(ip.into());
            firewall.read_errors.push(format!(
                "{program}: cannot see if it is in use: {error}; `ftp-alg doctor` as root can"
            ));
            false
        });
        let legacy = legacy.then_some(Origin::IptablesLegacy);
        for origin in over_nft.into_iter().chain(legacy) {
            match iptables_save(origin, ip) {
                Ok(text) => firewall.add_iptables_save(origin, ip, &text),
                Err(error) => {
                    firewall.read_errors.push(format!("{}: {error}", origin.program(ip.into())));
                }
            }
        }
    }
    firewall
}

/// The output of nft for every table except ours. `command` makes the nft command for one table.
///
/// Our table is left out because its sets may hold very many elements and change while nft lists them. Listing them
/// can take seconds.
fn list_tables(
    arguments: &[&str],
    command: impl Fn(&str, &str) -> Option<String>,
) -> io::Result<String> {
    let mut socket = Socket::open()?;
    let mut all = String::new();
    for (number, family) in FAMILIES {
        for name in nft::table_names(&mut socket, number)? {
            if (family, name.as_str()) == ("inet", OURS) {
                continue;
            }
            let Some(command) = command(family, &name) else { continue };
            match run_with_input("nft", arguments, &command) {
                Ok(listing) => all.push_str(&listing),
                // The table was deleted in the meantime.
                Err(_) if !nft::table_names(&mut socket, number)?.contains(&name) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(all)
}

/// The output of `iptables-save` of this variant. A system with only one variant has no suffix in the program's name.
fn iptables_save(origin: Origin, ip: IpVersion) -> io::Result<String> {
    let program = origin.program(ip.into());
    match run_for_output(&format!("{program}-save"), &[]) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let plain = if ip == IpVersion::V4 { "iptables" } else { "ip6tables" };
            let over_nft = run_for_output(plain, &["--version"])?.contains("nf_tables");
            if over_nft != (origin == Origin::IptablesNft) {
                return Err(io::Error::other(format!(
                    "in use, but its rules cannot be read: install {program}-save"
                )));
            }
            run_for_output(&format!("{plain}-save"), &[])
        }
        other => other,
    }
}
