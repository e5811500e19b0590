//! Plans that cuDNN makes of graphs, and running them.

use std::ffi::c_void;

use candle_core::{Error, Result, bail};

use super::api::{Descriptor, Handle, Holds, Kind};
use super::attribute;
use super::graph::{Graph, Node};

/// `cudnnBackendHeurMode_t`: what cuDNN expects to be fast, then whatever works.
const HEURISTIC_MODES: [i32; 2] = [3, 2];
/// `cudnnBackendNumericalNote_t`: not the same bits every time.
const NONDETERMINISTIC: i32 = 4;
/// The same: sums of fewer bits than were asked for.
const REDUCED_PRECISION: i32 = 2;

/// What cuDNN runs for a graph.
pub(super) struct ExecutionPlan {
    // Dropped from the first to the last: what is made of others before them.
    plan: Descriptor,
    _config: Descriptor,
    _graph: Descriptor,
    _parts: Graph,
    workspace: usize,
}

/// What makes a plan give the same bits every time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SameBits {
    /// The engine, which says so of itself.
    ByEngine,
    /// The graph, which is of the form that NVIDIA's frontend writes where it is asked for that. An engine that serves other forms as well may say
    /// of itself that it does not; it comes last.
    ByForm,
}

impl ExecutionPlan {
    /// The first plan that cuDNN can make of a graph, of those that give the same bits every time.
    pub(super) fn new(handle: &Handle, parts: Graph, same: SameBits) -> Result<Self> {
        let graph = Descriptor::new(handle.api(), Kind::OperationGraph)?
            .with_handle(attribute::GRAPH_HANDLE, handle)?
            .with_descriptors(attribute::GRAPH_OPERATIONS, &parts.operations())?
            .finalized()?;
        let mut refused = Vec::new();
        let whatever_engines_say: &[bool] = match same {
            SameBits::ByEngine => &[false],
            SameBits::ByForm => &[false, true],
        };
        let ways = whatever_engines_say.iter();
        for (mode, &whatever) in ways.flat_map(|way| HEURISTIC_MODES.map(|mode| (mode, way))) {
            match first(&graph, (mode, whatever), &mut refused) {
                Ok(Some((plan, workspace, config))) => {
                    return Ok(Self {
                        plan,
                        _config: config,
                        _graph: graph,
                        _parts: parts,
                        workspace,
                    });
                }
                Ok(None) => {}
                Err(error) => refused.push(error),
            }
        }
        // What the best one lacks says most.
        match refused.into_iter().next() {
            Some(error) => Err(error),
            None => bail!("cuDNN knows no engine for this graph"),
        }
    }

    /// Bytes that it needs beside its tensors.
    pub(super) fn workspace(&self) -> usize {
        self.workspace
    }

    /// Runs it on a stream.
    ///
    /// # Safety
    ///
    /// `stream` lives and is of the handle's GPU. Each tensor of the graph that is in memory has its address on the GPU,
    /// of memory as large as its layout says, and each value its address on the host; the workspace is as large as the plan
    /// needs; all are there until what was asked of the stream is done, the values until this returns.
    pub(super) unsafe fn run(
        &self,
        (handle, stream): (&mut Handle, *mut c_void),
        places: &[(Node, u64)],
        workspace: u64,
    ) -> Result<()> {
        let at = |address: u64| address as *mut c_void;
        let ids: Vec<i64> = places.iter().map(|(node, _)| node.id()).collect();
        let addresses: Vec<_> = places.iter().map(|&(_, address)| at(address)).collect();
        let pack = Descriptor::new(handle.api(), Kind::VariantPack)?
            .with_integers(attribute::PACK_IDS, &ids)?
            .with_addresses(attribute::PACK_ADDRESSES, &addresses)?
            .with_addresses(attribute::PACK_WORKSPACE, &[at(workspace)])?
            .finalized()?;
        // SAFETY: the caller's promise.
        unsafe { handle.execute(stream, &self.plan, &pack) }
    }
}

/// The first plan that can be made of what a heuristic proposes, with its workspace and config, and why others cannot. `whatever` an engine says
/// of the bits that it gives, or only if they are the same every time.
fn first(
    graph: &Descriptor,
    (mode, whatever): (i32, bool),
    refused: &mut Vec<Error>,
) -> Result<Option<(Descriptor, usize, Descriptor)>> {
    for config in configs(graph, mode)? {
        match finalize(&config, whatever) {
            Ok((plan, workspace)) => return Ok(Some((plan, workspace, config))),
            Err(error) => refused.push(error),
        }
    }
    Ok(None)
}

/// Engines with their settings, the best first.
fn configs(graph: &Descriptor, mode: i32) -> Result<Vec<Descriptor>> {
    let heuristics = Descriptor::new(graph.api(), Kind::EngineHeuristics)?
        .with_descriptors(attribute::HEURISTICS_GRAPH, &[graph])?
        .with_choice(attribute::HEURISTICS_MODE, Holds::HeuristicMode, mode)?
        .finalized()?;
    heuristics.descriptors(attribute::HEURISTICS_RESULTS, Kind::EngineConfig)
}

/// A plan of a config, and the bytes that it needs beside its tensors.
fn finalize(config: &Descriptor, whatever: bool) -> Result<(Descriptor, usize)> {
    let engine = config.descriptor(attribute::CONFIG_ENGINE, Kind::Engine)?;
    let notes = engine.choices(attribute::ENGINE_NUMERICAL_NOTES, Holds::NumericalNote)?;
    // The same Experiment must give the same LoRA, byte for byte.
    if notes.contains(&NONDETERMINISTIC) && !whatever {
        bail!("cuDNN's engine does not give the same bits every time");
    }
    if notes.contains(&REDUCED_PRECISION) {
        bail!("cuDNN's engine sums in fewer bits than f32 has");
    }
    let plan = Descriptor::new(config.api(), Kind::ExecutionPlan)?
        .with_descriptors(attribute::PLAN_CONFIG, &[config])?
        .finalized()?;
    let workspace = plan.integer(attribute::PLAN_WORKSPACE)?;
    Ok((plan, workspace.max(0) as usize))
}
