//! Rules of iptables for the tests of the other modules.

use super::{Firewall, Gateway, IpVersion, Origin};

impl Firewall {
    /// The tables that nft lists, in JSON and as text.
    pub(crate) fn from_nft(json: &str, listing: &str) -> Result<Self, serde_json::Error> {
        let mut firewall = Self::new(Gateway::default());
        firewall.add_nft(json, listing).map(|()| firewall)
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
}
