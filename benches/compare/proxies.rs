//! The user-space proxies, which `packaging/provision bench` unpacks. They run on the gateway, and clients connect to
//! them instead of the server. Every connection to them is accepted, so the cost of a firewall is not counted.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use ftp_alg_lab::{Family, Host, LabError, Result};

fn cache() -> PathBuf {
    std::env::var_os("FTP_ALG_LAB_CACHE")
        .map_or_else(|| PathBuf::from("/var/cache/ftp-alg-lab"), PathBuf::from)
}

/// The path of `program` below a directory of unpacked packages.
fn unpacked(directory: &str, program: &str) -> Result<PathBuf> {
    let path = cache().join(directory).join(program);
    if path.exists() {
        return Ok(path);
    }
    Err(LabError::Unexpected(format!(
        "{} is missing: `packaging/provision bench` as root unpacks it",
        path.display()
    )))
}

fn with_libraries(command: &mut Command) {
    let mut paths = Vec::new();
    for directory in ["root", "bench"] {
        for libraries in ["usr/lib", "lib"] {
            let entries = fs::read_dir(cache().join(directory).join(libraries));
            let entries = entries.into_iter().flatten().flatten().map(|entry| entry.path());
            paths.extend(entries.filter(|path| path.to_string_lossy().ends_with("-linux-gnu")));
        }
    }
    if let Ok(paths) = std::env::join_paths(paths) {
        command.env("LD_LIBRARY_PATH", paths);
    }
}

fn home(gateway: &Host, name: &str) -> Result<PathBuf> {
    let home = gateway.directory().join(name);
    fs::create_dir_all(&home).map_err(LabError::file(&home))?;
    Ok(home)
}

fn configuration(home: &Path, text: &str) -> Result<PathBuf> {
    let path = home.join("configuration");
    fs::write(&path, text).map_err(LabError::file(&path))?;
    Ok(path)
}

/// Starts SuSE's ftp-proxy, which has a process for each connection.
pub fn suse(gateway: &Host, server: SocketAddr) -> Result<Command> {
    let home = home(gateway, "ftp-proxy")?;
    let text = format!(
        "ServerType standalone\nPort 21\nDestinationAddress {}\nDestinationPort {}\n\
         DestinationTransferMode client\nSameAddress yes\nMaxClients 64\nForkLimit 100000\n\
         LogLevel FLT\nLogDestination {home}/log\nPidFile {home}/pid\n",
        server.ip(),
        server.port(),
        home = home.display(),
    );
    let configuration = configuration(&home, &text)?;
    let mut command = gateway.command(unpacked("bench", "usr/sbin/ftp-proxy")?);
    command.arg("-d").arg("-n").arg("-f").arg(configuration);
    with_libraries(&mut command);
    Ok(command)
}

/// Starts ProFTPD with mod_proxy for one server. It has a process for each connection.
pub fn proftpd(gateway: &Host, server: SocketAddr) -> Result<Command> {
    let home = home(gateway, "mod_proxy")?;
    let modules = unpacked("bench", "usr/lib/proftpd")?;
    let text = format!(
        "ModulePath {modules}\nLoadModule mod_proxy.c\n\
         ServerType standalone\nServerName lab\nDefaultServer on\nDefaultAddress {own}\nUseIPv6 off\nPort 21\n\
         UseReverseDNS off\nWtmpLog off\nDelayEngine off\nUser nobody\nGroup nogroup\nMaxInstances 64\n\
         RequireValidShell off\nAuthPAM off\nAllowForeignAddress on\n\
         PidFile {home}/pid\nScoreboardFile {home}/scoreboard\nSystemLog {home}/log\n\
         TransferLog none\n\
         ProxyEngine on\nProxyRole reverse\nProxyReverseServers ftp://{server}\n\
         ProxySourceAddress {own}\nProxyTables {home}/tables\nProxyDataTransferPolicy client\n",
        modules = modules.display(),
        own = gateway.address(Family::V4),
        home = home.display(),
    );
    let configuration = configuration(&home, &text)?;
    let mut command = gateway.command(unpacked("root", "usr/sbin/proftpd")?);
    // mod_proxy.so is not linked with libssl.
    command.env("LD_PRELOAD", "libssl.so.3");
    command.arg("-n").arg("-c").arg(configuration);
    with_libraries(&mut command);
    Ok(command)
}
