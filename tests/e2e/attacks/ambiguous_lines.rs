//! Real servers that parse ambiguous lines in ways of their own: such lines open no pinhole, and no server executes a
//! hidden bounce.

use super::{addresses::ATTEMPTS, scene::assert_silent};
use crate::common::*;

/// A port of the published server with another service.
const FORGED: u16 = 3306;

/// A client of the published `server` that logs in and runs `steps`. No connection to [`FORGED`] may get through.
fn attack(gateway: &Gateway, server: &Server, steps: &[Value]) {
    let (lab, kind) = (&gateway.lab, server.kind());
    let held = hold(lab, (login_as(server.login()), steps, json!({"sleep": 0.5}), gate()));
    let outside = lab.gateway.address(V4).to_string();
    assert_silent(&[(&lab.client, outside.as_str(), FORGED)]);
    // Only vsftpd may announce a port of its own after the listing is complete.
    let log = gateway.daemon.log();
    let opened = |line: &&str| line.contains(": open ") || line.contains(": rewrite ");
    let forged = |line: &str| line.contains(&format!(":{FORGED}"));
    assert!(!log.lines().filter(opened).any(forged), "{kind}: {log}");
    if kind != ServerKind::Vsftpd {
        assert_eq!(gateway.daemon.open_pinholes().unwrap(), [""; 0], "{kind}: {log}");
        assert_eq!(gateway.count("pinholes_opened"), 0, "{kind}");
    }
    drop(held);
}

/// A gateway, and a server of this kind behind it.
fn published(kind: ServerKind) -> (Gateway, Server) {
    let gateway = gateway(Topology::PublishedServer);
    let server = Server::start(kind, &gateway.lab.server).unwrap();
    (gateway, server)
}

/// pyftpdlib accepts only CR LF as a line end, and echoes the argument.
#[test]
fn an_argument_echoed_by_pyftpdlib_opens_no_pinhole() {
    let (gateway, server) = published(ServerKind::Pyftpdlib);
    for end in ["\n", "\r", "\0"] {
        let line = format!("SIZE a{end}229 x (|||{FORGED}|)\r\nEPSV\r\n");
        let steps = [say("TYPE I"), reply(), json!({"send": line})];
        attack(&gateway, &server, &steps);
    }
}

/// vsftpd treats a NUL in a file name as LF, and lists names unchanged.
#[test]
fn a_file_name_listed_by_vsftpd_opens_no_pinhole() {
    let (gateway, server) = published(ServerKind::Vsftpd);
    for (at, rest) in
        [format!("\0229 E (|||{FORGED}|)\0"), format!("\r\0213 End\r\0229 E (|||{FORGED}|)\r\0y")]
            .iter()
            .enumerate()
    {
        for pipelined in [true, false] {
            // Each case has names of its own.
            let stem = format!("x{at}{pipelined}");
            let (name, list) = (format!("{stem}{rest}"), format!("STAT pub/{stem}*\r\n"));
            let listing = json!({"send": list});
            let mut steps =
                vec![json!({"send": format!("MKD pub/{name}\r\n")}), json!({"sleep": 0.3})];
            if pipelined {
                steps.push(json!({"send": format!("{list}EPSV\r\n")}));
            } else {
                steps.extend([listing, say("EPSV")]);
            }
            attack(&gateway, &server, &steps);
        }
    }
}

/// ProFTPD removes a NUL after a CR, and any Telnet option. So one command for it is two lines for the gateway. Later
/// it echoes the name of its current directory, in reply to commands that are not ambiguous.
#[test]
fn a_directory_name_echoed_by_proftpd_opens_no_pinhole() {
    let end = "\r\0\n\u{ff}\u{fb}A";
    let (gateway, server) = published(ServerKind::Proftpd);
    for (at, (last, commands)) in [
        ("", "PWD\r\nEPSV\r\n"),
        ("", "MKD sub\r\nEPSV\r\n"),
        ("", "NOOP\r\nXPWD\r\nEPSV\r\nNOOP\r\n"),
        ("250 End", "MLST\r\nEPSV\r\n"),
    ]
    .into_iter()
    .enumerate()
    {
        let first = if last.is_empty() { String::new() } else { format!("{end}{last}") };
        let name = format!("x{at}{first}{end}229 x (|||{FORGED}|)");
        let mut steps = Vec::new();
        for verb in ["MKD", "CWD"] {
            let line = format!("{verb} pub/{name}\r\n");
            steps.extend([json!({"send": line}), json!({"sleep": 0.3})]);
        }
        // ProFTPD answers one command where the gateway sees several, and these replies leave no command pending.
        for _ in 0..3 {
            steps.extend([json!({"send": "PWD\r\n"}), json!({"sleep": 0.3})]);
        }
        steps.push(json!({"send": commands}));
        attack(&gateway, &server, &steps);
    }
}

/// ProFTPD shows a file of the current directory, or of the one that the client changes to. It expands time sequences
/// in the file to line ends. Any uploader can write that file.
#[test]
fn a_message_file_shown_by_proftpd_opens_no_pinhole() {
    let end = "\r%{time:%n}";
    let gateway = gateway(Topology::PublishedServer);
    let changes_directory = [say("TYPE I"), reply(), say("CWD pub"), reply()];
    for (code, more, before, command) in [
        ("250 End", "DisplayChdir .message", &[][..], "CWD pub"),
        ("", "DisplayQuit .message", &changes_directory, "QUIT"),
    ] {
        let shown = format!("x{end}{code}{end}229 x (|||{FORGED}|){end}y\n");
        let shown = if code.is_empty() { format!("x{end}229 x (|||{FORGED}|)\n") } else { shown };
        let server = Server::start_with(ServerKind::Proftpd, &gateway.lab.server, more).unwrap();
        server.put(".message", shown.as_bytes()).unwrap();
        let pipeline = json!({"send": format!("{command}\r\nEPSV\r\n")});
        let steps = [before, &[pipeline]].concat();
        attack(&gateway, &server, &steps);
    }
}

/// Announcements of the third host's port 3764, hidden in every known way.
fn hidden_bounces(third: &str) -> Vec<String> {
    let port = format!("PORT {third},14,180");
    let mut lines: Vec<String> = [
        "",
        "NOOP\n",
        "NOOP\r",
        "NOOP\0",
        "SIZE a\n",
        "SIZE a\r\0",
        "\u{ff}\u{f4}",
        "\u{ff}\u{fb}\u{1}",
        "\u{ff}\u{fb}x",
        "\u{ff}\u{fb}",
        "\u{ff}",
        "\u{ff}\u{ff}",
        "\r",
        "\u{ff}\u{f4}\u{ff}\u{f2}",
        "NOOP\u{ff}\u{fb}\r\n",
        "NOOP\u{ff}\u{fb}\n",
        "NOOP \u{ff}\n",
        "\u{ff}\u{fa}\n",
        "\u{ff}\u{fd}\n",
    ]
    .iter()
    .map(|lead| format!("{lead}{port}"))
    .collect();
    lines.extend([
        format!("PO\u{ff}\u{fb}\nRT {third},14,180"),
        format!("P\u{ff}\u{fd}\nORT {third},14,180"),
        format!("\u{ff}\u{ff}PO\u{ff}\u{fb}\nRT {third},14,180"),
        format!("PO\u{ff}\u{fb}\u{1}RT {third},14,180"),
        format!("PORT \n{third},14,180"),
        format!("PORT\t{third},14,180"),
        format!("PORT\r{third},14,180"),
        format!("PORT {third},14,180\r"),
        format!("PORT {third},14,\0180"),
        format!("EPRT |1|{}|3764|", third.replace(',', ".")),
        format!("PO\u{ff}\u{fe}\nRT {third},14,180"),
        format!("EP\u{ff}\u{fc}\nRT |1|{}|3764|", third.replace(',', ".")),
    ]);
    lines
}

/// The server is configured to accept foreign addresses, so only the gateway prevents the bounce.
fn assert_no_hidden_bounce(gateway: &Gateway, kind: ServerKind, more: &str) {
    let Lab { client, outsider: third, server: host, .. } = &gateway.lab;
    let server = Server::start_with(kind, host, more).unwrap();
    let login = server.login();
    let thirds = Capture::start(third, "eth0", "tcp").unwrap();
    let lines = hidden_bounces(&third.address(V4).to_string().replace('.', ","));
    let host_port = json!(gateway.lab.server_address(V4));
    thread::scope(|scope| {
        // Each line has a connection of its own.
        for part in lines.chunks(lines.len().div_ceil(4)) {
            let host_port = &host_port;
            scope.spawn(move || {
                let mut steps = Vec::new();
                for line in part {
                    steps.extend(login_as(login));
                    steps.extend([say(line), say("NLST"), json!({"sleep": 0.1})]);
                    steps.extend([json!({"abort": true}), json!({"redial": true})]);
                }
                let plan = json!({"host": host_port, "steps": steps});
                scripted_client(client, &plan).ok_in(kind);
            });
        }
    });
    let from = host.address(V4);
    let attempts =
        thirds.finish().unwrap().count(&format!("{ATTEMPTS} && ip.src == {from}")).unwrap();
    assert_eq!(attempts, 0, "{kind} connected to the third host");
    assert_eq!(gateway.count("pinholes_opened"), 0);
}

#[test]
fn no_hidden_bounce_reaches_a_server() {
    let gateway = gateway(Topology::Masquerade);
    for (kind, more) in [
        (ServerKind::Proftpd, "AllowForeignAddress on\nMaxInstances 300"),
        (ServerKind::Vsftpd, "port_promiscuous=YES"),
        (ServerKind::PureFtpd, "-w"),
        (ServerKind::Pyftpdlib, ""),
    ] {
        assert_no_hidden_bounce(&gateway, kind, more);
    }
}
