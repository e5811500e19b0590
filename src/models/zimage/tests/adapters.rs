//! Adapters through the network: gradients against peft and finite differences, and LoRA files in diffusers.

use super::*;
use crate::models::testing::adapter_tests;

// The block: the second that a caption alone goes through, behind two of the picture.
// The inputs: with captions of different lengths.
adapter_tests!(golden: "two", block: 3, inputs: 2);
