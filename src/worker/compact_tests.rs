use arrow_array::builder::{ListBuilder, MapBuilder, StringBuilder, StringViewBuilder};
use arrow_array::{
    Array as _, BinaryViewArray, Int32Array, Int64Array, LargeListViewArray, ListViewArray,
    RecordBatch, StringArray, StringViewArray,
};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{Field, UnionFields};

use super::*;

const ROWS: usize = 6400;
const SLICE: usize = 64;

fn text(n: usize) -> String {
    format!("a caption of more than twelve bytes, {n}")
}

fn texts() -> StringViewArray {
    (0..ROWS)
        .map(|n| (n % 7 != 3).then(|| text(n)))
        .collect::<StringViewArray>()
}

fn item(of: DataType) -> FieldRef {
    Arc::new(Field::new("item", of, true))
}

/// Two numbers a row, every fifth none, and those of the last row first.
fn lists() -> (Vec<usize>, Vec<usize>, ArrayRef) {
    let values = Int64Array::from_iter_values(0..2 * ROWS as i64);
    let size = |n: usize| if n.is_multiple_of(5) { 0 } else { 2 };
    (
        (0..ROWS).map(|n| 2 * (ROWS - 1 - n)).collect(),
        (0..ROWS).map(size).collect(),
        Arc::new(values),
    )
}

fn mixed() -> UnionArray {
    let fields = UnionFields::try_new(
        [3, 5],
        [
            Field::new("number", DataType::Int32, true),
            Field::new("text", DataType::Utf8View, true),
        ],
    );
    let (numbers, words) = ((0..ROWS / 2).map(|n| n as i32), texts().slice(0, ROWS / 2));
    let type_ids: Vec<i8> = (0..ROWS).map(|n| [3, 5][n % 2]).collect();
    let offsets: Vec<i32> = (0..ROWS).map(|n| n as i32 / 2).collect();
    let children: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from_iter_values(numbers)),
        Arc::new(words),
    ];
    let union = UnionArray::try_new(
        fields.expect("fields"),
        type_ids.into(),
        Some(offsets.into()),
        children,
    );
    union.expect("a union")
}

/// Each kind of column that lies whole behind its slices, alone and inside of others.
fn columns() -> Vec<ArrayRef> {
    let (offsets, sizes, values) = lists();
    let narrow = |list: &[usize]| list.iter().map(|n| *n as i32).collect::<Vec<_>>();
    let wide = |list: &[usize]| list.iter().map(|n| *n as i64).collect::<Vec<_>>();
    let number = || item(DataType::Int64);
    let small = ListViewArray::try_new(
        number(),
        narrow(&offsets).into(),
        narrow(&sizes).into(),
        values.clone(),
        None,
    );
    let large = LargeListViewArray::try_new(
        number(),
        wide(&offsets).into(),
        wide(&sizes).into(),
        values,
        None,
    );
    let bytes: BinaryViewArray = (0..ROWS).map(|n| Some(text(n).into_bytes())).collect();
    let inside = StructArray::from(vec![(
        Arc::new(Field::new("text", DataType::Utf8View, true)),
        Arc::new(texts()) as ArrayRef,
    )]);
    let mut nested = ListBuilder::new(StringViewBuilder::new());
    let mut maps = MapBuilder::new(None, StringBuilder::new(), StringViewBuilder::new());
    for n in 0..ROWS {
        nested.append_value([Some(text(n)), None]);
        maps.keys().append_value("key");
        maps.values().append_value(text(n));
        maps.append(n % 9 != 2).expect("an entry");
    }
    let pairs = FixedSizeListArray::try_new(item(DataType::Utf8View), 1, Arc::new(texts()), None);
    vec![
        Arc::new(texts()),
        Arc::new(bytes),
        Arc::new(small.expect("lists")),
        Arc::new(large.expect("lists")),
        Arc::new(mixed()),
        Arc::new(inside),
        Arc::new(nested.finish()),
        Arc::new(maps.finish()),
        Arc::new(pairs.expect("lists")),
    ]
}

fn written(column: &ArrayRef) -> usize {
    let field = Field::new("x", column.data_type().clone(), true);
    let schema = arrow_schema::Schema::new(vec![field]);
    let batch = RecordBatch::try_new(schema.into(), vec![column.clone()]).expect("a batch");
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).expect("a writer");
    writer.write(&batch).expect("written");
    writer.into_inner().expect("finished").len()
}

#[test]
fn the_slices_of_a_batch_have_the_same_rows_and_together_about_its_bytes() {
    for column in columns() {
        let whole = written(&column);
        let mut sum = 0;
        for start in (0..ROWS).step_by(SLICE) {
            let slice = column.slice(start, SLICE);
            let made = compact(&slice).expect("compact");
            assert_eq!(&made, &slice, "{}", column.data_type());
            made.to_data().validate_full().expect("sound");
            sum += written(&made);
        }
        let kind = column.data_type();
        // The description of each slice besides.
        assert!(
            sum < 2 * whole + ROWS / SLICE * 1000,
            "{kind}: {sum} of {whole}"
        );
    }
}

/// A stream may be anything: rows that all view the same bytes get no copies of them.
#[test]
fn nothing_grows_and_other_columns_are_as_they_were() {
    let long = "x".repeat(1 << 20);
    let mut builder = StringViewBuilder::new();
    let block = builder.append_block(long.into_bytes().into());
    for _ in 0..ROWS {
        builder.try_append_view(block, 0, 1 << 20).expect("a view");
    }
    let shared: ArrayRef = Arc::new(builder.finish());
    let made = compact(&shared).expect("compact");
    assert!(made.get_buffer_memory_size() < 2 << 20);
    let plain: ArrayRef = Arc::new(StringArray::from(vec!["a", "b"]));
    let same = compact(&plain).expect("compact");
    assert!(Arc::ptr_eq(&same, &plain));
}
