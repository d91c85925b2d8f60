//! Rules for the tests of the other modules.

use super::{Firewall, Gateway, Hook, HookVerdict, IpVersion, Origin, PacketClass};

pub(crate) const ACCEPT: &str = r#"{"accept": null}"#;
pub(crate) const DROP: &str = r#"{"drop": null}"#;
pub(crate) const CT_MARK: &str = r#"{"ct": {"key": "mark"}}"#;
pub(crate) const STATE: &str = r#"{"ct": {"key": "state"}}"#;
pub(crate) const PORT: &str = r#"{"payload": {"protocol": "tcp", "field": "dport"}}"#;

/// Rules that `nft` lists, in JSON and as text.
pub(crate) type Listed = (&'static str, &'static str);
pub(crate) const PLAIN: Listed =
    (include_str!("samples/plain.json"), include_str!("samples/plain.txt"));
pub(crate) const FIREWALLD: Listed =
    (include_str!("samples/firewalld.json"), include_str!("samples/firewalld.txt"));
pub(crate) const FW4: Listed = (include_str!("samples/fw4.json"), include_str!("samples/fw4.txt"));
pub(crate) const ZONES: Listed =
    (include_str!("samples/zones.json"), include_str!("samples/zones.txt"));

pub(crate) fn nftables((json, listing): Listed) -> Firewall {
    Firewall::from_nft(json, listing).unwrap()
}

/// A comparison in nft's JSON.
pub(crate) fn is(op: &str, left: &str, right: &str) -> String {
    format!(r#"{{"match": {{"op": "{op}", "left": {left}, "right": {right}}}}}"#)
}

/// The statements that accept data connections by their ct mark.
pub(crate) fn accepts_mark() -> String {
    let bit = is("!=", &format!(r#"{{"&": [{CT_MARK}, 1073741824]}}"#), "0");
    format!("{bit}, {ACCEPT}")
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            control_ports: vec![21],
            data_mark: 0x4000_0000,
            queue_all_mark: 0x2000_0000,
            queue_none_mark: 0x1000_0000,
            slot_mask: 0x8ffe_0000,
        }
    }
}

impl Firewall {
    /// The tables that nft lists, in JSON and as text.
    pub(crate) fn from_nft(json: &str, listing: &str) -> Result<Self, serde_json::Error> {
        let mut firewall = Self::new(Gateway::default());
        firewall.add_nft(json, listing).map(|()| firewall)
    }

    /// The table `t` of nftables with the base chain `c`: its family, type, hook, priority, policy and device, if it has
    /// one. Each rule is a list of statements in JSON; handles begin with 2.
    pub(crate) fn from_nft_chain(chain: &str, rules: &[&str]) -> Self {
        let json = nft_json(chain, "", rules);
        Self::from_nft(&json, "").unwrap()
    }

    /// The IPv4 rules that `iptables-legacy-save` prints.
    pub(crate) fn from_iptables(text: &str) -> Self {
        let mut firewall = Self::new(Gateway::default());
        firewall.add_iptables_save(Origin::IptablesLegacy, IpVersion::V4, text);
        firewall
    }

    /// The same for several tables: each with its name, and its chains and rules.
    pub(crate) fn from_iptables_tables(tables: &[(&str, &str)]) -> Self {
        let text = |(name, lines): &(&str, &str)| format!("*{name}\n{lines}\nCOMMIT\n");
        Self::from_iptables(&tables.iter().map(text).collect::<String>())
    }

    /// The verdict at forward with IPv4.
    pub(crate) fn forward(&self, class: PacketClass) -> HookVerdict {
        self.verdict(Hook::Forward, IpVersion::V4, class)
    }
}

/// A table with `more` objects and a base chain `c`, as nft prints it. `rules` are in this chain, unless they name another
/// one before their statements.
pub(crate) fn nft_json(chain: &str, more: &str, rules: &[&str]) -> String {
    let mut words = chain.split(' ');
    let [family, kind, hook, priority, policy] = [(); 5].map(|()| words.next().unwrap());
    let device = words.next().map(|name| format!(r#", "dev": "{name}""#)).unwrap_or_default();
    let rule = |(rule, handle): (&&str, u32)| {
        let (chain, statements) = match rule.split_once(' ') {
            Some((chain, rest)) if !chain.contains('{') => (chain, rest),
            _ => ("c", *rule),
        };
        format!(
            r#", {{"rule": {{"family": "{family}", "table": "t", "chain": "{chain}", "handle": {handle},
            "expr": [{statements}]}}}}"#
        )
    };
    let rules: String = rules.iter().zip(2..).map(rule).collect();
    format!(
        r#"{{"nftables": [{{"table": {{"family": "{family}", "name": "t"}}}}, {more}
        {{"chain": {{"family": "{family}", "table": "t", "name": "c", "type": "{kind}", "hook": "{hook}",
        "prio": {priority}, "policy": "{policy}"{device}}}}}{rules}]}}"#
    )
}
