//! The account that the daemon runs as.

use std::{fs, io, path::PathBuf};

/// The file with the accounts of the machine. Accounts of directory services are not looked up.
const ACCOUNTS: &str = "/etc/passwd";

/// A user and its own group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

/// Why the account cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    #[error("--user {name}: no such user in {ACCOUNTS}; `useradd --system {name}` creates it")]
    Unknown { name: String },
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
}

impl Account {
    /// Looks up an account by its name.
    pub fn named(name: &str) -> Result<Self, AccountError> {
        let read = |source| AccountError::Read { path: ACCOUNTS.into(), source };
        let text = fs::read_to_string(ACCOUNTS).map_err(read)?;
        Self::find(&text, name).ok_or_else(|| AccountError::Unknown { name: name.to_owned() })
    }

    /// Finds an account in the text of a file with lines `name:password:uid:gid:...`, see passwd(5).
    fn find(text: &str, name: &str) -> Option<Self> {
        text.lines().find_map(|line| {
            let mut fields = line.split(':');
            if fields.next()? != name {
                return None;
            }
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            Some(Self { name: name.to_owned(), uid, gid })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_by_its_whole_name() {
        let text = "root:x:0:0:root:/root:/bin/sh\nftp:x:7:8::/:\nftp-alg:x:998:997::/:\nbad:x\n";
        let found = Account::find(text, "ftp-alg");
        assert_eq!(found, Some(Account { name: "ftp-alg".into(), uid: 998, gid: 997 }));
        for absent in ["ftp-al", "bad", "", "x"] {
            assert_eq!(Account::find(text, absent), None, "{absent}");
        }
    }
}
