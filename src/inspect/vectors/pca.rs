//! Principal components: the plane in which a table's rows are spread most.
//!
//! The largest eigenvectors of the rows' covariance, by a block Lanczos iteration that begins anew from its best vectors when its space
//! is full (thick restarts; Wu and Simon, SIAM J. Matrix Anal. Appl. 22, 2000). Where there are more rows than columns the covariance is
//! summed once, over one pass; otherwise, and for very wide rows, each product with it is a pass. Products are of f32, a block of
//! rows at a time; their sums, the iteration and the points are f64. The same rows give the same plane on any number of cores.

use rayon::prelude::{
    IndexedParallelIterator as _, ParallelIterator as _, ParallelSlice as _, ParallelSliceMut as _,
};
use serde::Serialize;

use super::super::Error;
use super::Rows;
use crate::digest::Digest;
use crate::nn::gemm::{ALL, ALONE, Matrix, MatrixMut, Write, matmul};
use crate::rng::Rng;

/// Vectors that the space grows by.
const BLOCK: usize = 4;
/// Vectors that the space has when it is full.
const FULL: usize = 8 * BLOCK;
/// Those that a full space begins anew from.
const KEPT: usize = 3 * BLOCK;
/// The most products of a block of vectors with a covariance that is in memory: enough where components lie 0.1 % apart.
const MOST_PRODUCTS: usize = 400;
/// The most where each is a pass over the rows.
const MOST_PASSES: usize = 40;
/// The widest rows whose covariance is held in memory: 128 MiB.
const WIDEST: usize = 4096;
/// How far a component may be from settled: the residual's norm, relative to the largest variance.
const TOLERANCE: f64 = 1e-6;
/// A direction of which less than this is left after those before it were taken away is none.
const NEGLIGIBLE: f64 = 1e-10;
/// Rows whose products are summed in f32.
const PIECE: usize = 1024;
/// Columns of the covariance that one thread sums at a time.
const STRIP: usize = 128;
/// Sums that a dot product is made of, so that the processor adds several at once.
const LANES: usize = 8;

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
    if rows.is_empty() {
        return Ok(turned(Vec::new(), Vec::new(), 0.0));
    }
    let (mean, largest) = mean(rows)?;
    let axes = match rows.len() > rows.width() && rows.width() <= WIDEST {
        true => components(&mut Covariance::whole(rows, &mean)?)?,
        false => components(&mut Covariance::OfRows(rows, &mean))?,
    };
    let (points, total) = project(rows, &mean, &axes)?;
    // Of equal rows, only the rounding of their mean is left.
    let count = points.len().max(1) as f64;
    let rounding = (largest * f64::EPSILON * count.sqrt()).powi(2) * mean.len() as f64;
    Ok(turned(
        points,
        axes,
        if total <= rounding { 0.0 } else { total },
    ))
}

/// The mean of the rows, and the number in them that is largest without its sign.
fn mean(rows: &mut Rows) -> Result<(Vec<f64>, f64), Error> {
    let (width, count) = (rows.width(), rows.len().max(1) as f64);
    let (mut mean, mut largest) = (vec![0.0; width], 0f32);
    rows.for_each_block(|_, block| {
        for row in block.chunks_exact(width) {
            for (sum, value) in mean.iter_mut().zip(row) {
                *sum += f64::from(*value);
            }
            largest = row
                .iter()
                .fold(largest, |most, value| most.max(value.abs()));
        }
        Ok(())
    })?;
    for sum in &mut mean {
        *sum /= count;
    }
    Ok((mean, largest.into()))
}

/// The covariance of some rows.
enum Covariance<'a> {
    /// All of it, [width, width].
    Whole(Vec<f64>, usize),
    /// Not held: the rows and their mean, of which it is made.
    OfRows(&'a mut Rows, &'a [f64]),
}

impl Covariance<'_> {
    /// One pass over the rows.
    fn whole(rows: &mut Rows, mean: &[f64]) -> Result<Self, Error> {
        let (width, count) = (rows.width(), rows.len() as f64);
        let mut sums = vec![0.0; width * width];
        for_each_centred(rows, mean, |block| {
            let block = Matrix::new(block, block.len() / width, width, width);
            let strips = sums.par_chunks_mut(STRIP * width).enumerate();
            strips.for_each(|(n, sums)| add_strip(sums, block, n * STRIP, width));
        })?;
        // The other half is the same.
        for i in 0..width {
            for j in i..width {
                let value = sums[i * width + j] / count;
                (sums[i * width + j], sums[j * width + i]) = (value, value);
            }
        }
        Ok(Self::Whole(sums, width))
    }

    fn width(&self) -> usize {
        match self {
            Self::Whole(_, width) => *width,
            Self::OfRows(rows, _) => rows.width(),
        }
    }

    fn most_products(&self) -> usize {
        match self {
            Self::Whole(..) => MOST_PRODUCTS,
            Self::OfRows(..) => MOST_PASSES,
        }
    }

    /// Its products with some vectors.
    fn multiply(&mut self, vectors: &[Vec<f64>]) -> Result<Vec<Vec<f64>>, Error> {
        match self {
            Self::Whole(matrix, width) => {
                let rows: Vec<Vec<f64>> = matrix
                    .par_chunks_exact(*width)
                    .map(|row| vectors.iter().map(|v| dot(row, v)).collect())
                    .collect();
                let product = |n: usize| rows.iter().map(|row| row[n]).collect();
                Ok((0..vectors.len()).map(product).collect())
            }
            Self::OfRows(rows, mean) => multiply(rows, mean, vectors),
        }
    }
}

/// Adds to some rows of the covariance, from `first` on, what a block of rows [count, width] gives them, from the diagonal on.
fn add_strip(sums: &mut [f64], block: Matrix<'_, f32>, first: usize, width: usize) {
    let (high, wide) = (sums.len() / width, width - first);
    let mut products = vec![0f32; high * wide];
    let mut target = MatrixMut::new(&mut products, high, wide, wide);
    let (left, right) = (block.columns(first, high).t(), block.columns(first, wide));
    matmul(&mut target, Write::Replace, 1.0, left, right, ALONE);
    for (sums, products) in sums
        .chunks_exact_mut(width)
        .zip(products.chunks_exact(wide))
    {
        for (sum, product) in sums[first..].iter_mut().zip(products) {
            *sum += f64::from(*product);
        }
    }
}

/// The covariance's products with some vectors: one pass over the rows.
fn multiply(rows: &mut Rows, mean: &[f64], vectors: &[Vec<f64>]) -> Result<Vec<Vec<f64>>, Error> {
    let (width, count, wide) = (rows.width(), rows.len() as f64, vectors.len());
    let flat: Vec<f32> = vectors.iter().flatten().map(|v| *v as f32).collect();
    let flat = Matrix::new(&flat, wide, width, width);
    let mut sums = vec![0.0; wide * width];
    for_each_centred(rows, mean, |block| {
        let high = block.len() / width;
        let block = Matrix::new(block, high, width, width);
        let (mut scores, mut products) = (vec![0f32; high * wide], vec![0f32; wide * width]);
        let mut target = MatrixMut::new(&mut scores, high, wide, wide);
        matmul(&mut target, Write::Replace, 1.0, block, flat.t(), ALL);
        let scores = Matrix::new(&scores, high, wide, wide);
        let mut target = MatrixMut::new(&mut products, wide, width, width);
        matmul(&mut target, Write::Replace, 1.0, scores.t(), block, ALL);
        for (sum, product) in sums.iter_mut().zip(products) {
            *sum += f64::from(product);
        }
    })?;
    let product = |sums: &[f64]| sums.iter().map(|sum| sum / count).collect();
    Ok(sums.chunks_exact(width).map(product).collect())
}

/// Gives `each` all rows less their mean, some at a time.
fn for_each_centred(
    rows: &mut Rows,
    mean: &[f64],
    mut each: impl FnMut(&[f32]),
) -> Result<(), Error> {
    let width = mean.len();
    let mut centred = Vec::new();
    rows.for_each_block(|_, block| {
        for piece in block.chunks(PIECE * width) {
            centred.resize(piece.len(), 0f32);
            let pairs = centred.par_chunks_mut(width).zip(piece.par_chunks(width));
            pairs.for_each(|(to, row)| {
                for ((to, value), mean) in to.iter_mut().zip(row).zip(mean) {
                    *to = (f64::from(*value) - mean) as f32;
                }
            });
            each(&centred);
        }
        Ok(())
    })
}

/// A direction with what the covariance makes of it.
struct Direction {
    variance: f64,
    axis: Vec<f64>,
    product: Vec<f64>,
}

impl Direction {
    /// What keeps it from being an eigenvector.
    fn residual(&self) -> Vec<f64> {
        let pairs = self.product.iter().zip(&self.axis);
        pairs.map(|(p, a)| p - self.variance * a).collect()
    }
}

/// The directions of the largest variance, two at most, as unit vectors at right angles.
fn components(covariance: &mut Covariance<'_>) -> Result<Vec<Vec<f64>>, Error> {
    let mut rng = Rng::with_key(*Digest::of(b"plumb principal components 1").as_bytes());
    let width = covariance.width();
    let random = (0..BLOCK).map(|_| rng.normals(width).into_iter().map(f64::from).collect());
    let mut next: Vec<Vec<f64>> = random.collect();
    // The space's basis, and the covariance's products with it.
    let (mut basis, mut products): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (Vec::new(), Vec::new());
    let (mut found, mut due) = (Vec::new(), 2 * BLOCK);
    for count in 1..=covariance.most_products() {
        let fresh = orthonormal(&basis, next);
        next = covariance.multiply(&fresh)?;
        products.extend(next.clone());
        let is_whole = fresh.is_empty();
        basis.extend(fresh);
        if basis.len() < due && !is_whole && count < covariance.most_products() {
            continue;
        }
        found = ritz(&basis, &products);
        let Some(first) = found.first() else { break };
        let settled = TOLERANCE * first.variance;
        let residuals: Vec<Vec<f64>> = found.iter().take(BLOCK).map(Direction::residual).collect();
        let is_settled = |residual: &Vec<f64>| norm(residual) <= settled;
        if is_whole || residuals.iter().take(2).all(is_settled) {
            break;
        }
        if basis.len() >= FULL {
            let kept = found.iter().map(|d| (d.axis.clone(), d.product.clone()));
            (basis, products) = kept.unzip();
            // Where the space is left goes on from what is wrong with its best vectors; what is settled would add noise.
            next = residuals.into_iter().filter(|r| !is_settled(r)).collect();
        }
        due = (2 * due).min(FULL);
    }
    Ok(found.into_iter().take(2).map(|d| d.axis).collect())
}

/// The vectors made orthogonal to the basis and to each other, and of length 1; those that lie in the others' span are left out.
fn orthonormal(basis: &[Vec<f64>], vectors: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let mut fresh: Vec<Vec<f64>> = Vec::new();
    for mut vector in vectors {
        let before = norm(&vector);
        // Twice: what rounding leaves of the first time, the second takes away.
        for _ in 0..2 {
            for known in basis.iter().chain(&fresh) {
                let part = dot(&vector, known);
                let pairs = vector.iter_mut().zip(known);
                pairs.for_each(|(v, k)| *v -= part * k);
            }
        }
        let left = norm(&vector);
        if left > NEGLIGIBLE * before
            && left.is_finite()
            && basis.len() + fresh.len() < vector.len()
        {
            for v in &mut vector {
                *v /= left;
            }
            fresh.push(vector);
        }
    }
    fresh
}

/// The space's own directions, those of the largest variance first, as many as are kept.
fn ritz(basis: &[Vec<f64>], products: &[Vec<f64>]) -> Vec<Direction> {
    let at = |i: usize, j: usize| dot(&basis[i], &products[j]);
    let row = |i| {
        (0..basis.len())
            .map(|j| f64::midpoint(at(i, j), at(j, i)))
            .collect()
    };
    let small: Vec<Vec<f64>> = (0..basis.len()).map(row).collect();
    let combine = |vectors: &[Vec<f64>], weights: &[f64]| {
        let mut sum = vec![0.0; vectors[0].len()];
        for (vector, weight) in vectors.iter().zip(weights) {
            let pairs = sum.iter_mut().zip(vector);
            pairs.for_each(|(s, v)| *s += weight * v);
        }
        sum
    };
    let pairs = symmetric_eigen(small).into_iter().take(KEPT);
    let direction = |(variance, weights): (f64, Vec<f64>)| Direction {
        variance,
        axis: combine(basis, &weights),
        product: combine(products, &weights),
    };
    pairs.map(direction).collect()
}

/// The points of the rows on two axes at most, and the sum over columns of the variances.
fn project(
    rows: &mut Rows,
    mean: &[f64],
    axes: &[Vec<f64>],
) -> Result<(Vec<[f64; 2]>, f64), Error> {
    let width = mean.len().max(1);
    let (mut points, mut squares) = (Vec::with_capacity(rows.len()), 0.0);
    rows.for_each_block(|_, block| {
        let project = |row: &[f32]| {
            let centred = row
                .iter()
                .zip(mean)
                .map(|(value, mean)| f64::from(*value) - mean);
            let centred: Vec<f64> = centred.collect();
            let on = |axis: usize| axes.get(axis).map_or(0.0, |axis| dot(&centred, axis));
            ([on(0), on(1)], dot(&centred, &centred))
        };
        let made: Vec<([f64; 2], f64)> = block.par_chunks_exact(width).map(project).collect();
        for (point, square) in made {
            points.push(point);
            squares += square;
        }
        Ok(())
    })?;
    let count = points.len().max(1) as f64;
    Ok((points, squares / count))
}

/// The plane of points on axes: turned so that the first axis has the most variance, without axes that have none, each with its sign.
fn turned(points: Vec<[f64; 2]>, axes: Vec<Vec<f64>>, total: f64) -> Plane {
    let width = axes.first().map_or(0, Vec::len);
    let count = points.len().max(1) as f64;
    let spread = |i: usize, j: usize| points.iter().map(|p| p[i] * p[j]).sum::<f64>() / count;
    let own = symmetric_eigen(vec![
        vec![spread(0, 0), spread(0, 1)],
        vec![spread(0, 1), spread(1, 1)],
    ]);
    let mut plane = Plane {
        points: vec![[0.0; 2]; points.len()],
        explained: [0.0; 2],
        axes: [vec![0.0; width], vec![0.0; width]],
    };
    for (n, (variance, weights)) in own.into_iter().enumerate() {
        // An axis without variance would be noise.
        if variance <= NEGLIGIBLE * total || total == 0.0 {
            continue;
        }
        let mut axis = vec![0.0; width];
        for (part, weight) in axes.iter().zip(&weights) {
            let pairs = axis.iter_mut().zip(part);
            pairs.for_each(|(a, p)| *a += weight * p);
        }
        let sign = sign(&axis);
        for a in &mut axis {
            *a *= sign;
        }
        for (to, from) in plane.points.iter_mut().zip(&points) {
            to[n] = sign * (weights[0] * from[0] + weights[1] * from[1]);
        }
        plane.axes[n] = axis;
        plane.explained[n] = (variance / total).clamp(0.0, 1.0);
    }
    plane
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

/// That of the number that is largest without it.
fn sign(axis: &[f64]) -> f64 {
    let larger = |most: f64, v: &f64| if v.abs() > most.abs() { *v } else { most };
    1f64.copysign(axis.iter().fold(0.0, larger))
}

fn norm(vector: &[f64]) -> f64 {
    dot(vector, vector).sqrt()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        let lanes = sums.iter_mut().zip(a.iter().zip(b));
        lanes.for_each(|(sum, (a, b))| *sum += a * b);
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a * b);
    sums.iter().sum::<f64>() + rest.sum::<f64>()
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
