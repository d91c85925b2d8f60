//! `ftp-alg setup`: adds the rules that the operator's firewall lacks to the files from which it is loaded.

mod file_edits;
mod firewalls;
mod needed_rule;
mod nft_file;
mod pair;
mod saved_table;
mod store;

use clap::Args;
use firewalls::{ManualStep, Plan};
use ftp_alg_firewall::{Firewall, Routing, accepted_data, data_path_verdicts};
use needed_rule::NeededRule;
pub(super) use saved_table::saved_table_checks;
use serde::Serialize;
use store::{ChangeSet, SetupJournal};
use strum::EnumMessage as _;

use super::{ConfigOption, Failure, SocketOption, output};
use crate::{
    config::Config,
    kernel::{
        RuleParameters,
        automatic::automatic_backend,
        operator_firewall::{self, links},
        parameters::Backend,
        probe::{has_unforwarded_v6, read_routing},
    },
};

/// Make your firewall accept data connections permanently
///
/// Shows the missing rules as a difference to the firewall's files. Changes
/// nothing. Supports nftables, iptables-persistent, ufw, Docker and OpenWrt's
/// fw4. With firewalld it says what to do instead.
///
/// --apply writes the files, loads the new rules, and checks the rules as
/// `doctor` does. If a step fails, it undoes all changes.
/// --undo restores the files byte for byte. If a file was edited since, it
/// removes only the lines that --apply added.
///
/// A machine that forwards no packets is taken for a host. With --gateway, setup
/// adds the rules of a gateway, and switches on the forwarding of IPv4.
///
/// --pair prints the files of two gateways, of which one may fail, for keepalived,
/// conntrackd, a store, the firewall and ftp-alg. It asks for what the options do
/// not say, and changes nothing on this machine.
///
/// --check shows the same and exits with 1 if a change is pending, for scripts.
///
/// Exit codes: 0 nothing to do, shown, or done; 1 failed, something must be done
/// by hand, or with --check: a change is pending.
#[derive(Args, Debug)]
pub struct Setup {
    /// Change the files and load them
    #[arg(long)]
    apply: bool,
    /// Undo the changes of --apply
    #[arg(long, conflicts_with = "apply")]
    undo: bool,
    /// Change nothing, and exit with 1 if a change is pending
    #[arg(long, conflicts_with_all = ["apply", "undo"])]
    check: bool,
    /// This machine is to be a gateway, whether it forwards packets yet or not
    #[arg(long, conflicts_with = "undo")]
    gateway: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pair: pair::PairOptions,
    #[command(flatten)]
    config: ConfigOption,
    #[command(flatten)]
    socket: SocketOption,
}

/// The result of a change that is pending.
const SHOWN: &str = "shown";

/// The output of `setup`, also as JSON.
#[derive(Debug, Default, Serialize)]
struct SetupReport {
    /// `nothing to do`, `shown`, `applied` or `undone`.
    result: &'static str,
    /// The back end for pinholes, which decides which rules are needed.
    backend: Option<&'static str>,
    firewalls: Vec<FirewallReport>,
    by_hand: Vec<ManualStep>,
    notes: Vec<String>,
    /// Whether some rules could not be read, so that more rules may be missing.
    incomplete: bool,
}

#[derive(Debug, Serialize)]
struct FirewallReport {
    name: &'static str,
    /// How setup recognised the firewall.
    why: &'static str,
    /// What the firewall does now with the packets that ftp-alg needs.
    says: Vec<String>,
    /// The changes of its files in the format of `diff -u`.
    differences: Vec<String>,
    /// The commands that load the changes.
    loads: Vec<String>,
    /// Why the commands load single rules and not the files.
    note: Option<&'static str>,
}

/// The loaded rules, and what decides which are missing.
struct LoadedFirewall {
    firewall: Firewall,
    routing: Routing,
    /// Whether IPv4 is to be forwarded, and is not.
    lacks_forwarding: bool,
    backend: Backend,
}

impl LoadedFirewall {
    /// Reads the loaded rules. With `gateway`, the missing rules are those of a machine that forwards IPv4.
    fn read(config: &Config, socket: &SocketOption, gateway: bool) -> Self {
        let parameters = RuleParameters::from(config);
        let mut routing = read_routing(&parameters.gateway.control_ports);
        let lacks_forwarding = gateway && !routing.v4;
        routing.v4 |= gateway;
        let firewall = operator_firewall::read(parameters.gateway.clone());
        let outlooks = data_path_verdicts(&firewall, routing);
        let accepted = || accepted_data(&firewall, &outlooks);
        // The back end of the running daemon, or the one that a daemon would choose.
        let running = socket.status().ok().and_then(|status| status.backend.parse().ok());
        let backend = running.or(config.pinhole.backend);
        let backend = backend.unwrap_or_else(|| automatic_backend(None, false, accepted).0);
        Self { firewall, routing, lacks_forwarding, backend }
    }

    /// The rules that `firewall` needs.
    fn needs_of(&self, firewall: &Firewall) -> Vec<NeededRule> {
        let class = self.backend.into();
        let outlooks = data_path_verdicts(firewall, self.routing);
        let links = links();
        let paths = firewall.control_paths(self.routing, &outlooks, &links).concat();
        let modes = firewall.mode_verdicts(&paths, class, &links);
        needed_rule::needed_rules(&outlooks, &modes, class, &firewall.gateway)
    }
}

impl Setup {
    /// Shows, applies or undoes the changes.
    pub fn run(&self) -> Result<(), Failure> {
        if self.pair.pair {
            return self.pair.run();
        }
        if !rustix::process::geteuid().is_root() {
            return Err(Failure::failed(
                "not permitted to read the firewall's rules: run this as root",
            ));
        }
        let config = self.config.load()?;
        let report = if self.undo {
            undo()?
        } else {
            // The lock is held until the function returns.
            let _lock = self.apply.then(store::lock).transpose()?;
            let mut notes = self.undo_interrupted()?;
            let situation = LoadedFirewall::read(&config, &self.socket, self.gateway);
            let unread = situation.firewall.read_errors.iter();
            notes.extend(unread.map(|what| format!("rules not read: {what}")));
            notes.extend(forwarding_note(situation.routing, self.gateway).map(str::to_owned));
            let (mut plans, by_hand) = firewalls::plans(&situation.needs_of(&situation.firewall))?;
            if situation.lacks_forwarding {
                // The last one, so that nothing is forwarded before the rules are loaded.
                plans.push(firewalls::forwarding_plan()?);
            }
            let mut report = SetupReport::new(situation.backend, &plans, by_hand);
            report.notes = notes;
            report.incomplete = !situation.firewall.read_errors.is_empty();
            if self.apply && !plans.is_empty() {
                apply(&plans, &situation)?;
                report.result = "applied";
            }
            report
        };
        let apply =
            if self.gateway { "ftp-alg setup --gateway --apply" } else { "ftp-alg setup --apply" };
        output::print_report(self.json, &report, |report| report.text(apply))?;
        match report.by_hand.len() {
            remaining @ 1.. if self.apply => {
                Err(Failure::Failed(format!("rules to add by hand: {remaining}; see above")))
            }
            _ if report.incomplete => Err(Failure::failed(
                "some rules could not be read, so more may be missing: see above",
            )),
            _ if self.check && report.result == SHOWN => Err(Failure::Failed(format!(
                "a change is pending, and nothing was changed: run `{apply}`"
            ))),
            remaining @ 1.. if self.check => {
                Err(Failure::Failed(format!("rules to add by hand: {remaining}; see above")))
            }
            _ => Ok(()),
        }
    }

    /// Undoes the changes of an interrupted run. Without --apply it only reports the interrupted run.
    fn undo_interrupted(&self) -> Result<Vec<String>, Failure> {
        let mut journal = SetupJournal::read()?;
        let Some(begun) = journal.begun.clone() else { return Ok(Vec::new()) };
        let what = "an earlier --apply was interrupted";
        if !self.apply {
            return Ok(vec![format!("{what}: --apply completes it, --undo undoes it")]);
        }
        let mut notes = vec![format!("{what}: its changes were undone first")];
        notes.extend(undo_changes(&begun)?);
        journal.begun = None;
        journal.write()?;
        Ok(notes)
    }
}

/// What setup assumes about forwarding, or leaves to the operator.
fn forwarding_note(routing: Routing, gateway: bool) -> Option<&'static str> {
    if !routing.v4 && !routing.v6 {
        return Some(
            "this machine forwards no packets, so it is taken for a host; if it is to be a gateway, \
             add --gateway",
        );
    }
    (gateway && has_unforwarded_v6()).then_some(
        "IPv6 is not forwarded, and setup leaves that to you: with forwarding, the kernel ignores \
         router advertisements unless accept_ra is 2",
    )
}

/// Checks the files, writes them, loads them, and checks the rules. If a step fails, all changes are undone.
fn apply(plans: &[Plan], situation: &LoadedFirewall) -> Result<(), Failure> {
    for words in plans.iter().flat_map(|plan| &plan.checks) {
        store::run_command(words).map_err(|error| {
            Failure::Failed(format!(
                "{error}\nnothing was changed: the files have an error; correct it first"
            ))
        })?;
    }
    let changes = plans.iter().fold(ChangeSet::default(), |all, plan| all.with(&plan.changes));
    let mut journal = SetupJournal::read()?;
    journal.begun = Some(changes.clone());
    journal.write()?;
    let Err(error) = make_changes(plans, &changes, situation) else {
        journal.mark_done();
        return journal.write();
    };
    let taken_back = undo_changes(&changes).map_err(|other| {
        Failure::Failed(format!("{error}\n{other}\nthe change could not be undone: try --undo"))
    })?;
    journal.begun = None;
    journal.write()?;
    let notes: String = taken_back.iter().map(|note| format!("\n{note}")).collect();
    Err(Failure::Failed(format!("{error}{notes}\nall changes were undone")))
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
        store::run_command(words)?;
    }
    for words in &changes.loads {
        store::run_command(words)?;
    }
    let needs = situation.needs_of(&operator_firewall::read(situation.firewall.gateway.clone()));
    match plans.iter().flat_map(|plan| &plan.needs).find(|need| !need.is_met(&needs)) {
        None => Ok(()),
        Some(need) => Err(Failure::Failed(format!(
            "{}, even after the change: see `ftp-alg doctor`",
            need.description()
        ))),
    }
}

/// Restores the files. Returns one line for each.
fn restore_files(changes: &ChangeSet) -> Result<Vec<String>, Failure> {
    changes.files.iter().rev().map(store::FileChange::undo).collect()
}

/// Removes the loaded changes from the kernel. Runs all commands, and returns the first failure.
fn undo_loading(changes: &ChangeSet) -> Result<(), Failure> {
    let results: Vec<_> = changes.take_back.iter().rev().map(store::UndoCommand::run).collect();
    results.into_iter().collect()
}

/// Restores the files, and removes the loaded changes from the kernel.
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
    // The latest changes come first.
    for changes in [journal.begun.clone(), Some(journal.done.clone())].into_iter().flatten() {
        if changes == ChangeSet::default() {
            continue;
        }
        report.result = "undone";
        report.notes.extend(restore_files(&changes)?);
        unloaded = unloaded.and(undo_loading(&changes));
    }
    // The files are restored, so there is nothing left to undo.
    (journal.begun, journal.done) = (None, ChangeSet::default());
    journal.write()?;
    match unloaded {
        Ok(()) => Ok(report),
        Err(error) => Err(Failure::Failed(format!(
            "{error}\nthe files are restored, but the loaded rules may not be: load the files"
        ))),
    }
}

impl SetupReport {
    fn new(backend: Backend, plans: &[Plan], by_hand: Vec<ManualStep>) -> Self {
        let firewalls = plans.iter().map(|plan| {
            let files = plan.changes.files.iter();
            FirewallReport {
                name: plan.kind.into(),
                why: plan.kind.get_message().unwrap_or_default(),
                says: plan.needs.iter().map(|need| need.description()).collect(),
                differences: files
                    .map(|file| {
                        let path = file.path.to_string_lossy();
                        file_edits::difference(&path, file.original.as_deref(), &file.written)
                    })
                    .collect(),
                note: plan.kind.loading_note(),
                loads: plan.changes.loads.iter().map(|words| words.join(" ")).collect(),
            }
        });
        let result = if plans.is_empty() { "nothing to do" } else { SHOWN };
        Self {
            result,
            backend: Some(backend.into()),
            firewalls: firewalls.collect(),
            by_hand,
            ..Self::default()
        }
    }

    /// `apply` is the command that makes the changes.
    fn text(&self, apply: &str) -> String {
        let mut text = String::new();
        for firewall in &self.firewalls {
            text += &format!("{} (recognised by {})\n", firewall.name, firewall.why);
            text.extend(firewall.says.iter().map(|line| format!("  {line}\n")));
            text += &firewall.differences.concat();
            let verb = if self.result == "applied" { "ran" } else { "then" };
            text.extend(firewall.loads.iter().map(|line| format!("  {verb} {line}\n")));
            text.extend(firewall.note.map(|note| format!("  {note}\n")));
            text.push('\n');
        }
        for one in &self.by_hand {
            text += &format!("by hand: {}\n  {}\n", one.says, one.why);
            if !one.command.is_empty() {
                text += "  this command works until the rules are loaded again:\n";
                text += &format!("      {}\n", one.command);
            }
            text.push('\n');
        }
        text.extend(self.notes.iter().map(|note| format!("  {note}\n")));
        let pending = format!("nothing was changed: run `{apply}` to do this\n");
        text += match self.result {
            "applied" => "applied: `ftp-alg setup --undo` undoes it\n",
            "undone" => "undone\n",
            SHOWN => &pending,
            _ if self.by_hand.is_empty() => "nothing to do\n",
            _ => "no file to change: see above\n",
        };
        text
    }
}
