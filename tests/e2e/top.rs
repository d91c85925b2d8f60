//! `ftp-alg top` as a person sees it: on a terminal, whose screen the tests read.

use std::{
    io::{Read as _, Write as _},
    num::NonZero,
    process::{Child, ExitStatus, Stdio},
    sync::{Arc, Mutex},
};

use rustix::{
    pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{Winsize, tcgetattr, tcsetwinsize},
};

use crate::common::*;

/// A terminal with `ftp-alg top` on it, which leads the terminal's session as a shell's command does.
struct View {
    program: Child,
    /// The other end of the terminal.
    keyboard: fs::File,
    terminal: fs::File,
    screen: Arc<Mutex<vt100::Parser>>,
    modes: String,
}

/// Both ends of a new terminal: the keyboard's and the program's.
fn new_terminal() -> (fs::File, fs::File) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let keyboard = openpt(flags).unwrap();
    unlockpt(&keyboard).unwrap();
    let terminal = fs::File::from(ioctl_tiocgptpeer(&keyboard, flags).unwrap());
    let keyboard = fs::File::from(keyboard);
    set_size(&keyboard, 80, 24);
    (keyboard, terminal)
}

/// Starts the program on a terminal.
fn launch(gateway: &Gateway, terminal: &fs::File) -> Child {
    let mut command = gateway.lab.gateway.command("setsid");
    command.arg("--ctty").arg(executable()).args(["top", "--interval", "0.2", "--socket"]);
    command.arg(gateway.daemon.socket()).env("TERM", "xterm-256color").env_remove("NO_COLOR");
    let end = || Stdio::from(terminal.try_clone().unwrap());
    command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap()
}

fn set_size(terminal: &fs::File, columns: u16, rows: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).unwrap();
}

/// Waits for the end of a program.
fn wait_for_end(program: &mut Child) -> ExitStatus {
    let mut status = None;
    wait_for("the end of the view", || {
        status = program.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

impl View {
    fn start(gateway: &Gateway) -> Self {
        let (keyboard, terminal) = new_terminal();
        let modes = format!("{:?}", tcgetattr(&terminal).unwrap());
        let program = launch(gateway, &terminal);
        let screen = Arc::new(Mutex::new(vt100::Parser::default()));
        let (mut output, reader) = (keyboard.try_clone().unwrap(), Arc::clone(&screen));
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                reader.lock().unwrap().process(&bytes[..count]);
            }
        });
        Self { program, keyboard, terminal, screen, modes }
    }

    fn text(&self) -> String {
        self.screen.lock().unwrap().screen().contents()
    }

    /// Waits until the screen shows all of `parts`.
    #[track_caller]
    fn wait(&self, parts: &[&str]) {
        self.wait_until(&format!("{parts:?}"), |text| parts.iter().all(|part| text.contains(part)));
    }

    #[track_caller]
    fn wait_until(&self, what: &str, ready: impl Fn(&str) -> bool) {
        wait_for(&format!("{what} on the screen"), || ready(&self.text()));
    }

    fn press(&self, keys: &str) {
        // Before that, the terminal shows the keys.
        wait_for("the view", || self.screen.lock().unwrap().screen().alternate_screen());
        (&self.keyboard).write_all(keys.as_bytes()).unwrap();
    }

    fn resize(&self, columns: u16, rows: u16) {
        let [high, wide] = [rows, columns].map(|size| NonZero::new(size).unwrap());
        self.screen.lock().unwrap().screen_mut().set_size(high, wide);
        set_size(&self.keyboard, columns, rows);
    }

    /// Waits for the end, and asserts that the terminal is as it was.
    #[track_caller]
    fn assert_restored(&mut self) {
        let status = wait_for_end(&mut self.program);
        assert!(status.success(), "{status}: {}", self.text());
        wait_for("the main screen", || {
            let parser = self.screen.lock().unwrap();
            !parser.screen().alternate_screen() && !parser.screen().hide_cursor()
        });
        assert_eq!(format!("{:?}", tcgetattr(&self.terminal).unwrap()), self.modes);
        assert_eq!(self.text().trim(), "", "what was before");
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("the screen:\n{}", self.text());
        }
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

#[test]
fn a_session_and_its_transfers_are_shown_while_they_happen() {
    let gateway = gateway(Topology::Masquerade);
    let lab = &gateway.lab;
    let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
    let transfer = curl(lab, &server, Mode::Active);
    let mut view = View::start(&gateway);
    view.wait(&["OK healthy", "[1 Sessions 0]", "no sessions"]);
    let held = hold(lab, (login_as(server.login()), gate()));
    view.wait(&["[1 Sessions 1]", "192.168.150.80:"]);
    view.press("2");
    transfer.upload("q3.csv", b"12345").unwrap();
    view.wait(&["[2 Transfers 1]", " STOR ", "q3.csv", "5 B", "complete"]);
    view.press(" ");
    view.wait(&["PAUSED"]);
    transfer.upload("later.csv", b"1").unwrap();
    let other = View::start(&gateway);
    other.press("2");
    other.wait(&["later.csv"]);
    assert!(!view.text().contains("later.csv"), "{}", view.text());
    view.press("p");
    view.wait(&["[2 Transfers 2]", "later.csv"]);
    view.resize(200, 50);
    view.wait_until("a large screen", |text| text.lines().count() > 40);
    view.resize(80, 24);
    view.wait_until("a small screen", |text| text.lines().count() <= 24);
    assert_eq!(held.release().error, None);
    view.press("1");
    view.wait(&["[1 Sessions 0]", "no sessions"]);
    view.press("q");
    view.assert_restored();
}

#[test]
fn signals_and_a_hangup_end_the_view() {
    let gateway = gateway(Topology::Masquerade);
    for name in ["TERM", "HUP", "INT"] {
        let mut view = View::start(&gateway);
        view.wait(&["no sessions"]);
        let id = view.program.id().to_string();
        gateway.lab.gateway.run("kill", &[&format!("-{name}"), &id]).unwrap();
        view.assert_restored();
    }
    let (mut keyboard, terminal) = new_terminal();
    let mut program = launch(&gateway, &terminal);
    drop(terminal);
    // The view has begun.
    keyboard.read_exact(&mut [0; 1000]).unwrap();
    drop(keyboard);
    wait_for_end(&mut program);
}
