//! What the running daemon may still do, and that this is enough.

use std::os::unix::fs::MetadataExt;

use rustix::process::{Pid, Signal};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

use crate::common::*;

/// CAP_NET_ADMIN and CAP_NET_RAW.
const TWO: &str = "0000000000003000";
const NONE: &str = "0000000000000000";
const NOBODY: u32 = 65534;
const OUTSIDE: &str = "198.51.100.1";
/// Starts `"$@"` as the package's unit does, for a fast path.
const AS_UNIT: &str = "setpriv --reuid=65534 --regid=65534 --clear-groups \
     --inh-caps=-all,+net_admin,+net_raw,+bpf,+perfmon \
     --ambient-caps=-all,+net_admin,+net_raw,+bpf,+perfmon \"$@\"";

/// The `status` of every thread of a process, without those that end meanwhile.
fn threads(process: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok()).collect()
}

/// Each of these keys has this value, in every thread of `process`.
fn assert_status(process: u32, expected: &[(&str, &str)]) {
    for thread in threads(process) {
        for (key, value) in expected {
            let found = thread.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            assert_eq!(found.unwrap().trim(), *value, "{key}: {thread}");
        }
    }
}

/// The real, effective, saved and file system's user of `status`.
fn ids(uid: u32) -> String {
    [(); 4].map(|()| uid.to_string()).join("\t")
}

/// The only child of a process that is no copy of it.
fn child(process: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap();
    let command_line = |process: &str| fs::read(format!("/proc/{process}/cmdline"));
    let own = command_line(&process.to_string()).unwrap();
    // One that has ended has none.
    let is_other = |child: &&str| command_line(child).is_ok_and(|of| !of.is_empty() && of != own);
    let mut others = children.split_whitespace().filter(is_other);
    let child = others.next().unwrap();
    assert_eq!(others.next(), None);
    child.parse().unwrap()
}

/// A program that starts the daemon as `start` does, with its command line as `"$@"` and its
/// directory as `$home`.
fn starter(lab: &Lab, start: &str) -> PathBuf {
    let program = executable_for_everyone(lab);
    let lines = format!(
        "[ \"$1\" = run ] || exec {0} \"$@\"\nhome={1}\nset -- {0} \"$@\"\n{start}",
        program.display(),
        lab.directory().join("gateway-ftp-alg").display()
    );
    shell_program(&lab.gateway, "ftp-alg-started", &lines)
}

/// Without legacy iptables: a kernel without modules does not say which of its tables are in use.
fn assert_complains_of_nothing(daemon: &Daemon) {
    let log = daemon.log();
    let complaints = log.lines().filter(|line| {
        line.contains("Permission denied")
            && !line.contains("tables-legacy: cannot see if it is in use")
    });
    assert_eq!(complaints.collect::<Vec<_>>(), [""; 0]);
}

/// A daemon that `start` starts, see [`starter`], is confined, and does all that a daemon does.
fn assert_works_confined(start: &str, uid: u32) {
    let lab = Lab::new(Topology::PublishedServer).unwrap();
    let firewall = lab.gateway.ruleset().unwrap();
    let home = lab.directory().join("gateway-ftp-alg");
    // With file capabilities (`setcap`) anyone who may run the program chooses its environment.
    let own = lab.directory().join("own");
    fs::create_dir(&own).unwrap();
    let nft = shell_program(&lab.gateway, "nft", "echo chosen by PATH >&2; exit 1");
    fs::copy(nft, own.join("nft")).unwrap();
    // So that what others remove is loaded again, by the broker.
    let environment = format!("FTP_ALG_TABLE_OWNER=no LD_BIND_NOW=1 PATH={}:$PATH", own.display());
    let program = starter(&lab, &format!("export {environment}\n{start}"));
    let names = json!({ NAME: {"A": [OUTSIDE], "ttl": 1} });
    let dns = NameServer::start(&lab.gateway, &program, &names);
    let configuration =
        format!("metrics.listen = 9821\n[nat]\nexternal-address = \"dns:{NAME}\"\n");
    let mut daemon = Daemon::start(&dns.executable, &lab.gateway, &configuration).unwrap();
    let loaded = lab.gateway.ruleset().unwrap();
    wait_for_address(&daemon, OUTSIDE);
    assert_complains_of_nothing(&daemon);

    let id = ids(uid);
    let groups = if uid == 0 { &[][..] } else { &[("Groups", ""), ("Gid", id.as_str())] };
    let two = ["CapEff", "CapPrm", "CapBnd"].map(|set| (set, TWO));
    let both = [&two[..], &[("Uid", &*id), ("NoNewPrivs", "1")]].concat();
    let alone = [("CapInh", NONE), ("CapAmb", NONE), ("Seccomp", "2")];
    assert!(threads(daemon.id()).len() >= 6, "main, signals, broker, names, queue, control");
    assert_status(daemon.id(), &[&both[..], &alone, groups].concat());
    let keeper = child(daemon.id());
    for process in [keeper, child(keeper)] {
        assert_status(process, &[&both[..], groups].concat());
    }
    let environment = fs::read(format!("/proc/{}/environ", child(keeper))).unwrap();
    assert_eq!(String::from_utf8_lossy(&environment), "");
    assert!(!daemon.log().contains("chosen by PATH"), "{}", daemon.log());
    assert_eq!(daemon.status().unwrap()["unconfined"], json!([]), "{}", daemon.log());
    let state = fs::metadata(home.join("state")).unwrap();
    assert_eq!((state.uid(), state.mode() & 0o022), (uid, 0));

    let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
    let exchange = |name: &str| {
        for mode in MODES {
            let name = format!("{name}-{mode}");
            if let Err(error) = curl(&lab, &server, mode).exchange(&server, &name, b"the body") {
                panic!("{start}: {mode}: {error}\n{}", daemon.log());
            }
        }
    };
    exchange("before");
    let metrics = lab.gateway.run("curl", &["-sS", "http://127.0.0.1:9821/metrics"]).unwrap();
    assert!(metrics.stdout_text().contains("\nftp_alg_warnings "), "{}", daemon.log());
    // What its broker does for it: the configuration, names, the rules.
    reload(&daemon, "nat.external-address = \"dns:hosts.lab.test\"\n");
    wait_for("the reload", || row(&daemon, "ipv4")["name"] == "hosts.lab.test");
    wait_for_address(&daemon, "203.0.113.9");
    reload(&daemon, "");
    wait_for("the reload", || daemon.log().matches("configuration is in use").count() == 2);
    lab.gateway.nft(&format!("flush ruleset\n{firewall}")).unwrap();
    // The translations of earlier sessions stay.
    let ruleset = || without_elements(&lab.gateway.ruleset().unwrap());
    wait_for("the table", || ruleset() == without_elements(&loaded));
    exchange("after");
    assert_eq!(daemon.counter("errors").unwrap(), 0, "{}", daemon.log());
    let journal = home.join("state/queue-2100.sessions");
    assert_eq!(fs::metadata(journal).unwrap().uid(), uid);

    wait_for("the sessions' end", || daemon.sessions().unwrap().is_empty());
    let helpers = [keeper, child(keeper)];
    assert!(daemon.stop().unwrap().success(), "{}", daemon.log());
    assert_eq!(lab.gateway.ruleset().unwrap(), firewall);
    assert!(!home.join("socket").exists());
    wait_for("their end", || helpers.iter().all(|&process| has_ended(process)));
}

#[test]
fn started_as_root_it_keeps_two_capabilities_and_works() {
    assert_works_confined("exec \"$@\"", 0);
}

#[test]
fn it_becomes_another_user_and_works() {
    // The state directory it makes itself.
    assert_works_confined(
        "rmdir $home/state; chown 65534 $home; exec \"$@\" --user nobody",
        NOBODY,
    );
}

/// Started with a BPF file system, or without one, by root, as another user, and by that user.
#[test]
fn with_a_fast_path_it_keeps_two_capabilities_as_well() {
    let lab = Lab::new(Topology::Routed).unwrap();
    // With a file system of its own, which is root's alone.
    let mounted = |kind: &str, then: &str| {
        let mount = format!("mount -t {kind} -o mode=700 none /sys/fs/bpf && {then}");
        format!(
            "export home; chown -R {NOBODY} $home; exec unshare --mount sh -c '{mount}' sh \"$@\""
        )
    };
    let as_user = format!(
        "mkdir -p $home/state/bpf && mount -t bpf -o mode=700 none $home/state/bpf && \
         chown {NOBODY} $home/state/bpf && exec {AS_UNIT}"
    );
    let root = "chown -R 0 $home; exec \"$@\"";
    let nobody = "exec \"$@\" --user nobody";
    let symlink = format!("ln -s . /sys/fs/bpf/ftp-alg; {root}");
    for (start, uid, state) in [
        (mounted("bpf", root), 0, "on"),
        (mounted("bpf", nobody), NOBODY, "on"),
        (mounted("tmpfs", &as_user), NOBODY, "on"),
        (mounted("tmpfs", root), 0, "off"),
        (mounted("bpf", &symlink), 0, "off"),
    ] {
        let mut daemon = Daemon::start(&starter(&lab, &start), &lab.gateway, FAST_PATH).unwrap();
        let found = daemon.status().unwrap()["fast_path"].clone();
        assert_eq!(found["state"], state, "{start}: {found}");
        let id = ids(uid);
        let all = [("Uid", id.as_str()), ("CapEff", TWO), ("CapPrm", TWO), ("CapAmb", NONE)];
        assert_status(daemon.id(), &all);
        assert_status(child(daemon.id()), &all[..3]);
        assert!(daemon.stop().unwrap().success(), "{}", daemon.log());
    }
}

/// What was pinned, below the BPF file system that a process sees: paths, with their users.
fn pinned(process: u32) -> Vec<(PathBuf, u32)> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::from(format!("/proc/{process}/root/sys/fs/bpf/ftp-alg"))];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            // It may be removed meanwhile.
            let Ok(about) = entry.metadata() else { continue };
            if about.is_dir() {
                open.push(path.clone());
            }
            found.push((path, about.uid()));
        }
    }
    found
}

/// A process that keeps a mount namespace, in which it has run this.
fn keeper(lab: &Lab, lines: &str) -> BackgroundProcess {
    let mut keeper = lab.gateway.command("unshare");
    keeper.args(["--mount", "sh", "-c", &format!("{lines}; exec sleep 600")]);
    lab.gateway.start(keeper, "keeper").unwrap()
}

/// On a machine with a daemon in each of several network namespaces.
#[test]
fn daemons_of_different_users_share_a_bpf_file_system() {
    let labs = [(); 3].map(|()| Lab::new(Topology::Routed).unwrap());
    let keeper = keeper(&labs[0], "mount -t bpf bpf /sys/fs/bpf; echo ready");
    wait_for("the file system", || keeper.log().contains("ready"));
    let enter = format!("exec nsenter --mount=/proc/{}/ns/mnt \"$@\"", keeper.id());
    let mut daemons = Vec::new();
    for (lab, user) in labs.iter().zip([" --user nobody", "", " --user nobody"]) {
        let owner = if user.is_empty() { 0 } else { NOBODY };
        let program = starter(lab, &format!("chown -R {owner} $home; {enter}{user}"));
        let daemon = Daemon::start(&program, &lab.gateway, FAST_PATH).unwrap();
        let found = daemon.status().unwrap()["fast_path"].clone();
        assert!(found["state"] == "on" || !has_tcx(), "{user}: {found}");
        daemons.push(daemon);
    }
}

#[test]
fn a_fast_path_belongs_to_the_user_that_it_is_loaded_for() {
    let lab = Lab::new(Topology::Routed).unwrap();
    // One that stays, and in which the test can look.
    let keeper = keeper(
        &lab,
        "mount -t bpf -o mode=755 bpf /sys/fs/bpf; cd /sys/fs/bpf; mkdir -m 700 ftp-alg; \
         chown 65534 ftp-alg",
    );
    let start = format!(
        "chown -R {NOBODY} $home; exec nsenter --mount=/proc/{}/ns/mnt {AS_UNIT}",
        keeper.id()
    );
    let program = starter(&lab, &start);
    let directory = format!("/proc/{}/root/sys/fs/bpf/ftp-alg", keeper.id());
    wait_for("the directory", || fs::metadata(&directory).is_ok_and(|found| found.uid() == NOBODY));
    let mut daemon = Daemon::start(&program, &lab.gateway, FAST_PATH).unwrap();
    let links = || {
        let pins = pinned(keeper.id());
        assert!(pins.iter().all(|(_, uid)| *uid == NOBODY), "{pins:?}");
        pins.iter().filter(|(path, _)| path.to_string_lossy().contains("/link-")).count()
    };
    // The program stays attached while a session uses it.
    let _server = scripted_server(&lab.server, &json!({}));
    let session = || hold(&lab, (login(), gate()));
    let first = session();
    assert_eq!(links(), 2);
    // Of an interface that comes later the user pins the link.
    lab.gateway.shell("ip link add later type veth peer name later2").unwrap();
    wait_for("the new interfaces", || links() == 4);
    daemon.kill();
    assert_eq!(pinned(keeper.id()).len(), 1 + 11 + 4, "it stays");
    first.release().ok();
    let mut daemon = Daemon::start(&program, &lab.gateway, FAST_PATH).unwrap();
    let second = session();
    assert_eq!(links(), 4);
    lab.gateway.shell("ip link delete later").unwrap();
    wait_for("their end", || links() == 2);
    second.release().ok();
    wait_for("the session's end", || daemon.sessions().unwrap().is_empty());
    assert!(daemon.stop().unwrap().success(), "{}", daemon.log());
    assert_eq!(pinned(keeper.id()), [], "{}", daemon.log());
    assert_eq!(daemon.log().matches("WARN").count(), 0, "{}", daemon.log());
}

#[test]
fn a_daemon_that_does_not_start_leaves_no_fast_path() {
    let lab = Lab::new(Topology::Routed).unwrap();
    let start = "exec unshare --mount sh -c 'mount -t bpf -o mode=700 bpf /sys/fs/bpf; \"$@\"; \
                 find /sys/fs/bpf/ftp-alg -mindepth 1 >&2; echo looked >&2' sh \"$@\"";
    let program = starter(&lab, start);
    // Under another name, so that the next one opens its queue before it knows.
    let first = lab.directory().join("other");
    lab.gateway.run("cp", &[executable().to_str().unwrap(), first.to_str().unwrap()]).unwrap();
    let first = shell_program(&lab.gateway, "first", &format!("exec {} \"$@\"", first.display()));
    let _first = Daemon::start(&first, &lab.gateway, "").unwrap();
    let said = run_another(&lab, &[], &program, &[], FAST_PATH).stderr_text();
    assert!(said.contains("queue 2100 is taken by another program"), "{said}");
    assert!(said.ends_with("looked\n") && !said.contains("/sys/fs/bpf/ftp-alg/"), "{said}");
}

fn send(process: u32, signal: Signal) {
    rustix::process::kill_process(Pid::from_raw(process as i32).unwrap(), signal).unwrap();
}

fn has_ended(process: u32) -> bool {
    !Path::new(&format!("/proc/{process}")).exists()
}

/// The daemon goes on without its broker, which is started again with the same rights.
#[test]
fn a_broker_of_another_user_is_started_again() {
    let start = "rmdir $home/state; chown 65534 $home; exec \"$@\" --user nobody";
    let lab = Lab::new(Topology::PublishedServer).unwrap();
    let program = starter(&lab, &format!("export FTP_ALG_TABLE_OWNER=no\n{start}"));
    let mut daemon = Daemon::start(&program, &lab.gateway, "").unwrap();
    let keeper = child(daemon.id());
    let broker = child(keeper);
    // As an upgrade does: what they run is not there any more.
    let file = fs::read_link(format!("/proc/{broker}/exe")).unwrap();
    let part = file.with_extension("part");
    fs::copy(&file, &part).unwrap();
    fs::rename(&part, &file).unwrap();
    let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
    let problems = || daemon.status().unwrap()["problems"].to_string();
    let upload = |name: &str| curl(&lab, &server, Mode::Active).upload(name, b"12345").unwrap();
    send(broker, Signal::KILL);
    wait_for("the problem", || problems().contains("\"broker\""));
    wait_for("its line", || daemon.log().contains("problem broker: the broker has ended"));
    upload("without");
    // What it is asked meanwhile fails at once.
    reload(&daemon, "log.transfers = false\n");
    wait_for("the error", || daemon.log().contains("the daemon's broker has ended"));
    assert!(!problems().contains("\"config\""), "nobody blames the file: {}", problems());
    assert!(!daemon.log().contains("correct the file"), "{}", daemon.log());
    lab.gateway.nft("delete table inet ftp_alg").unwrap();
    assert!(problems().contains("\"broker\""));
    wait_at_most(90, "another broker", || !problems().contains("\"broker\""));
    assert!(!daemon.log().contains("configuration is in use"), "{}", daemon.log());
    reload(&daemon, "");
    wait_for("the reload", || daemon.log().contains("configuration is in use"));
    wait_for("the table", || lab.gateway.ruleset().unwrap().contains("table inet ftp_alg"));
    upload("again");

    let id = ids(NOBODY);
    let rights = [("CapEff", TWO), ("CapPrm", TWO), ("CapBnd", TWO), ("NoNewPrivs", "1")];
    for process in [keeper, child(keeper)] {
        assert_status(process, &[&rights[..], &[("Uid", &*id)]].concat());
    }
    assert!(daemon.stop().unwrap().success(), "{}", daemon.log());
    wait_for("the keeper's end", || has_ended(keeper));
}

/// Signals as of `killall ftp-alg`, which sends them to all of its processes, end none of them.
#[test]
fn a_daemon_whose_keeper_is_killed_ends_too_and_says_so() {
    let mut gateway = gateway(Topology::Routed);
    let keeper = child(gateway.daemon.id());
    let broker = child(keeper);
    for (process, signal) in [keeper, broker].into_iter().flat_map(|process| {
        [Signal::HUP, Signal::INT, Signal::TERM].map(|signal| (process, signal))
    }) {
        send(process, signal);
    }
    reload(&gateway.daemon, "");
    wait_for("the reload", || gateway.daemon.log().contains("configuration is in use"));
    send(keeper, Signal::KILL);
    wait_for("the daemon's end", || gateway.daemon.exit_status().is_some());
    assert_eq!(gateway.daemon.exit_status().and_then(|status| status.code()), Some(1));
    let log = gateway.daemon.log();
    assert!(log.contains("the keeper of the daemon's broker has ended"), "{log}");
    wait_for("the broker's end", || has_ended(broker));
}

/// The kernel shows some of its files to root only.
#[test]
fn what_only_root_may_read_is_not_taken_for_absent() {
    let lab = lab_behind(FirewallKind::IptablesLegacy, Topology::Masquerade);
    let start = "export FTP_ALG_LOG=debug; chown -R 65534 $home; exec \"$@\" --user nobody";
    let daemon = Daemon::start(&starter(&lab, start), &lab.gateway, "").unwrap();
    wait_for("the rules", || daemon.log().contains("cannot read all rules"));
    let log = daemon.log();
    // As with the package's unit: nothing that an operator could change.
    let counted = log.lines().find(|line| line.contains("overruns are counted from gaps"));
    assert!(counted.is_some_and(|line| line.contains("DEBUG")), "{log}");
    // What it advises is of use to the daemon's user as well.
    assert!(!log.contains("run this as root"), "{log}");
}

#[test]
fn an_unknown_user_is_wrong_usage_and_nobody_becomes_another() {
    let lab = Lab::new(Topology::Routed).unwrap();
    let program = executable_for_everyone(&lab);
    let refused = |start: &str, user: &str, code: i32, words: &str| {
        let under = ["sh", "-c", &format!("{start} \"$@\""), "sh"];
        let done = run_another(&lab, &under, &program, &["--user", user], "");
        assert_fails(&done, code, words);
    };
    refused("exec", "no-such-user", 2, "--user no-such-user: no such user in /etc/passwd");
    let nobody = "mkdir $PWD/elsewhere/state; chown -R 65534 $PWD/elsewhere; \
                  exec setpriv --reuid=65534 --clear-groups";
    refused(nobody, "nobody", 1, "cannot become user nobody");
    refused("exec", "daemon", 1, "belongs to user 65534, but the daemon runs as user 1");
}

#[test]
fn a_kernel_without_landlock_or_seccomp_is_said_so() {
    let lab = Lab::new(Topology::Routed).unwrap();
    let gateway = &lab.gateway;
    // Filters are of the thread that sets them, and of what it starts.
    thread::scope(|scope| {
        scope.spawn(|| {
            let absent = [libc::SYS_landlock_create_ruleset, libc::SYS_seccomp];
            let absent = absent.map(|call| (call, Vec::new())).into();
            let errno = SeccompAction::Errno(libc::ENOSYS as u32);
            let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
            let filter = SeccompFilter::new(absent, SeccompAction::Allow, errno, arch).unwrap();
            apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
            let daemon = Daemon::start(&executable(), gateway, "").unwrap();
            let what = "landlock: not in this kernel";
            assert!(daemon.log().contains(what), "{}", daemon.log());
            let status = daemon.status().unwrap();
            assert!(status["unconfined"][0].as_str().unwrap().starts_with(what), "{status}");
            assert!(status["unconfined"][1].as_str().unwrap().starts_with("seccomp: "), "{status}");
            for command in ["status", "doctor"] {
                let said = daemon.ask(&[command]).unwrap().stdout_text();
                assert!(said.contains(what) && said.contains("seccomp: "), "{said}");
            }
            // The rest holds.
            assert_status(daemon.id(), &[("CapBnd", TWO), ("NoNewPrivs", "1")]);
        });
    });
}
