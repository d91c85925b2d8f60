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
        "curl -sS --insecure --ssl-reqd --ftp-ssl-ccc --ftp-ssl-ccc-mode active --disable-epsv \
         --no-ftp-skip-pasv-ip --user {user}:{password} ftp://{dialled}/pub/file"
    );
    let lftp = format!(
        "lftp -c 'set ftp:ssl-force true; set ftp:ssl-use-ccc true; set ftp:ssl-protect-data true; \
         set ssl:verify-certificate false; set ssl:priority NORMAL:-VERS-TLS1.3; \
         set ftp:prefer-epsv false; set net:timeout 8; set net:max-retries 1; \
         open -u {user},{password} ftp://{dialled}; cat pub/file; bye'"
    );
    for program in [curl, lftp] {
        let before = gateway.count("pinholes_used");
        let got = lab.client.shell(&format!("timeout 30 {program}")).unwrap().stdout_text();
        assert_eq!(got, "the body", "{program}");
        wait_for("the pinhole", || gateway.count("pinholes_used") > before);
    }
    gateway.assert_tidy();
}
