//! What is asked for: words on the command line that choose figures and contestants, and the
//! environment for what has a number or a path.

use std::{env, path::PathBuf, time::Duration};

use crate::{contestant::Contestant, figure::Figure, load::Verb, pin::Pin};

/// How to use it; printed for a word that means nothing.
pub const USAGE: &str = "\
words choose; without any of a kind, all of it is measured
  figures      cycles sessions packets bulk control
  contestants  ours by-core other helper loop suse hurried proftpd none
  verbs        pasv port epsv eprt; those chosen take turns (unless chosen: cycles of either of the first two,
               sessions of both in turn)
  workers      a number, as in: 1 8
  placement    together (traffic and gateway on the first core), apart (gateway on the second)
  --keep       writes docs/benchmarks/comparison.txt and .svg, else they are in target/
environment
  FTP_ALG_COMPARE_ROUNDS=5      FTP_ALG_COMPARE_SECONDS=2
  FTP_ALG_COMPARE_CONFIG=FILE   configuration of the daemon (of `other`, if that is given)
  FTP_ALG_COMPARE_EXE=PROGRAM   another build, measured as `other`";

/// All that is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// In the table's order.
    pub figures: Vec<Figure>,
    /// In the table's order; the order of measuring changes from round to round.
    pub contestants: Vec<Contestant>,
    /// Said in turn, where the figure does not say which.
    pub verbs: Vec<Verb>,
    /// Where processes run.
    pub pin: Pin,
    /// How often each is measured.
    pub rounds: usize,
    /// For how long.
    pub time: Duration,
    /// Whether the result goes into the docs.
    pub keep: bool,
    /// The words, for the command that is printed.
    pub words: Vec<String>,
}

impl Options {
    /// Reads command line and environment.
    pub fn read() -> std::result::Result<Self, String> {
        let mut options = Self {
            figures: Vec::new(),
            contestants: Vec::new(),
            verbs: Vec::new(),
            pin: Pin::Free,
            rounds: number("FTP_ALG_COMPARE_ROUNDS", 5)?,
            time: Duration::from_millis(
                (number::<f64>("FTP_ALG_COMPARE_SECONDS", 2.0)? * 1000.0) as u64,
            ),
            keep: false,
            words: env::args().skip(1).filter(|word| word != "--bench").collect(),
        };
        let all = contestants()?;
        let words = options.words.clone();
        let (mut figures, mut workers) = (Vec::new(), Vec::new());
        for word in &words {
            if let Some(contestant) = all.iter().find(|one| one.name() == word.as_str()) {
                options.contestants.push(contestant.clone());
                continue;
            }
            match word.as_str() {
                "cycles" | "sessions" | "packets" | "bulk" | "control" => {
                    figures.push(word.as_str())
                }
                "pasv" => options.verbs.push(Verb::Pasv),
                "port" => options.verbs.push(Verb::Port),
                "epsv" => options.verbs.push(Verb::Epsv),
                "eprt" => options.verbs.push(Verb::Eprt),
                "together" => options.pin = Pin::Together,
                "apart" => options.pin = Pin::Apart,
                "--keep" => options.keep = true,
                number => match number.parse() {
                    Ok(number @ 1..=1000) => workers.push(number),
                    _ => return Err(format!("{word} means nothing here\n{USAGE}")),
                },
            }
        }
        if options.contestants.is_empty() {
            options.contestants = all;
        }
        // A client has its transfers active or passive.
        let of_cycles = match options.verbs[..] {
            [] => vec![Some(Verb::Pasv), Some(Verb::Port)],
            [verb] => vec![Some(verb)],
            _ => vec![None],
        };
        if options.verbs.is_empty() {
            options.verbs = vec![Verb::Pasv, Verb::Port];
        }
        if workers.is_empty() {
            workers = vec![1, 8];
        }
        if figures.is_empty() {
            figures = vec!["cycles", "sessions", "packets", "bulk", "control"];
        }
        for figure in figures {
            match figure {
                "packets" => options.figures.push(Figure::Packets),
                "bulk" => options.figures.push(Figure::Bulk),
                "control" => options.figures.push(Figure::Control),
                "sessions" => {
                    options.figures.extend(workers.iter().map(|count| Figure::Sessions(*count)));
                }
                _ => options.figures.extend(
                    of_cycles
                        .iter()
                        .flat_map(|verb| workers.iter().map(|count| Figure::Cycles(*count, *verb))),
                ),
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
    let daemon = |name, executable, configuration: &str| Contestant::Daemon {
        name,
        executable,
        configuration: configuration.to_owned(),
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let by_core = format!("[queue]\nworkers = {cores}\nfanout = \"cpu\"\n");
    let mut all = match env::var_os("FTP_ALG_COMPARE_EXE") {
        Some(other) => {
            vec![daemon("ours", ours, ""), daemon("other", other.into(), &configuration)]
        }
        None => vec![
            daemon("ours", ours.clone(), &configuration),
            daemon(Contestant::BY_CORE, ours, &by_core),
        ],
    };
    all.extend([
        Contestant::KernelHelper,
        Contestant::AcceptLoop,
        Contestant::SuseProxy { hurried: false },
        Contestant::SuseProxy { hurried: true },
        Contestant::Proftpd,
        Contestant::NoHelper,
    ]);
    Ok(all)
}

fn number<T: std::str::FromStr>(name: &str, default: T) -> std::result::Result<T, String> {
    match env::var(name) {
        Ok(text) => text.parse().map_err(|_| format!("{name}={text} is no number")),
        Err(_) => Ok(default),
    }
}
