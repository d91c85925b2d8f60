//! Completions, loaded by real shells.

use std::fs;

use crate::{PROGRAM, output};

const BASH: &str = "source $FILE; complete -p ftp-alg >/dev/null || exit 1
    try() { COMP_WORDS=(ftp-alg \"$@\"); COMP_CWORD=$#; \
            _ftp__alg ftp-alg \"${@: -1}\" \"${COMP_WORDS[$#-1]}\"; echo \"${COMPREPLY[@]}\"; }
    try st; try status --j; try completions ''";
const ZSH: &str = "autoload -Uz compinit && compinit -D && source $FILE && \
                   echo $_comps[ftp-alg] && whence -w _ftp-alg";
const FISH: &str = "source $FILE; complete -C 'ftp-alg st'; complete -C 'ftp-alg status --j'";

#[test]
fn shells_complete_commands_and_options() {
    for (shell, option, script, expected) in [
        ("bash", "--norc", BASH, &["status", "--json", "bash fish zsh"][..]),
        ("zsh", "-f", ZSH, &["_ftp-alg", "_ftp-alg: function"]),
        ("fish", "--no-config", FISH, &["status\t", "--json\t"]),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("completions");
        fs::write(&file, output(PROGRAM, &["completions", shell])).unwrap();
        let script = script.replace("$FILE", file.to_str().unwrap());
        let said = output(shell, &[option, "-c", &script]);
        assert_eq!(said.lines().count(), expected.len(), "{shell}: {said}");
        for (line, expected) in said.lines().zip(expected) {
            assert!(line.contains(expected), "{shell}: {said}");
        }
    }
}
