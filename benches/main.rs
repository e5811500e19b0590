//! `cargo bench -- NAME [FILTER]`: measurements against what a user would pick instead.
//!
//! `PLUMB_BENCH_INSTRUCTIONS=avx2` (or `base`, `avx512`, `avx512-bf16`, `amx-bf16`) hides wider instructions from plumb's own kernels, and the
//! variables that MKL, oneDNN and ATen have for it hide them from the peers: what a desktop without AVX-512 would take.

#![expect(
    clippy::disallowed_methods,
    reason = "a bench reads the clock and writes scratch files"
)]

#[path = "../src/bin/plumb/allocator.rs"]
mod allocator;
mod encode;
mod gpu;
mod index;
mod inspect;
mod nn;
mod plan;
mod planes;
mod probe;
mod products;
mod store;
mod streamed;
mod train;
mod turns;
mod vae;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    allocator::keep_freed_memory();
    turns::limit_instructions()?;
    let filter = arguments.get(1).map_or("", String::as_str);
    match arguments.first().map(String::as_str) {
        Some("encode") => encode::run(filter)?,
        Some("gpu") => gpu::run(filter)?,
        Some("index") => index::run(filter)?,
        Some("inspect") => inspect::run(filter)?,
        Some("nn") => nn::run(filter)?,
        Some("plan") => plan::run()?,
        Some("planes") => planes::run()?,
        Some("probe") => probe::run(filter)?,
        Some("products") => products::run(filter)?,
        Some("store") => store::run(),
        Some("streamed") => streamed::run(filter)?,
        Some("train") => train::run(filter)?,
        Some("vae") => vae::run(filter)?,
        _ => println!(
            "name one of: encode, gpu, index, inspect, nn, plan, planes, probe, products, store, streamed, train, vae"
        ),
    }
    Ok(())
}
