//! When the daemon crashes.

use super::Rng;

/// What becomes of the daemon at one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    GoesOn,
    /// It is killed after so many calls of its kernel and its host: the first writes what it knows.
    CrashesAfter(u32),
}

/// When crashes come.
pub struct Crashes {
    /// How often, for each packet.
    chance: f64,
    rng: Rng,
    /// What becomes of it next, if that is not left to chance.
    pub next: Option<Fate>,
}

impl Crashes {
    pub fn new(chance: f64, rng: Rng) -> Self {
        Self { chance, rng, next: None }
    }

    /// To be asked between decision and verdict.
    pub fn fate(&mut self) -> Fate {
        let crashes = self.rng.chance(self.chance);
        match self.next.take() {
            Some(next) => next,
            None if crashes => Fate::CrashesAfter(self.calls()),
            None => Fate::GoesOn,
        }
    }

    /// After how many calls it crashes.
    pub fn calls(&mut self) -> u32 {
        self.rng.below(5) as u32
    }

    /// Whether it crashes at one stage, of which there are some for each packet.
    pub fn strikes(&mut self) -> bool {
        self.rng.chance(self.chance / 5.0)
    }
}
