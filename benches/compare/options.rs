//! The options: words on the command line choose figures and contestants, and environment variables set numbers and
//! paths.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{contestant::Contestant, figure::Figure, forward::Traffic, load::Verb};

/// The help, which is printed for an unknown word.
pub const USAGE: &str = "\
words choose what is measured; without any word of a kind, all of that kind
  figures      cycles cycles6 published sessions packets forward bulk control
  contestants  ours other conntrack helper loop suse hurried proftpd firewall none
  verbs        pasv port epsv eprt, each by itself; without any: pasv and port; cycles6: epsv and eprt
  clients      how many at once, as in: 1 8
  --keep       writes docs/benchmarks/comparison.txt instead of a file in target/; not with other words, because that
               file is of all figures
environment
  FTP_ALG_COMPARE_ROUNDS=5      FTP_ALG_COMPARE_SECONDS=2
  FTP_ALG_COMPARE_CONFIG=FILE   configuration of the daemon (of `other`, if that is given)
  FTP_ALG_COMPARE_OURS=FILE     configuration of `ours`, if `other` is given
  FTP_ALG_COMPARE_EXE=PROGRAM   another build, measured as `other`";

/// The options of a comparison.
#[derive(Clone, Debug)]
pub struct Options {
    /// The figures, in the order of the table.
    pub figures: Vec<Figure>,
    /// The contestants, in the order of the table. The order of measuring changes from round to round.
    pub contestants: Vec<Contestant>,
    /// How often each contestant is measured.
    pub rounds: usize,
    /// The duration of each measurement.
    pub time: Duration,
    /// Whether to write the results to docs/benchmarks.
    pub keep: bool,
    /// The words of the command line, for the command that is printed.
    pub words: Vec<String>,
}

/// The configuration of the contestant `conntrack`.
const CONNTRACK: &str = "pinhole.backend = \"conntrack\"\n";

const FIGURES: [&str; 8] =
    ["cycles", "cycles6", "published", "sessions", "packets", "forward", "bulk", "control"];

impl Options {
    /// Reads the command line and the environment.
    pub fn read() -> std::result::Result<Self, String> {
        let rounds = number("FTP_ALG_COMPARE_ROUNDS", 5)?;
        let seconds = number("FTP_ALG_COMPARE_SECONDS", 2.0)?;
        if rounds == 0 || !(0.1..=600.0).contains(&seconds) {
            let allowed =
                "FTP_ALG_COMPARE_ROUNDS is at least 1, FTP_ALG_COMPARE_SECONDS 0.1 to 600";
            return Err(allowed.to_owned());
        }
        let words: Vec<String> = env::args().skip(1).filter(|word| word != "--bench").collect();
        let all = contestants()?;
        let (mut contestants, mut keep) = (Vec::new(), false);
        let (mut figures, mut verbs, mut clients) = (Vec::new(), Vec::new(), Vec::new());
        for word in &words {
            if let Some(contestant) = all.iter().find(|one| one.name() == word) {
                contestants.push(contestant.clone());
            } else if let Some(figure) = FIGURES.iter().find(|figure| *figure == word) {
                figures.push(*figure);
            } else if let Some(verb) =
                Verb::ALL.iter().find(|verb| verb.name().to_lowercase() == *word)
            {
                verbs.push(*verb);
            } else {
                match (word.as_str(), word.parse()) {
                    ("--keep", _) if words.len() == 1 => keep = true,
                    ("--keep", _) => return Err("--keep allows no other words".to_owned()),
                    ("other", _) => return Err("`other` needs FTP_ALG_COMPARE_EXE".to_owned()),
                    (_, Ok(number @ 1..=1000)) => clients.push(number),
                    _ => return Err(format!("unknown word: {word}\n{USAGE}")),
                }
            }
        }
        if figures.is_empty() {
            figures = FIGURES.to_vec();
        }
        if contestants.is_empty() {
            contestants = all;
        }
        // Most clients use either active or passive mode for all transfers.
        if verbs.is_empty() {
            verbs = vec![Verb::Pasv, Verb::Port];
        }
        if clients.is_empty() {
            clients = vec![1, 8];
        }
        let mut chosen = Vec::new();
        for figure in figures {
            let with = |verbs: &[Verb], of: fn(usize, Verb) -> Figure| {
                let of_verb = |verb: &Verb| clients.iter().map(|count| of(*count, *verb)).collect();
                verbs.iter().flat_map::<Vec<_>, _>(of_verb).collect::<Vec<_>>()
            };
            let each = |of| with(&verbs, of);
            chosen.extend(match figure {
                "cycles" => each(Figure::Cycles),
                "cycles6" => with(&[Verb::Epsv, Verb::Eprt], Figure::Cycles6),
                "sessions" => each(Figure::Sessions),
                "published" => clients.iter().copied().map(Figure::Published).collect(),
                "packets" => vec![Figure::Packets],
                "forward" => Traffic::ALL.map(Figure::Forward).to_vec(),
                "bulk" => vec![Figure::Bulk],
                _ => vec![Figure::Control],
            });
        }
        let time = Duration::from_secs_f64(seconds);
        Ok(Self { figures: chosen, contestants, rounds, time, keep, words })
    }
}

fn contestants() -> std::result::Result<Vec<Contestant>, String> {
    let configuration = file("FTP_ALG_COMPARE_CONFIG")?;
    let ours = PathBuf::from(env!("CARGO_BIN_EXE_ftp-alg"));
    let other = env::var_os("FTP_ALG_COMPARE_EXE").map(PathBuf::from);
    check(other.as_ref().unwrap_or(&ours))?;
    let daemon = |name, executable, configuration: &str| {
        let configuration = configuration.to_owned();
        Contestant::Daemon { name, executable, configuration }
    };
    let mut all = match other {
        Some(other) => vec![
            daemon("ours", ours, &file("FTP_ALG_COMPARE_OURS")?),
            daemon("other", other, &configuration),
        ],
        None => vec![daemon("ours", ours, &configuration)],
    };
    all.push(daemon("conntrack", PathBuf::from(env!("CARGO_BIN_EXE_ftp-alg")), CONNTRACK));
    all.extend([
        Contestant::KernelHelper,
        Contestant::AcceptLoop,
        Contestant::SuseProxy { hurried: false },
        Contestant::SuseProxy { hurried: true },
        Contestant::Proftpd,
        Contestant::Firewall,
        Contestant::NoHelper,
    ]);
    Ok(all)
}

/// Checks that the program exists, and that it accepts the configuration.
fn check(program: &Path) -> std::result::Result<(), String> {
    let Some(path) = env::var_os("FTP_ALG_COMPARE_CONFIG") else {
        return match program.metadata() {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("{}: {error}", program.display())),
        };
    };
    let checked = Command::new(program).arg("check").arg("--config").arg(path).output();
    let checked = checked.map_err(|error| format!("{}: {error}", program.display()))?;
    if checked.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&checked.stderr).trim().to_owned())
}

/// The text of the file that a variable names; empty without it.
fn file(name: &str) -> std::result::Result<String, String> {
    let Some(path) = env::var_os(name) else { return Ok(String::new()) };
    std::fs::read_to_string(&path).map_err(|error| format!("{name}={}: {error}", path.display()))
}

fn number<T: std::str::FromStr>(name: &str, default: T) -> std::result::Result<T, String> {
    match env::var(name) {
        Ok(text) => text.parse().map_err(|_| format!("{name}={text} is not a number")),
        Err(_) => Ok(default),
    }
}
