//! The objects that `nft --json list ruleset` prints, one by one: our own table is a large part of them, and is left
//! out as it is read.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};
use serde_json::{Map, Value as Json};

use crate::gateway::rules::TABLE as OURS;

/// What it prints.
#[derive(Deserialize)]
pub(super) struct Document {
    #[serde(default)]
    pub(super) nftables: Others,
}

/// All objects but those of our table.
#[derive(Default)]
pub(super) struct Others(pub(super) Vec<Map<String, Json>>);

impl<'de> Deserialize<'de> for Others {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Objects;
        impl<'de> Visitor<'de> for Objects {
            type Value = Vec<Map<String, Json>>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of objects")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut others = Vec::new();
                while let Some(object) = list.next_element::<Json>()? {
                    if let Json::Object(object) = object
                        && !object.values().any(is_ours)
                    {
                        others.push(object);
                    }
                }
                Ok(others)
            }
        }
        deserializer.deserialize_seq(Objects).map(Self)
    }
}

fn is_ours(content: &Json) -> bool {
    let is = |key: &str, value: &str| content.get(key).and_then(Json::as_str) == Some(value);
    is("family", "inet") && is("table", OURS)
}
