//! Lines in the format of xferlog(5) of wu-ftpd, which vsftpd and ProFTPD write, too.

use std::time::SystemTime;

use ftp_alg_core::{
    engine::{Event, Transfer, TransferResult},
    session::TransferVerb,
};
use jiff::{Timestamp, tz::TimeZone};

/// The line of a transfer whose `event` is of the time `at`. Returns `None` for a listing, and if nothing of the file
/// was transferred.
pub fn line(at: SystemTime, event: &Event, transfer: &Transfer, zone: &TimeZone) -> Option<String> {
    use TransferVerb::{List, Mlsd, Nlst};
    let was_complete = match transfer.result {
        TransferResult::Complete => true,
        TransferResult::Aborted | TransferResult::Reset | TransferResult::Unseen => false,
        TransferResult::Refused | TransferResult::NoDataConnection | TransferResult::Waiting => {
            return None;
        }
    };
    if matches!(transfer.verb, List | Mlsd | Nlst) {
        return None;
    }
    let ended = Timestamp::try_from(at).ok()?.to_zoned(zone.clone());
    let user = event.user.as_deref().unwrap_or_default();
    Some(format!(
        "{} {} {} {} {} b _ {} {} {} ftp 0 * {}\n",
        ended.strftime("%a %b %e %H:%M:%S %Y"),
        transfer.duration.as_secs_f64().ceil().max(1.0),
        event.client.ip(),
        transfer.bytes.unwrap_or_default(),
        as_field(transfer.path.as_deref().unwrap_or_default()),
        if transfer.verb.is_upload() { 'i' } else { 'o' },
        if matches!(user, "anonymous" | "ftp") { 'a' } else { 'r' },
        as_field(user),
        if was_complete { 'c' } else { 'i' },
    ))
}

/// The text as a field. Blanks separate fields, so the text has none.
fn as_field(text: &str) -> String {
    match text {
        "" => "?".to_owned(),
        text => text.replace(' ', "_"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::tests::finished, *};

    #[test]
    fn a_line_has_the_fields_of_xferlog() {
        let done = |user, result, verb, path: &str| {
            let (event, transfer) = finished(user, Some(226));
            let duration = Duration::from_millis(1200);
            let transfer = Transfer { verb, path: Some(path.into()), duration, result, ..transfer };
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_732_790_790);
            line(at, &event, &transfer, &TimeZone::fixed(jiff::tz::offset(1)))
        };
        let (complete, reset) = (TransferResult::Complete, TransferResult::Reset);
        for (line, rest) in [
            (
                done(Some("bob"), complete, TransferVerb::Stor, "/pub/a b.csv"),
                "5 /pub/a_b.csv b _ i r bob ftp 0 * c",
            ),
            (
                done(Some("anonymous"), reset, TransferVerb::Retr, "/x"),
                "5 /x b _ o a anonymous ftp 0 * i",
            ),
            (done(None, complete, TransferVerb::Stou, ""), "5 ? b _ i r ? ftp 0 * c"),
        ] {
            let expected = format!("Thu Nov 28 11:46:30 2024 2 10.0.0.7 {rest}\n");
            assert_eq!(line.as_deref(), Some(expected.as_str()));
        }
        for (result, verb) in [
            (complete, TransferVerb::List),
            (TransferResult::Refused, TransferVerb::Stor),
            (TransferResult::NoDataConnection, TransferVerb::Retr),
        ] {
            assert_eq!(done(None, result, verb, "/x"), None);
        }
    }
}
