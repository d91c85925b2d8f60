//! `ftp-alg completions`: prints a script with which a shell completes commands and options.

use clap::{Args, Command, builder::TypedValueParser};
use clap_complete::{Shell, generate};

use super::{Failure, output};

/// Print completions for a shell
///
/// The package installs them. To load them in the current shell:
///   bash: source <(ftp-alg completions bash)
///   zsh:  source <(ftp-alg completions zsh)
///   fish: ftp-alg completions fish | source
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Completions {
    /// The shell
    #[arg(value_name = "SHELL", value_parser = shells())]
    shell: Shell,
}

fn shells() -> impl TypedValueParser<Value = Shell> {
    clap::builder::PossibleValuesParser::new(["bash", "fish", "zsh"])
        .try_map(|name| name.parse::<Shell>())
}

impl Completions {
    /// Prints completions for `command`, without hidden commands.
    pub fn run(&self, command: &Command) -> Result<(), Failure> {
        let shown = command.get_subcommands().filter(|part| !part.is_hide_set()).cloned();
        let mut shown = Command::new("ftp-alg").version(super::VERSION).subcommands(shown);
        let mut text = Vec::new();
        generate(self.shell, &mut shown, "ftp-alg", &mut text);
        // If the name of the program has a hyphen, clap_complete names the state of a command in two ways (clap
        // issue 6421).
        let text = String::from_utf8_lossy(&text).replace("ftp__subcmd__alg", "ftp__alg");
        output::print(&text)
    }
}
