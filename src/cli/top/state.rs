//! What the screen shows now: panel, order, filter, pause, and what keys change of it.

use std::sync::Arc;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{
    data::{Data, clock},
    look::Look,
    rows::{self, Row},
    select::Selection,
};
use crate::{
    cli::{
        columns::{Shape, shapes},
        event_reader::missed_text,
    },
    config::escaped,
    daemon::control_client::ClientError,
};

/// The panels.
pub(super) const PANELS: [&str; 4] = ["Sessions", "Transfers", "Failures", "Health"];
/// Limit of characters of the filter.
const MAX_FILTER: usize = 60;

/// The keys, as the help shows them.
const KEYS: [(&str, &str); 10] = [
    ("1 2 3 4", "show this panel; Tab and Shift-Tab: the next and the one before"),
    ("j k arrows", "select a row; PgUp, PgDn, Home and End too"),
    ("Enter", "details of the selected row"),
    ("s", "order by the next column"),
    ("r", "reverse the order"),
    ("/", "show only rows with a text in client, server, user or path"),
    ("Space p", "pause, and continue"),
    ("Esc", "close what is open, clear the filter, or quit"),
    ("?", "this help"),
    ("q Ctrl-C", "quit"),
];

/// What the screen shows.
#[derive(Debug)]
pub(super) struct State {
    live: Arc<Data>,
    /// What is shown while it is paused.
    frozen: Option<Arc<Data>>,
    pub panel: usize,
    selections: [Selection; 4],
    /// The columns of the panels.
    shapes: [Vec<Shape>; 4],
    /// The places of the rows that the panel shows.
    pub visible: Vec<usize>,
    pub filter: String,
    /// Whether keys are characters of the filter.
    pub is_typing: bool,
    pub overlay: Option<Overlay>,
    /// Since when and why the daemon does not answer.
    pub outage: Option<(String, String)>,
    /// What happened to the daemon, until a key is pressed.
    pub notice: Option<String>,
    /// The size of the panel: columns of the terminal, and rows.
    size: (u16, usize),
    pub has_colour: bool,
}

/// A list of names and values that covers the panel: details or help.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    pub title: String,
    pub items: Vec<(&'static str, String)>,
    /// The first line that is shown.
    pub scroll: usize,
    /// The row that it describes.
    of: Option<u64>,
}

impl State {
    pub fn new(has_colour: bool) -> Self {
        Self {
            live: Arc::default(),
            frozen: None,
            panel: 0,
            selections: [true, true, true, false].map(Selection::new),
            shapes: [
                shapes(rows::SESSIONS),
                shapes(rows::TRANSFERS),
                shapes(rows::FAILURES),
                shapes(rows::HEALTH),
            ],
            visible: Vec::new(),
            filter: String::new(),
            is_typing: false,
            overlay: None,
            outage: None,
            notice: None,
            size: (0, 1),
            has_colour,
        }
    }

    /// The data that is shown.
    pub fn data(&self) -> &Data {
        self.frozen.as_ref().unwrap_or(&self.live)
    }

    pub fn is_paused(&self) -> bool {
        self.frozen.is_some()
    }

    pub fn rows(&self) -> &[Row] {
        &self.data().rows[self.panel]
    }

    pub fn shapes(&self) -> &[Shape] {
        &self.shapes[self.panel]
    }

    pub fn selection(&self) -> &Selection {
        &self.selections[self.panel]
    }

    fn selection_mut(&mut self) -> &mut Selection {
        &mut self.selections[self.panel]
    }

    /// Adapts to a panel of this size. A column that is not shown orders nothing.
    pub fn fit(&mut self, width: u16, rows: usize) {
        self.size = (width, rows.max(1));
        if !self.shows(self.selection().column) {
            self.selection_mut().column = 0;
            self.refresh();
        }
        let all = self.visible.len();
        self.selection_mut().scroll(rows, all);
    }

    /// Whether there is room for this column.
    fn shows(&self, column: usize) -> bool {
        self.shapes()[column].from <= self.size.0
    }

    /// Takes over a look, or the reason why there is none.
    pub fn take(&mut self, look: Result<Look, ClientError>) {
        match look {
            Ok(look) => {
                let restart = look.is_another.then(|| "the daemon was restarted".to_owned());
                let missed = Some(look.missed).filter(|missed| *missed > 0);
                let missed = missed.map(missed_text);
                let notices: Vec<_> = restart.into_iter().chain(missed).collect();
                if !notices.is_empty() {
                    self.notice = Some(format!("{}: {}", clock(), notices.join("; ")));
                }
                self.outage = None;
                Arc::make_mut(&mut self.live).take(look);
                self.refresh();
                self.refresh_details();
            }
            Err(error) => {
                let since = self.outage.take().map_or_else(clock, |(since, _)| since);
                self.outage = Some((since, escaped(&error.to_string())));
            }
        }
    }

    /// Does what a key stands for. Returns whether to quit.
    pub fn press(&mut self, key: KeyEvent) -> bool {
        self.notice = None;
        let has_control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if has_control => return true,
            code if self.is_typing => self.type_filter(code, has_control),
            KeyCode::Char('q') => return true,
            KeyCode::Esc if self.overlay.is_some() => self.overlay = None,
            KeyCode::Esc if !self.filter.is_empty() => self.filter.clear(),
            KeyCode::Esc => return true,
            KeyCode::Char(' ' | 'p') => self.pause(),
            code => self.navigate(code),
        }
        self.refresh();
        false
    }

    fn navigate(&mut self, code: KeyCode) {
        let page = isize::try_from(self.size.1).unwrap_or(isize::MAX);
        match code {
            KeyCode::Up | KeyCode::Char('k') => self.move_by(-1),
            KeyCode::Down | KeyCode::Char('j') => self.move_by(1),
            KeyCode::PageUp => self.move_by(-page),
            KeyCode::PageDown => self.move_by(page),
            KeyCode::Home => self.move_by(isize::MIN),
            KeyCode::End => self.move_by(isize::MAX),
            KeyCode::Enter if self.overlay.is_some() => self.overlay = None,
            KeyCode::Enter => self.open_details(),
            KeyCode::Char('?') => {
                let items = KEYS.map(|(key, does)| (key, does.to_owned())).to_vec();
                self.overlay =
                    Some(Overlay { title: "Keys".to_owned(), items, ..Overlay::default() });
            }
            KeyCode::Tab => self.show_panel(self.panel + 1),
            KeyCode::BackTab => self.show_panel(self.panel + PANELS.len() - 1),
            KeyCode::Char(digit @ '1'..='4') => self.show_panel(digit as usize - '1' as usize),
            KeyCode::Char('/') => (self.is_typing, self.overlay) = (true, None),
            KeyCode::Char('s') => {
                let behind = self.selection().column + 1..self.shapes().len();
                let next = behind.chain([0]).find(|column| self.shows(*column));
                self.selection_mut().column = next.unwrap_or_default();
            }
            KeyCode::Char('r') => {
                let selection = self.selection_mut();
                selection.is_descending = !selection.is_descending;
            }
            _ => {}
        }
    }

    fn type_filter(&mut self, code: KeyCode, has_control: bool) {
        match code {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.filter.clear();
                self.is_typing = false;
            }
            KeyCode::Backspace => _ = self.filter.pop(),
            KeyCode::Char(char) if !has_control && self.filter.chars().count() < MAX_FILTER => {
                self.filter.push(char);
            }
            _ => {}
        }
    }

    fn pause(&mut self) {
        self.frozen = match self.frozen {
            Some(_) => None,
            None => Some(Arc::clone(&self.live)),
        };
    }

    fn show_panel(&mut self, panel: usize) {
        (self.panel, self.overlay) = (panel % PANELS.len(), None);
    }

    /// Moves the selection, or the text of what covers the panel.
    fn move_by(&mut self, distance: isize) {
        if let Some(overlay) = &mut self.overlay {
            overlay.scroll = overlay.scroll.saturating_add_signed(distance);
            return;
        }
        let data = self.frozen.as_ref().unwrap_or(&self.live);
        let selection = &mut self.selections[self.panel];
        let at = selection.at.saturating_add_signed(distance);
        selection.choose(at, &data.rows[self.panel], &self.visible);
    }

    fn selected(&self) -> Option<&Row> {
        let at = *self.visible.get(self.selection().at)?;
        self.rows().get(at)
    }

    fn open_details(&mut self) {
        let title = PANELS[self.panel].trim_end_matches('s').to_owned();
        if let Some(row) = self.selected() {
            let (of, items) = (Some(row.key), row.details(self.shapes()));
            self.overlay = Some(Overlay { title, items, scroll: 0, of });
        }
    }

    /// Updates the details of a session. They stay after the session's end.
    fn refresh_details(&mut self) {
        let Some(key) = self.overlay.as_ref().and_then(|overlay| overlay.of) else { return };
        let row =
            self.rows().iter().find(|row| row.key == key).map(|row| row.details(self.shapes()));
        let is_session = self.panel == 0;
        let Some(overlay) = &mut self.overlay else { return };
        match row {
            Some(items) => overlay.items = items,
            None if is_session => overlay.title = "Session (it has ended)".to_owned(),
            None => {}
        }
    }

    /// Selects and orders the rows of the panel.
    fn refresh(&mut self) {
        let data = self.frozen.as_ref().unwrap_or(&self.live);
        let rows = &data.rows[self.panel];
        self.visible =
            self.selections[self.panel].apply(&self.shapes[self.panel], rows, &self.filter);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::top::samples;

    fn state() -> State {
        let mut state = State::new(false);
        state.take(Ok(samples::look()));
        state.fit(200, 1);
        state
    }

    fn press(state: &mut State, keys: &str) -> bool {
        let quits = |char: char| {
            let code = match char {
                '\n' => KeyCode::Enter,
                '\x1b' => KeyCode::Esc,
                '\t' => KeyCode::Tab,
                '\x7f' => KeyCode::Backspace,
                '⇤' => KeyCode::BackTab,
                '⇱' => KeyCode::Home,
                '⇲' => KeyCode::End,
                '⇞' => KeyCode::PageUp,
                '\x03' => {
                    return state.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL));
                }
                char => KeyCode::Char(char),
            };
            state.press(KeyEvent::from(code))
        };
        keys.chars().map(quits).last().unwrap_or(false)
    }

    fn keys(state: &State) -> Vec<u64> {
        state.visible.iter().map(|at| state.rows()[*at].key).collect()
    }

    #[test]
    fn keys_change_panel_order_and_selection() {
        let mut state = state();
        for (pressed, panel, column, at, shown) in [
            ("", 0, 0, 0, &[2, 1][..]),
            ("r", 0, 0, 0, &[1, 2]),
            ("s", 0, 1, 0, &[1, 2]),
            ("\t", 1, 0, 0, &[4, 3, 2]),
            ("j", 1, 0, 1, &[4, 3, 2]),
            ("⇲", 1, 0, 2, &[4, 3, 2]),
            ("⇞", 1, 0, 1, &[4, 3, 2]),
            ("⇱", 1, 0, 0, &[4, 3, 2]),
            ("4\t", 0, 1, 0, &[1, 2]),
            ("⇤", 3, 0, 0, &[0, 1]),
            ("sss", 3, 0, 0, &[0, 1]),
        ] {
            press(&mut state, pressed);
            let found = (state.panel, state.selection().column, state.selection().at, keys(&state));
            assert_eq!(found, (panel, column, at, shown.to_vec()), "{pressed}");
        }
        // A narrow terminal hides columns, by which nothing is sorted then.
        state.fit(80, 1);
        press(&mut state, "2sssssssr");
        assert_eq!(state.shapes()[state.selection().column].title, "RESULT");
        assert_eq!(keys(&state)[0], 2);
        press(&mut state, "s");
        assert_eq!((state.selection().column, keys(&state)[0]), (0, 2));
        state.fit(200, 1);
        press(&mut state, "ssssssssss");
        state.fit(80, 1);
        assert_eq!((state.selection().column, keys(&state)[0]), (0, 2));
    }

    #[test]
    fn the_filter_searches_client_server_user_and_path() {
        let mut state = state();
        press(&mut state, "2/Q3.C");
        assert_eq!(keys(&state), [2]);
        press(&mut state, "\x7f\x7f\x7f\x7f\x7fbob\n");
        assert_eq!((keys(&state).len(), state.filter.as_str()), (3, "bob"));
        assert!(!press(&mut state, "\x1b"), "it clears the filter");
        press(&mut state, "1/2001:db8\n");
        assert_eq!(keys(&state), [2]);
        press(&mut state, "/\x1b");
        assert_eq!((keys(&state), state.filter.as_str()), (vec![2, 1], ""));
        press(&mut state, &format!("/{}", "q".repeat(999)));
        assert_eq!(state.filter.len(), MAX_FILTER);
        assert!(press(&mut state, "\x03"));
    }

    #[test]
    fn details_are_those_of_the_selected_row_until_it_ends() {
        let mut state = state();
        press(&mut state, "j\n");
        let overlay = state.overlay.as_ref().unwrap();
        assert_eq!(overlay.items[1], ("CLIENT", "10.0.0.7:1035".to_owned()));
        let mut look = samples::look();
        look.sessions[0].summary.state = "closing".into();
        state.take(Ok(look));
        assert!(state.overlay.as_ref().unwrap().items.contains(&("STATE", "closing".to_owned())));
        let mut look = samples::look();
        look.sessions.clear();
        state.take(Ok(look));
        let overlay = state.overlay.as_ref().unwrap();
        assert_eq!((overlay.title.as_str(), overlay.items.len()), ("Session (it has ended)", 16));
        assert!(!press(&mut state, "\n"));
        press(&mut state, "\n");
        assert!(state.overlay.is_none(), "no row has details");
    }

    #[test]
    fn an_outage_and_a_restart_are_noted() {
        let mut state = state();
        let error = || ClientError::NoDaemon { path: "/run/\u{1b}[2J".into() };
        state.take(Err(error()));
        let (since, why) = state.outage.clone().unwrap();
        assert!(why.contains("no daemon answers on /run/\\u{1b}[2J"), "{why}");
        state.take(Err(error()));
        assert_eq!(state.outage.as_ref().unwrap().0, since);
        assert_eq!(keys(&state), [2, 1], "what was known stays");
        let mut look = samples::look();
        (look.is_another, look.missed) = (true, 7);
        state.take(Ok(look));
        assert_eq!(state.outage, None);
        let notice = state.notice.clone().unwrap();
        assert!(notice.contains("was restarted") && notice.ends_with("7 events were missed"));
        press(&mut state, "j");
        assert_eq!(state.notice, None);
    }
}
