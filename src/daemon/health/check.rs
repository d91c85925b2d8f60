//! A check: its result, and what to do about it.

use std::borrow::Cow;

use serde::Serialize;

use super::names::ProblemName;
use crate::daemon::snapshot::{Finding, Problem, Severity};

/// The result of a check. Later ones are more severe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, strum::Display)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum CheckStatus {
    Ok,
    /// Absent, and not needed.
    Missing,
    /// Worth knowing.
    Note,
    #[strum(to_string = "WARNING")]
    Warning,
    #[strum(to_string = "PROBLEM")]
    Problem,
}

/// One check, as `doctor` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// The heading that it is listed under.
    pub section: &'static str,
    /// What was checked.
    pub name: String,
    /// The result.
    pub mark: CheckStatus,
    /// The result in words.
    pub says: String,
    /// Details of the result, a line each.
    pub details: Vec<String>,
    /// Commands that solve the problem, a line each.
    pub remedy: Vec<String>,
    /// Further advice, a line each.
    pub advice: Vec<String>,
    /// The name of the problem or warning, if the result is one.
    pub problem: Option<Cow<'static, str>>,
    /// Whether it concerns certain connections only.
    #[serde(skip)]
    pub is_partial: bool,
}

impl From<Severity> for CheckStatus {
    fn from(severity: Severity) -> Self {
        match severity {
            Severity::Problem => Self::Problem,
            Severity::Warning => Self::Warning,
        }
    }
}

impl Check {
    /// A check without the name of a problem.
    pub fn new(
        section: &'static str,
        name: impl Into<String>,
        mark: CheckStatus,
        says: impl Into<String>,
    ) -> Self {
        let (name, says) = (name.into(), says.into());
        Self {
            section,
            name,
            mark,
            says,
            details: Vec::new(),
            remedy: Vec::new(),
            advice: Vec::new(),
            problem: None,
            is_partial: false,
        }
    }

    /// A check that succeeded.
    pub fn ok(section: &'static str, name: impl Into<String>, says: impl Into<String>) -> Self {
        Self::new(section, name, CheckStatus::Ok, says)
    }

    /// A check whose result is worth knowing.
    pub fn note(section: &'static str, name: impl Into<String>, says: impl Into<String>) -> Self {
        Self::new(section, name, CheckStatus::Note, says)
    }

    /// A check that found the problem or warning named `problem`.
    pub fn problem(
        section: &'static str,
        name: impl Into<String>,
        problem: ProblemName,
        says: impl Into<String>,
    ) -> Self {
        let mark = problem.severity(0).into();
        Self { problem: Some(problem.as_str().into()), ..Self::new(section, name, mark, says) }
    }

    /// A check for a problem or warning that already has its texts.
    pub fn from_problem(section: &'static str, severity: Severity, problem: &Problem) -> Self {
        let Problem { name, text, remedy, .. } = problem.clone();
        let check = Self::new(section, name.clone(), severity.into(), text);
        Self { problem: Some(name.into()), ..check }.advice(remedy.lines().map(str::to_owned))
    }

    /// Whether no FTP works through the gateway because of it, as far as this check can know.
    pub fn stops_all(&self) -> bool {
        let name = self.problem.as_deref().and_then(ProblemName::from_name);
        !self.is_partial && name.is_some_and(ProblemName::stops_all)
    }

    /// The same check, for certain connections only if `is_partial`.
    pub fn partial_if(self, is_partial: bool) -> Self {
        Self { is_partial: self.is_partial || is_partial, ..self }
    }

    /// Adds details.
    pub fn details(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        push_missing(&mut self.details, lines);
        self
    }

    /// Adds commands that solve the problem.
    pub fn remedy(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        push_missing(&mut self.remedy, lines);
        self
    }

    /// Adds advice.
    pub fn advice(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        push_missing(&mut self.advice, lines);
        self
    }

    /// Adds the command that solves the problem, or the advice if there is no such command.
    pub fn solution(self, solution: Result<String, String>) -> Self {
        match solution {
            Ok(command) => self.remedy([command]),
            Err(advice) => self.advice([advice]),
        }
    }

    /// The entry for the list of problems or of warnings, if the result is one. Without a remedy of its own it has the
    /// general one.
    pub fn finding(&self) -> Option<Finding> {
        let name = self.problem.as_deref()?;
        let severity = match self.mark {
            CheckStatus::Problem => Severity::Problem,
            _ => Severity::Warning,
        };
        let mut text = self.details.iter().fold(self.says.clone(), |text, line| text + "; " + line);
        if name != self.name {
            text = format!("{}: {text}", self.name);
        }
        let remedy = match [self.remedy.as_slice(), &self.advice].concat() {
            none if none.is_empty() => {
                ProblemName::from_name(name).map(ProblemName::remedy).unwrap_or_default()
            }
            lines => lines.join("; "),
        };
        Some((severity, Problem::new(name, text, remedy)))
    }
}

/// Adds each line that is not in `to` yet.
fn push_missing(to: &mut Vec<String>, lines: impl IntoIterator<Item = String>) {
    for line in lines {
        if !to.contains(&line) {
            to.push(line);
        }
    }
}
