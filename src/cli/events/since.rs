//! The time that `--since` names.

use jiff::{Span, Timestamp, Zoned, civil};

/// What `--since` accepts, for its help and its errors.
const EXAMPLES: &str =
    "15m, 2h, 1d, today, yesterday, 2026-11-28 or 2026-11-28T17:22 (local), 2026-11-28T10:00:00Z";

/// The text of the help.
pub(super) fn help() -> String {
    format!("Only events since this time, or in this span: {EXAMPLES}")
}

/// A time, or a span before now.
pub(super) fn parse(text: &str) -> Result<Timestamp, String> {
    parse_at(&Zoned::now(), text)
}

/// The same if it is `now`, in the zone of which civil times are.
fn parse_at(now: &Zoned, text: &str) -> Result<Timestamp, String> {
    let text = text.trim();
    let local = |time: civil::DateTime| time.to_zoned(now.time_zone().clone());
    // Both directions of a span are the past: `1h`, `-1h` and `1h ago` are the same.
    let before = |span: Span| now.checked_sub(span.abs());
    let time = match text {
        "today" => now.start_of_day().map(|at| at.timestamp()),
        "yesterday" => now.yesterday().and_then(|day| day.start_of_day()).map(|at| at.timestamp()),
        _ => text
            .parse::<Timestamp>()
            .or_else(|_| text.parse().and_then(local).map(|at| at.timestamp()))
            .or_else(|_| text.parse().and_then(before).map(|at| at.timestamp())),
    };
    match time {
        Ok(time) if time > now.timestamp() => Err("this is in the future".to_owned()),
        Ok(time) => Ok(time),
        Err(_) => Err(format!("give a time or a span: {EXAMPLES}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A quarter past one in the morning, one hour ahead of UTC. The zone's clocks were put back on October 25.
    fn now() -> Zoned {
        "2026-11-28T01:15:00+01:00[Europe/Berlin]".parse().unwrap()
    }

    #[test]
    fn each_form_of_a_time_is_accepted() {
        for (text, expected) in [
            ("2026-11-27T10:00:00Z", "2026-11-27T10:00:00Z"),
            ("2026-11-27T10:00:00.123456Z", "2026-11-27T10:00:00.123456Z"),
            ("2026-11-28T00:30:00+02:00", "2026-11-27T22:30:00Z"),
            ("2026-11-27", "2026-11-26T23:00:00Z"),
            ("2026-07-01T12:00", "2026-07-01T10:00:00Z"),
            ("2026-11-27 17:22:00", "2026-11-27T16:22:00Z"),
            ("today", "2026-11-27T23:00:00Z"),
            ("yesterday", "2026-11-26T23:00:00Z"),
            ("15m", "2026-11-28T00:00:00Z"),
            ("-15m", "2026-11-28T00:00:00Z"),
            ("1 hour ago", "2026-11-27T23:15:00Z"),
            ("1h30m", "2026-11-27T22:45:00Z"),
            ("1d", "2026-11-27T00:15:00Z"),
            ("2 weeks", "2026-11-14T00:15:00Z"),
            ("0s", "2026-11-28T00:15:00Z"),
        ] {
            let time = parse_at(&now(), text).map(|time| time.to_string());
            assert_eq!(time.as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_past_time_is_refused() {
        for text in ["2026-11-29", "2026-11-28T01:15:01", "2026-11-28T00:15:01Z"] {
            assert_eq!(parse_at(&now(), text), Err("this is in the future".to_owned()), "{text}");
        }
        for text in ["", "soon", "tomorrow", "15", "2026-13-01", "99999999999y", "--json"] {
            let error = parse_at(&now(), text).unwrap_err();
            assert!(error.contains("15m, 2h, 1d"), "{text}: {error}");
        }
    }
}
