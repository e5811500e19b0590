//! `plumb store`: check, mend, clean and measure a store.

mod transfer;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use plumb::digest::Fingerprint;
use plumb::monitor::Monitor as _;
use plumb::shown::counted;
use plumb::store::{
    self, Address, CheckReport, GcOptions, GcReport, Problem, PushOptions, RebuildReport, Store,
    StoreStats,
};

use crate::CommandResult;
use crate::layout::size;
use crate::ui::{Failure, Ui};
use crate::world::{self, WaitArgs};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Look for damage. Changes nothing; exit status 3 when there is any.
    ///
    /// The index of a store on object storage is in the user's cache meanwhile.
    Check {
        /// The store's folder or address.
        store: PathBuf,
        /// Read every payload and compare its digest, too.
        #[arg(long)]
        read_data: bool,
    },
    /// Make the index anew from the packs, leaving out what is damaged.
    ///
    /// Also writes store.json and specs anew where they are missing. Entries left out are encoded again by the
    /// next `plumb encode`. A file that cannot be read, for its rights or its disk, ends the command: that is no damage.
    RebuildIndex {
        /// The store's folder.
        store: PathBuf,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Remove what no run uses.
    ///
    /// A run is a file in the store's folder `runs`; remove it to give up its entries. Nothing behind a link is removed, and
    /// nothing that plumb did not write. The index of a store on object storage is in the user's cache meanwhile.
    Gc {
        /// The store's folder or address.
        store: PathBuf,
        /// Only tell what would go.
        #[arg(long)]
        dry_run: bool,
        /// Keep whatever is younger than this many hours.
        #[arg(long, value_name = "N", default_value_t = 24)]
        grace_hours: u64,
        /// Go on even when no run uses anything: removes all that is old enough.
        #[arg(long)]
        without_runs: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Merge the parts of a large index, so that looking up some entries reads a small share of it.
    ///
    /// `plumb encode` merges in its end what has to be. After encodings of millions of captions this is worth its minutes once.
    /// Others cannot write meanwhile; they may read. On object storage they may write, too: what was merged is not read any more, and
    /// `plumb store gc` removes it in time.
    Compact {
        /// The store's folder, or its address on object storage.
        store: PathBuf,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Put what object storage lacks of a store there. An interrupted push goes on where it was.
    ///
    /// Entries come before whatever names them, so others may read and push meanwhile. In its end it merges what has to be of the index there, as
    /// `plumb encode` does. Credentials come from the usual variables:
    /// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL; GOOGLE_SERVICE_ACCOUNT; AZURE_STORAGE_ACCOUNT_NAME
    /// and AZURE_STORAGE_ACCOUNT_KEY.
    Push {
        /// The store's folder; or an Experiment file with an address as its store, whose encoded entries wait on this machine.
        store: PathBuf,
        /// Where to: s3://bucket/prefix, gs://bucket/prefix or az://container/prefix.
        address: Option<PathBuf>,
        /// Write packs in shared form, in about 2/3 of the bytes. Nothing is lost, and reading them back is the same.
        #[arg(long)]
        compress: bool,
        /// Write contents.json, too: the list by which the store is read over plain http.
        #[arg(long)]
        contents: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Copy a store on object storage into a folder, or fetch what an Experiment needs of its own.
    Pull {
        /// The address; or an Experiment file with an address as its store.
        from: PathBuf,
        /// The folder to copy into, new or a store; not for an Experiment, which has a folder of its own.
        folder: Option<PathBuf>,
    },
    /// Tell how much the store holds: entries, packs and bytes. `plumb inspect store` tells what it is and who uses it.
    Stats {
        /// The store's folder or address.
        store: PathBuf,
    },
}

pub(crate) fn run(args: &Args, ui: &Ui) -> CommandResult {
    match &args.command {
        Command::Check { store, read_data } => check(store, *read_data, ui),
        Command::RebuildIndex { store, wait } => rebuild_index(store, wait, ui),
        Command::Gc {
            store,
            dry_run,
            grace_hours,
            without_runs,
            wait,
        } => {
            let options = GcOptions {
                now: crate::world::now(),
                grace: Duration::from_secs(grace_hours.saturating_mul(3600)),
                dry_run: *dry_run,
                without_runs: *without_runs,
            };
            gc(store, &options, wait, ui)
        }
        Command::Compact { store, wait } => compact(store, wait, ui),
        Command::Push {
            store,
            address,
            compress,
            contents,
            wait,
        } => {
            let options = PushOptions {
                compress: *compress,
                contents: *contents,
                wait: wait.limit(),
            };
            transfer::push(store, address.as_deref(), options, ui)
        }
        Command::Pull { from, folder } => transfer::pull(from, folder.as_deref(), ui),
        Command::Stats { store } => stats(store, ui),
    }
}

pub(crate) use transfer::push_text;

fn tell(problems: &[Problem], ui: &Ui) {
    for problem in problems {
        ui.problem(&problem.to_string());
    }
}

fn check(path: &Path, read_data: bool, ui: &Ui) -> CommandResult {
    let report = match Address::is_one(path) {
        true => world::remote(path)?.check(&world::scratch(), read_data, ui),
        false => Store::check(path, read_data, ui),
    };
    let report = report.map_err(Failure::error)?;
    ui.report(&report, &check_text(path, &report))?;
    tell(&report.problems, ui);
    Ok(())
}

fn check_text(path: &Path, report: &CheckReport) -> String {
    let verdict = match (report.problems.len(), report.read_data) {
        (0, true) => "sound, every byte read".to_owned(),
        (0, false) => "sound in structure; --read-data reads every byte, too".to_owned(),
        (1, _) => "1 problem".to_owned(),
        (n, _) => format!("{n} problems"),
    };
    let mut text = format!(
        "{}: {verdict}\n{} in {}, {}",
        path.display(),
        counted(report.entries, "entry"),
        counted(report.packs, "pack"),
        size(report.pack_bytes)
    );
    if report.unindexed_entries > 0 {
        let _ = write!(
            text,
            "\n{} without a row in the index, being written or left by an interrupted run or a lost index part:\n\
             `plumb store rebuild-index` brings them back, `plumb store gc` removes them in time",
            counted(report.unindexed_entries, "packed entry")
        );
    }
    if report.temporary_files > 0 {
        let _ = write!(
            text,
            "\n{} left by interrupted writes; `plumb store gc` removes them in time",
            counted(report.temporary_files, "temporary file")
        );
    }
    if report.set_aside_packs > 0 {
        let _ = write!(
            text,
            "\n{} set aside by `plumb store rebuild-index`; `plumb store gc` removes them in time",
            counted(report.set_aside_packs, "damaged pack")
        );
    }
    if report.set_aside_specs > 0 {
        let files = counted(report.set_aside_specs, "misnamed spec");
        let _ = write!(
            text,
            "\n{files} set aside by `plumb store rebuild-index`; `plumb store gc` removes them in time"
        );
    }
    text
}

fn rebuild_index(path: &Path, wait: &WaitArgs, ui: &Ui) -> CommandResult {
    if Address::is_one(path) {
        let why = "an index on object storage is made anew from a copy: `plumb store pull` it into a folder, rebuild that, and push it";
        return Err(Failure::usage(why));
    }
    let rebuild = || Store::rebuild_index(path, ui);
    let report = store::when_free(wait.limit(), ui, rebuild).map_err(Failure::error)?;
    ui.report(&report, &rebuild_text(path, &report))?;
    tell(&report.problems, ui);
    Ok(())
}

fn rebuild_text(path: &Path, report: &RebuildReport) -> String {
    let mut text = format!(
        "{}: the index now has {} from {}\n{} written, {} removed",
        path.display(),
        counted(report.entries, "entry"),
        counted(report.packs, "pack"),
        counted(report.parts_written, "index part"),
        report.parts_removed
    );
    if report.store_json_written {
        text.push_str("\nstore.json was written anew");
    }
    for (n, thing, done) in [
        (report.specs_written, "spec", "written anew"),
        (report.specs_set_aside, "misnamed spec", "set aside"),
        (
            report.packs_repaired,
            "pack",
            "repaired, with the bytes again that were written",
        ),
        (
            report.packs_restored,
            "pack",
            "set aside before and sound, brought back",
        ),
        (
            report.packs_set_aside,
            "damaged pack",
            "set aside; what was sound in them is in new packs",
        ),
    ] {
        if n > 0 {
            let _ = write!(text, "\n{} {done}", counted(n, thing));
        }
    }
    text
}

fn gc(path: &Path, options: &GcOptions, wait: &WaitArgs, ui: &Ui) -> CommandResult {
    let report = match Address::is_one(path) {
        true => world::remote(path)?.gc(&world::scratch(), options, wait.limit(), ui),
        false => {
            let store = Store::open(path).map_err(Failure::error)?;
            store::when_free(wait.limit(), ui, || store.gc(options, ui))
        }
    };
    let report = report.map_err(Failure::error)?;
    ui.report(&report, &gc_text(path, &report))?;
    tell(&report.problems, ui);
    Ok(())
}

fn compact(path: &Path, wait: &WaitArgs, ui: &Ui) -> CommandResult {
    let store = Store::open_at(&world::store_place(path)?).map_err(Failure::error)?;
    let report = store::when_free(wait.limit(), ui, || store.compact()).map_err(Failure::error)?;
    let text = format!(
        "{}: {}, before {}, {}",
        path.display(),
        counted(report.parts, "index part"),
        report.parts_before,
        size(report.bytes)
    );
    ui.report(&report, &text)
}

fn gc_text(path: &Path, report: &GcReport) -> String {
    let (go, free, rewrite) = if report.dry_run {
        ("would go", "would be freed", "would be rewritten")
    } else {
        ("removed", "freed", "rewritten")
    };
    let mut text = format!(
        "{}: {} {go}, {} kept for {} or by age\n{} {go} ({} of them {rewrite}), {} {free}",
        path.display(),
        counted(report.entries_removed, "entry"),
        report.entries_kept,
        counted(report.runs, "run"),
        counted(report.packs_removed, "pack"),
        report.packs_rewritten,
        size(report.bytes_freed)
    );
    if report.leftovers_removed > 0 {
        let files = counted(report.leftovers_removed, "leftover file");
        let _ = write!(
            text,
            "\n{files} of interrupted writes or damaged packs {go}"
        );
    }
    if report.dry_run {
        text.push_str("\nnothing was changed: this was a dry run");
    }
    text
}

fn stats(path: &Path, ui: &Ui) -> CommandResult {
    let store = Store::open_at(&world::store_place(path)?).map_err(Failure::error)?;
    let stats = store.stats().map_err(Failure::error)?;
    ui.report(&stats, &stats_text(&store, &stats)?)
}

fn stats_text(store: &Store, stats: &StoreStats) -> Result<String, Failure> {
    // Of no spec: only descriptions are read, and no index is loaded for them.
    let reader = store.reader_of(&[]).map_err(Failure::error)?;
    let mut text = format!(
        "{}\n{} in {}, {} of index",
        store.shown().display(),
        size(stats.pack_bytes),
        counted(stats.packs, "pack"),
        size(stats.index_bytes)
    );
    for (id, spec) in &stats.specs {
        let kind = id
            .parse()
            .map_or_else(|_| String::new(), |id| spec_kind(&reader, &id));
        let dtypes: Vec<&str> = spec.dtypes.iter().copied().collect();
        let _ = write!(
            text,
            "\n\nspec {}{kind}\n  {}, {} {}, {}, {}",
            &id[..12.min(id.len())],
            counted(spec.entries, "entry"),
            size(spec.payload_bytes),
            dtypes.join(" "),
            counted(spec.packs, "pack"),
            counted(spec.index_parts, "index part")
        );
        for (n, what) in [
            (spec.truncated_entries, "with a cut caption"),
            (
                spec.duplicate_entries,
                "stored more than once; gc keeps one of each",
            ),
            (
                spec.damaged_index_parts,
                "index parts that cannot be used; see `plumb store check`",
            ),
        ] {
            if n > 0 {
                let _ = write!(text, "\n  {n} {what}");
            }
        }
    }
    if !stats.runs.is_empty() {
        text.push_str("\n\nruns, whose entries gc keeps");
    }
    for (id, entries) in &stats.runs {
        let entries = entries.map_or("cannot be read".to_owned(), |n| counted(n, "entry"));
        let _ = write!(text, "\n  {id}: {entries}");
    }
    if stats.unindexed_packs > 0 {
        let _ = write!(
            text,
            "\n\n{} ({}) without a row in the index; gc removes them in time",
            counted(stats.unindexed_packs, "pack"),
            size(stats.unindexed_pack_bytes)
        );
    }
    Ok(text)
}

/// What kind of thing a spec describes, in a word after two spaces, if it says so.
fn spec_kind(reader: &store::StoreReader, spec: &Fingerprint) -> String {
    let json = reader.spec_json(spec).ok().flatten().unwrap_or_default();
    let value: serde_json::Value = serde_json::from_slice(&json).unwrap_or_default();
    let kind = value.pointer("/architecture/kind").and_then(|k| k.as_str());
    kind.map(|k| format!("  {k}")).unwrap_or_default()
}
