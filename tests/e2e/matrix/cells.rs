//! Every client with every server, in every way in which both can announce a data connection.
//!
//! Each cell is a download, an upload and a listing, compared byte for byte. Both ends are watched:
//! a cell fails, too, if its client said anything else than its script.

use std::fmt;

use ftp_alg_lab::Result;

use super::witness::Witness;
use crate::common::*;

/// How many cells run at a time. More than there are processors: ProFTPD rests 0.2 to 0.4 s whenever
/// a session has ended, before it accepts those that wait.
const THREADS: usize = 8;

/// One client with one server, announcing in one way.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Which client.
    pub client: ClientProgram,
    /// Which server.
    pub server: ServerKind,
    /// What the client says.
    pub verb: Verb,
    /// Over which family.
    pub family: Family,
    /// What went wrong; `None` if every byte arrived.
    pub failure: Option<String>,
    /// How long it took.
    pub elapsed: Duration,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, server, verb, family, .. } = self;
        write!(f, "{client} with {server}, {verb} over {family}")?;
        match &self.failure {
            None => f.write_str(": ok"),
            Some(why) => write!(f, ": FAILED: {why}"),
        }
    }
}

impl Cell {
    /// A name that no other cell has; its file is called that.
    pub fn name(&self) -> String {
        format!("{}-{}-{}-{}", self.server, self.client, self.verb, self.family)
    }
}

/// The ways to announce, over the family they are used with.
pub const WAYS: [(Verb, Family); 6] = [
    (Verb::Port, V4),
    (Verb::Pasv, V4),
    (Verb::Eprt, V4),
    (Verb::Epsv, V4),
    (Verb::Eprt, V6),
    (Verb::Epsv, V6),
];

/// What a matrix showed.
#[derive(Debug)]
pub struct Matrix {
    /// Every client with every server, in each of [`WAYS`].
    pub cells: Vec<Cell>,
    /// Announcements, as either end saw them, that were not followed by a data connection with the
    /// control connection's two addresses.
    pub strays: Vec<String>,
}

impl Matrix {
    /// The cells that did not work and the strays, one line each.
    pub fn failures(&self) -> Vec<String> {
        let cells =
            self.cells.iter().filter(|cell| cell.failure.is_some()).map(ToString::to_string);
        cells.chain(self.strays.iter().cloned()).collect()
    }
}

/// The number of parts into which [`run`] divides the cells.
const PARTS: usize = ClientProgram::ALL.len();

/// Runs the cells of `lab`: one server after the other, of each the cells side by side.
///
/// A part has each server with each way to announce, by one client. Two parts that follow each other have each client
/// with each server, and all parts have all cells. `None` is all parts.
pub fn run(lab: &Lab, part: Option<usize>) -> Result<Matrix> {
    let port = lab.server_endpoint(V4).port();
    let client_end = Witness::start(&lab.client, lab.interface(&lab.client), port)?;
    let server_end = Witness::start(&lab.server, lab.interface(&lab.server), 21)?;
    let mut cells = Vec::new();
    for (number, kind) in ServerKind::ALL.into_iter().enumerate() {
        // Servers begin with different clients.
        cells.extend(run_server(lab, kind, part.map(|part| part + 3 * number))?);
    }
    let mut strays = Vec::new();
    for end in [client_end, server_end] {
        let testimony = end.finish()?;
        strays.extend(testimony.strays.iter().cloned());
        for cell in cells.iter_mut().filter(|cell| cell.failure.is_none()) {
            if let Some(objection) = testimony.objection(&cell.name(), cell.verb) {
                cell.failure = Some(objection);
            }
        }
    }
    Ok(Matrix { cells, strays })
}

fn run_server(lab: &Lab, kind: ServerKind, part: Option<usize>) -> Result<Vec<Cell>> {
    let server = Server::start(kind, &lab.server)?;
    let body: Vec<u8> = (0..100_000_u32).map(|n| (n * 7 % 251) as u8).collect();
    let cells = WAYS.into_iter().enumerate().flat_map(|(way, (verb, family))| {
        // The servers understand everything.
        let can = |client: &ClientProgram| client.unsupported_reason(verb, family).is_none();
        let mut clients = ClientProgram::ALL.to_vec();
        clients.retain(can);
        if let Some(part) = part {
            clients = (0..)
                .map(|next| ClientProgram::ALL[(part + way + next) % PARTS])
                .find(can)
                .into_iter()
                .collect();
        }
        clients.into_iter().map(move |client| Cell {
            client,
            server: kind,
            verb,
            family,
            failure: None,
            elapsed: Duration::ZERO,
        })
    });
    let mut cells: Vec<Cell> = cells.collect();
    side_by_side(THREADS, &mut cells, |cell| exchange(cell, lab, &server, &body));
    Ok(cells)
}

fn exchange(cell: &mut Cell, lab: &Lab, server: &Server, body: &[u8]) {
    let start = Instant::now();
    let transfer = Transfer {
        client: cell.client,
        host: &lab.client,
        endpoint: lab.server_endpoint(cell.family),
        verb: cell.verb,
        login: server.login(),
        tls: ClientTls::Off,
    };
    if let Err(error) = transfer.exchange(server, &cell.name(), body) {
        cell.failure = Some(error.to_string());
    }
    cell.elapsed = start.elapsed();
}
