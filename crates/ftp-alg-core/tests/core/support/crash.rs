//! When the daemon crashes.

use super::{Rng, recorder::Life};

pub struct Crashes {
    /// How often, for each packet.
    pub chance: f64,
    pub rng: Rng,
}

impl Crashes {
    /// Whether the daemon is killed at one stage, of which there are some for each packet. If so, `life` ends after some
    /// calls.
    pub fn strike(&mut self, life: &Life) -> bool {
        let strikes = self.rng.chance(self.chance / 5.0);
        if strikes {
            life.ends_after(self.rng.below(5) as u32);
        }
        strikes
    }
}
