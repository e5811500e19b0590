//! The one integration-test binary: promises of the store, commands, and whole pipelines.

#![expect(
    clippy::disallowed_methods,
    reason = "tests make, damage and date files as they need"
)]

mod audit;
mod bad_input;
mod browser;
mod cache_export;
mod chroma;
mod cli_disk;
mod cli_inspect;
mod cli_lora;
mod cli_model;
mod cli_recipe;
mod cli_store;
mod clouds;
mod compare;
mod configs;
mod corpus;
mod doctor;
mod encode_kill;
mod families_caches;
mod flux;
mod flux_files;
mod full_size;
mod hostile_text;
#[cfg(target_os = "linux")]
mod hosts;
mod hub;
mod import_config;
mod inspect_export;
mod inspect_report;
mod klein;
mod kontext;
mod latents;
mod layouts;
mod lora_folders;
mod lora_names;
mod making;
mod miniatures;
mod not_finite;
mod object_storage;
mod old_run;
mod only_what_is_used;
mod parts;
#[path = "../peers/mod.rs"]
mod peers;
mod peers_alone;
mod pipeline;
mod placement;
mod probe;
mod python;
mod ranks;
mod remote_index;
mod remote_lost;
mod remote_sweep;
mod resume;
mod run_damage;
mod run_folder;
mod s3;
mod schedules;
mod shards;
mod shell;
#[cfg(unix)]
mod signals;
mod single_files;
mod start_from;
mod store_busy;
mod store_crash;
mod store_damage;
mod store_format;
mod store_full_disk;
mod store_gc;
mod store_header;
mod store_hostile;
mod store_index;
mod store_kill;
mod store_links;
mod store_lookup;
mod store_model;
mod store_promises;
mod store_reading;
mod store_sweep;
mod store_util;
mod tags;
mod tidy;
mod tiny_pipelines;
mod tiny_world;
mod unet;
mod unet_files;
mod util;
mod wan;
mod wan22;
mod without_effect;
mod worker;
mod world;
mod zimage;
