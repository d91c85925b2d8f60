//! The results: reports, their medians and ranges, and ratios.

use crate::{contestant::Contestant, figure::Goal, load::BenchReport, options::Options};

/// The reports, by figure, contestant and round.
pub struct Results {
    reports: Vec<Vec<Vec<BenchReport>>>,
    names: Vec<&'static str>,
}

/// The median of some values, and their range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MedianAndRange {
    /// The median.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl MedianAndRange {
    /// The median and range of `values`. `None` if there are no values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let upper = values[values.len() / 2];
        let lower = values[(values.len() - 1) / 2];
        Some(Self { median: (lower + upper) / 2.0, least, most })
    }

    /// Multiplies all three values by `factor`.
    pub fn scaled(self, factor: f64) -> Self {
        Self { median: self.median * factor, least: self.least * factor, most: self.most * factor }
    }
}

impl Results {
    /// Empty results for the chosen figures and contestants.
    pub fn new(options: &Options) -> Self {
        let names = options.contestants.iter().map(|contestant| contestant.name()).collect();
        let reports = vec![vec![Vec::new(); options.contestants.len()]; options.figures.len()];
        Self { reports, names }
    }

    /// Adds the report of another round.
    pub fn add(&mut self, figure: usize, contestant: usize, report: BenchReport) {
        self.reports[figure][contestant].push(report);
    }

    /// The reports of a contestant, one for each round.
    pub fn reports(&self, figure: usize, contestant: usize) -> &[BenchReport] {
        &self.reports[figure][contestant]
    }

    /// The number of errors in all rounds of the contestant `name`.
    pub fn errors(&self, figure: usize, name: &str) -> u64 {
        let at = self.names.iter().position(|other| *other == name);
        let reports = at.map_or(&[][..], |at| self.reports(figure, at));
        reports.iter().map(|report| report.errors).sum()
    }

    /// Whether `ftp-alg` had an error, or a contestant could not be measured at all. Occasional errors of other
    /// contestants are a result.
    pub fn failed(&self, options: &Options) -> bool {
        self.reports.iter().any(|figure| {
            figure.iter().zip(&options.contestants).any(|(reports, contestant)| {
                let all = !reports.is_empty() && reports.iter().all(|report| report.rate == 0.0);
                let is_ours = matches!(contestant, Contestant::Daemon { .. });
                all || is_ours && reports.iter().any(|report| report.errors > 0)
            })
        })
    }

    /// How many nanoseconds longer `one` takes for each packet than `other`.
    pub fn extra_time(&self, figure: usize, one: &str, other: &str) -> Option<MedianAndRange> {
        let of = |name: &str| self.names.iter().position(|own| *own == name);
        let (one, other) = (of(one)?, of(other)?);
        let rounds = self.reports(figure, one).iter().zip(self.reports(figure, other));
        let rounds = rounds.filter(|(a, b)| one != other && a.rate > 0.0 && b.rate > 0.0);
        MedianAndRange::of(rounds.map(|(one, other)| 1e9 / one.rate - 1e9 / other.rate))
    }

    /// The ratio of `one` to the best measured contestant of the goal, round by round, and the name of that contestant.
    pub fn ratio(
        &self,
        figure: usize,
        one: &str,
        goal: &Goal,
    ) -> Option<(MedianAndRange, &'static str)> {
        let find = |name: &str| self.names.iter().position(|other| *other == name);
        let middle = |at: &usize| {
            let rates = self.reports(figure, *at).iter().map(|report| report.rate);
            MedianAndRange::of(rates).map_or(0.0, |spread| spread.median)
        };
        let best = goal
            .with
            .iter()
            .filter_map(|name| find(name))
            .filter(|at| middle(at) > 0.0)
            .max_by(|a, b| middle(a).total_cmp(&middle(b)))?;
        let ours = self.reports(figure, find(one)?);
        let pairs = ours.iter().zip(self.reports(figure, best));
        let ratios = pairs.filter(|(_, other)| other.rate > 0.0).map(|(a, b)| a.rate / b.rate);
        Some((MedianAndRange::of(ratios)?, self.names[best]))
    }
}
