//! Adapters through the network: gradients against peft and finite differences, and LoRA files in diffusers.

use super::*;
use crate::models::testing::adapter_tests;

adapter_tests!(golden: "two", block: 1, inputs: 1);
