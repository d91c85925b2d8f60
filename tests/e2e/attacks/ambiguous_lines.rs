//! Real servers that parse ambiguous lines in ways of their own: such lines open no pinhole, and no server executes a
//! hidden bounce.

use super::{
    addresses::ATTEMPTS,
    scene::{ANNOUNCED, PORT, Scene, assert_silent, with_each_back_end},
};
use crate::common::*;

/// A port of the published server with another service.
const FORGED: u16 = 3306;

/// A published server of `kind`, and a client that logs in and runs `steps`. No connection to a port in `ports` may get
/// through.
fn attack_published_server(kind: ServerKind, steps: &[Value], ports: &[u16]) -> Gateway {
    attack_prepared_server(kind, "", |_| {}, steps, ports)
}

/// As [`attack_published_server`], with `more` server configuration, after `prepare` has put files on the server.
fn attack_prepared_server(
    kind: ServerKind,
    more: &str,
    prepare: impl Fn(&Server),
    steps: &[Value],
    ports: &[u16],
) -> Gateway {
    let gateway = gateway_with(Topology::PublishedServer, "");
    let lab = &gateway.lab;
    let server = Server::start_with(kind, &lab.server, more).unwrap();
    prepare(&server);
    let held = hold(lab, (login_as(server.login()), steps, json!({"sleep": 0.5}), gate()));
    let outside = lab.gateway.address(V4).to_string();
    let ports: Vec<_> = ports.iter().map(|port| (&lab.client, outside.as_str(), *port)).collect();
    assert_silent(&ports);
    // Only vsftpd may announce a port of its own after the listing is complete.
    let log = gateway.daemon.log();
    let opened = |line: &&str| line.contains(": open ") || line.contains(": rewrite ");
    let forged = |line: &str| ports.iter().any(|(.., port)| line.contains(&format!(":{port}")));
    assert!(!log.lines().filter(opened).any(forged), "{kind}: {log}");
    if kind != ServerKind::Vsftpd {
        assert_eq!(gateway.daemon.open_pinholes().unwrap(), [""; 0], "{kind}: {log}");
        assert_eq!(gateway.count("pinholes_opened"), 0, "{kind}");
    }
    drop(held);
    gateway
}

/// pyftpdlib accepts only CR LF as a line end, and echoes the argument.
#[test]
fn an_argument_echoed_by_pyftpdlib_opens_no_pinhole() {
    for end in ["\n", "\r", "\0"] {
        let line = format!("SIZE a{end}229 x (|||{FORGED}|)\r\nEPSV\r\n");
        let steps = [say("TYPE I"), reply(), json!({"send": line})];
        attack_published_server(ServerKind::Pyftpdlib, &steps, &[FORGED]);
    }
}

/// vsftpd treats a NUL in a file name as LF, and lists names unchanged.
#[test]
fn a_file_name_listed_by_vsftpd_opens_no_pinhole() {
    for name in
        [format!("x\0229 E (|||{FORGED}|)\0"), format!("x\r\0213 End\r\0229 E (|||{FORGED}|)\r\0y")]
    {
        for pipelined in [true, false] {
            let listing = json!({"send": "STAT pub/x*\r\n"});
            let mut steps =
                vec![json!({"send": format!("MKD pub/{name}\r\n")}), json!({"sleep": 0.3})];
            if pipelined {
                steps.push(json!({"send": "STAT pub/x*\r\nEPSV\r\n"}));
            } else {
                steps.extend([listing, say("EPSV")]);
            }
            attack_published_server(ServerKind::Vsftpd, &steps, &[FORGED]);
        }
    }
}

/// ProFTPD removes a NUL after a CR, and any Telnet option. So one command for it is two lines for the gateway. Later
/// it echoes the name of its current directory, in reply to commands that are not ambiguous.
#[test]
fn a_directory_name_echoed_by_proftpd_opens_no_pinhole() {
    let end = "\r\0\n\u{ff}\u{fb}A";
    for (last, commands) in [
        ("", "PWD\r\nEPSV\r\n"),
        ("", "MKD sub\r\nEPSV\r\n"),
        ("", "NOOP\r\nXPWD\r\nEPSV\r\nNOOP\r\n"),
        ("250 End", "MLST\r\nEPSV\r\n"),
    ] {
        let first = if last.is_empty() { String::new() } else { format!("{end}{last}") };
        let name = format!("x{first}{end}229 x (|||{FORGED}|)");
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
        attack_published_server(ServerKind::Proftpd, &steps, &[FORGED]);
    }
}

/// ProFTPD shows a file of the current directory, or of the one that the client changes to. It expands time sequences
/// in the file to line ends. Any uploader can write that file.
#[test]
fn a_message_file_shown_by_proftpd_opens_no_pinhole() {
    let end = "\r%{time:%n}";
    let changes_directory = [say("TYPE I"), reply(), say("CWD pub"), reply()];
    for (code, more, before, command) in [
        ("250 End", "DisplayChdir .message", &[][..], "CWD pub"),
        ("", "DisplayQuit .message", &changes_directory, "QUIT"),
    ] {
        let shown = format!("x{end}{code}{end}229 x (|||{FORGED}|){end}y\n");
        let shown = if code.is_empty() { format!("x{end}229 x (|||{FORGED}|)\n") } else { shown };
        let prepare = |server: &Server| server.put(".message", shown.as_bytes()).unwrap();
        let pipeline = json!({"send": format!("{command}\r\nEPSV\r\n")});
        let steps = [before, &[pipeline]].concat();
        attack_prepared_server(ServerKind::Proftpd, more, prepare, &steps, &[FORGED]);
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
fn assert_no_hidden_bounce(kind: ServerKind, more: &str) {
    let gateway = gateway_with(Topology::Masquerade, "");
    let Lab { client, outsider: third, server: host, .. } = &gateway.lab;
    let server = Server::start_with(kind, host, more).unwrap();
    let login = server.login();
    let thirds = Capture::start(third, "eth0", "tcp").unwrap();
    let lines = hidden_bounces(&third.address(V4).to_string().replace('.', ","));
    let host_port = json!(gateway.lab.server_address(V4));
    thread::scope(|scope| {
        // Each line has a connection of its own. It is sent as a whole; for ProFTPD, which has the most parsing
        // variants, also byte by byte up to its address.
        for part in lines.chunks(lines.len().div_ceil(4)) {
            let host_port = &host_port;
            scope.spawn(move || {
                let mut steps = Vec::new();
                for line in part {
                    let line = format!("{line}\r\n");
                    let bytes = if kind == ServerKind::Proftpd { 14 } else { 1 };
                    for edges in [0, bytes.min(line.chars().count())].iter().take(bytes) {
                        let cuts: Vec<_> = (1..*edges).collect();
                        steps.extend(login_as(login));
                        steps.push(json!({"send": line, "cut": cuts, "pause": 0.002}));
                        steps.extend([say("NLST"), json!({"sleep": 0.1})]);
                        steps.extend([json!({"abort": true}), json!({"redial": true})]);
                    }
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
fn no_hidden_bounce_reaches_proftpd() {
    assert_no_hidden_bounce(ServerKind::Proftpd, "AllowForeignAddress on\nMaxInstances 300");
}

#[test]
fn no_hidden_bounce_reaches_vsftpd() {
    assert_no_hidden_bounce(ServerKind::Vsftpd, "port_promiscuous=YES");
}

#[test]
fn no_hidden_bounce_reaches_pure_ftpd() {
    assert_no_hidden_bounce(ServerKind::PureFtpd, "-w");
}

#[test]
fn no_hidden_bounce_reaches_pyftpdlib() {
    assert_no_hidden_bounce(ServerKind::Pyftpdlib, "");
}

/// A client that runs `steps` opens no pinhole, and its announcement of a third host is refused.
fn assert_only_refused(plan: &Value, steps: &[Value]) {
    let scene = Scene::new(Topology::Masquerade, plan);
    let third = "PORT 198,51,100,66,14,180";
    let all = [steps, &[say(PORT), reply(), say(third), reply()]].concat();
    let client = scene.client(&all);
    scene.assert_closed(&[ANNOUNCED]);
    assert_eq!(scene.gateway.count("pinholes_opened"), 0, "{plan}");
    let heard = scene.server.lines();
    assert!(heard.iter().any(|line| line == PORT), "{plan}: {heard:?}");
    assert!(!heard.iter().any(|line| line.contains("198,51,100,66")), "{plan}: {heard:?}");
    client.release().ok_in(plan);
}

#[test]
fn a_client_without_a_login_opens_no_pinhole_and_cannot_bounce() {
    let request = json!({"send": "USER / HTTP/1.1\r\nHost: x\r\n\r\n"});
    let http = [reply(), request, json!({"reply": true, "count": 3})];
    let behind_greeting = login().split_off(1);
    let after_login = |line| [login(), ask(line)].concat();
    let cases = [
        (json!({}), [&http[..], &behind_greeting].concat()),
        // The server sends its greeting after it has read a line.
        (
            json!({"greeting": null, "extra": {"NOOP": "220 ready"}}),
            [ask("NOOP"), behind_greeting].concat(),
        ),
        (json!({"extra": {"AUTH TLS": "234 go"}}), [vec![reply()], ask("AUTH TLS")].concat()),
        (json!({"extra": {"AUTH TLS": "234 go"}}), after_login("AUTH TLS")),
        (json!({}), after_login("USER other")),
        (json!({"extra": {"REIN": "220 ready"}}), after_login("REIN")),
    ];
    // They mostly wait for timeouts.
    thread::scope(|scope| {
        for (plan, steps) in &cases {
            scope.spawn(|| assert_only_refused(plan, steps));
        }
    });
}

/// NAT slipstreaming: a page has a browser send a `PORT` line to a server that cooperates. The kernel's FTP helper reads on where
/// the dialogue is not FTP.
#[test]
fn a_browser_that_waits_for_replies_opens_no_pinhole() {
    with_each_back_end(|back_end| {
        let plan = json!({"extra": {"POST": "230 fine"}});
        let scene = Scene::with(Topology::Masquerade, back_end, &plan);
        let lines = ["POST / HTTP/1.1", PORT, "Host: ftp", "USER lab", "PASS lab", PORT];
        let client = scene.client(&[vec![reply()], lines.map(ask).concat()].concat());
        scene.assert_closed(&[ANNOUNCED]);
        assert_eq!(scene.gateway.count("pinholes_opened"), 0);
        client.release().ok();
    });
}

/// With the gateway on the server's side, an announcement after a complete listing opens a pinhole.
#[test]
fn a_passive_transfer_works_after_a_stat_listing() {
    for kind in [ServerKind::Vsftpd, ServerKind::Pyftpdlib] {
        let gateway = gateway_with(Topology::PublishedServer, "");
        let lab = &gateway.lab;
        let server = Server::start(kind, &lab.server).unwrap();
        server.put("f", b"content").unwrap();
        let steps = (ask("STAT pub"), ask("EPSV"), dial(), ask("RETR pub/f"), drain(), reply());
        let session = talk(lab, (login_as(server.login()), steps)).ok_in(kind);
        assert_eq!(session.got(12), "content", "{kind}");
    }
}
