//! `completions` and `man`: the files that a package installs along with the program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use clap_complete::env::Shells;

use crate::completions::VARIABLE;
use crate::context::Context;
use crate::error::CliError;

/// A supported shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ShellName {
    /// GNU bash, 4.4 or later
    Bash,
    /// Z shell
    Zsh,
    /// fish
    Fish,
}

/// `completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Shell to complete for
    #[arg(value_enum)]
    pub(crate) shell: ShellName,
}

/// `man`.
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Write the pages of all commands into this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) to: Option<PathBuf>,
}

/// Prints the completion script of a shell.
pub(super) fn completions(context: &mut Context, args: &CompletionsArgs) -> Result<ExitCode, CliError> {
    let script = script(args.shell)?;
    context.console.print(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the completion script of a shell.
fn script(shell: ShellName) -> Result<Vec<u8>, CliError> {
    let name = match shell {
        ShellName::Bash => "bash",
        ShellName::Zsh => "zsh",
        ShellName::Fish => "fish",
    };
    let mut text = Vec::new();
    if let Some(completer) = Shells::builtins().completer(name) {
        completer
            .write_registration(VARIABLE, "orbd_ctl", "orbd-ctl", "orbd-ctl", &mut text)
            .map_err(CliError::Output)?;
    }
    Ok(text)
}

/// Prints the manual page, or writes a page for each command into a directory.
pub(super) fn man(
    context: &mut Context,
    args: &ManArgs,
    grammar: clap::Command,
) -> Result<ExitCode, CliError> {
    let Some(folder) = &args.to else {
        let page = page(grammar)?;
        context.console.print(&page)?;
        return Ok(ExitCode::SUCCESS);
    };
    let written = pages(grammar)?;
    for (name, page) in &written {
        let path = folder.join(name);
        write(folder, &path, page).map_err(|source| CliError::Local {
            what: format!("cannot write {}", path.display()),
            source,
        })?;
    }
    context
        .console
        .eprint(&format!("wrote {} pages to {}", written.len(), folder.display()));
    Ok(ExitCode::SUCCESS)
}

fn write(folder: &Path, path: &Path, page: &[u8]) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(path, page)
}

/// Renders the manual page of one command.
fn page(command: clap::Command) -> Result<Vec<u8>, CliError> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    Ok(page)
}

/// Renders the pages of the program, its verbs and their subcommands: `orbd-ctl.1`, `orbd-ctl-job.1`, `orbd-ctl-job-why.1`.
fn pages(grammar: clap::Command) -> Result<Vec<(String, Vec<u8>)>, CliError> {
    let mut grammar = grammar.disable_help_subcommand(true);
    grammar.build();
    let mut pages = Vec::new();
    add_pages(&grammar, "orbd-ctl", &mut pages)?;
    Ok(pages)
}

/// Adds the pages of a command and its subcommands. A page is named as clap names the command in it, e.g. `orbd-ctl-job-why`.
fn add_pages(
    command: &clap::Command,
    name: &str,
    pages: &mut Vec<(String, Vec<u8>)>,
) -> Result<(), CliError> {
    pages.push((format!("{name}.1"), page(command.clone())?));
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        add_pages(verb, &format!("{name}-{}", verb.get_name()), pages)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_verb_has_a_page_with_its_examples() {
        let pages = pages(Cli::command()).expect("rendered");
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        assert!(
            names.contains(&"orbd-ctl.1") && names.contains(&"orbd-ctl-list.1"),
            "{names:?}"
        );
        let text = |wanted: &str| {
            let (_, page) = pages.iter().find(|(name, _)| name == wanted).expect("there");
            String::from_utf8_lossy(page).into_owned()
        };
        assert!(text("orbd-ctl-list.1").contains("orbd\\-ctl list \\-\\-running"));
        assert!(text("orbd-ctl.1").contains("Exit codes"));
        assert!(text("orbd-ctl-job-output.1").contains("\\-\\-from"));
    }

    #[test]
    fn every_shell_has_a_completion_script() {
        for shell in ShellName::value_variants() {
            let text = String::from_utf8(script(*shell).expect("written")).expect("text");
            assert!(
                text.contains("orbd-ctl") && text.contains(VARIABLE),
                "{shell:?}: {text}"
            );
        }
    }
}
