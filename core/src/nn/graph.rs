//! A GPU's work recorded once and asked for again as a whole: a CUDA graph, where our own kernels are.

use candle_core::{Device, Result, Tensor};

use super::Kernels;
#[cfg(feature = "cuda")]
use super::cuda;

/// What a GPU was asked for once. It computes on the tensors that it was recorded with, by what is in them each time.
pub struct Graph {
    #[cfg(feature = "cuda")]
    recorded: cuda::graph::Graph,
    /// Without a GPU there is none.
    #[cfg(not(feature = "cuda"))]
    never: std::convert::Infallible,
}

/// What came of [`Kernels::record`].
pub enum Recorded {
    /// A graph.
    Graph(Graph),
    /// None, for this reason. Nothing was computed, and nothing else changed.
    Refused(String),
}

impl Graph {
    /// Asks the GPU for all of it. Nothing waits for the results.
    pub fn launch(&mut self) -> Result<()> {
        #[cfg(feature = "cuda")]
        return self.recorded.launch();
        #[cfg(not(feature = "cuda"))]
        match self.never {}
    }
}

impl Kernels {
    /// The same, fit for [`Self::record`]. No real GPU has run it yet; an emulated one has.
    ///
    /// # Errors
    ///
    /// If there are no kernels, or the GPU has no room for what cuBLAS works in.
    pub fn with_graphs(self) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Some(kernels) = self.compiled {
            return Ok(Self::of_gpu(kernels.with_graphs()?));
        }
        candle_core::bail!("CUDA graphs are of a GPU's own kernels, and there are none")
    }

    /// Whether [`Self::record`] may be asked for.
    pub fn have_graphs(&self) -> bool {
        #[cfg(feature = "cuda")]
        let found = (self.compiled.as_ref()).is_some_and(cuda::Kernels::have_graphs);
        #[cfg(not(feature = "cuda"))]
        let found = false;
        found
    }

    /// Records what `work` asks of the GPU, without computing it. `work` reads nothing back, copies nothing there, has asked for the
    /// same once before, and leaves no new tensor behind; what it reads of others must stay as long as the graph, or be held by
    /// [`Self::hold`]. Where it fails, or asks for something that cannot be asked for again, it is refused.
    ///
    /// # Errors
    ///
    /// If the GPU fails, or a tensor is left behind.
    pub fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Recorded> {
        #[cfg(feature = "cuda")]
        if let Some(kernels) = &self.compiled {
            return Ok(match kernels.record(work)? {
                cuda::graph::Recorded::Graph(recorded) => Recorded::Graph(Graph { recorded }),
                cuda::graph::Recorded::Refused(why) => Recorded::Refused(why),
            });
        }
        let _ = work;
        candle_core::bail!("there is no GPU to record")
    }

    /// Keeps tensors that work reads and that were there before, for as long as a graph that is being recorded.
    pub fn hold(&self, tensors: &[&Tensor]) {
        #[cfg(feature = "cuda")]
        if let Some(kernels) = &self.compiled {
            kernels.hold(tensors);
        }
        let _ = tensors;
    }

    /// Numbers on a device that follow from the shape of what is computed, `[n]` in f32: a graph of that shape reads the same each time.
    pub fn constants(&self, numbers: Vec<f32>, device: &Device) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(kernels) = self.of(device) {
            return kernels.constants(numbers);
        }
        let count = numbers.len();
        Tensor::from_vec(numbers, count, device)
    }

    /// Before a tensor is made that stays: what is made while a graph is recorded is memory of the graph, with nothing in it.
    ///
    /// # Errors
    ///
    /// While one is recorded.
    pub fn before_keeping(&self) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(kernels) = &self.compiled {
            return kernels.before_keeping();
        }
        Ok(())
    }

    /// Waits for the GPU, and gives back the memory that it keeps for tensors to come and for graphs: neither uses the other's.
    pub fn give_back(&self) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(kernels) = &self.compiled {
            return kernels.give_back();
        }
        Ok(())
    }

    /// Sets the numbers of a tensor on the GPU to 0, in place.
    pub fn clear(&self, tensor: &Tensor) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(kernels) = self.of(tensor.device()) {
            return kernels.clear(tensor);
        }
        candle_core::bail!("only tensors on a GPU are cleared: {:?}", tensor.device())
    }

    /// Puts the numbers of `source`, in f32 on the host, in place of those of `target` on the GPU, of one shape and type with it.
    pub fn overwrite(&self, target: &Tensor, source: &Tensor) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(kernels) = self.of(target.device()) {
            return kernels.overwrite(target, source);
        }
        candle_core::bail!(
            "only tensors on a GPU are written over: {:?} by {:?}",
            target.device(),
            source.dims()
        )
    }
}
