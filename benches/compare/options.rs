//! The options: words on the command line choose figures and contestants, and environment variables set numbers and
//! paths.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    contestant::Contestant, figure::Figure, forward::Traffic, load::Verb, placement::Placement,
};

/// The help, which is printed for an unknown word.
pub const USAGE: &str = "\
words choose what is measured; without any word of a kind, all of that kind
  figures      cycles published sessions packets forward bulk control
  contestants  ours one-worker flowtable other helper loop suse hurried proftpd firewall none; flowtable only if named
  verbs        pasv port epsv eprt; chosen ones take turns (without any: pasv and port, each by itself)
  clients      how many at once, as in: 1 8
  placement    together (traffic and gateway on the first core), apart (gateway on the second)
  --keep       writes docs/benchmarks/comparison.txt and .svg instead of files in target/; not with other words, because
               these files are of all figures
environment
  FTP_ALG_COMPARE_ROUNDS=5      FTP_ALG_COMPARE_SECONDS=2
  FTP_ALG_COMPARE_CONFIG=FILE   configuration of the daemon (of `other`, if that is given)
  FTP_ALG_COMPARE_EXE=PROGRAM   another build, measured as `other` instead of `one-worker`
  FTP_ALG_COMPARE_LOG=1         prints each report, and the log of the gateway's program";

/// The options of a comparison.
#[derive(Clone, Debug)]
pub struct Options {
    /// The figures, in the order of the table.
    pub figures: Vec<Figure>,
    /// The contestants, in the order of the table. The order of measuring changes from round to round.
    pub contestants: Vec<Contestant>,
    /// The commands that transfers use in turn, if the figure does not name one.
    pub verbs: Vec<Verb>,
    /// On which cores processes run.
    pub placement: Placement,
    /// How often each contestant is measured.
    pub rounds: usize,
    /// The duration of each measurement.
    pub time: Duration,
    /// Whether to write the results to docs/benchmarks.
    pub keep: bool,
    /// The words of the command line, for the command that is printed.
    pub words: Vec<String>,
}

impl Options {
    /// Reads the command line and the environment.
    pub fn read() -> std::result::Result<Self, String> {
        let rounds = number("FTP_ALG_COMPARE_ROUNDS", 5)?;
        let seconds = number("FTP_ALG_COMPARE_SECONDS", 2.0)?;
        if rounds == 0 || !(0.1..=600.0).contains(&seconds) {
            return Err(
                "FTP_ALG_COMPARE_ROUNDS is at least 1, FTP_ALG_COMPARE_SECONDS 0.1 to 600".into()
            );
        }
        let mut options = Self {
            figures: Vec::new(),
            contestants: Vec::new(),
            verbs: Vec::new(),
            placement: Placement::Free,
            rounds,
            time: Duration::from_secs_f64(seconds),
            keep: false,
            words: Vec::new(),
        };
        for word in env::args().skip(1).filter(|word| word != "--bench") {
            if !options.words.contains(&word) {
                options.words.push(word);
            }
        }
        let all = contestants()?;
        let words = options.words.clone();
        let (mut figures, mut clients) = (Vec::new(), Vec::new());
        for word in &words {
            if let Some(contestant) = all.iter().find(|one| one.name() == word.as_str()) {
                options.contestants.push(contestant.clone());
                continue;
            }
            match word.as_str() {
                "cycles" | "published" | "sessions" | "packets" | "forward" | "bulk"
                | "control" => figures.push(word.as_str()),
                "pasv" => options.verbs.push(Verb::Pasv),
                "port" => options.verbs.push(Verb::Port),
                "epsv" => options.verbs.push(Verb::Epsv),
                "eprt" => options.verbs.push(Verb::Eprt),
                "together" => options.placement = Placement::Together,
                "apart" => options.placement = Placement::Apart,
                "--keep" if words.len() == 1 => options.keep = true,
                "--keep" => {
                    return Err("--keep allows no other words: it saves all figures".to_owned());
                }
                "other" => return Err("`other` needs FTP_ALG_COMPARE_EXE".to_owned()),
                Contestant::ONE_WORKER => {
                    let why = "`one-worker` is not measured with FTP_ALG_COMPARE_EXE";
                    return Err(why.to_owned());
                }
                number => match number.parse() {
                    Ok(number @ 1..=1000) => clients.push(number),
                    _ => return Err(format!("unknown word: {word}\n{USAGE}")),
                },
            }
        }
        if options.contestants.is_empty() {
            options.contestants = all;
            options.contestants.retain(|one| one.name() != Contestant::FLOWTABLE); // not on every kernel
        }
        // Most clients use either active or passive mode for all transfers.
        let announced = match options.verbs[..] {
            [] => vec![Some(Verb::Pasv), Some(Verb::Port)],
            [verb] => vec![Some(verb)],
            _ => vec![None],
        };
        if options.verbs.is_empty() {
            options.verbs = vec![Verb::Pasv, Verb::Port];
        }
        if clients.is_empty() {
            clients = vec![1, 8];
        }
        if figures.is_empty() {
            figures =
                vec!["cycles", "published", "sessions", "packets", "forward", "bulk", "control"];
        }
        for figure in figures {
            match figure {
                "packets" => options.figures.push(Figure::Packets),
                "forward" => options.figures.extend(Traffic::ALL.map(Figure::Forward)),
                "bulk" => options.figures.push(Figure::Bulk),
                "control" => options.figures.push(Figure::Control),
                "published" => {
                    options.figures.extend(clients.iter().copied().map(Figure::Published))
                }
                _ => options.figures.extend(announced.iter().flat_map(|verb| {
                    clients.iter().map(move |count| match figure {
                        "sessions" => Figure::Sessions(*count, *verb),
                        _ => Figure::Cycles(*count, *verb),
                    })
                })),
            }
        }
        Ok(options)
    }
}

fn contestants() -> std::result::Result<Vec<Contestant>, String> {
    let configuration = match env::var_os("FTP_ALG_COMPARE_CONFIG") {
        Some(path) => std::fs::read_to_string(&path)
            .map_err(|error| format!("FTP_ALG_COMPARE_CONFIG={}: {error}", path.display()))?,
        None => String::new(),
    };
    let ours = PathBuf::from(env!("CARGO_BIN_EXE_ftp-alg"));
    let other = env::var_os("FTP_ALG_COMPARE_EXE").map(PathBuf::from);
    check(other.as_ref().unwrap_or(&ours))?;
    let daemon = |name, executable, configuration: &str| Contestant::Daemon {
        name,
        executable,
        configuration: configuration.to_owned(),
    };
    let mut all = match other {
        Some(other) => vec![daemon("ours", ours, ""), daemon("other", other, &configuration)],
        None => vec![
            daemon("ours", ours.clone(), &configuration),
            daemon(Contestant::ONE_WORKER, ours.clone(), "queue.workers = 1\n"),
            daemon(Contestant::FLOWTABLE, ours, ""),
        ],
    };
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

fn number<T: std::str::FromStr>(name: &str, default: T) -> std::result::Result<T, String> {
    match env::var(name) {
        Ok(text) => text.parse().map_err(|_| format!("{name}={text} is not a number")),
        Err(_) => Ok(default),
    }
}
