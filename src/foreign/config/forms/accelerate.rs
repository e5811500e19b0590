//! accelerate's own config, the YAML that `accelerate config` writes: on how many processes a run computes.

use super::{Gathered, Place, Sources};
use crate::foreign::config::Error;
use crate::foreign::config::tree::Node;

/// The settings that name such a file.
const NAMED_BY: [(&str, &str); 2] = [
    ("launcher", "config_file"),
    ("options", "accelerate_config"),
];

fn is_one(node: &Node) -> bool {
    node.has("compute_environment") || (node.has("distributed_type") && node.has("num_processes"))
}

/// Takes the values of such files for options of the launcher, whose command line counts before them.
///
/// # Errors
/// If a file that is named cannot be read.
pub(super) fn gather(sources: &mut Sources, gathered: &mut Gathered) -> Result<(), Error> {
    for (scope, name) in NAMED_BY {
        if let Some(file) = gathered.text(scope, name)
            && sources.companion(0, &file)?.is_none()
        {
            gathered.not_here(
                &file,
                "accelerate's config, which may say on how many GPUs it runs,",
            );
        }
    }
    for file in 0..sources.count() {
        if let Some(node) = sources.values(file).filter(|node| is_one(node)) {
            gathered.settings.retain(|setting| setting.file != file);
            gathered
                .replaced
                .retain(|(setting, _)| setting.file != file);
            gathered.add_all(node, file, |leaf| {
                Place::new("launcher", leaf.keys().join("."))
            });
        }
    }
    Ok(())
}
