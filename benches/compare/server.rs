//! The server: it has a thread for each control connection and does nothing that takes time, so that the gateway's cost
//! shows. It accepts any login, and the name of a file is its length.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use crate::{
    dialogue::{REPLY_LIMIT, format_host_port, parse_host_port},
    listeners::PooledListener,
};

/// How many bytes are written at once.
const CHUNK: usize = 128 * 1024;

/// Serves `port` on every address until the process ends.
pub fn run(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    for stream in listener.incoming() {
        let stream = stream?;
        // An error ends only the session of its client.
        thread::spawn(move || Session::new(stream).and_then(|mut session| session.run()));
    }
    Ok(())
}

/// The endpoint of the next data connection.
enum Data {
    None,
    Passive(PooledListener),
    Active(SocketAddr),
}

struct Session {
    control: TcpStream,
    local: IpAddr,
    data: Data,
    chunk: Vec<u8>,
}

impl Session {
    fn new(control: TcpStream) -> io::Result<Self> {
        control.set_nodelay(true)?;
        let local = control.local_addr()?.ip().to_canonical();
        let chunk = vec![b'x'; CHUNK];
        Ok(Self { control, local, data: Data::None, chunk })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut reader = BufReader::new(self.control.try_clone()?);
        self.reply("220 (vsFTPd 3.0.5)")?; // this server parses `PORT` as vsftpd does
        let mut line = String::new();
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end();
            let (verb, argument) = line.split_once(' ').unwrap_or((line, ""));
            match verb.to_ascii_uppercase().as_str() {
                "USER" => self.reply("331 password")?,
                "PASS" => self.reply("230 logged in")?,
                "PASV" => self.passive(false)?,
                "EPSV" => self.passive(true)?,
                "PORT" => {
                    self.active(parse_host_port(&format!("({argument})")).map(SocketAddr::V4))?
                }
                "EPRT" => self.active(parse_extended(argument))?,
                "RETR" => self.retrieve(argument)?,
                "STAT" => self.send_long_reply(argument)?,
                "TYPE" | "NOOP" | "MODE" | "STRU" | "OPTS" | "CWD" => self.reply("200 fine")?,
                "SYST" => self.reply("215 UNIX Type: L8")?,
                "PWD" => self.reply("257 \"/\" is here")?,
                "FEAT" => self.reply("211-Features:\r\n EPSV\r\n EPRT\r\n211 End")?,
                "QUIT" => return self.reply("221 bye"),
                _ => self.reply("502 what?")?,
            }
        }
    }

    fn reply(&mut self, line: &str) -> io::Result<()> {
        self.control.write_all(format!("{line}\r\n").as_bytes())
    }

    fn passive(&mut self, extended: bool) -> io::Result<()> {
        let listener = PooledListener::take()?;
        let port = listener.port;
        self.data = Data::Passive(listener);
        if extended {
            self.reply(&format!("229 Entering Extended Passive Mode (|||{port}|)"))
        } else {
            let IpAddr::V4(local) = self.local else { return self.reply("522 use EPSV") };
            let endpoint = format_host_port(SocketAddrV4::new(local, port));
            self.reply(&format!("227 Entering Passive Mode ({endpoint})"))
        }
    }

    fn active(&mut self, target: Option<SocketAddr>) -> io::Result<()> {
        let Some(target) = target else { return self.reply("501 what endpoint?") };
        self.data = Data::Active(target);
        self.reply("200 fine")
    }

    fn retrieve(&mut self, name: &str) -> io::Result<()> {
        let Ok(length) = name.parse() else { return self.reply("550 no such file") };
        let data = match std::mem::replace(&mut self.data, Data::None) {
            Data::None => return self.reply("425 no data connection"),
            Data::Passive(listener) => listener.accept(),
            Data::Active(target) => TcpStream::connect_timeout(&target, REPLY_LIMIT),
        };
        let Ok(mut data) = data else { return self.reply("425 no data connection") };
        self.reply("150 here it comes")?;
        if write_all(&mut data, &self.chunk, length).is_err() {
            return self.reply("426 broken off");
        }
        drop(data);
        self.reply("226 done")
    }

    /// Sends a multi-line reply of at least `length` bytes.
    fn send_long_reply(&mut self, length: &str) -> io::Result<()> {
        let length: usize = length.parse().unwrap_or(0);
        let line =
            b" Everything is as it should be, and there is nothing else to be said of it.\r\n";
        let text: Vec<u8> = line.iter().copied().cycle().take(line.len() * 1024).collect();
        self.reply("211-Status")?;
        for _ in 0..length.div_ceil(text.len()) {
            self.control.write_all(&text)?;
        }
        self.reply("211 End")
    }
}

fn write_all(data: &mut TcpStream, chunk: &[u8], mut length: u64) -> io::Result<()> {
    data.set_write_timeout(Some(Duration::from_secs(20)))?;
    while length > 0 {
        let part = usize::try_from(length).unwrap_or(usize::MAX).min(chunk.len());
        data.write_all(&chunk[..part])?;
        length -= part as u64;
    }
    data.shutdown(std::net::Shutdown::Write)
}

/// The endpoint in `|protocol|address|port|`.
fn parse_extended(argument: &str) -> Option<SocketAddr> {
    let mut fields = argument.split('|').skip(2);
    let address: IpAddr = fields.next()?.parse().ok()?;
    Some(SocketAddr::new(address, fields.next()?.parse().ok()?))
}
