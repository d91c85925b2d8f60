//! When the daemon crashes.

use super::Rng;

/// What becomes of the daemon at one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    GoesOn,
    /// It is killed before it writes what it knows;
    Crashes,
    /// or after that.
    WritesAndCrashes,
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
        let (crashes, writes) = (self.rng.chance(self.chance), self.rng.chance(0.5));
        match (crashes, writes) {
            _ if self.next.is_some() => self.next.take().unwrap_or(Fate::GoesOn),
            (false, _) => Fate::GoesOn,
            (true, false) => Fate::Crashes,
            (true, true) => Fate::WritesAndCrashes,
        }
    }

    /// Whether it crashes between one effect and the next, of which there are some for each packet.
    pub fn strikes(&mut self) -> bool {
        self.rng.chance(self.chance / 5.0)
    }
}
