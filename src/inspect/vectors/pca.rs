//! Principal components: the plane in which a table's rows are spread most.
//!
//! The covariance (width x width, 134 MB for T5-XXL) is never formed. Its products with a few vectors, each one pass over the rows,
//! span a block Krylov space, and the covariance projected into that space gives the components (Rayleigh-Ritz; Musco and Musco,
//! "Randomized Block Krylov Methods for Stronger and Faster Approximate Singular Value Decomposition", arXiv:1504.05477). The space
//! grows until both components have settled. The start is drawn from a fixed seed, sums are in f64 and in a fixed order: the same
//! rows give the same plane on any number of cores.

use rayon::prelude::{
    IndexedParallelIterator as _, IntoParallelIterator as _, ParallelIterator as _,
    ParallelSliceMut as _,
};
use serde::Serialize;

use super::super::Error;
use super::Rows;
use crate::digest::Digest;
use crate::rng::Rng;

/// Vectors that the space grows by.
const BLOCK: usize = 4;
/// The most passes over the rows: enough for a relative gap of 1 % between components.
const MOST_STEPS: usize = 40;
/// How far a component may be from settled: the residual's norm, relative to the largest variance.
const TOLERANCE: f64 = 1e-7;
/// A direction of which less than this is left after those before it were taken away is none.
const NEGLIGIBLE: f64 = 1e-10;
/// Columns of a product that one thread sums.
const COLUMNS: usize = 128;

/// The plane of the first two principal components, with the rows in it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plane {
    /// A point for each row, relative to the mean of all.
    pub points: Vec<[f64; 2]>,
    /// The part of the total variance that each axis has, in [0, 1].
    pub explained: [f64; 2],
    /// The directions of the axes, unit vectors; of each, the number that is largest without its sign is positive. Zeros where
    /// the rows have no such extent.
    #[serde(skip)]
    pub axes: [Vec<f64>; 2],
}

/// The plane of `rows`.
///
/// # Errors
/// If the rows cannot be read back.
pub fn plane(rows: &mut Rows) -> Result<Plane, Error> {
    let (mean, total) = moments(rows)?;
    let width = rows.width();
    let mut axes = [vec![0.0; width], vec![0.0; width]];
    let mut explained = [0.0; 2];
    if total > 0.0 {
        let found = components(rows, &mean, total)?;
        for (n, (variance, axis)) in found.into_iter().take(2).enumerate() {
            explained[n] = (variance / total).clamp(0.0, 1.0);
            axes[n] = with_fixed_sign(axis);
        }
    }
    let mut points = Vec::with_capacity(rows.len());
    rows.for_each_block(|_, block| {
        let row_points: Vec<[f64; 2]> = block
            .chunks_exact(width)
            .collect::<Vec<_>>()
            .into_par_iter()
            .map(|row| [0, 1].map(|n| project(row, &mean, &axes[n])))
            .collect();
        points.extend(row_points);
        Ok(())
    })?;
    Ok(Plane {
        points,
        explained,
        axes,
    })
}

/// The mean of the rows, and the sum over columns of the variances.
fn moments(rows: &mut Rows) -> Result<(Vec<f64>, f64), Error> {
    let (width, count) = (rows.width(), rows.len().max(1) as f64);
    let mut mean = vec![0.0; width];
    rows.for_each_block(|_, block| {
        for row in block.chunks_exact(width) {
            for (sum, value) in mean.iter_mut().zip(row) {
                *sum += f64::from(*value);
            }
        }
        Ok(())
    })?;
    for sum in &mut mean {
        *sum /= count;
    }
    let mut total = 0.0;
    let mut scale: f64 = 0.0;
    rows.for_each_block(|_, block| {
        for row in block.chunks_exact(width) {
            for (value, mean) in row.iter().zip(&mean) {
                total += (f64::from(*value) - mean).powi(2);
                scale = scale.max(f64::from(*value).abs());
            }
        }
        Ok(())
    })?;
    let total = total / count;
    // Of equal rows, only the rounding of their mean is left.
    let rounding = (scale * f64::EPSILON * count.sqrt()).powi(2) * width as f64;
    Ok((mean, if total <= rounding { 0.0 } else { total }))
}

/// Components with their variances, the largest first.
fn components(rows: &mut Rows, mean: &[f64], total: f64) -> Result<Vec<(f64, Vec<f64>)>, Error> {
    let width = rows.width();
    // The space's basis, and the covariance's products with it.
    let (mut basis, mut products): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (Vec::new(), Vec::new());
    let mut rng = Rng::with_key(*Digest::of(b"plumb principal components 1").as_bytes());
    let random = (0..BLOCK).map(|_| rng.normals(width).into_iter().map(f64::from).collect());
    let mut next: Vec<Vec<f64>> = random.collect();
    let mut found = Vec::new();
    for _ in 0..MOST_STEPS {
        let fresh = orthonormal(&basis, next);
        if fresh.is_empty() {
            break;
        }
        let made = multiply(rows, mean, &fresh)?;
        basis.extend(fresh);
        products.extend(made.clone());
        next = made;
        found = ritz(&basis, &products);
        let wanted = found.iter().take(2);
        let settled = wanted
            .map(|(variance, axis, product)| residual(*variance, axis, product))
            .all(|left| left <= TOLERANCE * total);
        if found.len() >= 2 && settled {
            break;
        }
    }
    let found = found.into_iter();
    // A direction without variance is none: its axis would be noise.
    let found = found.filter(|(variance, ..)| *variance > NEGLIGIBLE * total);
    Ok(found.map(|(variance, axis, _)| (variance, axis)).collect())
}

/// The vectors made orthogonal to the basis and to each other, and of length 1; those that lie in the others' span are left out.
fn orthonormal(basis: &[Vec<f64>], vectors: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let mut fresh: Vec<Vec<f64>> = Vec::new();
    for mut vector in vectors {
        let before = dot(&vector, &vector).sqrt();
        // Twice: what rounding leaves of the first time, the second takes away.
        for _ in 0..2 {
            for known in basis.iter().chain(&fresh) {
                let part = dot(&vector, known);
                vector
                    .iter_mut()
                    .zip(known)
                    .for_each(|(v, k)| *v -= part * k);
            }
        }
        let left = dot(&vector, &vector).sqrt();
        if left > NEGLIGIBLE * before && left.is_finite() {
            for v in &mut vector {
                *v /= left;
            }
            fresh.push(vector);
        }
    }
    fresh
}

/// The covariance's products with some vectors: one pass over the rows.
fn multiply(rows: &mut Rows, mean: &[f64], vectors: &[Vec<f64>]) -> Result<Vec<Vec<f64>>, Error> {
    let (width, count, wide) = (rows.width(), rows.len() as f64, vectors.len());
    // Column by column, the vectors' numbers side by side.
    let mut sums = vec![0.0; width * wide];
    rows.for_each_block(|_, block| {
        let block: Vec<&[f32]> = block.chunks_exact(width).collect();
        let scores: Vec<Vec<f64>> = (block.clone().into_par_iter())
            .map(|row| vectors.iter().map(|v| project(row, mean, v)).collect())
            .collect();
        // Each thread has some columns, and takes the rows in their order.
        let columns = sums.par_chunks_mut(COLUMNS * wide);
        columns.enumerate().for_each(|(n, sums)| {
            let first = n * COLUMNS;
            for (row, scores) in block.iter().zip(&scores) {
                for (c, sums) in sums.chunks_exact_mut(wide).enumerate() {
                    let value = f64::from(row[first + c]) - mean[first + c];
                    sums.iter_mut()
                        .zip(scores)
                        .for_each(|(sum, s)| *sum += value * s);
                }
            }
        });
        Ok(())
    })?;
    let column = |n: usize| sums.iter().skip(n).step_by(wide).map(|sum| sum / count);
    Ok((0..wide).map(|n| column(n).collect()).collect())
}

/// Variance, axis, and the covariance's product with the axis, for each direction of the space, the largest variance first.
fn ritz(basis: &[Vec<f64>], products: &[Vec<f64>]) -> Vec<(f64, Vec<f64>, Vec<f64>)> {
    let small: Vec<Vec<f64>> = basis
        .iter()
        .map(|b| products.iter().map(|p| dot(b, p)).collect())
        .collect();
    let combine = |vectors: &[Vec<f64>], weights: &[f64]| {
        let mut sum = vec![0.0; vectors[0].len()];
        for (vector, weight) in vectors.iter().zip(weights) {
            sum.iter_mut()
                .zip(vector)
                .for_each(|(s, v)| *s += weight * v);
        }
        sum
    };
    // Only the first two are ever used.
    let pairs = symmetric_eigen(small).into_iter().take(2);
    pairs
        .map(|(value, weights)| (value, combine(basis, &weights), combine(products, &weights)))
        .collect()
}

fn residual(variance: f64, axis: &[f64], product: &[f64]) -> f64 {
    let differences = product.iter().zip(axis).map(|(p, a)| p - variance * a);
    differences.map(|d| d * d).sum::<f64>().sqrt()
}

/// Eigenvalues, the largest first, with their vectors, of a small symmetric matrix: Jacobi's rotations.
fn symmetric_eigen(mut a: Vec<Vec<f64>>) -> Vec<(f64, Vec<f64>)> {
    const SWEEPS: usize = 60;
    let n = a.len();
    let mut vectors: Vec<Vec<f64>> = (0..n)
        .map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect())
        .collect();
    let scale: f64 = a.iter().flatten().map(|x| x * x).sum::<f64>().sqrt();
    for _ in 0..SWEEPS {
        let mut off = 0.0;
        for p in 0..n {
            for q in p + 1..n {
                off += a[p][q] * a[p][q];
                rotate(&mut a, &mut vectors, p, q);
            }
        }
        if off.sqrt() <= f64::EPSILON * scale {
            break;
        }
    }
    let mut pairs: Vec<(f64, Vec<f64>)> = (0..n).map(|i| (a[i][i], vectors[i].clone())).collect();
    pairs.sort_by(|x, y| y.0.total_cmp(&x.0));
    pairs
}

/// Turns the plane of `p` and `q` so that their off-diagonal element vanishes.
fn rotate(a: &mut [Vec<f64>], vectors: &mut [Vec<f64>], p: usize, q: usize) {
    if a[p][q] == 0.0 {
        return;
    }
    let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
    let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
    let c = 1.0 / t.hypot(1.0);
    let s = t * c;
    for row in a.iter_mut() {
        let (x, y) = (row[p], row[q]);
        (row[p], row[q]) = (c * x - s * y, s * x + c * y);
    }
    turn_rows(a, p, q, (c, s));
    turn_rows(vectors, p, q, (c, s));
}

fn turn_rows(matrix: &mut [Vec<f64>], p: usize, q: usize, (c, s): (f64, f64)) {
    // `p` is the smaller.
    let (head, tail) = matrix.split_at_mut(q);
    for (x, y) in head[p].iter_mut().zip(&mut tail[0]) {
        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    }
}

fn with_fixed_sign(axis: Vec<f64>) -> Vec<f64> {
    let largest = axis
        .iter()
        .fold(0.0f64, |most, v| match v.abs() > most.abs() {
            true => *v,
            false => most,
        });
    match largest < 0.0 {
        true => axis.into_iter().map(|v| -v).collect(),
        false => axis,
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn project(row: &[f32], mean: &[f64], axis: &[f64]) -> f64 {
    let centred = row
        .iter()
        .zip(mean)
        .map(|(value, mean)| f64::from(*value) - mean);
    centred.zip(axis).map(|(value, axis)| value * axis).sum()
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, dot, plane, symmetric_eigen};
    use crate::inspect::vectors::Rows;
    use crate::rng::{Rng, Stream};

    fn rows(table: &[Vec<f32>]) -> Rows {
        let mut rows = Rows::default();
        for row in table {
            rows.push(row).expect("room");
        }
        rows
    }

    fn table(count: usize, width: usize, scale: impl Fn(usize) -> f32) -> Vec<Vec<f32>> {
        let row = |n| {
            let drawn = Rng::new(3, Stream::Noise, 0, n as u64).normals(width);
            let scaled = drawn.iter().enumerate().map(|(c, v)| 5.0 + v * scale(c));
            scaled.collect()
        };
        (0..count).map(row).collect()
    }

    /// The same by the covariance matrix itself.
    fn dense(table: &[Vec<f32>]) -> (Vec<(f64, Vec<f64>)>, f64) {
        let (count, width) = (table.len() as f64, table[0].len());
        let mean = |c: usize| table.iter().map(|r| f64::from(r[c])).sum::<f64>() / count;
        let mean: Vec<f64> = (0..width).map(mean).collect();
        let at = |r: &[f32], c: usize| f64::from(r[c]) - mean[c];
        let cell = |i, j| table.iter().map(|r| at(r, i) * at(r, j)).sum::<f64>() / count;
        let matrix: Vec<Vec<f64>> = (0..width)
            .map(|i| (0..width).map(|j| cell(i, j)).collect())
            .collect();
        let total = (0..width).map(|i| matrix[i][i]).sum();
        (symmetric_eigen(matrix), total)
    }

    #[test]
    fn components_are_those_of_the_whole_covariance() {
        // Wide and narrow, far apart and close together.
        let spread = |c: usize| 1.0 / (1.0 + c as f32);
        let close = |c: usize| 1.0 + 0.02 * c as f32;
        let cases = [
            table(40, 30, spread),
            table(12, 70, spread),
            table(200, 40, close),
            table(3, 2, spread),
        ];
        for table in cases {
            let found = plane(&mut rows(&table)).expect("readable");
            let (wanted, total) = dense(&table);
            for n in 0..2 {
                let (variance, axis) = &wanted[n];
                assert!((found.explained[n] - variance / total).abs() < 1e-9);
                let cosine = dot(axis, &found.axes[n]).abs();
                assert!(cosine > 1.0 - 1e-9, "{} axis {n}: {cosine}", table.len());
                let mean_square =
                    found.points.iter().map(|p| p[n] * p[n]).sum::<f64>() / table.len() as f64;
                assert!((mean_square / variance - 1.0).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn signs_are_fixed_and_the_same_rows_give_the_same_plane() {
        let table = table(50, 20, |c| 1.0 + c as f32);
        let first = plane(&mut rows(&table)).expect("readable");
        assert_eq!(first, plane(&mut rows(&table)).expect("readable"));
        for axis in &first.axes {
            let largest = axis
                .iter()
                .copied()
                .fold(0.0, |m: f64, v| if v.abs() > m.abs() { v } else { m });
            assert!(largest > 0.0);
        }
        let one = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .expect("a pool");
        assert_eq!(
            first,
            one.install(|| plane(&mut rows(&table)).expect("readable"))
        );
    }

    #[test]
    fn rows_without_extent_have_points_at_zero() {
        for table in [
            vec![],
            vec![vec![1.0, 2.0, 3.0]],
            vec![vec![0.1; 300]; BLOCK + 5],
        ] {
            let found = plane(&mut rows(&table)).expect("readable");
            assert_eq!(found.points, vec![[0.0; 2]; table.len()]);
            assert_eq!(found.explained, [0.0; 2]);
        }
        let line: Vec<Vec<f32>> = (0..9)
            .map(|n| vec![n as f32, 2.0 * n as f32, 1.0])
            .collect();
        let found = plane(&mut rows(&line)).expect("readable");
        assert!((found.explained[0] - 1.0).abs() < 1e-12 && found.explained[1] == 0.0);
        assert!(found.points.iter().all(|p| p[1] == 0.0));
        let step = found.points[1][0] - found.points[0][0];
        assert!((step - 5f64.sqrt()).abs() < 1e-6, "{step}");
    }
}
