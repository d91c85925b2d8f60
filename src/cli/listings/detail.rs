//! `ftp-alg sessions --session ID`: one session in detail.

use std::net::SocketAddr;

use serde_json::Value;

use super::{pinholes, subject};
use crate::{
    cli::{
        Failure, SocketOption,
        columns::{self, Cell},
        event_reader::said,
        output,
        output::Style,
        selection::Selection,
        table,
    },
    daemon::snapshot::{DataConnection, SessionDetail, TransferProgress},
};

/// Prints the session with the number `id`, if the other options of `selection` select it, too.
pub(super) fn print(
    id: u64,
    selection: &Selection,
    json: bool,
    socket: &SocketOption,
) -> Result<(), Failure> {
    let answer = socket.request(&format!("sessions {id}"))?;
    let session: SessionDetail<Value> = answer.parse()?;
    if !selection.selects(subject(&session.summary)) {
        return Err(Failure::Failed(format!(
            "session {id} is open, but the other options do not select it: leave them out"
        )));
    }
    match json {
        true => output::print_line(answer.json()),
        false => output::print(&text(&session, Style::of_stdout())),
    }
}

fn text(session: &SessionDetail<Value>, style: Style) -> String {
    let SessionDetail { summary, pinholes, events, .. } = session;
    let title = format!(
        "session {}: {}, {} old",
        summary.id,
        summary.state,
        table::span(summary.age_seconds)
    );
    let values = table::list(&values(session), 2, 0, style.text_width());
    let heading = |text: &str| format!("\n{}\n", style.bold(text));
    let mut text = format!("{}\n{values}", style.bold(&title));
    if !pinholes.is_empty() {
        text += &heading("open pinholes");
        text += &columns::render(&pinholes::COLUMNS, pinholes, style, None);
    }
    if !events.is_empty() {
        text += &heading("last events (UTC)");
        let mut events: Vec<_> = events.iter().collect();
        events.sort_by_key(|event| event["time"].as_str());
        text.extend(events.iter().map(|event| event_text(event, style)));
    }
    text
}

fn values(session: &SessionDetail<Value>) -> Vec<(&'static str, String)> {
    let SessionDetail { summary, directory, encrypted, data_connection, .. } = session;
    let known = |text: &Option<String>| text.clone().unwrap_or_else(|| "not known".to_owned());
    let yes_or_no = |value| if value { "yes" } else { "no" };
    let mut values = vec![
        ("client", end_text(summary.client, summary.client_external, "the server")),
        ("server", end_text(summary.server, summary.server_external, "the client")),
        ("user", known(&summary.user)),
        ("directory", known(directory)),
        ("encrypted", encrypted.map_or("not known", yes_or_no).to_owned()),
    ];
    values.extend(
        summary
            .passive_ports
            .iter()
            .map(|ports| ("passive ports", format!("{ports}, open to the client"))),
    );
    values.extend([
        ("fast path", yes_or_no(summary.fast_path).to_owned()),
        ("sequence numbers", numbers_text(session)),
    ]);
    values.extend(summary.transfer.as_ref().map(|one| ("transfer", transfer_text(one))));
    values.extend(data_connection.as_ref().map(|one| ("data connection", connection_text(one))));
    values
}

fn end_text(own: SocketAddr, external: SocketAddr, other: &str) -> String {
    match own == external {
        true => own.to_string(),
        false => format!("{own}, which {other} sees as {external}"),
    }
}

/// By how much sequence numbers differ for the ends.
fn numbers_text(session: &SessionDetail<Value>) -> String {
    match (session.offset_to_server, session.offset_to_client) {
        (0, 0) if !session.summary.adjusted => "not adjusted".to_owned(),
        (to_server, to_client) => {
            format!("adjusted by {to_server:+} to the server, {to_client:+} to the client")
        }
    }
}

fn transfer_text(transfer: &TransferProgress) -> String {
    let begun = if transfer.started { "begun" } else { "not begun" };
    let [bytes, rate] = [Cell::bytes(transfer.bytes), Cell::rate(transfer.bytes_per_second)];
    let moved = transfer.bytes.map(|_| format!(", {} at {}", bytes.text, rate.text));
    let moved = moved.unwrap_or_default();
    let requested = transfer.seconds.map(|since| format!(", requested {} ago", table::span(since)));
    let requested = requested.unwrap_or_default();
    format!("{}, {begun}{requested}{moved}", super::transfer_text(transfer))
}

/// The ends of a data connection as its pinhole has them.
fn connection_text(connection: &DataConnection) -> String {
    let DataConnection { kind, ends, pending } = connection;
    format!("{kind} {ends}{}", if *pending { ", which has not arrived" } else { "" })
}

/// The line of an event, without what the title says.
fn event_text(event: &Value, style: Style) -> String {
    let field = |name: &str| event[name].as_str().unwrap_or_default();
    // Without the fraction of a second.
    let time = field("time").split('.').next().unwrap_or_default();
    let start = format!("  {time}  ");
    let said = said(field("text"));
    format!("{start}{}\n", table::wrapped(said, start.chars().count(), style.text_width()))
}

#[cfg(test)]
mod tests {
    use super::{super::samples::summary, *};
    use crate::cli::output::PLAIN;

    fn session() -> SessionDetail<Value> {
        let (client, server) = ("192.168.150.80:1026", "203.0.113.9:21");
        SessionDetail {
            summary: summary(client, "198.51.100.1:1026", server, server),
            directory: Some("/pub".into()),
            encrypted: Some(false),
            offset_to_server: 3,
            offset_to_client: 0,
            data_connection: None,
            pinholes: Vec::new(),
            events: Vec::new(),
        }
    }

    #[test]
    fn what_is_not_known_is_not_concluded() {
        let mut session = session();
        session.summary.user = None;
        (session.directory, session.encrypted) = (None, None);
        (session.summary.adjusted, session.offset_to_server) = (false, 0);
        let shown = text(&session, PLAIN);
        assert_eq!(shown.matches("not known").count(), 3, "{shown}");
        assert!(shown.ends_with("  sequence numbers  not adjusted\n"), "{shown}");
    }
}
