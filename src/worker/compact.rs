//! Columns without what their rows do not use. Arrow's writer cuts most kinds of columns to their rows; of views, of lists by views
//! and of unions it writes all that lies behind them, which for slices of one batch is the whole of it each time.

use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::ByteViewType;
use arrow_array::{
    Array as _, ArrayRef, FixedSizeListArray, GenericByteViewArray, GenericListArray,
    GenericListViewArray, MapArray, OffsetSizeTrait, StructArray, UnionArray,
};
use arrow_buffer::{OffsetBuffer, ScalarBuffer};
use arrow_schema::{ArrowError, DataType, FieldRef};

/// The same rows, with what they use alone behind them.
///
/// # Errors
/// If the parts do not fit each other.
pub(super) fn compact(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let (nulls, length) = (column.nulls().cloned(), column.len());
    Ok(match column.data_type() {
        other if !is_whole(other) => column.clone(),
        DataType::Utf8View => views(column.as_string_view()),
        DataType::BinaryView => views(column.as_binary_view()),
        DataType::ListView(item) => list_view::<i32>(column, item)?,
        DataType::LargeListView(item) => list_view::<i64>(column, item)?,
        DataType::List(item) => list::<i32>(column, item)?,
        DataType::LargeList(item) => list::<i64>(column, item)?,
        DataType::FixedSizeList(item, size) => {
            let values = compact(column.as_fixed_size_list().values())?;
            let item = item.clone();
            Arc::new(FixedSizeListArray::try_new_with_length(
                item, *size, values, nulls, length,
            )?)
        }
        DataType::Struct(fields) => {
            let columns = column.as_struct().columns().iter().map(compact);
            let (fields, columns) = (fields.clone(), columns.collect::<Result<_, _>>()?);
            Arc::new(StructArray::try_new_with_length(
                fields, columns, nulls, length,
            )?)
        }
        DataType::Map(field, sorted) => {
            let map = column.as_map();
            let (entries, offsets) = used(&(Arc::new(map.entries().clone()) as _), map.offsets())?;
            let entries = entries.as_struct().clone();
            Arc::new(MapArray::try_new(
                field.clone(),
                offsets,
                entries,
                nulls,
                *sorted,
            )?)
        }
        DataType::Union(..) => union(column.as_union())?,
        _ => column.clone(),
    })
}

/// Whether Arrow's writer writes more of a slice than its rows.
fn is_whole(of: &DataType) -> bool {
    match of {
        DataType::Utf8View
        | DataType::BinaryView
        | DataType::ListView(_)
        | DataType::LargeListView(_)
        | DataType::Union(..) => true,
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _) => is_whole(item.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| is_whole(field.data_type())),
        _ => false,
    }
}

fn views<T: ByteViewType>(column: &GenericByteViewArray<T>) -> ArrayRef {
    let there: usize = column.data_buffers().iter().map(|b| b.len()).sum();
    // Many rows may view the same bytes, of which each would get its own: more than came, and without end.
    match column.total_buffer_bytes_used() < there {
        true => Arc::new(column.gc()),
        false => Arc::new(column.clone()),
    }
}

fn list<O: OffsetSizeTrait>(column: &ArrayRef, item: &FieldRef) -> Result<ArrayRef, ArrowError> {
    let lists = column.as_list::<O>();
    let (values, offsets) = used(lists.values(), lists.offsets())?;
    let nulls = lists.nulls().cloned();
    let made = GenericListArray::try_new(item.clone(), offsets, values, nulls)?;
    Ok(Arc::new(made))
}

/// The values between the first offset and the last, and the offsets in these.
fn used<O: OffsetSizeTrait>(
    values: &ArrayRef,
    offsets: &OffsetBuffer<O>,
) -> Result<(ArrayRef, OffsetBuffer<O>), ArrowError> {
    let first = offsets.first().as_usize();
    let last = offsets.last().as_usize();
    let lengths: Vec<usize> = offsets.lengths().collect();
    let values = compact(&values.slice(first, last - first))?;
    Ok((values, OffsetBuffer::from_lengths(lengths)))
}

fn list_view<O: OffsetSizeTrait>(
    column: &ArrayRef,
    item: &FieldRef,
) -> Result<ArrayRef, ArrowError> {
    let lists: &GenericListViewArray<O> = column.as_list_view();
    let places = || {
        let places = lists.offsets().iter().zip(lists.sizes());
        places.map(|(offset, size)| (offset.as_usize(), size.as_usize()))
    };
    let filled = || places().filter(|(_, size)| *size > 0);
    let first = filled().map(|(offset, _)| offset).min().unwrap_or(0);
    let end = filled().map(|(offset, size)| offset + size).max();
    let values = lists.values().slice(first, end.unwrap_or(first) - first);
    // Where an empty list lies is of no matter.
    let offset = |(offset, size): (usize, usize)| match size {
        0 => O::usize_as(0),
        _ => O::usize_as(offset - first),
    };
    let made = GenericListViewArray::try_new(
        item.clone(),
        places().map(offset).collect::<Vec<_>>().into(),
        lists.sizes().clone(),
        compact(&values)?,
        lists.nulls().cloned(),
    )?;
    Ok(Arc::new(made))
}

fn union(column: &UnionArray) -> Result<ArrayRef, ArrowError> {
    let (fields, type_ids, offsets, mut children) = column.clone().into_parts();
    let mut offsets = offsets.map(|offsets| offsets.to_vec());
    if let Some(offsets) = &mut offsets {
        for ((id, _), child) in fields.iter().zip(&mut children) {
            let of_child = || (type_ids.iter()).enumerate().filter(|(_, of)| **of == id);
            let first = of_child().map(|(row, _)| offsets[row]).min().unwrap_or(0);
            let end = of_child().map(|(row, _)| offsets[row] + 1).max();
            let length = end.unwrap_or(first) - first;
            *child = child.slice(first as usize, length as usize);
            for (row, _) in of_child() {
                offsets[row] -= first;
            }
        }
    }
    let children = children.iter().map(compact).collect::<Result<_, _>>()?;
    let offsets = offsets.map(ScalarBuffer::from);
    Ok(Arc::new(UnionArray::try_new(
        fields, type_ids, offsets, children,
    )?))
}

#[cfg(test)]
#[path = "compact_tests.rs"]
mod tests;
