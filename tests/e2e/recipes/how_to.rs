//! The firewalls of the README and on the pages of `docs/howto`, as a reader types them: files move through each.

use super::site::*;
use crate::common::*;

/// The first block of code in `language` on `page` of `docs/howto` that has `words`, with the lab's names and addresses.
fn block(page: &str, language: &str, words: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/howto").join(page);
    let page = fs::read_to_string(path).unwrap();
    let fence = format!("```{language}\n");
    let mut blocks = page.split(&fence).skip(1).filter_map(|rest| rest.split("```").next());
    let block = blocks.find(|block| block.contains(words)).unwrap();
    [("lan0", "lan"), ("wan0", "wan"), ("10.0.0.5", "192.168.150.90")]
        .iter()
        .fold(block.to_owned(), |text, (documented, here)| text.replace(documented, here))
}

#[test]
fn nftables_firewalls_of_pages_are_enough() {
    let readme = "../../README.md";
    let by_mark = "        ct mark & 0x40000000 != 0 accept\n";
    for (page, place, families, backend) in [
        (readme, Place::Masquerade, &FAMILIES[..], "nftables"),
        (readme, Place::Masquerade, &FAMILIES, "conntrack"),
        ("masquerade.md", Place::Masquerade, &FAMILIES, "nftables"),
        ("published-server.md", Place::Published, &[V4], "nftables"),
        ("host-firewall.md", Place::Server, &FAMILIES, "nftables"),
        ("host-firewall.md", Place::Client, &FAMILIES, "nftables"),
    ] {
        let site = Site::new(place);
        let mut rules = block(page, "nft", "table inet");
        assert!(rules.contains(by_mark), "{page}");
        if backend == "conntrack" {
            rules = rules.replace(by_mark, "").replace("established ", "established,related ");
        }
        site.guard().nft(&rules).unwrap();
        let daemon = site.daemon(&back_end(backend));
        site.carries(&daemon, families);
    }
}

/// The servers of the page that Debian has, but Pure-FTPd, whose lines are options in the lab. Both ends have the lines of the
/// page, and nothing else opens a port.
#[test]
fn servers_with_ftps_are_reached_with_the_lines_of_their_page() {
    let spec = LabSpec {
        firewall: FirewallKind::None,
        nat66: false,
        ..LabSpec::new(Topology::PublishedServer)
    };
    let lab = Lab::build(spec).unwrap();
    lab.gateway.nft(&block("published-server.md", "nft", "table inet")).unwrap();
    let configuration = block("ftps-server.md", "toml", "passive-ports");
    let daemon = Daemon::start(&executable(), &lab.gateway, &configuration).unwrap();
    let directory = lab.server.directory();
    let [certificate, key] =
        ["ftp.pem", "ftp.key"].map(|name| directory.join(name).display().to_string());
    let make = format!(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ftp.test -keyout {key} -out {certificate}"
    );
    lab.server.shell(&make).unwrap();
    let cache = std::env::var("FTP_ALG_LAB_CACHE").unwrap_or("/var/cache/ftp-alg-lab".to_owned());
    let modules = format!("ModulePath {cache}/root/usr/lib/proftpd\n");
    let here = |language, words| {
        let block = block("ftps-server.md", language, words);
        let block = block.replace("/etc/ssl/certs/ftp.pem", &certificate);
        block.replace("/etc/ssl/private/ftp.key", &key)
    };
    let reach = |login, name: &str| {
        for verb in [Verb::Pasv, Verb::Epsv] {
            let endpoint = lab.server_endpoint(V4);
            let (client, tls) = (ClientProgram::Ftplib, ClientTls::Explicit);
            let transfer = Transfer { client, host: &lab.client, endpoint, verb, login, tls };
            assert_eq!(transfer.download("file").unwrap(), b"the body", "{name} {verb}");
        }
    };
    for (kind, more) in [
        (ServerKind::Vsftpd, here("conf", "pasv_min_port") + "allow_anon_ssl=YES\n"),
        (ServerKind::Proftpd, modules + &here("conf", "TLSEngine")),
    ] {
        let server = Server::start_with(kind, &lab.server, &more).unwrap();
        server.put("file", b"the body").unwrap();
        reach(server.login(), &kind.to_string());
    }
    let files = directory.join("files");
    fs::create_dir_all(files.join("pub")).unwrap();
    fs::write(files.join("pub/file"), b"the body").unwrap();
    let script = here("python", "TLS_FTPHandler").replace("/srv/ftp", files.to_str().unwrap());
    let script = lab.server.write("page.py", script.as_bytes()).unwrap();
    let mut python = lab.server.command("/usr/bin/python3");
    python.arg(script).env("PYTHONPATH", format!("{cache}/root/usr/lib/python3/dist-packages"));
    let _server = lab.server.start(python, "page").unwrap();
    lab.server.wait_for_port(21, Duration::from_secs(60)).unwrap();
    reach(("user", "password"), "pyftpdlib");
    daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
    assert_eq!(daemon.counter("ranges_opened").unwrap(), 6);
}
