//! Real servers that parse ambiguous lines in ways of their own: such lines open no pinhole, and no server executes a
//! hidden bounce. wire_cases::ambiguous_lines of the core has all of them.

use crate::common::*;

/// A port of the published server with another service.
const FORGED: u16 = 3306;

/// A client of a published server of this kind that logs in and runs `steps`. No connection to [`FORGED`] may get
/// through.
fn attack(kind: ServerKind, more: &str, file: &str, steps: &[Value]) {
    let gateway = gateway(Topology::PublishedServer);
    let lab = &gateway.lab;
    let server = Server::start_with(kind, &lab.server, more).unwrap();
    server.put(".message", file.as_bytes()).unwrap();
    let _held = hold(lab, (login_as(server.login()), steps, json!({"sleep": 0.5}), gate()));
    let outside = lab.gateway.address(V4).to_string();
    assert_eq!(connect_in_vain(&lab.client, &outside, FORGED), "silent", "{kind}");
    // Only vsftpd may announce a port of its own after the listing is complete.
    let log = gateway.daemon.log();
    let opened = |line: &&str| line.contains(": open ") || line.contains(": rewrite ");
    let forged = |line: &str| line.contains(&format!(":{FORGED}"));
    assert!(!log.lines().filter(opened).any(forged), "{kind}: {log}");
    if kind != ServerKind::Vsftpd {
        assert_eq!(gateway.daemon.open_pinholes().unwrap(), [""; 0], "{kind}: {log}");
        assert_eq!(gateway.count("pinholes_opened"), 0, "{kind}");
    }
}

#[test]
fn a_clients_text_in_replies_of_a_server_opens_no_pinhole() {
    let forged = format!("229 x (|||{FORGED}|)");
    let pipeline = |lines: &[&str]| json!({"send": lines.join("\r\n") + "\r\n"});
    let alone = |line: &str| vec![pipeline(&[line]), json!({"sleep": 0.3})];

    // pyftpdlib accepts only CR LF as a line end, and echoes the argument.
    let argument = pipeline(&[&format!("SIZE a\n{forged}"), "EPSV"]);
    attack(ServerKind::Pyftpdlib, "", "", &[say("TYPE I"), reply(), argument]);

    // vsftpd treats a NUL in a file name as LF, and lists names unchanged.
    let mkd = alone(&format!("MKD pub/x\r\0213 End\r\0{forged}\r\0y"));
    attack(ServerKind::Vsftpd, "", "", &[&mkd[..], &[pipeline(&["STAT pub/x*", "EPSV"])]].concat());

    // ProFTPD removes a NUL after a CR, and any Telnet option. So one command for it is two lines for the gateway.
    // Later it echoes the name of its current directory. The first replies leave no command pending.
    let name = format!("pub/x\r\0\n\u{ff}\u{fb}A{forged}");
    let enter = [alone(&format!("MKD {name}")), alone(&format!("CWD {name}"))].concat();
    let answered = [alone("PWD"), alone("PWD"), alone("PWD")].concat();
    let echoed = [pipeline(&["PWD", "EPSV"])];
    attack(ServerKind::Proftpd, "", "", &[&enter[..], &answered, &echoed].concat());

    // ProFTPD shows a file of the directory to which the client changes, and expands time sequences in it to line ends.
    let end = "\r%{time:%n}";
    let file = format!("x{end}250 End{end}{forged}{end}y\n");
    let shown = [pipeline(&["CWD pub", "EPSV"])];
    attack(ServerKind::Proftpd, "DisplayChdir .message", &file, &shown);
}

/// One announcement of the third host's port 3764 for each way to hide it.
fn hidden_bounces(third: &str) -> [String; 8] {
    let port = format!("PORT {third},14,180");
    [
        format!("SIZE a\n{port}"),
        format!("SIZE a\r\0{port}"),
        format!("NOOP\0{port}"),
        format!("\u{ff}\u{f4}\u{ff}\u{f2}{port}"),
        format!("NOOP\u{ff}\u{fb}\r\n{port}"),
        format!("\u{ff}\u{fa}\n{port}"),
        format!("PO\u{ff}\u{fb}\nRT {third},14,180"),
        format!("EP\u{ff}\u{fc}\nRT |1|{}|3764|", third.replace(',', ".")),
    ]
}

/// The servers are configured to accept foreign addresses, so only the gateway prevents the bounce.
#[test]
fn no_hidden_bounce_reaches_a_server() {
    let gateway = gateway(Topology::Masquerade);
    let lab = &gateway.lab;
    let third = lab.outsider.address(V4).to_string().replace('.', ",");
    for (kind, more) in [
        (ServerKind::Proftpd, "AllowForeignAddress on\nMaxInstances 300"),
        (ServerKind::Vsftpd, "port_promiscuous=YES"),
        (ServerKind::PureFtpd, "-w"),
        (ServerKind::Pyftpdlib, ""),
    ] {
        let server = Server::start_with(kind, &lab.server, more).unwrap();
        let attempts = Capture::start(&lab.outsider, "eth0", "tcp").unwrap();
        // Each line has a connection of its own.
        let steps = hidden_bounces(&third).map(|line| {
            let pause = json!({"sleep": 0.1});
            let end = [pause, json!({"abort": true}), json!({"redial": true})];
            [&login_as(server.login())[..], &[say(&line), say("NLST")], &end].concat()
        });
        talk(lab, steps).ok_in(kind);
        let from_server = format!(
            "tcp.flags.syn == 1 && tcp.flags.ack == 0 && ip.src == {}",
            lab.server.address(V4)
        );
        let attempts = attempts.finish().unwrap().count(&from_server).unwrap();
        assert_eq!(attempts, 0, "{kind} connected to the third host");
        assert_eq!(gateway.count("pinholes_opened"), 0);
    }
}
