//! What the log and the service manager hear of problems and warnings.

use std::collections::{HashMap, HashSet};

use sd_notify::NotifyState;

use super::names::{ProblemName, is_audit_problem};
use crate::daemon::{
    notify,
    snapshot::{Findings, Problem, Severity},
};

/// How many characters of a warning the service manager gets.
const MAX_SHORT: usize = 120;

/// What was reported.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// The names at the previous look.
    previous: HashSet<String>,
    /// Problems that are reported and not solved yet, with their severity.
    reported: HashMap<String, Severity>,
    /// The last status text of the service manager.
    status: String,
}

impl Reports {
    /// Reports to the log what is new, more or less severe, or solved, and to the service manager what is wrong now.
    pub(super) fn update(&mut self, findings: &Findings) {
        for (severity, problem) in findings.iter() {
            let Problem { name, text, remedy, .. } = problem;
            // Others are reported if they last until the next look: at the start names are not looked up yet, and a
            // journal may be written again a moment later.
            let is_lasting = is_audit_problem(problem) && !ProblemName::Name.is_of(problem)
                || self.previous.contains(name);
            if !is_lasting || self.reported.insert(name.clone(), severity) == Some(severity) {
                continue;
            }
            // It may have lines to be pasted.
            let remedy = remedy.replace('\n', "; ");
            match severity {
                Severity::Problem => {
                    log_event!(PROBLEM, problem = name, "problem {name}: {text}: {remedy}")
                }
                Severity::Warning => {
                    log_event!(WARNING, problem = name, "warning {name}: {text}: {remedy}")
                }
            }
        }
        let names: HashSet<String> = findings.iter().map(|(_, one)| one.name.clone()).collect();
        for (solved, severity) in self.reported.extract_if(|name, _| !names.contains(name)) {
            log_event!(SOLVED, problem = solved, "{severity} {solved} is solved");
        }
        self.previous = names;
        let status = status_text(findings);
        if self.status != status {
            notify(&[NotifyState::Status(&status)]);
            self.status = status;
        }
    }
}

/// The status text of the service manager: the first problem; without one the first warning in short.
fn status_text(findings: &Findings) -> String {
    let Findings { problems, warnings } = findings;
    match (problems.as_slice(), warnings.as_slice()) {
        ([], []) => "FTP works as far as ftp-alg sees".to_owned(),
        ([], [Problem { name, text, .. }]) => format!("warning {name}: {}", shortened(text)),
        ([], [Problem { name, text, .. }, ..]) => {
            format!("{} warnings, the first {name}: {}", warnings.len(), shortened(text))
        }
        ([Problem { name, text, .. }], _) => format!("problem {name}: {text}"),
        ([Problem { name, text, .. }, ..], _) => {
            format!("{} problems, the first {name}: {text}", problems.len())
        }
    }
}

/// The first part of `text`.
fn shortened(text: &str) -> String {
    let part = text.split("; ").next().unwrap_or_default();
    match part.char_indices().nth(MAX_SHORT) {
        Some((end, _)) => format!("{}...", part[..end].trim_end()),
        None => part.to_owned(),
    }
}
