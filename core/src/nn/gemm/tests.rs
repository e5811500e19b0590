//! Products against sums in f64, and the promise that rows do not depend on each other, for our kernels and the crate.

use super::*;

pub(super) fn numbers(count: usize, salt: u32) -> Vec<f32> {
    let mut state = 12345u32.wrapping_add(salt);
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

type Kernel =
    fn(&mut MatrixMut<'_, f32>, Write, f32, Matrix<'_, f32>, Matrix<'_, f32>, Parallelism);

/// What serves this machine, and what serves those without matrix registers, without AVX-512, and without AVX2.
const KERNELS: [Kernel; 4] = [
    matmul,
    |c, write, scale, a, b, threads| {
        let most = Instructions::Avx512;
        matmul_with_row(most, c, write, scale, (a, b), None, threads);
    },
    |c, write, scale, a, b, threads| {
        let most = Instructions::Avx2;
        matmul_with_row(most, c, write, scale, (a, b), None, threads);
    },
    matmul_by_crate,
];

/// `0.5 + 0.5 a b`.
fn half_product(
    kernel: Kernel,
    (a, b): (&[f32], &[f32]),
    (rows, inner, columns): (usize, usize, usize),
    by_row: bool,
) -> Vec<f32> {
    let mut c = vec![0.5f32; rows * columns];
    let a = Matrix::new(a, rows, inner, inner);
    let b = if by_row {
        Matrix::new(b, inner, columns, columns)
    } else {
        Matrix::new(b, columns, inner, inner).t()
    };
    kernel(
        &mut MatrixMut::new(&mut c, rows, columns, columns),
        Write::Add,
        0.5,
        a,
        b,
        ALL,
    );
    c
}

/// Element (i, j) of the product of rows and, `by_row`, rows or columns.
fn element(
    (a, b): (&[f32], &[f32]),
    (inner, columns): (usize, usize),
    by_row: bool,
    (i, j): (usize, usize),
) -> f64 {
    let b = |k: usize| {
        b[if by_row {
            k * columns + j
        } else {
            j * inner + k
        }]
    };
    (0..inner)
        .map(|k| f64::from(a[i * inner + k]) * f64::from(b(k)))
        .sum()
}

const SHAPES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (3, 5, 7),
    (1, 700, 64),
    (65, 1030, 33),
    (7, 3, 300),
    (15, 385, 16),
    (14, 400, 17),
    (230, 16, 1300),
    (1, 128, 128),
    (17, 790, 145),
    (33, 161, 300),
    (420, 769, 130),
];

#[test]
fn a_product_equals_the_sum_of_products() {
    for (rows, inner, columns) in SHAPES {
        let (a, b) = (numbers(rows * inner, 1), numbers(inner * columns, 2));
        for (kernel, by_row) in KERNELS.iter().flat_map(|k| [(k, true), (k, false)]) {
            let c = half_product(*kernel, (&a, &b), (rows, inner, columns), by_row);
            for (index, &found) in c.iter().enumerate() {
                let at = (index / columns, index % columns);
                let want = 0.5 + 0.5 * element((&a, &b), (inner, columns), by_row, at);
                assert!((f64::from(found) - want).abs() < 1e-4, "{found} {want}");
            }
        }
    }
}

#[test]
fn a_transposed_left_factor_gives_the_same_bits() {
    for (rows, inner, columns) in SHAPES {
        let (a, b) = (numbers(rows * inner, 1), numbers(inner * columns, 2));
        let turned: Vec<f32> = (0..rows * inner)
            .map(|i| a[i % rows * inner + i / rows])
            .collect();
        let b = Matrix::new(&b, inner, columns, columns);
        let straight = Matrix::new(&a, rows, inner, inner);
        let turned = Matrix::new(&turned, inner, rows, rows).t();
        let plus = Plus {
            row: None,
            all: None,
        };
        assert_eq!(
            matmul_plus(1.0, straight, b, plus),
            matmul_plus(1.0, turned, b, plus)
        );
    }
}

#[test]
fn more_instructions_give_the_same_bits() {
    for (rows, inner, columns) in SHAPES {
        let (a, b) = (numbers(rows * inner, 1), numbers(inner * columns, 2));
        let (row, all) = (numbers(columns, 3), numbers(rows * columns, 4));
        for by_row in [true, false] {
            let left = Matrix::new(&a, rows, inner, inner);
            let right = match by_row {
                true => Matrix::new(&b, inner, columns, columns),
                false => Matrix::new(&b, columns, inner, inner).t(),
            };
            let plus = || Plus {
                row: Some(&*row),
                all: Some(&*all),
            };
            let by = |most| matmul_plus_within(most, 0.5, left, right, plus());
            assert_eq!(by(Instructions::Avx2), by(Instructions::Avx512));
        }
    }
}

#[test]
fn what_is_added_is_added_once() {
    for (rows, inner, columns) in SHAPES {
        let (a, b) = (numbers(rows * inner, 1), numbers(inner * columns, 2));
        let (row, all) = (numbers(columns, 3), numbers(rows * columns, 4));
        let views = || {
            (
                Matrix::new(&a, rows, inner, inner),
                Matrix::new(&b, inner, columns, columns),
            )
        };
        for (row, all) in [
            (None, None),
            (Some(&*row), None),
            (None, Some(&*all)),
            (Some(&*row), Some(&*all)),
        ] {
            let (a_view, b_view) = views();
            let found = matmul_plus(1.0, a_view, b_view, Plus { row, all });
            for (index, &found) in found.iter().enumerate() {
                let at = (index / columns, index % columns);
                let want = element((&a, &b), (inner, columns), true, at)
                    + row.map_or(0.0, |row| f64::from(row[at.1]))
                    + all.map_or(0.0, |all| f64::from(all[index]));
                assert!((f64::from(found) - want).abs() < 1e-4, "{found} {want}");
            }
        }
    }
}

#[test]
fn nothing_times_nothing_is_nothing() {
    let none: [f32; 0] = [];
    let plus = Plus {
        row: Some(&[1.0, 2.0][..]),
        all: None,
    };
    let (a, b) = (Matrix::new(&none, 3, 0, 0), Matrix::new(&none, 0, 2, 2));
    assert_eq!(matmul_plus(1.0, a, b, plus), [1.0, 2.0, 1.0, 2.0, 1.0, 2.0]);
    for kernel in KERNELS {
        let mut c = [7.0; 6];
        let target = &mut MatrixMut::new(&mut c, 3, 2, 2);
        kernel(target, Write::Replace, 1.0, a, b, ALL);
        assert_eq!(c, [0.0; 6]);
    }
}

#[test]
fn elements_outside_the_result_are_left_alone() {
    let (a, b) = (numbers(20 * 30, 1), numbers(30 * 21, 2));
    for kernel in KERNELS {
        let mut c = vec![9.0f32; 20 * 40];
        let (a, b) = (Matrix::new(&a, 20, 30, 30), Matrix::new(&b, 30, 21, 21));
        let target = &mut MatrixMut::new(&mut c, 20, 21, 40);
        kernel(target, Write::Replace, 1.0, a, b, ALL);
        for row in c.chunks(40) {
            assert!(row[21..].iter().all(|&x| x == 9.0));
            assert!(row[..21].iter().all(|&x| x != 9.0));
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_number_of_rows() {
    for inner in [1, 2, 3, 64, 511, 513, 768, 1500, 4096] {
        for columns in [1, 3, 16, 63, 64, 65, 128, 200, 321] {
            let most = 97;
            let (a, b) = (numbers(most * inner, 3), numbers(inner * columns, 4));
            for (kernel, by_row) in KERNELS.iter().flat_map(|k| [(k, true), (k, false)]) {
                let all = half_product(*kernel, (&a, &b), (most, inner, columns), by_row);
                for rows in [1, 2, 3, 5, 17, 64, 65, 90] {
                    let some = (&a[..rows * inner], &*b);
                    let some = half_product(*kernel, some, (rows, inner, columns), by_row);
                    assert!(
                        some == all[..rows * columns],
                        "{rows} rows, inner {inner}, {columns} columns, by row {by_row}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    for (rows, inner, columns) in [(331, 777, 130), (40, 500, 2000), (3000, 20, 70)] {
        let (a, b) = (numbers(rows * inner, 5), numbers(inner * columns, 6));
        for kernel in KERNELS {
            let with = |threads| {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .unwrap();
                pool.install(|| half_product(kernel, (&a, &b), (rows, inner, columns), false))
            };
            let one = with(1);
            for threads in [2, 3, 5, 8] {
                assert!(with(threads) == one, "{threads} threads");
            }
        }
    }
}

#[test]
fn numbers_near_the_largest_stay_finite_and_what_is_not_finite_stays_so() {
    let inner = 130;
    for kernel in KERNELS {
        for (x, is_right) in [
            (f32::MAX, (|x| x == f32::MAX) as fn(f32) -> bool),
            (f32::MIN, |x| x == f32::MIN),
            (f32::INFINITY, |x| !x.is_finite()),
            (f32::NEG_INFINITY, |x| !x.is_finite()),
            (f32::NAN, f32::is_nan),
            (f32::from_bits(0x7fff_ffff), f32::is_nan),
            (f32::from_bits(0xff80_0001), f32::is_nan),
        ] {
            for is_left in [true, false] {
                let (mut a, mut b) = (vec![0.0; 2 * inner], vec![0.0; inner * inner]);
                let (one, other) = match is_left {
                    true => (&mut a, &mut b),
                    false => (&mut b, &mut a),
                };
                one[7] = x;
                other[7] = 1.0;
                let mut c = vec![9.0; 2 * inner];
                let target = &mut MatrixMut::new(&mut c, 2, inner, inner);
                let left = Matrix::new(&a, 2, inner, inner);
                let right = Matrix::new(&b, inner, inner, inner).t();
                kernel(target, Write::Replace, 1.0, left, right, ALL);
                assert!(is_right(c[0]), "{x} gave {}", c[0]);
                let others = if is_left { &c[inner..] } else { &c[1..inner] };
                assert!(others.iter().all(|&x| x == 0.0), "beside {x}");
            }
        }
    }
}
