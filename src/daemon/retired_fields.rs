//! Fields of `status --json` under the names of version 0.1, which scripts may still read.
//!
//! In version 0.1 `status` has both names; this module goes with version 0.2. docs/counters.md lists them.

use serde::Serialize;
use serde_json::Value;

/// The object, the retired name in it, and the name of the same field now.
const RETIRED: [(&str, &str, &str); 6] = [
    ("", "judged", "fast_path_lines"),
    ("", "judged_otherwise", "fast_path_mismatches"),
    ("", "lost", "unread_sessions"),
    ("/limits", "kept", "unacknowledged_data"),
    ("/limits", "endings", "closing_set"),
    ("/fast_path", "judged", "lines"),
];

/// `status` as JSON, with the retired names as well.
pub(super) fn with_retired_names(status: &impl Serialize) -> serde_json::Result<Value> {
    let mut status = serde_json::to_value(status)?;
    for (object, retired, name) in RETIRED {
        if let Some(Value::Object(fields)) = status.pointer_mut(object)
            && let Some(value) = fields.get(name).cloned()
        {
            fields.insert(retired.to_owned(), value);
        }
    }
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::snapshot::Status;

    #[test]
    fn each_retired_name_has_the_value_of_its_successor() {
        let mut status = Status::default();
        status.counters.fast_path_lines = 1;
        status.counters.fast_path_mismatches = 2;
        status.counters.unread_sessions = 3;
        status.counters.limits.unacknowledged_data = 4;
        status.counters.limits.closing_set = 5;
        status.fast_path.lines = 6;
        let json = with_retired_names(&status).unwrap();
        for (value, (object, retired, name)) in (1..).zip(RETIRED) {
            let fields = json.pointer(object).unwrap();
            assert_eq!(
                (&fields[retired], &fields[name]),
                (&value.into(), &value.into()),
                "{retired}"
            );
        }
    }

    #[test]
    fn a_client_reads_a_status_with_both_names() {
        let json = with_retired_names(&Status::default()).unwrap();
        assert_eq!(serde_json::from_value::<Status>(json).unwrap(), Status::default());
    }
}
