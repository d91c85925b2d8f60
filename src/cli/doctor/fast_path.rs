//! Checks whether the fast path runs, or could run on this machine (docs/fastpath.md, "Where it runs").
//!
//! The check only reads files of the kernel, and loads no BPF program. A running daemon reports the result of loading
//! its own program.

use std::fs;

use ftp_alg_fastpath::{FastPathUnavailable, HAS_PROGRAM};
use ftp_alg_firewall::{MarkConflict, MarkConflictKind};

use crate::{
    config::FastPathMode,
    daemon::{
        counted::counted,
        health::Check,
        snapshot::{FastPathState, FastPathStatus},
    },
    kernel::{RuleParameters, parameters::Backend},
};

/// The section of the checks.
pub(super) const KERNEL: &str = "kernel";
const NAME: &str = "fast path";
/// The first Linux version with TCX: major and minor number.
const FIRST_WITH_TCX: (u32, u32) = (6, 6);
const BPF_FS: &str = "/sys/fs/bpf";

/// Files in which the kernel describes itself, as text.
#[derive(Clone, Debug)]
pub(super) struct KernelInfo {
    /// The release, as `uname -r` prints it.
    pub(super) release: String,
    /// The contents of `/proc/self/mounts`.
    pub(super) mounts: String,
    /// The contents of `/sys/kernel/security/lockdown`; empty if the kernel has no lockdown.
    pub(super) lockdown: String,
}

impl KernelInfo {
    pub(super) fn read() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self {
            release: read("/proc/sys/kernel/osrelease").trim_end().to_owned(),
            mounts: read("/proc/self/mounts"),
            lockdown: read("/sys/kernel/security/lockdown"),
        }
    }

    /// The obstacles that keep the fast path from running here, one line each.
    fn obstacles(&self, backend: Backend) -> Vec<String> {
        let no_tcx =
            format!("Linux {} has no TCX: the fast path needs Linux 6.6 or newer", self.release);
        let no_bpf_fs =
            format!("no BPF file system is mounted: mount -t bpf -o mode=0700 bpf {BPF_FS}");
        let conntrack =
            "the back end is conntrack: the fast path needs nftables ([pinhole] backend)";
        let obstacles = [
            (!HAS_PROGRAM, FastPathUnavailable::NOT_BUILT.to_owned()),
            (!self.has_tcx(), no_tcx),
            (!self.has_bpf_fs(), no_bpf_fs),
            (backend == Backend::Conntrack, conntrack.to_owned()),
        ];
        obstacles.into_iter().filter_map(|(is_here, text)| is_here.then_some(text)).collect()
    }

    fn has_tcx(&self) -> bool {
        let mut numbers = self.release.split(|c: char| !c.is_ascii_digit());
        let mut next = || numbers.next()?.parse::<u32>().ok();
        // An unknown release is no obstacle, because loading the program will show it.
        next().zip(next()).is_none_or(|release| release >= FIRST_WITH_TCX)
    }

    fn has_bpf_fs(&self) -> bool {
        let is_one = |line: &str| {
            let mut fields = line.split(' ').skip(1);
            fields.next() == Some(BPF_FS) && fields.next() == Some("bpf")
        };
        self.mounts.lines().any(is_one)
    }

    /// The lockdown mode, if it may make the kernel refuse a BPF program.
    fn lockdown(&self) -> Option<String> {
        self.lockdown.contains("[confidentiality]").then(|| {
            "kernel lockdown is in mode confidentiality: this may be the reason if the kernel \
             refuses the BPF program"
                .to_owned()
        })
    }
}

/// The state of the fast path in the running daemon. Without a daemon: whether the fast path could run.
pub(super) fn check(
    wanted: FastPathMode,
    running: Option<&FastPathStatus>,
    backend: Backend,
    machine: &KernelInfo,
) -> Check {
    let obstacles = machine.obstacles(backend);
    match (wanted, running) {
        (_, Some(status)) if status.state == FastPathState::On => {
            let connections = counted(status.connections, "connection");
            Check::ok(KERNEL, NAME, format!("on: {}; {connections}", status.attached_to()))
                .details(status.inline_at())
        }
        (FastPathMode::Off, _) => {
            let could = if obstacles.is_empty() { "; it could run here" } else { "" };
            let why = FastPathStatus::OFF_BY_CONFIGURATION;
            Check::ok(KERNEL, NAME, format!("off: {why}{could}"))
        }
        (FastPathMode::Auto, Some(status)) => {
            let why = if status.why == FastPathStatus::OFF_BY_CONFIGURATION {
                "the running daemon has another configuration: restart it"
            } else {
                &status.why
            };
            Check::note(KERNEL, NAME, format!("off: {why}")).details(machine.lockdown())
        }
        (FastPathMode::Auto, None) if obstacles.is_empty() => {
            Check::ok(KERNEL, NAME, "can run here").details(machine.lockdown())
        }
        (FastPathMode::Auto, None) => {
            Check::note(KERNEL, NAME, "cannot run here").details(obstacles)
        }
    }
}

/// The rules that do not work together with the marks of the fast path.
pub(super) fn marks(conflicts: &[MarkConflict], parameters: &RuleParameters) -> Vec<Check> {
    let bits = parameters.mask() | parameters.gateway.slot_mask;
    let packet_marks = format!(
        "use a mask in these rules that leaves out {bits:#010x}, as in `meta mark set meta mark & {:#010x} | 0x1`, \
         `-j MARK --set-xmark 0x1/0xff`, `-m mark --mark 0x1/0xff` or `ip rule add fwmark 0x1/0xff`; or set \
         fast-path = \"off\" in [queue]",
        !0xff_u32
    );
    let data = parameters.gateway.data_mark;
    let ct_marks = format!(
        "match the bit in these rules, as in `ct mark & {data:#010x} != 0` or `--mark {data:#010x}/{data:#010x}`; or \
         set fast-path = \"off\" in [queue]"
    );
    let check = |name, is_of_ct_mark, says, what_to_do| {
        let is_here =
            |one: &&MarkConflict| (one.kind == MarkConflictKind::ComparesCtMark) == is_of_ct_mark;
        let rules: Vec<_> = conflicts.iter().filter(is_here).map(MarkConflict::to_string).collect();
        let check = Check::note(KERNEL, name, says).advice([what_to_do]);
        (!rules.is_empty()).then(|| check.details(rules))
    };
    let says_packet_marks =
        "a rule overwrites or compares the packet marks of the fast path: the fast path stays off";
    let says_ct_marks =
        "a rule compares the exact ct mark of data connections: the fast path stays off";
    let found = [
        check("packet marks", false, says_packet_marks, packet_marks),
        check("ct marks", true, says_ct_marks, ct_marks),
    ];
    found.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::health::CheckStatus;

    fn machine() -> KernelInfo {
        KernelInfo {
            release: "6.12.9-amd64".into(),
            mounts: "proc /proc proc rw 0 0\nbpf /sys/fs/bpf bpf rw,mode=700 0 0\n".into(),
            lockdown: "[none] integrity confidentiality\n".into(),
        }
    }

    fn says(
        wanted: FastPathMode,
        running: Option<&FastPathStatus>,
        machine: &KernelInfo,
    ) -> (CheckStatus, String) {
        let check = check(wanted, running, Backend::Nftables, machine);
        (check.mark, check.says)
    }

    #[test]
    fn linux_6_6_and_newer_has_tcx() {
        for (release, has) in [
            ("6.6.0", true),
            ("6.10-rc1", true),
            ("7.0", true),
            ("6.5.13", false),
            ("6.1.0-28-amd64", false),
            ("5.15.0", false),
            ("", true),
        ] {
            assert_eq!(
                KernelInfo { release: release.into(), ..machine() }.has_tcx(),
                has,
                "{release}"
            );
        }
    }

    #[test]
    fn each_obstacle_is_named() {
        let release = "6.1.0".into();
        let mounts = "bpf /run/bpf bpf rw 0 0\ntmpfs /sys/fs/bpf tmpfs rw 0 0\n".into();
        let old = KernelInfo { release, mounts, ..machine() };
        let found = old.obstacles(Backend::Conntrack).join("\n");
        for what in
            ["Linux 6.1.0 has no TCX", "mount -t bpf -o mode=0700 bpf /sys/fs/bpf", "conntrack"]
        {
            assert!(found.contains(what), "{found}");
        }
        assert_eq!(old.obstacles(Backend::Conntrack).len(), 3);
        assert!(machine().obstacles(Backend::Nftables).is_empty());
    }

    #[test]
    fn state_of_a_running_daemon_takes_precedence() {
        let mut on = FastPathStatus {
            interfaces: vec!["lan0".into(), "wan0".into()],
            ..FastPathStatus::off("")
        };
        (on.state, on.connections) = (FastPathState::On, 3);
        let refused = FastPathStatus::off("the kernel refuses the program");
        let old = KernelInfo { release: "6.1".into(), ..machine() };
        let (auto, off) = (FastPathMode::Auto, FastPathMode::Off);
        let text = "on: lan0, wan0; 3 connections";
        assert_eq!(says(auto, Some(&on), &old), (CheckStatus::Ok, text.into()));
        on.filtered_early = vec!["br0".into()];
        let check = check(auto, Some(&on), Backend::Nftables, &old);
        let inline = "not at br0: bridge-nf-call-iptables; connections there are queued";
        assert_eq!((check.mark, check.details), (CheckStatus::Ok, vec![inline.to_owned()]));
        let text = "off: the kernel refuses the program";
        assert_eq!(says(auto, Some(&refused), &machine()), (CheckStatus::Note, text.into()));
        assert_eq!(says(auto, None, &machine()), (CheckStatus::Ok, "can run here".into()));
        assert_eq!(says(auto, None, &old), (CheckStatus::Note, "cannot run here".into()));
        let text = "off: the configuration says so; it could run here";
        assert_eq!(says(off, None, &machine()), (CheckStatus::Ok, text.into()));
        let text = "off: the configuration says so";
        assert_eq!(
            says(off, Some(&FastPathStatus::off(FastPathStatus::OFF_BY_CONFIGURATION)), &old),
            (CheckStatus::Ok, text.into())
        );
    }

    #[test]
    fn rules_that_overwrite_or_compare_marks_are_reported() {
        let parameters = RuleParameters::default();
        assert!(marks(&[], &parameters).is_empty());
        let conflicts = |kinds: &[MarkConflictKind]| -> Vec<_> {
            let conflict = |kind: &MarkConflictKind| {
                let (chain, rule) = ("inet own c".into(), "meta mark set 0x1".into());
                MarkConflict { chain, rule, kind: *kind }
            };
            kinds.iter().map(conflict).collect()
        };
        use MarkConflictKind::{Compares, ComparesCtMark, Overwrites};
        for (kinds, advice) in [
            (&[Overwrites][..], &["leaves out 0xfffe0000"][..]),
            (&[Compares, Overwrites], &["leaves out 0xfffe0000"]),
            (&[ComparesCtMark], &["`ct mark & 0x40000000 != 0`"]),
            (
                &[ComparesCtMark, Compares],
                &["leaves out 0xfffe0000", "`ct mark & 0x40000000 != 0`"],
            ),
        ] {
            let checks = marks(&conflicts(kinds), &parameters);
            assert_eq!(checks.len(), advice.len());
            for (check, advice) in checks.iter().zip(advice) {
                assert_eq!(check.mark, CheckStatus::Note);
                assert_eq!(check.details[0], "`meta mark set 0x1` in inet own c");
                assert!(check.advice[0].contains(advice), "{check:?}");
            }
        }
    }

    #[test]
    fn confidentiality_lockdown_is_mentioned() {
        let lockdown = "none integrity [confidentiality]\n".into();
        let locked = KernelInfo { lockdown, ..machine() };
        let check = check(FastPathMode::Auto, None, Backend::Nftables, &locked);
        assert!(
            check.mark == CheckStatus::Ok && check.details[0].contains("lockdown"),
            "{check:?}"
        );
    }
}
