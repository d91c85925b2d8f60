//! The chains of nftables at the hooks of network devices: ingress and egress.
//!
//! Their packets are those of single devices. So a chain is evaluated at prerouting or postrouting, and each of its
//! rules has the condition that the packet arrives or leaves on one of the devices.

use std::collections::HashMap;

use serde_json::{Map, Value as Json};
use strum::EnumString;

use super::model::{Condition, Hook, Side, TableFamily};

/// The family and the name of a table.
pub(crate) type TableKey = (TableFamily, String);

/// A hook of network devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString)]
#[strum(serialize_all = "lowercase")]
pub(crate) enum DeviceHook {
    Ingress,
    Egress,
}

impl DeviceHook {
    /// The hook and the priority where a chain of `priority` is evaluated: before all chains at prerouting, or behind
    /// all chains at postrouting.
    pub(crate) fn place(self, priority: i32) -> (Hook, i32) {
        match self {
            Self::Ingress => (Hook::Prerouting, priority.saturating_add(i32::MIN / 2)),
            Self::Egress => (Hook::Postrouting, priority.saturating_add(i32::MAX / 2)),
        }
    }

    /// The condition that a packet passes one of the devices of `chain`. `listed` has their names, if the listing has.
    pub(crate) fn on_devices(
        self,
        chain: &Map<String, Json>,
        listed: Option<&Vec<&str>>,
    ) -> Condition {
        let names = match chain.get("dev") {
            Some(Json::Array(names)) => names.iter().filter_map(Json::as_str).collect(),
            name => name.and_then(Json::as_str).into_iter().collect::<Vec<_>>(),
        };
        let names = if names.is_empty() { listed } else { Some(&names) };
        let Some(names) = names else { return Condition::Unknown };
        let direction = match self {
            Self::Ingress => Side::Source,
            Self::Egress => Side::Destination,
        };
        let device = |name: &&str| Condition::interface(direction, name, '*');
        Condition::Any(names.iter().map(device).collect())
    }
}

/// The devices of chains at ingress and egress, from the listing: nft 1.0.6 leaves them out in JSON.
pub(crate) fn listed_devices(listing: &str) -> HashMap<(TableKey, &str), Vec<&str>> {
    let mut found = HashMap::new();
    let (mut table, mut chain) = (None, "");
    for line in listing.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("table") => {
                let family = words.next().and_then(|word| word.parse().ok());
                table = family.zip(words.next().map(str::to_owned));
            }
            Some("chain") => chain = words.next().unwrap_or_default(),
            Some("type") => {
                let after = |hook| line.split_once(hook);
                let devices =
                    after(" hook ingress device").or_else(|| after(" hook egress device"));
                if let (Some(table), Some((_, devices))) = (&table, devices) {
                    // `"a"`, or `s = { "a", "b" }`.
                    let end = devices.find(" priority ").unwrap_or(devices.len());
                    let names = devices[..end].split('"').skip(1).step_by(2).collect();
                    found.insert((table.clone(), chain), names);
                }
            }
            _ => {}
        }
    }
    found
}
