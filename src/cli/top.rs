//! `ftp-alg top`: shows sessions, transfers and failures while they happen. It only reads what the control socket shows.
//!
//! The main thread draws, and alone has the terminal. Others send it messages: one reads keys, one waits for signals, one
//! asks the daemon.

mod data;
mod look;
mod rows;
#[cfg(test)]
mod samples;
mod select;
mod state;
mod terminal;
mod view;

use std::{
    io,
    sync::{
        Arc,
        atomic::AtomicBool,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use ratatui::crossterm::event::{self, Event};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
    iterator::Signals,
};

use self::{
    look::{Look, Watcher},
    state::State,
    terminal::Screen,
};
use super::{Failure, SocketOption, seconds};
use crate::daemon::{control_client::ClientError, wants_colours};

/// Messages that wait while the terminal is slow.
const MESSAGES: usize = 16;
/// A look takes at most this part of the time: the daemon has other work.
const SHARE: u32 = 10;

/// Watch sessions, transfers and failures in the terminal
///
/// Shows health, rates, sessions with the bytes of their transfers, and transfers
/// and failures as they come. Press `?` for the keys, and `q` to quit. It changes
/// nothing, and it waits for a daemon that is restarted.
///
/// Transfers are shown if the daemon reports them (log.transfers). For scripts:
/// `ftp-alg status --json` and `ftp-alg events --follow --json`.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct TopOptions {
    /// Seconds between two looks, at least 0.2
    #[arg(long, value_name = "SECS", default_value = "1", value_parser = |text: &str| seconds(text, 0.2, 3600.0))]
    interval: Duration,
    #[command(flatten)]
    socket: SocketOption,
}

/// What the main thread waits for.
enum Message {
    Look(Box<Result<Look, ClientError>>),
    Terminal(io::Result<Event>),
    Signal,
}

impl TopOptions {
    /// Shows the view until a key or a signal ends it.
    pub fn run(&self) -> Result<(), Failure> {
        terminal::check()?;
        let mut watcher = Watcher::new(self.socket.clone());
        let mut state = State::new(wants_colours(&io::stdout()));
        state.take(Ok(watcher.look()?));
        let (sender, messages) = sync_channel(MESSAGES);
        send_signals(sender.clone()).map_err(Failure::failed)?;
        let mut screen = Screen::open()?;
        send_keys(sender.clone()).map_err(Failure::failed)?;
        self.send_looks(watcher, sender).map_err(Failure::failed)?;
        show(&mut screen, &mut state, &messages)
            .map_err(|error| Failure::Failed(format!("the terminal failed: {error}")))
    }

    fn send_looks(&self, mut watcher: Watcher, sender: SyncSender<Message>) -> io::Result<()> {
        let interval = self.interval;
        let work = move || {
            let mut took = Duration::ZERO;
            loop {
                thread::sleep(interval.max(took * (SHARE - 1)));
                let start = Instant::now();
                let look = watcher.look();
                took = start.elapsed();
                if sender.send(Message::Look(Box::new(look))).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("looks".into()).spawn(work).map(drop)
    }
}

/// Draws the state after each message, until a key or a signal ends it.
fn show(screen: &mut Screen, state: &mut State, messages: &Receiver<Message>) -> io::Result<()> {
    loop {
        screen.0.draw(|frame| view::draw(state, frame))?;
        match messages.recv() {
            Ok(Message::Look(look)) => state.take(*look),
            Ok(Message::Terminal(event)) => {
                if event?.as_key_press_event().is_some_and(|key| state.press(key)) {
                    return Ok(());
                }
            }
            Ok(Message::Signal) | Err(_) => return Ok(()),
        }
    }
}

fn send_keys(sender: SyncSender<Message>) -> io::Result<()> {
    let work = move || {
        loop {
            let event = event::read();
            let has_failed = event.is_err();
            if sender.send(Message::Terminal(event)).is_err() || has_failed {
                return;
            }
        }
    };
    thread::Builder::new().name("keys".into()).spawn(work).map(drop)
}

fn send_signals(sender: SyncSender<Message>) -> io::Result<()> {
    const ENDS: [i32; 3] = [SIGHUP, SIGINT, SIGTERM];
    // The second one ends the program at once: the terminal may be one that takes no output.
    let is_second = Arc::new(AtomicBool::new(false));
    for signal in ENDS {
        flag::register_conditional_shutdown(signal, 1, Arc::clone(&is_second))?;
        flag::register(signal, Arc::clone(&is_second))?;
    }
    let mut signals = Signals::new(ENDS)?;
    let work = move || {
        for _ in signals.forever() {
            let _ = sender.send(Message::Signal);
        }
    };
    thread::Builder::new().name("signals".into()).spawn(work).map(drop)
}
