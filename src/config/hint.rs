//! Suggestions for values that are not allowed: common slips are undone, and an allowed result is suggested.

use ipnetwork::IpNetwork;
use toml::Value;

use super::text::number_and_unit;

/// Undoes one slip: the doc comment of each says what was written, and for what. Returns the corrected text, or `None` if
/// the slip was not made.
type SlipFix = fn(&Value) -> Option<String>;

const SLIPS: [SlipFix; 9] = [
    without_quotes,
    as_flag,
    with_dns,
    without_host_bits,
    with_unit,
    with_dash,
    lower_case,
    as_list_without_quotes,
    as_list,
];

/// The first correction whose value `is_allowed`.
pub(super) fn suggestion(value: &Value, is_allowed: impl Fn(&Value) -> bool) -> Option<String> {
    let items = value.as_array();
    let texts = SLIPS.into_iter().filter_map(|undo| match items {
        None => undo(value),
        Some(items) => {
            let undone = items.iter().map(|item| undo(item).unwrap_or_else(|| item.to_string()));
            Some(format!("[{}]", undone.collect::<Vec<_>>().join(", ")))
        }
    });
    texts.into_iter().find(|text| parse(text).is_some_and(|value| is_allowed(&value)))
}

/// The correction of `token`, which is unquoted text.
pub(super) fn unquoted(token: &str) -> String {
    as_flag(&Value::String(token.to_owned())).unwrap_or_else(|| format!("\"{token}\""))
}

fn parse(text: &str) -> Option<Value> {
    let table: toml::Table = toml::from_str(&format!("value = {text}")).ok()?;
    table.get("value").cloned()
}

/// `"2"` for `2`, `"0x10"` for `0x10`, `"true"` for `true`.
fn without_quotes(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.contains('\n')).map(str::to_owned)
}

/// `yes` for `true`, and the like.
fn as_flag(value: &Value) -> Option<String> {
    match value.as_str()?.to_ascii_lowercase().as_str() {
        "yes" | "on" | "true" => Some("true".to_owned()),
        "no" | "off" | "false" => Some("false".to_owned()),
        _ => None,
    }
}

/// `"ftp.example.net"` for `"dns:ftp.example.net"`.
fn with_dns(value: &Value) -> Option<String> {
    let name = value.as_str()?;
    let (_, top) = name.trim_end_matches('.').rsplit_once('.')?;
    top.starts_with(|c: char| c.is_ascii_alphabetic()).then(|| format!("\"dns:{name}\""))
}

/// `"10.0.0.5/24"` for `"10.0.0.0/24"`.
fn without_host_bits(value: &Value) -> Option<String> {
    let network: IpNetwork = value.as_str()?.parse().ok()?;
    Some(format!("\"{}/{}\"", network.network(), network.prefix()))
}

/// `30`, `"30 sec"` for `"30s"`; `64`, `"64MB"` for `"64MiB"`.
fn with_unit(value: &Value) -> Option<String> {
    let text = match value {
        Value::Integer(number) => number.to_string(),
        _ => value.as_str()?.to_owned(),
    };
    let (number, unit) = number_and_unit(&text);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "sec" | "secs" | "second" | "seconds" => "s",
        "min" | "mins" | "minute" | "minutes" => "m",
        "hour" | "hours" => "h",
        "msec" | "millis" | "milliseconds" => "ms",
        "k" | "kb" | "kib" => "KiB",
        "m" | "mb" | "mib" => "MiB",
        "g" | "gb" | "gib" => "GiB",
        _ => return None,
    };
    Some(format!("\"{number}{unit}\""))
}

/// `"9981:9986"`, `"9981 - 9986"` for `"9981-9986"`.
fn with_dash(value: &Value) -> Option<String> {
    let text: String = value.as_str()?.split_whitespace().collect();
    let (first, last) =
        text.split_once(['-', ':', '\u{2013}']).or_else(|| text.split_once(".."))?;
    Some(format!("\"{first}-{last}\""))
}

/// `"Refuse"` for `"refuse"`.
fn lower_case(value: &Value) -> Option<String> {
    value.as_str().map(|text| format!("\"{}\"", text.trim().to_ascii_lowercase()))
}

/// `"21"` for `[21]`.
fn as_list_without_quotes(value: &Value) -> Option<String> {
    without_quotes(value).map(|text| format!("[{text}]"))
}

/// `21` for `[21]`.
fn as_list(value: &Value) -> Option<String> {
    Some(format!("[{value}]"))
}
