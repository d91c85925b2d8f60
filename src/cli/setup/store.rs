//! Changes the files of a firewall, and records the changes in a journal, so that setup can undo them.
//!
//! Invariants:
//! - A file is written under a temporary name, synced and renamed. So at any moment it has either the old or the new
//!   contents. No lock stops other programs: what one writes between the last comparison and the renaming is lost.
//! - The journal is written before the first file. So the next run can undo the changes of an interrupted run.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, OFlags, flock};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::file_edits::{MARKER, without_setup_lines};
use crate::{cli::Failure, kernel::broker::run_for_output};

/// The directory of the journal, which has the original files.
const DIRECTORY: &str = "/var/lib/ftp-alg/setup";

/// A file before and after a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileChange {
    pub(super) path: PathBuf,
    /// The original text; `None` if there was no file.
    pub(super) original: Option<String>,
    /// The new text.
    pub(super) written: String,
    /// The missing parent directories, the deepest first.
    directories: Vec<PathBuf>,
}

/// How to undo the loading of a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum UndoCommand {
    /// Run this command, which loads the restored files.
    Run(Vec<String>),
    /// Remove the rule that this command adds.
    Remove(Vec<String>),
}

/// Changes of files, and the commands that load them and undo the loading.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChangeSet {
    pub(super) files: Vec<FileChange>,
    pub(super) loads: Vec<Vec<String>>,
    pub(super) take_back: Vec<UndoCommand>,
}

impl ChangeSet {
    pub(super) fn with(mut self, other: &Self) -> Self {
        self.files.extend_from_slice(&other.files);
        self.loads.extend_from_slice(&other.loads);
        self.take_back.extend_from_slice(&other.take_back);
        self
    }
}

/// The changes that setup made, and those that it is making.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct SetupJournal {
    /// Completed changes. The original texts are those of the operator.
    pub(super) done: ChangeSet,
    /// Changes of a run that has not ended, or was interrupted.
    pub(super) begun: Option<ChangeSet>,
}

/// Makes a failure of an error: `what` cannot be done to `path`.
fn io_failure(what: &str, path: &Path) -> impl Fn(io::Error) -> Failure {
    move |error| {
        let advice = match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem => "; make it writable first (mount -o remount,rw)",
            io::ErrorKind::PermissionDenied => "; run this as root",
            _ => "",
        };
        Failure::Failed(format!("cannot {what} {}: {error}{advice}", path.display()))
    }
}

/// Takes the lock, so that no other run can change files. Dropping the file releases it.
pub(super) fn lock() -> Result<File, Failure> {
    let path = Path::new(DIRECTORY).join("lock");
    check_only_root_writes(&path)?;
    let make = || {
        fs::create_dir_all(DIRECTORY)?;
        fs::set_permissions(DIRECTORY, fs::Permissions::from_mode(0o700))
    };
    make().map_err(io_failure("create", Path::new(DIRECTORY)))?;
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(io_failure("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(Failure::failed("another ftp-alg setup is running: try again when it has ended"))
        }
        Err(error) => Err(io_failure("lock", &path)(error.into())),
    }
}

/// Checks that only root can write the journal, because the journal says which files to write.
fn check_only_root_writes(path: &Path) -> Result<(), Failure> {
    for path in path.ancestors() {
        let Ok(found) = fs::symlink_metadata(path) else { continue };
        if found.uid() != 0 || found.mode() & 0o022 != 0 && !found.is_symlink() {
            return Err(Failure::Failed(format!(
                "{} is writable by users other than root: remove files that are not root's, then run \
                 chown root: and chmod go-w on it",
                path.display()
            )));
        }
    }
    Ok(())
}

impl SetupJournal {
    fn path() -> PathBuf {
        Path::new(DIRECTORY).join("journal.json")
    }

    /// Reads the journal; empty if there is none.
    pub(super) fn read() -> Result<Self, Failure> {
        let path = Self::path();
        check_only_root_writes(&path)?;
        match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).map_err(|error| {
                Failure::Failed(format!(
                    "cannot read {}: {error}; it has the original files: save what you need, then \
                     remove it",
                    path.display()
                ))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(io_failure("read", &path)(error)),
        }
    }

    /// Whether there is nothing to undo.
    pub(super) fn is_empty(&self) -> bool {
        self.done == ChangeSet::default() && self.begun.is_none()
    }

    /// Writes the journal, or removes its file if it is empty.
    pub(super) fn write(&self) -> Result<(), Failure> {
        let path = Self::path();
        if self.is_empty() {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(io_failure("remove", &path)(error))
                }
                _ => Ok(()),
            };
        }
        let text = serde_json::to_string_pretty(self).map_err(Failure::failed)?;
        write(&path, &text, None).map_err(io_failure("write", &path))
    }

    /// Moves the current changes to the completed ones.
    pub(super) fn mark_done(&mut self) {
        let Some(begun) = self.begun.take() else { return };
        for change in begun.files {
            match self.done.files.iter_mut().find(|known| known.path == change.path) {
                // The operator edited the file since, so the edited text is the new original.
                Some(known) if change.original.as_ref() != Some(&known.written) => {
                    known.original = change.original.as_deref().map(without_setup_lines);
                    known.written = change.written;
                }
                Some(known) => known.written = change.written,
                None => self.done.files.push(change),
            }
        }
        for step in begun.take_back {
            if !self.done.take_back.contains(&step) {
                self.done.take_back.push(step);
            }
        }
    }
}

/// The bytes of a regular file. Any other file, such as a FIFO, is refused: it may have no end, and cannot be replaced.
fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let waits_not = OFlags::NONBLOCK.bits().cast_signed();
    let mut file = OpenOptions::new().read(true).custom_flags(waits_not).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map(|_| bytes)
}

/// The text of a file; `None` if there is no file.
pub(super) fn read(path: &Path) -> Result<Option<String>, Failure> {
    match read_regular(path) {
        Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| {
            Failure::Failed(format!(
                "cannot change {}: it is not UTF-8; convert it with iconv, or add the line by hand",
                path.display()
            ))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_failure("read", path)(error)),
    }
}

/// The temporary name under which a file is written.
fn temporary_path(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_string_lossy();
    // Patterns of include statements do not match a name that starts with a dot.
    Some(path.with_file_name(format!(".{name}.ftp-alg")))
}

/// The path with all symbolic links resolved.
fn resolved(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// Writes a file under a temporary name, syncs it and renames it. Preserves mode and owner of an existing file, and
/// symbolic links to it.
fn write(path: &Path, text: &str, mode: Option<u32>) -> io::Result<()> {
    let path = resolved(path);
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let temporary = temporary_path(&path).ok_or_else(invalid)?;
    // An interrupted run may have left the temporary file. The lock excludes other runs.
    let _ = fs::remove_file(&temporary);
    let attempt = || {
        let mut file =
            OpenOptions::new().create_new(true).write(true).mode(0o600).open(&temporary)?;
        let mode = match fs::metadata(&path) {
            Ok(old) => {
                fchown(&file, Some(old.uid()), Some(old.gid()))?;
                old.mode() & 0o7777
            }
            Err(_) => mode.unwrap_or(0o600),
        };
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(path.parent().ok_or_else(invalid)?)?.sync_all()
    };
    attempt().inspect_err(|_| drop(fs::remove_file(&temporary)))
}

impl FileChange {
    /// Reads the file at `path`, for editing.
    pub(super) fn for_file(path: &Path) -> Result<Self, Failure> {
        let original = read(path)?;
        let written = original.clone().unwrap_or_default();
        let absent = path.ancestors().skip(1).take_while(|directory| !directory.exists());
        let directories = absent.map(Path::to_owned).collect();
        Ok(Self { path: path.to_owned(), original, written, directories })
    }

    /// Whether the new text differs from the original.
    pub(super) fn is_different(&self) -> bool {
        self.original.as_deref().unwrap_or_default() != self.written
    }

    /// Writes the new text, unless somebody else changed the file since it was read.
    pub(super) fn write_file(&self) -> Result<(), Failure> {
        let path = &self.path;
        if read(path)? != self.original {
            return Err(Failure::Failed(format!(
                "{} was changed by another program and was not written: try again",
                path.display()
            )));
        }
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(io_failure("create", directory))?;
        }
        write(path, &self.written, Some(0o644)).map_err(io_failure("write", path))
    }

    /// Restores the original, and returns a line about the result. If the file was edited since, only the lines of
    /// setup are removed.
    pub(super) fn undo(&self) -> Result<String, Failure> {
        let path = &self.path;
        let now = read(path)?;
        let cannot_write = io_failure("write", path);
        let put = |text: &str| write(path, text, Some(0o644)).map_err(cannot_write);
        let says = match (&self.original, now) {
            (original, now) if *original == now => "has its original contents",
            (Some(original), Some(now)) if now == self.written => {
                put(original)?;
                "was restored"
            }
            (None, Some(now)) if now == self.written => {
                fs::remove_file(path).map_err(io_failure("remove", path))?;
                "was removed"
            }
            (_, None) => "does not exist any more: not changed",
            (_, Some(now)) => match without_setup_lines(&now) {
                rest if rest == now => "was edited and has no lines of setup: not changed",
                rest => {
                    put(&rest)?;
                    "was edited: only the lines of setup were removed"
                }
            },
        };
        // An interrupted run may have left the temporary file.
        let _ = temporary_path(&resolved(path)).map(fs::remove_file);
        for directory in &self.directories {
            // A directory with other files is not removed.
            let _ = fs::remove_dir(directory);
        }
        Ok(format!("{} {says}", path.display()))
    }
}

/// Runs a command and returns its output. It is a failure if the command fails.
pub(super) fn run_command(words: &[String]) -> Result<String, Failure> {
    let Some((program, arguments)) = words.split_first() else { return Ok(String::new()) };
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run_for_output(program, &arguments)
        .map_err(|error| Failure::Failed(format!("`{}`: {error}", words.join(" "))))
}

impl UndoCommand {
    pub(super) fn run(&self) -> Result<(), Failure> {
        match self {
            Self::Run(words) => run_command(words).map(drop),
            Self::Remove(words) if words[0] == "nft" => remove_from_nft(&words[3..6]),
            Self::Remove(words) => {
                let remove = delete_command(words);
                // Repeat until no such rule is left. It is no failure if there was none.
                while run_command(&remove).is_ok() {}
                Ok(())
            }
        }
    }
}

/// The command that deletes the rule that `words` add with iptables: `-I CHAIN [NUMBER] RULE` or `-A CHAIN RULE`.
fn delete_command(words: &[String]) -> Vec<String> {
    let mut words = words.to_vec();
    if let Some(at) = words.iter().position(|word| word == "-I" || word == "-A") {
        words[at] = "-D".to_owned();
        if words.get(at + 2).is_some_and(|word| word.parse::<u32>().is_ok()) {
            words.remove(at + 2);
        }
    }
    words
}

/// Removes the rules of setup from `chain` (family, table, name).
fn remove_from_nft(chain: &[String]) -> Result<(), Failure> {
    let words = |start: &[&str], end: &[&str]| -> Vec<String> {
        let start = start.iter().map(|word| (*word).to_owned());
        start.chain(chain.iter().cloned()).chain(end.iter().map(|w| (*w).to_owned())).collect()
    };
    // A chain that does not exist any more has no rules of setup.
    let Ok(listed) = run_command(&words(&["nft", "--json", "--handle", "list", "chain"], &[]))
    else {
        return Ok(());
    };
    let listed: Value = serde_json::from_str(&listed).map_err(Failure::failed)?;
    let rules = listed["nftables"].as_array().into_iter().flatten().map(|object| &object["rule"]);
    for rule in rules.filter(|rule| rule["comment"] == MARKER) {
        run_command(&words(&["nft", "delete", "rule"], &["handle", &rule["handle"].to_string()]))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(original: Option<&str>, written: &str) -> FileChange {
        let (path, original) = (PathBuf::from("/x"), original.map(str::to_owned));
        FileChange { path, original, written: written.into(), directories: Vec::new() }
    }

    fn finished(journal: &mut SetupJournal, file: FileChange) -> FileChange {
        journal.begun = Some(ChangeSet { files: vec![file], ..ChangeSet::default() });
        journal.mark_done();
        assert!(journal.begun.is_none() && journal.done.files.len() == 1);
        journal.done.files[0].clone()
    }

    #[test]
    fn first_original_counts_unless_the_operator_edited_the_file() {
        let mut journal = SetupJournal::default();
        finished(&mut journal, change(Some("a\n"), "a\n1 comment \"ftp-alg-setup\"\n"));
        let second = "a\n1 comment \"ftp-alg-setup\"\n2 comment \"ftp-alg-setup\"\n";
        let known =
            finished(&mut journal, change(Some("a\n1 comment \"ftp-alg-setup\"\n"), second));
        assert_eq!(known, change(Some("a\n"), second));
        let known =
            finished(&mut journal, change(Some("b\n1 comment \"ftp-alg-setup\"\n"), "b\n3\n"));
        assert_eq!(known, change(Some("b\n"), "b\n3\n"));
    }

    #[test]
    fn added_rule_is_deleted_without_its_number() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for added in ["-I FORWARD 3", "-I FORWARD", "-A FORWARD"] {
            let add = words(&format!("iptables -t mangle {added} -m mark --mark 0x1 -j ACCEPT"));
            let delete = words("iptables -t mangle -D FORWARD -m mark --mark 0x1 -j ACCEPT");
            assert_eq!(delete_command(&add), delete);
        }
    }

    #[test]
    fn new_file_is_undone_together_with_its_directory() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("new/x.nft");
        let mut change = FileChange::for_file(&path).unwrap();
        assert!(!change.is_different());
        change.written = "1 comment \"ftp-alg-setup\"\n".into();
        change.write_file().unwrap();
        assert_eq!(read(&path).unwrap().as_ref(), Some(&change.written));
        let Err(Failure::Failed(error)) = change.write_file() else {
            panic!("it was there already")
        };
        assert!(error.ends_with("was changed by another program and was not written: try again"));
        assert!(change.undo().unwrap().ends_with("x.nft was removed"));
        assert!(!home.path().join("new").exists());
        assert!(change.undo().unwrap().ends_with("has its original contents"));
    }

    #[test]
    fn a_file_that_is_not_regular_is_refused_at_once() {
        let home = tempfile::tempdir().unwrap();
        let fifo = home.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        for path in [&*fifo, home.path(), Path::new("/dev/null")] {
            let Err(Failure::Failed(error)) = read(path) else { panic!("{}", path.display()) };
            assert!(error.ends_with("it is no regular file"), "{error}");
        }
    }

    #[test]
    fn undo_removes_only_setup_lines_from_an_edited_file() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("x");
        for (now, rest, says) in [
            (
                "a\nc comment \"ftp-alg-setup\"\nb\n",
                Some("a\nb\n"),
                "was edited: only the lines of setup were removed",
            ),
            ("c\n", Some("c\n"), "was edited and has no lines of setup: not changed"),
            ("a\n1 comment \"ftp-alg-setup\"\n", Some("a\n"), "was restored"),
            ("", None, "does not exist any more: not changed"),
        ] {
            fs::write(&path, now).unwrap();
            if rest.is_none() {
                fs::remove_file(&path).unwrap();
            }
            let change = FileChange {
                path: path.clone(),
                ..change(Some("a\n"), "a\n1 comment \"ftp-alg-setup\"\n")
            };
            assert!(change.undo().unwrap().ends_with(says), "{now}");
            assert_eq!(read(&path).unwrap().as_deref(), rest);
        }
    }
}
