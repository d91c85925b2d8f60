//! `ftp-alg setup`: the line that the operator's firewall lacks, in the file that it is loaded from.

mod commands;
mod file_edits;
mod firewalls;
mod needed_rule;
mod nft_file;
mod store;

use clap::Args;
use firewalls::{ManualStep, Plan};
use needed_rule::NeededRule;
use serde::Serialize;
use store::{ChangeSet, SetupJournal};
use strum::EnumMessage as _;

use super::{ConfigOption, Failure, SocketOption, output};
use crate::{
    config::Config,
    daemon::{self, client, snapshot},
    gateway::{
        Backend, Routing, RuleParameters, automatic,
        firewall::{Firewall, data_path_verdicts},
    },
};

/// Make your firewall admit data connections for good
///
/// Shows what is missing in the files of the firewall that is in use, as a difference, and changes
/// nothing. Knows nftables, iptables-persistent, ufw, firewalld, Docker and OpenWrt's fw4.
///
/// --apply writes the files, loads them by the firewall's own command, and checks the rules as
/// `doctor` does. If the firewall refuses, all is taken back. --undo puts the files back to the byte;
/// in a file that was edited since, it removes only the lines that --apply added.
///
/// Exit codes: 0 nothing to do, shown, or done; 1 failed, or something is left to do by hand.
#[derive(Args, Debug)]
pub struct Setup {
    /// Change the files, and load them
    #[arg(long)]
    apply: bool,
    /// Take back what --apply did
    #[arg(long, conflicts_with = "apply")]
    undo: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigOption,
    #[command(flatten)]
    socket: SocketOption,
}

/// What was found and done.
#[derive(Debug, Serialize)]
struct SetupReport {
    /// `nothing to do`, `shown`, `applied` or `undone`.
    result: &'static str,
    /// What holds the pinholes, and so which line is needed.
    backend: Option<&'static str>,
    firewalls: Vec<FirewallReport>,
    by_hand: Vec<ManualStepReport>,
    notes: Vec<String>,
    /// Whether some rules could not be read.
    incomplete: bool,
}

#[derive(Debug, Serialize)]
struct FirewallReport {
    name: &'static str,
    /// By what it was recognized.
    why: &'static str,
    /// What it does now.
    says: Vec<String>,
    /// What changes in its files, as `diff -u` shows it.
    differences: Vec<String>,
    /// The commands that load these.
    loads: Vec<String>,
    /// Why they load less than the files.
    note: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct ManualStepReport {
    says: String,
    why: String,
    command: String,
}

/// The firewall as it is loaded, and what counts about it.
struct LoadedFirewall {
    parameters: RuleParameters,
    firewall: Firewall,
    backend: Backend,
    needs: Vec<NeededRule>,
}

impl LoadedFirewall {
    fn read(config: &Config, socket: &SocketOption) -> Result<Self, Failure> {
        let parameters = daemon::rule_parameters(config).map_err(Failure::failed)?;
        let (firewall, routing) = (Firewall::read(), Routing::read(parameters.control_ports()));
        let outlooks = data_path_verdicts(&firewall, routing, &parameters);
        let backend = backend(config, socket);
        let needs = needed_rule::needed_rules(&outlooks, backend, &parameters);
        Ok(Self { parameters, firewall, backend, needs })
    }
}

/// The back end of the daemon that runs, or the one that would be taken.
fn backend(config: &Config, socket: &SocketOption) -> Backend {
    let running = client::request(&socket.socket, "status", super::ANSWER_TIMEOUT)
        .ok()
        .and_then(|answer| answer.parse::<snapshot::Status>().ok());
    if let Some(backend) = running.and_then(|status| status.backend.parse().ok()) {
        return backend;
    }
    config.pinhole.backend.unwrap_or_else(|| automatic(None).0)
}

impl Setup {
    /// Shows, applies or takes back.
    pub fn run(&self) -> Result<(), Failure> {
        if !rustix::process::geteuid().is_root() {
            return Err(Failure::Failed(
                "not permitted to read the firewall's rules: run this as root".to_owned(),
            ));
        }
        let config = self.config.load()?;
        let report = if self.undo {
            undo()?
        } else {
            // Held until the end.
            let _lock = self.apply.then(store::lock).transpose()?;
            let mut notes = self.undo_interrupted()?;
            let situation = LoadedFirewall::read(&config, &self.socket)?;
            notes.extend(
                situation.firewall.read_errors().iter().map(|what| format!("not read: {what}")),
            );
            let (plans, by_hand) = firewalls::plans(&situation.needs)?;
            let mut report = SetupReport::new(situation.backend, &plans, &by_hand);
            report.notes = notes;
            report.incomplete = !situation.firewall.read_errors().is_empty();
            if self.apply && !plans.is_empty() {
                apply(&plans, &situation)?;
                report.result = "applied";
            }
            report
        };
        match self.json {
            true => output::print_line(&serde_json::to_string(&report).map_err(Failure::failed)?)?,
            false => output::print(&report.text())?,
        }
        match report.by_hand.len() {
            left @ 1.. if self.apply => {
                Err(Failure::Failed(format!("left to do by hand: {left}; see above")))
            }
            _ if report.incomplete => {
                let what =
                    "not all of the firewall could be read, so more may be missing: see above";
                Err(Failure::Failed(what.to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Takes back what an interrupted run began; without --apply it only says that there is such.
    fn undo_interrupted(&self) -> Result<Vec<String>, Failure> {
        let mut journal = SetupJournal::read()?;
        let Some(begun) = journal.begun.clone() else { return Ok(Vec::new()) };
        let what = "an earlier --apply was interrupted";
        if !self.apply {
            return Ok(vec![format!("{what}: --apply finishes it, --undo takes it back")]);
        }
        let mut notes = vec![format!("{what}, and was taken back first")];
        notes.extend(undo_changes(&begun)?);
        journal.begun = None;
        journal.write()?;
        Ok(notes)
    }
}

/// Checks, writes, loads, checks; all or nothing.
fn apply(plans: &[Plan], situation: &LoadedFirewall) -> Result<(), Failure> {
    for words in plans.iter().flat_map(|plan| &plan.checks) {
        commands::run_command(words).map_err(|error| {
            Failure::Failed(format!(
                "{error}\nthe files were wrong before: put them right first; nothing was changed"
            ))
        })?;
    }
    let mut changes = ChangeSet::default();
    for plan in plans {
        changes.add(plan.changes.clone());
    }
    let mut journal = SetupJournal::read()?;
    journal.begun = Some(changes.clone());
    journal.write()?;
    let Err(error) = make_changes(plans, &changes, situation) else {
        journal.mark_done();
        return journal.write();
    };
    let taken_back = undo_changes(&changes).map_err(|other| {
        Failure::Failed(format!("{error}\n{other}\nthe change could not be taken back: try --undo"))
    })?;
    journal.begun = None;
    journal.write()?;
    let notes: String = taken_back.iter().map(|note| format!("\n{note}")).collect();
    Err(Failure::Failed(format!("{error}{notes}\nall was taken back")))
}

fn make_changes(
    plans: &[Plan],
    changes: &ChangeSet,
    situation: &LoadedFirewall,
) -> Result<(), Failure> {
    for change in &changes.files {
        change.write_file()?;
    }
    for words in plans.iter().flat_map(|plan| &plan.checks) {
        commands::run_command(words)?;
    }
    for words in &changes.loads {
        commands::run_command(words)?;
    }
    let firewall = Firewall::read();
    let unmet = |need: &&NeededRule| !need.is_met(&firewall, &situation.parameters);
    match plans.iter().flat_map(|plan| &plan.needs).find(unmet) {
        None => Ok(()),
        Some(need) => {
            let what = "after the change as before it";
            Err(Failure::Failed(format!("{}, {what}: see `ftp-alg doctor`", need.description)))
        }
    }
}

/// Puts the files back, and says so.
fn restore_files(changes: &ChangeSet) -> Result<Vec<String>, Failure> {
    changes.files.iter().rev().map(store::FileChange::undo).collect()
}

/// Has the kernel know what is in the files that were put back. All is tried; the first failure is told.
fn undo_loading(changes: &ChangeSet) -> Result<(), Failure> {
    let results: Vec<_> = changes.take_back.iter().rev().map(store::UndoCommand::run).collect();
    results.into_iter().collect()
}

/// Both.
fn undo_changes(changes: &ChangeSet) -> Result<Vec<String>, Failure> {
    let notes = restore_files(changes)?;
    undo_loading(changes).map(|()| notes)
}

fn undo() -> Result<SetupReport, Failure> {
    let mut report = SetupReport { result: "nothing to do", ..SetupReport::default() };
    if SetupJournal::read()?.is_empty() {
        return Ok(report);
    }
    let _lock = store::lock()?;
    let mut journal = SetupJournal::read()?;
    let mut unloaded = Ok(());
    // The later ones first.
    for changes in [journal.begun.clone(), Some(journal.done.clone())].into_iter().flatten() {
        if changes == ChangeSet::default() {
            continue;
        }
        report.result = "undone";
        report.notes.extend(restore_files(&changes)?);
        unloaded = unloaded.and(undo_loading(&changes));
    }
    // The files are as they were, so there is nothing left to try again.
    (journal.begun, journal.done) = (None, ChangeSet::default());
    journal.write()?;
    match unloaded {
        Ok(()) => Ok(report),
        Err(error) => Err(Failure::Failed(format!(
            "{error}\nthe files are as they were before, and the rules that are loaded may not be: \
             load them"
        ))),
    }
}

impl Default for SetupReport {
    fn default() -> Self {
        let (firewalls, by_hand, notes) = (Vec::new(), Vec::new(), Vec::new());
        Self { result: "shown", backend: None, firewalls, by_hand, notes, incomplete: false }
    }
}

impl SetupReport {
    fn new(backend: Backend, plans: &[Plan], by_hand: &[ManualStep]) -> Self {
        let firewalls = plans.iter().map(|plan| {
            let files = plan.changes.files.iter();
            FirewallReport {
                name: plan.kind.into(),
                why: plan.kind.get_message().unwrap_or_default(),
                says: plan.needs.iter().map(|need| need.description.clone()).collect(),
                differences: files
                    .map(|file| {
                        let path = file.path.to_string_lossy();
                        file_edits::difference(&path, file.original.as_deref(), &file.written)
                    })
                    .collect(),
                note: plan.note,
                loads: plan.changes.loads.iter().map(|words| words.join(" ")).collect(),
            }
        });
        let by_hand = by_hand.iter().map(|one| ManualStepReport {
            says: one.need.description.clone(),
            why: one.why.clone(),
            command: one.need.command.clone(),
        });
        let result = if plans.is_empty() { "nothing to do" } else { "shown" };
        Self {
            result,
            backend: Some(backend.into()),
            firewalls: firewalls.collect(),
            by_hand: by_hand.collect(),
            ..Self::default()
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for firewall in &self.firewalls {
            text += &format!("{}, by {}\n", firewall.name, firewall.why);
            for line in &firewall.says {
                text += &format!("  {line}\n");
            }
            for difference in &firewall.differences {
                text += difference;
            }
            for line in &firewall.loads {
                text += &format!(
                    "  {} {line}\n",
                    if self.result == "applied" { "ran" } else { "then" }
                );
            }
            text.extend(firewall.note.map(|note| format!("  {note}\n")));
            text.push('\n');
        }
        for one in &self.by_hand {
            text += &format!("by hand: {}\n  {}\n", one.says, one.why);
            text += "  this line works until the rules are loaded again:\n";
            text += &format!("      {}\n\n", one.command);
        }
        for note in &self.notes {
            text += &format!("  {note}\n");
        }
        text += match self.result {
            "applied" => "applied: `ftp-alg setup --undo` takes it back\n",
            "undone" => "undone\n",
            "shown" => "nothing was changed: `ftp-alg setup --apply` does this\n",
            _ if self.by_hand.is_empty() => "nothing to do\n",
            _ => "nothing to write: see above\n",
        };
        text
    }
}
