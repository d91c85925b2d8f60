//! The supported firewalls: the files from which they are loaded, and the commands that check and load these files.

use std::path::{Path, PathBuf};

use ftp_alg_firewall::{ChainLocation, IpVersion, Origin, RulesetManager};
use serde::Serialize;
use strum::{EnumMessage, IntoStaticStr, VariantArray};

use super::{
    file_edits,
    needed_rule::NeededRule,
    nft_file::{self, NftFile},
    store::{self, ChangeSet, FileChange, UndoCommand, run_command},
};
use crate::{cli::Failure, daemon::health::SELECT_CONNTRACK};

/// The program that generates the rules or loads the setting, and how setup recognises it (`message`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumMessage, IntoStaticStr, VariantArray)]
pub(super) enum FirewallProgram {
    #[strum(serialize = "nftables", message = "a table of nftables that no other program manages")]
    Nftables,
    #[strum(serialize = "iptables", message = "a table of iptables that no other program manages")]
    Iptables,
    #[strum(serialize = "ufw", message = "chains named ufw-*")]
    Ufw,
    #[strum(serialize = "firewalld", message = "chains of firewalld")]
    Firewalld,
    #[strum(message = "a jump from FORWARD to DOCKER-USER")]
    Docker,
    #[strum(serialize = "OpenWrt (fw4)", message = "the table inet fw4")]
    Fw4,
    /// No firewall, but the setting that switches forwarding on.
    #[strum(serialize = "forwarding", message = "net.ipv4.ip_forward = 0, with --gateway")]
    Sysctl,
}

/// The changes for one firewall.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) kind: FirewallProgram,
    pub(super) needs: Vec<NeededRule>,
    pub(super) changes: ChangeSet,
    /// The commands that check the firewall's files.
    pub(super) checks: Vec<Vec<String>>,
}

/// A rule that setup cannot make permanent.
#[derive(Debug, Serialize)]
pub(super) struct ManualStep {
    pub(super) says: String,
    pub(super) why: String,
    pub(super) command: String,
}

impl ManualStep {
    fn new(need: &NeededRule, why: String) -> Self {
        Self { says: need.description(), why, command: need.command() }
    }
}

const NFTABLES: [&str; 2] = ["/etc/nftables.conf", "/etc/sysconfig/nftables.conf"];
const IPTABLES: [[&str; 3]; 2] = [
    ["/etc/iptables/rules.v4", "/etc/sysconfig/iptables", "/etc/iptables/iptables.rules"],
    ["/etc/iptables/rules.v6", "/etc/sysconfig/ip6tables", "/etc/iptables/ip6tables.rules"],
];
const DOCKER: &str = "/etc/systemd/system/docker.service.d/ftp-alg.conf";
const DOCKER_UNITS: [&str; 3] = [
    "/etc/systemd/system/docker.service",
    "/usr/lib/systemd/system/docker.service",
    "/lib/systemd/system/docker.service",
];
const DOCKER_USER: &str = "DOCKER-USER";
/// Prints the number of the accept rule in DOCKER-USER: behind the rule that accepts established connections, or
/// before the one that returns. The input has the chain in its first line. No `$`, which systemd would replace.
const DOCKER_USER_PLACE: &str = "!/-A DOCKER-USER -j RETURN/ { end++ } \
                                 /ESTABLISHED.*ACCEPT/ { behind = NR } \
                                 END { print behind ? behind : end }";
/// The first line of a file that is all of setup.
const ADDED_FILE: &str = "# By `ftp-alg setup --apply`; `ftp-alg setup --undo` removes it.\n";
const FW4: &str = "/usr/share/nftables.d/chain-pre";
/// The file of setup's setting. Its name sorts behind names with a number, so its value counts.
const SYSCTL: &str = "/etc/sysctl.d/ftp-alg-setup.conf";
const SYSUPGRADE: &str = "/etc/sysupgrade.conf";

impl FirewallProgram {
    /// Why setup does not load the files, if it does not.
    pub(super) fn loading_note(self) -> Option<&'static str> {
        matches!(self, Self::Nftables | Self::Iptables)
            .then_some("the files are not loaded, so that no other rule changes")
    }

    /// Whether this program generates the chain. Next to Docker, ufw also generates chains.
    fn manages(self, location: &ChainLocation) -> bool {
        let docker = location.insert_into == DOCKER_USER;
        match self {
            Self::Docker => docker,
            Self::Ufw => location.manager == Some(RulesetManager::Ufw),
            Self::Firewalld => location.manager == Some(RulesetManager::Firewalld),
            Self::Fw4 => location.manager == Some(RulesetManager::Fw4),
            Self::Sysctl => false,
            Self::Nftables | Self::Iptables => {
                let none =
                    matches!(location.manager, None | Some(RulesetManager::Docker)) && !docker;
                none && (location.origin == Origin::Nftables) == (self == Self::Nftables)
            }
        }
    }
}

/// The changes for each firewall, and the rules that must be added by hand.
pub(super) fn plans(needs: &[NeededRule]) -> Result<(Vec<Plan>, Vec<ManualStep>), Failure> {
    let (mut plans, mut by_hand) = (Vec::new(), Vec::new());
    for &kind in FirewallProgram::VARIANTS {
        let needs: Vec<NeededRule> =
            needs.iter().filter(|n| kind.manages(&n.chain.location)).cloned().collect();
        if needs.is_empty() {
            continue;
        }
        let mut plan = Plan::new(kind);
        for need in needs {
            if let Some(why) = need.advice() {
                by_hand.push(ManualStep::new(&need, why));
                continue;
            }
            match plan.add(&need)? {
                None => plan.needs.push(need),
                // The rule is loaded already, so it is not reported that no file has it.
                Some(_) if need.chain.passes => {}
                Some(why) => by_hand.push(ManualStep::new(&need, why)),
            }
        }
        plan.changes.files.retain(FileChange::is_different);
        let is_met = plan.needs.iter().all(|need| need.chain.passes);
        if !is_met || !plan.changes.files.is_empty() {
            plan.plan_loading();
            plans.push(plan);
        }
    }
    Ok((plans, by_hand))
}

/// Switches on the forwarding of IPv4, now and at each boot.
pub(super) fn forwarding_plan() -> Result<Plan, Failure> {
    let mut plan = Plan::new(FirewallProgram::Sysctl);
    let setting = "net.ipv4.ip_forward = 1";
    let file = plan.file(SYSCTL)?;
    if !file.written.lines().any(|line| line.trim() == setting) {
        if file.written.is_empty() {
            file.written = ADDED_FILE.to_owned();
        }
        file.written = file_edits::with_last_line(&file.written, setting);
    }
    plan.changes.files.retain(FileChange::is_different);
    plan.plan_loading();
    Ok(plan)
}

impl Plan {
    fn new(kind: FirewallProgram) -> Self {
        Self { kind, needs: Vec::new(), changes: ChangeSet::default(), checks: Vec::new() }
    }

    /// The file at `path` with the edits so far.
    fn file(&mut self, path: &str) -> Result<&mut FileChange, Failure> {
        let path = Path::new(path);
        let files = &mut self.changes.files;
        let at = match files.iter().position(|change| change.path == path) {
            Some(at) => at,
            None => {
                files.push(FileChange::for_file(path)?);
                files.len() - 1
            }
        };
        Ok(&mut files[at])
    }

    /// Adds a command that checks the files.
    fn check(&mut self, words: &[&str]) {
        let words = command(words);
        if !self.checks.contains(&words) {
            self.checks.push(words);
        }
    }

    /// Adds a command that loads the changes.
    fn load(&mut self, words: Vec<String>) {
        if !self.changes.loads.contains(&words) {
            self.changes.loads.push(words);
        }
    }

    /// Adds a command that loads the files, both after the change and after its undoing.
    fn load_and_undo_with(&mut self, words: &[&str]) {
        self.load(command(words));
        self.changes.take_back.push(UndoCommand::Run(command(words)));
    }

    /// Adds the rule of `need` to the file of its chain. Returns why the operator has to add it, if setup cannot.
    fn add(&mut self, need: &NeededRule) -> Result<Option<String>, Failure> {
        let ChainLocation { table, .. } = &need.chain.location;
        let own = &need.chain.place.chain;
        match self.kind {
            FirewallProgram::Nftables => self.nftables(need),
            FirewallProgram::Iptables => {
                let Some(path) = iptables_file(need.ip) else {
                    let usual = IPTABLES[usize::from(need.ip == IpVersion::V6)][0];
                    return Ok(Some(format!("{usual} does not exist")));
                };
                let what = format!("chain {own} of table {table}");
                self.iptables_restore(need, path, table, own, &what, &[])
            }
            FirewallProgram::Ufw => {
                let (path, prefix) = match need.ip {
                    IpVersion::V4 => ("/etc/ufw/before.rules", "ufw"),
                    IpVersion::V6 => ("/etc/ufw/before6.rules", "ufw6"),
                };
                let user = format!("{prefix}-before-{}", need.chain.location.hook);
                let what = format!("chain {user}");
                if table != "filter" {
                    return Ok(Some(format!("{path} does not declare {what}")));
                }
                self.iptables_restore(need, path, table, &user, &what, &["--noflush"])
            }
            FirewallProgram::Firewalld => Ok(Some(by_firewalld(need.chain.location.origin))),
            FirewallProgram::Docker => self.docker(need),
            FirewallProgram::Fw4 => self.fw4(need),
            FirewallProgram::Sysctl => Ok(Some("no rule".to_owned())),
        }
    }

    fn nftables(&mut self, need: &NeededRule) -> Result<Option<String>, Failure> {
        let Some(main) = first_existing(&NFTABLES) else {
            return Ok(Some(format!("{} does not exist", NFTABLES[0])));
        };
        let ChainLocation { family, table, .. } = &need.chain.location;
        let chain = format!("{family} {table} {}", need.chain.place.chain);
        self.check(&["nft", "--check", "--file", main]);
        for path in included_files(main) {
            let file = self.file(&path)?;
            if let Some(text) =
                nft_file::with_rule(&file.written, &chain, &need.chain.place, &need.rule())
            {
                file.written = text;
                return Ok(None);
            }
        }
        let why = "and its includes do not have this chain, so the chain was loaded by hand";
        Ok(Some(format!("{main} {why}")))
    }

    /// Adds the rule to a file of `iptables-restore`, in which `what` is the chain.
    fn iptables_restore(
        &mut self,
        need: &NeededRule,
        path: &str,
        table: &str,
        chain: &str,
        what: &str,
        options: &[&str],
    ) -> Result<Option<String>, Failure> {
        let file = self.file(path)?;
        let (place, rule) = (&need.chain.place, &need.rule());
        let text = file_edits::with_iptables_rule(&file.written, table, chain, place, rule);
        let Some(text) = text else {
            return Ok(Some(format!("{path} does not declare {what}")));
        };
        file.written = text;
        self.check(&[&[&*restore_program(need)], options, &["--test", path]].concat());
        Ok(None)
    }

    fn docker(&mut self, need: &NeededRule) -> Result<Option<String>, Failure> {
        let stored =
            iptables_file(need.ip).map(|path| store::read(Path::new(path))).transpose()?.flatten();
        let of_user = |line: &&str| line.trim_start().starts_with("-A DOCKER-USER ");
        let stored: String = stored.iter().flat_map(|text| text.lines().filter(of_user)).collect();
        if need.rule().has_equivalent_in(&stored) {
            return Ok(None);
        }
        if first_existing(&DOCKER_UNITS).is_none() {
            let why = "docker.service does not exist, so no unit can load the rule after it";
            return Ok(Some(why.to_owned()));
        }
        let command = need.command();
        let program = command.split(' ').next().unwrap_or_default();
        let rule = need.rule().iptables_arguments();
        // The operator's rules may be loaded in the meantime, so the place is looked up when the unit starts.
        let number = match need.chain.place.is_before_an_obstacle() {
            true => String::new(),
            false => format!("`{program} -S {DOCKER_USER} | awk \"{DOCKER_USER_PLACE}\"` "),
        };
        let line = format!(
            "ExecStartPost=-/bin/sh -c '{program} -C {DOCKER_USER} {rule} 2>/dev/null || \
             {program} -I {DOCKER_USER} {number}{rule}'"
        );
        let file = self.file(DOCKER)?;
        if file.written.is_empty() {
            file.written = format!("{ADDED_FILE}[Service]\n");
        }
        let known = format!("{program} -C {DOCKER_USER} {rule} ");
        if !file.written.contains(&known) {
            file.written = file_edits::with_last_line(&file.written, &line);
        }
        Ok(None)
    }

    fn fw4(&mut self, need: &NeededRule) -> Result<Option<String>, Failure> {
        let hook = need.chain.location.hook;
        let directory = format!("{FW4}/{hook}");
        // The last name, so that the operator's files come first.
        let path = format!("{directory}/zz-{}.nft", file_edits::MARKER);
        for other in glob_files(&format!("{directory}/*.nft")).filter(|other| *other != path) {
            let text = store::read(Path::new(&other))?.unwrap_or_default();
            if need.rule().has_equivalent_in(&text) {
                return Ok(None);
            }
        }
        let file = self.file(&path)?;
        if !need.rule().has_equivalent_in(&file.written) {
            file.written = file_edits::with_last_line(&file.written, &need.rule().nft_statement());
        }
        let keep = self.file(SYSUPGRADE)?;
        if !keep.written.lines().any(|line| path.starts_with(line.trim()) && line.starts_with('/'))
        {
            keep.written = file_edits::with_last_line(&keep.written, &path);
        }
        self.check(&["fw4", "check"]);
        Ok(None)
    }

    /// Plans how the changes are loaded, and how that is undone. A firewall that generates its rules loads them all. To
    /// rules of files only the new ones are added, because the loaded rules may differ from the files.
    fn plan_loading(&mut self) {
        match self.kind {
            FirewallProgram::Ufw => self.load_and_undo_with(&["ufw", "reload"]),
            FirewallProgram::Fw4 => self.load_and_undo_with(&["fw4", "reload"]),
            FirewallProgram::Docker => {
                // sd_booted(3).
                let systemd_runs = Path::new("/run/systemd/system").is_dir();
                if systemd_runs && !self.changes.files.is_empty() {
                    self.load_and_undo_with(&["systemctl", "daemon-reload"]);
                }
                self.load_rules();
            }
            FirewallProgram::Nftables | FirewallProgram::Iptables => self.load_rules(),
            FirewallProgram::Sysctl => {
                self.load(command(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]));
                let off = command(&["sysctl", "-qw", "net.ipv4.ip_forward=0"]);
                self.changes.take_back.push(UndoCommand::Run(off));
            }
            FirewallProgram::Firewalld => {}
        }
    }

    /// Adds the rules that are missing to the loaded ones. Undoing removes them.
    fn load_rules(&mut self) {
        for need in self.needs.clone() {
            let line = match need.chain.location.origin {
                Origin::Nftables => {
                    format!("{} comment \"{}\"", need.command(), file_edits::MARKER)
                }
                _ => need.command().replace(
                    " -j ACCEPT",
                    &format!(" -m comment --comment {} -j ACCEPT", file_edits::MARKER),
                ),
            };
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            if !need.chain.passes {
                self.load(words.clone());
            }
            if !need.has_setup_rule() {
                self.changes.take_back.push(UndoCommand::Remove(words));
            }
        }
    }
}

/// Why setup adds no rule to firewalld, and what to do.
fn by_firewalld(origin: Origin) -> String {
    let (cannot, or) = match origin {
        Origin::Nftables => {
            ("firewalld with nftables cannot match a mark, and removes rules of other programs", "")
        }
        _ => (
            "a rule with a mark is a direct rule of firewalld",
            ", or run rules/recipes/firewalld.sh",
        ),
    };
    format!("{cannot}, but it accepts related connections: {SELECT_CONNTRACK}{or}")
}

fn command(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn first_existing<'a>(paths: &[&'a str]) -> Option<&'a str> {
    paths.iter().copied().find(|path| Path::new(path).exists())
}

/// The file that iptables-persistent or the distribution's service loads.
fn iptables_file(ip: IpVersion) -> Option<&'static str> {
    first_existing(&IPTABLES[usize::from(ip == IpVersion::V6)])
}

/// The files that match a pattern, in the order in which nft reads them.
pub(super) fn glob_files(pattern: &str) -> impl Iterator<Item = String> {
    let options = glob::MatchOptions { require_literal_leading_dot: true, ..Default::default() };
    let paths = glob::glob_with(pattern, options).into_iter().flatten().flatten();
    paths.map(|path: PathBuf| path.to_string_lossy().into_owned())
}

/// The files of nftables that exist, with those that they include.
pub(super) fn nftables_files() -> Vec<String> {
    let mains = NFTABLES.iter().filter(|path| Path::new(path).exists());
    mains.flat_map(|main| included_files(main)).collect()
}

/// `main` and the files that it includes, each once. One that cannot be read includes none.
fn included_files(main: &str) -> Vec<String> {
    let mut files = vec![main.to_owned()];
    let mut read = 0;
    while let Some(path) = files.get(read) {
        let text = store::read(Path::new(path)).ok().flatten().unwrap_or_default();
        for pattern in NftFile::parse(&text).includes {
            // nft looks up relative paths in its default directory.
            let pattern = Path::new("/etc").join(pattern);
            for file in glob_files(&pattern.to_string_lossy()) {
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
        read += 1;
    }
    files
}

/// `iptables-nft-restore`, or `iptables-restore` if the system has only one variant.
fn restore_program(need: &NeededRule) -> String {
    let add = need.command();
    let restore = format!("{}-restore", add.split(' ').next().unwrap_or_default());
    match run_command(&command(&[&restore, "--version"])) {
        Ok(_) => restore,
        Err(_) if need.ip == IpVersion::V6 => "ip6tables-restore".to_owned(),
        Err(_) => "iptables-restore".to_owned(),
    }
}
