//! `plumb completions` and `plumb man`: what a shell and `man` know of the commands, made of their definitions.

use std::path::PathBuf;

use clap::CommandFactory as _;
use clap_complete::Shell;
use plumb::shown;

use crate::ui::{Failure, Ui};
use crate::{Cli, CommandResult};

/// Print what a shell needs to complete plumb's commands and options.
///
/// For bash: `plumb completions bash > ~/.local/share/bash-completion/completions/plumb`; for zsh, a file `_plumb` in a folder of `$fpath`;
/// for fish: `~/.config/fish/completions/plumb.fish`.
#[derive(clap::Args)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

/// Write a manual page for each command.
#[derive(clap::Args)]
pub(crate) struct ManArgs {
    /// The folder to write them into, as `~/.local/share/man/man1`; it is made if it is not there.
    folder: PathBuf,
}

pub(crate) fn completions(args: &CompletionsArgs, ui: &Ui) -> CommandResult {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "plumb", &mut script);
    let script = String::from_utf8(script).map_err(Failure::error)?;
    let report = serde_json::json!({ "shell": args.shell.to_string(), "script": script });
    ui.report(&report, &script)
}

pub(crate) fn man(args: &ManArgs, ui: &Ui) -> CommandResult {
    let failed = |e: std::io::Error| {
        Failure::error(format!(
            "{}: cannot be written: {e}",
            shown::path(&args.folder)
        ))
    };
    std::fs::create_dir_all(&args.folder).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), &args.folder).map_err(failed)?;
    let text = format!("manual pages in {}: `man plumb`", shown::path(&args.folder));
    ui.report(&serde_json::json!({ "folder": args.folder }), &text)
}
