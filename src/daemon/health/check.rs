//! One thing that was looked at: how it is, and what is to be done about it.

use std::borrow::Cow;

use serde::Serialize;

use crate::daemon::snapshot::Problem;

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, strum::Display)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum CheckStatus {
    Ok,
    /// Not there, and not needed.
    Missing,
    /// Worth knowing.
    Note,
    #[strum(to_string = "PROBLEM")]
    Problem,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Under which heading it stands.
    pub section: &'static str,
    /// What was looked at.
    pub name: String,
    /// How it is.
    pub mark: CheckStatus,
    /// The same in words.
    pub says: String,
    /// More of it, a line each.
    pub details: Vec<String>,
    /// Commands that put it right, a line each.
    pub remedy: Vec<String>,
    /// What else to know about these, a line each.
    pub advice: Vec<String>,
    /// What the problem is called, if it is one.
    pub problem: Option<Cow<'static, str>>,
}

impl Check {
    /// Something that is no problem, or none yet.
    pub fn new(
        section: &'static str,
        name: impl Into<String>,
        mark: CheckStatus,
        says: impl Into<String>,
    ) -> Self {
        let (details, remedy, advice) = (Vec::new(), Vec::new(), Vec::new());
        let (name, says) = (name.into(), says.into());
        Self { section, name, mark, says, details, remedy, advice, problem: None }
    }

    /// Something that is as it should be.
    pub fn ok(section: &'static str, name: impl Into<String>, says: impl Into<String>) -> Self {
        Self::new(section, name, CheckStatus::Ok, says)
    }

    /// Something worth knowing.
    pub fn note(section: &'static str, name: impl Into<String>, says: impl Into<String>) -> Self {
        Self::new(section, name, CheckStatus::Note, says)
    }

    /// The problem that is called `problem`.
    pub fn problem(
        section: &'static str,
        name: impl Into<String>,
        problem: &'static str,
        says: impl Into<String>,
    ) -> Self {
        Self {
            problem: Some(problem.into()),
            ..Self::new(section, name, CheckStatus::Problem, says)
        }
    }

    /// A problem that someone else has put into words.
    pub fn from_problem(section: &'static str, problem: &Problem) -> Self {
        let Problem { name, text, remedy } = problem.clone();
        let check = Self::new(section, name.clone(), CheckStatus::Problem, text);
        Self { problem: Some(name.into()), ..check }.advice([remedy])
    }

    /// With more lines about it.
    pub fn details(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        push_missing(&mut self.details, lines);
        self
    }

    /// With commands that put it right.
    pub fn remedy(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        push_missing(&mut self.remedy, lines);
        self
    }

    /// With what else to know.
    pub fn advice(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        push_missing(&mut self.advice, lines);
        self
    }

    /// As an entry of the list of problems, if it is one.
    pub fn as_problem(&self) -> Option<Problem> {
        let name = self.problem.as_deref()?;
        let mut text = self.details.iter().fold(self.says.clone(), |text, line| text + "; " + line);
        if name != self.name {
            text = format!("{}: {text}", self.name);
        }
        let remedy = [self.remedy.as_slice(), &self.advice].concat().join("; ");
        Some(Problem { name: name.to_owned(), text, remedy })
    }
}

/// Adds the lines that are not there yet.
fn push_missing(to: &mut Vec<String>, lines: impl IntoIterator<Item = String>) {
    for line in lines {
        if !to.contains(&line) {
            to.push(line);
        }
    }
}
