//! Counts with their nouns, for messages.

/// `1 session`, `2 sessions`.
pub fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// The verb behind [`counted`].
pub fn was_or_were(count: u64) -> &'static str {
    if count == 1 { "was" } else { "were" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular() {
        let text = |count| format!("{} {}", counted(count, "session"), was_or_were(count));
        assert_eq!([0, 1, 2].map(text), ["0 sessions were", "1 session was", "2 sessions were"]);
    }
}
