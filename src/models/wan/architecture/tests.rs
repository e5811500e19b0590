use super::*;
use crate::lora::targets::select;
use crate::models::testing::listed;
use crate::models::wan::WAN;

fn read(config: &str) -> Architecture {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, config).unwrap();
    Architecture::from_config(&path).unwrap()
}

#[test]
fn the_released_configs_give_the_published_sizes() {
    // transformer/config.json of Wan-AI/Wan2.1-T2V-1.3B-Diffusers, and what the 14B's has otherwise.
    let small = r#"{
        "_class_name": "WanTransformer3DModel", "_diffusers_version": "0.33.0.dev0", "added_kv_proj_dim": null,
        "attention_head_dim": 128, "cross_attn_norm": true, "eps": 1e-06, "ffn_dim": 8960, "freq_dim": 256,
        "image_dim": null, "in_channels": 16, "num_attention_heads": 12, "num_layers": 30, "out_channels": 16,
        "patch_size": [1, 2, 2], "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024, "text_dim": 4096
    }"#;
    let large = small
        .replace("\"num_attention_heads\": 12", "\"num_attention_heads\": 40")
        .replace("8960", "13824")
        .replace("\"num_layers\": 30", "\"num_layers\": 40");
    // Both experts of 2.2 have the shapes of a 14B of 2.1.
    let of_14b = &["t2v-14b", "2.2-t2v-a14b-high", "2.2-t2v-a14b-low"][..];
    for (config, tensors, parameters, flavors) in [
        // As many as diffusers' models of these have.
        (small, 825, 1_418_996_800, &["t2v-1.3b"][..]),
        (&large, 1095, 14_288_491_584, of_14b),
    ] {
        let own = read(config);
        assert_eq!(own.axes(), [44, 42, 42]);
        let (lists, found) = listed(&own);
        assert_eq!((lists.0.len(), found), (tensors, parameters));
        let could_be =
            |flavor: &&crate::models::Flavor| crate::models::Architecture::could_be(&own, flavor);
        let names: Vec<_> = WAN
            .flavors
            .iter()
            .filter(could_be)
            .map(|f| f.name)
            .collect();
        assert_eq!(names, flavors);
        let count = |target: &str| {
            let chosen = select(&lists.1, &[target.to_owned()], WAN.presets);
            chosen.unwrap().len()
        };
        // Queries, keys, values and outputs of both attentions, and the two of the feed-forward.
        assert_eq!(count("attention"), 8 * own.num_blocks);
        assert_eq!(count("blocks"), 10 * own.num_blocks);
        assert_eq!(count("all-linear"), 10 * own.num_blocks + 6);
    }
}
