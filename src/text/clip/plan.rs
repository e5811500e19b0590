//! What a spec asks of a CLIP text tower, checked against itself and against the files.

use super::{
    Chunks, ClipForward, ClipTextArchitecture, ClipTextNetwork, PooledRule, names, projection,
};
use crate::nn::weights::Weights;
use crate::text::check::positive;
use crate::text::names::{add, refuse_unexpected};
use crate::text::{Error, LocatedEncoder, TensorList};

/// How much of a tower is computed.
pub(super) struct TowerPlan {
    /// Index into `hidden_states` of the sequence, if one is kept.
    pub(super) hidden: Option<usize>,
    /// How many layers are computed.
    pub(super) depth: usize,
    /// Whether there is a pooled vector.
    pub(super) pools: bool,
    /// Whether the final norm is used.
    pub(super) norms: bool,
}

impl TowerPlan {
    /// What the rules need.
    ///
    /// # Errors
    /// If architecture and rules cannot be, or do not fit each other.
    pub(super) fn of(network: &ClipTextNetwork) -> Result<Self, Error> {
        let (architecture, rules) = (&network.architecture, &network.forward);
        check(architecture, rules)?;
        let hidden = hidden_index(architecture, rules)?;
        let pools = rules.pooled != PooledRule::None;
        Ok(Self {
            hidden,
            // The pooled row is of the last layer, whichever layer gives the sequence.
            depth: if pools {
                architecture.num_hidden_layers
            } else {
                hidden.unwrap_or(0)
            },
            pools,
            norms: pools || (hidden.is_some() && rules.final_norm),
        })
    }
}

/// Finds the tower, and checks by the headers that all of it is there and nothing more.
pub(super) fn locate(
    network: &ClipTextNetwork,
    weights: &Weights,
) -> Result<LocatedEncoder, Error> {
    let (architecture, rules) = (&network.architecture, &network.forward);
    let plan = TowerPlan::of(network)?;
    let found = names::locate(weights, architecture)?;
    let mut raw = false;
    let mut notes = Vec::new();
    if rules.projection {
        let columns = architecture.projection_dim.unwrap_or_default();
        raw = projection::is_raw(weights, &found, (architecture.hidden_size, columns))?;
        notes.extend(projection::note(weights, &found));
    }
    let tower = names::tower(architecture);
    let stored = |(name, _): &(String, Vec<usize>)| names::stored(&found, raw, name).name;
    let stored: Vec<String> = tower.iter().map(stored).collect();
    let canonical = {
        let found = found.clone();
        weights.renamed(move |name: &str| names::stored(&found, raw, name))
    };
    // The whole tower, though the rules may need less: a file that lacks layers is another network's.
    canonical.require(&tower)?;
    refuse_unexpected(weights, &found.prefix, &stored, names::is_inert, |first| {
        hint(architecture, first)
    })?;
    let tensors = tensors(network, &plan);
    canonical.require(&tensors)?;
    Ok(LocatedEncoder {
        weights: canonical,
        tensors,
        tables: &[names::TABLE],
        notes,
    })
}

/// The tensors that the rules need.
fn tensors(network: &ClipTextNetwork, plan: &TowerPlan) -> TensorList {
    let architecture = &network.architecture;
    let mut list = names::embeddings(architecture);
    for layer in 0..plan.depth {
        list.extend(names::block(architecture, layer));
    }
    if plan.norms {
        list.extend(names::final_norm(architecture));
    }
    if let (true, Some(columns)) = (network.forward.projection, architecture.projection_dim) {
        let shape = [columns, architecture.hidden_size];
        add(&mut list, names::PROJECTION, &shape);
    }
    list
}

// Specs are also read from JSON, so that what `architecture::read` refuses is refused here again.
fn check(architecture: &ClipTextArchitecture, rules: &ClipForward) -> Result<(), Error> {
    positive("vocab_size", architecture.vocab_size)?;
    positive("intermediate_size", architecture.intermediate_size)?;
    positive("num_hidden_layers", architecture.num_hidden_layers)?;
    positive(
        "max_position_embeddings",
        architecture.max_position_embeddings,
    )?;
    let width = positive("hidden_size", architecture.hidden_size)?;
    let heads = positive("num_attention_heads", architecture.num_attention_heads)?;
    let wrong = |reason: String| Err(Error::Spec(reason));
    if width % heads != 0 {
        return wrong(format!(
            "num_attention_heads {heads} does not divide hidden_size {width}"
        ));
    }
    if !(architecture.layer_norm_eps >= 0.0 && architecture.layer_norm_eps.is_finite()) {
        return wrong(format!("layer_norm_eps is {}", architecture.layer_norm_eps));
    }
    if let Some(Chunks::Inner { window, .. } | Chunks::Whole { window }) = rules.chunks
        && window < 3
    {
        return wrong(format!(
            "a window of {window} ids has no room for a caption"
        ));
    }
    if rules.hidden_layer.is_none() && rules.pooled == PooledRule::None {
        return wrong("the forward rules keep neither a sequence nor a pooled vector".into());
    }
    if rules.projection && rules.pooled == PooledRule::None {
        return wrong("projection applies to the pooled vector, and there is none".into());
    }
    if rules.projection && architecture.projection_dim.is_none() {
        return wrong("projection is on, and the architecture has no projection_dim".into());
    }
    if rules.pooled == PooledRule::ConfigEos && architecture.eos_token_id.is_none() {
        return wrong(
            "the pooled rule is config_eos, and the architecture has no eos_token_id".into(),
        );
    }
    Ok(())
}

/// The index in `hidden_states` (0 the embeddings) that the rules count from the end.
fn hidden_index(
    architecture: &ClipTextArchitecture,
    rules: &ClipForward,
) -> Result<Option<usize>, Error> {
    let Some(layer) = rules.hidden_layer else {
        return Ok(None);
    };
    let states = architecture.num_hidden_layers + 1;
    // -i32::MIN is no i32.
    let from_end = layer
        .checked_neg()
        .and_then(|n| usize::try_from(n).ok())
        .unwrap_or(0);
    match from_end {
        1.. if from_end <= states => Ok(Some(states - from_end)),
        _ => Err(Error::Spec(format!(
            "hidden_layer is {layer}; with {} layers it is -1 to -{states}",
            architecture.num_hidden_layers
        ))),
    }
}

fn hint(architecture: &ClipTextArchitecture, first: &str) -> String {
    if first.contains("layers.") || first.contains("resblocks.") {
        let layers = architecture.num_hidden_layers;
        format!("num_hidden_layers is {layers}; check it against the checkpoint's own config.json")
    } else {
        "is it another network's file?".to_owned()
    }
}
