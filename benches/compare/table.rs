//! The results as text: each goal with its ratio, then all measurements.

use std::{env, fmt::Write as _, fs, process::Command};

use crate::{
    contestant::Contestant,
    figure::Figure,
    load::BenchReport,
    options::Options,
    results::{MedianAndRange, Results},
};

/// The whole text.
pub fn text(options: &Options, machine: &str, results: &Results) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{machine}");
    let _ = writeln!(text, "{}", command(options));
    let _ = writeln!(
        text,
        "{} rounds of {:?} each, interleaved: median (least..most)\n",
        options.rounds, options.time,
    );
    write_goals(&mut text, options, results);
    write_extra_time(&mut text, options, results);
    for (at, figure) in options.figures.iter().enumerate() {
        let _ = writeln!(text, "\n{}", figure.title());
        for (which, contestant) in options.contestants.iter().enumerate() {
            let reports = results.reports(at, which);
            if !reports.is_empty() {
                let _ = writeln!(text, "  {}", line(*figure, contestant, reports));
            }
        }
    }
    text += "\nThe other goals: `cargo bench --bench daemon` prints start to ready and memory when idle, `--bench pinholes`\n\
             what a pinhole takes, `--bench engine` what a packet costs the engine, and with `-- many` how that grows.\n";
    text
}

fn write_goals(text: &mut String, options: &Options, results: &Results) {
    let _ = writeln!(text, "{:<64} | {:>7} | {:<22} |", "ratio", "goal", "measured");
    for (at, figure) in options.figures.iter().enumerate() {
        for (goal, contestant) in goal_pairs(*figure, options) {
            let least = goal.least_of(*figure, contestant);
            let Some((ratio, with)) = results.ratio(at, contestant.name(), goal) else {
                let mut asked = options.contestants.iter().map(Contestant::name);
                let with = asked.find(|name| goal.with.contains(name));
                if let Some(with) = with.filter(|_| figure.is_for(contestant)) {
                    let what = ratio_title(options, *figure, contestant, with);
                    let _ = writeln!(text, "{what:<64} | >= {least:>4} | not measured");
                }
                continue;
            };
            let what = ratio_title(options, *figure, contestant, with);
            let word = if ratio.median >= least { "reached" } else { "FALLS SHORT" };
            let failed = |name| results.errors(at, name) > 0;
            let errors =
                if failed(contestant.name()) || failed(with) { ", with ERRORS" } else { "" };
            let _ = writeln!(
                text,
                "{what:<64} | {:>7} | {:<22} | {word}{errors}",
                format!(">= {least}"),
                spread(ratio, 3)
            );
        }
    }
}

/// The extra time to forward a packet compared with the firewall alone, and its ratio to the kernel helper's.
fn write_extra_time(text: &mut String, options: &Options, results: &Results) {
    for (at, figure) in options.figures.iter().enumerate() {
        let Figure::Forward(traffic) = figure else { continue };
        let helper = results.extra_time(at, "helper", "firewall");
        for contestant in &options.contestants {
            let Some(longer) = results.extra_time(at, contestant.name(), "firewall") else {
                continue;
            };
            let what = format!(
                "ns a packet beyond the firewall, {}: {}",
                traffic.name(),
                contestant.title()
            );
            let is_ours = matches!(contestant, Contestant::Daemon { .. });
            let ratio = match helper.filter(|helper| is_ours && helper.median > 0.0) {
                Some(helper) => {
                    let ratio = longer.median / helper.median;
                    let word = if ratio <= EXTRA_TIME_GOAL { "reached" } else { "FALLS SHORT" };
                    format!(" {ratio:.2} of the kernel helper's, goal {EXTRA_TIME_GOAL}: {word}")
                }
                None => String::new(),
            };
            let _ = writeln!(text, "{what:<64} | {:>7} | {:<22} |{ratio}", "", spread(longer, 0));
        }
    }
}

/// The goal for the extra time, as a multiple of the kernel helper's, with the fast path's program on the interfaces.
/// Without the program the goal is 1.2.
const EXTRA_TIME_GOAL: f64 = 1.7;

/// The title of a ratio to the contestant named `with`.
pub fn ratio_title(
    options: &Options,
    figure: Figure,
    contestant: &Contestant,
    with: &'static str,
) -> String {
    format!("{}: {} / {}", figure.title(), contestant.title(), title_of(options, with))
}

/// The title of the contestant with that name.
fn title_of(options: &Options, name: &'static str) -> &'static str {
    let mut all = options.contestants.iter();
    all.find(|contestant| contestant.name() == name).map_or(name, Contestant::title)
}

/// Each goal of the figure, with each build of `ftp-alg`.
pub fn goal_pairs(
    figure: Figure,
    options: &Options,
) -> impl Iterator<Item = (&'static crate::figure::Goal, &Contestant)> {
    figure.goals().iter().flat_map(move |goal| {
        let ours = |one: &&Contestant| matches!(one, Contestant::Daemon { .. });
        options.contestants.iter().filter(ours).map(move |contestant| (goal, contestant))
    })
}

fn line(figure: Figure, contestant: &Contestant, reports: &[BenchReport]) -> String {
    let of = |value: fn(&BenchReport) -> f64| MedianAndRange::of(reports.iter().map(value));
    let Some(rate) = of(|report| report.rate) else { return String::new() };
    let digits = if figure.unit() > 1.0 { 2 } else { 0 };
    let rate = spread(rate.scaled(1.0 / figure.unit()), digits);
    let mut line = format!("{:<23} {rate:<26}", contestant.title());
    if figure.clients().is_some() {
        let values = [
            of(|one| one.percentiles[0]),
            of(|one| one.percentiles[1]),
            of(|one| one.percentiles[2]),
        ];
        let [half, nine, most] = values.map(|value| value.map_or(0.0, |value| value.median));
        let _ = write!(line, " p50 {half:.0} us, p90 {nine:.0} us, p99 {most:.0} us");
    }
    if let Some(cost) = MedianAndRange::of(reports.iter().filter_map(|report| report.cost)) {
        let cost = cost.median * 1e6;
        let _ = match figure {
            _ if figure.clients().is_some() => write!(line, ", program {cost:.0} us a cycle"),
            Figure::Packets => write!(line, " program {cost:.2} us a packet,"),
            // No packet of a data connection reaches the program.
            Figure::Forward(_) | Figure::Bulk => Ok(()),
            _ => write!(line, " program {:.2} ns a byte,", cost * 8e3),
        };
    }
    if figure == Figure::Packets && *contestant == Contestant::NoHelper {
        line += " by the clock, of one core that generates and forwards";
    }
    if let Some(note) = reports.iter().find_map(|report| report.note.as_ref()) {
        let _ = write!(line, " {note}");
    }
    let errors: u64 = reports.iter().map(|report| report.errors).sum();
    if errors > 0 {
        let first = reports.iter().find_map(|report| report.error.as_deref());
        let first = first.unwrap_or_default().replace('\n', "; ");
        let _ = write!(line, " {errors} ERRORS, the first: {first}");
    }
    line
}

fn spread(of: MedianAndRange, digits: usize) -> String {
    format!("{:.digits$} ({:.digits$}..{:.digits$})", of.median, of.least, of.most)
}

/// The date, the kernel, the processors and their load.
pub fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let processors = read("/proc/cpuinfo");
    let model =
        processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |(_, model)| model);
    let cores = processors.lines().filter(|line| line.starts_with("processor")).count();
    let load = read("/proc/loadavg");
    let load: f64 = load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0);
    let busy = if load > 0.5 { ": BUSY, spreads are wide" } else { "" };
    let date = Command::new("date").arg("+%F").output().map(|done| done.stdout).unwrap_or_default();
    let date = String::from_utf8_lossy(&date);
    format!(
        "{}, Linux {}, {cores} cores of {model}; load before {load:.2}{busy}",
        date.trim(),
        kernel.trim()
    )
}

fn command(options: &Options) -> String {
    let seconds = options.time.as_secs_f64();
    let rounds =
        format!("FTP_ALG_COMPARE_ROUNDS={} FTP_ALG_COMPARE_SECONDS={seconds}", options.rounds);
    let others = ["FTP_ALG_COMPARE_CONFIG", "FTP_ALG_COMPARE_EXE"]
        .into_iter()
        .filter_map(|name| Some(format!("{name}={} ", env::var_os(name)?.display())));
    let words = options.words.join(" ");
    let words = if words.is_empty() { words } else { format!(" -- {words}") };
    format!("{}{rounds} cargo bench --bench compare{words}", others.collect::<String>())
}
