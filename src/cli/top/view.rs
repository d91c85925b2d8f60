//! Draws the state. What has a colour has a word or a mark, too.

use std::iter;

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::Paragraph,
};

use unicode_width::UnicodeWidthStr as _;

use super::{
    data::Data,
    rows::Row,
    select,
    state::{Overlay, PANELS, State},
};
use crate::{
    cli::{
        columns::{self, Cut, cut},
        status::{RATES, Rate},
        table::{self, wrap},
    },
    config::escaped,
    daemon::snapshot::WindowCounts,
};

/// The smallest terminal: it has room for the rates.
const MIN_SIZE: (u16, u16) = (76, 14);
const TITLE: Style = Style::new().add_modifier(Modifier::BOLD);
const SELECTED: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Draws everything.
pub(super) fn draw(state: &mut State, frame: &mut Frame) {
    let area = frame.area();
    if area.width < MIN_SIZE.0 || area.height < MIN_SIZE.1 {
        let (wide, high) = MIN_SIZE;
        let why = format!("too small: {wide}x{high} is needed, q quits");
        let lines = wrap(&why, usize::from(area.width.max(1)), true).into_iter().map(Line::from);
        return frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), area);
    }
    let limit = usize::from(area.width);
    let health = health(state, limit, usize::from(area.height / 6));
    let rates = rates(&state.data().windows);
    let height =
        |lines: &[Line]| Constraint::Length(u16::try_from(lines.len()).unwrap_or(u16::MAX));
    let parts = [
        Constraint::Length(1),
        height(&health),
        height(&rates),
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(1),
    ];
    let [top, middle, below, tabs, panel, bottom] = Layout::vertical(parts).areas(area);
    frame.render_widget(headline(state, limit), top);
    frame.render_widget(Paragraph::new(health), middle);
    frame.render_widget(Paragraph::new(rates), below);
    frame.render_widget(tab_line(state), tabs);
    match state.overlay.take() {
        Some(mut overlay) => {
            draw_overlay(&mut overlay, frame, panel);
            state.overlay = Some(overlay);
        }
        None => draw_rows(state, frame, panel),
    }
    frame.render_widget(footer(state, limit), bottom);
}

/// `left`, and `right` at the right end of the line.
fn both_ends(left: &str, right: &str, limit: usize) -> String {
    let left = cut(left, limit.saturating_sub(right.width() + 1), Cut::End);
    let gap = limit.saturating_sub(left.width() + right.width());
    format!("{left}{:gap$}{right}", "")
}

fn headline(state: &State, limit: usize) -> Line<'static> {
    let Data { summary, time, .. } = state.data();
    let pause = if state.is_paused() { "PAUSED  " } else { "" };
    let line = both_ends(summary, &format!("{pause}{time}"), limit);
    Line::styled(line, TITLE)
}

/// A name, and behind it a text from column `indent` on, in as many lines as it needs.
fn named(name: &str, text: &str, style: Style, indent: usize, limit: usize) -> Vec<Line<'static>> {
    let names = iter::once(name).chain(iter::repeat(""));
    let line = |(name, text): (&str, String)| {
        Line::from(vec![Span::styled(format!("{name:<indent$}"), style), Span::raw(text)])
    };
    names.zip(wrap(text, limit.saturating_sub(indent), true)).map(line).collect()
}

/// Whether the daemon answers and is healthy, in at most `room` lines.
fn health(state: &State, limit: usize, room: usize) -> Vec<Line<'static>> {
    let mut items = Vec::new();
    if let Some((since, why)) = &state.outage {
        items.push(("NO ANSWER", format!("since {since}: {why}; asking again"), Color::Red));
    }
    if let Some(notice) = &state.notice {
        items.push(("NOTE", notice.clone(), Color::Yellow));
    }
    for row in &state.data().rows[3] {
        let [severity, name, text] = [0, 1, 2].map(|at| row.cells[at].text.as_str());
        let colour = if severity == "PROBLEM" { Color::Red } else { Color::Yellow };
        items.push((severity, format!("{name}: {text}"), colour));
    }
    if items.is_empty() {
        items.push(("OK", "healthy: no problems, no warnings".to_owned(), Color::Green));
    }
    let mut lines = Vec::new();
    for (mark, text, colour) in items {
        let style = if state.has_colour { TITLE.fg(colour) } else { TITLE };
        lines.extend(named(mark, &text, style, mark.width() + 1, limit));
    }
    if lines.len() > room.max(1) {
        lines.truncate(room.max(1));
        if let Some(last) = lines.last_mut() {
            let more = " … 4: all";
            let text: String = last.spans.iter().map(|span| span.content.as_ref()).collect();
            let text = cut(&text, limit.saturating_sub(more.width()), Cut::End);
            *last = Line::from(text + more);
        }
    }
    lines
}

/// What was counted in each window, and at the end bytes per second.
fn rates(windows: &[(String, WindowCounts)]) -> Vec<Line<'static>> {
    let mut all = RATES;
    all.sort_by_key(|(.., are_bytes)| *are_bytes);
    let line = |last: &str, cell: &dyn Fn(&Rate) -> String| {
        let cells = all.iter().map(|rate| {
            let (_, title, _, are_bytes) = rate;
            let width = title.len().max(if *are_bytes { 9 } else { 6 });
            format!(" {:>width$}", cell(rate))
        });
        format!("{last:>7}{}", cells.collect::<String>())
    };
    let row = |(last, window): &(String, WindowCounts)| {
        let cell = |(_, _, count, are_bytes): &Rate| match count(window) {
            None => "-".to_owned(),
            Some(bytes) if *are_bytes => table::bytes((bytes as f64 / window.seconds) as u64),
            Some(count) => table::count(count),
        };
        Line::from(line(last, &cell))
    };
    let titles = Line::styled(line("LAST", &|(_, title, ..)| (*title).to_owned()), TITLE);
    let titles = (!windows.is_empty()).then_some(titles);
    titles.into_iter().chain(windows.iter().map(row)).collect()
}

fn tab_line(state: &State) -> Line<'static> {
    let tab = |(at, name): (usize, &&str)| {
        let text = format!("{} {name} {}", at + 1, state.data().rows[at].len());
        match at == state.panel {
            true => Span::styled(format!("[{text}] "), SELECTED),
            false => Span::raw(format!(" {text}  ")),
        }
    };
    Line::from(PANELS.iter().enumerate().map(tab).collect::<Vec<_>>())
}

fn draw_rows(state: &mut State, frame: &mut Frame, area: Rect) {
    let room = usize::from(area.height).saturating_sub(1);
    // The first column of the terminal marks the selected row.
    let limit = area.width - 1;
    state.fit(limit, room);
    let selection = state.selection().clone();
    let on_screen = state.visible.iter().skip(selection.offset).take(room);
    let rows: Vec<&Row> = on_screen.filter_map(|at| state.rows().get(*at)).collect();
    let shapes = state.shapes();
    let widths = select::widths(shapes, &rows, limit);
    let line = |mark: &str, cell: &dyn Fn(usize) -> String| {
        format!("{mark}{}", columns::line(shapes, &widths, 1, cell))
    };
    let arrow = if selection.is_descending { "▼" } else { "▲" };
    let title = |at: usize| match at == selection.column {
        true => format!("{}{arrow}", shapes[at].title),
        false => shapes[at].title.to_owned(),
    };
    let mut lines = vec![Line::styled(line(" ", &title), TITLE)];
    for (at, row) in rows.iter().enumerate() {
        let is_selected = selection.offset + at == selection.at;
        let cell = |at: usize| row.cells.get(at).map_or(String::new(), |cell| cell.text.clone());
        let text = line(if is_selected { ">" } else { " " }, &cell);
        let style = if is_selected { SELECTED } else { Style::new() };
        lines.push(Line::styled(text, style));
    }
    if rows.is_empty() {
        let text = wrap(&why_empty(state), usize::from(limit) - 1, true);
        lines.extend(text.into_iter().map(|line| Line::from(format!("  {line}"))));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

/// Why a panel has no rows.
fn why_empty(state: &State) -> String {
    if !state.rows().is_empty() {
        return format!("nothing has \"{}\": Esc clears the filter", escaped(&state.filter));
    }
    match state.panel {
        0 => "no sessions".to_owned(),
        1 if !state.data().reports_transfers => {
            "Transfers are not reported: log.transfers = false in the daemon's configuration. \
             Set it to true and restart the daemon; sessions continue."
                .to_owned()
        }
        1 => "no transfer has ended yet".to_owned(),
        2 => "nothing has failed".to_owned(),
        _ => "no problems, no warnings".to_owned(),
    }
}

fn draw_overlay(overlay: &mut Overlay, frame: &mut Frame, area: Rect) {
    let names = overlay.items.iter().map(|(name, _)| name.width()).max().unwrap_or(0) + 2;
    let limit = usize::from(area.width);
    let items = overlay.items.iter();
    let lines: Vec<_> =
        items.flat_map(|(name, value)| named(name, value, TITLE, names, limit)).collect();
    let room = usize::from(area.height).saturating_sub(1);
    overlay.scroll = overlay.scroll.min(lines.len().saturating_sub(room));
    let more = if lines.len() > room { ", arrows: more" } else { "" };
    let title = Line::styled(format!("{}  (Esc: close{more})", overlay.title), TITLE);
    let shown = lines.into_iter().skip(overlay.scroll).take(room);
    frame.render_widget(Paragraph::new([title].into_iter().chain(shown).collect::<Vec<_>>()), area);
}

fn footer(state: &State, limit: usize) -> Line<'static> {
    const KEYS: &str = "? help  q quit  Enter details  / filter  s sort  r reverse  p pause";
    let filter = escaped(&state.filter);
    Line::from(match (state.is_typing, filter.is_empty()) {
        (true, _) => both_ends(&format!("/{filter}_"), "Enter keep, Esc clear", limit),
        (false, true) => cut(KEYS, limit, Cut::End),
        (false, false) => {
            let left = format!("filter \"{filter}\"");
            let keys = cut(KEYS, limit.saturating_sub(left.width() + 2), Cut::End);
            both_ends(&left, &keys, limit)
        }
    })
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend, crossterm::event::KeyCode};

    use super::*;
    use crate::{
        cli::top::{look::Look, samples},
        daemon::control_client::ClientError,
    };

    fn state(look: Look) -> State {
        let mut state = State::new(false);
        state.take(Ok(look));
        state
    }

    fn press(state: &mut State, keys: &str) {
        for key in keys.chars() {
            state.press(if key == '\n' { KeyCode::Enter } else { KeyCode::Char(key) }.into());
        }
    }

    fn screen(state: &mut State, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(state, frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(|y| line(y).trim_end().to_owned()).collect()
    }

    #[track_caller]
    fn assert_shows(screen: &[String], parts: &[&str]) {
        for part in parts {
            assert!(screen.iter().any(|line| line.contains(part)), "{part}: {screen:#?}");
        }
    }

    #[test]
    fn a_small_terminal_shows_all_that_matters() {
        let mut state = state(samples::look());
        for (panel, parts) in [
            (
                "1",
                &[
                    "gw: ftp-alg 0.1.0, up 2h 0m, nftables, fast path off",
                    "PROBLEM table: the table is not loaded, because it is another's",
                    "WARNING encrypted: 10.0.0.8 uses TLS",
                    "   LAST SESSIONS TRANSFERS FAILED REFUSED  DROPS DECIDED      UP/s    DOWN/s",
                    "     1h       12        40      1       0   7.6M       0   4.2 KiB       0 B",
                    "[1 Sessions 2]  2 Transfers 3   3 Failures 2   4 Health 2",
                    " ID▼ CLIENT                 SERVER             USER     TRANSFER            RATE",
                    ">  2 [2001:db8:1…5:6]:50000 203.0.113.9:21     -",
                    "   1 10.0.0.7:1035          203.0.113.9:21     bob      RETR …/now.iso 256 KiB/s",
                    "? help  q quit  Enter details",
                ][..],
            ),
            (
                "2",
                &[
                    " UTC▼     CLIENT      USER   VERB  PATH           BYTES  SECS RESULT",
                    ">10:46:04 10.0.0.7    bob    STOR  …eport.csv   4.7 MiB   0.2 complete",
                    " 10:46:03 10.0.0.7    bob    STOR  /pub/b             -   0.2 no-data-connection",
                ],
            ),
            (
                "3",
                &[
                    " 10:46:03   2 10.0.0.7      bob    STOR /pub/b: no data connection, 425, SYN of…",
                ],
            ),
            ("4", &[">PROBLEM   table      the table is not loaded, because it is another's"]),
        ] {
            press(&mut state, panel);
            assert_shows(&screen(&mut state, 80, 24), parts);
        }
    }

    #[test]
    fn no_width_hides_a_result_or_a_rate() {
        let mut state = state(samples::look());
        press(&mut state, "2");
        for wide in MIN_SIZE.0..=200 {
            let shown = screen(&mut state, wide, MIN_SIZE.1);
            assert_shows(&shown, &["no-data-connection", "DOWN/s", "4 Health 2", "RESULT"]);
        }
        assert_shows(&screen(&mut state, MIN_SIZE.0 - 1, 24), &["too small: 76x14 is needed"]);
    }

    #[test]
    fn details_scroll() {
        let mut state = state(samples::look());
        press(&mut state, "2\n");
        let small = screen(&mut state, 76, 14);
        assert_shows(&small, &["Esc: close, arrows: more", "CLIENT       10.0.0.7"]);
        press(&mut state, &"j".repeat(99));
        assert_shows(&screen(&mut state, 76, 14), &["TIME         2026-11-28T10:46:04"]);
    }

    /// Whatever the daemon says, and in a terminal of any size.
    #[test]
    fn no_control_character_reaches_the_terminal() {
        const BAD: &str = "a\u{1b}]0;b\u{7}\u{9b}2J\r\n\u{202e}\u{200b}日本";
        let mut look = samples::look();
        for event in &mut look.events {
            for field in event.as_object_mut().unwrap().values_mut() {
                if let Some(text) = field.as_str().filter(|text| *text != "transfer") {
                    *field = format!("{text}{BAD}").into();
                }
            }
        }
        for row in &mut look.sessions {
            (row.summary.state, row.summary.user) = (BAD.to_owned(), Some(BAD.to_owned()));
            if let Some(transfer) = &mut row.summary.transfer {
                (transfer.verb, transfer.path) = (BAD.to_owned(), BAD.to_owned());
            }
        }
        let status = &mut look.status;
        (status.version, status.backend) = (BAD.to_owned(), BAD.to_owned());
        let findings = &mut status.findings;
        for one in findings.problems.iter_mut().chain(&mut findings.warnings) {
            (one.name, one.text, one.remedy) = (BAD.to_owned(), BAD.repeat(9), BAD.to_owned());
        }
        let mut state = state(look);
        state.take(Err(ClientError::NoDaemon { path: BAD.into() }));
        for keys in ["1", "2", "3", "4", "?", "1/\u{1b}\u{202e}"] {
            press(&mut state, keys);
            for (wide, high) in [(80, 24), (200, 50), (76, 14), (75, 14), (1, 1), (7, 3), (300, 14)]
            {
                for _ in 0..2 {
                    let shown = screen(&mut state, wide, high).concat();
                    let bad = |char: char| char.is_control() || "\u{202e}\u{200b}".contains(char);
                    assert!(!shown.contains(bad), "{shown:?}");
                    press(&mut state, "\n");
                }
            }
        }
        press(&mut state, "2");
        assert_shows(&screen(&mut state, 300, 50), &["\\u{1b}]0;b\\u{7}"]);
    }
}
