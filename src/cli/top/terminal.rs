//! The terminal: raw mode and the alternate screen, which end however the program ends.

use std::{
    io::{self, IsTerminal, Stdout},
    panic, process,
};

use ratatui::{
    Terminal,
    backend::CrosstermBackend,
    crossterm::{cursor, execute},
};

use crate::cli::Failure;

/// What to do without a terminal.
const INSTEAD: &str = "scripts use `ftp-alg status --json` and `ftp-alg events --follow --json`";

/// The terminal while the live view has it. Dropping it restores it.
pub(super) struct Screen(pub Terminal<CrosstermBackend<Stdout>>);

impl Screen {
    /// Takes the terminal, if there is one.
    pub fn open() -> Result<Self, Failure> {
        // A panic of any thread ends the program, after ratatui's hook has restored the terminal.
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            let _ = execute!(io::stdout(), cursor::Show);
            report(panic);
            process::exit(101);
        }));
        let failed = |error| {
            ratatui::restore();
            Failure::Failed(format!("cannot use the terminal: {error}"))
        };
        ratatui::try_init().map(Self).map_err(failed)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // If that fails, there is no terminal any more.
        let _ = ratatui::try_restore();
    }
}

/// Checks that there is a terminal to show the view on.
pub(super) fn check() -> Result<(), Failure> {
    let why = if !io::stdout().is_terminal() {
        "standard output is no terminal"
    } else if !io::stdin().is_terminal() {
        "standard input is no terminal, so no key could be read"
    } else if std::env::var_os("TERM").is_none_or(|kind| kind.is_empty() || kind == "dumb") {
        "this kind of terminal (TERM) cannot move its cursor"
    } else {
        return Ok(());
    };
    Err(Failure::Failed(format!("{why}: {INSTEAD}")))
}
