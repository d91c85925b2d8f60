//! The files that setup changes, and the journal by which it takes changes back.
//!
//! A file is written beside, synced and renamed, so that it is the old or the new one at any moment. The journal is
//! written before the first file is: what an interrupted run began, the next one takes back.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::file_edits::without_setup_lines;
use crate::cli::Failure;

/// Where originals are kept.
const DIRECTORY: &str = "/var/lib/ftp-alg/setup";

/// A file, before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileChange {
    pub(super) path: PathBuf,
    /// Its text; none if there was no file.
    pub(super) original: Option<String>,
    pub(super) written: String,
    /// The directories that it needs and that are not there, the deepest first.
    directories: Vec<PathBuf>,
}

/// How the kernel gives up what it was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum UndoCommand {
    /// A command that loads the files that were put back.
    Run(Vec<String>),
    /// The command that adds a rule, which is removed.
    Remove(Vec<String>),
}

/// Changes, and what makes them effective.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChangeSet {
    pub(super) files: Vec<FileChange>,
    pub(super) loads: Vec<Vec<String>>,
    pub(super) take_back: Vec<UndoCommand>,
}

impl ChangeSet {
    pub(super) fn add(&mut self, other: Self) {
        self.files.extend(other.files);
        self.loads.extend(other.loads);
        self.take_back.extend(other.take_back);
    }
}

/// What was done, and what is being done.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct SetupJournal {
    /// In effect. Its originals are the operator's.
    pub(super) done: ChangeSet,
    /// Begun, and not known to be in effect.
    pub(super) begun: Option<ChangeSet>,
}

/// The right to change files, for as long as it lives.
pub(super) struct SetupLock(#[expect(dead_code, reason = "held, not read")] File);

fn io_failure(what: &str, path: &Path, error: &io::Error) -> Failure {
    let advice = match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => "; make it writable first (mount -o remount,rw)",
        io::ErrorKind::PermissionDenied => "; run this as root",
        _ => "",
    };
    Failure::Failed(format!("cannot {what} {}: {error}{advice}", path.display()))
}

/// Locks out other runs that change something.
pub(super) fn lock() -> Result<SetupLock, Failure> {
    let path = Path::new(DIRECTORY).join("lock");
    check_only_root_writes(&path)?;
    let make = || {
        fs::create_dir_all(DIRECTORY)?;
        fs::set_permissions(DIRECTORY, fs::Permissions::from_mode(0o700))
    };
    make().map_err(|error| io_failure("create", Path::new(DIRECTORY), &error))?;
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| io_failure("open", &path, &error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(SetupLock(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Failure::Failed(
            "another ftp-alg setup is at work: wait until it has ended, and try again".to_owned(),
        )),
        Err(error) => Err(io_failure("lock", &path, &error.into())),
    }
}

/// That nobody but root put the journal there: it says which files to write, and what.
fn check_only_root_writes(path: &Path) -> Result<(), Failure> {
    for path in path.ancestors() {
        let Ok(found) = fs::symlink_metadata(path) else { continue };
        if found.uid() != 0 || found.mode() & 0o022 != 0 && !found.is_symlink() {
            return Err(Failure::Failed(format!(
                "{} can be changed by others than root: make it root's own \
                 (chown root: and chmod go-w), and remove from it what is not",
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

    /// What earlier runs did.
    pub(super) fn read() -> Result<Self, Failure> {
        let path = Self::path();
        check_only_root_writes(&path)?;
        match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).map_err(|error| {
                Failure::Failed(format!(
                    "cannot read {}: {error}; it holds the original files: save what you need of it, \
                     then remove it",
                    path.display()
                ))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(io_failure("read", &path, &error)),
        }
    }

    /// Whether there is nothing to take back.
    pub(super) fn is_empty(&self) -> bool {
        self.done == ChangeSet::default() && self.begun.is_none()
    }

    /// Keeps it, or removes it if it says nothing.
    pub(super) fn write(&self) -> Result<(), Failure> {
        let path = Self::path();
        if self.is_empty() {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(io_failure("remove", &path, &error))
                }
                _ => Ok(()),
            };
        }
        let text = serde_json::to_string_pretty(self).map_err(Failure::failed)?;
        write(&path, &text, None).map_err(|error| io_failure("write", &path, &error))
    }

    /// Takes what was begun for done.
    pub(super) fn mark_done(&mut self) {
        let Some(begun) = self.begun.take() else { return };
        for change in begun.files {
            match self.done.files.iter_mut().find(|known| known.path == change.path) {
                // What the operator wrote since counts as original.
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

/// The text of a file; none if there is no file.
pub(super) fn read(path: &Path) -> Result<Option<String>, Failure> {
    match fs::read(path) {
        Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| {
            Failure::Failed(format!(
                "cannot change {}: it is not UTF-8; convert it with iconv, or add the line by hand",
                path.display()
            ))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_failure("read", path, &error)),
    }
}

/// Where the next text of a file is written.
fn temporary_path(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_string_lossy();
    // No pattern of an include matches this.
    Some(path.with_file_name(format!(".{name}.ftp-alg")))
}

/// What a link leads to.
fn resolved(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// Writes beside, syncs, renames. Keeps mode and owner of a file that is there, and links to it.
fn write(path: &Path, text: &str, mode: Option<u32>) -> io::Result<()> {
    let path = resolved(path);
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let beside = temporary_path(&path).ok_or_else(invalid)?;
    // Left by a run that was interrupted; others are locked out.
    let _ = fs::remove_file(&beside);
    let attempt = || {
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&beside)?;
        let mode = match fs::metadata(&path) {
            Ok(old) => {
                chown(&beside, Some(old.uid()), Some(old.gid()))?;
                old.mode() & 0o7777
            }
            Err(_) => mode.unwrap_or(0o600),
        };
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        File::open(path.parent().ok_or_else(invalid)?)?.sync_all()
    };
    attempt().inspect_err(|_| drop(fs::remove_file(&beside)))
}

impl FileChange {
    /// The file at `path` as it is, to be edited.
    pub(super) fn for_file(path: &Path) -> Result<Self, Failure> {
        let original = read(path)?;
        let written = original.clone().unwrap_or_default();
        let absent = path.ancestors().skip(1).take_while(|directory| !directory.exists());
        let directories = absent.map(Path::to_owned).collect();
        Ok(Self { path: path.to_owned(), original, written, directories })
    }

    /// Whether the file is another afterwards.
    pub(super) fn is_different(&self) -> bool {
        self.original.as_deref().unwrap_or_default() != self.written
    }

    /// Writes it, unless somebody else changed the file meanwhile.
    pub(super) fn write_file(&self) -> Result<(), Failure> {
        let path = &self.path;
        if read(path)? != self.original {
            let what = "was changed meanwhile: nothing was written to it; try again";
            return Err(Failure::Failed(format!("{} {what}", path.display())));
        }
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)
                .map_err(|error| io_failure("create", directory, &error))?;
        }
        write(path, &self.written, Some(0o644)).map_err(|error| io_failure("write", path, &error))
    }

    /// Puts the original back, and says so. Of a file that was edited since only our lines go.
    pub(super) fn undo(&self) -> Result<String, Failure> {
        let path = &self.path;
        let now = read(path)?;
        let cannot_write = |error| io_failure("write", path, &error);
        let put = |text: &str| write(path, text, Some(0o644)).map_err(cannot_write);
        let says = match (&self.original, now) {
            (original, now) if *original == now => "is as it was before",
            (Some(original), Some(now)) if now == self.written => {
                put(original)?;
                "is as it was before"
            }
            (None, Some(now)) if now == self.written => {
                fs::remove_file(path).map_err(|error| io_failure("remove", path, &error))?;
                "is removed again"
            }
            (_, None) => "is gone: left so",
            (_, Some(now)) => match without_setup_lines(&now) {
                rest if rest == now => "was edited, and has none of our lines: left so",
                rest => {
                    put(&rest)?;
                    "was edited since: only our lines were removed"
                }
            },
        };
        // Left by a run that was interrupted.
        let _ = temporary_path(&resolved(path)).map(fs::remove_file);
        for directory in &self.directories {
            // One that has other files by now stays.
            let _ = fs::remove_dir(directory);
        }
        Ok(format!("{} {says}", path.display()))
    }
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
    fn the_first_original_counts_unless_the_operator_wrote_since() {
        let mut journal = SetupJournal::default();
        finished(&mut journal, change(Some("a\n"), "a\n1 ftp-alg-setup\n"));
        let second = "a\n1 ftp-alg-setup\n2 ftp-alg-setup\n";
        let known = finished(&mut journal, change(Some("a\n1 ftp-alg-setup\n"), second));
        assert_eq!(known, change(Some("a\n"), second));
        let known = finished(&mut journal, change(Some("b\n1 ftp-alg-setup\n"), "b\n3\n"));
        assert_eq!(known, change(Some("b\n"), "b\n3\n"));
    }

    #[test]
    fn a_file_is_made_and_taken_back_with_its_directory() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("new/x.nft");
        let mut change = FileChange::for_file(&path).unwrap();
        assert!(!change.is_different());
        change.written = "1 ftp-alg-setup\n".into();
        change.write_file().unwrap();
        assert_eq!(read(&path).unwrap().as_ref(), Some(&change.written));
        let Err(Failure::Failed(error)) = change.write_file() else {
            panic!("it was there already")
        };
        assert!(error.ends_with("was changed meanwhile: nothing was written to it; try again"));
        assert!(change.undo().unwrap().ends_with("x.nft is removed again"));
        assert!(!home.path().join("new").exists());
        assert!(change.undo().unwrap().ends_with("is as it was before"));
    }

    #[test]
    fn of_a_file_that_was_edited_only_our_lines_go() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("x");
        for (now, rest, says) in [
            (
                "a\n1 ftp-alg-setup\nb\n",
                Some("a\nb\n"),
                "was edited since: only our lines were removed",
            ),
            ("c\n", Some("c\n"), "was edited, and has none of our lines: left so"),
            ("a\n1 ftp-alg-setup\n", Some("a\n"), "is as it was before"),
            ("", None, "is gone: left so"),
        ] {
            fs::write(&path, now).unwrap();
            if rest.is_none() {
                fs::remove_file(&path).unwrap();
            }
            let change =
                FileChange { path: path.clone(), ..change(Some("a\n"), "a\n1 ftp-alg-setup\n") };
            assert!(change.undo().unwrap().ends_with(says), "{now}");
            assert_eq!(read(&path).unwrap().as_deref(), rest);
        }
    }
}
