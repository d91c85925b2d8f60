//! What a valid configuration allows, or leaves without effect, although its operator may not expect that.

use std::{net::IpAddr, ops::RangeInclusive};

use ftp_alg_core::policy::NetworkPolicy;
use ipnetwork::IpNetwork;

use super::{Backend, Config};

/// Number of passive ports of a server that is enough for many transfers.
const MANY_PORTS: usize = 1000;
/// Limit of passive ports of a server with the back end `conntrack`, which has an expectation for each.
pub const MAX_EXPECTED_PORTS: usize = 64;

/// Services above port 1023 that are often on the machine of an FTP server. A client without a login of the FTP server
/// reaches them there. Many ask for no password (Docker, Elasticsearch, memcached, NFS, Redis), and the others are those that
/// an attacker tries first: databases, and what administers the machine.
const SERVICES: [(u16, &str); 20] = [
    (1433, "SQL Server"),
    (1521, "Oracle"),
    (2049, "NFS"),
    (2375, "Docker"),
    (3306, "MySQL"),
    (3389, "Remote Desktop"),
    (5432, "PostgreSQL"),
    (5900, "VNC"),
    (5985, "WinRM"),
    (6000, "X11"),
    (6379, "Redis"),
    (6443, "Kubernetes"),
    (8080, "HTTP"),
    (8443, "HTTPS"),
    (9090, "Cockpit"),
    (9200, "Elasticsearch"),
    (10000, "Webmin"),
    (11211, "memcached"),
    (14148, "FileZilla Server's administration"),
    (27017, "MongoDB"),
];

impl Config {
    /// One line for each warning. `backend` is the back end in use, if it is known.
    pub fn warnings(&self, backend: Option<Backend>) -> Vec<String> {
        let refuses = self.limits.refuses_auth();
        let is_refused = |network: &NetworkPolicy| network.policy.refuses_auth();
        let inspected = || self.networks.iter().filter(|network| network.inspect);
        let in_networks = inspected().filter(|network| !refuses && is_refused(network));
        let refusing = refuses.then(|| "policy.auth-tls".to_owned());
        let refusing = refusing.into_iter().chain(in_networks.map(|one| key_of(one, "auth-tls")));
        let mut warnings: Vec<_> = refusing
            .map(|key| {
                format!(
                    "{key}: \"refuse\" makes clients log in without TLS, so passwords and files cross the network in the \
                     clear; \"pass\" and passive-ports let them use FTPS"
                )
            })
            .collect();
        let has_no_tls = refuses && inspected().all(is_refused);
        let of_servers = self.servers.iter().map(|server| {
            let key = format!("server.passive-ports of {}", server.address);
            (key, &server.passive_ports, has_no_tls, false)
        });
        let of_networks = inspected().map(|one| {
            let key = key_of(one, "passive-ports");
            (key, &one.policy.passive_ports, is_refused(one), is_of_others(one))
        });
        for (key, ports, has_no_tls, are_of_others) in of_servers.chain(of_networks) {
            // Implicit TLS needs no AUTH.
            if has_no_tls && self.implicit_tls_ports.is_empty() && !ports.is_empty() {
                let why =
                    "has no effect, because auth-tls = \"refuse\" lets no session be encrypted";
                warnings.push(format!("{key}: {why}"));
            }
            let said = match are_of_others {
                true => [too_many_expected(ports, backend), None],
                false => [too_many(ports, backend), services_in(ports)],
            };
            let said = said.into_iter().flatten();
            warnings.extend(said.map(|text| format!("{key}: {text}")));
        }
        warnings
    }
}

/// A key of a `[[network]]`, with the first of the table's servers or clients.
fn key_of(NetworkPolicy { clients, servers, .. }: &NetworkPolicy, key: &str) -> String {
    let first = servers.iter().chain(clients).next();
    first.map_or_else(String::new, |first| format!("network.{key} of {first}"))
}

/// Whether the ports are `any`, of servers that are not in our networks. Their operators answer for these ports.
fn is_of_others(NetworkPolicy { servers, policy, .. }: &NetworkPolicy) -> bool {
    let is_private = |network: &IpNetwork| match network.network() {
        IpAddr::V4(first) => first.is_private() || first.is_loopback(),
        IpAddr::V6(first) => first.is_unique_local() || first.is_loopback(),
    };
    policy.passive_ports_are_any && !servers.iter().any(is_private)
}

fn count(ports: &[RangeInclusive<u16>]) -> usize {
    ports.iter().map(ExactSizeIterator::len).sum()
}

fn too_many_expected(ports: &[RangeInclusive<u16>], backend: Option<Backend>) -> Option<String> {
    let count = count(ports);
    (backend == Some(Backend::Conntrack) && count > MAX_EXPECTED_PORTS).then(|| {
        format!(
            "{count} ports: the back end conntrack opens {MAX_EXPECTED_PORTS} of a server at most: give fewer, here and in \
             the server"
        )
    })
}

fn too_many(ports: &[RangeInclusive<u16>], backend: Option<Backend>) -> Option<String> {
    let count = count(ports);
    too_many_expected(ports, backend).or_else(|| {
        (count > MANY_PORTS).then(|| {
            format!(
                "{count} ports: a client reaches each without a login: give fewer, here and in the server; 100 are enough \
                 for most"
            )
        })
    })
}

/// Whether other services may listen at some of these ports.
pub fn may_have_services(ports: &[RangeInclusive<u16>]) -> bool {
    services_in(ports).is_some()
}

fn services_in(ports: &[RangeInclusive<u16>]) -> Option<String> {
    let is_in = |port| ports.iter().any(|range| range.contains(&port));
    let found = SERVICES.iter().filter(|(port, _)| is_in(*port));
    let found: Vec<_> = found.map(|(port, service)| format!("{port} ({service})")).collect();
    (!found.is_empty()).then(|| {
        format!(
            "has ports at which other services may listen, and clients reach them without a login: {}; choose others, such as \
             50000-50100",
            found.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::tests::rows;

    fn warnings(text: &str, backend: Option<Backend>) -> Vec<String> {
        Config::parse(text, Path::new("f")).unwrap().warnings(backend)
    }

    #[test]
    fn each_warning_names_its_key_and_what_to_do() {
        let clear = "\"refuse\" makes clients log in without TLS, so passwords and files cross the network in the clear; \
                     \"pass\" and passive-ports let them use FTPS";
        let no_effect = "has no effect, because auth-tls = \"refuse\" lets no session be encrypted";
        for (text, expected) in rows(
            r#"
            policy.auth-tls = "refuse" => policy.auth-tls: CLEAR
            policy.auth-tls = "refuse" / [[network]] / servers = "10.0.0.0/8" => policy.auth-tls: CLEAR
            [[network]] / clients = "10.1.0.0/16" / servers = "10.0.0.0/8" / auth-tls = "refuse" => network.auth-tls of 10.0.0.0/8: CLEAR
            [[network]] / clients = "10.1.0.0/16" / passive-ports = "50000-51000" => network.passive-ports of 10.1.0.0/16: 1001 ports: a client reaches each without a login: give fewer, here and in the server; 100 are enough for most
            [[server]] / address = "10.0.0.5" / passive-ports = [3306, "8000-8500"] => server.passive-ports of 10.0.0.5: has ports at which other services may listen, and clients reach them without a login: 3306 (MySQL), 8080 (HTTP), 8443 (HTTPS); choose others, such as 50000-50100
            policy.auth-tls = "refuse" / [[server]] / address = "10.0.0.5" / passive-ports = 50000 => policy.auth-tls: CLEAR|server.passive-ports of 10.0.0.5: NO_EFFECT
            [[network]] / servers = "10.0.0.0/8" / auth-tls = "refuse" / passive-ports = 50000 => network.auth-tls of 10.0.0.0/8: CLEAR|network.passive-ports of 10.0.0.0/8: NO_EFFECT
            "#,
        ) {
            let expected = expected.replace("CLEAR", clear).replace("NO_EFFECT", no_effect);
            assert_eq!(warnings(&text, None).join("|"), expected, "{text}");
        }
    }

    #[test]
    fn usual_configurations_have_no_warnings() {
        for text in [
            "",
            "[[server]]\naddress = \"10.0.0.5\"\npassive-ports = \"50000-50999\"",
            "[[network]]\nservers = \"10.0.0.0/8\"\ninspect = false",
            "[[network]]\nservers = \"0.0.0.0/0\"\npassive-ports = \"any\"",
            "[[network]]\nclients = \"10.0.0.0/8\"\npassive-ports = \"1024-65535\"",
        ] {
            assert_eq!(warnings(text, Some(Backend::Nftables)), [""; 0], "{text}");
        }
    }

    #[test]
    fn passive_ports_have_an_effect_where_some_sessions_are_encrypted() {
        let server = "[[server]]\naddress = \"10.0.0.5\"\npassive-ports = 50000\n";
        for text in [
            "implicit-tls-ports = [990]\npolicy.auth-tls = \"refuse\"\n",
            "policy.auth-tls = \"refuse\"\n[[network]]\nclients = \"10.1.0.0/16\"\nauth-tls = \"pass\"\n",
        ] {
            let warnings = warnings(&format!("{text}{server}"), None);
            assert!(warnings.len() == 1 && warnings[0].starts_with("policy.auth-tls"), "{text}");
        }
    }

    #[test]
    fn the_back_end_conntrack_has_fewer_ports() {
        let server =
            |ports| format!("[[server]]\naddress = \"10.0.0.5\"\npassive-ports = {ports:?}");
        let of = |ports, backend| warnings(&server(ports), Some(backend)).concat();
        assert_eq!(of("50000-50063", Backend::Conntrack), "");
        assert_eq!(of("50000-50064", Backend::Nftables), "");
        let any = "[[network]]\nservers = \"0.0.0.0/0\"\npassive-ports = \"any\"";
        assert!(
            warnings(any, Some(Backend::Conntrack)).concat().contains("64512 ports: the back end")
        );
        // These are nobody else's.
        let own = any.replace("0.0.0.0/0", "10.0.0.0/8");
        assert_eq!(warnings(&own, Some(Backend::Nftables)).len(), 2);
        let said = of("50000-50064", Backend::Conntrack);
        assert!(said.contains("65 ports: the back end conntrack opens 64"), "{said}");
    }
}
