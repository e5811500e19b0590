//! The tape and the values on it.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{Device, Result, Tensor, bail};

use super::gradient::{Gradient, Gradients, Slots};
use crate::nn::Kernels;

/// The key of a value's gradient. Unique in the process, so that a value of one tape can be used on another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Id(u64);

impl Id {
    fn new() -> Self {
        // Only uniqueness is asked of it, so the order between threads does not matter.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A tensor, and whether a gradient is wanted for it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Value {
    tensor: Tensor,
    id: Option<Id>,
}

impl Value {
    /// A value that needs no gradient.
    pub fn constant(tensor: Tensor) -> Self {
        Self { tensor, id: None }
    }

    /// What was computed.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// What was computed, for use off the tape.
    pub fn into_tensor(self) -> Tensor {
        self.tensor
    }

    /// The tensor's shape.
    pub fn dims(&self) -> &[usize] {
        self.tensor.dims()
    }

    /// Whether a gradient is wanted for it.
    pub fn needs_gradient(&self) -> bool {
        self.id.is_some()
    }

    pub(crate) fn id(&self) -> Option<Id> {
        self.id
    }

    fn device(&self) -> Device {
        self.tensor.device().clone()
    }
}

/// The same values, each on a device.
fn moved<'a>(
    values: Vec<Value>,
    devices: impl IntoIterator<Item = &'a Device>,
) -> Result<Vec<Value>> {
    let move_to = |(value, device): (Value, &Device)| {
        Ok(Value {
            tensor: value.tensor.to_device(device)?,
            id: value.id,
        })
    };
    values.into_iter().zip(devices).map(move_to).collect()
}

/// How a tape treats what it is asked to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Computes and forgets: inference.
    Off,
    /// Computes and knows what needs a gradient, but keeps nothing.
    Tracing,
    /// Computes and writes down how to go back.
    Recording,
}

/// Takes the gradients of an operation's results (`None` where the loss does not depend on one) and adds those
/// of its inputs.
type Backward = Box<dyn FnOnce(&mut Slots, Vec<Option<Gradient>>) -> Result<()>>;

struct Node {
    outputs: Vec<Id>,
    backward: Backward,
}

/// Computes, and remembers how to compute gradients. See the module's documentation.
pub struct Tape {
    mode: Mode,
    kernels: Kernels,
    nodes: RefCell<Vec<Node>>,
    offload: bool,
}

impl Tape {
    /// A tape for training: it keeps what [`Self::backward`] needs. What is on a GPU that the kernels are of is computed by them, forward and backward.
    pub fn recording(kernels: &Kernels) -> Self {
        Self::with(Mode::Recording, kernels)
    }

    /// A tape that only computes: nothing on it needs a gradient.
    pub fn off(kernels: &Kernels) -> Self {
        Self::with(Mode::Off, kernels)
    }

    fn with(mode: Mode, kernels: &Kernels) -> Self {
        Self {
            mode,
            kernels: kernels.clone(),
            nodes: RefCell::new(Vec::new()),
            offload: false,
        }
    }

    /// With `offload`, the inputs of a [`Self::checkpoint`] wait in the host's memory for the way back.
    pub fn offloading(mut self, offload: bool) -> Self {
        self.offload = offload;
        self
    }

    /// What it computes by.
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// A value whose gradient is wanted (but not on a tape that is off).
    pub fn leaf(&self, tensor: Tensor) -> Value {
        let id = (self.mode != Mode::Off).then(Id::new);
        Value { tensor, id }
    }

    /// Whether what is computed from `inputs` needs a gradient.
    pub(crate) fn needs(&self, inputs: &[&Value]) -> bool {
        self.mode != Mode::Off && inputs.iter().any(|value| value.needs_gradient())
    }

    /// Puts an operation's results on the tape. `backward` is kept only if a gradient is needed, so it may
    /// simply own clones of all that it reads.
    pub(crate) fn record(
        &self,
        inputs: &[&Value],
        outputs: Vec<Tensor>,
        backward: impl FnOnce(&mut Slots, Vec<Option<Gradient>>) -> Result<()> + 'static,
    ) -> Vec<Value> {
        if !self.needs(inputs) {
            return outputs.into_iter().map(Value::constant).collect();
        }
        let ids: Vec<Id> = outputs.iter().map(|_| Id::new()).collect();
        let values = outputs.into_iter().zip(&ids);
        let values = values
            .map(|(tensor, &id)| Value {
                tensor,
                id: Some(id),
            })
            .collect();
        if self.mode == Mode::Recording {
            self.nodes.borrow_mut().push(Node {
                outputs: ids,
                backward: Box::new(backward),
            });
        }
        values
    }

    /// `record` for an operation with one result.
    pub(crate) fn record_one(
        &self,
        inputs: &[&Value],
        output: Tensor,
        backward: impl FnOnce(&mut Slots, Gradient) -> Result<()> + 'static,
    ) -> Value {
        let id = self.needs(inputs).then(Id::new);
        if let Some(id) = id
            && self.mode == Mode::Recording
        {
            let backward = Box::new(|slots: &mut Slots, gradients: Vec<Option<Gradient>>| {
                match gradients.into_iter().next().flatten() {
                    Some(gradient) => backward(slots, gradient),
                    None => Ok(()),
                }
            });
            self.nodes.borrow_mut().push(Node {
                outputs: vec![id],
                backward,
            });
        }
        Value { tensor: output, id }
    }

    /// Runs `block` on `inputs`, keeping these alone: on the way back the block is run again to find what its
    /// gradients need. `block` may capture other values of this tape (adapters); they get their gradients.
    ///
    /// # Errors
    ///
    /// Those of `block`.
    pub fn checkpoint(
        &self,
        inputs: &[&Value],
        block: impl Fn(&Self, &[Value]) -> Result<Vec<Value>> + 'static,
    ) -> Result<Vec<Value>> {
        let inputs: Vec<Value> = inputs.iter().map(|&value| value.clone()).collect();
        if self.mode != Mode::Recording {
            return block(self, &inputs);
        }
        // Traced, not recorded: which results need a gradient is known, and what the block would save is dropped as it runs.
        let outputs = block(&Self::with(Mode::Tracing, &self.kernels), &inputs)?;
        let ids: Vec<Option<Id>> = outputs.iter().map(Value::id).collect();
        // Nothing in the block wants a gradient: it is never gone back through.
        if ids.iter().all(Option::is_none) {
            return Ok(outputs);
        }
        let devices: Vec<Device> = inputs.iter().map(Value::device).collect();
        let inputs = match self.offload {
            true => moved(inputs, std::iter::repeat(&Device::Cpu))?,
            false => inputs,
        };
        let backward = move |slots: &mut Slots, gradients: Vec<Option<Gradient>>| {
            let block_tape = Self::recording(slots.kernels());
            let inputs = moved(inputs, &devices)?;
            let outputs = block(&block_tape, &inputs)?;
            let mut gradients = gradients.into_iter();
            for (value, _) in outputs.iter().zip(&ids).filter(|(_, id)| id.is_some()) {
                if let Some(gradient) = gradients.next().flatten() {
                    slots.add(value.id(), gradient)?;
                }
            }
            // Otherwise the block's last tensors would stay until it is gone back through.
            drop((outputs, inputs));
            // Ids are unique, so the block's own gradients and the outer ones share their slots: sums are
            // formed in the order in which they would be formed had the block been kept.
            block_tape.unwind(slots)
        };
        let outputs_with_gradient = outputs.iter().filter_map(Value::id).collect();
        let node = Node {
            outputs: outputs_with_gradient,
            backward: Box::new(backward),
        };
        self.nodes.borrow_mut().push(node);
        Ok(outputs)
    }

    /// The gradients of the leaves, of a `loss` of one element. Consumes the tape.
    ///
    /// # Errors
    ///
    /// If the loss has more than one element or depends on no leaf, and those of the backend.
    pub fn backward(self, loss: &Value) -> Result<Gradients> {
        if loss.tensor.elem_count() != 1 {
            bail!("a loss has one element, found shape {:?}", loss.dims());
        }
        let seed = loss.tensor.ones_like()?;
        self.backward_from(&[(loss, seed)])
    }

    /// The gradients of the leaves, of the gradients of some values. Consumes the tape.
    ///
    /// # Errors
    ///
    /// If a gradient has not its value's shape, or no value depends on a leaf, and those of the backend.
    pub fn backward_from(self, seeds: &[(&Value, Tensor)]) -> Result<Gradients> {
        let mut slots = Slots::new(self.kernels.clone());
        if seeds.iter().all(|(value, _)| !value.needs_gradient()) {
            bail!("nothing to go back from: the values depend on no leaf of a recording tape");
        }
        for (value, gradient) in seeds {
            if value.dims() != gradient.dims() || value.tensor.dtype() != gradient.dtype() {
                bail!(
                    "a gradient of shape {:?} for {:?}",
                    gradient.dims(),
                    value.dims()
                );
            }
            slots.add(value.id(), Gradient::shared(gradient.clone()))?;
        }
        self.unwind(&mut slots)?;
        Ok(Gradients(slots))
    }

    /// Goes back over all nodes, dropping each with what it saved.
    fn unwind(self, slots: &mut Slots) -> Result<()> {
        let mut nodes = self.nodes.into_inner();
        // Each node is taken off before it runs, so what it saved is freed when it is done, not at the end.
        while let Some(node) = nodes.pop() {
            let gradients: Vec<_> = node.outputs.iter().map(|&id| slots.take(id)).collect();
            // The loss does not depend on the others.
            if gradients.iter().any(Option::is_some) {
                (node.backward)(slots, gradients)?;
            }
        }
        Ok(())
    }
}
