//! The progress bar of `replay` on standard error: how much of a capture was read.

use std::{
    env,
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

/// The bar appears after this time, and moves in this interval.
const INTERVAL: Duration = Duration::from_millis(250);
const BAR_WIDTH: u64 = 30;

/// A progress bar. It has neither colours nor other escape sequences.
pub(in crate::cli) struct Progress {
    /// Whether standard error is a terminal.
    is_possible: bool,
    /// The name and the size of the capture, if that is known.
    capture: Option<(String, u64)>,
    last_drawn: Instant,
    /// The number of characters on the terminal.
    drawn: usize,
}

impl Progress {
    pub fn new() -> Self {
        let is_dumb = env::var_os("TERM").is_none_or(|terminal| terminal == "dumb");
        Self {
            is_possible: io::stderr().is_terminal() && !is_dumb,
            capture: None,
            last_drawn: Instant::now(),
            drawn: 0,
        }
    }

    /// Begins a capture of `size` bytes.
    pub fn begin(&mut self, name: &str, size: Option<u64>) {
        self.clear();
        self.last_drawn = Instant::now();
        self.capture = size.filter(|size| self.is_possible && *size > 0).map(|n| (name.into(), n));
    }

    /// Shows that `position` bytes of the file were read.
    pub fn update(&mut self, position: u64) {
        let Some((name, size)) = &self.capture else { return };
        if self.last_drawn.elapsed() >= INTERVAL {
            let text = bar(name, position, *size);
            self.draw(&text);
            self.last_drawn = Instant::now();
        }
    }

    /// Removes the bar, so that a line can be printed.
    pub fn clear(&mut self) {
        if self.drawn > 0 {
            self.draw("");
            let _ = write!(io::stderr(), "\r");
        }
    }

    fn draw(&mut self, text: &str) {
        let width = text.chars().count();
        // If it cannot be shown, the replay goes on.
        let _ = write!(io::stderr(), "\r{text}{:1$}", "", self.drawn.saturating_sub(width));
        self.drawn = width;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn bar(name: &str, position: u64, size: u64) -> String {
    let position = position.min(size);
    let share =
        |whole: u64| (u128::from(position) * u128::from(whole) / u128::from(size.max(1))) as usize;
    let (done, all) = (share(BAR_WIDTH), BAR_WIDTH as usize);
    let start: String = name.chars().take(30).collect();
    format!("{start} [{}{}] {:3}%", "#".repeat(done), "-".repeat(all - done), share(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_shows_the_share_of_the_file() {
        let none = format!("a.gz [{}]   0%", "-".repeat(30));
        assert_eq!(bar("a.gz", 0, 1000), none);
        let half = format!("a.gz [{}{}]  50%", "#".repeat(15), "-".repeat(15));
        assert_eq!(bar("a.gz", 500, 1000), half);
        let all = format!("a.gz [{}] 100%", "#".repeat(30));
        for (position, size) in [(1000, 1000), (1001, 1000), (u64::MAX, u64::MAX)] {
            assert_eq!(bar("a.gz", position, size), all, "a growing file is not over 100%");
        }
        assert_eq!(bar("a.gz", 5, 0), none, "no division by zero");
    }
}
