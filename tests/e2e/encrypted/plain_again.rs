//! Sessions that end the encryption of their control connection behind the login (`CCC`, RFC 4217), so that announcements
//! are read again: none of them needs passive ports in the configuration, nor a server that knows its address.

use super::*;

#[test]
fn behind_ccc_announcements_are_rewritten_and_their_data_connections_pass() {
    let gateway = gateway(Topology::PublishedServer);
    let lab = &gateway.lab;
    let mut settings = server_tls(lab, ClientTls::Explicit, false);
    settings.announced = None;
    let server = Server::start_tls(ServerKind::Proftpd, &lab.server, &settings).unwrap();
    server.put("file", b"the body").unwrap();
    let (user, password) = server.login();
    let dialled = lab.server_address(V4);
    let curl = format!(
        "curl -sS --insecure --ssl-reqd --ftp-ssl-ccc --disable-epsv --no-ftp-skip-pasv-ip \
         --user {user}:{password} ftp://{dialled}/pub/file --ftp-ssl-ccc-mode"
    );
    // lftp and ProFTPD do not always agree who ends TLS, also without a gateway.
    let ftplib = format!(
        "python3 -c 'import ftplib, sys
f = ftplib.FTP_TLS(\"{dialled}\", timeout=20)
f.trust_server_pasv_ipv4_address = True
f.login(\"{user}\", \"{password}\"), f.prot_p(), f.ccc()
f.retrbinary(\"RETR pub/file\", sys.stdout.buffer.write), f.quit()'"
    );
    for program in [format!("{curl} passive"), format!("{curl} active --tls-max 1.2"), ftplib] {
        let before = gateway.count("pinholes_used");
        let got = lab.client.shell(&format!("timeout 30 {program}")).unwrap().stdout_text();
        assert_eq!(got, "the body", "{program}");
        wait_for("the pinhole", || gateway.count("pinholes_used") > before);
    }
    gateway.assert_tidy();
}
