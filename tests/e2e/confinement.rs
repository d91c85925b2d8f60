//! What the confinement of each process forbids, and what it leaves.

use std::{
    fs,
    io::{self, Write},
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::Path,
    process::Command,
    thread,
};

use ftp_alg::daemon::confine;

/// How a confined process ends that tries something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Done,
    /// With this error, by its files' rights.
    Errno(i32),
    /// By a system call that is forbidden.
    Forbidden,
}

const TRY: &str = "FTP_ALG_TEST_TRY";

/// What [`confined`] tries in its process, by name; `state` is its state directory.
fn attempt(name: &str, state: &Path) -> io::Result<()> {
    let file = state.join("a");
    let append = |path: &Path| {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(path)?;
        file.write_all(b"more")?;
        file.sync_all()?;
        file.set_len(2)
    };
    let socket =
        |domain: i32| socket2::Socket::new(domain.into(), socket2::Type::STREAM, None).map(drop);
    match name {
        "keep state" => {
            append(&file)?;
            fs::write(state.join("b"), "new")?;
            fs::rename(state.join("b"), &file)?;
            assert_eq!(fs::read_to_string(&file)?, "new");
            assert_eq!(fs::read_dir(state)?.count(), 1);
            fs::remove_file(file)
        }
        "read /proc" => fs::read("/proc/sys/net/ipv4/ip_forward").map(drop),
        "read /etc/shadow" => fs::read("/etc/shadow").map(drop),
        "read /etc" => fs::read_dir("/etc").map(drop),
        "write outside" => append(&state.with_file_name("outside")),
        "make a directory" => fs::create_dir(state.join("new")),
        "remove pins" => {
            let pins = state.with_file_name("pins").join("1-0badf00d");
            for entry in fs::read_dir(&pins)? {
                fs::remove_file(entry?.path())?;
            }
            fs::remove_dir(pins)
        }
        "read a pin" => fs::read(state.with_file_name("pins").join("1-0badf00d/inspect")).map(drop),
        "load a program" => {
            let refused = |_| io::Error::from_raw_os_error(libc::EPERM);
            aya::Ebpf::load(ftp_alg_fastpath::PROGRAM).map(drop).map_err(refused)
        }
        "move out" => {
            append(&file)?;
            fs::rename(&file, state.with_file_name("out"))
        }
        "start a thread" => thread::spawn(|| ()).join().map_err(|_| io::ErrorKind::Other.into()),
        "panic" => {
            assert!(thread::spawn(|| panic!("as a worker may")).join().is_err());
            Ok(())
        }
        "start a program" => Command::new("/bin/true").status().map(drop),
        "socket of the internet" => socket(libc::AF_INET6),
        "socket of a virtual machine" => socket(libc::AF_VSOCK),
        "socket of packets" => socket(libc::AF_PACKET),
        "change the root" => std::os::unix::fs::chroot("/"),
        "change a mode" => fs::set_permissions("/", fs::Permissions::from_mode(0o755)),
        "include a secret" => {
            let rules = state.with_file_name("rules");
            let mut nft = Command::new("/usr/sbin/nft");
            let output = nft.arg("--check").arg("--file").arg(rules).output()?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains("Permission denied") && !said.contains("root:"), "{said}");
            Ok(())
        }
        other => panic!("{other}"),
    }
}

/// Not a test of its own: the process that is confined, for [`assert_ends`].
#[test]
fn confined() {
    let Ok(which) = std::env::var(TRY) else { return };
    let (role, rest) = which.split_once('|').unwrap();
    let (name, state) = rest.split_once('|').unwrap();
    let state = Path::new(state);
    match role {
        "daemon" => drop(confine::confine_daemon(state, state, None, &[]).unwrap()),
        "fast path" => {
            let pins = state.with_file_name("pins");
            confine::become_user(None).unwrap();
            drop(confine::confine_daemon(state, state, Some(&pins), &[]).unwrap());
        }
        "broker" => confine::confine_broker(None).unwrap(),
        "program" => confine::confine_program().unwrap(),
        other => panic!("{other}"),
    }
    let code = match attempt(name, state) {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap_or(100),
    };
    std::process::exit(code);
}

/// What becomes of a process, confined in this role, that tries this.
fn assert_ends(role: &str, cases: &[(&str, End)]) {
    let place = tempfile::tempdir().unwrap();
    let state = place.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::write(place.path().join("rules"), "include \"/etc/shadow\"\n").unwrap();
    let test = format!("{}::confined", module_path!().split_once("::").unwrap().1);
    for &(name, end) in cases {
        let pins = place.path().join("pins/1-0badf00d");
        fs::create_dir_all(&pins).unwrap();
        fs::write(pins.join("inspect"), "").unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &test, "--nocapture"]);
        command.env(TRY, format!("{role}|{name}|{}", state.display())).env("RUST_BACKTRACE", "1");
        let output = command.output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains("running 1 test"));
        let found = match (output.status.code(), output.status.signal()) {
            (Some(0), _) => End::Done,
            (None, Some(libc::SIGSYS)) => End::Forbidden,
            // In a build without debug assertions.
            (Some(libc::EPERM), _) => End::Forbidden,
            (Some(code), _) => End::Errno(code),
            (None, signal) => panic!("{role}: {name}: signal {signal:?}"),
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(found, end, "{role}: {name}\n{said}");
    }
}

const DENIED: End = End::Errno(libc::EACCES);

#[test]
fn the_daemon_has_its_state_and_nothing_else() {
    for (role, pins) in [("daemon", DENIED), ("fast path", End::Done)] {
        let cases = [
            ("keep state", End::Done),
            ("read /proc", End::Done),
            ("start a thread", End::Done),
            ("panic", End::Done),
            ("socket of the internet", End::Done),
            // A fast path has the directory of its pins besides.
            ("remove pins", pins),
            ("read a pin", DENIED),
            ("read /etc/shadow", DENIED),
            ("read /etc", DENIED),
            ("write outside", DENIED),
            ("move out", DENIED),
            ("start a program", End::Forbidden),
            ("socket of a virtual machine", End::Forbidden),
            ("socket of packets", End::Forbidden),
            ("change the root", End::Forbidden),
            ("change a mode", End::Forbidden),
            ("make a directory", End::Forbidden),
            ("load a program", End::Forbidden),
        ];
        assert_ends(role, &cases);
    }
}

#[test]
fn the_broker_writes_nothing_and_its_programs_read_no_secrets() {
    let of_broker =
        [("start a program", End::Done), ("write outside", DENIED), ("move out", DENIED)];
    assert_ends("broker", &of_broker);
    let of_program = [
        ("start a program", End::Done),
        ("read /proc", End::Done),
        ("read /etc/shadow", DENIED),
        ("read /etc", DENIED),
        ("write outside", DENIED),
        ("include a secret", End::Done),
    ];
    assert_ends("program", &of_program);
}
