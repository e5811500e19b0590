//! Adapters on the parts of a fused module as one adapter on the whole, and back, without loss.
//!
//! Parts to whole: A of the parts below each other, B block-diagonal, so the rank is the sum of the ranks; alpha
//! grows with the rank, so alpha / rank stays. Parts that have one and the same A keep it, with their B below each
//! other. A part without an adapter gets rows of zeros in B.
//!
//! Whole to parts: where each column of B changes one part only, that part gets the columns and their rows of A;
//! otherwise each part gets all of A and its rows of B.

use super::Module;
use super::naming::FusedPart;
use crate::lora::file::Matrix;

/// One adapter named `name` for the whole of a module, from adapters of the parts.
///
/// # Errors
/// If a part's shape is not what the whole needs.
pub(super) fn fuse(name: String, parts: Vec<(FusedPart, Module)>) -> Result<Module, String> {
    let Some((first, sample)) = parts.first() else {
        return Err("no part of it has an adapter".to_owned());
    };
    let (units, row_shape) = (first.units, sample.a.shape[1..].to_vec());
    let complete = parts.len() == units.len();
    // All parts together tell how many outputs a unit has. Where some are missing it is taken to be the inputs.
    let unit = if complete {
        sample.b.rows() / units[first.index]
    } else {
        sample.a.row_len()
    };
    for (part, module) in &parts {
        let expected = (unit * units[part.index], &row_shape[..]);
        let found = (module.b.rows(), &module.a.shape[1..]);
        if found != expected {
            return Err(format!(
                "`{}` has {} outputs and {:?} inputs, expected {} and {:?} to be a part of `{name}`",
                module.name, found.0, found.1, expected.0, expected.1
            ));
        }
    }
    let outputs: Vec<usize> = units.iter().map(|count| count * unit).collect();
    let same = |m: &Module| m.a == sample.a && m.scale().to_bits() == sample.scale().to_bits();
    // Converters that split a fused module give every part the same A: one copy is enough, and the rank stays.
    let shared = complete && parts.iter().all(|(_, module)| same(module));
    let total: usize = outputs.iter().sum();
    let b_tail = sample.b.shape[2..].to_vec();
    let shape = |rows, columns, tail: &[usize]| [&[rows, columns], tail].concat();
    if shared {
        let rank = sample.rank();
        let alpha = sample.alpha;
        let a = sample.a.clone();
        let values = parts.into_iter().flat_map(|(_, m)| m.b.values).collect();
        let b = Matrix {
            shape: shape(total, rank, &b_tail),
            values,
        };
        return Ok(Module { name, a, b, alpha });
    }
    block_diagonal(name, parts, &outputs, (total, &row_shape, &b_tail))
}

/// `parts` in order, `outputs` of every part, and of the whole: outputs, dimensions of A's rows, of B after its columns.
fn block_diagonal(
    name: String,
    mut parts: Vec<(FusedPart, Module)>,
    outputs: &[usize],
    (total, row_shape, b_tail): (usize, &[usize], &[usize]),
) -> Result<Module, String> {
    // One alpha is for the whole, so where scales differ they go into the numbers.
    let scale = parts.first().map_or(1.0, |(_, module)| module.scale());
    let one_scale = parts.iter().all(|(_, module)| module.scale() == scale);
    let rank: usize = parts.iter().map(|(_, module)| module.rank()).sum();
    let mut a = Vec::new();
    let mut b = vec![0f32; total * rank];
    let mut column = 0;
    for (part, module) in &mut parts {
        if !one_scale {
            module.fold()?;
        }
        let start: usize = outputs[..part.index].iter().sum();
        let part_rank = module.rank();
        for (row, numbers) in module.b.values.chunks_exact(part_rank).enumerate() {
            let place = (start + row) * rank + column;
            b[place..place + part_rank].copy_from_slice(numbers);
        }
        a.append(&mut module.a.values);
        column += part_rank;
    }
    Ok(Module {
        name,
        a: Matrix {
            shape: [&[rank], row_shape].concat(),
            values: a,
        },
        b: Matrix {
            shape: [&[total, rank], b_tail].concat(),
            values: b,
        },
        alpha: if one_scale {
            scale * rank as f64
        } else {
            rank as f64
        },
    })
}

/// Adapters for the parts of a module, `names` in their order, from one of the whole. A part that the adapter does not
/// change gets none.
///
/// # Errors
/// If the outputs cannot be divided among the parts.
pub(super) fn split(
    whole: &Module,
    names: &[String],
    units: &[usize],
) -> Result<Vec<Module>, String> {
    let (outputs, all_units) = (whole.b.rows(), units.iter().sum::<usize>());
    if !outputs.is_multiple_of(all_units) {
        return Err(format!(
            "expected a multiple of {all_units} outputs, for {}, found {outputs}",
            names.join(", ")
        ));
    }
    let unit = outputs / all_units;
    let mut start = 0;
    let mut rows = Vec::new();
    for part in units {
        rows.push(start..start + part * unit);
        start += part * unit;
    }
    let rank = whole.rank();
    // The reverse of fusing where it can be told; otherwise every part gets a copy of A.
    let columns = owners(whole, &rows).map_or_else(
        || vec![(0..rank).collect(); units.len()],
        |owners| columns_of(&owners, units.len()),
    );
    let parts = names.iter().zip(rows).zip(columns);
    let mut modules = Vec::new();
    for ((name, rows), columns) in parts {
        if columns.is_empty() {
            continue;
        }
        let width = whole.a.row_len();
        let a = columns
            .iter()
            .flat_map(|&c: &usize| &whole.a.values[c * width..(c + 1) * width]);
        let b = rows
            .clone()
            .flat_map(|row| columns.iter().map(move |&c| row * rank + c));
        let reshaped = |matrix: &Matrix, dims: &[usize]| {
            let mut shape = matrix.shape.clone();
            shape[..dims.len()].copy_from_slice(dims);
            shape
        };
        modules.push(Module {
            name: name.clone(),
            a: Matrix {
                shape: reshaped(&whole.a, &[columns.len()]),
                values: a.copied().collect(),
            },
            b: Matrix {
                shape: reshaped(&whole.b, &[rows.len(), columns.len()]),
                values: b.map(|place| whole.b.values[place]).collect(),
            },
            alpha: whole.scale() * columns.len() as f64,
        });
    }
    Ok(modules)
}

/// The part that each column of B changes, `None` for one that is all zero; nothing if a column changes two parts, or
/// if all of B is zero, when A may still be worth keeping for every part.
fn owners(whole: &Module, rows: &[std::ops::Range<usize>]) -> Option<Vec<Option<usize>>> {
    let rank = whole.rank();
    let mut owners = vec![None; rank];
    for (part, rows) in rows.iter().enumerate() {
        for numbers in whole.b.values[rows.start * rank..rows.end * rank].chunks_exact(rank) {
            for (owner, &number) in owners.iter_mut().zip(numbers) {
                if number != 0.0 && *owner.get_or_insert(part) != part {
                    return None;
                }
            }
        }
    }
    owners.iter().any(Option::is_some).then_some(owners)
}

/// The columns of each part. Parts of equal rank are what trainers write, so that is tried first; otherwise a
/// column of zeros stays with the one before it.
fn columns_of(owners: &[Option<usize>], parts: usize) -> Vec<Vec<usize>> {
    let rank = owners.len();
    let chunk = rank / parts;
    let equal = rank.is_multiple_of(parts)
        && owners
            .iter()
            .enumerate()
            .all(|(column, owner)| owner.is_none_or(|owner| owner == column / chunk));
    let mut columns = vec![Vec::new(); parts];
    let mut last = owners.iter().flatten().next().copied().unwrap_or(0);
    for (column, owner) in owners.iter().enumerate() {
        last = owner.unwrap_or(last);
        let part = if equal { column / chunk } else { last };
        columns[part].push(column);
    }
    columns
}
