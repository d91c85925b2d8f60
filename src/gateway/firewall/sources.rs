//! Where the rules come from: the programs that print them. Changes nothing.

use std::{
    fs, io,
    process::{Command, Stdio},
};

use super::{Firewall, Ip, Origin, nft};

/// Packagers put these programs into sbin, which is not in everyone's PATH.
const SBIN: &str = ":/usr/sbin:/sbin:/usr/local/sbin";

/// Reads what is loaded. What cannot be read is noted.
pub(super) fn read() -> Firewall {
    let mut unread = Vec::new();
    let mut take = |what: &str, output: io::Result<String>| match output {
        Ok(text) => text,
        Err(error) => {
            unread.push(format!("{what}: {error}"));
            String::new()
        }
    };
    let json = take("nftables", output_of("nft", &["--json", "list", "ruleset"]));
    // Only for the texts of rules, so its absence is no loss.
    let listing = output_of("nft", &["--stateless", "--handle", "list", "ruleset"]);
    let mut saved = Vec::new();
    for ip in Ip::BOTH {
        for origin in [Origin::IptablesNft, Origin::IptablesLegacy] {
            let used = match origin {
                Origin::IptablesLegacy => uses_legacy(ip),
                _ => nft::has_iptables_tables(&json, ip),
            };
            if used {
                let what = super::xtables::program(origin, ip);
                saved.push((origin, ip, take(what, save(origin, ip))));
            }
        }
    }
    match Firewall::parse(&json, &listing.unwrap_or_default(), &saved) {
        Ok(firewall) => Firewall { unread, ..firewall },
        Err(error) => {
            unread.push(format!("nftables: cannot read what nft printed: {error}"));
            let rest = Firewall::parse("", "", &saved).unwrap_or_default();
            Firewall { unread, ..rest }
        }
    }
}

/// Whether tables of the old kind are in use. Asking `iptables-legacy` itself would make them.
fn uses_legacy(ip: Ip) -> bool {
    let file = match ip {
        Ip::V4 => "/proc/thread-self/net/ip_tables_names",
        Ip::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    fs::read_to_string(file).is_ok_and(|names| !names.trim().is_empty())
}

/// What `iptables-save` of this variant prints. Where there is only one variant, it has no suffix.
fn save(origin: Origin, ip: Ip) -> io::Result<String> {
    let program = super::xtables::program(origin, ip);
    match output_of(&format!("{program}-save"), &[]) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let plain = if ip == Ip::V4 { "iptables" } else { "ip6tables" };
            let over_nft = output_of(plain, &["--version"])?.contains("nf_tables");
            if over_nft != (origin == Origin::IptablesNft) {
                return Err(io::Error::other(format!(
                    "it is in use, but {program}-save is not installed, so its rules are not known"
                )));
            }
            output_of(&format!("{plain}-save"), &[])
        }
        other => other,
    }
}

/// What a program prints, if it succeeds; else what it said.
pub(in crate::gateway) fn output_of(program: &str, arguments: &[&str]) -> io::Result<String> {
    let path = std::env::var("PATH").unwrap_or_default() + SBIN;
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                io::Error::new(error.kind(), format!("{program} is not installed"))
            }
            _ => error,
        })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().next().unwrap_or("it gave no reason").trim();
    Err(io::Error::other(format!("{program} failed: {said}")))
}
