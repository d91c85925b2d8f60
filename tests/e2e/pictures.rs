//! The pictures of the documentation, from real gateways: `make pictures`.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::{common::*, page};

/// The directory of the pictures.
fn directory() -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/pictures");
    fs::create_dir_all(&directory).unwrap();
    directory
}

/// Draws what `ftp-alg` with `words` shows on a terminal of 80 columns (see `terminal.py`).
fn draw(daemon: &Daemon, host: &Host, name: &str, words: &[&str], options: &[&str]) {
    let script = host.write("terminal.py", include_bytes!("common/terminal.py")).unwrap();
    let mut command = host.command("/usr/bin/python3");
    command.arg(script).args(options).arg(format!("--title=ftp-alg {}", words[0]));
    command.arg(directory().join(format!("{name}.svg"))).arg("--").arg(executable());
    command.args(words).arg("--socket").arg(daemon.socket());
    let drawn = host.finish(command, b"", Duration::from_secs(300)).unwrap();
    drawn.success().unwrap_or_else(|error| panic!("{error}"));
}

/// Transfers files until `is_over`.
fn transfer_files(lab: &Lab, server: &Server, is_over: &AtomicBool) {
    let names = ["orders.csv", "q3-report.pdf", "invoices.zip", "photos.tar", "stock.xml"];
    for turn in 0.. {
        if is_over.load(Relaxed) {
            return;
        }
        let (name, mode) = (names[turn % names.len()], MODES[turn % 2]);
        let length = 20_000 + 170_000 * (turn * turn % 11);
        let transfer = curl(lab, server, mode);
        transfer.upload(name, &vec![b'x'; length]).unwrap();
        if turn % 3 == 0 {
            transfer.download(name).unwrap();
        }
        thread::sleep(Duration::from_millis(150 * (turn as u64 * 7 % 10)));
    }
}

/// An upload that goes on, at some 400 kB/s.
fn slow_upload(lab: &Lab, server: &Server) -> BackgroundProcess {
    let (user, password) = server.login();
    let upload = format!(
        "import ftplib, time\n\
         ftp = ftplib.FTP('{}', '{user}', '{password}', timeout=60)\n\
         data = ftp.transfercmd('STOR pub/backup.tar')\n\
         while True:\n    data.sendall(bytes(40000))\n    time.sleep(0.1)\n",
        lab.server_address(V4),
    );
    let mut command = lab.client.command("/usr/bin/python3");
    command.args(["-c", &upload]);
    lab.client.start(command, "upload").unwrap()
}

/// Does `work` while files are transferred.
fn while_transferring(lab: &Lab, server: &Server, work: impl FnOnce()) {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| transfer_files(lab, server, &is_over));
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        is_over.store(true, Relaxed);
        done.unwrap();
    });
}

#[test]
#[ignore = "make pictures: it writes docs/pictures"]
fn pictures_of_a_busy_gateway() {
    let Some(browser) = page::browser() else { return };
    let lab = lab_for(Topology::PublishedServer, "");
    lab.gateway.run("sysctl", &["-qw", "net.netfilter.nf_conntrack_acct=1"]).unwrap();
    let own = lab.server.address(V4);
    let configuration = format!("[[server]]\naddress = \"{own}\"\n{}", page::LISTEN);
    let gateway = Gateway::on(lab, &configuration);
    let lab = &gateway.lab;
    let server = Server::start(ServerKind::Proftpd, &lab.server).unwrap();
    let foreign = "PORT 192,168,150,80,0,99";
    let steps = [login(), ask(foreign), ask("PASV"), ask("RETR archive.zip"), vec![gate()]];
    let held = [hold(lab, steps.concat()), hold(lab, [login(), vec![gate()]].concat())];
    let _upload = slow_upload(lab, &server);
    let pictures = || {
        let ready = "charts[0].points.length > 60";
        let file = |name: &str| directory().join(name).display().to_string();
        let views = json!([
            {"width": 1200, "height": 1250, "until": ready, "limit": 400, "picture": file("page.png")},
            {"width": 1200, "height": 1250, "scheme": "dark", "stays": true, "picture": file("page-dark.png")},
            {"width": 390, "height": 1250, "stays": true, "picture": file("page-phone.png")},
        ]);
        page::look(lab, &browser, &views);
    };
    while_transferring(lab, &server, pictures);
    held.into_iter().for_each(|client| drop(client.release()));
}

#[test]
#[cfg(feature = "top")]
#[ignore = "make pictures: it writes docs/pictures"]
fn picture_of_top() {
    let gateway = gateway_with(Topology::Masquerade, "");
    let server = Server::start(ServerKind::Proftpd, &gateway.lab.server).unwrap();
    let steps = [login(), ask("PORT 192,168,150,80,0,99"), vec![gate()]];
    let held = hold(&gateway.lab, steps.concat());
    while_transferring(&gateway.lab, &server, || {
        // The second view has the transfers.
        let steps = ["--until=Transfers", "--keys=2", "--until=stock.xml", "--keys=q"];
        let options = [&["--rows=24"], &steps[..]].concat();
        draw(&gateway.daemon, &gateway.lab.gateway, "top", &["top"], &options);
    });
    held.release();
}

/// What `doctor` says where the firewall has no rule for data connections.
#[test]
#[ignore = "make pictures: it writes docs/pictures"]
fn picture_of_the_doctor() {
    let rules = "table inet filter {\n chain forward {\n  type filter hook forward priority 0; policy drop;\n  \
                 ct state established accept\n  tcp dport 21 accept\n }\n}\n";
    let gateway = Gateway::on(lab_with_rules(Topology::Masquerade, rules), "");
    let file = configuration_file(&gateway.daemon);
    let words = ["doctor", "--config", &file];
    draw(&gateway.daemon, &gateway.lab.gateway, "doctor", &words, &["--rows=60"]);
}
