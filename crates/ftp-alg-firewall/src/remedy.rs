//! Makes the rule that a firewall lacks, in the firewall's own language and with its own names. Also says where to
//! store the rule, so that it survives a reload.

use super::{
    ChainLocation, ChainVerdict, Gateway, HidingRule, Hook, Origin, PacketClass, TableFamily,
    model::{BaseChain, LocatedChain, LocatedRule, Rule, RuleVerdict, RulesetManager, Table},
    xtables::{shell_quoted, split_words},
};

impl ChainLocation {
    /// How to make a rule permanent, if a program generates the table. The command alone adds it only until the next reload.
    pub fn persistence_advice(&self, class: PacketClass, gateway: &Gateway) -> Option<String> {
        let hook = self.chain.to_ascii_lowercase();
        let condition = condition(self.origin, class, gateway);
        Some(match self.manager? {
            RulesetManager::Ufw => {
                let (file, prefix) = match self.family {
                    TableFamily::Ip6 => ("before6.rules", "ufw6"),
                    _ => ("before.rules", "ufw"),
                };
                format!(
                    "a reload of ufw removes it: to make it permanent, add this line to /etc/ufw/{file}: \
                     -A {prefix}-before-{hook} {condition} -j ACCEPT"
                )
            }
            RulesetManager::Firewalld if self.has_owner => {
                "firewalld owns its table, so no other program can add a rule: set \
                NftablesTableOwner=no in /etc/firewalld/firewalld.conf and restart firewalld"
                    .to_owned()
            }
            RulesetManager::Firewalld => {
                "each reload of firewalld removes it: add it again after a reload".to_owned()
            }
            RulesetManager::Docker => {
                "a restart removes it: to make it permanent, load it together with your \
                other iptables rules; Docker does not change DOCKER-USER"
                    .to_owned()
            }
            RulesetManager::Fw4 => {
                format!(
                    "a reload of fw4 removes it: to make it permanent, write `{condition} accept` to \
                     /usr/share/nftables.d/chain-pre/{hook}/ftp-alg.nft"
                )
            }
        })
    }
}

/// The chain that Docker jumps to first. It never changes the rules in it.
const DOCKER_USER: &str = "DOCKER-USER";

impl LocatedChain<'_> {
    pub(crate) fn location(&self) -> ChainLocation {
        let Self { table, name, base: BaseChain { hook, priority, .. } } = *self;
        let jumps = |rule: &Rule| {
            let user = |to: &RuleVerdict| matches!(to, RuleVerdict::Jump(to) if to == DOCKER_USER);
            rule.conditions.is_empty() && user(&rule.action)
        };
        let docker = hook == Hook::Forward
            && table.chains.get(name).is_some_and(|chain| chain.rules.iter().any(jumps));
        ChainLocation {
            origin: table.origin,
            family: table.family,
            table: table.name.clone(),
            chain: name.to_owned(),
            insert_into: if docker { DOCKER_USER } else { name }.to_owned(),
            manager: table.manager,
            has_owner: table.has_owner,
            hook,
            priority,
        }
    }
}

impl LocatedRule<'_> {
    /// The command that removes the rule.
    pub(crate) fn delete_command(&self) -> Option<String> {
        let Table { origin, family, name, .. } = self.table;
        if *origin == Origin::Nftables {
            let handle = self.rule.handle?;
            return Some(format!("nft delete rule {} handle {handle}", self.chain_name()));
        }
        let words = split_words(self.rule.text.strip_prefix("-A ")?);
        Some(format!("{} -t {name} -D {}", origin.program(*family), shell_quoted(&words)))
    }
}

impl ChainVerdict {
    /// Whether a rule here can recognise packets of `class`. The chains of devices see no connections.
    fn can_recognise(&self, class: PacketClass) -> bool {
        match self.location.family {
            TableFamily::Netdev => class == PacketClass::Injected,
            _ => class.is_recognised_at(self.location.hook, self.location.priority),
        }
    }

    /// The command that adds a rule here to accept packets of `class`; `None` if no rule can recognise them here.
    pub fn accept_command(&self, class: PacketClass, gateway: &Gateway) -> Option<String> {
        if self.hidden_by.is_some() || !self.can_recognise(class) {
            return None;
        }
        let ChainLocation { origin, family, table, insert_into: chain, .. } = &self.location;
        let condition = condition(*origin, class, gateway);
        let program = origin.program(*family);
        Some(match (origin, table.as_str()) {
            (Origin::Nftables, _) => {
                format!("nft insert rule {family} {table} {chain} {condition} accept")
            }
            // The default, so the shorter command is the usual one.
            (_, "filter") => format!("{program} -I {chain} {condition} -j ACCEPT"),
            _ => format!("{program} -t {table} -I {chain} {condition} -j ACCEPT"),
        })
    }

    /// What to do about a chain that drops packets of `class`, if no rule can recognise them here.
    pub fn advice_without_rule(&self, class: PacketClass, gateway: &Gateway) -> Option<String> {
        if let Some(hiding) = &self.hidden_by {
            return Some(hiding.advice(gateway));
        }
        if self.can_recognise(class) {
            return None;
        }
        let (ports, after) = match self.location.origin {
            Origin::Nftables => ("tcp dport 1024-65535 accept", "a chain of priority 0"),
            _ => ("-p tcp --dport 1024:65535 -j ACCEPT", "the chain FORWARD or INPUT"),
        };
        let (why, after) = match self.location.family {
            TableFamily::Netdev => ("it sees no connections", "a chain at forward or input"),
            _ => ("they get their marks later", after),
        };
        Some(format!(
            "no rule of {} can tell data connections from others, because {why}: drop in \
             {after} instead, or accept new connections here by `{ports}` and leave them to the chains that follow",
            self.location
        ))
    }
}

impl HidingRule {
    fn advice(&self, gateway: &Gateway) -> String {
        let Self { chain, rule, untracks } = self;
        if *untracks {
            return format!(
                "`{rule}` in {chain} takes data connections out of connection tracking: leave TCP out of it, or name \
                 the ports of services in it"
            );
        }
        let (ours, others) = (gateway.mask(), !gateway.mask());
        format!(
            "`{rule}` in {chain} overwrites the ct mark of data connections: give it a mask that spares {ours:#010x}, \
             as in `ct mark set ct mark & {ours:#010x} | 0x1`, `--set-xmark 0x1/0xff` or \
             `--save-mark --nfmask {others:#010x} --ctmask {others:#010x}`"
        )
    }
}

/// The condition that matches packets of `class`, in the language of `origin`.
pub fn condition(origin: Origin, class: PacketClass, gateway: &Gateway) -> String {
    let (data, mask) = (gateway.data_mark, gateway.mask());
    match (origin, class) {
        (Origin::Nftables, PacketClass::MarkedData) => format!("ct mark and {data:#010x} != 0"),
        (Origin::Nftables, PacketClass::RelatedData) => "ct state established,related".to_owned(),
        (Origin::Nftables, PacketClass::Injected) => format!("meta mark {mask:#010x}"),
        (_, PacketClass::MarkedData) => format!("-m connmark --mark {data:#010x}/{data:#010x}"),
        (_, PacketClass::RelatedData) => "-m conntrack --ctstate ESTABLISHED,RELATED".to_owned(),
        (_, PacketClass::Injected) => format!("-m mark --mark {mask:#010x}"),
    }
}
