//! Resizing of 8-bit RGB pictures, by the rules a `LatentSpec` names. Both are computed in whole numbers, so
//! every machine gives the same pixels.
//!
//! - Where no side grows: `area`. Every pixel of the result is the mean of the area it covers in the picture,
//!   partly covered pixels by their share, rounded half up. This is what OpenCV's `INTER_AREA` (which trainers
//!   use here) does with floats; the two differ by at most one level, where a mean is near one half.
//! - Where a side grows: `lanczos`, three lobes, the algorithm of Pillow's `LANCZOS` (which trainers use here)
//!   step by step, to the same bits. A view may ask for it where both sides shrink as well, and for Pillow's `BICUBIC` or `BILINEAR`.

use std::borrow::Cow;

use rayon::prelude::*;

use crate::recipe::latents::{Resampling, Size};

/// `rgb` (3 bytes a pixel, row major) of size `from`, as one of size `to`. No side may be 0.
pub(super) fn resize(
    rgb: Cow<'_, [u8]>,
    from: Size,
    to: Size,
    resampling: Resampling,
) -> Cow<'_, [u8]> {
    if from == to {
        return rgb;
    }
    let shrinks = to.width <= from.width && to.height <= from.height;
    if shrinks && resampling == Resampling::Spec {
        return area(&rgb, from, to).into();
    }
    // As Pillow 13 where the width grows: across first, except where the height shrinks. Older ones are always across first, and so are
    // views that ask for a filter: those that they follow are older.
    let kernel = Kernel::of(resampling);
    if to.height < from.height && resampling == Resampling::Spec {
        let low = columns(rgb, from.width, (from.height, to.height), kernel);
        return rows(low, (from.width, to.width), kernel);
    }
    let wide = rows(rgb, (from.width, to.width), kernel);
    columns(wide, to.width, (from.height, to.height), kernel)
}

/// A filter of Pillow's.
#[derive(Clone, Copy)]
struct Kernel {
    /// How far it reaches to each side, in pixels of the smaller picture.
    reach: f64,
    weight: fn(f64) -> f64,
}

impl Kernel {
    fn of(resampling: Resampling) -> Self {
        let (reach, weight): (f64, fn(f64) -> f64) = match resampling {
            Resampling::Spec | Resampling::Lanczos3 => (3.0, lanczos),
            Resampling::Bicubic => (2.0, bicubic),
            Resampling::Bilinear => (1.0, bilinear),
        };
        Self { reach, weight }
    }
}

/// The pixels that one pixel of the result covers along one side, with the length of each that is covered, in
/// units of which a source pixel has `to` and a pixel of the result `from`.
struct CoveredPixels {
    first: usize,
    lengths: Vec<u32>,
}

fn covered_pixels(from: u32, to: u32) -> Vec<CoveredPixels> {
    let (unit, span) = (u64::from(to), u64::from(from));
    (0..u64::from(to))
        .map(|n| {
            let (begin, end) = (n * span, (n + 1) * span);
            let (first, last) = (begin / unit, (end - 1) / unit);
            let length = |pixel: u64| {
                let (left, right) = ((pixel * unit).max(begin), ((pixel + 1) * unit).min(end));
                (right - left) as u32
            };
            CoveredPixels {
                first: first as usize,
                lengths: (first..=last).map(length).collect(),
            }
        })
        .collect()
}

fn area(rgb: &[u8], from: Size, to: Size) -> Vec<u8> {
    let (columns, rows) = (
        covered_pixels(from.width, to.width),
        covered_pixels(from.height, to.height),
    );
    let stride = from.width as usize * 3;
    // The lengths a pixel of the result covers add up to `from` along each side.
    let total = u64::from(from.width) * u64::from(from.height);
    let mut out = vec![0; to.width as usize * to.height as usize * 3];
    let lines = out.par_chunks_exact_mut(to.width as usize * 3).zip(&rows);
    // u64: 255 times the most pixels of a picture does not fit in 32 bits.
    lines.for_each_init(Vec::new, |sums: &mut Vec<u64>, (line, row)| {
        sums.clear();
        sums.resize(line.len(), 0);
        for (n, &height) in row.lengths.iter().enumerate() {
            add_row(
                &rgb[(row.first + n) * stride..][..stride],
                &columns,
                u64::from(height),
                sums,
            );
        }
        for (value, sum) in line.iter_mut().zip(sums) {
            *value = ((2 * *sum + total) / (2 * total)) as u8;
        }
    });
    out
}

/// Adds `height` times the sums over each column's cover.
fn add_row(row: &[u8], columns: &[CoveredPixels], height: u64, sums: &mut [u64]) {
    for (column, sums) in columns.iter().zip(sums.chunks_exact_mut(3)) {
        let pixels = row[column.first * 3..].chunks_exact(3);
        let mut covered = [0u64; 3];
        for (pixel, &width) in pixels.zip(&column.lengths) {
            for (covered, &value) in covered.iter_mut().zip(pixel) {
                *covered += u64::from(width) * u64::from(value);
            }
        }
        for (sum, covered) in sums.iter_mut().zip(covered) {
            *sum += height * covered;
        }
    }
}

/// Bits after the point of a weight: Pillow's `PRECISION_BITS`, 32 - 8 - 2.
const WEIGHT_BITS: u32 = 22;

/// The pixels that one pixel of the result is made of along one side, and their weights.
struct Taps {
    first: usize,
    weights: Vec<i64>,
}

/// As Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc`.
fn taps((from, to): (u32, u32), kernel: Kernel) -> Vec<Taps> {
    let scale = f64::from(from) / f64::from(to);
    let stretch = scale.max(1.0);
    let reach = kernel.reach * stretch;
    (0..to)
        .map(|n| {
            // Operation by operation as Pillow: in another order the last bits, and so some pixels, would differ.
            let centre = (f64::from(n) + 0.5) * scale;
            let first = (centre - reach + 0.5).max(0.0) as u32;
            let end = ((centre + reach + 0.5) as u32).min(from);
            let weights: Vec<f64> = (first..end)
                .map(|pixel| (kernel.weight)((f64::from(pixel) - centre + 0.5) * (1.0 / stretch)))
                .collect();
            let sum: f64 = weights.iter().sum();
            let fixed = |w: &f64| {
                let scaled = w / sum * f64::from(1 << WEIGHT_BITS);
                // Away from zero, as `(int)(0.5 + x)` and `(int)(-0.5 + x)` there.
                (scaled + 0.5f64.copysign(scaled)) as i64
            };
            Taps {
                first: first as usize,
                weights: weights.iter().map(fixed).collect(),
            }
        })
        .collect()
}

fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| {
        let x = x * std::f64::consts::PI;
        if x == 0.0 { 1.0 } else { x.sin() / x }
    };
    if (-3.0..3.0).contains(&x) {
        sinc(x) * sinc(x / 3.0)
    } else {
        0.0
    }
}

/// Pillow's `bicubic_filter`, with its a of -1/2.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Pillow's `bilinear_filter`.
fn bilinear(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

/// A weighted sum in fixed point as a level.
fn level(sum: i64) -> u8 {
    ((sum + (1 << (WEIGHT_BITS - 1))) >> WEIGHT_BITS).clamp(0, 255) as u8
}

fn rows(rgb: Cow<'_, [u8]>, (from, to): (u32, u32), kernel: Kernel) -> Cow<'_, [u8]> {
    if from == to {
        return rgb;
    }
    let taps = taps((from, to), kernel);
    let (stride, line) = (from as usize * 3, to as usize * 3);
    let mut out = vec![0; rgb.len() / stride * line];
    out.par_chunks_exact_mut(line)
        .zip(rgb.par_chunks_exact(stride))
        .for_each(|(out, row)| {
            for (pixel, taps) in out.chunks_exact_mut(3).zip(&taps) {
                let mut sums = [0i64; 3];
                for (source, weight) in row[taps.first * 3..].chunks_exact(3).zip(&taps.weights) {
                    for (sum, value) in sums.iter_mut().zip(source) {
                        *sum += weight * i64::from(*value);
                    }
                }
                pixel.copy_from_slice(&sums.map(level));
            }
        });
    out.into()
}

fn columns(
    rgb: Cow<'_, [u8]>,
    width: u32,
    (from, to): (u32, u32),
    kernel: Kernel,
) -> Cow<'_, [u8]> {
    if from == to {
        return rgb;
    }
    let taps = taps((from, to), kernel);
    let stride = width as usize * 3;
    let mut out = vec![0; to as usize * stride];
    out.par_chunks_exact_mut(stride)
        .zip(&taps)
        .for_each(|(out, taps)| {
            let mut sums = vec![0i64; stride];
            for (row, weight) in rgb[taps.first * stride..]
                .chunks_exact(stride)
                .zip(&taps.weights)
            {
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum += weight * i64::from(*value);
                }
            }
            for (value, sum) in out.iter_mut().zip(sums) {
                *value = level(sum);
            }
        });
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(width: u32, height: u32) -> Size {
        Size { width, height }
    }

    fn picture(from: Size) -> Vec<u8> {
        let count = from.width * from.height * 3;
        (0..count)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect()
    }

    /// The mean over the covered area, sampled at the common grid of both sizes.
    #[test]
    fn shrinking_is_the_exact_mean_of_the_covered_area() {
        for (from, to) in [
            (size(4, 6), size(2, 3)),
            (size(7, 5), size(3, 2)),
            (size(13, 11), size(12, 11)),
            (size(9, 4), size(1, 1)),
        ] {
            let rgb = picture(from);
            let small = resize(rgb.clone().into(), from, to, Resampling::Spec);
            for (x, y, c) in (0..to.width * to.height * 3)
                .map(|n| (n / 3 % to.width, n / 3 / to.width, n as usize % 3))
            {
                let mut sum = 0u64;
                for gy in y * from.height..(y + 1) * from.height {
                    for gx in x * from.width..(x + 1) * from.width {
                        let pixel = gy / to.height * from.width + gx / to.width;
                        sum += u64::from(rgb[pixel as usize * 3 + c]);
                    }
                }
                let mean = sum as f64 / f64::from(from.width * from.height);
                let found = small[(y * to.width + x) as usize * 3 + c];
                assert_eq!(found, (mean + 0.5).floor() as u8, "{from:?} {to:?} {x} {y}");
            }
        }
    }

    #[test]
    fn flat_colours_stay_and_sizes_are_right_in_every_direction() {
        for (from, to) in [
            (size(1, 1), size(40, 24)),
            (size(40, 24), size(1, 1)),
            (size(30, 20), size(40, 10)),
            (size(30, 20), size(30, 20)),
            (size(3000, 2), size(100, 1)),
        ] {
            let rgb = [12, 200, 255].repeat((from.width * from.height) as usize);
            let out = resize(rgb.into(), from, to, Resampling::Spec);
            assert_eq!(out, [12, 200, 255].repeat((to.width * to.height) as usize));
        }
    }

    /// What Pillow 13.0.0 gives of the same pictures.
    #[test]
    fn bicubic_and_bilinear_equal_pillow() {
        let cases: [(Size, Size, Resampling, &[u8]); 4] = [
            (
                size(7, 5),
                size(4, 3),
                Resampling::Bicubic,
                &[
                    156, 141, 41, 181, 72, 193, 107, 48, 174, 44, 205, 105, 235, 132, 32, 166, 60,
                    184, 98, 156, 165, 36, 202, 96, 221, 123, 23, 158, 50, 175, 89, 181, 156, 27,
                    195, 87,
                ],
            ),
            (
                size(7, 5),
                size(4, 3),
                Resampling::Bilinear,
                &[
                    157, 136, 50, 175, 78, 185, 107, 60, 167, 48, 195, 109, 225, 127, 42, 167, 69,
                    176, 98, 155, 159, 40, 196, 100, 217, 119, 33, 158, 61, 168, 90, 176, 150, 31,
                    190, 92,
                ],
            ),
            (
                size(3, 4),
                size(5, 6),
                Resampling::Bicubic,
                &[
                    0, 168, 54, 74, 154, 27, 225, 127, 14, 212, 90, 164, 185, 69, 255, 76, 100,
                    137, 105, 79, 117, 157, 59, 97, 136, 121, 159, 117, 165, 201, 137, 61, 200,
                    132, 36, 187, 118, 20, 160, 93, 150, 124, 78, 239, 103, 22, 181, 102, 109, 164,
                    87, 238, 140, 61, 223, 136, 33, 198, 136, 18, 93, 142, 165, 137, 128, 150, 199,
                    101, 124, 180, 65, 98, 159, 45, 84, 189, 74, 248, 168, 59, 233, 131, 33, 207,
                    104, 7, 181, 91, 0, 167,
                ],
            ),
            (
                size(3, 4),
                size(5, 6),
                Resampling::Bilinear,
                &[
                    0, 158, 60, 87, 143, 45, 218, 120, 23, 196, 98, 154, 181, 83, 241, 72, 102,
                    132, 108, 87, 117, 162, 64, 95, 140, 119, 149, 125, 155, 185, 124, 70, 185,
                    126, 55, 170, 130, 32, 148, 108, 137, 125, 93, 208, 110, 50, 166, 111, 121,
                    151, 96, 226, 128, 73, 204, 132, 51, 189, 134, 36, 103, 134, 164, 140, 119,
                    149, 194, 96, 126, 172, 74, 104, 157, 59, 89, 175, 78, 236, 160, 63, 221, 138,
                    40, 198, 116, 18, 176, 101, 3, 161,
                ],
            ),
        ];
        for (from, to, resampling, wanted) in cases {
            let found = resize(picture(from).into(), from, to, resampling);
            assert_eq!(found, wanted, "{from:?} {to:?} {resampling:?}");
        }
    }

    /// The rules' claims, against the libraries themselves: the same bits as Pillow, one level from OpenCV.
    #[test]
    fn lanczos_equals_pillow_and_area_is_within_a_level_of_opencv() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/golden/resize.safetensors"
        );
        let bytes = std::fs::read(path).expect("golden");
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("header");
        let filters = &header.metadata().as_ref().expect("metadata")["filters"];
        let filters: std::collections::BTreeMap<String, String> =
            serde_json::from_str(filters).expect("filters");
        let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("tensors");
        for (n, filter) in filters {
            let source = tensors.tensor(&format!("{n}.in")).expect("in");
            let expected = tensors.tensor(&format!("{n}.out")).expect("out");
            let size = |shape: &[usize]| size(shape[1] as u32, shape[0] as u32);
            let found = resize(
                source.data().into(),
                size(source.shape()),
                size(expected.shape()),
                Resampling::Spec,
            );
            let apart = found
                .iter()
                .zip(expected.data())
                .map(|(a, b)| a.abs_diff(*b));
            let allowed = u8::from(filter == "area");
            assert_eq!(found.len(), expected.data().len());
            assert!(
                apart.max().expect("pixels") <= allowed,
                "case {n}, {filter}"
            );
        }
    }
}
