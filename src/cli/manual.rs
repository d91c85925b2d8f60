//! `ftp-alg manual`: the manual page ftp-alg(8), whose commands and options are those of the program.
//!
//! Hidden: packages run it once. The rest of the page is written by hand, in
//! `packaging/man/ftp-alg.8.in`.

use std::io::{self, Write};

use clap::Command;
use clap_mangen::Man;

use super::{Failure, output};

const PAGE: &str = include_str!("../../packaging/man/ftp-alg.8.in");

/// Prints the page of `command`, our own.
pub(super) fn print(command: Command) -> Result<(), Failure> {
    // Each would list -h, --help.
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
    output::print(&PAGE.replace("@SYNOPSIS@\n", &synopses).replace("@COMMANDS@\n", &commands))
}

/// A section without its heading, the definition that the page has once, and breaks beside blank lines.
fn body(page: &Man, render: fn(&Man, &mut dyn Write) -> io::Result<()>) -> Result<String, Failure> {
    let mut text = Vec::new();
    render(page, &mut text).map_err(Failure::failed)?;
    let text = String::from_utf8_lossy(&text);
    let kept =
        |line: &&str| ![".SH ", ".ie ", ".el ", ".br"].iter().any(|start| line.starts_with(start));
    Ok(text.lines().filter(kept).map(|line| format!("{line}\n")).collect())
}
