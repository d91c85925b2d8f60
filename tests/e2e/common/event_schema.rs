//! Events compared with their schema.

use std::sync::LazyLock;

use jsonschema::Validator;
use serde_json::Value;

/// The event in a line of JSON, which must be as docs/events.schema.json says.
pub fn event_of(line: &str) -> Value {
    static SCHEMA: LazyLock<Validator> = LazyLock::new(|| {
        let schema = include_str!("../../../docs/events.schema.json");
        jsonschema::validator_for(&serde_json::from_str(schema).unwrap()).unwrap()
    });
    let event = serde_json::from_str(line).unwrap();
    let errors: Vec<_> = SCHEMA.iter_errors(&event).map(|error| error.to_string()).collect();
    assert_eq!(errors, [""; 0], "{line}");
    event
}
