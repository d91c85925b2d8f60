//! Counts with their nouns, for messages.

/// `1 session`, `2 sessions`.
pub fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// The verb behind [`counted`].
pub fn was_or_were(count: u64) -> &'static str {
    if count == 1 { "was" } else { "were" }
}
