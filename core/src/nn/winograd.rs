//! Convolutions with windows of 3 x 3 on a CPU with fewer products: F(2 x 2, 3 x 3) of Lavin & Gray 2015 (arXiv:1509.09308). 2 x 2 results
//! take 16 products a channel instead of 36, as products of matrices over tiles of the picture.
//!
//! The transforms have no factors but 1/2, of the weights, so that the result is nearly as exact as that of the plain sum. It is computed in
//! blocks of tiles that depend on the shape alone: neither on the number of threads nor on what is computed beside it.
//!
//! Legend of shape suffixes: b batch, i input channels, o output channels, t places in time, h height, w width.

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use super::cpu::{contiguous, elements, tensor};
use super::gemm::{ALONE, Matrix, MatrixMut, Shared, Write, matmul};
use super::real::{Real, vectorised};

/// Products of a tile: 4 x 4.
const PLACES: usize = 16;
/// Channels below which the transforms take longer than the products that they save.
const FEWEST: usize = 32;
/// Tiles of a block that are aimed at; a row of more is a block of its own.
const TILES: usize = 128;

/// The weights of a convolution over time and space, or over space, transformed once.
pub struct Winograd {
    /// For each place of a tile a matrix: a row for each output channel, in it the input channels of the first place in time, of the next, ..
    weights: Vec<f32>,
    bias: Vec<f32>,
    taps: usize,
    i: usize,
    o: usize,
}

impl Winograd {
    /// Of `weight` `[O, I, T, 3, 3]` and `bias` `[O]`; None where the plain convolution serves better or alone: not in f32 on a CPU, another
    /// window, or few channels.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn new(weight_oit33: &Tensor, bias_o: &Tensor) -> Result<Option<Self>> {
        let served = weight_oit33.device().is_cpu() && weight_oit33.dtype() == DType::F32;
        let &[o, i, taps, 3, 3] = weight_oit33.dims() else {
            return Ok(None);
        };
        if !served || i < FEWEST || o < FEWEST {
            return Ok(None);
        }
        let weight = contiguous(weight_oit33)?;
        let weight = elements::<f32>(&weight)?;
        let (weight, row): (&[f32], usize) = (&weight, taps * i);
        let mut weights = vec![0.0; PLACES * o * row];
        for (n, window) in weight.chunks_exact(9).enumerate() {
            let (to, from, tap) = (n / (i * taps), n / taps % i, n % taps);
            for (place, value) in transformed(window).into_iter().enumerate() {
                weights[(place * o + to) * row + tap * i + from] = value;
            }
        }
        Ok(Some(Self {
            weights,
            bias: bias_o.to_vec1()?,
            taps,
            i,
            o,
        }))
    }

    /// The result for the last of `frames`, each `[1, I, H, W]` in order of time, zeros around and before them; `plus` `[1, O, H, W]` is added.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, frames: &[&Tensor], plus: Option<&Tensor>) -> Result<Tensor> {
        let frames = &frames[frames.len().saturating_sub(self.taps)..];
        let Some(first) = frames.first() else {
            bail!("winograd: there is no frame");
        };
        let (_, _, h, w) = first.dims4()?;
        if let Some(other) = frames.iter().find(|f| f.dims() != [1, self.i, h, w]) {
            bail!(
                "winograd: expected frames of shape [1, {}, {h}, {w}], found {:?}",
                self.i,
                other.dims()
            );
        }
        if let Some(plus) = plus
            && plus.dims() != [1, self.o, h, w]
        {
            bail!("winograd: {:?} cannot be added", plus.dims());
        }
        let frames = frames
            .iter()
            .map(|f| contiguous(f))
            .collect::<Result<Vec<_>>>()?;
        let frames = frames
            .iter()
            .map(elements::<f32>)
            .collect::<Result<Vec<_>>>()?;
        let frames: Vec<&[f32]> = frames.iter().map(|f| &**f).collect();
        let plus = plus.map(contiguous).transpose()?;
        let plus = plus.as_ref().map(elements::<f32>).transpose()?;
        let mut out = vec![0.0; self.o * h * w];
        let shared = Shared::new(&mut out);
        let grid = Grid::new(h, w);
        (0..grid.blocks())
            .into_par_iter()
            .for_each_init(Buffers::default, |buffers, block| {
                let (first, rows) = grid.rows(block);
                let size = (2 * first * w, (2 * (first + rows)).min(h) - 2 * first);
                // SAFETY: blocks have distinct rows of the planes.
                let out = unsafe { shared.matrix(size.0, self.o, size.1 * w, h * w) };
                let plus = plus.as_ref().map(|plus| &plus[size.0..]);
                self.block(&frames, &grid, (first, rows), buffers, plus, out);
            });
        tensor(out, &[1, self.o, h, w])
    }

    /// Rows of tiles from `first` on.
    fn block(
        &self,
        frames: &[&[f32]],
        grid: &Grid,
        (first, rows): (usize, usize),
        buffers: &mut Buffers,
        plus: Option<&[f32]>,
        mut out: MatrixMut<'_, f32>,
    ) {
        let (tiles, depth) = (rows * grid.across, frames.len() * self.i);
        let Buffers {
            inputs,
            products,
            lines,
        } = buffers;
        inputs.resize(PLACES * depth * tiles, 0.0);
        products.resize(PLACES * self.o * tiles, 0.0);
        lines.resize(4 * grid.line(), 0.0);
        for (k, plane) in frames
            .iter()
            .flat_map(|frame| frame.chunks_exact(grid.h * grid.w))
            .enumerate()
        {
            for row in 0..rows {
                let to = &mut inputs[k * tiles + row * grid.across..];
                let step = depth * tiles;
                transform_input(plane, grid.size(), 2 * (first + row), lines, to, step);
            }
        }
        let row = self.taps * self.i;
        // Frames before the clip are zeros, and not computed.
        let skipped = row - depth;
        for place in 0..PLACES {
            let left = &self.weights[place * self.o * row + skipped..];
            let left = Matrix::new(left, self.o, depth, row);
            let right = &inputs[place * depth * tiles..][..depth * tiles];
            let right = Matrix::new(right, depth, tiles, tiles);
            let to = &mut products[place * self.o * tiles..][..self.o * tiles];
            let mut to = MatrixMut::new(to, self.o, tiles, tiles);
            matmul(&mut to, Write::Replace, 1.0, left, right, ALONE);
        }
        let plane = grid.h * grid.w;
        for (o, &bias) in self.bias.iter().enumerate() {
            let to = out.row(o);
            to.fill(bias);
            for (row, to) in to.chunks_mut(2 * grid.w).enumerate() {
                let from = &products[o * tiles + row * grid.across..];
                add_output(from, self.o * tiles, grid.across, to, grid.w, lines);
            }
            if let Some(plus) = plus {
                to.iter_mut()
                    .zip(&plus[o * plane..])
                    .for_each(|(y, &x)| *y += x);
            }
        }
    }
}

/// How a picture is divided.
struct Grid {
    h: usize,
    w: usize,
    /// Tiles in a row.
    across: usize,
    /// Rows of tiles.
    down: usize,
    /// Rows of tiles in a block.
    together: usize,
}

impl Grid {
    fn new(h: usize, w: usize) -> Self {
        let (across, down) = (w.div_ceil(2), h.div_ceil(2));
        Self {
            h,
            w,
            across,
            down,
            together: (TILES / across.max(1)).clamp(1, down.max(1)),
        }
    }

    fn size(&self) -> (usize, usize) {
        (self.h, self.w)
    }

    fn blocks(&self) -> usize {
        self.down.div_ceil(self.together)
    }

    /// The first row of tiles of a block, and how many there are.
    fn rows(&self, block: usize) -> (usize, usize) {
        let first = block * self.together;
        (first, self.together.min(self.down - first))
    }

    /// Numbers of a line of the picture with what is around it, even places before odd ones.
    fn line(&self) -> usize {
        2 * (self.across + 1)
    }
}

/// What a thread computes in.
#[derive(Default)]
struct Buffers {
    /// The transformed input: for each place of a tile a matrix of channels and tiles.
    inputs: Vec<f32>,
    /// The products: likewise.
    products: Vec<f32>,
    lines: Vec<f32>,
}

/// `G g G^T` of a window.
fn transformed(window: &[f32]) -> [f32; PLACES] {
    // In f64, and rounded once.
    let line = |a: f64, b: f64, c: f64| [a, (a + b + c) / 2.0, (a - b + c) / 2.0, c];
    let g = |n: usize| f64::from(window[n]);
    let columns = [0, 1, 2].map(|x| line(g(x), g(3 + x), g(6 + x)));
    let mut all = [0.0; PLACES];
    for (place, value) in all.iter_mut().enumerate() {
        let [a, b, c] = columns.map(|column| column[place / 4]);
        *value = line(a, b, c)[place % 4] as f32;
    }
    all
}

vectorised! {
    /// `B^T d B` of a row of tiles whose results begin in row `y` of a plane. Place p of tile n goes to `to[p * step + n]`.
    fn transform_input<T: Real>(
        plane: &[T],
        size: (usize, usize),
        y: usize,
        lines: &mut [T],
        to: &mut [T],
        step: usize,
    ) {
        let (h, w) = size;
        let across = w.div_ceil(2);
        let half = across + 1;
        // The four lines of the picture that a tile sees, column -1 first: columns -1, 1, 3, .. and then 0, 2, 4, ..
        for (n, line) in lines.chunks_exact_mut(2 * half).enumerate() {
            let (even, odd) = line.split_at_mut(half);
            let at = y + n;
            if at == 0 || at > h {
                even.fill(T::zero());
                odd.fill(T::zero());
                continue;
            }
            let row = &plane[(at - 1) * w..][..w];
            even[0] = T::zero();
            odd[across] = T::zero();
            even[across] = T::zero();
            for (x, pair) in row.chunks_exact(2).enumerate() {
                odd[x] = pair[0];
                even[x + 1] = pair[1];
            }
            if w % 2 == 1 {
                odd[across - 1] = row[w - 1];
            }
        }
        let (first, rest) = lines.split_at(2 * half);
        let (second, rest) = rest.split_at(2 * half);
        let (third, fourth) = rest.split_at(2 * half);
        for line in 0..4 {
            let (a, b, minus) = match line {
                0 => (first, third, true),
                1 => (second, third, false),
                2 => (third, second, true),
                _ => (second, fourth, true),
            };
            let sign = if minus { T::zero() - T::one() } else { T::one() };
            let (a_even, a_odd) = a.split_at(half);
            let (b_even, b_odd) = b.split_at(half);
            let base = 4 * line * step;
            let (v0, rest) = to[base..].split_at_mut(step);
            let (v1, rest) = rest.split_at_mut(step);
            let (v2, v3) = rest.split_at_mut(step);
            let (v0, v1) = (&mut v0[..across], &mut v1[..across]);
            let (v2, v3) = (&mut v2[..across], &mut v3[..across]);
            let (a_even, b_even) = (&a_even[..half], &b_even[..half]);
            let (a_odd, b_odd) = (&a_odd[..half], &b_odd[..half]);
            for x in 0..across {
                let d0 = b_even[x].mul_add(sign, a_even[x]);
                let d1 = b_odd[x].mul_add(sign, a_odd[x]);
                let d2 = b_even[x + 1].mul_add(sign, a_even[x + 1]);
                let d3 = b_odd[x + 1].mul_add(sign, a_odd[x + 1]);
                v0[x] = d0 - d2;
                v1[x] = d1 + d2;
                v2[x] = d2 - d1;
                v3[x] = d1 - d3;
            }
        }
    }
}

vectorised! {
    /// Adds `A^T m A` of a row of tiles to the two lines of the picture that it is of, or to one, at the lower end. Place p of tile n is
    /// `from[p * step + n]`.
    fn add_output<T: Real>(
        from: &[T],
        step: usize,
        across: usize,
        to: &mut [T],
        w: usize,
        lines: &mut [T],
    ) {
        let place = |p: usize| &from[p * step..][..across];
        for (row, to) in to.chunks_exact_mut(w).enumerate() {
            let (even, rest) = lines.split_at_mut(across);
            let odd = &mut rest[..across];
            for column in 0..4 {
                let (a, b, c) = match row {
                    0 => (place(column), place(4 + column), place(8 + column)),
                    _ => (place(4 + column), place(8 + column), place(12 + column)),
                };
                for x in 0..across {
                    let sum = match row {
                        0 => a[x] + b[x] + c[x],
                        _ => a[x] - b[x] - c[x],
                    };
                    match column {
                        0 => even[x] = sum,
                        1 => {
                            even[x] += sum;
                            odd[x] = sum;
                        }
                        2 => {
                            even[x] += sum;
                            odd[x] -= sum;
                        }
                        _ => odd[x] -= sum,
                    }
                }
            }
            for (x, pair) in to.chunks_mut(2).enumerate() {
                pair[0] += even[x];
                if let Some(second) = pair.get_mut(1) {
                    *second += odd[x];
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "winograd_tests.rs"]
mod tests;
