//! Real FTP clients, each doing a download, an upload and a listing in a given mode.

use std::{fmt, fs, net::IpAddr, process::Command, time::Duration};

use super::{Finished, Host, LabError, Result, Server, script};

/// How long a client may take for one errand. A dropped packet shows as a client that waits.
const LIMIT: Duration = Duration::from_secs(20);

/// Who opens the data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The server, towards the client (PORT, EPRT).
    Active,
    /// The client, towards the server (PASV, EPSV).
    Passive,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Active => "active",
            Self::Passive => "passive",
        })
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// An FTP client program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// curl, with PORT and PASV over IPv4.
    Curl,
    /// curl, with EPRT and EPSV over both.
    CurlExtended,
    /// lftp.
    Lftp,
    /// ncftpget, ncftpput and ncftpls; IPv4 only.
    Ncftp,
    /// The BSD `ftp`.
    Tnftp,
    /// Python's ftplib.
    Ftplib,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Curl => "curl",
            Self::CurlExtended => "curl (EPRT, EPSV)",
            Self::Lftp => "lftp",
            Self::Ncftp => "ncftp",
            Self::Tnftp => "ftp",
            Self::Ftplib => "ftplib",
        })
    }
}

impl Client {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Curl, Self::CurlExtended, Self::Lftp, Self::Ncftp, Self::Tnftp, Self::Ftplib];

    /// Whether it speaks IPv6.
    pub fn speaks(self, family: Family) -> bool {
        family == Family::V4 || self != Self::Ncftp
    }
}

/// Everything a client needs to know for its errands.
#[derive(Clone, Copy, Debug)]
pub struct Transfer<'a> {
    /// Which program.
    pub client: Client,
    /// Where it runs.
    pub host: &'a Host,
    /// The address it dials.
    pub address: IpAddr,
    /// Who opens the data connection.
    pub mode: Mode,
    /// The server's login.
    pub login: (&'a str, &'a str),
}

impl<'a> Transfer<'a> {
    /// `client` on `host`, to `server` at `address`.
    pub fn new(
        client: Client,
        host: &'a Host,
        server: &Server,
        address: IpAddr,
        mode: Mode,
    ) -> Self {
        Self { client, host, address, mode, login: server.login() }
    }

    /// Fetches `pub/NAME` and gives its bytes.
    pub fn download(&self, name: &str) -> Result<Vec<u8>> {
        let local = self.local("get", name);
        let _ = fs::remove_file(&local);
        let done = self.errand(Errand::Get, name, &local)?;
        fs::read(&local).map_err(|source| {
            LabError::Unexpected(format!(
                "{} left no {} ({source}): {}{}",
                self.client,
                local,
                done.text(),
                done.errors()
            ))
        })
    }

    /// Stores `contents` as `pub/NAME`.
    pub fn upload(&self, name: &str, contents: &[u8]) -> Result<()> {
        let local = self.local("put", name);
        fs::write(&local, contents)
            .map_err(|source| LabError::File { path: local.clone().into(), source })?;
        self.errand(Errand::Put, name, &local).map(drop)
    }

    /// The listing of `pub`, as the client shows it.
    pub fn list(&self) -> Result<String> {
        self.errand(Errand::List, "", "").map(|done| done.text())
    }

    fn local(&self, what: &str, name: &str) -> String {
        let directory = self.host.directory().join(format!("{}-{what}", self.host.role()));
        let _ = fs::create_dir_all(&directory);
        directory.join(name).to_string_lossy().into_owned()
    }

    fn errand(&self, errand: Errand, name: &str, local: &str) -> Result<Finished> {
        let (command, input) = match self.client {
            Client::Curl => (self.curl(errand, name, local, false), String::new()),
            Client::CurlExtended => (self.curl(errand, name, local, true), String::new()),
            Client::Lftp => (self.lftp(errand, name, local), String::new()),
            Client::Ncftp => (self.ncftp(errand, name, local), String::new()),
            Client::Tnftp => self.tnftp(errand, name, local),
            Client::Ftplib => (self.ftplib(errand, name, local), String::new()),
        };
        self.host.finish(command, input.as_bytes(), LIMIT)?.success()
    }

    /// The address as it stands in a URL.
    fn url_host(&self) -> String {
        match self.address {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("[{v6}]"),
        }
    }

    fn curl(&self, errand: Errand, name: &str, local: &str, extended: bool) -> Command {
        let mut command = self.host.command("curl");
        let (user, password) = self.login;
        command.args(["--silent", "--show-error", "--globoff", "--connect-timeout", "10"]);
        command.args(["--user", &format!("{user}:{password}")]);
        if self.mode == Mode::Active {
            command.args(["--ftp-port", "-"]);
        }
        if !extended && self.address.is_ipv4() {
            command.args(["--disable-epsv", "--disable-eprt"]);
        }
        match errand {
            Errand::Get => command.args(["--output", local]),
            Errand::Put => command.args(["--upload-file", local]),
            Errand::List => &mut command,
        };
        command.arg(format!("ftp://{}/pub/{name}", self.url_host()));
        command
    }

    fn lftp(&self, errand: Errand, name: &str, local: &str) -> Command {
        let mut command = self.host.command("lftp");
        let (user, password) = self.login;
        let passive = self.mode == Mode::Passive;
        let errand = match errand {
            Errand::Get => format!("get pub/{name} -o {local}"),
            Errand::Put => format!("put {local} -o pub/{name}"),
            Errand::List => "ls pub".to_owned(),
        };
        command.args([
            "-c",
            &format!(
                "set ftp:passive-mode {passive}; set net:timeout 8; set net:max-retries 1; \
             set ftp:ssl-allow false; set net:reconnect-interval-base 1; set cmd:fail-exit true; \
             open -u {user},{password} ftp://{}; {errand}; bye",
                self.url_host()
            ),
        ]);
        command
    }

    fn ncftp(&self, errand: Errand, name: &str, local: &str) -> Command {
        let (program, source, target) = match errand {
            Errand::Get => ("ncftpget", format!("pub/{name}"), local.to_owned()),
            Errand::Put => ("ncftpput", local.to_owned(), "pub".to_owned()),
            Errand::List => ("ncftpls", String::new(), String::new()),
        };
        let mut command = self.host.command(program);
        let (user, password) = self.login;
        let mode = if self.mode == Mode::Active { "-E" } else { "-F" };
        command.args(["-u", user, "-p", password, mode, "-t", "8", "-r", "1"]);
        match errand {
            Errand::Get => {
                // With -C the local file has a name of its own.
                command.args(["-V", "-C", &self.address.to_string(), &source, &target]);
            }
            Errand::Put => {
                // The remote file is named after the local one.
                command.args(["-V", &self.address.to_string(), &target, &source]);
            }
            Errand::List => {
                // Its default, NLST -CF, is more than pyftpdlib takes.
                command.arg("-l").arg(format!("ftp://{}/pub/", self.address));
            }
        }
        command
    }

    fn tnftp(&self, errand: Errand, name: &str, local: &str) -> (Command, String) {
        let mut command = self.host.command("ftp");
        let (user, password) = self.login;
        command.args(["-n", "-i", "-v", "-q", "10"]);
        command.arg(if self.mode == Mode::Active { "-A" } else { "-p" });
        command.arg(self.address.to_string());
        let errand = match errand {
            Errand::Get => format!("get pub/{name} {local}"),
            Errand::Put => format!("put {local} pub/{name}"),
            Errand::List => "ls pub".to_owned(),
        };
        (command, format!("user {user} {password}\nbinary\n{errand}\nbye\n"))
    }

    fn ftplib(&self, errand: Errand, name: &str, local: &str) -> Command {
        let mut command = self.host.command(script::python());
        let (user, password) = self.login;
        let errand = match errand {
            Errand::Get => "f.retrbinary('RETR pub/' + name, open(local, 'wb').write)",
            Errand::Put => "f.storbinary('STOR pub/' + name, open(local, 'rb'))",
            Errand::List => "f.dir('pub')",
        };
        command.arg("-c").arg(format!(
            "import ftplib, sys\nname, local = sys.argv[1:]\n\
             f = ftplib.FTP('{}', '{user}', '{password}', timeout=8)\nf.set_pasv({})\n{errand}\n\
             f.quit()",
            self.address,
            if self.mode == Mode::Passive { "True" } else { "False" },
        ));
        command.args([name, local]);
        command
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Errand {
    Get,
    Put,
    List,
}
