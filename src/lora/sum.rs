//! Several LoRAs at once, each with a strength, as one.

use std::collections::BTreeMap;

use super::{Adapter, AdapterSet, Error, LinearShape};

/// An adapter with its LoRA's numbers and strength.
type Part<'a> = (&'a Adapter, &'a [f32], f64);

impl AdapterSet {
    /// The adapters that change each weight by the sum of what these change, each times its strength. A strength of 0 leaves a LoRA
    /// out. Where several are on one module their A stand below each other and their B side by side, so only the order in which
    /// numbers are added depends on the order of the LoRAs.
    ///
    /// # Errors
    /// If a strength is not finite, two adapters of a module have different shapes, or a number becomes too large.
    pub fn sum(loras: &[(Self, f64)]) -> Result<Self, Error> {
        let mut by_module: BTreeMap<&str, Vec<Part<'_>>> = BTreeMap::new();
        for (set, strength) in loras {
            if !strength.is_finite() {
                return Err(Error::Strength(*strength));
            }
            for adapter in set.adapters.iter().filter(|_| *strength != 0.0) {
                let parts = by_module.entry(&adapter.name).or_default();
                parts.push((adapter, &set.values, *strength));
            }
        }
        let (mut shapes, mut values) = (Vec::new(), Vec::new());
        for parts in by_module.values() {
            let scales: Vec<f64> = parts.iter().map(|(a, _, s)| a.scale() * s).collect();
            let rank: usize = parts.iter().map(|(adapter, ..)| adapter.rank).sum();
            // One scale for all of them stays a scale; otherwise each goes into its B.
            let shared = scales.iter().all(|scale| *scale == scales[0]);
            let scale = if shared { scales[0] } else { 1.0 };
            shapes.push((shape(parts)?, rank, scale * rank as f64));
            for (adapter, numbers, _) in parts {
                values.extend_from_slice(&numbers[adapter.a()]);
            }
            let factors = scales.iter().map(|own| if shared { 1.0 } else { *own });
            let parts: Vec<_> = parts.iter().zip(factors).collect();
            for row in 0..parts
                .first()
                .map_or(0, |((adapter, ..), _)| adapter.outputs)
            {
                for ((adapter, numbers, _), factor) in &parts {
                    let row = &numbers[adapter.b()][row * adapter.rank..][..adapter.rank];
                    values.extend(row.iter().map(|&b| (f64::from(b) * factor) as f32));
                }
            }
        }
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(Error::Alpha(f64::from(*value)));
        }
        let mut sum = Self::zeroed(shapes)?;
        sum.set_values(values)?;
        Ok(sum)
    }
}

/// The module that all parts are on.
fn shape(parts: &[Part<'_>]) -> Result<LinearShape, Error> {
    let of = |adapter: &Adapter| LinearShape {
        name: adapter.name.clone(),
        outputs: adapter.outputs,
        inputs: adapter.inputs,
        kernel: adapter.kernel,
        reached: true,
    };
    let shapes: Vec<_> = parts.iter().map(|(adapter, ..)| of(adapter)).collect();
    let told =
        |shape: &LinearShape| format!("{} outputs and {} inputs", shape.outputs, shape.inputs);
    match shapes.iter().find(|shape| **shape != shapes[0]) {
        Some(other) => Err(Error::Misfit {
            name: other.name.clone(),
            expected: told(&shapes[0]),
            found: told(other),
        }),
        None => Ok(shapes[0].clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(modules: &[(&str, usize, f64)], seed: u64) -> AdapterSet {
        let shape = |name: &str| LinearShape {
            name: name.to_owned(),
            outputs: 3,
            inputs: 4,
            kernel: None,
            reached: true,
        };
        let shapes = modules
            .iter()
            .map(|(name, rank, alpha)| (shape(name), *rank, *alpha));
        let mut set = AdapterSet::zeroed(shapes).unwrap();
        let value = |i: usize| ((seed as usize * 7 + i * 13) % 31) as f32 / 8.0 - 1.5;
        set.set_values((0..set.values().len()).map(value).collect())
            .unwrap();
        set
    }

    /// What a set adds to the weight of a module, row major.
    fn update(set: &AdapterSet, name: &str) -> Vec<f64> {
        let Some(adapter) = set.get(name) else {
            return vec![0.0; 12];
        };
        let (a, b) = (&set.values()[adapter.a()], &set.values()[adapter.b()]);
        let dot = |row: usize, column: usize| {
            let term =
                |r: usize| f64::from(b[row * adapter.rank + r]) * f64::from(a[r * 4 + column]);
            (0..adapter.rank).map(term).sum::<f64>() * adapter.scale()
        };
        (0..12).map(|i| dot(i / 4, i % 4)).collect()
    }

    #[test]
    fn updates_are_added_each_times_its_strength() {
        let one = set(&[("both", 2, 1.0), ("first", 1, 3.0)], 1);
        let two = set(&[("both", 3, 6.0), ("second", 2, 2.0)], 2);
        for strengths in [
            [1.0, 1.0],
            [0.6, -1.3],
            [0.0, 2.0],
            [0.25, 0.0625],
            [0.0, 0.0],
        ] {
            let sum = AdapterSet::sum(&[(one.clone(), strengths[0]), (two.clone(), strengths[1])]);
            let sum = sum.unwrap();
            let turned = [(two.clone(), strengths[1]), (one.clone(), strengths[0])];
            let turned = AdapterSet::sum(&turned).unwrap();
            for name in ["both", "first", "second"] {
                let parts = update(&one, name).into_iter().zip(update(&two, name));
                let expected = parts.map(|(x, y)| x * strengths[0] + y * strengths[1]);
                let both = update(&sum, name).into_iter().zip(update(&turned, name));
                for (expected, (found, turned)) in expected.zip(both) {
                    assert!((expected - found).abs() < 1e-6, "{name} {strengths:?}");
                    assert!((found - turned).abs() < 1e-6, "{name} {strengths:?}");
                }
            }
        }
    }

    #[test]
    fn a_single_lora_at_full_strength_stays_as_it_is() {
        let one = set(&[("a", 2, 1.0), ("b", 3, 3.0)], 1);
        assert_eq!(AdapterSet::sum(&[(one.clone(), 1.0)]).unwrap(), one);
        assert!(AdapterSet::sum(&[(one.clone(), f64::NAN)]).is_err());
        let left_out = AdapterSet::sum(&[(one, 0.0)]).unwrap();
        assert!(left_out.adapters().is_empty());
    }
}
