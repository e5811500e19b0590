//! The captions that a trainer itself reads beside a picture, where its cache is named by them.

use std::path::Path;

use crate::dataset::Item;
use crate::experiment::DatasetSettings;
use crate::files;

/// More than any caption has.
const MAX_BYTES: u64 = 1 << 20;

/// The text that is under a picture's name with the extension of captions; none where there is no such file.
fn beside(set: &DatasetSettings, picture: &Path) -> Result<Option<String>, String> {
    let file = picture.with_extension(set.caption_ending().unwrap_or("txt"));
    if !file.exists() {
        return Ok(None);
    }
    let bytes = files::read(&file, MAX_BYTES).map_err(|e| format!("its caption: {e}"))?;
    let text = String::from_utf8(bytes).map_err(|_| "its caption is not UTF-8".to_owned())?;
    Ok(Some(text))
}

/// Without regard to how much white space is where.
fn squeezed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn same(theirs: &str, ours: &str, trainer: &str) -> Result<(), String> {
    if squeezed(theirs) == squeezed(ours) {
        return Ok(());
    }
    let cut = |text: &str| squeezed(text).chars().take(60).collect::<String>();
    Err(format!(
        "{trainer} names its embeddings by the caption in the file beside the picture, `{}`, and the Experiment's is `{}`: write the \
         trigger word, and captions of a list, into that file",
        cut(theirs),
        cut(ours)
    ))
}

/// The caption that ai-toolkit has of a picture (`get_caption`): the whole file, with a space more behind each comma.
pub(super) fn ai_toolkit(set: &DatasetSettings, item: &Item) -> Result<String, String> {
    let text = beside(set, &item.picture)?.unwrap_or_default();
    // Python reads any line's end as one of `\n`.
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let spaced = |text: &str| text.split(',').collect::<Vec<_>>().join(", ");
    let mut caption = spaced(&text);
    let trigger = set.trigger.as_deref().unwrap_or_default().trim();
    for placeholder in ["[name]", "[trigger]"] {
        caption = caption.replace(placeholder, trigger);
    }
    if !trigger.is_empty() && !caption.contains(trigger) {
        caption = format!("{trigger} {caption}");
    }
    same(&caption, &spaced(&item.captions[0]), "ai-toolkit")?;
    Ok(caption)
}

/// The caption that SimpleTuner has of a picture (`prepare_instance_prompt_from_textfile`): the file's line, which must be one.
pub(super) fn simpletuner(set: &DatasetSettings, item: &Item) -> Result<String, String> {
    let text = beside(set, &item.picture)?;
    let text = text.ok_or("SimpleTuner reads captions of files beside the pictures alone")?;
    let lines: Vec<&str> = text.split('\n').filter(|line| !line.is_empty()).collect();
    let line = match (text.contains('\n'), lines.as_slice()) {
        (false, _) => text.as_str(),
        (true, [line]) => line,
        (true, []) => return Err("SimpleTuner takes no caption from an empty line".to_owned()),
        (true, _) => {
            let lines = lines.len();
            return Err(format!(
                "SimpleTuner takes each of the caption's {lines} lines as a caption of its own: join them"
            ));
        }
    };
    same(line, &item.captions[0], "SimpleTuner")?;
    Ok(line.to_owned())
}
