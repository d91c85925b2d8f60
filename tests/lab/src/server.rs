//! Runs real FTP servers. Each has its own configuration and one writable directory.
//!
//! They are not installed: see [`unpacked`](super::unpacked).

use std::{
    fs,
    net::IpAddr,
    ops::RangeInclusive,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{
    BackgroundProcess, Family, Host, LabError, Result, Script,
    process::{self, find_program},
    script,
    unpacked::{cache, with_libraries},
};

/// The user id of `nobody`, to which the servers switch.
const NOBODY: u32 = 65534;

/// The user id of `daemon`. The anonymous user of vsftpd needs an existing home directory, and `nobody` has none.
const DAEMON: u32 = 1;

/// The user name and the password, for servers with named logins.
const NAME: &str = "lab";

/// An FTP server program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
pub enum ServerKind {
    /// vsftpd with anonymous login.
    #[strum(to_string = "vsftpd")]
    Vsftpd,
    /// ProFTPD with a named login from a password file.
    #[strum(to_string = "ProFTPD")]
    Proftpd,
    /// Pure-FTPd with a named login from a database.
    #[strum(to_string = "Pure-FTPd")]
    PureFtpd,
    /// pyftpdlib with a named login.
    #[strum(to_string = "pyftpdlib")]
    Pyftpdlib,
}

impl ServerKind {
    /// All server programs.
    pub const ALL: [Self; 4] = [Self::Vsftpd, Self::Proftpd, Self::PureFtpd, Self::Pyftpdlib];

    /// The Debian package of the server.
    pub fn package(self) -> &'static str {
        match self {
            Self::Vsftpd => "vsftpd",
            Self::Proftpd => "proftpd-core",
            Self::PureFtpd => "pure-ftpd",
            Self::Pyftpdlib => "python3-pyftpdlib",
        }
    }

    pub(super) fn program(self) -> PathBuf {
        let (unpacked, name) = match self {
            Self::Vsftpd => ("usr/sbin/vsftpd", "vsftpd"),
            Self::Proftpd => ("usr/sbin/proftpd", "proftpd"),
            Self::PureFtpd => ("usr/sbin/pure-ftpd", "pure-ftpd"),
            Self::Pyftpdlib => ("usr/lib/python3/dist-packages/pyftpdlib/__init__.py", ""),
        };
        let unpacked = cache().join(unpacked);
        if unpacked.exists() { unpacked } else { find_program(name).unwrap_or(unpacked) }
    }
}

/// How a server speaks TLS. It refuses logins and data connections without it.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// Whether TLS comes first, on port 990, in place of `AUTH TLS` on port 21.
    pub is_implicit: bool,
    /// Whether data connections must resume the TLS session of the control connection; Pure-FTPd and pyftpdlib never ask
    /// for that.
    pub needs_resumption: bool,
    /// The passive ports.
    pub ports: RangeInclusive<u16>,
    /// The address in 227 replies, if it is not the server's own. With it vsftpd serves IPv4 only, because over an IPv6
    /// socket it would announce 0.0.0.0.
    pub announced: Option<IpAddr>,
}

impl ServerTls {
    /// The control port.
    pub fn control_port(&self) -> u16 {
        if self.is_implicit { 990 } else { 21 }
    }
}

/// A running FTP server.
#[derive(Debug)]
pub struct Server {
    kind: ServerKind,
    files: PathBuf,
    process: BackgroundProcess,
}

impl Server {
    /// Starts a server on port 21 of `host`, over IPv4 and IPv6, active and passive.
    pub fn start(kind: ServerKind, host: &Host) -> Result<Self> {
        Self::start_with(kind, host, "")
    }

    /// Starts a server with more lines of configuration. For Pure-FTPd, which has no configuration file, `more` has
    /// options.
    pub fn start_with(kind: ServerKind, host: &Host, more: &str) -> Result<Self> {
        Self::launch(kind, host, more, None)
    }

    /// Starts a server that speaks TLS.
    pub fn start_tls(kind: ServerKind, host: &Host, tls: &ServerTls) -> Result<Self> {
        Self::launch(kind, host, "", Some(tls))
    }

    fn launch(kind: ServerKind, host: &Host, more: &str, tls: Option<&ServerTls>) -> Result<Self> {
        let port = tls.map_or(21, ServerTls::control_port);
        let home = host.directory().join(format!("{}-{kind}-{port}", host.role()));
        let files = home.join("files");
        let owner = if kind == ServerKind::Vsftpd { DAEMON } else { NOBODY };
        prepare(&files, owner).map_err(LabError::file(&files))?;
        let more = match tls {
            Some(tls) => tls.configuration(kind, &certificate(host)?),
            None => more.to_owned(),
        };
        let setup = Setup { host, home: &home, files: &files, more: &more, port };
        let mut command = match kind {
            ServerKind::Vsftpd => setup.vsftpd()?,
            ServerKind::Proftpd => setup.proftpd()?,
            ServerKind::PureFtpd => setup.pure_ftpd()?,
            ServerKind::Pyftpdlib => setup.pyftpdlib()?,
        };
        with_libraries(&mut command);
        let mut process = host.start(command, &format!("{kind}-{port}"))?;
        let what = format!("port {port}");
        process.wait_until(&what, Duration::from_secs(60), |_| host.listens(port))?;
        Ok(Self { kind, files, process })
    }

    /// The server program.
    pub fn kind(&self) -> ServerKind {
        self.kind
    }

    /// The user name and the password.
    pub fn login(&self) -> (&'static str, &'static str) {
        match self.kind {
            ServerKind::Vsftpd => ("anonymous", "lab@example.net"),
            _ => (NAME, NAME),
        }
    }

    /// Writes a file to the directory `pub`.
    pub fn put(&self, name: &str, contents: &[u8]) -> Result<()> {
        let path = self.files.join("pub").join(name);
        fs::write(&path, contents).map_err(LabError::file(&path))
    }

    /// Reads a file in the directory `pub`, for example after an upload.
    pub fn stored(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.files.join("pub").join(name);
        fs::read(&path).map_err(LabError::file(&path))
    }

    /// The output so far.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

fn prepare(files: &Path, owner: u32) -> std::io::Result<()> {
    // Only `pub` is writable, because vsftpd refuses a writable root directory for anonymous users.
    let shared = files.join("pub");
    fs::create_dir_all(&shared)?;
    chown(&shared, Some(owner), Some(owner))?;
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o755))
}

struct Setup<'a> {
    host: &'a Host,
    home: &'a Path,
    files: &'a Path,
    more: &'a str,
    port: u16,
}

impl ServerTls {
    /// The configuration of a server: lines, or options of Pure-FTPd, or arguments of the script that runs pyftpdlib.
    fn configuration(&self, kind: ServerKind, certificate: &Path) -> String {
        let Self { is_implicit, needs_resumption, ports, announced } = self;
        let (first, last, port) = (ports.start(), ports.end(), self.control_port());
        let announce = |key: &str| announced.map_or_else(String::new, |to| format!("{key}{to}"));
        let file = certificate.display();
        let flag = |is_set: &bool| if *is_set { "YES" } else { "NO" };
        match kind {
            ServerKind::Vsftpd => format!(
                "listen_port={port}\nimplicit_ssl={}\nssl_enable=YES\nallow_anon_ssl=YES\n\
                 force_anon_logins_ssl=YES\nforce_anon_data_ssl=YES\nrequire_ssl_reuse={}\n\
                 rsa_cert_file={file}\nrsa_private_key_file={file}\n\
                 pasv_min_port={first}\npasv_max_port={last}\n{}",
                flag(is_implicit),
                flag(needs_resumption),
                announce("listen_ipv6=NO\nlisten=YES\npasv_address=")
            ),
            ServerKind::Proftpd => format!(
                "ModulePath {}\nLoadModule mod_tls.c\nTLSEngine on\nTLSRequired auth+data\n\
                 TLSRSACertificateFile {file}\nTLSRSACertificateKeyFile {file}\n{}{}\
                 PassivePorts {first} {last}\n{}",
                cache().join("usr/lib/proftpd").display(),
                if *needs_resumption { "" } else { "TLSOptions NoSessionReuseRequired\n" },
                if *is_implicit { "TLSOptions UseImplicitSSL\n" } else { "" },
                announce("MasqueradeAddress ")
            ),
            ServerKind::PureFtpd => {
                format!("-Y 2 -2 {file} -p {first}:{last} {}", announce("-P "))
            }
            ServerKind::Pyftpdlib => {
                format!("{file} {port} {first} {last} {}", announce(""))
            }
        }
    }
}

/// A self-signed certificate with its key, which the lab makes once.
fn certificate(host: &Host) -> Result<PathBuf> {
    let path = host.directory().join("certificate.pem");
    if !path.exists() {
        let mut make = host.command("openssl");
        make.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]);
        make.args(["-subj", "/CN=ftp.example.net", "-keyout", "-", "-out", "-"]);
        let made = host.finish(make, b"", Duration::from_secs(60))?.success()?;
        fs::write(&path, made.stdout_text()).map_err(LabError::file(&path))?;
    }
    Ok(path)
}

impl Setup<'_> {
    fn write(&self, name: &str, contents: &str, mode: u32) -> Result<PathBuf> {
        let path = self.home.join(name);
        fs::write(&path, contents)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)))
            .map_err(LabError::file(&path))?;
        Ok(path)
    }

    fn vsftpd(&self) -> Result<Command> {
        let empty = self.home.join("empty");
        fs::create_dir_all(&empty).map_err(LabError::file(&empty))?;
        let configuration = format!(
            "listen=NO\nlisten_ipv6=YES\nbackground=NO\n\
             anonymous_enable=YES\nno_anon_password=NO\nftp_username=daemon\nnopriv_user=nobody\n\
             anon_root={}\nwrite_enable=YES\nanon_upload_enable=YES\nanon_mkdir_write_enable=YES\n\
             anon_other_write_enable=YES\nanon_umask=022\nsecure_chroot_dir={}\n\
             connect_from_port_20=YES\nuse_localtime=NO\nxferlog_enable=NO\n\
             accept_timeout=10\nconnect_timeout=10\nseccomp_sandbox=NO\n{}\n",
            self.files.display(),
            empty.display(),
            self.more
        );
        let path = self.write("vsftpd.conf", &configuration, 0o644)?;
        let mut command = self.host.command(ServerKind::Vsftpd.program());
        command.arg(path);
        Ok(command)
    }

    fn proftpd(&self) -> Result<Command> {
        let (v4, v6) = (self.host.address(Family::V4), self.host.address(Family::V6));
        let home = self.home.display();
        let files = self.files.display();
        let hash = crypt(self.host)?;
        // `guest` is for an `<Anonymous>` section. Nobody can log in with this name.
        let same = format!("{NOBODY}:{NOBODY}::{files}:/bin/sh");
        let users = format!("{NAME}:{hash}:{same}\nguest:*:{same}\n");
        let passwords = self.write("proftpd.passwd", &users, 0o600)?;
        let modules = cache().join("usr/lib/proftpd");
        let modules = modules.display();
        // mod_auth_file opens the file after the switch to `nobody`. Debian 13 has further modules apart.
        let configuration = format!(
            "<IfModule !mod_xfer.c>\nModulePath {modules}\nLoadModule mod_delay.c\n\
             LoadModule mod_ls.c\nLoadModule mod_xfer.c\n</IfModule>\n\
             ServerType standalone\nServerName lab\nDefaultServer on\nDefaultAddress {v4} {v6}\n\
             SocketBindTight off\nUseIPv6 on\nPort {}\nUseReverseDNS off\nWtmpLog off\n\
             DelayEngine off\nUser nobody\nGroup nogroup\nUmask 022\nMaxInstances 30\nAllowOverwrite on\n\
             RequireValidShell off\nAuthOrder mod_auth_file.c\nAuthUserFile {}\n\
             AuthPAM off\nDefaultRoot {files}\n\
             PidFile {home}/proftpd.pid\nScoreboardFile {home}/proftpd.scoreboard\n\
             SystemLog {home}/proftpd.log\nTransferLog none\n{}\n",
            self.port,
            passwords.display(),
            self.more
        );
        let path = self.write("proftpd.conf", &configuration, 0o644)?;
        let mut command = self.host.command(ServerKind::Proftpd.program());
        command.arg("-n").arg("-c").arg(path);
        Ok(command)
    }

    fn pure_ftpd(&self) -> Result<Command> {
        let database = self.home.join("pure.pdb");
        let unpacked = cache().join("usr/bin/pure-pw");
        let pure_pw = if unpacked.exists() { unpacked } else { PathBuf::from("pure-pw") };
        // The default hash takes seconds for each login.
        let hash = crypt(self.host)?;
        let files = self.files.display();
        let line = format!("{NAME}:{hash}:{NOBODY}:{NOBODY}::{files}/./::::::::::::\n");
        let passwords = self.write("pure.passwd", &line, 0o600)?;
        let mut make = self.host.command(&pure_pw);
        make.arg("mkdb").arg(&database).arg("-f").arg(&passwords);
        with_libraries(&mut make);
        self.host.finish(make, b"", Duration::from_secs(60))?.success()?;
        let mut command = self.host.command(ServerKind::PureFtpd.program());
        command.arg("-l").arg(format!("puredb:{}", database.display()));
        command.args(["-A", "-H", "-E", "-u", "1", "-U", "133:022"]);
        command.arg("-g").arg(self.home.join("pure.pid")).args(self.more.split_whitespace());
        Ok(command)
    }

    fn pyftpdlib(&self) -> Result<Command> {
        let files = self.files.to_string_lossy();
        let mut arguments = vec![&*files, NAME, NAME];
        if !self.more.is_empty() {
            arguments.extend(self.more.split(' '));
        }
        self.host.script_command(Script::Pyftpdlib, &arguments)
    }
}

/// The password hashed by crypt(3).
fn crypt(host: &Host) -> Result<String> {
    let program = find_program("openssl").map(|openssl| {
        let mut command = Command::new(openssl);
        command.args(["passwd", "-5", NAME]);
        command
    });
    let command = program.unwrap_or_else(|| {
        let mut command = host.command(script::python());
        command.args(["-c", &format!("import crypt; print(crypt.crypt('{NAME}'))")]);
        command
    });
    let hashed = process::run(command, b"", Duration::from_secs(60))?.success()?;
    Ok(hashed.stdout_text().trim().to_owned())
}
