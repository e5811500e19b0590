//! On how many processes a run computes. The trainers' batch size is that of one of them, and a step has the samples of all; plumb's
//! step has the same samples on any number, so that they become micro-batches.

use super::convert::whole_number;
use super::draft::Draft;
use super::knowledge::{Status, flag};
use super::report::Row;
use super::setting::Setting;
use super::tree::Value;
use crate::shown;

/// The field that takes them.
const FIELD: &str = "train.gradient_accumulation";

/// Multiplies the micro-batches of a step by the number of processes, where the settings say one; where they leave it to the machine, a
/// note says so. Each setting's row has its place in `settings`.
pub(super) fn apply(
    settings: &[Setting],
    draft: &mut Draft,
    rows: &mut [Row],
    notes: &mut Vec<String>,
) {
    let Some(told) = told(settings) else {
        return;
    };
    let place = shown::text(&settings[told.setting].place).to_string();
    match told.count {
        Some(count) if count > 1 => {
            draft.multiply(FIELD, count, told.setting, &place);
            if let Some(row) = rows.get_mut(told.setting) {
                row.status = Status::Effective;
                row.why = Some(format!(
                    "each of {count} processes has the batch size, and a step the samples of all: {FIELD} is {count} times as much"
                ));
            }
        }
        Some(_) => {}
        None => notes.push(format!(
            "`{place}` does not say on how many GPUs it runs: where there are several, multiply {FIELD} by them, as each has the batch size"
        )),
    }
}

/// How many processes there are, `None` where the machine decides, and the setting that says so.
struct Told {
    count: Option<i64>,
    setting: usize,
}

fn told(settings: &[Setting]) -> Option<Told> {
    let find = |scope: &str, name: &str| {
        let all = settings.iter().enumerate();
        let of_name = all.filter(|(_, s)| s.scope == scope && s.name == name);
        of_name.max_by_key(|(n, s)| (s.rank, *n))
    };
    // accelerate's and SimpleTuner's count those of all machines.
    let whole = [("launcher", "num_processes"), ("options", "num_processes")];
    if let Some((setting, found)) = whole.iter().find_map(|(scope, name)| find(scope, name)) {
        let count = whole_number(&found.value);
        return Some(Told { count, setting });
    }
    // torchrun's and deepspeed's those of each.
    let of_each = [("nproc_per_node", "nnodes"), ("num_gpus", "num_nodes")];
    for (name, nodes) in of_each {
        let Some((setting, found)) = find("launcher", name) else {
            continue;
        };
        let nodes = find("launcher", nodes).map_or(Some(1), |(_, s)| whole_number(&s.value));
        let count = whole_number(&found.value).zip(nodes);
        return Some(Told {
            count: count.and_then(|(each, nodes)| each.checked_mul(nodes)),
            setting,
        });
    }
    let is_on = |found: &(usize, &Setting)| flag(&found.1.value) == Some(true);
    if let Some((setting, _)) = find("launcher", "multi_gpu").filter(is_on) {
        let count = None;
        return Some(Told { count, setting });
    }
    // OneTrainer's list of GPUs; an empty one is all of them.
    let (multi, _) = find("config", "multi_gpu").filter(is_on)?;
    let listed = find("config", "device_indexes").and_then(|(setting, found)| {
        let list = match &found.value {
            Value::Text(text) => text.clone(),
            Value::Integer(_) => "one".to_owned(),
            _ => return None,
        };
        let count = list.split(',').filter(|part| !part.trim().is_empty());
        let count = i64::try_from(count.count())
            .ok()
            .filter(|count| *count > 0)?;
        Some((setting, count))
    });
    Some(match listed {
        Some((setting, count)) => Told {
            count: Some(count),
            setting,
        },
        None => Told {
            count: None,
            setting: multi,
        },
    })
}
