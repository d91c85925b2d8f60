//! The line that a firewall lacks, in its own language and with its own names, and where to keep
//! it so that it is still there tomorrow.

use super::{
    ChainLocation, Hook, Origin, PacketClass, TableFamily,
    model::{RuleVerdict, Table},
};
use crate::gateway::RuleParameters;

/// Programs that write rule sets by themselves, and so overwrite what others add.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RulesetManager {
    Ufw,
    Firewalld,
    Docker,
    /// OpenWrt's fw4.
    Fw4,
}

impl RulesetManager {
    fn for_table(table: &Table) -> Option<Self> {
        let has = |start: &str| table.chains.keys().any(|name| name.starts_with(start));
        match table.origin {
            Origin::Nftables => match table.name.as_str() {
                "firewalld" => Some(Self::Firewalld),
                "fw4" => Some(Self::Fw4),
                _ => None,
            },
            _ if has("ufw-") || has("ufw6-") => Some(Self::Ufw),
            _ if has("FORWARD_direct") => Some(Self::Firewalld),
            _ if has("DOCKER") => Some(Self::Docker),
            _ => None,
        }
    }

    /// How to keep a rule, which the command alone only adds until the next reload.
    pub fn persistence_advice(
        self,
        place: &ChainLocation,
        sign: PacketClass,
        parameters: &RuleParameters,
    ) -> String {
        let hook = place.chain.to_ascii_lowercase();
        match self {
            Self::Ufw => {
                let (file, prefix) = match place.family {
                    TableFamily::Ip6 => ("before6.rules", "ufw6"),
                    _ => ("before.rules", "ufw"),
                };
                let condition = condition(place.origin, sign, parameters);
                format!(
                    "to keep it over a reload of ufw, put this into /etc/ufw/{file}: \
                     -A {prefix}-before-{hook} {condition} -j ACCEPT"
                )
            }
            Self::Firewalld if place.has_owner => {
                "firewalld owns its table: set NftablesTableOwner=no \
                in /etc/firewalld/firewalld.conf and restart it, else nobody can add a rule"
                    .to_owned()
            }
            Self::Firewalld => "firewalld forgets it at each reload: add it again then".to_owned(),
            Self::Docker => "to keep it over a restart, load it as your other iptables rules; \
                Docker leaves DOCKER-USER alone"
                .to_owned(),
            Self::Fw4 => {
                let condition = condition(place.origin, sign, parameters);
                format!(
                    "to keep it over a reload of fw4, put `{condition} accept` into \
                     /usr/share/nftables.d/chain-pre/{hook}/ftp-alg.nft"
                )
            }
        }
    }
}

/// The base chain `name` of `table`.
pub(super) fn chain_location(table: &Table, name: &str, hook: Hook) -> ChainLocation {
    // Docker sends everything through this chain first, and never touches what is in it.
    let user = "DOCKER-USER";
    let jumps = |chain: &super::model::Chain| {
        chain.rules.iter().any(|rule| {
            rule.conditions.is_empty() && rule.action == RuleVerdict::Jump(user.to_owned())
        })
    };
    let docker = hook == Hook::Forward && table.chains.get(name).is_some_and(jumps);
    ChainLocation {
        origin: table.origin,
        family: table.family,
        table: table.name.clone(),
        chain: name.to_owned(),
        insert_into: if docker { user } else { name }.to_owned(),
        manager: RulesetManager::for_table(table),
        has_owner: table.has_owner,
    }
}

impl ChainLocation {
    /// The command that lets packets with `sign` pass here.
    pub fn accept_command(&self, sign: PacketClass, parameters: &RuleParameters) -> String {
        let condition = condition(self.origin, sign, parameters);
        let (table, chain) = (&self.table, &self.insert_into);
        match self.origin {
            Origin::Nftables => {
                let family = self.family;
                format!("nft insert rule {family} {table} {chain} {condition} accept")
            }
            _ => {
                let program = self.program();
                // `filter` is the default, and the shorter line the more familiar one.
                let table = match table.as_str() {
                    "filter" => String::new(),
                    other => format!("-t {other} "),
                };
                format!("{program} {table}-I {chain} {condition} -j ACCEPT")
            }
        }
    }
}

/// The condition that packets with `sign` meet, in the language of `origin`.
pub fn condition(origin: Origin, sign: PacketClass, parameters: &RuleParameters) -> String {
    let (data, mask) = (parameters.data(), parameters.mask());
    match (origin, sign) {
        (Origin::Nftables, PacketClass::MarkedData) => format!("ct mark and {data:#010x} != 0"),
        (Origin::Nftables, PacketClass::RelatedData) => "ct state established,related".to_owned(),
        (Origin::Nftables, PacketClass::Injected) => format!("meta mark {mask:#010x}"),
        (_, PacketClass::MarkedData) => format!("-m connmark --mark {data:#010x}/{data:#010x}"),
        (_, PacketClass::RelatedData) => "-m conntrack --ctstate ESTABLISHED,RELATED".to_owned(),
        (_, PacketClass::Injected) => format!("-m mark --mark {mask:#010x}"),
    }
}
