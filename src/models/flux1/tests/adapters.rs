//! Adapters through the network: gradients against peft and finite differences, and LoRA files in diffusers.

use super::*;
use crate::models::testing::adapter_tests;

// The block: the second of two single blocks after two double ones.
// The inputs: with pads that are not seen.
adapter_tests!(golden: "dev", block: 3, inputs: 3);
