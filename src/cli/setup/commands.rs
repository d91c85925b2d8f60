//! Runs the commands of firewalls.

use std::path::Path;

use serde_json::Value;

use super::{file_edits::MARKER, store::UndoCommand};
use crate::{cli::Failure, kernel::broker::programs::run_for_output};

/// Runs a command and returns its output. It is a failure if the command fails.
pub(super) fn run_command(words: &[String]) -> Result<String, Failure> {
    let Some((program, arguments)) = words.split_first() else { return Ok(String::new()) };
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run_for_output(program, &arguments)
        .map_err(|error| Failure::Failed(format!("`{}`: {error}", words.join(" "))))
}

/// Whether systemd manages this machine (sd_booted(3)).
pub(super) fn systemd_runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

impl UndoCommand {
    pub(super) fn run(&self) -> Result<(), Failure> {
        match self {
            Self::Run(words) => run_command(words).map(drop),
            Self::Remove(words) if words[0] == "nft" => remove_from_nft(&words[3..6]),
            Self::Remove(words) => {
                let remove = words.iter().map(|word| if word == "-I" { "-D" } else { word });
                let remove: Vec<String> = remove.map(str::to_owned).collect();
                // Repeat until no such rule is left. It is no failure if there was none.
                while run_command(&remove).is_ok() {}
                Ok(())
            }
        }
    }
}

/// Removes the rules of setup from `chain` (family, table, name).
fn remove_from_nft(chain: &[String]) -> Result<(), Failure> {
    let words = |start: &[&str], end: &[&str]| -> Vec<String> {
        let start = start.iter().map(|word| (*word).to_owned());
        start.chain(chain.iter().cloned()).chain(end.iter().map(|w| (*w).to_owned())).collect()
    };
    // A chain that does not exist any more has no rules of setup.
    let Ok(listed) = run_command(&words(&["nft", "--json", "--handle", "list", "chain"], &[]))
    else {
        return Ok(());
    };
    let listed: Value = serde_json::from_str(&listed).map_err(Failure::failed)?;
    let rules = listed["nftables"].as_array().into_iter().flatten().map(|object| &object["rule"]);
    for rule in rules.filter(|rule| rule["comment"] == MARKER) {
        run_command(&words(&["nft", "delete", "rule"], &["handle", &rule["handle"].to_string()]))?;
    }
    Ok(())
}
