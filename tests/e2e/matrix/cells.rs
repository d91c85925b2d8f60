//! Cells of a matrix: one client with one server, in one way to announce a data connection. Each is a download, an upload
//! and a listing, compared byte for byte.

use std::net::SocketAddr;

use crate::common::*;

pub struct Cell {
    client: ClientProgram,
    /// What the client says.
    pub verb: Verb,
    /// Over which family.
    family: Family,
    /// A name that no other cell of the lab has; its file is called that.
    pub name: String,
    /// What went wrong; `None` if every byte arrived.
    pub failure: Option<String>,
}

/// Clients of a server, and the ways in which they announce.
pub struct Clients<'a> {
    pub programs: &'a [ClientProgram],
    pub ways: &'a [(Verb, Family)],
    /// A part has one client for each way. Parts that follow each other have the next client, all parts have all cells.
    pub part: Option<usize>,
    pub tls: ClientTls,
    /// How many run at a time.
    pub threads: usize,
}

/// Runs the cells of `server`, which clients reach at `endpoint`.
pub fn run(
    lab: &Lab,
    server: &Server,
    clients: &Clients,
    endpoint: impl Fn(Family) -> SocketAddr + Sync,
) -> Vec<Cell> {
    let mut cells = Vec::new();
    for (way, &(verb, family)) in clients.ways.iter().enumerate() {
        let all = clients.programs.iter().cycle().skip(clients.part.unwrap_or(0) + way);
        // The servers understand everything.
        let can = |client: &&ClientProgram| client.unsupported_reason(verb, family).is_none();
        let able = all.take(clients.programs.len()).filter(can);
        for client in able.take(if clients.part.is_some() { 1 } else { usize::MAX }) {
            let name = format!("{}-{client}-{verb}-{family}", server.kind());
            cells.push(Cell { client: *client, verb, family, name, failure: None });
        }
    }
    let body: Vec<u8> = (0..100_000_u32).map(|n| (n * 7 % 251) as u8).collect();
    side_by_side(clients.threads, &mut cells, |cell| {
        let Cell { client, verb, family, .. } = *cell;
        let (endpoint, login, tls) = (endpoint(family), server.login(), clients.tls);
        let transfer = Transfer { client, host: &lab.client, endpoint, verb, login, tls };
        let done = transfer.exchange(server, &cell.name, &body);
        cell.failure = done.err().map(|error| error.to_string());
    });
    cells
}
