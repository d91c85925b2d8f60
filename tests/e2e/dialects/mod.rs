//! What servers and clients of many makes say (`dialects.txt`): without a helper, with the kernel's, and with `ftp-alg`.
//! Where one of the others serves a dialect, `ftp-alg` does so, too. benches/studies/dialects.md has the table.

use std::collections::BTreeMap;

use crate::common::{
    dialogues::{Playing, Segments, play},
    *,
};

const TABLE: &str = "benches/studies/dialects.md";
const HEAD: &str =
    "| dialogue | no helper | kernel's helper | `ftp-alg` |\n| --- | --- | --- | --- |\n";

/// A gateway with masquerade where clients may go anywhere, and nothing comes in.
const NO_HELPER: &str = "
table inet gateway {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname \"lan\" accept
    }
    chain source {
        type nat hook postrouting priority srcnat;
        oifname \"wan\" masquerade
    }
}
";

/// How long an end waits in a dialogue that fails, in seconds.
const LIMIT: u64 = 1;

/// A way to serve a dialogue's transfers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Passive,
    Active,
    /// As the dialogue says.
    Own,
}

/// One dialogue in one mode.
#[derive(Clone)]
struct Dialect {
    name: String,
    /// Why `ftp-alg` does not serve it, if it does not.
    refused_because: Option<String>,
    mode: Mode,
    text: String,
}

fn dialects() -> Vec<Dialect> {
    let text = include_str!("dialects.txt");
    let sections = text.split("\n== ").skip(1);
    sections
        .flat_map(|section| {
            let (name, lines) = section.split_once('\n').unwrap();
            let refused = lines.strip_prefix("! ").and_then(|lines| lines.split_once('\n'));
            let lines = refused.map_or(lines, |(_, lines)| lines);
            let modes = match lines.contains("@transfer") {
                true => vec![Mode::Passive, Mode::Active],
                false => vec![Mode::Own],
            };
            modes.into_iter().map(move |mode| {
                let text = lines.lines().map(|line| expand(line, mode) + "\n").collect();
                let refused_because = refused.map(|(reason, _)| reason.to_owned());
                Dialect { name: name.to_owned(), refused_because, mode, text }
            })
        })
        .collect()
}

fn expand(line: &str, mode: Mode) -> String {
    const ASKED: &str = "C: USER joe\nS: 331 password\nC: PASS x";
    const MOVED: &str = "C: RETR f\nS: 150 here\n-- download 700\nS: 226 done";
    match (line, mode) {
        ("@asked", _) => format!("S: 220 ready\n{ASKED}"),
        ("@start", _) => format!("S: 220 ready\n{ASKED}\nS: 230 welcome"),
        ("@login", _) => format!("{ASKED}\nS: 230 welcome"),
        ("@moved", _) => MOVED.to_owned(),
        ("@quit", _) => "C: QUIT\nS: 221 bye".to_owned(),
        ("@transfer", Mode::Active) => format!("C: PORT {{host-port}}\nS: 200 ok\n{MOVED}"),
        ("@transfer", _) => {
            format!("C: PASV\nS: 227 Entering Passive Mode ({{host-port}}).\n{MOVED}")
        }
        (line, _) => line.to_owned(),
    }
}

/// The modes in which each of these dialogues works through the gateway of `lab`, and why others do not.
fn served(
    lab: &Lab,
    dialects: &[Dialect],
    limit: Option<u64>,
) -> (BTreeMap<String, Vec<Mode>>, Vec<String>) {
    let address = lab.server_address(V4);
    let playing = |(number, dialect): (usize, &Dialect)| {
        let name = format!("{number}-{}-{:?}.txt", dialect.name.replace('/', "-"), dialect.mode);
        let file = lab.directory().join(name);
        fs::write(&file, &dialect.text).unwrap();
        Playing { file, address, text: dialect.text.clone() }
    };
    let all: Vec<_> = dialects.iter().enumerate().map(playing).collect();
    let failures = play(&lab.server, &lab.client, &all, Segments::Lines, limit).unwrap();
    let mut served = BTreeMap::<String, Vec<Mode>>::new();
    for (Dialect { name, mode, .. }, failures) in dialects.iter().zip(&failures) {
        let modes = served.entry(name.clone()).or_default();
        if failures.is_empty() {
            modes.push(*mode);
        }
    }
    (served, failures.concat())
}

fn cell(modes: &[Mode]) -> &'static str {
    match modes {
        [] => "no",
        [Mode::Passive] => "passive",
        [Mode::Active] => "active",
        _ => "yes",
    }
}

#[test]
fn ftp_alg_serves_what_the_kernels_helper_serves_and_what_works_without_a_helper() {
    let lab = Lab::new(Topology::Masquerade).unwrap();
    let daemon = Daemon::start(&executable(), &lab.gateway, "").unwrap();
    let all = dialects();
    let reasons: BTreeMap<_, _> =
        all.iter().filter_map(|d| Some((&d.name, d.refused_because.as_ref()?))).collect();
    let (refused, followed): (Vec<_>, Vec<_>) =
        dialects().into_iter().partition(|dialect| dialect.refused_because.is_some());
    let (mut ours, failures) = served(&lab, &followed, None);
    assert_eq!(failures, [""; 0], "{}", daemon.log());
    assert!(followed.len() >= 30 && ours.values().all(|modes| !modes.is_empty()));
    let other = Lab::new(Topology::Masquerade).unwrap();
    let _daemon = Daemon::start(&executable(), &other.gateway, "").unwrap();
    let (not_ours, _) = served(&other, &refused, Some(LIMIT));
    assert!(
        not_ours.values().all(Vec::is_empty),
        "served, although its reason says not: {not_ours:?}"
    );
    ours.extend(not_ours);
    assert_eq!(daemon.counter("errors").unwrap(), 0);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(TABLE);
    let page = fs::read_to_string(&path).unwrap();
    let (before, rows) = page.split_once(HEAD).unwrap();
    let names = rows.lines().filter_map(|row| row.strip_prefix("| ")?.split(" | ").next());
    let is_update = std::env::var_os("UPDATE").is_some();
    if !is_update {
        assert_eq!(names.collect::<Vec<_>>(), ours.keys().collect::<Vec<_>>(), "UPDATE=1 {TABLE}");
        let is_listed = |row: &str| row.ends_with(" | yes |") || row.contains(" | no: ");
        assert!(rows.lines().all(is_listed));
    }
    if !is_update && std::env::var_os("FTP_ALG_NIGHTLY").is_none() {
        return;
    }
    let kernels = Lab::new(Topology::Masquerade).unwrap();
    kernels.gateway.nft(KERNEL_HELPER).unwrap();
    let without = lab_with_rules(Topology::Masquerade, NO_HELPER);
    let play = |dialects: &[Dialect], limit| {
        thread::scope(|scope| {
            let both = [&kernels, &without]
                .map(|lab| scope.spawn(move || served(lab, dialects, Some(limit)).0));
            both.map(|one| one.join().unwrap())
        })
    };
    let row = |name: &String, [by_kernel, by_none]: &[BTreeMap<String, Vec<Mode>>; 2]| {
        let [none, kernel, own] =
            [&by_none[name], &by_kernel[name], &ours[name]].map(|modes| cell(modes));
        let why = reasons.get(name).map(|reason| format!(": {reason}")).unwrap_or_default();
        format!("| {name} | {none} | {kernel} | {own}{why} |\n")
    };
    let mut others = play(&all, LIMIT);
    // A busy machine may have been too slow for what is not as the page says.
    let differing = all.iter().filter(|one| !rows.contains(&row(&one.name, &others)));
    let differing: Vec<_> = differing.cloned().collect();
    if !differing.is_empty() {
        let [by_kernel, by_none] = play(&differing, 8 * LIMIT);
        others[0].extend(by_kernel);
        others[1].extend(by_none);
    }
    let table: String = ours.keys().map(|name| row(name, &others)).collect();
    if is_update {
        fs::write(&path, format!("{before}{HEAD}{table}")).unwrap();
    } else {
        assert_eq!(rows, table, "UPDATE=1 {TABLE}");
    }
}
