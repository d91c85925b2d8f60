//! Completions, loaded by real shells.

use std::fs;

use crate::{PROGRAM, output};

/// What `script` prints in `shell`, with the completions for it in the file `$1`.
fn complete(shell: &str, options: &[&str], script: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("completions");
    fs::write(&file, output(PROGRAM, &["completions", shell])).unwrap();
    let script = script.replace("$FILE", file.to_str().unwrap());
    output(shell, &[options, &["-c", &script]].concat())
}

#[test]
fn bash_completes_commands_and_options() {
    let script = "source $FILE; complete -p ftp-alg >/dev/null || exit 1
        try() { COMP_WORDS=(ftp-alg \"$@\"); COMP_CWORD=$#; \
                _ftp__alg ftp-alg \"${@: -1}\" \"${COMP_WORDS[$#-1]}\"; echo \"${COMPREPLY[@]}\"; }
        try st; try status --j; try completions ''; try ''";
    let said = complete("bash", &["--norc"], script);
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[..2], ["status", "--json"], "{said}");
    assert!(lines[2].contains("bash fish zsh"), "{said}");
    assert!(lines[3].contains("doctor") && !lines[3].contains("broker"), "{said}");
}

#[test]
fn zsh_takes_the_completions() {
    let script = "autoload -Uz compinit && compinit -D && source $FILE && \
                  echo $_comps[ftp-alg] && whence -w _ftp-alg";
    assert_eq!(complete("zsh", &["-f"], script), "_ftp-alg\n_ftp-alg: function\n");
}

#[test]
fn fish_completes_commands_and_options() {
    let script = "source $FILE; complete -C 'ftp-alg st'; complete -C 'ftp-alg status --j'";
    let said = complete("fish", &["--no-config"], script);
    let words: Vec<_> = said.lines().filter_map(|line| line.split('\t').next()).collect();
    assert_eq!(words, ["status", "--json"]);
}
