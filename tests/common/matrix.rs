//! Every client with every server, in every mode and family.

use ftp_alg::lab::{Client, Family, Lab, LabError, Mode, Server, ServerKind, Transfer};

/// Runs a download, an upload and a listing for each; one line for each that did not work.
pub fn failures(lab: &Lab) -> Vec<String> {
    let body: Vec<u8> = (0..100_000_u32).map(|n| (n * 7 % 251) as u8).collect();
    let mut failures = Vec::new();
    for kind in ServerKind::ALL {
        let server = match Server::start(kind, &lab.server) {
            Ok(server) => server,
            Err(error) => {
                failures.push(format!("{kind}: {error}"));
                continue;
            }
        };
        for (client, family, mode) in combinations() {
            let address = lab.dialled(family);
            let transfer = Transfer::new(client, &lab.client, &server, address, mode);
            if let Err(error) = errands(&transfer, &server, &body) {
                failures.push(format!("{kind} {client} {family} {mode}: {error}"));
            }
        }
    }
    failures
}

fn combinations() -> impl Iterator<Item = (Client, Family, Mode)> {
    Client::ALL.into_iter().flat_map(|client| {
        let families = [Family::V4, Family::V6].into_iter();
        families.filter(move |family| client.speaks(*family)).flat_map(move |family| {
            [Mode::Active, Mode::Passive].map(|mode| (client, family, mode))
        })
    })
}

fn errands(transfer: &Transfer<'_>, server: &Server, body: &[u8]) -> Result<(), LabError> {
    let differs = |what: &str| Err(LabError::Unexpected(what.to_owned()));
    server.put("body", body)?;
    if transfer.download("body")? != body {
        return differs("other bytes came down");
    }
    transfer.upload("up", &body[1..])?;
    if server.stored("up")? != body[1..] {
        return differs("other bytes went up");
    }
    let listing = transfer.list()?;
    if listing.contains("body") { Ok(()) } else { differs(&format!("listing: {listing}")) }
}
