//! Runs real FTP clients, with a chosen announcement command, for downloads, uploads and listings.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use super::{Host, LabError, ProgramOutput, Result, Script, Server, scaled_timeout};

/// The time limit for one operation of a client. If a packet is dropped, the client waits for this time.
const LIMIT: Duration = Duration::from_secs(20);

/// The options of curl that avoid TLS 1.3 for uploads: curl and lftp close them without reading the server's session
/// tickets, so the kernel resets them, and the server loses their last bytes.
const UNTICKETED: [&str; 2] = ["--tls-max", "1.2"];

/// Which end opens the data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum Mode {
    /// The server, towards the client (PORT, EPRT).
    Active,
    /// The client, towards the server (PASV, EPSV).
    Passive,
}

/// The command with which a client announces a data connection, or requests an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "UPPERCASE")]
pub enum Verb {
    /// Active, IPv4 only.
    Port,
    /// Passive, IPv4 only.
    Pasv,
    /// Active, of either family.
    Eprt,
    /// Passive, of either family.
    Epsv,
}

impl Verb {
    /// The usual command for a mode and an IP version.
    pub fn for_mode(mode: Mode, family: Family) -> Self {
        match (mode, family) {
            (Mode::Active, Family::V4) => Self::Port,
            (Mode::Passive, Family::V4) => Self::Pasv,
            (Mode::Active, Family::V6) => Self::Eprt,
            (Mode::Passive, Family::V6) => Self::Epsv,
        }
    }

    /// The mode of the data connection.
    pub fn mode(self) -> Mode {
        match self {
            Self::Port | Self::Eprt => Mode::Active,
            Self::Pasv | Self::Epsv => Mode::Passive,
        }
    }

    /// Whether it is a command of RFC 2428.
    pub fn is_extended(self) -> bool {
        matches!(self, Self::Eprt | Self::Epsv)
    }
}

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
pub enum Family {
    /// IPv4.
    #[strum(to_string = "IPv4")]
    V4,
    /// IPv6.
    #[strum(to_string = "IPv6")]
    V6,
}

/// An FTP client program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum ClientProgram {
    /// curl.
    Curl,
    /// GNU wget, which cannot upload.
    Wget,
    /// lftp.
    Lftp,
    /// ncftpget, ncftpput and ncftpls.
    Ncftp,
    /// tnftp, the `ftp` program of the BSDs.
    Tnftp,
    /// The `ftp` program of GNU inetutils.
    Inetutils,
    /// The ftplib of Python.
    Ftplib,
}

impl ClientProgram {
    /// All client programs.
    pub const ALL: [Self; 7] = [
        Self::Curl,
        Self::Wget,
        Self::Lftp,
        Self::Ncftp,
        Self::Tnftp,
        Self::Inetutils,
        Self::Ftplib,
    ];

    /// The reason why the program cannot send `verb` over `family`; `None` if it can.
    pub fn unsupported_reason(self, verb: Verb, family: Family) -> Option<&'static str> {
        match (self, family, verb) {
            (_, Family::V6, Verb::Port | Verb::Pasv) => Some("PORT and PASV work only with IPv4"),
            (Self::Wget, Family::V4, Verb::Eprt | Verb::Epsv) => {
                Some("wget sends EPRT and EPSV only over IPv6")
            }
            (Self::Lftp, Family::V4, Verb::Eprt) => Some("lftp sends EPRT only over IPv6"),
            (Self::Ncftp, _, Verb::Eprt | Verb::Epsv) => {
                Some("ncftp supports only IPv4, PORT and PASV")
            }
            _ => None,
        }
    }

    /// Whether the program can upload files.
    pub fn uploads(self) -> bool {
        self != Self::Wget
    }
}

/// How a client begins TLS, if it does. It encrypts data connections, too, and resumes the session for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum ClientTls {
    /// Not at all.
    #[default]
    Off,
    /// With `AUTH TLS`.
    Explicit,
    /// With the first byte.
    Implicit,
}

/// Everything that a client needs for its operations.
#[derive(Clone, Copy, Debug)]
pub struct Transfer<'a> {
    /// The client program.
    pub client: ClientProgram,
    /// The host on which it runs.
    pub host: &'a Host,
    /// The address and port to which it connects.
    pub endpoint: SocketAddr,
    /// The announcement command that it sends.
    pub verb: Verb,
    /// The user name and the password.
    pub login: (&'a str, &'a str),
    /// How it begins TLS; only curl, lftp and ftplib do.
    pub tls: ClientTls,
}

impl<'a> Transfer<'a> {
    /// A transfer with `client` on `host` to port 21 of `server` at `address`, with the usual command.
    pub fn new(
        client: ClientProgram,
        host: &'a Host,
        server: &Server,
        address: IpAddr,
        mode: Mode,
    ) -> Self {
        let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
        let (endpoint, verb) = (SocketAddr::new(address, 21), Verb::for_mode(mode, family));
        Self { client, host, endpoint, verb, login: server.login(), tls: ClientTls::Off }
    }

    /// Runs a download, an upload (if the client can upload) and a listing, and compares the bytes. No other transfer
    /// may use the file `name`.
    pub fn exchange(&self, server: &Server, name: &str, body: &[u8]) -> Result<()> {
        let differs = |what: String| Err(LabError::Unexpected(what));
        server.put(name, body)?;
        if self.download(name)? != body {
            return differs("the downloaded bytes are wrong".to_owned());
        }
        let up = format!("{name}.up");
        if self.client.uploads() {
            self.upload(&up, &body[1..])?;
            if server.stored(&up)? != body[1..] {
                return differs("the uploaded bytes are wrong".to_owned());
            }
        }
        let listing = self.list()?;
        if listing.contains(name) {
            Ok(())
        } else {
            differs(format!("{name} is missing in the listing: {listing}"))
        }
    }

    /// Downloads `pub/NAME` and returns its bytes.
    pub fn download(&self, name: &str) -> Result<Vec<u8>> {
        let local = self.scratch()?.join(name);
        let done = self.run_operation(Operation::Get, name, &local.to_string_lossy())?;
        fs::read(&local).map_err(|source| {
            LabError::Unexpected(format!(
                "{} left no {} ({source}): {}{}",
                self.client,
                local.display(),
                done.stdout_text(),
                done.stderr_text()
            ))
        })
    }

    /// Uploads `contents` as `pub/NAME`.
    pub fn upload(&self, name: &str, contents: &[u8]) -> Result<()> {
        let local = self.scratch()?.join(name);
        fs::write(&local, contents).map_err(LabError::file(&local))?;
        self.run_operation(Operation::Put, name, &local.to_string_lossy()).map(drop)
    }

    /// The listing of `pub`, as the client prints it.
    pub fn list(&self) -> Result<String> {
        let local = self.scratch()?.join("listing");
        self.run_operation(Operation::List, "", &local.to_string_lossy())
            .map(|done| done.stdout_text())
    }

    /// A new directory for one operation, because some clients write files to their working directory.
    fn scratch(&self) -> Result<PathBuf> {
        static ERRANDS: AtomicU32 = AtomicU32::new(0);
        let number = ERRANDS.fetch_add(1, Ordering::Relaxed);
        let path = self.host.directory().join(format!("{}-errand-{number}", self.host.role()));
        fs::create_dir_all(&path).map_err(LabError::file(&path))?;
        Ok(path)
    }

    fn run_operation(&self, errand: Operation, name: &str, local: &str) -> Result<ProgramOutput> {
        let (mut command, input) = match self.client {
            ClientProgram::Curl => (self.curl(errand, name, local), String::new()),
            ClientProgram::Wget => (self.wget(errand, name, local)?, String::new()),
            ClientProgram::Lftp => (self.lftp(errand, name, local), String::new()),
            ClientProgram::Ncftp => (self.ncftp(errand, name, local), String::new()),
            ClientProgram::Tnftp => self.bsd_ftp("tnftp", errand, name, local),
            ClientProgram::Inetutils => self.bsd_ftp("inetutils-ftp", errand, name, local),
            ClientProgram::Ftplib => (self.ftplib(errand, name, local)?, String::new()),
        };
        if let Some(directory) = PathBuf::from(local).parent() {
            command.current_dir(directory);
        }
        self.host.finish(command, input.as_bytes(), LIMIT)?.success()
    }

    fn scheme(&self) -> &'static str {
        if self.tls == ClientTls::Implicit { "ftps" } else { "ftp" }
    }

    fn passive(&self) -> bool {
        self.verb.mode() == Mode::Passive
    }

    fn curl(&self, errand: Operation, name: &str, local: &str) -> Command {
        let mut command = self.host.command("curl");
        let (user, password) = self.login;
        command.args(["--silent", "--show-error", "--globoff", "--connect-timeout", &patience(10)]);
        // Without this option, curl ignores the address in a 227 reply and uses that of the control connection.
        command.args(["--user", &format!("{user}:{password}"), "--no-ftp-skip-pasv-ip"]);
        if !self.passive() {
            command.args(["--ftp-port", "-"]);
        }
        if !self.verb.is_extended() {
            command.args(["--disable-epsv", "--disable-eprt"]);
        }
        if self.tls != ClientTls::Off {
            command.args(["--ssl-reqd", "--insecure"]);
            if errand == Operation::Put {
                command.args(UNTICKETED);
            }
        }
        match errand {
            Operation::Get => command.args(["--output", local]),
            Operation::Put => command.args(["--upload-file", local]),
            Operation::List => &mut command,
        };
        command.arg(format!("{}://{}/pub/{name}", self.scheme(), self.endpoint));
        command
    }

    fn wget(&self, errand: Operation, name: &str, local: &str) -> Result<Command> {
        let mut command = self.host.command("wget");
        let (user, password) = self.login;
        command.args(["-q", "--tries=1", "--no-config", "--timeout", &patience(8)]);
        command.args(["--user", user, "--password", password]);
        if !self.passive() {
            command.arg("--no-passive-ftp");
        }
        match errand {
            Operation::Get => command.args(["-O", local]),
            Operation::List => command.args(["-O", "-"]),
            Operation::Put => return Err(LabError::Unexpected("wget cannot upload".to_owned())),
        };
        command.arg(format!("ftp://{}/pub/{name}", self.endpoint));
        Ok(command)
    }

    fn lftp(&self, errand: Operation, name: &str, local: &str) -> Command {
        let mut command = self.host.command("lftp");
        let (user, password) = self.login;
        let (passive, extended) = (self.passive(), self.verb.is_extended());
        let tls = match self.tls {
            ClientTls::Off => "ftp:ssl-allow false",
            // As UNTICKETED.
            _ => {
                "ftp:ssl-force true; set ftp:ssl-protect-data true; set ssl:verify-certificate false; \
                 set ssl:priority NORMAL:-VERS-TLS1.3"
            }
        };
        let errand = match errand {
            Operation::Get => format!("get pub/{name} -o {local}"),
            Operation::Put => format!("put {local} -o pub/{name}"),
            Operation::List => "ls pub".to_owned(),
        };
        command.args([
            "-c",
            &format!(
                "set ftp:passive-mode {passive}; set ftp:prefer-epsv {extended}; \
                 set net:timeout {}; set net:max-retries 1; set {tls}; \
                 set net:reconnect-interval-base 1; set cmd:fail-exit true; \
                 open -u {user},{password} {}://{}; {errand}; bye",
                patience(8),
                self.scheme(),
                self.endpoint
            ),
        ]);
        command
    }

    fn ncftp(&self, errand: Operation, name: &str, local: &str) -> Command {
        let (address, port) = (self.endpoint.ip().to_string(), self.endpoint.port().to_string());
        let (file, listing) = (format!("pub/{name}"), format!("ftp://{}/pub/", self.endpoint));
        let (program, arguments): (_, &[&str]) = match errand {
            // With -C the local file can have another name.
            Operation::Get => ("ncftpget", &["-P", &port, "-V", "-C", &address, &file, local]),
            // The remote file has the name of the local one.
            Operation::Put => ("ncftpput", &["-P", &port, "-V", &address, "pub", local]),
            // pyftpdlib does not support the default, NLST -CF.
            Operation::List => ("ncftpls", &["-l", &listing]),
        };
        let mut command = self.host.command(program);
        let (user, password) = self.login;
        let mode = if self.passive() { "-F" } else { "-E" };
        command.args(["-u", user, "-p", password, mode, "-t", "8", "-r", "1"]).args(arguments);
        command
    }

    /// The command and the standard input for both descendants of the BSD program.
    fn bsd_ftp(
        &self,
        program: &str,
        errand: Operation,
        name: &str,
        local: &str,
    ) -> (Command, String) {
        let mut command = self.host.command(program);
        let (user, password) = self.login;
        command.args(["-n", "-i", "-v"]);
        command.arg(if self.passive() { "-p" } else { "-A" });
        command.args([self.endpoint.ip().to_string(), self.endpoint.port().to_string()]);
        // Over IPv4, tnftp sends EPRT and EPSV by default, and inetutils only after `epsv4`.
        let toggle = self.endpoint.is_ipv4()
            && self.verb.is_extended() != (self.client == ClientProgram::Tnftp);
        let toggle = if toggle { "epsv4\n" } else { "" };
        let errand = match errand {
            Operation::Get => format!("get pub/{name} {local}"),
            Operation::Put => format!("put {local} pub/{name}"),
            Operation::List => "ls pub".to_owned(),
        };
        (command, format!("user {user} {password}\n{toggle}binary\n{errand}\nbye\n"))
    }

    fn ftplib(&self, errand: Operation, name: &str, local: &str) -> Result<Command> {
        let (user, password) = self.login;
        let (address, port) = (self.endpoint.ip().to_string(), self.endpoint.port().to_string());
        let errand = match errand {
            Operation::Get => "get",
            Operation::Put => "put",
            Operation::List => "list",
        };
        let (verb, tls) = (self.verb.to_string(), self.tls.to_string());
        let arguments = [&address, &port, user, password, &verb, errand, name, local, &tls];
        self.host.script_command(Script::Ftplib, &arguments)
    }
}

/// How many seconds a client waits for its server, by its own option.
fn patience(seconds: u64) -> String {
    scaled_timeout(Duration::from_secs(seconds)).as_secs().to_string()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Get,
    Put,
    List,
}
