//! The time that `--since` names.

use jiff::{Span, Timestamp, Zoned, civil, tz::TimeZone};

/// What `--since` accepts, for its help and its errors.
const EXAMPLES: &str = "15m, 2h, 1d; in UTC, as events are shown: 13:14, today, yesterday, 2026-11-28, 2026-11-28T17:22";

/// The text of the help.
pub(super) fn help() -> String {
    format!("Only events since this time, or in this span: {EXAMPLES}")
}

/// A time, or a span before now.
pub(super) fn parse(text: &str) -> Result<Timestamp, String> {
    parse_at(&Zoned::now().with_time_zone(TimeZone::UTC), text)
}

/// As [`parse`], at the time `now`, whose zone is that of civil times.
fn parse_at(now: &Zoned, text: &str) -> Result<Timestamp, String> {
    let text = text.trim();
    let local = |time: civil::DateTime| time.to_zoned(now.time_zone().clone());
    let of_day = |time: civil::Time| now.date().to_datetime(time);
    // Both directions of a span are the past: `1h`, `-1h` and `1h ago` are the same.
    let before = |span: Span| now.checked_sub(span.abs());
    let time = match text {
        "today" => now.start_of_day().map(|at| at.timestamp()),
        "yesterday" => now.yesterday().and_then(|day| day.start_of_day()).map(|at| at.timestamp()),
        _ => text
            .parse::<Timestamp>()
            .or_else(|_| text.parse().and_then(local).map(|at| at.timestamp()))
            .or_else(|error| match text.contains(':') {
                true => text.parse().map(of_day).and_then(local).map(|at| at.timestamp()),
                false => Err(error),
            })
            .or_else(|_| text.parse().and_then(before).map(|at| at.timestamp())),
    };
    match time {
        Ok(time) if time > now.timestamp() => {
            Err(format!("this is in the future: it is {:.0}", now.timestamp()))
        }
        Ok(time) => Ok(time),
        Err(_) => Err(format!("give a time or a span: {EXAMPLES}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Zoned {
        "2026-11-28T00:15:00+00:00[UTC]".parse().unwrap()
    }

    #[test]
    fn each_form_of_a_time_is_accepted() {
        for (text, expected) in [
            ("2026-11-27T10:00:00Z", "2026-11-27T10:00:00Z"),
            ("2026-11-27T10:00:00.123456Z", "2026-11-27T10:00:00.123456Z"),
            ("2026-11-28T00:30:00+02:00", "2026-11-27T22:30:00Z"),
            ("2026-11-27", "2026-11-27T00:00:00Z"),
            ("2026-07-01T12:00", "2026-07-01T12:00:00Z"),
            ("2026-11-27 17:22:00", "2026-11-27T17:22:00Z"),
            ("today", "2026-11-28T00:00:00Z"),
            ("00:14", "2026-11-28T00:14:00Z"),
            ("00:14:59.5", "2026-11-28T00:14:59.5Z"),
            ("yesterday", "2026-11-27T00:00:00Z"),
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
        for text in ["2026-11-29", "2026-11-28T00:15:01", "2026-11-28T00:15:01Z", "13:14"] {
            let error = parse_at(&now(), text).unwrap_err();
            assert_eq!(error, "this is in the future: it is 2026-11-28T00:15:00Z", "{text}");
        }
        for text in ["", "soon", "tomorrow", "15", "2026-13-01", "99999999999y", "--json"] {
            let error = parse_at(&now(), text).unwrap_err();
            assert!(error.contains("15m, 2h, 1d"), "{text}: {error}");
        }
    }
}
