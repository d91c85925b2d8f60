//! What the packages generate from the command line: the manual page ftp-alg(8), and completions for shells.
//!
//! The page's sections about commands, options and problems always match the program. The rest of the page is written by
//! hand in `packaging/man/ftp-alg.8.in`.

use std::io::{self, Write};

use clap::{
    Command,
    builder::{PossibleValuesParser, TypedValueParser},
};
use clap_complete::{Shell, generate};
use clap_mangen::Man;

use super::{Failure, output};
use crate::daemon::health::ProblemName;

const PAGE: &str = include_str!("../../packaging/man/ftp-alg.8.in");

/// Prints the manual page of `command`.
pub(super) fn print_manual(command: Command) -> Result<(), Failure> {
    // Otherwise each command would list -h, --help.
    let mut command = command.mut_subcommands(|part| part.disable_help_flag(true));
    command.build();
    let (mut synopses, mut commands) = (String::new(), String::new());
    for mut part in command.get_subcommands().filter(|part| !part.is_hide_set()).cloned() {
        let usage = part.render_usage().to_string();
        let usage = usage.trim_start_matches("Usage: ").replace('-', "\\-");
        synopses += &format!("{usage}\n");
        commands += &format!(".SS \"{usage}\"\n");
        let page = Man::new(part);
        for render in [Man::render_description_section, Man::render_options_section] {
            commands += &body(&page, render)?;
        }
    }
    let problems: String = ProblemName::all().map(problem).collect();
    let parts =
        [("@SYNOPSIS@\n", synopses), ("@COMMANDS@\n", commands), ("@PROBLEMS@\n", problems)];
    let fill = |page: String, (place, text): &(&str, String)| page.replace(place, text);
    output::print(&parts.iter().fold(PAGE.to_owned(), fill))
}

/// The item of a problem or warning.
fn problem(name: ProblemName) -> String {
    let (meaning, severity) = (name.meaning(), name.severity_text());
    let (first, rest) = meaning.split_at(1);
    let item = format!("{} \" ({severity})\"\n{}{rest}.\n", name.as_str(), first.to_uppercase());
    format!(".TP\n.BR {}", item.replace('-', "\\-"))
}

/// The body of a section: without its heading, the string definition that the page has once, and line breaks next to
/// blank lines.
fn body(page: &Man, render: fn(&Man, &mut dyn Write) -> io::Result<()>) -> Result<String, Failure> {
    let mut text = Vec::new();
    render(page, &mut text).map_err(Failure::failed)?;
    let text = String::from_utf8_lossy(&text);
    let is_body =
        |line: &&str| ![".SH ", ".ie ", ".el ", ".br"].iter().any(|start| line.starts_with(start));
    Ok(text.lines().filter(is_body).map(|line| format!("{line}\n")).collect())
}

/// The shells that have completions.
pub(super) fn shells() -> impl TypedValueParser<Value = Shell> {
    PossibleValuesParser::new(["bash", "fish", "zsh"]).try_map(|name| name.parse::<Shell>())
}

/// Prints completions for `command`, without hidden commands.
pub(super) fn print_completions(shell: Shell, command: &Command) -> Result<(), Failure> {
    let shown = command.get_subcommands().filter(|part| !part.is_hide_set()).cloned();
    let mut shown = Command::new("ftp-alg").version(super::VERSION).subcommands(shown);
    let mut text = Vec::new();
    generate(shell, &mut shown, "ftp-alg", &mut text);
    // If the name of the program has a hyphen, clap_complete names the state of a command in two ways (clap
    // issue 6421).
    output::print(&String::from_utf8_lossy(&text).replace("ftp__subcmd__alg", "ftp__alg"))
}
