//! What several attacks have in common.

use crate::common::*;

/// Announces port 3762 of the client behind [`Topology::Masquerade`].
pub const PORT: &str = "PORT 192,168,150,80,14,178";
/// The port in [`PORT`].
pub const ANNOUNCED: u16 = 3762;

/// Runs `test` with a configuration for each back end. Both run at the same time, because they mostly wait for
/// timeouts.
pub fn with_each_back_end(test: impl Fn(&str) + Sync) {
    thread::scope(|scope| {
        for name in ["nftables", "conntrack"] {
            let test = &test;
            scope.spawn(move || test(&back_end(name)));
        }
    });
}

/// The `PORT` and `EPRT` lines that the server received, without their unprintable bytes.
pub fn announcements(server: &ScriptedServer) -> Vec<String> {
    let printable = |line: String| line.chars().filter(|c| matches!(c, ' '..='~')).collect();
    let lines = server.lines().into_iter().map(printable);
    lines.filter(|line: &String| line.contains("PORT") || line.contains("EPRT")).collect()
}

/// Adds so many elements, which are numbers, to a set of our table.
pub fn fill(lab: &Lab, set: &str, elements: u32) {
    let numbers = (1..=elements).map(|number| number.to_string()).collect::<Vec<_>>().join(", ");
    lab.gateway.nft(&format!("add element inet ftp_alg {set} {{ {numbers} }}")).unwrap();
}
