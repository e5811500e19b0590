//! Products of packed weights by one core, beside what its units for multiply-adds can do at most.
//!
//! `cargo bench -- products [f32 | bf16]` prints one table.

use candle_core::DType;
use plumb::nn::testing::{normal, peak::multiply_adds};
use plumb::nn::{Instructions, Kernels, Packed};

use crate::turns::{Elapsed, Failure, best_of, turns};

/// Rows, inputs and outputs: 8 captions of 77 tokens through CLIP-L's feed-forward, T5 base's, and CLIP-G's.
const SHAPES: [[usize; 3]; 5] = [
    [616, 768, 3072],
    [616, 3072, 768],
    [616, 768, 2048],
    [616, 2048, 768],
    [616, 1280, 5120],
];
/// Of multiply-adds, in a turn.
const STEPS: usize = 10_000_000;
/// Of a product, in a turn.
const TIMES: usize = 4;
const TURNS: usize = 9;

/// Of the numbers whose name contains `filter`.
pub(crate) fn run(filter: &str) -> Result<(), Failure> {
    let shapes = SHAPES.map(|[rows, inner, columns]| format!("{rows} x {inner} x {columns}"));
    println!(
        "GFLOP/s of one core, instructions {}; the best of {} turns, and the share of the first column",
        Instructions::used(),
        turns(TURNS)
    );
    println!("| numbers | multiply-adds alone | {} |", shapes.join(" | "));
    println!("|---|---|{}", "---|".repeat(SHAPES.len()));
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    let dtypes = [DType::F32, DType::BF16];
    for dtype in dtypes.into_iter().filter(|d| d.as_str().contains(filter)) {
        let told = one.install(|| measure(dtype))?;
        println!("| {} | {} |", dtype.as_str(), told.join(" | "));
    }
    Ok(())
}

/// The bound, and each product.
fn measure(dtype: DType) -> candle_core::Result<Vec<String>> {
    let gigaflops =
        |operations: usize, took: &Elapsed| operations as f64 / took.wall.as_secs_f64() * 1e-9;
    let alone = || multiply_adds(Instructions::used(), dtype, STEPS);
    let (took, operations) = best_of(turns(TURNS), alone);
    let most = operations.map(|operations| gigaflops(operations, &took));
    let mut told = vec![most.map_or("none".into(), |most| format!("{most:.0}"))];
    for [rows, inner, columns] in SHAPES {
        let x = normal(1, &[rows, inner]).to_dtype(DType::F32)?;
        let w = Packed::new(&normal(2, &[columns, inner]).to_dtype(dtype)?)?;
        let (took, done) = best_of(turns(TURNS), || {
            (0..TIMES).try_for_each(|_| w.linear(&Kernels::NONE, &x, None).map(drop))
        });
        done?;
        let found = gigaflops(2 * rows * inner * columns * TIMES, &took);
        let share = most.map_or(String::new(), |most| format!(" ({:.2})", found / most));
        told.push(format!("{found:.0}{share}"));
    }
    Ok(told)
}
