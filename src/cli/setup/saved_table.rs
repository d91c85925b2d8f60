//! Files of nftables that have a copy of the daemon's table, as `nft list ruleset` saves it with the others.
//!
//! nft loads a file as a whole or not at all, and it refuses the copy in most cases: at a boot, because the table's
//! conntrack helper exists only while the daemon runs; later, because the table belongs to the daemon.

use std::{collections::BTreeSet, path::Path};

use super::{
    firewalls::{glob_files, nftables_files},
    nft_file::NftFile,
    store,
};
use crate::{
    daemon::health::{Check, ProblemName},
    kernel::parameters::TABLE,
};

const FILES: &str = "files of the firewall";
/// Files that some distributions load in addition to the usual ones.
const MORE: &str = "/etc/nftables.d/*";

/// A problem for each file with a copy.
pub(in crate::cli) fn saved_table_checks() -> impl Iterator<Item = Check> {
    let says = "has a copy of table inet ftp_alg, as `nft list ruleset` saves it: nft may refuse the whole file, and \
                after the next boot nothing is filtered";
    let problem = ProblemName::SavedTable;
    files_with_copy()
        .into_iter()
        .map(move |path| Check::problem(FILES, path, problem, says).advice([problem.remedy()]))
}

/// The paths of the files with a copy. A file that cannot be read is left out.
fn files_with_copy() -> BTreeSet<String> {
    let ours = format!("inet {TABLE}");
    let text = |path: &str| store::read(Path::new(path)).ok().flatten().unwrap_or_default();
    let files = nftables_files().into_iter().chain(glob_files(MORE));
    files.filter(|path| NftFile::parse(&text(path)).tables.contains(&ours)).collect()
}
